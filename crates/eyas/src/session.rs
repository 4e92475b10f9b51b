//! What most commands begin with: the device, the model with its tokenizer, the adapter, the settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use eyas_backend::Backend;
use eyas_checkpoint::layout::{ADAPTER_CONFIG, TOKENIZER_FILES};
use eyas_data::{ChatTemplate, PromptFormat, Tokenizer};
use eyas_generate::{AdapterId, Engine, EngineOptions, Generator, SamplingParams};
use eyas_model::{AdapterSettings, LoadOptions, LoraAdapter, Model, ModelSource};
use eyas_train::plan::display_bytes;
use eyas_train::recipe::PromptStyle;
use eyas_train::{ExtraFile, Recipe};
use rayon::prelude::*;

use crate::cli::{ModelArgs, PromptArg};
use crate::device::Opened;
use crate::progress::LoadBar;
use crate::transfer::TransferBar;

/// The recipes inside the program, by name.
const RECIPES: [(&str, &str); 3] = [
    ("mental-health", include_str!("../../../recipes/mental-health.toml")),
    ("mental-health-t4", include_str!("../../../recipes/mental-health-t4.toml")),
    ("demo", include_str!("../../../recipes/demo.toml")),
];

/// The file beside an adapter that says how it was trained.
pub const RECIPE_FILE: &str = "recipe.toml";

/// Changes keys of a recipe, `key=value` each.
pub fn change(recipe: &mut Recipe, set: &[String]) -> Result<()> {
    for assignment in set {
        recipe.set(assignment)?;
    }
    Ok(())
}

/// Reads a recipe: a file, or one inside the program by its name.
pub fn recipe(name: &str) -> Result<Recipe> {
    if Path::new(name).is_file() {
        return Ok(Recipe::read(Path::new(name))?);
    }
    builtin(name)
}

/// A recipe inside the program.
pub fn builtin(name: &str) -> Result<Recipe> {
    match RECIPES.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => Ok(Recipe::parse(&format!("recipes/{name}.toml"), text)?),
        None => {
            let known = RECIPES.map(|(known, _)| known).join(", ");
            bail!("{name}: there is no such file, nor a built-in recipe of that name ({known})")
        }
    }
}

/// A model on disk with its tokenizer.
#[derive(Debug)]
pub struct Files {
    /// The name or path that was asked for.
    pub name: String,
    /// The weights and their description.
    pub source: ModelSource,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// How the model wants turns, if it says so.
    pub template: Option<ChatTemplate>,
}

impl Files {
    /// Finds and opens a model.
    ///
    /// # Errors
    /// When it is nowhere, incomplete, or not understood.
    pub fn open(name: &str) -> Result<Self> {
        let path = eyas_hub::locate_model(name, &TransferBar::fetching())?;
        let source = ModelSource::open(&path)?;
        let (tokenizer, template) = tokenizer(&source)?;
        Ok(Self { name: name.to_owned(), source, tokenizer, template })
    }

