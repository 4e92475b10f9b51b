//! The settings of a generation, under the ecosystem's names.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// How tokens are chosen, and when to stop.
///
/// ```
/// use eyas_generate::SamplingParams;
/// let params = SamplingParams { seed: 7, max_new_tokens: 64, ..SamplingParams::recipe() };
/// assert!(params.validate().is_ok() && !params.is_greedy());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Draw from the distribution; off takes the likeliest token.
    pub do_sample: bool,
    /// Divides the logits; 0 means greedy.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens, and all that equal the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens until their probabilities reach this sum (Holtzman et al. 2020); 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the likeliest's probability (Nguyen et al. 2024); 0 drops none.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer (Keskar et al. 2019); 1 is off.
    #[serde(alias = "repeat_penalty")]
    pub repetition_penalty: f32,
    /// The most tokens of an answer.
    #[serde(alias = "max_tokens")]
    pub max_new_tokens: usize,
    /// Equal seeds give equal draws.
    pub seed: u64,
    /// Texts that end the answer; they are not part of it.
    #[serde(alias = "stop_strings", deserialize_with = "one_or_many")]
    pub stop: Vec<String>,
    /// Tokens that end the answer; when there are none, [`crate::Generator`] takes those of the tokenizer.
    #[serde(deserialize_with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// Go on after a token that would end the answer, as benchmarks do.
    pub ignore_eos: bool,
    /// Added to the logits of these tokens, before anything else.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Report each token's log-probability in the model's own distribution, and that of so many likeliest tokens.
    pub logprobs: Option<usize>,
}

/// The most alternatives that log-probabilities are reported for.
const MAX_LOGPROBS: usize = 100;

impl Default for SamplingParams {
    /// Samples from the model's own distribution, 256 tokens at most.
    fn default() -> Self {
        Self {
            do_sample: true,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: 256,
            seed: 42,
            stop: Vec::new(),
            eos_token_id: Vec::new(),
            ignore_eos: false,
            logit_bias: BTreeMap::new(),
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// The published recipe's values, with sampling on: temperature 0.4, top-p 0.6, repetition penalty 1.3, 256
    /// tokens.
    pub fn recipe() -> Self {
        Self { temperature: 0.4, top_p: 0.6, repetition_penalty: 1.3, ..Self::default() }
    }

    /// The likeliest token at every step.
    pub fn greedy() -> Self {
        Self { do_sample: false, ..Self::default() }
    }

    /// Whether the likeliest token is taken: sampling is off, or the temperature is 0.
    pub fn is_greedy(&self) -> bool {
        !self.do_sample || self.temperature == 0.0
    }

    /// Settings that a greedy run ignores although they were changed.
    pub fn without_effect(&self) -> Vec<&'static str> {
        if !self.is_greedy() {
            return Vec::new();
        }
        let mut ignored = Vec::new();
        if !self.do_sample && self.temperature != 1.0 && self.temperature != 0.0 {
            ignored.push("temperature");
        }
        let changed =
            [(self.top_k != 0, "top_k"), (self.top_p != 1.0, "top_p"), (self.min_p != 0.0, "min_p")];
        ignored.extend(changed.into_iter().filter(|(changed, _)| *changed).map(|(_, name)| name));
        ignored
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Names the first that is outside its range.
    pub fn validate(&self) -> Result<()> {
        let fail = |key: &'static str, reason: String| Err(Error::Setting { key, reason });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return fail(
                "temperature",
                format!(
                    "is {}; it must be above 0, or 0 for the likeliest token every time",
                    self.temperature
                ),
            );
        }
        if self.temperature > 0.0 && self.temperature < 1e-4 {
            return fail("temperature", format!("is {}; below 0.0001 use 0", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top_p", format!("is {}; it must be above 0 and at most 1", self.top_p));
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return fail("min_p", format!("is {}; it must be between 0 and 1", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return fail(
                "repetition_penalty",
                format!("is {}; it must be above 0, and 1 turns it off", self.repetition_penalty),
            );
        }
        if self.max_new_tokens == 0 {
            return fail("max_new_tokens", "is 0; an answer has at least one token".into());
        }
        if self.stop.iter().any(String::is_empty) {
            return fail("stop", "holds an empty text, which would end every answer at once".into());
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            return fail(
                "logit_bias",
                format!("is {bias} for token {id}; -100 is enough to rule a token out"),
            );
        }
        if let Some(count) = self.logprobs.filter(|&count| count > MAX_LOGPROBS) {
            return fail("logprobs", format!("is {count}; at most {MAX_LOGPROBS} alternatives are reported"));
        }
        Ok(())
    }
}

/// A list, or one value in its place.
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_its_range_is_named() {
        let recipe = SamplingParams::recipe;
        let cases = [
            ("temperature", SamplingParams { temperature: -0.1, ..recipe() }),
            ("temperature", SamplingParams { temperature: f32::NAN, ..recipe() }),
            ("temperature", SamplingParams { temperature: f32::INFINITY, ..recipe() }),
            ("temperature", SamplingParams { temperature: 1e-9, ..recipe() }),
            ("top_p", SamplingParams { top_p: 0.0, ..recipe() }),
            ("top_p", SamplingParams { top_p: 1.1, ..recipe() }),
            ("min_p", SamplingParams { min_p: -0.1, ..recipe() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..recipe() }),
            ("max_new_tokens", SamplingParams { max_new_tokens: 0, ..recipe() }),
            ("stop", SamplingParams { stop: vec![String::new()], ..recipe() }),
            ("logit_bias", SamplingParams { logit_bias: [(1, f32::NAN)].into(), ..recipe() }),
            ("logprobs", SamplingParams { logprobs: Some(101), ..recipe() }),
        ];
        for (expected, params) in cases {
            match params.validate() {
                Err(Error::Setting { key, .. }) => assert_eq!(key, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        recipe().validate().unwrap();
    }

    #[test]
    fn zero_temperature_is_greedy() {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::recipe() };
        params.validate().unwrap();
        assert!(params.is_greedy());
    }

    #[test]
    fn a_greedy_run_tells_what_it_ignores() {
        let published = SamplingParams { do_sample: false, ..SamplingParams::recipe() };
        assert_eq!(published.without_effect(), ["temperature", "top_p"]);
        assert!(SamplingParams::recipe().without_effect().is_empty());
        assert!(SamplingParams::greedy().without_effect().is_empty());
    }
}
