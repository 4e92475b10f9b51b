//! An engine without a model, for tests of the server and of the page: what it answers follows from the prompt alone,
//! so that a lost or mixed-up token shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use eyas_data::{ChatTemplate, PromptFormat, Tokenizer};
use eyas_generate::stream::StopFilter;
use eyas_generate::{Error, FinishReason, Result, SamplingParams, TokenLogprobs};
use serde_json::json;

use crate::answerer::{Answerer, Ask, Said, Ticket};
use crate::models::{Models, ServedModel};

/// Answers `tag.0 tag.1 tag.2 ...`, a token a word, where `#tag` is the newest tag of the prompt, and `#tag*12` asks for
/// twelve words. After `#say:` it answers with the rest of that line, `\n` turned into line breaks and `\x3c` into `<`, a
/// token three characters. A tag of `fail` fails after three tokens, one of `panic` panics. The second answer to a prompt begins
/// with `1:`, and so on.
#[derive(Debug)]
pub struct FakeEngine {
    tokenizer: Arc<Tokenizer>,
    slots: usize,
    delay: Duration,
    sequences: BTreeMap<Ticket, Sequence>,
}

#[derive(Debug)]
struct Sequence {
    words: Box<dyn Words>,
    filter: Option<StopFilter>,
    prompt: Option<(Vec<u32>, usize)>,
    produced: usize,
    most: usize,
    logprobs: Option<usize>,
    fails: bool,
}

/// Words by number; `None` after the last.
trait Words: std::fmt::Debug + Send {
    fn word(&self, number: usize) -> Option<String>;
}

#[derive(Debug)]
struct Tagged {
    prefix: String,
    tag: String,
    count: usize,
}

impl Words for Tagged {
    fn word(&self, number: usize) -> Option<String> {
        let Self { prefix, tag, count } = self;
        (number < *count).then(|| format!("{prefix}{tag}.{number} "))
    }
}

#[derive(Debug)]
struct Said3(Vec<char>);

impl Words for Said3 {
    fn word(&self, number: usize) -> Option<String> {
        self.0.chunks(3).nth(number).map(|characters| characters.iter().collect())
    }
}

impl FakeEngine {
    /// An engine for so many sequences at once that takes `delay` a step.
    pub fn new(tokenizer: Arc<Tokenizer>, slots: usize, delay: Duration) -> Self {
        Self { tokenizer, slots, delay, sequences: BTreeMap::new() }
    }

    fn words(&self, ask: &Ask) -> Result<Box<dyn Words>> {
        let text = self.tokenizer.decode(&ask.prompt, false)?;
        if let Some((_, rest)) = text.rsplit_once("#say:") {
            let line = rest.lines().next().unwrap_or_default().split("<|").next().unwrap_or_default();
            return Ok(Box::new(Said3(
                line.trim().replace("\\n", "\n").replace("\\x3c", "<").chars().collect(),
            )));
        }
        let tag = text.rsplit_once('#').map_or("word", |(_, rest)| rest);
        let (tag, rest) = tag.split_at(tag.find(|c: char| !c.is_alphanumeric()).unwrap_or(tag.len()));
        let count: String =
            rest.strip_prefix('*').unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
        let prefix = if ask.stream == 0 { String::new() } else { format!("{}:", ask.stream) };
        Ok(Box::new(Tagged { prefix, tag: tag.into(), count: count.parse().unwrap_or(usize::MAX) }))
    }
}

/// What the fake reports for a token: a function of its id.
fn logprobs(token: u32, count: usize) -> TokenLogprobs {
    let logprob = -0.125 * (token % 8 + 1) as f32;
    let top = (0..count as u32).map(|rank| (token + rank, logprob - rank as f32)).collect();
    TokenLogprobs { logprob, top }
}

impl Answerer for FakeEngine {
    fn free_slots(&self) -> usize {
        self.slots - self.sequences.len()
    }

