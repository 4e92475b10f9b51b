//! Chat templates: Jinja as `transformers` sets it up, and the assistant's share of what they render.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

use chrono::{DateTime, Local};
use eyas_checkpoint::gguf::Metadata;
use eyas_checkpoint::layout::{CHAT_TEMPLATE, TOKENIZER_CONFIG};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use regex::{Captures, Regex};

use crate::conversation::{Role, Turn};
use crate::error::{Error, Result};
use crate::prompt::Rendered;
use crate::tokenizer::files;

const NAME: &str = "chat_template";

/// A template may loop over what it is given, not for ever.
const FUEL: u64 = 5_000_000;

/// Two noncharacters, which cleaned text never holds, mark a `{% generation %}` block while it is rendered.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// The texts of a model's special tokens, as templates see them (`bos_token`, `eos_token`, ...).
pub type SpecialTokenTexts = BTreeMap<String, String>;

/// A compiled chat template with the variables it sees.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special_tokens: SpecialTokenTexts,
    has_generation_blocks: bool,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it does not parse; the message has the line.
    pub fn new(source: &str, special_tokens: SpecialTokenTexts) -> Result<Self> {
        let rewritten = mark_generation_blocks(source);
        let has_generation_blocks = rewritten.is_some();
        let mut environment = environment();
        environment.add_template_owned(NAME, rewritten.unwrap_or_else(|| source.into())).map_err(describe)?;
        Ok(Self { environment, source: source.into(), special_tokens, has_generation_blocks })
    }

    /// Reads the template of a Hugging Face folder: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json`, a text or a list of named ones of which `default` is taken. `None` when the
    /// folder has none.
    ///
    /// # Errors
    /// When a file cannot be read or the template does not parse.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let config_path = folder.join(TOKENIZER_CONFIG);
        let config = files::read_json_object(&config_path)?.unwrap_or_default();
        let special_tokens = files::special_token_texts(folder, &config)?;
        let path = folder.join(CHAT_TEMPLATE);
        let source = match files::read_text(&path)? {
            Some(source) => Some(source),
            None => match config.get("chat_template") {
                None | Some(serde_json::Value::Null) => None,
                Some(serde_json::Value::String(source)) => Some(source.clone()),
                Some(serde_json::Value::Array(named)) => Some(default_template(&config_path, named)?),
                Some(_) => {
                    return Err(Error::tokenizer(&config_path, "`chat_template` must be text or a list"));
                }
            },
        };
        source.map(|source| Self::new(&source, special_tokens)).transpose()
    }

    /// Reads the template of a GGUF file, `tokenizer.chat_template`. `None` when it has none.
    ///
    /// # Errors
    /// When the template is not text or does not parse, or a special token's id is outside the vocabulary.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>> {
        const KEY: &str = "tokenizer.chat_template";
        if !metadata.contains(KEY) {
            return Ok(None);
        }
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let mut special_tokens = SpecialTokenTexts::new();
        for (key, name) in [
            ("tokenizer.ggml.bos_token_id", "bos_token"),
            ("tokenizer.ggml.eos_token_id", "eos_token"),
            ("tokenizer.ggml.padding_token_id", "pad_token"),
            ("tokenizer.ggml.unknown_token_id", "unk_token"),
        ] {
            if metadata.contains(key) {
                let id = metadata.u32(key)?;
                let token = tokens.get(id as usize).ok_or_else(|| {
                    Error::Template(format!("`{key}` is {id}, outside the vocabulary of {}", tokens.len()))
                })?;
                special_tokens.insert(name.into(), token.clone());
            }
        }
        Self::new(metadata.str(KEY)?, special_tokens).map(Some)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Fixes the time that `strftime_now` tells, so that a run can be repeated on another day.
    pub fn with_time(mut self, now: DateTime<Local>) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        self
    }

    /// Renders turns, with the assistant's header at the end when `add_generation_prompt` is set.
    ///
    /// # Errors
    /// When the template raises an exception or uses what it does not have.
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String> {
        let text = self.render_raw(turns, add_generation_prompt)?;
        Ok(if self.has_generation_blocks { take_marks(&text)?.text } else { text })
    }

    /// Renders whole turns and tells where the assistant speaks.
    ///
    /// Where the template has `{% generation %}` blocks they decide. Else the conversation is rendered up to
    /// each of the assistant's turns, with the assistant's header and then with the turn itself; what the
    /// second has beyond the first is the assistant's.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; and when a template without blocks renders the start of a conversation
    /// differently once more turns follow.
    pub fn render_marked(&self, turns: &[Turn]) -> Result<Rendered> {
        let text = self.render_raw(turns, false)?;
        if self.has_generation_blocks {
            return take_marks(&text);
        }
        let mut assistant: Vec<Range<usize>> = Vec::new();
        for (i, _) in turns.iter().enumerate().filter(|(_, turn)| turn.role == Role::Assistant) {
            // A template may refuse a conversation that the assistant begins, even an empty one.
            let before = if i == 0 { String::new() } else { self.render_raw(&turns[..i], true)? };
            let after = self.render_raw(&turns[..=i], false)?;
            // A header that holds more than the turn will (an empty thought, say) ends where the two part.
            let start = common_prefix(&text, &before);
            let end = common_prefix(&text, &after);
            if end < after.len() || assistant.last().is_some_and(|last| last.end > start) {
                return Err(Error::Template(format!(
                    "turn {} is rendered differently once more turns follow, so the assistant's share of the \
                     text cannot be told; mark it in the template with {{% generation %}} blocks, or train \
                     without assistant_only_loss",
                    i + 1
                )));
            }
            if start < end {
                assistant.push(start..end);
            }
        }
        Ok(Rendered { text, assistant })
    }

    fn render_raw(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String> {
        if self.has_generation_blocks && turns.iter().any(|turn| turn.content.contains([OPEN, CLOSE])) {
            return Err(Error::Template("a turn holds the noncharacters U+FDD0 or U+FDD1; clean it".into()));
        }
        let messages: Vec<Value> = turns
            .iter()
            .map(|turn| context! { role => turn.role.as_str(), content => turn.content.as_str() })
            .collect();
        let variables = context! {
            messages,
            add_generation_prompt,
            tools => (),
            documents => (),
            ..Value::from_pairs(self.special_tokens.iter().map(|(k, v)| (k.as_str(), v.as_str())))
        };
        let template = self.environment.get_template(NAME).map_err(describe)?;
        template.render(variables).map_err(describe)
    }
}

