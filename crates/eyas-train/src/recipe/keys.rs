//! Every key of a recipe, once: its name, type, default and meaning.
//!
//! The structs, the assignment of a value to a key and the printed reference all come from this one table.

use std::collections::BTreeMap;

use eyas_model::{LoraConfig, Modules};
use serde::Serialize;
use toml::Value;

use super::values::{
    ComputeDtype, GradientCheckpointing, MemoryBudget, Optim, PromptStyle, QuantName, Reporters, ResumeFrom,
};
use crate::schedule::LrSchedulerType;

/// A key of a recipe.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The section that it stands in.
    pub section: &'static str,
    /// Its name, unlike that of any key in any section.
    pub name: &'static str,
    /// Other names that are understood.
    pub aliases: &'static [&'static str],
    /// What it means, line by line.
    doc: &'static [&'static str],
}

impl Key {
    /// What it means.
    pub fn doc(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {
            $( $(#[doc = $doc:literal])+ $key:ident $(| $alias:ident)*: $ty:ty = $default:expr, )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, Serialize)]
            pub struct $Section { $( $(#[doc = $doc])+ pub $key: $ty, )+ }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $( $key: $default, )+ }
                }
            }
        )+

        /// The sections' values.
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct Sections { $( $(#[doc = $about])+ pub $section: $Section, )+ }

        /// The names of the sections, and what each is about.
        pub(super) const SECTIONS: &[(&str, &[&str])] = &[ $( (stringify!($section), &[$($about),+]), )+ ];

        /// Every key, section by section.
        pub const KEYS: &[Key] = &[ $($(
            Key {
                section: stringify!($section),
                name: stringify!($key),
                aliases: &[$(stringify!($alias)),*],
                doc: &[$($doc),+],
            },
        )+)+ ];

        impl Sections {
            /// Gives a key its value. The key is one of [`KEYS`], by its first name.
            pub(super) fn assign(&mut self, key: &str, value: Value) -> Result<(), toml::de::Error> {
                $($(
                    if key == stringify!($key) {
                        self.$section.$key = value.try_into()?;
                        return Ok(());
                    }
                )+)+
                unreachable!("`{key}` is not in the table of keys")
            }
        }
    };
}

sections! {
    /// The base model.
    model: ModelKeys {
        /// The base model: a folder with `config.json` and its weights, a GGUF file, or a name on the hub
        /// (`owner/name[/file][@revision]`).
        model_name_or_path: Option<String> = None,
    }

    /// How the frozen base is kept (bitsandbytes' names).
    quantization: Quantization {
        /// Quantise the blocks' linear layers to 4 bits. With false they stay as the checkpoint has them, which is
        /// plain LoRA.
        load_in_4bit: bool = true,
        /// `nf4` or `fp4`.
        bnb_4bit_quant_type: QuantName = QuantName::Nf4,
        /// Quantise the scales too, which saves 0.37 bits a weight.
        bnb_4bit_use_double_quant: bool = true,
        /// Type of the activations: `auto` (the device's own), `float32`, `bfloat16` or `float16`.
        bnb_4bit_compute_dtype: ComputeDtype = ComputeDtype::Auto,
        /// Weights that share a scale: a power of two from 32 to 4096.
        bnb_4bit_blocksize: usize = 64,
    }

    /// The adapter (PEFT's names).
    lora: Lora {
        /// Rank of the updates.
        r | lora_r: usize = 8,
        /// The update is scaled by lora_alpha / r.
        lora_alpha: f64 = 8.0,
        /// Probability of dropping an input of the update while training.
        lora_dropout: f64 = 0.0,
        /// Biases that are trained: `none` is the only choice.
        bias: String = "none".into(),
        /// `CAUSAL_LM` is the only choice.
        task_type: String = "CAUSAL_LM".into(),
        /// Which layers have an update: names, ends of module paths, one regular expression, or `all-linear`.
        target_modules: Modules = Modules::all_linear(),
        /// Layers that have none after all; as target_modules.
        exclude_modules: Option<Modules> = None,
        /// Scale by lora_alpha / sqrt(r) (rsLoRA).
        use_rslora: bool = false,
        /// Other ranks for some layers: pattern = rank.
        rank_pattern: BTreeMap<String, usize> = BTreeMap::new(),
        /// Other alphas for some layers: pattern = alpha.
        alpha_pattern: BTreeMap<String, f64> = BTreeMap::new(),
    }

    /// The rows to learn from.
    data: Data {
        /// A JSONL, JSON, Parquet or CSV file, or a data set on the hub (`owner/name[/file][@revision]`); `builtin` is the
        /// set of conversations inside eyas.
        dataset | dataset_name: Option<String> = None,
        /// The column that holds whole texts. Not set: `prompt` with `completion`, `messages`, `conversations` or
        /// `text`, whichever the rows have.
        dataset_text_field: Option<String> = None,
        /// A file of rows held out for evaluation, named as dataset is. Not set: eval_share of the data set.
        eval_dataset: Option<String> = None,
        /// Share of the questions held out for evaluation; 0 trains on every row and measures nothing.
        eval_share: f64 = 0.1,
        /// Replace e-mail addresses, telephone numbers and other personal data that has a form by placeholders.
        anonymise: bool = true,
        /// Learn the answers only, not the questions. Not set: only where rows have a prompt and a completion.
        completion_only_loss: Option<bool> = None,
        /// Learn the assistant's turns only, in rows that have turns.
        assistant_only_loss: bool = false,
        /// How turns become text: `auto` (the model's chat template where it has one), `chat_template`, or
        /// `human_assistant` (`<HUMAN>: ...` and `<ASSISTANT>: ...`).
        prompt_format: PromptStyle = PromptStyle::Auto,
        /// Longest row in tokens; what is beyond is cut off, counted and reported.
        max_length | max_seq_length: usize = 1024,
    }

    /// The run (Hugging Face Trainer's names).
    training: Training {
        /// Folder of the checkpoints and of the finished adapter.
        output_dir: String = "output".into(),
        /// Replace the checkpoints of an earlier run in output_dir.
        overwrite_output_dir: bool = false,
        /// Go on from the last checkpoint in output_dir (true), or from this folder.
        resume_from_checkpoint: ResumeFrom = ResumeFrom::Never,
        /// Rows a micro-batch: what is in a device's memory at once. Where memory that was free is taken, the run goes on with
        /// fewer and accumulates over more.
        per_device_train_batch_size: usize = 8,
        /// Rows a batch of evaluation; fewer where they would take more memory than a micro-batch.
        per_device_eval_batch_size: usize = 8,
        /// Micro-batches of each device whose gradients are summed for one step.
        gradient_accumulation_steps: usize = 1,
        /// AdamW: `adamw_torch` keeps its moments in 32 bits, `adamw_8bit` in 8; `paged_adamw_32bit` and
        /// `paged_adamw_8bit` move them to pinned host memory where the device is short of room.
        optim: Optim = Optim::AdamwTorch,
        /// Peak of the learning rate.
        learning_rate: f64 = 2e-4,
        /// Decay of AdamW's first moment.
        adam_beta1: f64 = 0.9,
        /// Decay of AdamW's second moment.
        adam_beta2: f64 = 0.999,
        /// Added to the root of AdamW's second moment.
        adam_epsilon: f64 = 1e-8,
        /// Decay of the adapter's weights, times the learning rate, each step.
        weight_decay: f64 = 0.0,
        /// Gradients are scaled down to this norm; 0 leaves them alone.
        max_grad_norm: f64 = 1.0,
        /// Steps; -1 goes by num_train_epochs.
        max_steps: i64 = -1,
        /// Passes over the rows, where max_steps is -1.
        num_train_epochs: f64 = 3.0,
        /// Share of the steps in which the learning rate rises from 0; ignored where warmup_steps is not 0.
        warmup_ratio: f64 = 0.0,
        /// Steps in which the learning rate rises from 0.
        warmup_steps: u64 = 0,
        /// `linear`, `cosine`, `constant` or `constant_with_warmup`.
        lr_scheduler_type: LrSchedulerType = LrSchedulerType::Linear,
        /// Put rows of about the same length into a batch.
        group_by_length: bool = false,
        /// Save a checkpoint every so many steps, and after the last; 0 saves none.
        save_steps: u64 = 500,
        /// Checkpoints kept, the newest; not set: all.
        save_total_limit: Option<usize> = None,
        /// Log every so many steps; 0 logs nothing but the summary.
        logging_steps: u64 = 10,
        /// Evaluate every so many steps besides the start and the end; 0 at these two only.
        eval_steps: u64 = 0,
        /// Of the adapter's start, the order of rows and the dropout.
        seed: u64 = 42,
        /// Activations in bfloat16; as bnb_4bit_compute_dtype = "bfloat16".
        bf16: bool = false,
        /// Activations in half precision; as bnb_4bit_compute_dtype = "float16".
        fp16: bool = false,
        /// `true` computes every block twice to save memory, `false` never, `auto` as many as the memory asks for.
        gradient_checkpointing: GradientCheckpointing = GradientCheckpointing::Auto,
        /// Memory that the run may take on the device, on each of several, as "6 GB"; `auto`: what is free.
        memory_budget: MemoryBudget = MemoryBudget::Auto,
        /// Push the adapter to the hub at the end, with the recipe, the tokenizer and a model card; never rows or moments.
        push_to_hub: bool = false,
        /// Name of the repository on the hub: `owner/name`, or a name below the account. Not set: output_dir's name.
        hub_model_id: Option<String> = None,
        /// Nobody else may see the repository.
        hub_private_repo: bool = false,
        /// Where metrics go besides trainer_state.json: `tensorboard` (event files), `wandb` (an offline run, which
        /// `wandb sync` uploads), a list of them, `all` or `none`.
        report_to: Reporters = Reporters::default(),
        /// Folder of the event files for TensorBoard; not set: a new one under runs/ in output_dir.
        logging_dir: Option<String> = None,
        /// What Weights & Biases calls the run; not set: output_dir.
        run_name: Option<String> = None,
        /// The project on Weights & Biases that the run belongs to.
        wandb_project: String = "eyas".into(),
    }

    /// How answers are generated.
    generation: Generation {
        /// Most tokens of an answer.
        max_new_tokens: usize = 256,
        /// Draw each token; false takes the most likely one, and the next three keys do nothing.
        do_sample: bool = true,
        /// Below 1 sharpens the distribution.
        temperature: f64 = 1.0,
        /// Draw from the most likely tokens that reach this probability together.
        top_p: f64 = 1.0,
        /// Draw from this many of the most likely tokens; 0 from all.
        top_k: usize = 0,
        /// Above 1 makes tokens that stand in the text already less likely.
        repetition_penalty: f64 = 1.0,
    }
}

impl Lora {
    /// The adapter's settings as the model takes them.
    pub fn config(&self) -> LoraConfig {
        LoraConfig {
            r: self.r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            use_rslora: self.use_rslora,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
        }
    }
}

impl Quantization {
    /// What the blocks' linear layers are quantised to, if they are.
    pub fn config(&self) -> Option<eyas_quant::QuantConfig> {
        self.load_in_4bit.then(|| eyas_quant::QuantConfig {
            quant_type: self.bnb_4bit_quant_type.into(),
            block_size: self.bnb_4bit_blocksize,
            double_quant: self.bnb_4bit_use_double_quant,
        })
    }
}
