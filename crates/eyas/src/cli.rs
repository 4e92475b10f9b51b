//! What can be typed.

use std::net::IpAddr;
use std::num::NonZero;
use std::path::PathBuf;

use crate::device::DeviceArg;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Fine-tune large language models with QLoRA, compare them with their base, and talk to them.
#[derive(Debug, Parser)]
#[command(name = "eyas", version, max_term_width = 100)]
pub struct Cli {
    /// Threads; all cores by default
    #[arg(long, global = true)]
    pub threads: Option<NonZero<usize>>,
    /// Where to compute: auto, cpu, cuda, cuda:NUMBER; training also on several cards: cuda:0,1 or cuda:all
    #[arg(long, global = true, default_value = "auto", hide_default_value = true)]
    pub device: DeviceArg,
    /// The most memory of a card to take, such as 11GB, of each where there are several [default: what is free]
    #[arg(long, global = true, value_name = "SIZE", value_parser = crate::device::memory)]
    pub gpu_memory: Option<u64>,
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
    /// Add an adapter to its base's weights and write a model that transformers and vLLM load
    Merge(MergeArgs),
    /// Serve a model and its adapters: a chat page for people, an API for programs
    Serve(ServeArgs),
    /// Push an adapter to the hub, with its recipe, its tokenizer and a model card; never rows
    Push(PushArgs),
    /// Print every key of a recipe with its default and meaning
    Recipe,
    /// Say what memory a run takes, and which blocks are computed twice, without a card or weights
    Estimate(EstimateArgs),
    /// Look at cards, drivers and libraries, check every operation against a reference, measure what the device reaches
    Doctor(DoctorArgs),
    /// Measure speed and memory with random weights of a published shape
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// Options of `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The folder that a run wrote, or one of its checkpoints
    pub output: PathBuf,
    /// The repository: owner/name, or a name below your account
    pub name: String,
    /// Nobody else may see it; a repository that is there and public is refused
    #[arg(long)]
    pub private: bool,
    /// The branch, made where it is not there [default: main]
    #[arg(long)]
    pub revision: Option<String>,
    /// The commit's message
    #[arg(long)]
    pub message: Option<String>,
    /// What the base model is on the hub, where it was a folder of this machine
    #[arg(long, value_name = "OWNER/NAME[@REVISION]")]
    pub base_model: Option<String>,
    /// List what would go, and show the model card; the network is not used
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `estimate`.
#[derive(Debug, Args)]
pub struct EstimateArgs {
    /// The recipe: a TOML file, or the name of a built-in one [default: mental-health, on every linear layer]
    pub recipe: Option<String>,
    /// The model: a folder, a GGUF file, or a name on the hub
    #[arg(long, conflicts_with = "shape")]
    pub model: Option<String>,
    /// Instead of a model, a published shape, such as falcon-7b or llama-3-8b [default: falcon-7b]
    #[arg(long)]
    pub shape: Option<String>,
    /// Tokens of a row; the plan is for rows that are all so long [default: the recipe's max_length]
    #[arg(long)]
    pub length: Option<usize>,
    /// Change a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Leave out the checks of operations against the reference
    #[arg(long)]
    pub quick: bool,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Whole steps of training
    Train(BenchTrainArgs),
    /// Measure generation: reading prompts and answering them
    Generate(BenchGenerateArgs),
}

/// Options of `bench train`.
#[derive(Debug, Args)]
pub struct BenchTrainArgs {
    /// A published shape, with random weights: falcon-7b, llama-3-8b, smollm2-135m, ...
    #[arg(long, default_value = "smollm2-135m")]
    pub shape: String,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 4)]
    pub batch: usize,
    /// Micro-batches of a step
    #[arg(long, default_value_t = 1)]
    pub accumulation: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 256)]
    pub length: usize,
    /// Lengths vary as those of conversations do, log-normally; --length is their mean
    #[arg(long)]
    pub lognormal: bool,
    /// Steps to measure, after one that warms up
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Rank of the adapter, on every linear layer
    #[arg(long, default_value_t = 32)]
    pub rank: usize,
    /// Change a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `bench generate`.
