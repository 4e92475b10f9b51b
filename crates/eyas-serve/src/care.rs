//! The safety layer as the operator set it up.

use eyas_care::{Care, CareResponse, Concern, Language, Turn};
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

/// Turns that are read beside the last one.
const RECENT: usize = 10;
/// Characters that are read at once, so that what is said in one place is not outweighed by the rest, and how many of
/// them are read again with the next.
const PIECE: usize = 600;
const OVERLAP: usize = 150;

/// A text in pieces that overlap, so that nothing is said between two of them.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let at = |characters: usize| text.char_indices().nth(characters).map(|(at, _)| at);
        let Some(end) = at(PIECE) else { return Some(text) };
        rest = at(PIECE - OVERLAP).map(|start| &text[start..]);
        Some(&text[..end])
    })
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
                Role::User | Role::Tool => Some(Turn::user(&turn.content)),
                Role::Assistant => Some(Turn::assistant(&turn.content)),
                Role::System | Role::Developer => None,
            })
            .collect();
        let last = spoken.iter().rposition(|turn| turn.role == eyas_care::Role::User)?;
        let earlier = &spoken[last.saturating_sub(RECENT)..last];
        // A long message is read in pieces, and of an earlier one the end.
        let earlier =
            earlier.iter().map(|turn| Turn { text: pieces(turn.text).last().unwrap_or(""), ..*turn });
        let mut read: Vec<Turn<'_>> = earlier.collect();
        let mut strongest: Option<Concern> = None;
        for piece in pieces(spoken[last].text) {
            read.push(Turn::user(piece));
            let found = self.care.assess(&read).concern;
            read.pop();
            if let Some(found) = found
                && strongest.as_ref().is_none_or(|known| known.severity < found.severity)
            {
                strongest = Some(found);
            }
        }
        Some(self.care.response(&strongest?, region, language))
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
    fn pieces_overlap_and_reach_the_end() {
        assert_eq!(pieces("short").collect::<Vec<_>>(), ["short"]);
        assert_eq!(pieces("").collect::<Vec<_>>(), [""]);
        let text: String = ('\u{4e00}'..).take(1300).collect();
        let found: Vec<&str> = pieces(&text).collect();
        let lengths: Vec<usize> = found.iter().map(|piece| piece.chars().count()).collect();
        assert_eq!(lengths, [600, 600, 400]);
        assert!(
            text.ends_with(found[2]) && found[0].ends_with(&found[1].chars().take(150).collect::<String>())
        );
    }

    #[test]
    fn a_concern_is_found_anywhere_in_a_long_message() {
        let settings = CareSettings::default();
        let filler = "The weather was fine and we walked by the river. ".repeat(30);
        for text in [
            format!("I want to kill myself. {filler}"),
            format!("{filler} I want to kill myself. {filler}"),
            format!("{filler} I want to kill myself."),
        ] {
            let turns = [eyas_data::Turn::new(Role::User, text)];
            assert!(settings.answer(&turns, None, Language::En).is_some());
        }
        assert!(settings.answer(&[eyas_data::Turn::new(Role::User, filler)], None, Language::En).is_none());
    }
}
