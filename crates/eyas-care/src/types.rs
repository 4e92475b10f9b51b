//! The small types that everything here shares.

use serde::{Deserialize, Serialize};

/// The language of fixed texts. The detector always reads both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Language {
    /// English, plain and British.
    #[default]
    #[serde(rename = "en")]
    En,
    /// Traditional Chinese.
    #[serde(rename = "zh-Hant")]
    ZhHant,
}

impl Language {
    /// The language of a BCP 47 tag such as `zh-TW` or of an `Accept-Language` header's first entry: any Chinese is
    /// Traditional Chinese, all else English.
    pub fn from_tag(tag: &str) -> Self {
        let tag = tag.trim_start();
        match tag.get(..2) {
            Some(start) if start.eq_ignore_ascii_case("zh") => Self::ZhHant,
            _ => Self::En,
        }
    }

    /// The BCP 47 tag, `en` or `zh-Hant`.
    pub fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::ZhHant => "zh-Hant",
        }
    }
}

/// A text in both languages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bilingual {
    /// English.
    pub en: String,
    /// Traditional Chinese.
    #[serde(rename = "zh-Hant")]
    pub zh_hant: String,
}

impl Bilingual {
    /// The text in one language.
    pub fn get(&self, language: Language) -> &str {
        match language {
            Language::En => &self.en,
            Language::ZhHant => &self.zh_hant,
        }
    }
}

/// Who wrote a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// Who wrote it.
    pub role: Role,
    /// What was written, as it came.
    pub text: &'a str,
}

impl<'a> Turn<'a> {
    /// A turn of the person.
    pub fn user(text: &'a str) -> Self {
        Self { role: Role::User, text }
    }

    /// A turn of the model.
    pub fn assistant(text: &'a str) -> Self {
        Self { role: Role::Assistant, text }
    }
}

/// What a concern is about. In files and JSON: `suicide`, `self_harm`, ...
///
/// The order is that of precedence where two categories are equally strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Something was taken, or a harmful amount is at hand to be taken: an emergency.
    Overdose,
    /// Thoughts, wishes or plans to die, direct or not.
    Suicide,
    /// Harm to others.
    Violence,
    /// The person is being hurt, threatened, forced or controlled by someone.
    Abuse,
    /// Hurting oneself without a stated wish to die.
    SelfHarm,
    /// Somebody else is at risk, and the person wants to help.
    ThirdPerson,
}

impl Category {
    /// All of them, in order of precedence.
    pub const ALL: [Category; 6] =
        [Self::Overdose, Self::Suicide, Self::Violence, Self::Abuse, Self::SelfHarm, Self::ThirdPerson];

    /// The name in files and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overdose => "overdose",
            Self::Suicide => "suicide",
            Self::Violence => "violence",
            Self::Abuse => "abuse",
            Self::SelfHarm => "self_harm",
            Self::ThirdPerson => "third_person",
        }
    }
}

/// When a reminder that this is a program is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReminderKind {
    /// Before the first message.
    Start,
    /// The person asked whether this is a human.
    Asked,
    /// The conversation has gone on for long.
    LongSession,
}
