//! `eyas serve`: a chat page for people, an API for programs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use eyas_backend::Backend;
use eyas_care::{Care, Language};
use eyas_generate::{Engine, EngineOptions, Generator};
use eyas_model::LoraAdapter;
use eyas_serve::{CareMode, CareSettings, Config, EngineAnswerer, Limits, Models, ServedModel, Storage};
use eyas_train::plan::display_bytes;

use crate::cli::{CareArg, ModelArgs, ServeArgs};
use crate::device::{Choice, Work};
use crate::session::{self, Files, Settings};

pub fn run(device: Choice, args: ServeArgs) -> Result<ExitCode> {
    let config = config(&args)?;
    let plan = Plan::new(&args)?;
    let files = Files::open(&plan.base.model)?;
    let recipe = plan.loading().recipe.clone();
    device.run(&recipe, Serve { args, config, plan, files })?;
    Ok(ExitCode::SUCCESS)
}

struct Serve {
    args: ServeArgs,
    config: Config,
    plan: Plan,
    files: Files,
}

impl Work for Serve {
    type Output = ();

    fn run<B: Backend>(self, backend: &B) -> Result<()> {
        serve(backend, self.args, self.config, self.plan, self.files)
    }
}

/// Which models are served, and how.
struct Plan {
    /// The base alone.
    base: Settings,
    /// Adapters with their names.
    adapters: Vec<(String, Settings)>,
}

impl Plan {
    fn new(args: &ServeArgs) -> Result<Self> {
        let settings = |model: Option<&str>, adapter: Option<String>| {
            Settings::new(&ModelArgs {
                model: model.map(str::to_owned),
                adapter,
                prompt: args.prompt,
                max_new_tokens: None,
                seed: 0,
                set: args.set.clone(),
            })
        };
        let mut adapters = Vec::new();
        if args.adapters.is_empty() {
            // The demo's adapter, where there is one and nothing else was asked for.
            let found = settings(args.model.as_deref(), None)?;
            if let Some(folder) = &found.adapter {
                adapters.push((last_part(folder)?, found));
            }
        }
        for adapter in &args.adapters {
            let (name, folder) = match adapter.split_once('=') {
                Some((name, folder)) if !name.contains(['/', '\\']) => (name.to_owned(), folder.to_owned()),
                _ => (last_part(Path::new(adapter))?, adapter.clone()),
            };
            adapters.push((name, settings(args.model.as_deref(), Some(folder))?));
        }
        let model = match (&args.model, adapters.first()) {
            (Some(model), _) => model.clone(),
            (None, Some((_, first))) => first.model.clone(),
            (None, None) => settings(None, None)?.model,
        };
        if let Some((name, other)) = adapters.iter().find(|(_, settings)| settings.model != model) {
            bail!(
                "the adapter {name} was trained on {}, not on {model}; all adapters of a server share one base. If it is \
                 the same model under another name, give it with --model",
                other.model
            );
        }
        Ok(Self { base: settings(Some(&model), None)?, adapters })
    }

    /// The settings by which the base is loaded: an adapter wants the precision that it was trained with.
    fn loading(&self) -> &Settings {
        self.adapters.first().map_or(&self.base, |(_, settings)| settings)
    }
}

