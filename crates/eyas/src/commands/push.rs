//! `eyas push`: an adapter goes to the hub, with what tells how it came about.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use eyas_checkpoint::layout::{OLD_TOKENIZER_FILES, TOKENIZER_FILES};
use eyas_hub::{Contents, DEMO_MODEL, Hub, HubName, Push, PushFile};
use eyas_model::AdapterSettings;
use eyas_model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use eyas_train::checkpoint::TRAINER_STATE_FILE;
use eyas_train::plan::display_bytes;
use eyas_train::recipe::ResumeFrom;
use eyas_train::{BUILTIN, Recipe, TrainerState};
use serde_json::{Value, json};

use crate::card::{Card, MARK};
use crate::cli::PushArgs;
use crate::rows;
use crate::session::RECIPE_FILE;
use crate::transfer::TransferBar;

const CARD_FILE: &str = "README.md";
/// Where the demo's model is on the hub: the one here comes in a package.
const DEMO_BASE: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
/// Files that go as they are. Nothing else of a run does: no rows, no moments, no checkpoints.
fn as_they_are() -> impl Iterator<Item = &'static str> {
    let tokenizer = TOKENIZER_FILES.into_iter().chain(OLD_TOKENIZER_FILES);
    [WEIGHTS_FILE].into_iter().chain(tokenizer).chain([TRAINER_STATE_FILE])
}

pub fn run(args: PushArgs) -> Result<ExitCode> {
    let bar = TransferBar::sending();
    if args.dry_run {
        // A name without an owner stands below the account, which only the network knows.
        let shown = if args.name.contains('/') { args.name.clone() } else { format!("you/{}", args.name) };
        let bundle = Bundle::new(&args.output, &HubName::repository(&shown)?, args.base_model.as_deref())?;
        println!("would go to {shown}{}:", if args.private { " (private)" } else { "" });
        for file in &bundle.files {
            println!("    {:<28} {}", file.path, display_bytes(file.contents.size()?));
        }
        println!("\n{}", bundle.card);
        return Ok(ExitCode::SUCCESS);
    }
    let hub = Hub::from_env()?;
    let name = full_name(&hub, &args.name, &bar)?;
    let bundle = Bundle::new(&args.output, &name, args.base_model.as_deref())?;
    let message = args.message.as_deref().unwrap_or("Adapter trained with eyas");
    send(&hub, &name, bundle, args.private, args.revision.as_deref(), message, &bar)?;
    Ok(ExitCode::SUCCESS)
}

/// Tells before a long run what will become of its wish to be pushed; false where it cannot be.
pub fn foretell(recipe: &Recipe) -> bool {
    if !recipe.training.push_to_hub {
        return false;
    }
    let ready = || -> Result<String> {
        let hub = Hub::from_env()?;
        let name = wanted_name(recipe)?;
        hub.check_writable("pushing the adapter at the end (push_to_hub)")?;
        let account = hub.account(&TransferBar::sending())?;
        if !account.may_write {
            bail!("the access token is for reading only; `hf auth login` takes another");
        }
        let base = recipe.model.model_name_or_path.as_deref().unwrap_or_default();
        public_base(base, None)?;
        let name = if name.contains('/') { name } else { format!("{}/{name}", account.name) };
        Ok(HubName::repository(&name)?.to_string())
    };
    match ready() {
        Ok(name) => {
            let seen =
                if recipe.training.hub_private_repo { "only you can see it" } else { "all can see it" };
            eprintln!("at the end the adapter is pushed to {name}; {seen}");
            true
        }
        Err(error) => {
            eprintln!("warning: {error:#}. The run goes on; its adapter is not pushed at the end");
            false
        }
    }
}

/// Pushes the adapter of a run that has ended. Where that fails the run is whole all the same.
pub fn after_training(recipe: &Recipe) -> ExitCode {
    let output = Path::new(&recipe.training.output_dir);
    let pushed = || -> Result<()> {
        let (hub, bar) = (Hub::from_env()?, TransferBar::sending());
        let name = full_name(&hub, &wanted_name(recipe)?, &bar)?;
        let bundle = Bundle::new(output, &name, None)?;
        let private = recipe.training.hub_private_repo;
        send(&hub, &name, bundle, private, None, "Adapter trained with eyas", &bar)
    };
    match pushed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: not pushed: {error:#}\nThe run is whole. {}", again(recipe));
            ExitCode::FAILURE
        }
    }
}

