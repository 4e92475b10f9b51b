//! From TOML text and `key=value` arguments to a recipe.

use toml::de::{DeTable, DeValue};

use super::Recipe;
use super::keys::{KEYS, Key, SECTIONS};
use crate::{Error, Result};

/// Where overrides come from, for messages.
const OVERRIDE: &str = "--set";

impl Recipe {
    /// Reads TOML text; `origin` is named in messages.
    ///
    /// # Errors
    /// When it is no TOML, or has a key or a value that is not understood.
    pub fn parse(origin: &str, text: &str) -> Result<Self> {
        let syntax = |error: toml::de::Error| Error::RecipeSyntax {
            origin: origin.into(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            reason: error.message().into(),
        };
        let spans = DeTable::parse(text).map_err(syntax)?;
        let values: toml::Table = toml::from_str(text).map_err(syntax)?;

        // In the order of the file, so that the first mistake is the one reported.
        let mut entries = Vec::new();
        for (name, value) in spans.get_ref() {
            let (start, name) = (name.span().start, name.get_ref().as_ref());
            let section = SECTIONS.iter().map(|(section, _)| *section).find(|section| *section == name);
            match (section, value.get_ref()) {
                (Some(section), DeValue::Table(keys)) => {
                    for key in keys.keys() {
                        let value = &values[section][key.get_ref().as_ref()];
                        entries.push((key.span().start, Some(section), key.get_ref().as_ref(), value));
                    }
                }
                _ => entries.push((start, None, name, &values[name])),
            }
        }
        entries.sort_by_key(|entry| entry.0);

        let mut recipe = Self::default();
        for (start, section, name, value) in entries {
            let place = format!("{origin}:{}", line_of(text, start));
            let key = find(&place, section, name)?;
            if let Some(before) = recipe.places.get(key.name) {
                return Err(Error::Recipe {
                    place,
                    reason: format!("`{}` is set already, at {before}; keep one of the two", key.name),
                });
            }
            recipe.assign(place, key, value.clone())?;
        }
        Ok(recipe)
    }

    /// Sets one key from an argument: `key=value` or `section.key=value`. The value is read as TOML, and as a text
    /// where it is no TOML or the key takes a text.
    ///
    /// # Errors
    /// When the key or the value is not understood.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let place = || format!("{OVERRIDE} {assignment}");
        let Some((name, value)) = assignment.split_once('=') else {
            return Err(Error::Recipe { place: place(), reason: "has no `=`; write `key=value`".into() });
        };
        let (section, name) = match name.trim().split_once('.') {
            Some((section, name)) => {
                let Some((section, _)) = SECTIONS.iter().find(|(known, _)| *known == section) else {
                    let reason = format!("unknown section `{section}`{}", nearest(section, false));
                    return Err(Error::Recipe { place: place(), reason });
                };
                (Some(*section), name)
            }
            None => (None, name.trim()),
        };
        let key = find(&place(), section, name)?;
        let text = toml::Value::String(value.trim().into());
        match toml::from_str::<toml::Table>(&format!("value = {value}")) {
            Ok(mut table) if table.len() == 1 => {
                let value = table.remove("value").unwrap_or_else(|| text.clone());
                let was_text = value.is_str();
                self.assign(place(), key, value).or_else(|error| {
                    if was_text { Err(error) } else { self.assign(place(), key, text).map_err(|_| error) }
                })
            }
            _ => self.assign(place(), key, text),
        }
    }

    fn assign(&mut self, place: String, key: &'static Key, value: toml::Value) -> Result<()> {
        let shown = value.to_string();
        self.sections.assign(key.name, value).map_err(|error| Error::Recipe {
            place: place.clone(),
            reason: format!("`{}` is {shown}: {}", key.name, error.message()),
        })?;
        self.places.insert(key.name, place);
        Ok(())
    }

    /// An error about the value of a key, naming where it was set.
    pub(crate) fn wrong(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        debug_assert!(KEYS.iter().any(|known| known.name == key), "`{key}` is in the table");
        let place = self.places.get(key).cloned().unwrap_or_else(|| "recipe".into());
        Error::Recipe { place, reason: format!("`{key}` {reason}") }
    }
}

fn find(place: &str, section: Option<&str>, name: &str) -> Result<&'static Key> {
    let key = KEYS.iter().find(|key| key.name == name || key.aliases.contains(&name));
    let reason = match (key, section) {
        (None, _) => format!("unknown key `{name}`{}", nearest(name, section.is_none())),
        (Some(key), Some(section)) if key.section != section => {
            format!("`{name}` does not belong to [{section}] but to [{}]", key.section)
        }
        (Some(key), _) => return Ok(key),
    };
    Err(Error::Recipe { place: place.into(), reason })
}

/// The known name that a person most likely meant.
fn nearest(name: &str, keys: bool) -> String {
    let sections = SECTIONS.iter().map(|(section, _)| *section);
    let names = KEYS.iter().flat_map(|key| std::iter::once(&key.name).chain(key.aliases)).copied();
    let names: Vec<&str> = if keys { names.chain(sections).collect() } else { names.collect() };
    let similarity = |known: &&str| strsim::jaro_winkler(known, name);
    names
        .into_iter()
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
        .map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count()
}