    /// The tokenizer's files, as `transformers` reads them: the model's own, or what its GGUF file says.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn tokenizer_files(&self) -> Result<Vec<ExtraFile>> {
        if self.source.checkpoint().gguf_metadata().is_some() {
            let files = self.tokenizer.to_files(self.template.as_ref())?;
            let extra =
                |(name, text): (&str, String)| ExtraFile { name: name.into(), contents: text.into_bytes() };
            return Ok(files.into_iter().map(extra).collect());
        }
        let folder = self.source.folder();
        let names = TOKENIZER_FILES.into_iter().filter(|name| folder.join(name).is_file());
        names
            .map(|name| {
                let path = folder.join(name);
                let contents = fs::read(&path).with_context(|| path.display().to_string())?;
                Ok(ExtraFile { name: name.into(), contents })
            })
            .collect()
    }

    /// Puts the model on a device, quantised as the recipe says, for sequences of up to `positions` tokens.
    ///
    /// # Errors
    /// When a tensor is not usable or the device has no room.
    pub fn load<B: Backend>(&self, backend: &B, recipe: &Recipe, positions: usize) -> Result<Model<B>> {
        self.load_with_bar(&[(backend.name(), backend)], recipe, positions).map(|mut models| models.remove(0))
    }

    /// The same on several devices at once.
    ///
    /// # Errors
    /// As [`Files::load`], with the device's name.
    pub fn load_on_all<B: Backend>(
        &self,
        devices: &[Opened<B>],
        recipe: &Recipe,
        positions: usize,
    ) -> Result<Vec<Model<B>>> {
        let name = |device: &Opened<B>| match devices.len() {
            1 => device.backend.name(),
            _ => format!("{} ({})", device.label, device.backend.name()),
        };
        let named: Vec<_> = devices.iter().map(|device| (name(device), &device.backend)).collect();
        self.load_with_bar(&named, recipe, positions)
    }

    fn load_with_bar<B: Backend>(
        &self,
        devices: &[(String, &B)],
        recipe: &Recipe,
        positions: usize,
    ) -> Result<Vec<Model<B>>> {
        let quantize = recipe.quantization.config();
        let bar = LoadBar::new(if quantize.is_some() { "quantising" } else { "loading" });
        let options = LoadOptions { quantize, positions, embedding_on_host: recipe.is_tight() };
        let progress: Vec<AtomicU64> = devices.iter().map(|_| AtomicU64::new(0)).collect();
        let load = |(device, mine): (&(String, &B), &AtomicU64)| {
            let mut tell = |done, total: u64| {
                mine.store(done, Ordering::Relaxed);
                let done = progress.iter().map(|done| done.load(Ordering::Relaxed)).sum();
                bar.set(done, total.saturating_mul(devices.len() as u64));
            };
            let model = self.source.load(device.1, options, &mut tell);
            if devices.len() > 1 { model.with_context(|| device.0.clone()) } else { Ok(model?) }
        };
        let models = devices.par_iter().zip(&progress).map(load).collect::<Result<Vec<_>>>()?;
        bar.finish();
        for ((name, _), model) in devices.iter().zip(&models) {
            let decoder = model.decoder();
            eprintln!(
                "{} ({}, {:.0} M parameters): {} on {name}",
                self.name,
                decoder.family,
                decoder.parameters() as f64 / 1e6,
                display_bytes(model.footprint().total()),
            );
        }
        Ok(models)
    }
}

/// A model's tokenizer and how it wants turns, from its folder or its GGUF file.
///
/// # Errors
/// When there is no tokenizer, or it is not understood.
pub fn tokenizer(source: &ModelSource) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    Ok(match source.checkpoint().gguf_metadata() {
        Some(metadata) => {
            let file = source.checkpoint().files().first().map_or(source.path(), PathBuf::as_path);
            (Tokenizer::from_gguf(file, metadata)?, ChatTemplate::from_gguf(metadata)?)
        }
        None => (Tokenizer::from_folder(source.folder())?, ChatTemplate::from_folder(source.folder())?),
    })
}

/// The folder of an adapter, here or on the hub.
///
/// # Errors
/// When it is nowhere or holds no adapter.
pub fn adapter_folder(name: &str) -> Result<PathBuf> {
    let folder = eyas_hub::locate_adapter(name, &TransferBar::fetching())?;
    if !folder.join(ADAPTER_CONFIG).is_file() {
        bail!(
            "{}: there is no {ADAPTER_CONFIG} in it; --adapter takes the folder that a run wrote",
            folder.display()
        );
    }
    Ok(folder)
}

/// The settings of a command that generates: a recipe (the adapter's own where it has one), and the adapter's folder.
#[derive(Debug)]
pub struct Settings {
    /// How answers are generated and the base is quantised.
    pub recipe: Recipe,
    /// The base model's name.
    pub model: String,
    /// The adapter's folder, if there is one.
    pub adapter: Option<PathBuf>,
    /// How questions become prompts.
    prompt: PromptArg,
    seed: u64,
}

