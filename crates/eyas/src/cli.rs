//! What can be typed.

use std::num::NonZero;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Fine-tune large language models with QLoRA, compare them with their base, and talk to them.
#[derive(Debug, Parser)]
#[command(name = "eyas", version, max_term_width = 100)]
pub struct Cli {
    /// Threads; all cores by default
    #[arg(long, global = true)]
    pub threads: Option<NonZero<usize>>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole way in minutes, on a CPU: fetch a small model, quantise it, fine-tune it on the built-in
    /// conversations, compare
    Demo(DemoArgs),
    /// Fine-tune a model by a recipe
    Train(TrainArgs),
    /// Ask base and tuned model the same questions; with --dataset, compare their loss too
    Compare(CompareArgs),
    /// Answer one prompt
    Generate(GenerateArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Print every key of a recipe with its default and meaning
    Recipe,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Another model: a folder, a GGUF file, or a name in the Hugging Face cache
    #[arg(long)]
    pub model: Option<String>,
    /// Where the adapter and its checkpoints go
    #[arg(long, default_value = "runs/demo")]
    pub output: PathBuf,
    /// Change a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Options of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe: a TOML file, or the name of a built-in one (mental-health, mental-health-t4, demo)
    pub recipe: String,
    /// The model: a folder, a GGUF file, or a name in the Hugging Face cache (key model_name_or_path)
    #[arg(long)]
    pub model: Option<String>,
    /// The rows: JSONL, JSON, Parquet or CSV, or `builtin` (key dataset)
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the adapter and its checkpoints go (key output_dir)
    #[arg(long)]
    pub output: Option<PathBuf>,
    /// Go on from the last checkpoint in the output folder
    #[arg(long)]
    pub resume: bool,
    /// Change a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Which model, and how it answers.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The base model: a folder, a GGUF file, or a name in the Hugging Face cache; by default the one that the
    /// adapter was trained on
    #[arg(long)]
    pub model: Option<String>,
    /// The adapter's folder [default: runs/demo, where it exists]
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// How a question becomes a prompt
    #[arg(long, value_enum, default_value_t)]
    pub prompt: PromptArg,
    /// Most tokens of an answer
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// Equal seeds give equal answers
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Change a key of the recipe, such as temperature; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// How a question becomes a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PromptArg {
    /// As the adapter was trained; without an adapter the model's chat template, or else the recipe's
    #[default]
    Auto,
    /// The published recipe's three lines, then `<HUMAN>` and `<ASSISTANT>`
    Recipe,
    /// The model's chat template
    Chat,
}

/// Options of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A question; may be repeated [default: the recipe's three]
    #[arg(long = "question", short = 'q')]
    pub questions: Vec<String>,
    /// Rows to compare the loss on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Print the answers one after the other between lines of dashes, untouched, as the published notebook does
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object a question
    #[arg(long)]
    pub json: bool,
}

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The question; `-` reads it from standard input
    pub question: String,
    /// Give the text to the model as it is, and its answer untouched
    #[arg(long)]
    pub raw: bool,
    /// Leave the adapter out
    #[arg(long)]
    pub base: bool,
}

/// Options of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Turns that are remembered; a question and its answer are two
    #[arg(long, default_value_t = 2)]
    pub memory: usize,
    /// Instructions before the first turn
    #[arg(long)]
    pub system: Option<String>,
}
