//! Which columns hold the conversation, and how a row's fields become a [`Sample`].

use serde_json::{Map, Value};

use super::{DatasetOptions, Row};
use crate::conversation::{Role, Sample, Turn};
use crate::error::RowPosition;

/// The shape of a data set's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// One column of whole texts.
    Text {
        /// The column.
        column: String,
    },
    /// `prompt` and `completion`, both text or both lists of messages.
    PromptCompletion,
    /// One column of lists of messages: `messages`, or ShareGPT's `conversations`.
    Messages {
        /// The column.
        column: String,
    },
}

const ROLE_KEYS: [&str; 2] = ["role", "from"];
const CONTENT_KEYS: [&str; 2] = ["content", "value"];

impl Schema {
    /// Finds the shape from the columns' names.
    ///
    /// # Errors
    /// A sentence that lists the columns found and those that would do.
    pub fn detect<'a>(
        columns: impl IntoIterator<Item = &'a str>,
        options: &DatasetOptions,
    ) -> Result<Self, String> {
        let columns: Vec<&str> = columns.into_iter().collect();
        let has = |name: &str| columns.contains(&name);
        if let Some(column) = &options.dataset_text_field {
            if has(column) {
                return Ok(Self::Text { column: column.clone() });
            }
            return Err(format!(
                "has no column `{column}`, which dataset_text_field names; its columns are {}",
                listed(&columns)
            ));
        }
        if has("prompt") && has("completion") {
            return Ok(Self::PromptCompletion);
        }
        for column in ["messages", "conversations"] {
            if has(column) {
                return Ok(Self::Messages { column: column.into() });
            }
        }
        if has("text") {
            return Ok(Self::Text { column: "text".into() });
        }
        Err(format!(
            "has no column to train on; its columns are {}. It needs `text`, `prompt` with `completion`, \
             `messages` or `conversations`; another text column can be named with dataset_text_field",
            listed(&columns)
        ))
    }

    /// The columns that a row is read from.
    pub(super) fn columns<'a>(&'a self, options: &'a DatasetOptions) -> Vec<&'a str> {
        let mut columns = match self {
            Self::Text { column } | Self::Messages { column } => vec![column.as_str()],
            Self::PromptCompletion => vec!["prompt", "completion"],
        };
        columns.extend([options.group_field.as_str(), "topic"]);
        columns
    }

    /// Takes a row out of its fields; the error is a sentence that names the column.
    pub(super) fn take(
        &self,
        at: RowPosition,
        fields: &mut Map<String, Value>,
        options: &DatasetOptions,
    ) -> Result<Row, String> {
        let sample = match self {
            Self::Text { column } => Sample::Text(text(column, take(fields, column)?)?),
            Self::Messages { column } => {
                let turns = messages(column, take(fields, column)?)?;
                Sample::Chat { turns, prompt_turns: 0 }
            }
            Self::PromptCompletion => {
                let (prompt, completion) = (take(fields, "prompt")?, take(fields, "completion")?);
                if prompt.is_array() {
                    let mut turns = messages("prompt", prompt)?;
                    let prompt_turns = turns.len();
                    turns.extend(messages("completion", completion)?);
                    Sample::Chat { turns, prompt_turns }
                } else {
                    Sample::PromptCompletion {
                        prompt: text("prompt", prompt)?,
                        completion: text("completion", completion)?,
                    }
                }
            }
        };
        let group = label(&options.group_field, fields.remove(&options.group_field))?;
        let topic = label("topic", fields.remove("topic"))?;
        Ok(Row { at, sample, group, topic })
    }
}

fn listed(columns: &[&str]) -> String {
    const SHOWN: usize = 20;
    if columns.is_empty() {
        return "none".into();
    }
    let mut list: Vec<String> = columns.iter().take(SHOWN).map(|c| format!("`{}`", shorten(c))).collect();
    if columns.len() > SHOWN {
        list.push(format!("and {} more", columns.len() - SHOWN));
    }
    list.join(", ")
}

/// Keeps a name from the file to a length that a message can hold.
fn shorten(name: &str) -> String {
    const LONGEST: usize = 60;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.into(),
    }
}

fn take(fields: &mut Map<String, Value>, column: &str) -> Result<Value, String> {
    if let Some(value) = fields.remove(column) {
        return Ok(value);
    }
    let present: Vec<&str> = fields.keys().map(String::as_str).collect();
    Err(format!("column `{column}` is missing; the row has {}", listed(&present)))
}

fn text(column: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("column `{column}` must be text, not {}", kind(&other))),
    }
}

fn label(column: &str, value: Option<Value>) -> Result<Option<String>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(format!("column `{column}` must be text or a number, not {}", kind(&other))),
    }
}

fn messages(column: &str, value: Value) -> Result<Vec<Turn>, String> {
    let Value::Array(messages) = value else {
        return Err(format!("column `{column}` must be a list of messages, not {}", kind(&value)));
    };
    let turns = messages.into_iter().enumerate().map(|(i, message)| {
        let place = format!("column `{column}`, message {}", i + 1);
        let Value::Object(mut message) = message else {
            return Err(format!("{place}: must have `role` and `content`, not be {}", kind(&message)));
        };
        let mut first = |keys: [&str; 2]| {
            let found = keys.into_iter().find_map(|key| message.remove(key).filter(|v| !v.is_null()));
            found.ok_or_else(|| format!("{place}: `{}` is missing", keys[0]))
        };
        let (role, content) = (first(ROLE_KEYS)?, first(CONTENT_KEYS)?);
        let role = text("role", role).map_err(|e| format!("{place}: {e}"))?;
        let role = Role::parse(&role).ok_or_else(|| {
            format!("{place}: role `{}` is unknown; known are system, user and assistant", shorten(&role))
        })?;
        let content = content_text(content).map_err(|e| format!("{place}: {e}"))?;
        Ok(Turn { role, content })
    });
    turns.collect()
}

/// A message's content: text, or a list of `{"type": "text", "text": ...}` parts that are joined.
fn content_text(content: Value) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let mut joined = String::new();
            for part in &parts {
                match part.get("text") {
                    Some(Value::String(text)) => joined.push_str(text),
                    _ => return Err("`content` may hold text parts only; images are not supported".into()),
                }
            }
            Ok(joined)
        }
        other => Err(format!("`content` must be text, not {}", kind(&other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