impl Settings {
    /// From what was typed.
    ///
    /// # Errors
    /// When the adapter's folder is not there, a setting is not understood, or no model is named anywhere.
    pub fn new(args: &ModelArgs) -> Result<Self> {
        const DEMO: &str = "runs/demo";
        let adapter = match &args.adapter {
            Some(name) => Some(adapter_folder(name)?),
            None if args.model.is_none() => {
                Some(PathBuf::from(DEMO)).filter(|folder| folder.join(ADAPTER_CONFIG).is_file())
            }
            None => None,
        };
        let own = adapter.as_ref().map(|folder| folder.join(RECIPE_FILE)).filter(|file| file.is_file());
        let mut recipe = match &own {
            Some(file) => Recipe::read(file)?,
            None => builtin("mental-health")?,
        };
        change(&mut recipe, &args.set)?;
        if let Some(tokens) = args.max_new_tokens {
            recipe.generation.max_new_tokens = tokens;
        }
        recipe.validate()?;
        let model = match (&args.model, &adapter) {
            (Some(model), _) => model.clone(),
            (None, Some(folder)) => base_model(folder)?,
            (None, None) => eyas_hub::DEMO_MODEL.to_owned(),
        };
        Ok(Self { recipe, model, adapter, prompt: args.prompt, seed: args.seed })
    }

    /// How questions become prompts for a model.
    ///
    /// # Errors
    /// When the model has no chat template and one is needed.
    pub fn format(&self, files: &Files) -> Result<PromptFormat> {
        let template =
            || files.template.clone().map(|template| PromptFormat::ChatTemplate(Box::new(template)));
        let trained_on_template =
            self.adapter.is_none() || self.recipe.data.prompt_format != PromptStyle::HumanAssistant;
        Ok(match self.prompt {
            PromptArg::Recipe => PromptFormat::recipe(),
            PromptArg::Chat => template().with_context(|| format!("{} has no chat template", files.name))?,
            PromptArg::Auto if trained_on_template => template().unwrap_or_else(PromptFormat::recipe),
            PromptArg::Auto => PromptFormat::recipe(),
        })
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> SamplingParams {
        sampling(&self.recipe, self.seed)
    }
}

/// How tokens are chosen, by a recipe.
pub fn sampling(recipe: &Recipe, seed: u64) -> SamplingParams {
    let generation = &recipe.generation;
    SamplingParams {
        do_sample: generation.do_sample,
        temperature: generation.temperature as f32,
        top_k: generation.top_k,
        top_p: generation.top_p as f32,
        repetition_penalty: generation.repetition_penalty as f32,
        max_new_tokens: generation.max_new_tokens,
        seed,
        ..SamplingParams::default()
    }
}

/// The base model that an adapter names.
pub fn base_model(adapter: &Path) -> Result<String> {
    let name = AdapterSettings::read(adapter)?.base_model;
    if name.is_empty() {
        let path = adapter.join(ADAPTER_CONFIG);
        bail!("{} does not name its base model; give it with --model", path.display());
    }
    Ok(name)
}

/// An engine over a model, with an adapter if there is one.
///
/// # Errors
/// When the adapter does not fit the model or the device has no room.
pub fn generator<'m, B: Backend>(
    backend: &'m B,
    model: &'m Model<B>,
    tokenizer: &'m Tokenizer,
    adapter: Option<&Path>,
    slots: usize,
) -> Result<(Generator<'m, B>, Option<AdapterId>)> {
    let mut engine = Engine::new(backend, model, EngineOptions::on::<B>(slots, model.positions()))?;
    let id = match adapter {
        Some(folder) => Some(engine.add_adapter(&LoraAdapter::load(folder, model.decoder())?)?),
        None => None,
    };
    Ok((Generator::new(engine, tokenizer)?, id))
}

/// The longest conversation that a command makes room for: the model's own limit, or this if it is less.
pub fn positions(files: &Files) -> usize {
    files.source.decoder().max_positions.min(2048)
}
