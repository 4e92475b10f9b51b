//! PHQ-9, GAD-7 and WHO-5: `questionnaires.toml`, scored with the published cut-offs and explained without diagnosing.
//!
//! A browser can do all of it from the JSON of [`Questionnaire`]: add the answers, multiply by `factor`, find the band
//! with `from <= score <= to`, and show help where the band says so or an item of `help_items` is above zero.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, rule_error};
use crate::types::{Bilingual, Language};

/// A questionnaire in one language.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Questionnaire {
    /// `phq-9`, `gad-7` or `who-5`.
    pub id: String,
    /// Its name.
    pub title: String,
    /// What it asks about, in a sentence.
    pub about: String,
    /// What stands before the items, such as "Over the last 2 weeks, ...".
    pub stem: String,
    /// The items, in their published order.
    pub items: Vec<String>,
    /// The answers to choose from, in the published order.
    pub options: Vec<AnswerOption>,
    /// The score is the sum of the answers times this (WHO-5: 4, for a percentage).
    pub factor: u32,
    /// `sum` or `percentage`.
    pub unit: ScoreUnit,
    /// The bands of the score, without gaps.
    pub bands: Vec<Band>,
    /// Items (from 0) whose answer above zero shows help at once.
    pub help_items: Vec<usize>,
    /// What is said then.
    pub help_text: String,
    /// What every result ends with: that it is no diagnosis.
    pub note: String,
    /// The publication that gives items and cut-offs.
    pub source: String,
    /// Where to read it.
    pub source_url: String,
    /// Who owns it and on what terms it may be used.
    pub licence: String,
}

/// An answer to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnswerOption {
    /// What it counts.
    pub value: u8,
    /// What it says.
    pub label: String,
}

/// How a score is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreUnit {
    /// A plain sum.
    Sum,
    /// A percentage of the highest sum.
    Percentage,
}

/// A band of scores with its published name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Band {
    /// The lowest score in it.
    pub from: u32,
    /// The highest score in it.
    pub to: u32,
    /// Its name.
    pub name: String,
    /// What it may mean and what could help.
    pub text: String,
    /// Whether helplines are shown with it.
    pub shows_help: bool,
}

/// A scored questionnaire.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// The sum of the answers.
    pub total: u32,
    /// The highest possible sum.
    pub max: u32,
    /// The percentage, for WHO-5.
    pub percentage: Option<u32>,
    /// The name of the band.
    pub band: String,
    /// What to show: the band's text, what an answer calls for, and that it is no diagnosis.
    pub text: String,
    /// Whether helplines are shown at once.
    pub shows_help: bool,
}

/// Scores answers, one for each item.
///
/// # Errors
/// [`Error::Answers`] where the number of answers or a value does not fit.
pub fn score(questionnaire: &Questionnaire, answers: &[u8]) -> Result<Score> {
    let max = questionnaire.options.iter().map(|option| option.value).max().unwrap_or(0);
    let wrong = |message| Error::Answers {
        questionnaire: questionnaire.id.clone(),
        expected: questionnaire.items.len(),
        max,
        message,
    };
    if answers.len() != questionnaire.items.len() {
        return Err(wrong(format!("{} answers were given", answers.len())));
    }
    if let Some((index, value)) =
        answers.iter().enumerate().find(|(_, v)| !questionnaire.options.iter().any(|o| o.value == **v))
    {
        return Err(wrong(format!("answer {} is {value}", index + 1)));
    }
    let total: u32 = answers.iter().map(|value| u32::from(*value)).sum();
    let scaled = total * questionnaire.factor;
    let band = questionnaire
        .bands
        .iter()
        .find(|band| (band.from..=band.to).contains(&scaled))
        .ok_or_else(|| wrong(format!("no band holds the score {scaled}")))?;
    let asks_for_help =
        questionnaire.help_items.iter().any(|item| answers.get(*item).is_some_and(|value| *value > 0));
    let mut text = band.text.clone();
    if asks_for_help {
        text = format!("{}\n\n{text}", questionnaire.help_text);
    }
    Ok(Score {
        total,
        max: u32::from(max) * questionnaire.items.len() as u32,
        percentage: (questionnaire.unit == ScoreUnit::Percentage).then_some(scaled),
        band: band.name.clone(),
        text: format!("{text}\n\n{}", questionnaire.note),
        shows_help: asks_for_help || band.shows_help,
    })
}

/// One entry of `questionnaires.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    title: Bilingual,
    about: Bilingual,
    stem: Bilingual,
    items: Vec<Bilingual>,
    options: Vec<OptionEntry>,
    factor: u32,
    unit: ScoreUnit,
    bands: Vec<BandEntry>,
    #[serde(default)]
    help_items: Vec<usize>,
    help_text: Bilingual,
    note: Bilingual,
    source: String,
    source_url: String,
    licence: Bilingual,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptionEntry {
    value: u8,
    label: Bilingual,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct BandEntry {
    from: u32,
    to: u32,
    name: Bilingual,
    text: Bilingual,
    #[serde(default)]
    shows_help: bool,
}

impl Entry {
    /// Refuses bands with gaps and items that are not there.
    pub(crate) fn check(&self, id: &str) -> Result<()> {
        let place = |key: &str| format!("questionnaire.{id}.{key}");
        let max = self.options.iter().map(|option| option.value).max().unwrap_or(0);
        let highest = (u64::from(max) * self.items.len() as u64).checked_mul(u64::from(self.factor));
        let Some(highest) = highest.filter(|highest| *highest <= 10_000) else {
            return Err(rule_error(place("factor"), "the highest score is above 10000"));
        };
        let mut next = 0;
        for band in &self.bands {
            if u64::from(band.from) != next || band.to < band.from {
                let message = format!("bands follow each other without gaps: one from {next} is missing");
                return Err(rule_error(place("bands"), message));
            }
            next = u64::from(band.to) + 1;
        }
        if next != highest + 1 {
            return Err(rule_error(place("bands"), format!("the last band ends at {highest}")));
        }
        if let Some(item) = self.help_items.iter().find(|item| **item >= self.items.len()) {
            let message = format!("{item} is not an item; they count from 0");
            return Err(rule_error(place("help_items"), message));
        }
        Ok(())
    }

    pub(crate) fn in_language(&self, id: &str, language: Language) -> Questionnaire {
        let text = |text: &Bilingual| text.get(language).to_owned();
        Questionnaire {
            id: id.to_owned(),
            title: text(&self.title),
            about: text(&self.about),
            stem: text(&self.stem),
            items: self.items.iter().map(text).collect(),
            options: self
                .options
                .iter()
                .map(|option| AnswerOption { value: option.value, label: text(&option.label) })
                .collect(),
            factor: self.factor,
            unit: self.unit,
            bands: self
                .bands
                .iter()
                .map(|band| Band {
                    from: band.from,
                    to: band.to,
                    name: text(&band.name),
                    text: text(&band.text),
                    shows_help: band.shows_help,
                })
                .collect(),
            help_items: self.help_items.clone(),
            help_text: text(&self.help_text),
            note: text(&self.note),
            source: self.source.clone(),
            source_url: self.source_url.clone(),
            licence: text(&self.licence),
        }
    }
}
