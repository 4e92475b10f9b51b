//! The pre-tokenizers that GGUF's `tokenizer.ggml.pre` names, as the `tokenizers` library builds them.

use serde_json::{Value, json};

/// What a name stands for.
pub(super) struct Pre {
    /// The steps, in the library's JSON form.
    pub(super) steps: Vec<Value>,
    /// Whether text is brought to normalisation form C first.
    pub(super) nfc: bool,
    /// Whether a word that is a token as it stands is not merged.
    pub(super) ignore_merges: bool,
    /// Whether bos is added where the file does not say.
    pub(super) add_bos: bool,
}

/// The split of GPT-2, whose last alternative leaves the space before a word to that word.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The split of the cl100k family; `digits` is how numbers are cut.
fn cl100k(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// Every name that is understood, for messages.
pub(super) const KNOWN: &str = "gpt-2, smollm, starcoder, falcon, llama-bpe, qwen2 and default";

/// Looks a name up.
pub(super) fn find(name: &str) -> Option<Pre> {
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let plain = |steps: Vec<Value>| Pre { steps, nfc: false, ignore_merges: false, add_bos: false };
    Some(match name {
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "gigachat" => plain(vec![bytes(true)]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
            plain(vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)])
        }
        "falcon" => plain(vec![
            json!({"type": "Punctuation", "behavior": "Contiguous"}),
            bytes(true),
            json!({"type": "Digits", "individual_digits": false}),
            split("[0-9][0-9][0-9]"),
        ]),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => Pre {
            ignore_merges: true,
            add_bos: true,
            ..plain(vec![split(&cl100k(r"\p{N}{1,3}")), bytes(false)])
        },
        "dbrx" | "smaug-bpe" => plain(vec![split(&cl100k(r"\p{N}{1,3}")), bytes(false)]),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "megrez" => {
            Pre { nfc: name != "stablelm2", ..plain(vec![split(&cl100k(r"\p{N}")), bytes(false)]) }
        }
        "default" => plain(vec![
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(GPT2),
            split(r"\p{N}+"),
            split("[0-9][0-9][0-9]"),
            bytes(false),
        ]),
        _ => return None,
    })
}
