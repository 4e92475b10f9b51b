//! From a conversation to token ids and a mask of the tokens to be learned.
//!
//! Every sequence ends in the end-of-sequence token exactly once, and its prediction is learned: what counts is
//! decided by position, never by an id, so an end token that doubles as padding is learned all the same.

use std::ops::Range;

use rayon::prelude::*;

use crate::conversation::{Role, Sample, Turn};
use crate::error::{Error, Result};
use crate::prompt::PromptFormat;
use crate::report::Report;
use crate::tokenizer::{Tokenizer, Tokens};

/// One sequence to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Whether predicting the token at the same place counts towards the loss. The first token is predicted
    /// from nothing, so its entry is without effect.
    pub target_mask: Vec<bool>,
}

impl Example {
    /// How many predictions count.
    pub fn target_tokens(&self) -> usize {
        self.target_mask.iter().skip(1).filter(|&&counts| counts).count()
    }
}

/// What happens to a row that is longer than `max_length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// Its first tokens are kept. The end token is lost, since the text does not end there.
    #[default]
    KeepStart,
    /// Its last tokens are kept.
    KeepEnd,
    /// The row is left out.
    Drop,
}

/// How conversations are encoded. The names and defaults are those of TRL's `SFTConfig`.
#[derive(Clone, Debug, Default)]
pub struct EncodeOptions {
    /// The longest sequence in tokens; `None` sets no limit.
    pub max_length: Option<usize>,
    /// What happens to longer ones.
    pub truncation: Truncation,
    /// Learn the completion only. `None` means yes for `prompt`/`completion` rows and no for others.
    pub completion_only_loss: Option<bool>,
    /// Learn the assistant's turns only.
    pub assistant_only_loss: bool,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// An example, and the number of tokens cut from it.
    Example(Example, usize),
    /// Left out: so many tokens, more than `max_length`.
    TooLong(usize),
    /// Left out: no token of it is to be learned; so many tokens were cut.
    WithoutTarget(usize),
}

/// Encodes conversations for one model.
#[derive(Clone, Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    format: Option<PromptFormat>,
    options: EncodeOptions,
    eos: u32,
}

impl<'a> Encoder<'a> {
    /// An encoder. With a `format`, every row that has turns is rendered by it: chats, texts in the recipe's
    /// form, and prompts with completions. Without one, texts and prompts with completions are taken as they
    /// stand, and chats are refused.
    ///
    /// # Errors
    /// When the tokenizer names no end-of-sequence token, or `max_length` has no room for a prediction.
    pub fn new(
        tokenizer: &'a Tokenizer,
        format: Option<PromptFormat>,
        options: EncodeOptions,
    ) -> Result<Self> {
        if options.max_length.is_some_and(|length| length < 2) {
            let reason = "must be at least 2: a token and the one to be predicted from it".into();
            return Err(Error::Option { key: "max_length", reason });
        }
        let eos = tokenizer.eos()?;
        Ok(Self { tokenizer, format, options, eos })
    }

    /// Encodes one conversation.
    ///
    /// # Errors
    /// When a chat template or the tokenizer refuses it, or the loss asked for does not apply to such a row.
    pub fn encode(&self, sample: &Sample) -> Result<Encoded> {
        let Example { mut input_ids, mut target_mask } = self.whole(sample)?;
        let length = input_ids.len();
        let limit = self.options.max_length.unwrap_or(usize::MAX);
        let lost = length.saturating_sub(limit);
        if lost > 0 {
            match self.options.truncation {
                Truncation::KeepStart => {
                    input_ids.truncate(limit);
                    target_mask.truncate(limit);
                }
                Truncation::KeepEnd => {
                    input_ids.drain(..lost);
                    target_mask.drain(..lost);
                }
                Truncation::Drop => return Ok(Encoded::TooLong(length)),
            }
        }
        let example = Example { input_ids, target_mask };
        if example.target_tokens() == 0 {
            return Ok(Encoded::WithoutTarget(lost));
        }
        Ok(Encoded::Example(example, lost))
    }