/// The command that pushes a run's adapter.
pub fn again(recipe: &Recipe) -> String {
    let name = wanted_name(recipe).unwrap_or_else(|_| "OWNER/NAME".into());
    let private = if recipe.training.hub_private_repo { " --private" } else { "" };
    format!("To push it: eyas push {} {name}{private}", recipe.training.output_dir)
}

/// The name that a recipe asks for, or that of its output folder, as Hugging Face's Trainer has it.
fn wanted_name(recipe: &Recipe) -> Result<String> {
    if let Some(name) = &recipe.training.hub_model_id {
        return Ok(name.clone());
    }
    let folder = Path::new(&recipe.training.output_dir).file_name().and_then(|name| name.to_str());
    folder
        .map(str::to_owned)
        .context("hub_model_id is not set, and output_dir has no name that could stand for it")
}

/// A name below the account where no owner is named.
fn full_name(hub: &Hub, name: &str, bar: &TransferBar) -> Result<HubName> {
    Ok(match name.contains('/') {
        true => HubName::repository(name)?,
        false => HubName::repository(&format!("{}/{name}", hub.account(bar)?.name))?,
    })
}

fn send(
    hub: &Hub,
    name: &HubName,
    mut bundle: Bundle,
    private: bool,
    revision: Option<&str>,
    message: &str,
    bar: &TransferBar,
) -> Result<()> {
    hub.check_writable(&format!("pushing to {name}"))?;
    let there = revision.map_or(name.clone(), |revision| {
        HubName::parse(&format!("{name}@{revision}")).unwrap_or_else(|| name.clone())
    });
    let card = hub.read(&there, CARD_FILE, bar)?;
    if bundle.card_is_ours && card.is_some_and(|card| !String::from_utf8_lossy(&card).contains(MARK)) {
        eprintln!("the model card that is there was written by somebody else and stays");
        bundle.files.retain(|file| file.path != CARD_FILE);
    }
    let pushed = hub.push(&Push { name, private, revision, message, files: &bundle.files }, bar)?;
    if pushed.commit.is_none() {
        println!("{}: all of it is there already", pushed.url);
        return Ok(());
    }
    println!("pushed {} to {}", pushed.changed.join(", "), pushed.url);
    println!("next: eyas chat --adapter {there}");
    Ok(())
}

/// What goes to the hub.
#[derive(Debug)]
struct Bundle {
    files: Vec<PushFile>,
    card: String,
    /// Whether the card was written here, not found in the folder.
    card_is_ours: bool,
}

impl Bundle {
    fn new(output: &Path, name: &HubName, base_model: Option<&str>) -> Result<Self> {
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            if !output.join(file).is_file() {
                bail!(
                    "{}: there is no {file} in it; push takes the folder that a run wrote, or one of its checkpoints",
                    output.display()
                );
            }
        }
        let mut config = read_json(&output.join(CONFIG_FILE))?;
        let (base, revision) = public_base(&AdapterSettings::read(output)?.base_model, base_model)?;
        config["base_model_name_or_path"] = json!(base);
        config["revision"] = json!(revision);

        let recipe = match output.join(RECIPE_FILE) {
            path if path.is_file() => Some(public_recipe(Recipe::read(&path)?, &base, revision.as_deref())),
            _ => None,
        };
        let state = match output.join(TRAINER_STATE_FILE) {
            path if path.is_file() => {
                let state: TrainerState = serde_json::from_value(read_json(&path)?)
                    .with_context(|| format!("{} is not understood", path.display()))?;
                Some(state)
            }
            _ => None,
        };
        let rows = Some(output.join(rows::FILE)).filter(|path| path.is_file()).map(|path| read_json(&path));
        let rows = rows.transpose()?;
        let own = output.join(CARD_FILE);
        let card_is_ours = !own.is_file();
        let card = match card_is_ours {
            true => Card {
                name,
                base: (&base, revision.as_deref()),
                recipe: recipe.as_ref(),
                state: state.as_ref(),
                rows: rows.as_ref(),
            }
            .text(),
            false => fs::read_to_string(&own).with_context(|| own.display().to_string())?,
        };