fn config(args: &ServeArgs) -> Result<Config> {
    let api_key = args.api_key.clone().or_else(|| std::env::var("EYAS_API_KEY").ok());
    ensure!(api_key.as_ref().is_none_or(|key| !key.trim().is_empty()), "the API key is empty");
    let is_loopback = args.host.is_loopback();
    if !is_loopback && api_key.is_none() {
        eprintln!(
            "warning: {} can be reached from other machines, and no API key is set: everyone there can use the model. \
             Set EYAS_API_KEY, or put a proxy in front that asks who they are",
            args.host
        );
    }
    let allowed_hosts = (is_loopback || !args.allowed_hosts.is_empty()).then(|| {
        let own = Config::LOOPBACK_HOSTS.map(str::to_owned);
        own.into_iter().chain(args.allowed_hosts.iter().cloned()).collect()
    });
    let care = CareSettings {
        care: match &args.care_rules {
            Some(file) => Care::from_file(file)?,
            None => Care::builtin(),
        },
        mode: match args.care {
            CareArg::On => CareMode::On,
            CareArg::Strict => CareMode::Strict,
            CareArg::Off => CareMode::Off,
        },
        default_region: args.region.as_ref().map(|region| region.to_ascii_uppercase()),
    };
    if let Some(region) = &care.default_region {
        let known = care.care.regions(Language::En);
        ensure!(
            known.iter().any(|other| other.code == *region),
            "--region {region}: there are no helplines for it; known are {}",
            known.iter().map(|region| region.code.as_str()).collect::<Vec<_>>().join(", ")
        );
    }
    let storage = match (&args.store_conversations, &args.consent_text) {
        (Some(folder), Some(text)) => Some(Storage::new(folder, text)?),
        _ => None,
    };
    Ok(Config {
        title: args.title.clone(),
        care,
        storage,
        api_key,
        cors_origins: args.cors_origins.clone(),
        allowed_hosts,
        limits: Limits {
            max_body: args.max_body,
            max_queue: args.max_queue,
            max_connections: args.max_connections,
            ..Limits::default()
        },
        ..Config::default()
    })
}

fn serve<B: Backend>(backend: &B, args: ServeArgs, config: Config, plan: Plan, files: Files) -> Result<()> {
    let positions = args.context.unwrap_or_else(|| session::positions(&files));
    let model = files.load(backend, &plan.loading().recipe, positions)?;
    let options = EngineOptions::on::<B>(args.max_concurrent, positions);
    let mut engine = Engine::new(backend, &model, options)?;
    eprintln!(
        "{} answers at once, of up to {positions} tokens each: {} besides the model",
        args.max_concurrent,
        display_bytes(options.bytes::<B>(model.decoder(), backend.compute_dtype()))
    );

    let base_name = match args.model_name {
        Some(name) => name,
        None => last_part(Path::new(plan.base.model.trim_end_matches(".gguf")))?,
    };
    let mut served = vec![ServedModel {
        id: base_name.clone(),
        base: None,
        format: plan.base.format(&files)?,
        defaults: plan.base.sampling(),
    }];
    let mut adapters = vec![None];
    for (name, settings) in &plan.adapters {
        let folder = settings.adapter.as_deref().with_context(|| format!("{name} has no folder"))?;
        let adapter = LoraAdapter::load(folder, model.decoder())?;
        adapters.push(Some(engine.add_adapter(&adapter)?));
        served.push(ServedModel {
            id: name.clone(),
            base: Some(base_name.clone()),
            format: settings.format(&files)?,
            defaults: settings.sampling(),
        });
    }
    let tokenizer = Arc::new(files.tokenizer);
    let models = Models::new(served, Arc::clone(&tokenizer), positions, model.decoder().vocab_size)?;
    let names: Vec<String> = models.list().iter().map(|model| model.id.clone()).collect();
    let generator = Generator::new(engine, &tokenizer)?;
    let mut answerer = EngineAnswerer::new(generator, adapters);
    let address = SocketAddr::new(args.host, args.port);
    eyas_serve::serve(config, models, &mut answerer, address, eyas_serve::server::signal(), |address| {
        eprintln!("serving {} at http://{address} (Ctrl-C stops)", names.join(", "));
    })?;
    Ok(())
}

/// The name that a path or a model's name ends in.
fn last_part(path: &Path) -> Result<String> {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = canonical.file_name().and_then(|name| name.to_str());
    // A revision on the hub is no part of the name.
    let name = name.map(|name| name.split('@').next().unwrap_or(name));
    name.map(str::to_owned).with_context(|| format!("{}: give it a name: NAME=FOLDER", path.display()))
}
