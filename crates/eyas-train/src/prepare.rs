//! What is settled before a run: whether device, rows and recipe fit together, how large a micro-batch gets, and
//! where the run starts.

use std::path::{Path, PathBuf};

use eyas_backend::{Backend, FlatBatch};
use eyas_data::{Example, Sampler, eval_batches};
use eyas_model::Model;
use serde_json::{Map, Value};

use crate::checkpoint::{self, Opened};
use crate::recipe::{Recipe, ResumeFrom, Training};
use crate::replica::Replica;
use crate::resume::same_batch;
use crate::room::Share;
use crate::{Error, Result};

/// Checks that the replicas go together, and compute in the type that the recipe asks for.
pub(crate) fn check_replicas<B: Backend>(replicas: &[Replica<'_, B>], recipe: &Recipe) -> Result<()> {
    let Some(first) = replicas.first() else {
        return Err(Error::Replicas("there is no device to train on".into()));
    };
    for Replica { backend, model, label } in replicas {
        let dtype = backend.compute_dtype();
        if dtype != first.backend.compute_dtype() {
            let reason = format!("{} computes in {:?}", first.label, first.backend.compute_dtype());
            return Err(Error::Replicas(format!(
                "{label} computes in {dtype:?} and {reason}: take cards of one kind"
            )));
        }
        if model.decoder() != first.model.decoder() || model.positions() != first.model.positions() {
            return Err(Error::Replicas(format!("{label} holds another model than {}", first.label)));
        }
    }
    match recipe.compute_dtype() {
        Some(dtype) if dtype != first.backend.compute_dtype() => Err(Error::Recipe {
            place: "recipe".into(),
            reason: format!(
                "activations are asked for in {dtype:?}, but {} computes in {:?}; set bf16 = false, fp16 = false and \
                 bnb_4bit_compute_dtype = \"auto\"",
                first.backend.name(),
                first.backend.compute_dtype()
            ),
        }),
        _ => Ok(()),
    }
}

/// Checks that the model can read the rows.
pub(crate) fn check_rows<B: Backend>(model: &Model<B>, rows: &[Example]) -> Result<()> {
    let vocab = model.decoder().vocab_size;
    for (place, row) in rows.iter().enumerate() {
        let refuse =
            |reason: String| Err(Error::Rows(format!("row {} of the encoded rows {reason}", place + 1)));
        if row.input_ids.len() > model.positions() {
            return refuse(format!(
                "has {} tokens; the model was loaded for {}: lower max_length",
                row.input_ids.len(),
                model.positions()
            ));
        }
        if let Some(id) = row.input_ids.iter().find(|&&id| id as usize >= vocab) {
            return refuse(format!(
                "has the token {id}; the model knows {vocab}: is the tokenizer another model's?"
            ));
        }
        if row.target_tokens() == 0 {
            return refuse("has no token to be learned".into());
        }
    }
    Ok(())
}

/// The largest micro-batch of a run, in each respect.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Largest {
    pub tokens: usize,
    pub rows: usize,
    pub targets: usize,
}

impl Largest {
    /// The order of rows is known for every epoch beforehand, so this is exact, and nothing larger ever comes.
    pub(crate) fn of(
        train: &[Example],
        sampler: &Sampler,
        batch: usize,
        micro_batches: usize,
        epochs: u64,
    ) -> Self {
        let mut largest = Self::default();
        for epoch in 0..epochs {
            for step in sampler.epoch(epoch).chunks(batch.saturating_mul(micro_batches)) {
                for rows in step.chunks(batch) {
                    let sum = |count: fn(&Example) -> usize| {
                        rows.iter().map(|&row| count(&train[row as usize])).sum::<usize>()
                    };
                    largest.tokens = largest.tokens.max(sum(|row| row.input_ids.len()));
                    largest.targets = largest.targets.max(sum(Example::target_tokens));
                    largest.rows = largest.rows.max(rows.len());
                }
            }
        }
        largest
    }
}

/// The batches of an evaluation, of at most `batch` rows and `max_tokens` tokens.
pub(crate) fn within(eval: &[Example], batch: usize, max_tokens: usize) -> Result<Vec<FlatBatch>> {
    let mut lengths: Vec<usize> = eval.iter().map(|example| example.input_ids.len()).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    // The first batch has the longest rows.
    let mut tokens = 0;
    let fitting = lengths.iter().take(batch).take_while(|&&length| {
        tokens += length;
        tokens <= max_tokens
    });
    let batch = fitting.count().max(1);
    Ok(eval_batches(eval, batch)?)
}

/// The micro-batches that a run goes on with: those that it was stopped with, unless the recipe has others by now.
pub(crate) fn share(opened: &Opened, run: &Map<String, Value>, asked: Share) -> Result<Share> {
    match opened.progress.micro_batch_rows {
        Some(rows) if same_batch(&opened.run, run) => {
            asked.with_batch(rows).ok_or_else(|| Error::Checkpoint {
                path: opened.folder.clone(),
                reason: format!(
                    "its micro-batches of {rows} rows do not make up the {} of the run",
                    asked.batch
                ),
            })
        }
        _ => Ok(asked),
    }
}

/// Where the run starts, if not at the beginning.
pub(crate) fn starting_checkpoint(
    output: &Path,
    training: &Training,
    warnings: &mut Vec<String>,
) -> Result<Option<PathBuf>> {
    match &training.resume_from_checkpoint {
        ResumeFrom::Folder(folder) => Ok(Some(folder.into())),
        ResumeFrom::Never => {
            let newest = checkpoint::list(output)?.pop();
            match newest {
                Some((_, folder)) if !training.overwrite_output_dir => {
                    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    Err(Error::OutputInUse { path: output.into(), checkpoint: name })
                }
                _ => Ok(None),
            }
        }
        ResumeFrom::Last => {
            let found = checkpoint::find_last(output)?;
            for (folder, reason) in &found.damaged {
                let next = match &found.newest {
                    Some(newest) => format!("the run goes on from {}", newest.display()),
                    None => "there is no other, so the run starts at the beginning".into(),
                };
                warnings.push(format!("{} is damaged and passed over: {reason}; {next}", folder.display()));
            }
            if found.newest.is_none() && found.damaged.is_empty() {
                warnings.push(format!(
                    "{} holds no checkpoint; the run starts at the beginning",
                    output.display()
                ));
            }
            Ok(found.newest)
        }
    }
}
