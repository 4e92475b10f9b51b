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
    /// The date (ISO 8601) up to which the entry is known to hold: that of the table, or a later one of the entry or of the
    /// page that confirms it.
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
    emergency_confirmed: Option<Confirmation>,
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
    confirmed: Option<Confirmation>,
    checked: Option<String>,
}

/// The page on which an entry was found to be as it stands. An entry without one is not confirmed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Confirmation {
    page: String,
    kind: PageKind,
    /// Of the page, where it has one: `YYYY`, `YYYY-MM` or `YYYY-MM-DD`.
    dated: Option<String>,
}

/// Whose page confirms an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PageKind {
    /// Of the organisation that runs the line: on the host of `source` or `url`.
    Own,
    /// Of another public body, such as a ministry, a health service or a university.
    Public,
    /// Of a newspaper, a broadcaster or a press agency.
    Press,
    /// Any other page, lists of helplines among them.
    Other,
}

impl Confirmation {
    /// `own` are the addresses of the organisation itself; `None` where the table names none.
    fn check(&self, own: Option<&[&str]>, place: &str) -> Result<()> {
        let Some(page) = host(&self.page) else {
            return Err(rule_error(place, "confirmed.page is the http address of the page that was read"));
        };
        let belongs = |address: &&str| host(address).is_some_and(|host| same_domain(page, host));
        if self.kind == PageKind::Own && own.is_some_and(|own| !own.iter().any(belongs)) {
            let message =
                format!("confirmed.kind = \"own\", but {page} is the host neither of source nor of url");
            return Err(rule_error(place, message));
        }
        if self.dated.as_deref().is_some_and(|date| !is_date(date)) {
            return Err(rule_error(place, "confirmed.dated is YYYY, YYYY-MM or YYYY-MM-DD"));
        }
        Ok(())
    }
}

/// The host of an http address, without `www.`.
fn host(address: &str) -> Option<&str> {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"))?;
    let host = rest.split(['/', '?', '#']).next()?;
    let host = host.strip_prefix("www.").unwrap_or(host);
    host.contains('.').then_some(host)
}

/// Equal, or one within the other.
fn same_domain(a: &str, b: &str) -> bool {
    let within = |inner: &str, outer: &str| inner.strip_suffix(outer).is_some_and(|rest| rest.ends_with('.'));
    a == b || within(a, b) || within(b, a)
}

fn is_date(date: &str) -> bool {
    let digits = |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    let mut parts = date.split('-');
    parts.next().is_some_and(|year| digits(year, 4))
        && parts.clone().count() <= 2
        && parts.all(|p| digits(p, 2))
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
            if let Some(confirmed) = &entry.emergency_confirmed {
                confirmed.check(None, &format!("helplines.region.{code}.emergency_confirmed"))?;
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
        if let Some(confirmed) = &line.confirmed {
            let own: Vec<_> = line.url.as_deref().into_iter().chain([line.source.as_str()]).collect();
            confirmed.check(Some(&own), place)?;
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
                    checked: self.known_to_hold(None, entry.emergency_confirmed.as_ref()),
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
            checked: self.known_to_hold(line.checked.as_deref(), line.confirmed.as_ref()),
        }
    }

    /// The date of an entry if it has one, else the later of the table's and that of the page that confirms it.
    fn known_to_hold(&self, checked: Option<&str>, confirmed: Option<&Confirmation>) -> String {
        let page = confirmed.and_then(|c| c.dated.as_deref()).filter(|date| date.len() == "YYYY-MM-DD".len());
        checked
            .unwrap_or_else(|| page.map_or(self.checked.as_str(), |page| page.max(&self.checked)))
            .to_owned()
    }
}

fn digits(number: &str) -> String {
    number.chars().filter(char::is_ascii_digit).collect()
}
