//! [`Care`]: the files, loaded, and everything that is asked of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use crate::answer::{AnswerCheck, AnswerGuard};
use crate::assess::{Assessment, Concern};
use crate::error::{Error, Result};
use crate::helplines::{Helpline, Region};
use crate::questionnaire::Questionnaire;
use crate::rules::Rules;
use crate::types::{Category, Language, ReminderKind, Turn};

/// Rules, texts, helplines and questionnaires. Cloning is cheap; it can be shared between threads.
#[derive(Debug, Clone)]
pub struct Care {
    pub(crate) rules: Arc<Rules>,
}

/// When a reminder is due again, for the page to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReminderPolicy {
    /// After so many messages of the person since the last reminder.
    pub turns: u32,
    /// After so many minutes since the last reminder.
    pub minutes: u32,
}

impl ReminderPolicy {
    /// Whether [`ReminderKind::LongSession`] is due, counted since the last reminder.
    pub fn is_due(&self, turns: u32, minutes: u32) -> bool {
        turns >= self.turns || minutes >= self.minutes
    }
}

/// A complete, fixed answer to a concern.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CareResponse {
    /// What it answers.
    pub category: Category,
    /// The answer as Markdown: kind words, emergency, helplines, grounding and a way to go on. It stands alone; the other
    /// fields are its parts, for a page that lays them out itself.
    pub text: String,
    /// Where to turn, the emergency number first.
    pub helplines: Vec<Helpline>,
    /// The emergency number of the region, or how to find it.
    pub emergency: String,
    /// Small steps to get through the moment.
    pub grounding: Vec<String>,
    /// How the conversation goes on.
    pub follow_up: String,
}

impl Care {
    /// The built-in files, read once.
    pub fn builtin() -> Self {
        static BUILTIN: LazyLock<Care> = LazyLock::new(|| {
            Care::from_toml("").expect("the built-in files are valid: every test loads them")
        });
        BUILTIN.clone()
    }

    /// The built-in files with an operator's text laid over them: tables are merged key by key, all else is replaced. Any key
    /// of the files may be given, so that a threshold, a rule, a text or a region changes alone.
    ///
    /// # Errors
    /// Where the text is not TOML, a key is unknown, or a value makes no sense.
    pub fn from_toml(text: &str) -> Result<Self> {
        Ok(Self { rules: Arc::new(Rules::load(text)?) })
    }

    /// [`Care::from_toml`] on a file.
    ///
    /// # Errors
    /// As there, and where the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::from_toml(&text)
    }

    /// Reads the recent turns, oldest first. The last turn of the person is judged; earlier ones raise the level for what is
    /// ambiguous.
    pub fn assess(&self, turns: &[Turn<'_>]) -> Assessment {
        crate::assess::assess(&self.rules.detector, turns)
    }

    /// Everything in the turns of a person that could be a hint, with a weight or without: subjects, words, words in a
    /// row and near each other. For tools that learn or explain weights.
    pub fn hints(&self, texts: &[&str]) -> BTreeSet<String> {
        crate::assess::hints(&self.rules.detector, texts)
    }

    /// The fixed answer to a concern. `region` is an ISO 3166-1 alpha-2 code; where it is absent or not in the table, the
    /// answer says how to find a number.
    pub fn response(&self, concern: &Concern, region: Option<&str>, language: Language) -> CareResponse {
        let rules = &self.rules;
        let words = &rules.texts.response[concern.category.name()];
        let emergency = rules.helplines.emergency(region, language);
        let helplines = rules.helplines.for_category(concern.category, region, language);
        let grounding: Vec<String> =
            words.grounding.iter().map(|step| step.get(language).to_owned()).collect();
        let follow_up = words.follow_up.get(language).to_owned();
        let labels = &rules.texts.labels;
        let mut text = words.opening.get(language).replace("{emergency}", &emergency);
        text.push_str(&format!("\n\n**{}**\n", labels.helplines.get(language)));
        for line in &helplines {
            text.push_str(&format!("\n- {}", markdown_line(line, labels.sms.get(language))));
        }
        text.push_str(&format!("\n\n**{}**\n", labels.grounding.get(language)));
        for (index, step) in grounding.iter().enumerate() {
            text.push_str(&format!("\n{}. {step}", index + 1));
        }
        text.push_str(&format!("\n\n{follow_up}"));
        CareResponse { category: concern.category, text, helplines, emergency, grounding, follow_up }
    }

    /// All regions of the table, sorted by name.
    pub fn regions(&self, language: Language) -> Vec<Region> {
        self.rules.helplines.regions(language)
    }

    /// All helplines of a region, the emergency number first and directories last.
    pub fn helplines(&self, region: Option<&str>, language: Language) -> Vec<Helpline> {
        self.rules.helplines.helplines(region, language)
    }

    /// Checks a whole answer of a model to `question`.
    pub fn check_answer(&self, question: &str, answer: &str, language: Language) -> AnswerCheck {
        let mut guard = self.guard(question, language);
        let mut text = guard.push(answer);
        text.push_str(&guard.finish());
        AnswerCheck::new(text, guard.reasons().to_vec())
    }

    /// The same for an answer that streams.
    pub fn guard(&self, question: &str, language: Language) -> AnswerGuard {
        AnswerGuard::new(Arc::clone(&self.rules), question, language)
    }

    /// Whether a message asks if a human is answering.
    pub fn is_asking_if_human(&self, text: &str) -> bool {
        self.rules.asks_if_human(text)
    }

    /// A reminder that this is a program.
    pub fn reminder(&self, kind: ReminderKind, language: Language) -> &str {
        let reminders = &self.rules.texts.reminder;
        match kind {
            ReminderKind::Start => &reminders.start,
            ReminderKind::Asked => &reminders.asked,
            ReminderKind::LongSession => &reminders.long_session,
        }
        .get(language)
    }

    /// When [`ReminderKind::LongSession`] is due.
    pub fn reminder_policy(&self) -> ReminderPolicy {
        self.rules.reminder_policy
    }

    /// The questionnaires, in the order of the file.
    pub fn questionnaires(&self, language: Language) -> Vec<Questionnaire> {
        self.rules.questionnaires.iter().map(|(id, entry)| entry.in_language(id, language)).collect()
    }
}

fn markdown_line(line: &Helpline, sms_label: &str) -> String {
    let mut text = format!("**{}**", line.name);
    let mut ways = Vec::new();
    ways.extend(line.phone.clone());
    ways.extend(line.sms.as_ref().map(|sms| format!("{sms_label} {sms}")));
    ways.extend(line.url.as_ref().map(|url| format!("<{url}>")));
    text.push_str(": ");
    text.push_str(&ways.join(" · "));
    if line.phone.is_some() || line.sms.is_some() {
        text.push_str(&format!(" ({})", line.hours));
    }
    text
}