fn default_template(path: &Path, named: &[serde_json::Value]) -> Result<String> {
    let field = |entry: &serde_json::Value, key: &str| entry.get(key)?.as_str().map(String::from);
    let found = named.iter().find(|entry| field(entry, "name").as_deref() == Some("default"));
    found.or(named.first()).and_then(|entry| field(entry, "template")).ok_or_else(|| {
        Error::tokenizer(path, "`chat_template` must be a list of {\"name\": ..., \"template\": ...}")
    })
}

/// The environment of `transformers`: blocks trimmed, loop controls, Python's methods on values, and its own
/// `tojson`, `raise_exception` and `strftime_now`.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| strftime(Local::now(), format));
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && (value.is_undefined() || value.as_str().is_some() || value.try_iter().is_ok())
    });
    environment
}

/// Turns `{% generation %}` blocks into scopes that print marks around what they hold; `None` when there are
/// none.
///
/// The marks stand inside the tags, so the white space that a tag takes away at the block's inner side is taken
/// away here: all of it at a `-`, none at a `+`, else the line break after an opening tag and the indentation
/// before a closing one.
fn mark_generation_blocks(source: &str) -> Option<String> {
    static OPENING: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}(\r?\n)?").expect("the pattern is tested")
    });
    static CLOSING: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"(?m)(^[ \t]*)?\{%([-+]?)\s*endgeneration\s*([-+]?)%\}";
        Regex::new(pattern).expect("the pattern is tested")
    });
    if !OPENING.is_match(source) {
        return None;
    }
    let opened = OPENING.replace_all(source, |tag: &Captures| {
        let (dash, line_break) = match &tag[2] {
            "-" => ("-", ""),
            "+" => ("", tag.get(3).map_or("", |found| found.as_str())),
            _ => ("", ""),
        };
        format!("{{%{} with %}}{{{{ '{OPEN}' {dash}}}}}{line_break}", &tag[1])
    });
    let closed = CLOSING.replace_all(&opened, |tag: &Captures| {
        let (dash, indentation) = match &tag[2] {
            "-" => ("-", ""),
            "+" => ("", tag.get(1).map_or("", |found| found.as_str())),
            _ => ("", ""),
        };
        format!("{indentation}{{{{{dash} '{CLOSE}' }}}}{{% endwith {}%}}", &tag[3])
    });
    Some(closed.into_owned())
}

fn strftime(now: DateTime<Local>, format: &str) -> Result<String, minijinja::Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", now.format(format)).map_err(|_| {
        let reason = format!("strftime_now does not know the format {format:?}");
        minijinja::Error::new(ErrorKind::InvalidOperation, reason)
    })?;
    Ok(text)
}

/// `json.dumps(value, ensure_ascii=False, indent=...)`: unlike Jinja's own filter it escapes nothing for HTML.
fn tojson(value: Value, named: Kwargs) -> Result<String, minijinja::Error> {
    let failed = |e: String| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"));
    let indent: Option<usize> = named.get("indent")?;
    let json = serde_json::to_value(&value).map_err(|e| failed(e.to_string()))?;
    let mut out = String::new();
    write_json(&json, indent, 0, &mut out);
    Ok(out)
}

/// Python puts a space after a comma and a colon; `serde_json` does not.
fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(1 << 10)));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let (open, close, length) = match value {
        serde_json::Value::Array(items) => ('[', ']', items.len()),
        serde_json::Value::Object(fields) => ('{', '}', fields.len()),
        scalar => return out.push_str(&scalar.to_string()),
    };
    out.push(open);
    let next = |i: usize, key: Option<&String>, item: &serde_json::Value, out: &mut String| {
        if i > 0 {
            out.push_str(comma);
        }
        line(out, depth + 1);
        if let Some(key) = key {
            out.push_str(&serde_json::Value::from(key.as_str()).to_string());
            out.push_str(": ");
        }
        write_json(item, indent, depth + 1, out);
    };
    match value {
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| next(i, None, item, out));
        }
        serde_json::Value::Object(fields) => {
            fields.iter().enumerate().for_each(|(i, (key, item))| next(i, Some(key), item, out));
        }
        _ => {}
    }
    if length > 0 {
        line(out, depth);
    }
    out.push(close);
}

fn describe(error: minijinja::Error) -> Error {
    let line = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    let reason = error.detail().map_or_else(|| error.kind().to_string(), String::from);
    Error::Template(format!("{line}{reason}"))
}

/// Takes the marks of generation blocks out of a text, leaving their places.
fn take_marks(marked: &str) -> Result<Rendered> {
    let mut text = String::with_capacity(marked.len());
    let mut assistant = Vec::new();
    let mut open: Option<usize> = None;
    for character in marked.chars() {
        match (character, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                if start < text.len() {
                    assistant.push(start..text.len());
                }
                open = None;
            }
            (OPEN | CLOSE, _) => return Err(Error::Template("generation blocks must not be nested".into())),
            (other, _) => text.push(other),
        }
    }
    Ok(Rendered { text, assistant })
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}
