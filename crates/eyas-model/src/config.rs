//! `config.json` as a typed view: every error names the file and the key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A JSON object of settings, with the name of where it came from.
#[derive(Clone, Debug)]
pub struct Config {
    origin: String,
    values: Map<String, Value>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is no JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        Self::parse(path.display().to_string(), &text)
    }

    /// Reads text; `origin` is named in errors.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn parse(origin: String, text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(values)) => Ok(Self { origin, values }),
            Ok(_) => Err(Error::Config { origin, reason: "a JSON object was expected".into() }),
            Err(error) => Err(Error::Config { origin, reason: format!("not valid JSON: {error}") }),
        }
    }

    /// The keys and values.
    pub fn into_values(self) -> Map<String, Value> {
        self.values
    }

    /// An error about a key of this file.
    pub fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Config { origin: format!("{}, key `{key}`", self.origin), reason: reason.into() }
    }

    /// The value under the first of `keys` that is there and not null.
    pub fn get<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &Value)> {
        keys.iter()
            .find_map(|&key| self.values.get(key).filter(|value| !value.is_null()).map(|value| (key, value)))
    }

    /// A whole number of at least 1 and at most `max`, under the first of `keys` that is there.
    ///
    /// # Errors
    /// When none of them is there, or the value is no such number.
    pub fn size(&self, keys: &[&str], max: usize) -> Result<usize> {
        self.optional_size(keys, max)?
            .ok_or_else(|| self.error(keys[0], "is missing; the model's shape needs it"))
    }

    /// As [`Config::size`], `None` when none of the keys is there.
    ///
    /// # Errors
    /// When the value is no such number.
    pub fn optional_size(&self, keys: &[&str], max: usize) -> Result<Option<usize>> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n >= 1 && n <= max)
            .map(Some)
            .ok_or_else(|| {
                self.error(key, format!("is {value}; a whole number from 1 to {max} was expected"))
            })
    }

    /// A positive, finite number under the first of `keys` that is there.
    ///
    /// # Errors
    /// When the value is no such number.
    pub fn positive(&self, keys: &[&str]) -> Result<Option<f64>> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        value
            .as_f64()
            .filter(|n| n.is_finite() && *n > 0.0)
            .map(Some)
            .ok_or_else(|| self.error(key, format!("is {value}; a number above 0 was expected")))
    }

    /// A flag, `default` when it is not there.
    ///
    /// # Errors
    /// When the value is neither true nor false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(&[key]) {
            None => Ok(default),
            Some((_, Value::Bool(flag))) => Ok(*flag),
            Some((_, other)) => Err(self.error(key, format!("is {other}; true or false was expected"))),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// When the value is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((_, other)) => Err(self.error(key, format!("is {other}; a text was expected"))),
        }
    }

    /// A list of texts, empty when it is not there.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let Some((_, value)) = self.get(&[key]) else { return Ok(Vec::new()) };
        value
            .as_array()
            .and_then(|items| items.iter().map(Value::as_str).collect())
            .ok_or_else(|| self.error(key, format!("is {value}; a list of texts was expected")))
    }

    /// A nested object.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some((_, Value::Object(values))) => {
                Ok(Some(Self { origin: format!("{}, key `{key}`", self.origin), values: values.clone() }))
            }
            Some((_, other)) => Err(self.error(key, format!("is {other}; an object was expected"))),
        }
    }

    /// Adds values that stand where this object has none: for settings that old files keep at the top.
    pub fn with_defaults_from(mut self, other: &Self, keys: &[&str]) -> Self {
        for &key in keys {
            if self.get(&[key]).is_none()
                && let Some(value) = other.values.get(key)
            {
                self.values.insert(key.into(), value.clone());
            }
        }
        self
    }

    /// An empty object with this one's name.
    pub fn empty(&self) -> Self {
        Self { origin: self.origin.clone(), values: Map::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("config.json".into(), text).unwrap()
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        let error = config(r#"{"hidden_size": -3}"#).size(&["hidden_size"], 100).unwrap_err().to_string();
        assert_eq!(error, "config.json, key `hidden_size`: is -3; a whole number from 1 to 100 was expected");
        let error = config("{}").size(&["hidden_size"], 100).unwrap_err().to_string();
        assert!(error.contains("`hidden_size`") && error.contains("missing"), "{error}");
    }

    #[test]
    fn null_counts_as_absent_and_older_names_are_found() {
        let config = config(r#"{"num_kv_heads": null, "n_head_kv": 8}"#);
        assert_eq!(config.size(&["num_kv_heads", "n_head_kv"], 100).unwrap(), 8);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(Config::parse("x".into(), "[1]").is_err());
        assert!(Config::parse("x".into(), "{").is_err());
    }
}
