//! Conversations: turns with roles, and the recipe's `<HUMAN>` / `<ASSISTANT>` text form.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The marker of a person's turn in the recipe's text form.
pub const HUMAN: &str = "<HUMAN>:";
/// The marker of the assistant's turn in the recipe's text form.
pub const ASSISTANT: &str = "<ASSISTANT>:";

/// Who speaks. The names are those of chat templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// Instructions of the developer, in templates that tell them from the system's.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool returned.
    Tool,
}

impl Role {
    /// Reads a role's name, with ShareGPT's `human` and `gpt` among them.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "system" => Self::System,
            "developer" => Self::Developer,
            "user" | "human" => Self::User,
            "assistant" | "gpt" => Self::Assistant,
            "tool" => Self::Tool,
            _ => return None,
        })
    }

    /// The role's name in a chat template.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Turn {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// What a model is trained on in one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sample {
    /// A text as it stands; it may be in the recipe's form.
    Text(String),
    /// A prompt and what should follow it, joined without anything between them.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// Turns, rendered by a chat template or in the recipe's form.
    Chat {
        /// The turns in order.
        turns: Vec<Turn>,
        /// How many of the first turns are the prompt of a `prompt`/`completion` row; 0 for `messages`.
        prompt_turns: usize,
    },
}

impl Sample {
    /// The question that decides on which side of a split the row falls: the first turn of the person, or the
    /// prompt, or a text that is neither.
    pub fn question(&self) -> &str {
        match self {
            Self::Text(text) => {
                let first = find_turns(text).into_iter().find(|turn| turn.role == Role::User);
                first.map_or(text.as_str(), |turn| text[turn.content].trim())
            }
            Self::PromptCompletion { prompt, .. } => prompt,
            Self::Chat { turns, .. } => {
                let user = turns.iter().find(|turn| turn.role == Role::User).or(turns.first());
                user.map_or("", |turn| &turn.content)
            }
        }
    }

    /// The turns of the row: those of a chat, those of a text in the recipe's form, or a prompt and its
    /// completion as a person's and the assistant's. `None` for a text in no known form.
    pub fn turns(&self) -> Option<Vec<Turn>> {
        match self {
            Self::Text(text) => parse_turns(text),
            Self::PromptCompletion { prompt, completion } => Some(vec![
                Turn::new(Role::User, prompt.trim()),
                Turn::new(Role::Assistant, completion.trim()),
            ]),
            Self::Chat { turns, .. } => Some(turns.clone()),
        }
    }

    /// Every text of the row, in order.
    pub(crate) fn texts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::PromptCompletion { prompt, completion } => vec![prompt, completion],
            Self::Chat { turns, .. } => turns.iter().map(|turn| turn.content.as_str()).collect(),
        }
    }
}

/// A turn found in a text of the recipe's form, by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnSpan {
    /// Who speaks.
    pub role: Role,
    /// Bytes of the text from the marker to the end of the turn.
    pub whole: Range<usize>,
    /// Bytes after the marker, up to the line break before the next turn.
    pub content: Range<usize>,
}

/// Finds the turns of a text in the recipe's form. A marker counts at the start of a line only.
///
/// Text before the first marker belongs to no turn. A text without markers has no turns.
pub fn find_turns(text: &str) -> Vec<TurnSpan> {
    let mut turns: Vec<TurnSpan> = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start_matches([' ', '\t']);
        let marker = [(HUMAN, Role::User), (ASSISTANT, Role::Assistant)]
            .into_iter()
            .find(|(marker, _)| trimmed.starts_with(marker));
        if let Some((marker, role)) = marker {
            if let Some(last) = turns.last_mut() {
                end_turn(text, last, start);
            }
            let at = start + line.len() - trimmed.len();
            turns.push(TurnSpan { role, whole: at..text.len(), content: at + marker.len()..text.len() });
        }
        start += line.len();
    }
    turns
}

/// Ends a turn before the line break that precedes `next`.
fn end_turn(text: &str, turn: &mut TurnSpan, next: usize) {
    let line_break = usize::from(text[..next].ends_with('\n')) + usize::from(text[..next].ends_with("\r\n"));
    turn.whole.end = next;
    turn.content.end = (next - line_break).max(turn.content.start);
}

/// Reads a text in the recipe's form as turns; text before the first marker becomes the system's turn.
///
/// `None` when the text has no person's turn followed by an assistant's.
///
/// ```
/// use eyas_data::conversation::{parse_turns, Role};
/// let turns = parse_turns("<HUMAN>: What is stress?\n<ASSISTANT>: A response to pressure.").unwrap();
/// assert_eq!(turns[1].role, Role::Assistant);
/// assert_eq!(turns[1].content, "A response to pressure.");
/// ```
pub fn parse_turns(text: &str) -> Option<Vec<Turn>> {
    let spans = find_turns(text);
    let human = spans.iter().position(|s| s.role == Role::User)?;
    spans[human..].iter().find(|s| s.role == Role::Assistant)?;
    let mut turns = Vec::with_capacity(spans.len() + 1);
    let preamble = text[..spans[0].whole.start].trim();
    if !preamble.is_empty() {
        turns.push(Turn::new(Role::System, preamble));
    }
    turns.extend(spans.into_iter().map(|s| Turn::new(s.role, text[s.content].trim())));
    Some(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_turns_and_a_preamble_are_read() {
        let text =
            "Answer truthfully.\n<HUMAN>: One?\nmore\n<ASSISTANT>: 1.\n\n<HUMAN>: Two?\r\n<ASSISTANT>: 2.";
        let turns = parse_turns(text).unwrap();
        let told: Vec<_> = turns.iter().map(|t| (t.role.as_str(), t.content.as_str())).collect();
        assert_eq!(
            told,
            [
                ("system", "Answer truthfully."),
                ("user", "One?\nmore"),
                ("assistant", "1."),
                ("user", "Two?"),
                ("assistant", "2.")
            ]
        );
    }

    #[test]
    fn the_content_of_a_turn_keeps_its_leading_space_and_drops_the_last_line_break() {
        let text = "<HUMAN>: a\n<ASSISTANT>: b\n<HUMAN>: c\n<ASSISTANT>:";
        let content: Vec<_> = find_turns(text).into_iter().map(|s| &text[s.content]).collect();
        assert_eq!(content, [" a", " b", " c", ""]);
    }

    #[test]
    fn a_marker_inside_a_line_is_text() {
        let text = "<HUMAN>: what does <ASSISTANT>: mean?\n<ASSISTANT>: a marker";
        assert_eq!(parse_turns(text).unwrap().len(), 2);
        assert_eq!(parse_turns("say <HUMAN>: x and <ASSISTANT>: y"), None);
        assert_eq!(parse_turns("<ASSISTANT>: first\n<HUMAN>: then"), None);
    }

    #[test]
    fn the_question_is_the_first_turn_of_the_person() {
        let text = Sample::Text("<HUMAN>: Why?\n<ASSISTANT>: So.\n<HUMAN>: Then?\n<ASSISTANT>: x".into());
        assert_eq!(text.question(), "Why?");
        let turns = vec![Turn::new(Role::System, "s"), Turn::new(Role::User, "u")];
        assert_eq!(Sample::Chat { turns, prompt_turns: 0 }.question(), "u");
    }
}
