//! `eyas merge`: an adapter and its base as one model.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use eyas_backend::Dtype;
use eyas_backend::memory::resident_memory;
use eyas_checkpoint::layout::{GENERATION_CONFIG, OLD_TOKENIZER_FILES, TOKENIZER_FILES};
use eyas_checkpoint::{check_free, write_folder};
use eyas_data::ChatTemplate;
use eyas_model::{LoraAdapter, MergeOptions, ModelSource, merge};
use eyas_quant::QuantConfig;
use eyas_train::Recipe;
use eyas_train::plan::display_bytes;
use eyas_train::recipe::PromptStyle;

use crate::cli::{MergeArgs, WeightType};
use crate::progress::LoadBar;
use crate::session::{self, RECIPE_FILE};
use crate::transfer::TransferBar;

/// What belongs to a model besides its weights and description, which are written anew, and its tokenizer.
const COPIED: [&str; 4] = [GENERATION_CONFIG, "chat_template.json", "LICENSE", "NOTICE"];

pub fn run(args: MergeArgs) -> Result<ExitCode> {
    let MergeArgs { model, adapter, output, .. } = args;
    check_free(&output)?;
    let adapter_folder = session::adapter_folder(&adapter)?;
    let name = model.map_or_else(|| session::base_model(&adapter_folder), Ok)?;
    let path = eyas_hub::locate_model(&name, &TransferBar::fetching())?;
    let source = ModelSource::open(&path)?;
    let adapter = LoraAdapter::load(&adapter_folder, source.decoder())?;
    if adapter.base_model != name {
        eprintln!(
            "note: the adapter names `{}` as its base, and its matrices fit `{name}`; if that is not the same model, \
             the result is worth nothing",
            adapter.base_model
        );
    }
    let recipe = Some(adapter_folder.join(RECIPE_FILE)).filter(|file| file.is_file());
    let recipe = recipe.map(|file| Recipe::read(&file)).transpose()?;
    let options = MergeOptions {
        dtype: args.dtype.map(|dtype| match dtype {
            WeightType::Bf16 => Dtype::Bf16,
            WeightType::F16 => Dtype::F16,
            WeightType::F32 => Dtype::F32,
        }),
        max_shard_size: args.max_shard_size,
        quantize: if args.from_quantised { Some(quantization(recipe.as_ref())?) } else { None },
    };
    let bar = LoadBar::new("merging");
    let merged = write_folder(&output, |folder| -> Result<_> {
        let merged = merge(&source, &adapter, folder, options, &mut |done, total| bar.set(done, total))?;
        let has_template = add_tokenizer(&source, folder)?;
        Ok((merged, has_template))
    });
    bar.finish();
    let (merged, has_template) = merged?;

    let folder = output.display();
    println!(
        "{folder}: {} of {} in {} weight file{}; the adapter changed {} matrices",
        display_bytes(merged.bytes),
        dtype_name(merged.dtype),
        merged.files.len(),
        if merged.files.len() == 1 { "" } else { "s" },
        merged.targets
    );
    if let Some((_, peak)) = resident_memory() {
        println!("peak memory: {}", display_bytes(peak));
    }
    let by_turns = recipe.is_some_and(|recipe| recipe.data.prompt_format == PromptStyle::HumanAssistant);
    let prompt = if by_turns && has_template { " --prompt recipe" } else { "" };
    // Quantised to 4 bits once more, the model would be another again.
    println!("next: eyas chat --model {folder} --set load_in_4bit=false{prompt}, or vllm serve {folder}");
    if !prompt.is_empty() {
        println!(
            "the adapter learned <HUMAN> and <ASSISTANT> turns, not the base's chat template: elsewhere give it such text"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What the adapter's base was quantised to.
fn quantization(recipe: Option<&Recipe>) -> Result<QuantConfig> {
    match recipe {
        Some(recipe) => recipe.quantization.config().context(
            "--from-quantised: the adapter's recipe has load_in_4bit = false, so it was trained on the original \
             weights; leave the option out",
        ),
        None => Ok(QuantConfig::default()),
    }
}

/// Copies the base's tokenizer and its like, or writes them for a GGUF file; whether there is a chat template.
fn add_tokenizer(source: &ModelSource, folder: &Path) -> Result<bool> {
    let template = match source.checkpoint().gguf_metadata() {
        Some(_) => {
            let (tokenizer, template) = session::tokenizer(source)?;
            let mut files = tokenizer.to_files(template.as_ref())?;
            files.push((GENERATION_CONFIG, tokenizer.generation_config()));
            for (name, text) in files {
                let path = folder.join(name);
                fs::write(&path, text).with_context(|| path.display().to_string())?;
            }
            template
        }
        None => {
            for name in TOKENIZER_FILES.into_iter().chain(OLD_TOKENIZER_FILES).chain(COPIED) {
                let from = source.folder().join(name);
                if from.is_file() {
                    fs::copy(&from, folder.join(name)).with_context(|| from.display().to_string())?;
                }
            }
            ChatTemplate::from_folder(source.folder())?
        }
    };
    if !TOKENIZER_FILES.iter().chain(&OLD_TOKENIZER_FILES).any(|name| folder.join(name).is_file()) {
        eprintln!("note: the base has no tokenizer beside it, so neither has the merged model");
    }
    Ok(template.is_some())
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}
