//! The request of `/v1/chat/completions`.

use eyas_data::{Role, Turn};
use serde::Deserialize;
use serde_json::Value;

use super::ApiError;
use super::sampling::MAX_TOP_LOGPROBS;

/// Messages of one request.
const MAX_MESSAGES: usize = 4096;

/// The fields of a chat request that completions do not have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ChatRequest {
    pub messages: Option<Vec<Message>>,
    pub max_completion_tokens: Option<u64>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<u64>,
    pub eyas: Option<Extension>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    functions: Option<Vec<Value>>,
    response_format: Option<ResponseFormat>,
    modalities: Option<Vec<String>>,
}

/// What this server adds to the protocol.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Extension {
    /// ISO 3166-1 alpha-2.
    pub region: Option<String>,
    /// BCP 47.
    pub language: Option<String>,
    /// Tidy the answer as the recipe does.
    pub tidy: Option<bool>,
    /// Turns to remember.
    pub remember: Option<u64>,
    /// The id of the text that was consented to.
    pub consent: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

/// A message.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

impl ChatRequest {
    /// The conversation, the last turn being the one to answer.
    pub fn turns(&self) -> Result<Vec<Turn>, ApiError> {
        let messages = self.messages.as_deref().unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::invalid("messages", "is missing or empty; there must be one to answer"));
        }
        if messages.len() > MAX_MESSAGES {
            return Err(ApiError::invalid("messages", format!("has more than {MAX_MESSAGES}")));
        }
        let turns: Vec<Turn> = messages
            .iter()
            .enumerate()
            .map(|(place, message)| message.turn(place))
            .collect::<Result<_, _>>()?;
        match turns.iter().rposition(|turn| turn.role == Role::User) {
            None => Err(ApiError::invalid("messages", "has no message of the role user")),
            Some(place) if turns[place].content.trim().is_empty() => {
                Err(ApiError::invalid(format!("messages[{place}].content"), "is empty"))
            }
            Some(_) => Ok(turns),
        }
    }

    /// Alternatives to report for each token, if any log-probabilities are.
    pub fn reported(&self) -> Result<Option<usize>, ApiError> {
        let wanted = self.logprobs.unwrap_or(false);
        match self.top_logprobs {
            Some(top) if top > MAX_TOP_LOGPROBS as u64 => {
                Err(ApiError::invalid("top_logprobs", format!("is {top}; at most {MAX_TOP_LOGPROBS}")))
            }
            Some(top) if top > 0 && !wanted => {
                Err(ApiError::invalid("top_logprobs", "needs \"logprobs\": true"))
            }
            top => Ok(wanted.then_some(top.unwrap_or(0) as usize)),
        }
    }

    /// Refuses what would silently do nothing.
    pub fn check_supported(&self) -> Result<(), ApiError> {
        let is_none = self.tool_choice.as_ref().is_some_and(|choice| choice == "none");
        if self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) && !is_none {
            return Err(ApiError::unsupported("tools", "this server calls no tools"));
        }
        if self.functions.as_ref().is_some_and(|functions| !functions.is_empty()) {
            return Err(ApiError::unsupported("functions", "this server calls no functions"));
        }
        if let Some(format) = self.response_format.as_ref().filter(|format| format.kind != "text") {
            let reason = format!("is {:?}; answers are text", format.kind);
            return Err(ApiError::unsupported("response_format", reason));
        }
        if self.modalities.as_ref().is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")) {
            return Err(ApiError::unsupported("modalities", "answers are text"));
        }
        Ok(())
    }
}

impl Message {
    fn turn(&self, place: usize) -> Result<Turn, ApiError> {
        let role = match self.role.as_str() {
            "function" => Some(Role::Tool),
            name => Role::parse(name),
        };
        let role = role.ok_or_else(|| {
            let reason = format!("is {:?}; roles are system, developer, user, assistant and tool", self.role);
            ApiError::invalid(format!("messages[{place}].role"), reason)
        })?;
        let content = match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                let texts =
                    parts.iter().enumerate().map(|(number, part)| match (part.kind.as_str(), &part.text) {
                        ("text" | "input_text" | "output_text", Some(text)) => Ok(text.as_str()),
                        (kind, _) => {
                            let param = format!("messages[{place}].content[{number}]");
                            let reason = format!("is of type {kind:?}; this server reads text only");
                            Err(ApiError { param: Some(param), ..ApiError::unsupported("messages", reason) })
                        }
                    });
                texts.collect::<Result<Vec<_>, _>>()?.join("\n")
            }
        };
        Ok(Turn::new(role, content))
    }
}
