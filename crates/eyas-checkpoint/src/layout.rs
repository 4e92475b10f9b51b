//! What the files of a model, a tokenizer and an adapter are called in the folders of Hugging Face's libraries.

/// A model's description.
pub const CONFIG: &str = "config.json";
/// How a model generates, its end tokens among it.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// A model's weights, in the order in which they are preferred: each in one file, or an index of its shards. Pickles
/// come last: they are read here without running what is in them, but others may not.
pub const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// How the name of every index of shards ends.
pub const INDEX_ENDING: &str = ".index.json";

/// The tokenizer itself.
pub const TOKENIZER: &str = "tokenizer.json";
/// The tokenizer's settings.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Its special tokens, as older versions wrote them.
pub const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
/// How turns become text.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// All that says how text becomes tokens.
pub const TOKENIZER_FILES: [&str; 5] =
    [TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, "added_tokens.json", CHAT_TEMPLATE];
/// Tokenizers from before [`TOKENIZER`]. They are copied and named in messages, and not read.
pub const OLD_TOKENIZER_FILES: [&str; 4] = ["tokenizer.model", "vocab.json", "merges.txt", "spiece.model"];

/// An adapter's description, which makes a folder an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// An adapter's weights; the later are read where the earlier are missing.
pub const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