#[derive(Debug, Args)]
pub struct BenchGenerateArgs {
    /// A published shape, with random weights: falcon-7b, llama-3-8b, smollm2-135m, ...
    #[arg(long, default_value = "smollm2-135m")]
    pub shape: String,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Tokens of each answer that are measured
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Sequences at once; one measurement for each number
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    pub sequences: Vec<usize>,
    /// Adapters in use, shared out among the sequences; 0 is the base alone. One measurement for each number
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    pub adapters: Vec<usize>,
    /// Rank of the adapters, on every linear layer
    #[arg(long, default_value_t = 32)]
    pub rank: usize,
    /// The most prompt tokens of a step [default: what the device does best]
    #[arg(long, value_name = "TOKENS")]
    pub prefill_chunk: Option<usize>,
    /// Take the likeliest token instead of drawing one as the recipe does
    #[arg(long)]
    pub greedy: bool,
    /// Also say where a step's time goes
    #[arg(long)]
    pub profile: bool,
    /// Change a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON object for each measurement
    #[arg(long)]
    pub json: bool,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Another model: a folder, a GGUF file, or a name on the hub
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
    /// The model: a folder, a GGUF file, or a name on the hub, `owner/name[/file][@revision]` (key
    /// model_name_or_path)
    #[arg(long)]
    pub model: Option<String>,
    /// The rows: JSONL, JSON, Parquet or CSV, a name on the hub, or `builtin` (key dataset)
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
    /// The base model: a folder, a GGUF file, or a name on the hub; by default the one that the adapter was trained on
    #[arg(long)]
    pub model: Option<String>,
    /// The adapter's folder, or its name on the hub, `owner/name[@revision]` [default: runs/demo, where it exists]
    #[arg(long)]
    pub adapter: Option<String>,
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
    /// Rows to compare the loss on: a file, or a name on the hub
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

/// Options of `merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The base model: a folder, a GGUF file, or a name on the hub; by default the one that the adapter
    /// was trained on
    #[arg(long)]
    pub model: Option<String>,
    /// The adapter's folder, or its name on the hub, `owner/name[@revision]`
    #[arg(long, value_name = "FOLDER")]
    pub adapter: String,
    /// The folder to write, new or empty
    #[arg(long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Type of the weights that are written [default: the base's own, bf16 where that is a block type]
    #[arg(long, value_enum)]
    pub dtype: Option<WeightType>,
    /// The most bytes of a weight file
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = crate::device::memory)]
    pub max_shard_size: u64,
    /// Merge into the weights as 4-bit quantisation left them, not into the original ones.
    ///
    /// The adapter was trained on the quantised weights, so this is the nearer to the trained function: it gives the
    /// answers of base and adapter together, but for rounding to the type that is written (with --dtype f32 to the
    /// last bits). Nearer is not better: the original weights, which PEFT's merge_and_unload takes too, are rid of the
    /// quantisation error. The adapter never saw them, so measure before you rely on it; mostly they predict better.
    /// The quantisation is that of the recipe beside the adapter, else NF4 with double quantisation.
    #[arg(long, alias = "from-quantized")]
    pub from_quantised: bool,
}

/// A type that weights are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// 32 bits
    F32,
}

/// How far the safety layer reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CareArg {
    /// Chat: a concern is answered with help, and answers are checked
    #[default]
    On,
    /// Chat and raw completions
    Strict,
    /// Nowhere
    Off,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The base model: a folder, a GGUF file, or a name on the hub; by default the one that the first adapter was trained
    /// on
    #[arg(long)]
    pub model: Option<String>,
    /// An adapter's folder or name on the hub, and the name that requests call it by; may be repeated [default: runs/demo,
    /// where it exists]
    #[arg(long = "adapter", value_name = "[NAME=]FOLDER")]
    pub adapters: Vec<String>,
    /// What requests call the base model [default: the last part of its name]
    #[arg(long)]
    pub model_name: Option<String>,
    /// How a conversation becomes a prompt for the base; an adapter's follows from how it was trained
    #[arg(long, value_enum, default_value_t)]
    pub prompt: PromptArg,
    /// Change a key of the recipe, such as temperature; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The address to listen on; the default is reachable from this machine only
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Requests must carry this key. Better in the environment, as EYAS_API_KEY: options can be seen by other users
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// An origin whose scripts may call the API, such as `https://example.org`; may be repeated [default: none]
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,
    /// Another name under which the server may be called, as behind a proxy; may be repeated. On other addresses than
    /// this machine's own any name is allowed unless one is given
    #[arg(long = "allowed-host", value_name = "NAME")]
    pub allowed_hosts: Vec<String>,
    /// Answers at once
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_concurrent: usize,
    /// Requests that may wait; further ones are told to come back
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub max_queue: usize,
    /// Open connections
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub max_connections: usize,
    /// Bytes of a request
    #[arg(long, default_value_t = 1 << 20, value_name = "BYTES")]
    pub max_body: usize,
    /// Tokens of a conversation with its answer [default: the model's limit, at most 2048]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// The safety layer: in chat, in raw completions too, or not at all
    #[arg(long, value_enum, default_value_t)]
    pub care: CareArg,
    /// A TOML file laid over the safety layer's rules, texts and helplines
    #[arg(long, value_name = "FILE")]
    pub care_rules: Option<PathBuf>,
    /// Whose helplines are given where a person named no region: a country's two letters
    #[arg(long, value_name = "XX")]
    pub region: Option<String>,
    /// Store conversations of those who consent; without it nothing that people write is kept
    #[arg(long, value_name = "FOLDER", requires = "consent_text")]
    pub store_conversations: Option<PathBuf>,
    /// The text that they consent to
    #[arg(long, value_name = "FILE", requires = "store_conversations")]
    pub consent_text: Option<PathBuf>,
    /// The page's title
    #[arg(long, default_value = "Mental Health Conversational AI")]
    pub title: String,
}
