//! The fields that chat and completion requests share.

use std::collections::BTreeMap;

use eyas_generate::SamplingParams;
use serde::Deserialize;

use super::ApiError;
use crate::random;

/// Stop texts of one request.
const MAX_STOPS: usize = 16;
/// Bytes of a stop text.
const MAX_STOP_BYTES: usize = 1024;
/// Biased tokens of one request.
const MAX_BIASES: usize = 4096;
/// Alternatives that log-probabilities are reported for, as OpenAI has it.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;

/// One value, or a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// What both kinds of request may say. Everything may be left out or null.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Common {
    pub model: Option<String>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub n: Option<u64>,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    #[serde(alias = "repeat_penalty")]
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub seed: Option<serde_json::Number>,
    pub stop: Option<OneOrMany<String>>,
    pub logit_bias: Option<BTreeMap<u32, f64>>,
    pub ignore_eos: Option<bool>,
}

impl Common {
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub fn includes_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// Answers to each prompt.
    pub fn choices(&self, most: usize) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            0 => Err(ApiError::invalid("n", "is 0; ask for at least one answer")),
            n if n > most as u64 => Err(ApiError::invalid("n", format!("is {n}; at most {most} answers"))),
            n => Ok(n as usize),
        }
    }

    /// The settings, with `defaults` where the request says nothing; the length is the caller's.
    pub fn params(&self, defaults: &SamplingParams, vocab: usize) -> Result<SamplingParams, ApiError> {
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if value.is_some_and(|value| value != 0.0) {
                return Err(ApiError::unsupported(name, "is not supported; use repetition_penalty"));
            }
        }
        let mut params = SamplingParams { seed: random::number(), ..defaults.clone() };
        if let Some(temperature) = self.temperature {
            params.temperature = temperature as f32;
            params.do_sample = true;
        }
        let set = |target: &mut f32, value: Option<f64>| {
            if let Some(value) = value {
                *target = value as f32;
            }
        };
        // 0 as in other servers: nothing but the likeliest token.
        set(&mut params.top_p, self.top_p.map(|p| if p == 0.0 { f64::from(f32::MIN_POSITIVE) } else { p }));
        set(&mut params.min_p, self.min_p);
        set(&mut params.repetition_penalty, self.repetition_penalty);
        if let Some(top_k) = self.top_k {
            // Other servers write "all" as -1.
            params.top_k = match top_k {
                -1 => 0,
                k => usize::try_from(k).map_err(|_| ApiError::invalid("top_k", format!("is {k}")))?,
            };
        }
        if let Some(seed) = &self.seed {
            let bits = seed.as_u64().or(seed.as_i64().map(|seed| seed as u64));
            let reason = || format!("is {seed}; it must be a whole number of at most 64 bits");
            params.seed = bits.ok_or_else(|| ApiError::invalid("seed", reason()))?;
        }
        params.ignore_eos = self.ignore_eos.unwrap_or(false);
        params.stop = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        if params.stop.len() > MAX_STOPS || params.stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            let reason = format!("holds at most {MAX_STOPS} texts of at most {MAX_STOP_BYTES} bytes");
            return Err(ApiError::invalid("stop", reason));
        }
        if let Some(bias) = &self.logit_bias {
            if bias.len() > MAX_BIASES {
                return Err(ApiError::invalid("logit_bias", format!("names more than {MAX_BIASES} tokens")));
            }
            for (&id, &value) in bias {
                if id as usize >= vocab {
                    let reason = format!("names token {id}; the vocabulary has {vocab}");
                    return Err(ApiError::invalid("logit_bias", reason));
                }
                if !(-100.0..=100.0).contains(&value) {
                    let reason = format!("is {value:?} for token {id}; it must be between -100 and 100");
                    return Err(ApiError::invalid("logit_bias", reason));
                }
                params.logit_bias.insert(id, value as f32);
            }
        }
        params.validate().map_err(|error| match error {
            eyas_generate::Error::Setting { key, reason } => ApiError::invalid(key, reason),
            other => ApiError::invalid("request", other),
        })?;
        Ok(params)
    }

    /// How many tokens an answer may have after a prompt of so many.
    ///
    /// A length that was asked for must fit, unless it may give way as the default does.
    pub fn length(
        &self,
        asked: Option<u64>,
        gives_way: bool,
        default: usize,
        prompt: usize,
        positions: usize,
    ) -> Result<usize, ApiError> {
        let room = positions.saturating_sub(prompt);
        match asked {
            _ if room == 0 => Err(ApiError::context(
                "messages",
                format!(
                    "the prompt has {prompt} tokens; the context of {positions} leaves no room for an answer"
                ),
            )),
            Some(tokens) if gives_way => Ok(tokens.min(room as u64) as usize),
            Some(tokens) if tokens > room as u64 => Err(ApiError::context(
                "max_tokens",
                format!(
                    "{tokens} tokens after a prompt of {prompt} do not fit into the context of {positions}; ask for at \
                     most {room}"
                ),
            )),
            Some(tokens) => Ok(tokens as usize),
            None => Ok(default.min(room)),
        }
    }
}
