//! The files as one value: read, merged with an operator's text, checked.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::answer::{AnswerEntry, AnswerRule, AnswerRules, OwnCondition, OwnConditionEntry, Reason};
use crate::care::ReminderPolicy;
use crate::detector::{Detector, DetectorFile};
use crate::error::{Result, rule_error};
use crate::helplines::HelplineTable;
use crate::numbers::{PhoneNumbers, PhoneNumbersEntry};
use crate::pattern::{Matcher, Pattern};
use crate::questionnaire;
use crate::types::{Bilingual, Category};

const BUILTIN: [&str; 10] = [
    include_str!("../rules.toml"),
    include_str!("../spelling.toml"),
    include_str!("../classes.toml"),
    include_str!("../idioms.toml"),
    include_str!("../answers.toml"),
    include_str!("../hints.toml"),
    include_str!("../weights.toml"),
    include_str!("../texts.toml"),
    include_str!("../helplines.toml"),
    include_str!("../questionnaires.toml"),
];

/// Everything, ready for use.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) reminder_policy: ReminderPolicy,
    pub(crate) detector: Detector,
    pub(crate) answers: AnswerRules,
    pub(crate) phone_numbers: PhoneNumbers,
    human_question: Vec<Pattern>,
    pub(crate) own_condition: OwnCondition,
    pub(crate) texts: Texts,
    pub(crate) helplines: HelplineTable,
    pub(crate) questionnaires: BTreeMap<String, questionnaire::Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    reminder_policy: ReminderPolicy,
    answers: BTreeMap<Reason, AnswerEntry>,
    phone_numbers: PhoneNumbersEntry,
    human_question: HumanQuestion,
    own_condition: OwnConditionEntry,
    texts: Texts,
    helplines: HelplineTable,
    questionnaire: BTreeMap<String, questionnaire::Entry>,
}

/// `texts.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Texts {
    pub(crate) labels: Labels,
    pub(crate) response: BTreeMap<String, ResponseText>,
    pub(crate) reminder: Reminders,
    pub(crate) replacement: Replacements,
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

/// What stands in the place of what must not be shown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replacements {
    diagnosis: Bilingual,
    dose: Bilingual,
    claims_human: Bilingual,
    method: Bilingual,
    encouragement: Bilingual,
    pub(crate) phone_number: Bilingual,
    pub(crate) emergency_number: Bilingual,
}

impl Replacements {
    pub(crate) fn of(&self, reason: Reason) -> &Bilingual {
        match reason {
            Reason::Diagnosis => &self.diagnosis,
            Reason::Dose => &self.dose,
            Reason::ClaimsHuman => &self.claims_human,
            Reason::Method => &self.method,
            Reason::Encouragement => &self.encouragement,
            Reason::PhoneNumber => &self.phone_number,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HumanQuestion {
    patterns: Vec<String>,
}

impl Rules {
    pub(crate) fn load(operator: &str) -> Result<Self> {
        let mut merged = toml::Table::new();
        for text in BUILTIN.into_iter().chain([operator]) {
            lay_over(&mut merged, text.parse()?);
        }
        let (detector, rest): (toml::Table, toml::Table) =
            merged.into_iter().partition(|(key, _)| DetectorFile::KEYS.contains(&key.as_str()));
        let detector: DetectorFile = detector.try_into()?;
        let files: Files = rest.try_into()?;
        for category in Category::ALL {
            if !files.texts.response.contains_key(category.name()) {
                return Err(rule_error(format!("texts.response.{}", category.name()), "is missing"));
            }
        }
        files.helplines.check()?;
        for (id, entry) in &files.questionnaire {
            entry.check(id)?;
        }
        let elsewhere =
            files.answers.values().flat_map(|entry| [&entry.patterns, &entry.unless, &entry.always]);
        let own_condition = &files.own_condition;
        let questions = [&files.human_question.patterns, &own_condition.patterns, &own_condition.unless];
        let elsewhere: Vec<_> = elsewhere.chain(questions).flatten().cloned().collect();
        let detector = detector.compile(&elsewhere)?;
        let mut answers = AnswerRules::new();
        for (reason, entry) in &files.answers {
            let name = format!("{reason:?}").to_lowercase();
            answers.insert(*reason, AnswerRule::compile(entry, &name, &detector)?);
        }
        let human_question = detector.classes.compile_all(
            &files.human_question.patterns,
            &detector.spelling,
            "human_question.patterns",
        )?;
        Ok(Self {
            answers,
            phone_numbers: PhoneNumbers::new(files.phone_numbers, files.helplines.numbers()),
            human_question,
            own_condition: OwnCondition::compile(&files.own_condition, &detector)?,
            reminder_policy: files.reminder_policy,
            detector,
            texts: files.texts,
            helplines: files.helplines,
            questionnaires: files.questionnaire,
        })
    }

    pub(crate) fn asks_if_human(&self, text: &str) -> bool {
        let tokens = self.detector.spelling.read(text);
        Matcher::new(&self.detector.classes, &tokens).any(&self.human_question, |_| true)
    }

    /// Whether an answer begins with yes.
    pub(crate) fn says_yes(&self, answer: &Matcher<'_>) -> bool {
        answer.any(&self.detector.context.yes, |_| true)
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
