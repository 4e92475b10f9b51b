//! What can go wrong while generating.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting outside its range.
    #[error("{key}: {reason}")]
    Setting {
        /// The setting's name.
        key: &'static str,
        /// What is wrong with its value, and what to do.
        reason: String,
    },
    /// A prompt that cannot be run.
    #[error("prompt: {0}")]
    Prompt(String),
    /// A prompt with more tokens than a slot of the cache holds.
    #[error(
        "the prompt has {tokens} tokens; there is room for {positions}. Shorten it, forget older turns, or make the \
         context longer"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// Tokens that fit.
        positions: usize,
    },
    /// All slots of the cache are taken.
    #[error("all {slots} places of the engine are taken; try again when a sequence has finished")]
    Full {
        /// Slots that the engine has.
        slots: usize,
    },
    /// An adapter that the engine does not have, or cannot let go.
    #[error("adapter {id}: {reason}")]
    Adapter {
        /// The adapter's number.
        id: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// Logits from which no token can be chosen.
    #[error("logits: {0}")]
    Logits(String),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] eyas_model::Error),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] eyas_backend::Error),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Data(#[from] eyas_data::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