        let bytes = |path: &str, text: String| PushFile {
            path: path.into(),
            contents: Contents::Bytes(text.into_bytes()),
        };
        let mut files = vec![bytes(CARD_FILE, card.clone()), bytes(CONFIG_FILE, rows::pretty(&config))];
        for file in as_they_are() {
            let path = output.join(file);
            if path.is_file() {
                files.push(PushFile { path: file.into(), contents: Contents::File(path) });
            }
        }
        if let Some(recipe) = &recipe {
            files.push(bytes(RECIPE_FILE, without_paths(&recipe.to_toml())));
        }
        Ok(Self { files, card, card_is_ours })
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// The base model and its revision as everybody knows them: folders of this machine are nobody else's.
fn public_base(named: &str, given: Option<&str>) -> Result<(String, Option<String>)> {
    if let Some(given) = given {
        let name = HubName::parse(given)
            .with_context(|| format!("--base-model {given}: owner/name[@revision] was expected"))?;
        return Ok(halves(&name, given));
    }
    if named == DEMO_MODEL {
        return Ok((DEMO_BASE.into(), None));
    }
    if let Some(found) = of_cache(Path::new(named)) {
        return Ok(found);
    }
    match HubName::parse(named).filter(|_| !Path::new(named).exists()) {
        Some(name) => Ok(halves(&name, named)),
        None => bail!(
            "the base model is `{named}`, which only this machine knows; say what it is on the hub with --base-model \
             OWNER/NAME"
        ),
    }
}

fn halves(name: &HubName, typed: &str) -> (String, Option<String>) {
    (name.id().to_owned(), typed.contains('@').then(|| name.revision().to_owned()))
}

/// A folder in the hub's cache: `.../models--owner--name/snapshots/<commit>`.
fn of_cache(path: &Path) -> Option<(String, Option<String>)> {
    let parts: Vec<&str> = path.components().filter_map(|part| part.as_os_str().to_str()).collect();
    let at = parts.iter().position(|part| part.starts_with("models--"))?;
    let id = parts[at].strip_prefix("models--")?.replacen("--", "/", 1);
    (*parts.get(at + 1)? == "snapshots").then_some(())?;
    let commit = (*parts.get(at + 2)?).to_owned();
    HubName::parse(&id).map(|name| (name.id().to_owned(), Some(commit)))
}

/// A recipe that others can use: with the names of the hub, and without folders of this machine.
fn public_recipe(mut recipe: Recipe, base: &str, revision: Option<&str>) -> Recipe {
    let revision = revision.map_or(String::new(), |revision| format!("@{revision}"));
    recipe.model.model_name_or_path = Some(format!("{base}{revision}"));
    let data = &mut recipe.data;
    for dataset in [&mut data.dataset, &mut data.eval_dataset].into_iter().flatten() {
        let is_public =
            *dataset == BUILTIN || HubName::parse(dataset).is_some_and(|_| !Path::new(dataset).exists());
        if !is_public {
            *dataset = last_part(dataset);
        }
    }
    recipe.training.output_dir = last_part(&recipe.training.output_dir);
    recipe.training.resume_from_checkpoint = ResumeFrom::Never;
    recipe
}

/// TOML whose values name no folder of this machine: of an absolute path the last part stays.
fn without_paths(text: &str) -> String {
    let line = |line: &str| -> String {
        let value = line.split_once(" = \"").and_then(|(key, value)| Some((key, value.strip_suffix('"')?)));
        match value {
            Some((key, value)) if value.starts_with(['/', '~']) || value.contains(":\\") => {
                format!("{key} = \"{}\"\n", last_part(value))
            }
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

fn last_part(path: &str) -> String {
    let mut parts = path.split(['/', '\\']).filter(|part| !part.is_empty());
    parts.next_back().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(base: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let adapter = json!({
            "base_model_name_or_path": base, "revision": null, "peft_type": "LORA", "r": 8,
            "target_modules": "all-linear",
        });
        write(CONFIG_FILE, &adapter.to_string());
        for file in [
            WEIGHTS_FILE,
            "tokenizer.json",
            "optimizer.safetensors",
            "eyas_state.json",
            "patients.jsonl",
            rows::FILE,
        ] {
            write(file, "{}");
        }
        let mut recipe = Recipe::default();
        recipe.model.model_name_or_path = Some(base.into());
        recipe.data.dataset = Some("/home/mei/clinic/patients.jsonl".into());
        recipe.training.output_dir = "/home/mei/runs/bot".into();
        write(RECIPE_FILE, &recipe.to_toml());
        fs::create_dir(folder.path().join("checkpoint-10")).unwrap();
        folder
    }

    fn bundle(base: &str, given: Option<&str>) -> Result<Bundle> {
        Bundle::new(output(base).path(), &HubName::parse("mei/bot").unwrap(), given)
    }

    fn text<'a>(bundle: &'a Bundle, path: &str) -> &'a str {
        let file = bundle.files.iter().find(|file| file.path == path).unwrap();
        let Contents::Bytes(bytes) = &file.contents else { panic!("{path} is a file") };
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn rows_and_moments_stay_and_so_do_folders_of_this_machine() {
        let bundle = bundle("owner/base", None).unwrap();
        let paths: Vec<&str> = bundle.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", RECIPE_FILE]);
        for path in [CARD_FILE, CONFIG_FILE, RECIPE_FILE] {
            let text = text(&bundle, path);
            assert!(!text.contains("/home/mei") && !text.contains("clinic"), "{text}");
        }
        assert!(text(&bundle, RECIPE_FILE).contains("dataset = \"patients.jsonl\""));
    }

    #[test]
    fn a_base_is_named_as_everybody_knows_it() {
        let base = |named: &str, given| {
            let config: Value = serde_json::from_str(text(&bundle(named, given)?, CONFIG_FILE))?;
            anyhow::Ok((config["base_model_name_or_path"].clone(), config["revision"].clone()))
        };
        assert_eq!(base("owner/base", None).unwrap(), (json!("owner/base"), Value::Null));
        assert_eq!(base("owner/base@v2", None).unwrap(), (json!("owner/base"), json!("v2")));
        assert_eq!(base(DEMO_MODEL, None).unwrap(), (json!(DEMO_BASE), Value::Null));
        let cached = "/home/mei/.cache/huggingface/hub/models--owner--the-base/snapshots/abc";
        assert_eq!(base(cached, None).unwrap(), (json!("owner/the-base"), json!("abc")));
        assert_eq!(base("/home/mei/model", Some("owner/base")).unwrap().0, json!("owner/base"));
        let message = base("/home/mei/model", None).unwrap_err().to_string();
        assert!(message.contains("--base-model OWNER/NAME"), "{message}");
    }

    #[test]
    fn a_card_in_the_folder_goes_as_it_is() {
        let folder = output("owner/base");
        fs::write(folder.path().join(CARD_FILE), "# mine").unwrap();
        let bundle = Bundle::new(folder.path(), &HubName::parse("mei/bot").unwrap(), None).unwrap();
        assert_eq!((text(&bundle, CARD_FILE), bundle.card_is_ours), ("# mine", false));
    }

    #[test]
    fn what_is_no_run_is_not_pushed() {
        let folder = tempfile::tempdir().unwrap();
        let message =
            Bundle::new(folder.path(), &HubName::parse("mei/bot").unwrap(), None).unwrap_err().to_string();
        assert!(message.contains(CONFIG_FILE) && message.contains("folder that a run wrote"), "{message}");
    }

    #[test]
    fn the_way_to_push_again_is_a_command() {
        let mut recipe = Recipe::default();
        recipe.training.output_dir = "runs/bot".into();
        recipe.training.hub_private_repo = true;
        assert_eq!(again(&recipe), "To push it: eyas push runs/bot bot --private");
        recipe.training.hub_model_id = Some("mei/bot".into());
        assert_eq!(again(&recipe), "To push it: eyas push runs/bot mei/bot --private");
    }
}