    fn submit(&mut self, ticket: Ticket, ask: Ask) -> Result<()> {
        if self.free_slots() == 0 {
            return Err(Error::Full { slots: self.slots });
        }
        let words = self.words(&ask)?;
        let fails = words.word(0).is_some_and(|word| word.contains("fail."));
        if words.word(0).is_some_and(|word| word.contains("panic.")) {
            panic!("the prompt asked for it");
        }
        let sequence = Sequence {
            words,
            filter: Some(StopFilter::new(ask.params.stop)),
            prompt: ask.prompt_logprobs.map(|count| (ask.prompt, count)),
            produced: 0,
            most: ask.params.max_new_tokens,
            logprobs: ask.params.logprobs,
            fails,
        };
        self.sequences.insert(ticket, sequence);
        Ok(())
    }

    fn remove(&mut self, ticket: Ticket) {
        self.sequences.remove(&ticket);
    }

    fn step(&mut self, said: &mut Vec<(Ticket, Said)>) -> Result<()> {
        std::thread::sleep(self.delay);
        self.sequences.retain(|&ticket, sequence| {
            if let Some((ids, count)) = sequence.prompt.take() {
                let found = ids.iter().skip(1).map(|&id| logprobs(id, count)).collect();
                said.push((ticket, Said::Prompt(found)));
            }
            let (what, goes_on) = sequence.advance();
            said.push((ticket, what));
            goes_on
        });
        Ok(())
    }
}

impl Sequence {
    /// The next token, and whether another follows.
    fn advance(&mut self) -> (Said, bool) {
        if self.fails && self.produced == 3 {
            return (Said::Failed("the prompt asked for it".into()), false);
        }
        let number = self.produced;
        self.produced += 1;
        let mut finish = None;
        let mut shown = String::new();
        match self.words.word(number) {
            None => finish = Some(FinishReason::Eos),
            Some(word) => {
                if self.produced >= self.most {
                    finish = Some(FinishReason::Length);
                }
                if let Some(filter) = &mut self.filter {
                    let (text, stopped) = filter.push(&word);
                    shown = text;
                    if stopped {
                        finish = Some(FinishReason::Stop);
                        self.filter = None;
                    }
                }
            }
        }
        if finish.is_some()
            && let Some(filter) = self.filter.take()
        {
            shown.push_str(&filter.finish());
        }
        let token = number as u32 % 200;
        let logprobs = self.logprobs.map(|count| logprobs(token, count));
        (Said::Token { token, text: shown, logprobs, finish }, finish.is_none())
    }
}

/// A `tokenizer.json` for the fake: a token a byte, and ChatML's two markers.
pub fn tokenizer_json() -> String {
    // The alphabet of byte-level BPE, in the order of its bytes.
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut hidden = 0x100..;
    let mut vocab = serde_json::Map::new();
    for byte in 0..0x100 {
        let code = if is_printable(byte) { byte } else { hidden.next().unwrap_or(byte) };
        vocab.insert(char::from_u32(code).into_iter().collect(), byte.into());
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
    .to_string()
}

/// ChatML, the fake's chat template.
pub const CHAT_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The fake's tokenizer.
///
/// # Errors
/// When the folder cannot be written to.
pub fn tokenizer(folder: &std::path::Path) -> eyas_data::Result<Tokenizer> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|source| eyas_data::Error::Io { path, source })
    };
    write("tokenizer.json", &tokenizer_json())?;
    write("tokenizer_config.json", "{\"eos_token\": \"<|im_end|>\"}")?;
    Tokenizer::from_folder(folder)
}

/// A base called `fake` that has a chat template, and over it `fake-tuned`, which speaks the recipe's form.
///
/// # Errors
/// None that a change of this function would not cause.
pub fn models(tokenizer: Arc<Tokenizer>, positions: usize) -> crate::Result<Models> {
    let template = ChatTemplate::new(CHAT_TEMPLATE, Default::default())
        .map_err(|error| crate::Error::Config(error.to_string()))?;
    let model = |id: &str, base: Option<&str>, format| ServedModel {
        id: id.into(),
        base: base.map(str::to_owned),
        format,
        defaults: SamplingParams::recipe(),
    };
    let list = vec![
        model("fake", None, PromptFormat::ChatTemplate(Box::new(template))),
        model("fake-tuned", Some("fake"), PromptFormat::recipe()),
    ];
    Models::new(list, tokenizer, positions, 258)
}
