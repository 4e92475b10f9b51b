//! The table of helplines: `helplines.toml`, dated and with sources.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Result, rule_error};
use crate::types::{Bilingual, Category, Language};

/// A country or territory of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Region {
    /// ISO 3166-1 alpha-2, upper case.
    pub code: String,
    /// Its name in the language asked for.
    pub name: String,
}

/// One place to turn to, in the language asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Helpline {
    /// Its name.
    pub name: String,
    /// What it is for: `emergency`, `crisis`, `abuse`, `poison`, `youth` or `directory`.
    pub kind: HelplineKind,
    /// The number to call, as printed by the source.
    pub phone: Option<String>,
    /// How to reach it by text message.
    pub sms: Option<String>,
    /// Its page.
    pub url: Option<String>,
    /// When it answers.
    pub hours: String,
    /// BCP 47 tags of the languages it is known to speak.
    pub languages: Vec<String>,
    /// The page that publishes the number.
    pub source: String,
    /// The date (ISO 8601) up to which the entry is known to hold.
    pub checked: String,
}

/// What a helpline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelplineKind {
    /// Ambulance, police, fire.
    Emergency,
    /// Suicide and emotional crisis.
    Crisis,
    /// Violence at home, sexual violence, protection of children.
    Abuse,
    /// Poisoning and overdose.
    Poison,
    /// For children and young people.
    Youth,
    /// A directory of helplines.
    Directory,
}

/// `helplines.toml` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HelplineTable {
    checked: String,
    emergency_name: Bilingual,
    emergency_unknown: Bilingual,
    hours: BTreeMap<String, Bilingual>,
    directory: Vec<Line>,
    region: BTreeMap<String, RegionEntry>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionEntry {
    name: Bilingual,
    emergency: Vec<Emergency>,
    emergency_source: String,
    #[serde(default)]
    line: Vec<Line>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Emergency {
    number: String,
    what: Option<Bilingual>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: Bilingual,
    kind: HelplineKind,
    phone: Option<String>,
    sms: Option<String>,
    url: Option<String>,
    hours: String,
    languages: Vec<String>,
    source: String,
    checked: Option<String>,
}

impl HelplineTable {
    /// Refuses entries that a page could not show.
    pub(crate) fn check(&self) -> Result<()> {
        for (code, entry) in &self.region {
            if code.len() != 2 || !code.bytes().all(|b| b.is_ascii_uppercase()) {
                let message = "a region's key is its ISO 3166-1 alpha-2 code in capitals, such as TW";
                return Err(rule_error(format!("helplines.region.{code}"), message));
            }
            if entry.emergency.is_empty() {
                let message = "every region needs an emergency number";
                return Err(rule_error(format!("helplines.region.{code}.emergency"), message));
            }
            for (index, line) in entry.line.iter().enumerate() {
                self.check_line(line, &format!("helplines.region.{code}.line[{index}]"))?;
            }
        }
        for (index, line) in self.directory.iter().enumerate() {
            self.check_line(line, &format!("directory[{index}]"))?;
        }
        Ok(())
    }

    fn check_line(&self, line: &Line, place: &str) -> Result<()> {
        if line.phone.is_none() && line.sms.is_none() && line.url.is_none() {
            return Err(rule_error(place, "give at least one of phone, sms and url"));
        }
        if !line.source.starts_with("https://") {
            return Err(rule_error(place, "source is the https page that publishes the number"));
        }
        if !self.hours.contains_key(&line.hours) {
            let known: Vec<_> = self.hours.keys().map(String::as_str).collect();
            return Err(rule_error(
                place,
                format!("hours = \"{}\" is not among {}", line.hours, known.join(", ")),
            ));
        }
        Ok(())
    }

    pub(crate) fn regions(&self, language: Language) -> Vec<Region> {
        let mut regions: Vec<_> = self
            .region
            .iter()
            .map(|(code, entry)| Region { code: code.clone(), name: entry.name.get(language).to_owned() })
            .collect();
        regions.sort_by(|a, b| a.name.cmp(&b.name));
        regions
    }

    fn entry(&self, region: Option<&str>) -> Option<&RegionEntry> {
        self.region.get(&region?.trim().to_ascii_uppercase())
    }

    /// Everything for a region, the emergency number first; only directories where the region is unknown.
    pub(crate) fn helplines(&self, region: Option<&str>, language: Language) -> Vec<Helpline> {
        let mut all = Vec::new();
        if let Some(entry) = self.entry(region) {
            for emergency in &entry.emergency {
                let what = emergency.what.as_ref().unwrap_or(&self.emergency_name);
                all.push(Helpline {
                    name: what.get(language).to_owned(),
                    kind: HelplineKind::Emergency,
                    phone: Some(emergency.number.clone()),
                    sms: None,
                    url: None,
                    hours: self.hours_text("always", language),
                    languages: Vec::new(),
                    source: entry.emergency_source.clone(),
                    checked: self.checked.clone(),
                });
            }
            all.extend(entry.line.iter().map(|line| self.line(line, language)));
        }
        all.extend(self.directory.iter().map(|line| self.line(line, language)));
        all
    }

    /// The helplines that fit a category, the emergency number still first.
    pub(crate) fn for_category(
        &self,
        category: Category,
        region: Option<&str>,
        language: Language,
    ) -> Vec<Helpline> {
        use HelplineKind::{Abuse, Crisis, Directory, Emergency, Poison, Youth};
        let wanted: &[HelplineKind] = match category {
            Category::Suicide | Category::SelfHarm | Category::ThirdPerson => {
                &[Emergency, Crisis, Youth, Directory]
            }
            Category::Overdose => &[Emergency, Poison, Crisis, Directory],
            Category::Abuse => &[Emergency, Abuse, Youth, Crisis, Directory],
            Category::Violence => &[Emergency, Crisis, Directory],
        };
        let mut lines = self.helplines(region, language);
        lines.retain(|line| wanted.contains(&line.kind));
        lines.sort_by_key(|line| wanted.iter().position(|kind| *kind == line.kind));
        lines
    }

    /// The emergency number of a region, or how to find it.
    pub(crate) fn emergency(&self, region: Option<&str>, language: Language) -> String {
        match self.entry(region) {
            Some(entry) => {
                let numbers: Vec<_> = entry.emergency.iter().map(|e| e.number.as_str()).collect();
                numbers.join(" / ")
            }
            None => self.emergency_unknown.get(language).to_owned(),
        }
    }

    /// The digits of every number in the table.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (String, bool)> {
        let emergency = self.region.values().flat_map(|r| &r.emergency).map(|e| (digits(&e.number), true));
        let lines = self.region.values().flat_map(|r| &r.line).filter_map(|l| l.phone.as_deref());
        emergency.chain(lines.map(|phone| (digits(phone), false)))
    }

    fn hours_text(&self, key: &str, language: Language) -> String {
        self.hours.get(key).map_or_else(|| key.to_owned(), |text| text.get(language).to_owned())
    }

    fn line(&self, line: &Line, language: Language) -> Helpline {
        Helpline {
            name: line.name.get(language).to_owned(),
            kind: line.kind,
            phone: line.phone.clone(),
            sms: line.sms.clone(),
            url: line.url.clone(),
            hours: self.hours_text(&line.hours, language),
            languages: line.languages.clone(),
            source: line.source.clone(),
            checked: line.checked.clone().unwrap_or_else(|| self.checked.clone()),
        }
    }
}

fn digits(number: &str) -> String {
    number.chars().filter(char::is_ascii_digit).collect()
}
