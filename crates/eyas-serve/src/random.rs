//! Numbers that nobody needs to guess: ids and seeds.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A fresh number. The standard library keys its hashers from the system's entropy; each new one differs.
pub(crate) fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A name for an answer, such as `chatcmpl-0123456789abcdef`.
pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}-{:016x}", number())
}
