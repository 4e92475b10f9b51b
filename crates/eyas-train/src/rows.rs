//! From a recipe to the rows of a run: read, cleaned, split by question, encoded.

use std::fmt;
use std::path::{Path, PathBuf};

use eyas_data::dataset::{DatasetOptions, Row};
use eyas_data::split::{Split, split};
use eyas_data::{
    ChatTemplate, EncodeOptions, Encoder, Example, LoadOptions, PromptFormat, Report, Sample, Tokenizer,
};

use crate::recipe::{PromptStyle, Recipe};
use crate::{Error, Result};

/// The value of `dataset` that stands for the conversations inside the program.
pub const BUILTIN: &str = "builtin";

/// The files that a recipe's names of rows stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowFiles {
    /// Those of `dataset`, in order; not looked at where it is built in.
    pub dataset: Vec<PathBuf>,
    /// Those of `eval_dataset`, if it is set.
    pub eval_dataset: Vec<PathBuf>,
}

/// The rows of a run.
#[derive(Clone, Debug)]
pub struct Rows {
    /// To train on.
    pub train: Vec<Example>,
    /// Held out.
    pub eval: Vec<Example>,
    /// What became of the rows to train on, and of all rows where the held-out ones are a share of them.
    pub train_report: Report,
    /// What became of the rows held out.
    pub eval_report: Report,
    /// How they were split; `None` where they come from two files.
    pub split: Option<Split>,
    /// How turns are rendered; generation should render them alike.
    pub format: Option<PromptFormat>,
}

impl Rows {
    /// Reads the rows that a recipe asks for. `template` is the model's chat template, if it has one.
    ///
    /// # Errors
    /// When a file cannot be read, a row is unusable, or none is left.
    pub fn load(recipe: &Recipe, tokenizer: &Tokenizer, template: Option<ChatTemplate>) -> Result<Self> {
        let data = &recipe.data;
        for (key, name) in [("dataset", &data.dataset), ("eval_dataset", &data.eval_dataset)] {
            check_file(recipe, key, name.as_ref())?;
        }
        let files = |name: &Option<String>| name.iter().map(PathBuf::from).collect();
        let files = RowFiles { dataset: files(&data.dataset), eval_dataset: files(&data.eval_dataset) };
        Self::load_files(recipe, &files, tokenizer, template)
    }

    /// The same where the recipe's names stand for other files, such as those of a data set on the hub.
    ///
    /// # Errors
    /// As [`Rows::load`].
    pub fn load_files(
        recipe: &Recipe,
        files: &RowFiles,
        tokenizer: &Tokenizer,
        template: Option<ChatTemplate>,
    ) -> Result<Self> {
        let data = &recipe.data;
        let Some(dataset) = &data.dataset else {
            return Err(recipe.wrong("dataset", "is not set; name a file of rows, or \"builtin\""));
        };
        let options = LoadOptions {
            dataset: DatasetOptions {
                dataset_text_field: data.dataset_text_field.clone(),
                ..DatasetOptions::default()
            },
            anonymise: data.anonymise,
            ..LoadOptions::default()
        };
        let (rows, mut train_report) = load(dataset, &files.dataset, &options)?;
        let (train, eval, mut eval_report, divided) = match &data.eval_dataset {
            Some(name) => {
                let (eval, report) = load(name, &files.eval_dataset, &options)?;
                (rows, eval, report, None)
            }
            None => {
                let divided = split(&rows, data.eval_share, recipe.training.seed)?;
                let pick =
                    |places: &[usize]| places.iter().map(|&place| rows[place].clone()).collect::<Vec<_>>();
                (pick(&divided.train), pick(&divided.eval), Report::default(), Some(divided))
            }
        };
        let format = format(recipe, template, &train)?;
        let encode_options = EncodeOptions {
            max_length: Some(data.max_length),
            completion_only_loss: data.completion_only_loss,
            assistant_only_loss: data.assistant_only_loss,
            ..EncodeOptions::default()
        };
        let encoder = Encoder::new(tokenizer, format.clone(), encode_options)?;
        let eval_name = data.eval_dataset.as_deref().unwrap_or(dataset);
        let train = encode(&encoder, dataset, &train, &mut train_report)?;
        let eval = encode(&encoder, eval_name, &eval, &mut eval_report)?;
        if train.is_empty() {
            return Err(Error::Rows(format!("{dataset}: no row is left to train on\n{train_report}")));
        }
        Ok(Self { train, eval, train_report, eval_report, split: divided, format })
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.split {
            Some(split) => write!(f, "{split}\n{}", self.train_report),
            None => write!(f, "{}\nheld out:\n{}", self.train_report, self.eval_report),
        }
    }
}

/// A name on the hub is told from a file that is not there.
fn check_file(recipe: &Recipe, key: &str, name: Option<&String>) -> Result<()> {
    let Some(name) = name.filter(|name| *name != BUILTIN && !Path::new(name).exists()) else { return Ok(()) };
    let on_hub = name.split('/').count() == 2 && Path::new(name).extension().is_none();
    let reason = if on_hub {
        "looks like the name of a data set on the hub: download its file, and give that file's path"
    } else {
        "is no file here; give the path of a JSONL, JSON, Parquet or CSV file, or \"builtin\""
    };
    Err(recipe.wrong(key, format!("is \"{name}\", which {reason}")))
}

fn load(dataset: &str, files: &[PathBuf], options: &LoadOptions) -> Result<(Vec<Row>, Report)> {
    Ok(if dataset == BUILTIN {
        eyas_data::builtin::rows(options)?
    } else {
        eyas_data::load_all(files, options)?
    })
}

/// Without a chat template texts and prompts stay as they are, and only lists of messages need a form.
fn format(recipe: &Recipe, template: Option<ChatTemplate>, rows: &[Row]) -> Result<Option<PromptFormat>> {
    let of_template = |template: ChatTemplate| PromptFormat::ChatTemplate(Box::new(template));
    Ok(match (recipe.data.prompt_format, template) {
        (PromptStyle::HumanAssistant, _) => Some(PromptFormat::human_assistant()),
        (PromptStyle::Auto | PromptStyle::ChatTemplate, Some(template)) => Some(of_template(template)),
        (PromptStyle::ChatTemplate, None) => {
            return Err(recipe.wrong(
                "prompt_format",
                "is \"chat_template\", but the model has none; use \"human_assistant\" or \"auto\"",
            ));
        }
        (PromptStyle::Auto, None) => {
            let has_turns = rows.iter().any(|row| matches!(row.sample, Sample::Chat { .. }));
            has_turns.then(PromptFormat::human_assistant)
        }
    })
}

fn encode(encoder: &Encoder<'_>, name: &str, rows: &[Row], report: &mut Report) -> Result<Vec<Example>> {
    let encoded = encoder.encode_all(rows.iter().map(|row| &row.sample), report);
    let (examples, _) =
        encoded.map_err(|(place, error)| Error::Rows(format!("{name}:{}: {error}", rows[place].at)))?;
    Ok(examples)
}
