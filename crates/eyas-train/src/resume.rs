//! What the result of a run depends on, and whether a checkpoint belongs to it.

use std::path::Path;

use eyas_backend::{Backend, MomentFormat};
use eyas_data::Example;
use eyas_model::Model;
use eyas_model::decoder::ProjectionKind;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::engine::on_replica;
use crate::recipe::Recipe;
use crate::replica::Replica;
use crate::{Error, Result};

/// Where things are, how they are shown, and how much memory they take: none of it changes the result.
const WITHOUT_EFFECT: [&str; 19] = [
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "per_device_eval_batch_size",
    "optim",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_steps",
    "gradient_checkpointing",
    "memory_budget",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "report_to",
    "logging_dir",
    "run_name",
    "wandb_project",
    "warmup_ratio",
];
/// Their effect is on the schedule, through the numbers of steps.
const OF_SCHEDULE: [&str; 3] = ["max_steps", "num_train_epochs", "warmup_steps"];

/// Everything that the bits of the result depend on, by name.
///
/// # Errors
/// When a device fails, or the replicas' weights are not the same.
pub(crate) fn describe<B: Backend>(
    replicas: &[Replica<'_, B>],
    recipe: &Recipe,
    rows: &[Example],
    max_steps: u64,
    warmup_steps: u64,
) -> Result<Map<String, Value>> {
    let mut run = Map::new();
    let digest = |(number, replica): (usize, &Replica<'_, B>)| {
        model_digest(replica.backend, replica.model).map_err(|error| on_replica(replicas, number, error))
    };
    let digests = replicas.iter().enumerate().map(digest).collect::<Result<Vec<_>>>()?;
    if let Some(other) = digests.iter().position(|digest| *digest != digests[0]) {
        let [first, other] = [0, other].map(|number| &replicas[number].label);
        return Err(Error::Replicas(format!("{other} holds other weights than {first}")));
    }
    run.insert("model".into(), json!(digests.first()));
    run.insert("rows".into(), json!(rows.len()));
    run.insert("rows_sha256".into(), json!(rows_digest(rows)));
    for (section, value) in [
        ("quantization", serde_json::to_value(&recipe.quantization)),
        ("lora", serde_json::to_value(&recipe.lora)),
        ("training", serde_json::to_value(&recipe.training)),
    ] {
        let Ok(Value::Object(keys)) = value else { continue };
        let keys = keys.into_iter().filter(|(key, _)| {
            section != "training"
                || !(WITHOUT_EFFECT.contains(&key.as_str()) || OF_SCHEDULE.contains(&key.as_str()))
        });
        run.extend(keys);
    }
    // Checkpoints from before there was a choice have 32.
    if recipe.training.optim.moments().format == MomentFormat::Blockwise8 {
        run.insert("optim_bits".into(), json!(8));
    }
    run.insert("max_steps".into(), json!(max_steps));
    run.insert("warmup_steps".into(), json!(warmup_steps));
    let mut names: Vec<String> = replicas.iter().map(|replica| replica.backend.name()).collect();
    names.sort();
    names.dedup();
    run.insert("device".into(), json!(names.join(", ")));
    // Checkpoints from before there was a choice have one.
    if replicas.len() > 1 {
        run.insert(DEVICES.into(), json!(replicas.len()));
    }
    Ok(run)
}

/// A digest of the weights as the operations see them: the first and last rows of the embedding, and the first row
/// of every linear layer, which no other model or quantisation shares.
fn model_digest<B: Backend>(backend: &B, model: &Model<B>) -> Result<String> {
    let decoder = model.decoder();
    let mut digest = Sha256::new();
    let mut buffer = Vec::new();
    let mut row = |weight: &B::Weight, row: usize| -> Result<()> {
        buffer.clear();
        backend.download_weight(weight, row..row + 1, &mut buffer)?;
        digest.update(bytemuck::cast_slice::<f32, u8>(&buffer));
        Ok(())
    };
    row(model.embedding(), 0)?;
    row(model.embedding(), decoder.vocab_size - 1)?;
    for block in model.blocks() {
        for kind in ProjectionKind::ALL {
            let projection = match kind {
                ProjectionKind::Qkv => &block.qkv,
                ProjectionKind::AttentionOut => &block.attention_out,
                ProjectionKind::MlpIn => &block.mlp_in,
                ProjectionKind::MlpOut => &block.mlp_out,
            };
            for part in &projection.parts {
                row(&part.weight, 0)?;
            }
        }
    }
    Ok(hex(digest))
}

fn rows_digest(rows: &[Example]) -> String {
    let mut digest = Sha256::new();
    for row in rows {
        digest.update((row.input_ids.len() as u64).to_le_bytes());
        digest.update(bytemuck::cast_slice::<u32, u8>(&row.input_ids));
        let mask: Vec<u8> = row.target_mask.iter().map(|&counts| counts.into()).collect();
        digest.update(&mask);
    }
    hex(digest)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many replicas a step is shared among; not there where it is one.
const DEVICES: &str = "devices";
/// Rows a micro-batch.
const BATCH: &str = "per_device_train_batch_size";
/// Micro-batches of a replica.
const ACCUMULATION: &str = "gradient_accumulation_steps";

/// Whether two runs have micro-batches of as many rows.
pub(crate) fn same_batch(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    a.get(BATCH) == b.get(BATCH)
}

/// Rows a step.
fn rows_per_step(run: &Map<String, Value>) -> Option<u64> {
    let devices = run.get(DEVICES).map_or(Some(1), Value::as_u64)?;
    [BATCH, ACCUMULATION].iter().try_fold(devices, |rows, key| rows.checked_mul(run.get(*key)?.as_u64()?))
}

/// Checks that a checkpoint belongs to a run. What may differ comes back as warnings.
pub(crate) fn compare(
    folder: &Path,
    saved: &Map<String, Value>,
    now: &Map<String, Value>,
) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let mut warnings = Vec::new();
    let same_rows = rows_per_step(saved).is_some() && rows_per_step(saved) == rows_per_step(now);
    let mut names: Vec<&String> = now.keys().collect();
    names.extend(saved.keys().filter(|name| !now.contains_key(*name)));
    for name in names {
        let (before, after) = (saved.get(name), now.get(name));
        if before == after {
            continue;
        }
        let unset = if name == DEVICES { "1" } else { "not set" };
        let show = |value: Option<&Value>| value.map_or(unset.into(), Value::to_string);
        let (before, after) = (show(before), show(after));
        match name.as_str() {
            "max_steps" | "warmup_steps" => warnings.push(format!(
                "{name} was {before} and is now {after}: the learning rate follows the new schedule from here on, so \
                 the result is not that of one run of these steps"
            )),
            BATCH if same_rows => warnings.push(format!(
                "{name} was {before} and is now {after}, with as many rows a step: from here on sums are taken in \
                 another order, and dropout draws other masks where there is any"
            )),
            DEVICES if same_rows && same_batch(saved, now) => warnings.push(format!(
                "the run began on {before} devices and goes on on {after}, with as many rows a step: from here on sums are \
                 taken in another order"
            )),
            DEVICES | ACCUMULATION if same_rows => {}
            "device" => warnings.push(format!(
                "the run began on {before} and goes on on {after}: the result may differ in its last bits"
            )),
            "optim_bits" => {
                differences.push("optim keeps its moments in 8 bits in one of them and in 32 in the other".into());
            }
            "model" => differences.push("the model's weights are others".into()),
            "rows_sha256" => differences.push("the rows, or how they are encoded, are others".into()),
            _ => differences.push(format!("{name} was {before} and is now {after}")),
        }
    }
    if differences.is_empty() {
        return Ok(warnings);
    }
    Err(Error::OtherRun {
        path: folder.into(),
        differences: differences.join("; "),
        advice: "go on with the old values, or start anew with another output_dir or overwrite_output_dir = true",
    })
}