    /// Encodes many conversations, several at a time, and adds to the report what became of them. The examples
    /// come in the order of the rows; the second list says which row each came from.
    ///
    /// # Errors
    /// The first row's error, as in [`Encoder::encode`], with the row's place in `samples` from 0.
    pub fn encode_all<'s>(
        &self,
        samples: impl IntoIterator<Item = &'s Sample>,
        report: &mut Report,
    ) -> Result<(Vec<Example>, Vec<usize>), (usize, Error)> {
        let samples: Vec<&Sample> = samples.into_iter().collect();
        let encoded: Vec<Result<Encoded>> = samples.par_iter().map(|sample| self.encode(sample)).collect();
        let (mut examples, mut rows) = (Vec::with_capacity(encoded.len()), Vec::with_capacity(encoded.len()));
        for (row, encoded) in encoded.into_iter().enumerate() {
            match encoded.map_err(|e| (row, e))? {
                Encoded::TooLong(length) => {
                    report.too_long += 1;
                    report.longest_uncut = report.longest_uncut.max(length as u64);
                }
                Encoded::WithoutTarget(_) => report.without_target += 1,
                Encoded::Example(example, lost) => {
                    let length = example.input_ids.len();
                    report.kept += 1;
                    report.truncated += u64::from(lost > 0);
                    report.tokens_lost += lost as u64;
                    report.tokens += length as u64;
                    report.target_tokens += example.target_tokens() as u64;
                    report.longest = report.longest.max(length as u64);
                    report.longest_uncut = report.longest_uncut.max((length + lost) as u64);
                    examples.push(example);
                    rows.push(row);
                }
            }
        }
        Ok((examples, rows))
    }

    fn whole(&self, sample: &Sample) -> Result<Example> {
        match (sample, &self.format) {
            (Sample::Chat { turns, prompt_turns }, Some(format)) => self.turns(format, turns, *prompt_turns),
            (Sample::Chat { .. }, None) => Err(Error::Template(
                "the rows are lists of messages, but the model has no chat template and no prompt format is set"
                    .into(),
            )),
            (Sample::Text(text), Some(format)) => match sample.turns() {
                Some(turns) => self.turns(format, &turns, 0),
                None => self.text(text),
            },
            (Sample::Text(text), None) => self.text(text),
            (Sample::PromptCompletion { .. }, Some(format)) => {
                self.turns(format, &sample.turns().unwrap_or_default(), 1)
            }
            (Sample::PromptCompletion { prompt, completion }, None) => self.completion(prompt, completion),
        }
    }

    /// A text as it stands.
    fn text(&self, text: &str) -> Result<Example> {
        self.refuse_completion_only()?;
        if !self.options.assistant_only_loss {
            let ids = self.tokenizer.encode(text, true)?;
            let counts = vec![true; ids.len()];
            return Ok(self.end(ids, counts, true));
        }
        let spans = crate::prompt::assistant_spans(text);
        let Some(last) = spans.last() else {
            let reason = "needs rows with turns: `messages`, or text with <HUMAN>: and <ASSISTANT>:".into();
            return Err(Error::Option { key: "assistant_only_loss", reason });
        };
        let assistant_ends = last.end == text.len();
        let tokens = self.tokenizer.encode_with_offsets(text, true)?;
        let counts = mask(&tokens, &spans);
        Ok(self.end(tokens.ids, counts, assistant_ends))
    }

    /// A prompt and its completion, joined as they stand.
    fn completion(&self, prompt: &str, completion: &str) -> Result<Example> {
        let ids = self.tokenizer.encode(&[prompt, completion].concat(), true)?;
        let only_completion =
            self.options.completion_only_loss.unwrap_or(true) || self.options.assistant_only_loss;
        let start =
            if only_completion { common_prefix(&ids, &self.tokenizer.encode(prompt, true)?) } else { 0 };
        let mask = (0..ids.len()).map(|i| i >= start).collect();
        Ok(self.end(ids, mask, true))
    }

    /// Turns, rendered. The first `prompt_turns` are a prompt.
    fn turns(&self, format: &PromptFormat, turns: &[Turn], prompt_turns: usize) -> Result<Example> {
        let add_special = !format.adds_special_tokens();
        let assistant_only = self.options.assistant_only_loss;
        // Only the mask needs the assistant's share and the tokens' places; some templates do not let the share
        // be told.
        let (ids, mut counts) = if assistant_only {
            let rendered = format.render(turns)?;
            if rendered.assistant.is_empty() {
                let reason = "finds no turn of the assistant in a row".into();
                return Err(Error::Option { key: "assistant_only_loss", reason });
            }
            let tokens = self.tokenizer.encode_with_offsets(&rendered.text, add_special)?;
            let counts = mask(&tokens, &rendered.assistant);
            (tokens.ids, counts)
        } else {
            let ids = self.tokenizer.encode(&format.text(turns)?, add_special)?;
            let counts = vec![true; ids.len()];
            (ids, counts)
        };
        if prompt_turns == 0 {
            self.refuse_completion_only()?;
        } else if self.options.completion_only_loss.unwrap_or(true) {
            let prompt = format.prompt(&turns[..prompt_turns])?;
            let prompt = self.tokenizer.encode(&prompt, add_special)?;
            counts[..common_prefix(&ids, &prompt)].fill(false);
        }
        let assistant_ends = turns.last().is_some_and(|turn| turn.role == Role::Assistant);
        if format.adds_special_tokens() && self.is_ended(&ids)? {
            return Ok(Example { input_ids: ids, target_mask: counts });
        }
        Ok(self.end(ids, counts, assistant_ends || !assistant_only))
    }

    fn refuse_completion_only(&self) -> Result<()> {
        if self.options.completion_only_loss == Some(true) {
            let reason =
                "needs rows with `prompt` and `completion`; for turns set assistant_only_loss".into();
            return Err(Error::Option { key: "completion_only_loss", reason });
        }
        Ok(())
    }

    /// Whether a chat template has ended the last turn itself, white space after it aside.
    fn is_ended(&self, ids: &[u32]) -> Result<bool> {
        for &id in ids.iter().rev() {
            if self.tokenizer.eos_ids().contains(&id) {
                return Ok(true);
            }
            if !self.tokenizer.decode(&[id], false)?.trim().is_empty() {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Ends a sequence in one end token, whatever the text and the tokenizer have put there.
    fn end(&self, mut input_ids: Vec<u32>, mut target_mask: Vec<bool>, counts: bool) -> Example {
        while input_ids.last() == Some(&self.eos) {
            input_ids.pop();
        }
        target_mask.truncate(input_ids.len());
        input_ids.push(self.eos);
        target_mask.push(counts);
        Example { input_ids, target_mask }
    }
}

/// Marks the tokens that touch a span.
///
/// Tokenizers that trim white space from their offsets leave a token of white space alone with an empty range
/// at its end; it belongs to the span in which it ends.
fn mask(tokens: &Tokens, spans: &[Range<usize>]) -> Vec<bool> {
    let touches = |token: &Range<usize>, span: &Range<usize>| {
        if token.is_empty() {
            span.start < token.start && token.start <= span.end
        } else {
            token.start < span.end && span.start < token.end
        }
    };
    tokens.offsets.iter().map(|token| spans.iter().any(|span| touches(token, span))).collect()
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
