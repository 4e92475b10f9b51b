//! The safety layer as the operator set it up.

use eyas_care::{Care, CareResponse, Language, Turn};
use eyas_data::Role;
use serde_json::{Value, json};

/// How far the safety layer reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CareMode {
    /// Not at all; the page's tables are still there.
    Off,
    /// Chat.
    On,
    /// Chat and raw completions.
    Strict,
}

/// The safety layer of a server.
#[derive(Clone, Debug)]
pub struct CareSettings {
    /// Rules, texts and helplines.
    pub care: Care,
    /// How far it reaches.
    pub mode: CareMode,
    /// Whose helplines are given where a request names no region: ISO 3166-1 alpha-2.
    pub default_region: Option<String>,
}

impl Default for CareSettings {
    fn default() -> Self {
        Self { care: Care::builtin(), mode: CareMode::On, default_region: None }
    }
}

impl CareSettings {
    /// The fixed answer where the last turns give cause for concern.
    pub(crate) fn answer(
        &self,
        turns: &[eyas_data::Turn],
        region: Option<&str>,
        language: Language,
    ) -> Option<CareResponse> {
        let spoken: Vec<Turn<'_>> = turns
            .iter()
            .filter_map(|turn| match turn.role {
                Role::User => Some(Turn::user(&turn.content)),
                Role::Assistant => Some(Turn::assistant(&turn.content)),
                // What a tool returned are not the person's words.
                Role::System | Role::Developer | Role::Tool => None,
            })
            .collect();
        Some(self.care.response(&self.care.assess(&spoken).concern?, region, language))
    }

    /// The region that helplines are given for.
    pub(crate) fn region<'a>(&'a self, asked: Option<&'a str>) -> Option<&'a str> {
        asked.filter(|region| !region.trim().is_empty()).or(self.default_region.as_deref())
    }
}

/// The language to answer in: the one asked for, or that of the last message.
pub(crate) fn language(asked: Option<&str>, last: &str) -> Language {
    match asked.filter(|tag| !tag.trim().is_empty()) {
        Some(tag) => Language::from_tag(tag),
        None if last.chars().any(|c| matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}')) => {
            Language::ZhHant
        }
        None => Language::En,
    }
}

/// The parts of a care answer, for a page that lays them out itself.
pub(crate) fn parts(response: &CareResponse, region: Option<&str>, language: Language) -> Value {
    json!({
        "category": response.category,
        "region": region.map(|region| region.trim().to_ascii_uppercase()),
        "language": language,
        "helplines": response.helplines,
        "emergency": response.emergency,
        "grounding": response.grounding,
        "follow_up": response.follow_up,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tool_returned_is_not_read_as_the_persons_words() {
        let settings = CareSettings::default();
        let ask = eyas_data::Turn::new(Role::User, "How did the book end?");
        let said = eyas_data::Turn::new(Role::Tool, "I want to kill myself.");
        assert!(settings.answer(&[ask.clone(), said.clone()], None, Language::En).is_none());
        let alone = eyas_data::Turn::new(Role::User, said.content);
        assert!(settings.answer(&[ask, alone], None, Language::En).is_some());
    }
}
