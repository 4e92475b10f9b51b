//! From turns to the text a model sees: the recipe's form, or the model's own chat template.

use std::ops::Range;

use crate::conversation::{ASSISTANT, HUMAN, Role, Turn, find_turns};
use crate::error::Result;
use crate::template::ChatTemplate;

/// The lines that the published recipe puts before a question when it generates.
pub const RECIPE_PREAMBLE: &str = "\
Answer the following question truthfully.
If you don't know the answer, respond 'Sorry, I don't know the answer to this question.'.
If the question is too complex, respond 'Kindly, consult a psychiatrist for further queries.'.";

/// A rendered conversation and where the assistant speaks in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges of `text` that the assistant is to produce, in order.
    pub assistant: Vec<Range<usize>>,
}

/// How turns become text.
#[derive(Clone, Debug)]
pub enum PromptFormat {
    /// `<HUMAN>: ...` and `<ASSISTANT>: ...`, a turn a paragraph, after an optional preamble.
    HumanAssistant {
        /// Lines before the first turn; a system turn takes their place.
        preamble: Option<String>,
    },
    /// The model's chat template.
    ChatTemplate(Box<ChatTemplate>),
}

impl PromptFormat {
    /// The recipe's form for training: no preamble, as its data set has none.
    pub fn human_assistant() -> Self {
        Self::HumanAssistant { preamble: None }
    }

    /// The recipe's form for generation, after [`RECIPE_PREAMBLE`].
    pub fn recipe() -> Self {
        Self::HumanAssistant { preamble: Some(RECIPE_PREAMBLE.into()) }
    }

    /// Whether the text already holds the special tokens, so that the tokenizer must not add its own.
    pub fn adds_special_tokens(&self) -> bool {
        matches!(self, Self::ChatTemplate(_))
    }

    /// Renders turns and finds the assistant's share of the text by position.
    ///
    /// # Errors
    /// When a chat template refuses the turns.
    pub fn render(&self, turns: &[Turn]) -> Result<Rendered> {
        match self {
            Self::HumanAssistant { preamble } => {
                let text = human_assistant(preamble.as_deref(), turns);
                Ok(Rendered { assistant: assistant_spans(&text), text })
            }
            Self::ChatTemplate(template) => template.render_marked(turns),
        }
    }

    /// Renders turns, without the search for the assistant's share.
    ///
    /// # Errors
    /// When a chat template refuses the turns.
    pub fn text(&self, turns: &[Turn]) -> Result<String> {
        match self {
            Self::HumanAssistant { preamble } => Ok(human_assistant(preamble.as_deref(), turns)),
            Self::ChatTemplate(template) => template.render(turns, false),
        }
    }

    /// Renders turns as a prompt that the assistant is to continue.
    ///
    /// # Errors
    /// When a chat template refuses the turns.
    ///
    /// ```
    /// use eyas_data::conversation::{Role, Turn};
    /// use eyas_data::prompt::PromptFormat;
    /// let format = PromptFormat::human_assistant();
    /// let prompt = format.prompt(&[Turn::new(Role::User, "What is stress?")]).unwrap();
    /// assert_eq!(prompt, "<HUMAN>: What is stress?\n<ASSISTANT>:");
    /// ```
    pub fn prompt(&self, turns: &[Turn]) -> Result<String> {
        match self {
            Self::HumanAssistant { preamble } => {
                Ok(human_assistant(preamble.as_deref(), turns) + "\n" + ASSISTANT)
            }
            Self::ChatTemplate(template) => template.render(turns, true),
        }
    }
}

fn human_assistant(preamble: Option<&str>, turns: &[Turn]) -> String {
    let is_system = |turn: &&Turn| matches!(turn.role, Role::System | Role::Developer);
    let system: Vec<&str> = turns.iter().filter(is_system).map(|turn| turn.content.as_str()).collect();
    let mut paragraphs: Vec<String> = if system.is_empty() {
        preamble.into_iter().map(String::from).collect()
    } else {
        vec![system.join("\n")]
    };
    for turn in turns {
        match turn.role {
            Role::System | Role::Developer => {}
            // The form has two speakers; what a tool returned reaches the assistant as the person's words.
            Role::User | Role::Tool => paragraphs.push(format!("{HUMAN} {}", turn.content)),
            Role::Assistant => paragraphs.push(format!("{ASSISTANT} {}", turn.content)),
        }
    }
    paragraphs.join("\n")
}

/// The assistant's byte ranges in a text of the recipe's form: all that follows a marker, its space included,
/// up to the line break before the next turn.
pub fn assistant_spans(text: &str) -> Vec<Range<usize>> {
    let turns = find_turns(text).into_iter().filter(|turn| turn.role == Role::Assistant);
    turns.map(|turn| turn.content).filter(|span| !span.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_prompt_is_the_published_one() {
        let prompt = PromptFormat::recipe().prompt(&[Turn::new(Role::User, "Why?")]).unwrap();
        let expected = "Answer the following question truthfully.\n\
            If you don't know the answer, respond 'Sorry, I don't know the answer to this question.'.\n\
            If the question is too complex, respond 'Kindly, consult a psychiatrist for further queries.'.\n\
            <HUMAN>: Why?\n<ASSISTANT>:";
        assert_eq!(prompt, expected);
    }

    #[test]
    fn a_prompt_is_a_prefix_of_the_rendered_conversation() {
        let turns = [
            Turn::new(Role::System, "Be kind."),
            Turn::new(Role::User, "One?"),
            Turn::new(Role::Assistant, "1."),
            Turn::new(Role::User, "Two?"),
            Turn::new(Role::Assistant, "2."),
        ];
        let format = PromptFormat::recipe();
        let Rendered { text, assistant } = format.render(&turns).unwrap();
        assert_eq!(text, "Be kind.\n<HUMAN>: One?\n<ASSISTANT>: 1.\n<HUMAN>: Two?\n<ASSISTANT>: 2.");
        let prompt = format.prompt(&turns[..4]).unwrap();
        assert_eq!(&text[..prompt.len()], prompt);
        let spoken: Vec<_> = assistant.into_iter().map(|span| &text[span]).collect();
        assert_eq!(spoken, [" 1.", " 2."]);
    }
}
