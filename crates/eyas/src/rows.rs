//! From the recipe's names of rows to rows, and what is told of them beside an adapter.

use std::path::PathBuf;

use anyhow::Result;
use eyas_train::{BUILTIN, ExtraFile, Recipe, RowFiles, Rows};
use serde_json::{Value, json};

use crate::session::Files;
use crate::transfer::TransferBar;

/// The file beside an adapter that says how many rows it learned from.
pub const FILE: &str = "rows.json";

/// Reads the rows that a recipe asks for; names on the hub are fetched.
///
/// # Errors
/// When a file or a data set is nowhere, a row is unusable, or none is left.
pub fn load(recipe: &Recipe, files: &Files) -> Result<Rows> {
    let row_files = RowFiles {
        dataset: locate(recipe.data.dataset.as_deref())?,
        eval_dataset: locate(recipe.data.eval_dataset.as_deref())?,
    };
    Ok(Rows::load_files(recipe, &row_files, &files.tokenizer, files.template.clone())?)
}

fn locate(name: Option<&str>) -> Result<Vec<PathBuf>> {
    let Some(name) = name.filter(|name| *name != BUILTIN) else { return Ok(Vec::new()) };
    let found = eyas_hub::locate_dataset(name, &TransferBar::fetching())?;
    if found.files != [PathBuf::from(name)] {
        eprintln!("{}", found.report);
    }
    Ok(found.files)
}

/// What the model card tells of the rows, and on how many devices they were learned from.
pub fn summary(recipe: &Recipe, rows: &Rows, devices: usize) -> ExtraFile {
    let tokens: usize = rows.train.iter().map(|row| row.input_ids.len()).sum();
    let summary = json!({
        "dataset": recipe.data.dataset,
        "train_rows": rows.train.len(),
        "eval_rows": rows.eval.len(),
        "train_tokens": tokens,
        "devices": devices,
    });
    ExtraFile { name: FILE.into(), contents: pretty(&summary).into_bytes() }
}

/// JSON as it is written beside an adapter.
pub fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
