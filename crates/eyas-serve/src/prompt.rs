//! From the messages of a request to the tokens that the model sees.

use eyas_data::{Role, Turn};
use eyas_generate::{ChatSession, Error as GenerateError, conversation::disarm};

use crate::models::{Models, ServedModel};
use crate::openai::ApiError;

/// The prompt of a conversation. Turn markers and special tokens in what people and models wrote are broken up, so that
/// only the format itself makes turns.
///
/// With `remember` the conversation is cut to so many turns before the last question, as the recipe does, and to what
/// fits beside an answer of `answer` tokens. Without it every message reaches the model, or the request is refused.
pub(crate) fn chat(
    models: &Models,
    model: &ServedModel,
    turns: &[Turn],
    remember: Option<usize>,
    answer: usize,
) -> Result<Vec<u32>, ApiError> {
    let markers: Vec<&str> = models.markers().iter().map(String::as_str).collect();
    // The first sees through disguises; the second leaves no marker that the tokenizer would take for one.
    let safe = |text: &str| disarm(&eyas_care::sanitize_turn(text, &markers), models.markers());
    let turns: Vec<Turn> = turns.iter().map(|turn| Turn::new(turn.role, safe(&turn.content))).collect();
    let positions = models.positions();
    match remember {
        Some(memory) => {
            let room = positions - answer.min(positions / 2);
            let (session, question) = session(model, &turns, memory);
            let prompt = session.prompt(&question, models.tokenizer(), room).map_err(refused)?;
            Ok(prompt.ids)
        }
        None => {
            let text = model.format.prompt(&turns).map_err(|error| ApiError::invalid("messages", error))?;
            let ids = models.tokenizer().encode(&text, !model.format.adds_special_tokens());
            ids.map_err(|error| ApiError::invalid("messages", error))
        }
    }
}

/// The conversation as the recipe's memory keeps it: what a person says in several messages is one question.
fn session(model: &ServedModel, turns: &[Turn], memory: usize) -> (ChatSession, String) {
    let mut session = ChatSession::new(model.format.clone()).with_memory(memory);
    let system: Vec<&str> = turns
        .iter()
        .filter(|turn| matches!(turn.role, Role::System | Role::Developer))
        .map(|turn| turn.content.as_str())
        .collect();
    if !system.is_empty() {
        session = session.with_system(system.join("\n"));
    }
    let mut question: Vec<&str> = Vec::new();
    for turn in turns {
        match turn.role {
            Role::System | Role::Developer => {}
            Role::User | Role::Tool => question.push(&turn.content),
            Role::Assistant if question.is_empty() => {}
            Role::Assistant => {
                session.remember(question.join("\n"), turn.content.as_str());
                question.clear();
            }
        }
    }
    (session, question.join("\n"))
}

fn refused(error: GenerateError) -> ApiError {
    match error {
        GenerateError::PromptTooLong { tokens, positions } => ApiError::context(
            "messages",
            format!("the last message makes a prompt of {tokens} tokens; there is room for {positions}"),
        ),
        other => ApiError::invalid("messages", other),
    }
}
