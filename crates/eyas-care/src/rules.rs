//! The four files as one value: read, merged with an operator's text, checked.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::care::ReminderPolicy;
use crate::error::{Result, rule_error};
use crate::helplines::HelplineTable;
use crate::questionnaire;
use crate::types::{Bilingual, Category};

const BUILTIN: [&str; 4] = [
    include_str!("../rules.toml"),
    include_str!("../texts.toml"),
    include_str!("../helplines.toml"),
    include_str!("../questionnaires.toml"),
];

/// Everything, ready for use.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) reminder_policy: ReminderPolicy,
    pub(crate) thresholds: BTreeMap<String, f32>,
    pub(crate) rules: BTreeMap<String, RuleEntry>,
    pub(crate) texts: Texts,
    pub(crate) helplines: HelplineTable,
    pub(crate) questionnaires: BTreeMap<String, questionnaire::Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    reminder_policy: ReminderPolicy,
    thresholds: BTreeMap<String, f32>,
    rules: BTreeMap<String, RuleEntry>,
    texts: Texts,
    helplines: HelplineTable,
    questionnaire: BTreeMap<String, questionnaire::Entry>,
}

/// A rule of the detector.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleEntry {
    pub(crate) category: Category,
    pub(crate) weight: f32,
    pub(crate) patterns: Vec<String>,
}

/// `texts.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Texts {
    pub(crate) labels: Labels,
    pub(crate) response: BTreeMap<String, ResponseText>,
    pub(crate) reminder: Reminders,
    pub(crate) replacement: BTreeMap<String, Bilingual>,
}

/// Headings inside an answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Labels {
    pub(crate) helplines: Bilingual,
    pub(crate) sms: Bilingual,
    pub(crate) grounding: Bilingual,
}

/// The words for one category.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseText {
    pub(crate) opening: Bilingual,
    pub(crate) grounding: Vec<Bilingual>,
    pub(crate) follow_up: Bilingual,
}

/// The three reminders.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reminders {
    pub(crate) start: Bilingual,
    pub(crate) asked: Bilingual,
    pub(crate) long_session: Bilingual,
}

impl Rules {
    pub(crate) fn load(operator: &str) -> Result<Self> {
        let mut merged = toml::Table::new();
        for text in BUILTIN.into_iter().chain([operator]) {
            lay_over(&mut merged, text.parse()?);
        }
        let files: Files = merged.try_into()?;
        for (name, threshold) in &files.thresholds {
            if !threshold.is_finite() || *threshold <= 0.0 {
                return Err(rule_error(format!("thresholds.{name}"), "a threshold is above zero"));
            }
        }
        for category in Category::ALL {
            for (table, there) in [
                ("thresholds", files.thresholds.contains_key(category.name())),
                ("texts.response", files.texts.response.contains_key(category.name())),
            ] {
                if !there {
                    return Err(rule_error(format!("{table}.{}", category.name()), "is missing"));
                }
            }
        }
        files.helplines.check()?;
        for (id, entry) in &files.questionnaire {
            entry.check(id)?;
        }
        Ok(Self {
            reminder_policy: files.reminder_policy,
            thresholds: files.thresholds,
            rules: files.rules,
            texts: files.texts,
            helplines: files.helplines,
            questionnaires: files.questionnaire,
        })
    }

    pub(crate) fn asks_if_human(&self, text: &str) -> bool {
        text.to_lowercase().contains("are you human")
    }
}

/// Lays `over` on `base`: tables are merged, all else is replaced.
fn lay_over(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
