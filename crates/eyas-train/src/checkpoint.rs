//! Checkpoints: `checkpoint-<step>/`, laid out as Hugging Face's Trainer and PEFT do, written whole or not at all.
//!
//! | file | |
//! |---|---|
//! | `adapter_model.safetensors`, `adapter_config.json` | the adapter, which PEFT loads |
//! | `optimizer.safetensors` | `exp_avg.` and `exp_avg_sq.` before PEFT's tensor names, `f32`; of 8-bit moments |
//! | | bitsandbytes' `state1`, `absmax1`, `state2`, `absmax2` over the whole adapter; metadata `step` |
//! | `trainer_state.json` | progress and `log_history`, in Trainer's own format |
//! | `recipe.toml`, `tokenizer.json`, ... | what the caller adds |
//! | `eyas_state.json` | where the run stands, what it depends on, and the length and SHA-256 of all other files |
//!
//! The folder is filled under a temporary name beside its final one, flushed to the disk and renamed, so a crash at
//! any point leaves the checkpoints before it as they were.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use eyas_backend::HostMoments;
use eyas_backend::moments::{Blockwise8, MOMENT_BLOCK};
use eyas_checkpoint::{Checkpoint, TensorDtype, TensorView, write_atomic, write_safetensors};
use eyas_data::Position;
use eyas_model::adapter::matrices;
use eyas_model::{Decoder, LoraAdapter, LoraLayout};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::loss_scale::LossScale;
use crate::optimizer::OptimizerState;
use crate::state::TrainerState;
use crate::{Error, Result};

/// The optimiser's moments.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Hugging Face's state.
pub const TRAINER_STATE_FILE: &str = "trainer_state.json";
/// Our own state, and the list of files.
pub const PROGRESS_FILE: &str = "eyas_state.json";
const FORMAT: u32 = 1;
const PREFIX: &str = "checkpoint-";
/// Folders that are being filled or emptied; whatever bears such a name is nobody's.
const TEMPORARY_PREFIX: &str = ".checkpoint-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// A file that the caller adds to every checkpoint: the recipe, the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraFile {
    /// Its name in the folder.
    pub name: String,
    /// Its bytes.
    pub contents: Vec<u8>,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps taken.
    pub global_step: u64,
    /// The row that comes next. The order of rows follows from the seed and the epoch, so no generator has a state.
    pub position: Position,
    /// Micro-batches done in all: what dropout counts by.
    pub micro_batches: u32,
    /// Tokens seen.
    pub num_tokens: u64,
    /// Rows seen.
    pub num_rows: u64,
    /// Sum of the losses since the last log.
    pub interval_loss: f64,
    /// Steps since the last log.
    pub interval_steps: u64,
    /// Sum of the losses of all steps.
    pub total_loss: f64,
    /// Seconds of training.
    pub train_seconds: f64,
    /// Rows of logits at a time, which a resumed run keeps: sums are rounded alike then.
    pub logit_rows: usize,
    /// Rows a micro-batch, where memory allowed fewer than the recipe asks for. A resumed run keeps them: dropout counts
    /// micro-batches, and sums go by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_rows: Option<usize>,
    /// What the loss is multiplied by, in half precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

impl Progress {
    /// Updates of the optimiser: the steps, less those that loss scaling left out.
    pub fn updates(&self) -> u64 {
        self.global_step.saturating_sub(self.loss_scale.map_or(0, |scale| scale.skipped))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    progress: Progress,
    run: Map<String, Value>,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

/// What a checkpoint holds.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub adapter: &'a LoraAdapter,
    pub optimizer: &'a OptimizerState,
    pub state: &'a TrainerState,
    pub progress: &'a Progress,
    /// What the result depends on.
    pub run: &'a Map<String, Value>,
    pub extra: &'a [ExtraFile],
}

/// A checkpoint whose files are whole.
#[derive(Debug)]
pub(crate) struct Opened {
    pub folder: PathBuf,
    pub progress: Progress,
    /// What its result depends on.
    pub run: Map<String, Value>,
}

/// What a run goes on from.
#[derive(Debug)]
pub(crate) struct Restored {
    pub params: Vec<f32>,
    pub optimizer: OptimizerState,
    pub state: TrainerState,
}

/// The folder of a step's checkpoint.
pub(crate) fn folder(output: &Path, step: u64) -> PathBuf {
    output.join(format!("{PREFIX}{step}"))
}

/// Writes the checkpoint of a step and returns its folder.
pub(crate) fn write(output: &Path, contents: &Contents<'_>) -> Result<PathBuf> {
    let step = contents.progress.global_step;
    let target = folder(output, step);
    fill_and_rename(output, &target, contents).map_err(|reason| {
        let last = match find_last(output).map(|found| found.newest) {
            Ok(Some(folder)) => format!("the last whole checkpoint is {}", folder.display()),
            _ => "there is no earlier checkpoint".into(),
        };
        Error::Save { step, reason, last }
    })?;
    Ok(target)
}

fn fill_and_rename(output: &Path, target: &Path, contents: &Contents<'_>) -> Result<(), String> {
    let told = |path: &Path| {
        let path = path.to_path_buf();
        move |error: io::Error| format!("{}: {error}{}", path.display(), advice(&error))
    };
    fs::create_dir_all(output).map_err(told(output))?;
    let folder = temporary(output).map_err(told(output))?;
    fill(folder.path(), contents).map_err(|error| error.to_string())?;
    sync_folder(folder.path());
    if target.exists() {
        // An earlier run's, or a damaged one that was passed over: the one that replaces it is complete.
        discard(output, target).map_err(told(target))?;
    }
    fs::rename(folder.path(), target).map_err(told(target))?;
    let _ = folder.keep();
    sync_folder(output);
    Ok(())
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; the disk is full: free some space or choose another output_dir"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose an output_dir that you may write to"
        }
        _ => "",
    }
}

fn temporary(output: &Path) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX).suffix(TEMPORARY_SUFFIX);
    // Readable as any folder that the user makes (less the umask), not private as temporary ones are.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(output)
}

/// A rename is durable once its folder is on the disk. Some file systems refuse to flush a folder; the new name is
/// in place all the same.
fn sync_folder(folder: &Path) {
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    #[cfg(not(unix))]
    let _ = folder;
}

fn fill(folder: &Path, contents: &Contents<'_>) -> Result<()> {
    contents.adapter.save(folder)?;
    save_optimizer(&folder.join(OPTIMIZER_FILE), &contents.adapter.layout, contents.optimizer)?;
    let text = contents.state.to_json();
    write_atomic(&folder.join(TRAINER_STATE_FILE), |file| file.write_all(text.as_bytes()))?;
    write_extra(folder, contents.extra)?;
    let manifest = Manifest {
        format: FORMAT,
        progress: contents.progress.clone(),
        run: contents.run.clone(),
        files: records(folder)?,
    };
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
    write_atomic(&folder.join(PROGRESS_FILE), |file| file.write_all(text.as_bytes()))?;
    Ok(())
}

/// Writes the caller's files into a folder.
pub(crate) fn write_extra(folder: &Path, extra: &[ExtraFile]) -> Result<()> {
    for ExtraFile { name, contents } in extra {
        write_atomic(&folder.join(name), |file| file.write_all(contents))?;
    }
    Ok(())
}

/// bitsandbytes' names of an 8-bit moment's codes and scales.
const BLOCKWISE_NAMES: [[&str; 2]; 2] = [["state1", "absmax1"], ["state2", "absmax2"]];

fn save_optimizer(path: &Path, layout: &LoraLayout, state: &OptimizerState) -> Result<()> {
    let mut named: Vec<(String, Vec<usize>, TensorDtype, &[u8])> = Vec::new();
    match &state.moments {
        HostMoments::F32(moments) => {
            for (moment, values) in ["exp_avg", "exp_avg_sq"].into_iter().zip(moments) {
                named.extend(matrices(layout).map(|(name, range, shape)| {
                    let data = bytemuck::cast_slice(&values[range]);
                    (format!("{moment}.{name}"), shape.to_vec(), TensorDtype::F32, data)
                }));
            }
        }
        HostMoments::Blockwise8(moments) => {
            for ([codes_name, absmax_name], Blockwise8 { codes, absmax }) in
                BLOCKWISE_NAMES.into_iter().zip(moments)
            {
                let scales = bytemuck::cast_slice(absmax);
                named.push((codes_name.into(), vec![codes.len()], TensorDtype::U8, codes));
                named.push((absmax_name.into(), vec![absmax.len()], TensorDtype::F32, scales));
            }
        }
    }
    let views: Vec<TensorView<'_>> = named
        .iter()
        .map(|(name, shape, dtype, data)| TensorView { name, shape, dtype: *dtype, data })
        .collect();
    let metadata = BTreeMap::from([("step".to_owned(), state.step.to_string())]);
    write_safetensors(path, &views, &metadata)?;
    Ok(())
}

/// The length and digest of every file in a folder but the list itself.
fn records(folder: &Path) -> Result<BTreeMap<String, FileRecord>> {
    let fail = |source| Error::Io { path: folder.into(), source };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != PROGRESS_FILE {
            files.insert(name, record(&entry.path()).map_err(fail)?);
        }
    }
    Ok(files)
}

fn record(path: &Path) -> io::Result<FileRecord> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                digest.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileRecord { bytes, sha256 })
}

/// The checkpoints of an output folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The newest whole one.
    pub newest: Option<PathBuf>,
    /// Newer ones that are damaged, and what is wrong with each.
    pub damaged: Vec<(PathBuf, String)>,
}

/// Finds the newest whole checkpoint in an output folder. A folder that does not exist holds none.
///
/// # Errors
/// When the folder cannot be read.
pub fn find_last(output: &Path) -> Result<Found> {
    let mut found = Found::default();
    for (_, folder) in list(output)?.into_iter().rev() {
        match verify(&folder) {
            Ok(_) => {
                found.newest = Some(folder);
                break;
            }
            Err(reason) => found.damaged.push((folder, reason)),
        }
    }
    Ok(found)
}

/// The folders that are checkpoints by their name, in the order of their steps.
pub(crate) fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let fail = |source| Error::Io { path: output.into(), source };
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let step =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|step| step.parse().ok());
        if let Some(step) = step {
            folders.push((step, entry.path()));
        }
    }
    folders.sort();
    Ok(folders)
}

/// Checks every file of a checkpoint against the list. The error says what is wrong.
fn verify(folder: &Path) -> Result<Manifest, String> {
    let path = folder.join(PROGRESS_FILE);
    let text =
        fs::read_to_string(&path).map_err(|error| format!("{PROGRESS_FILE} cannot be read: {error}"))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|error| format!("{PROGRESS_FILE} is not valid: {error}"))?;
    if manifest.format != FORMAT {
        return Err(format!("its format is {}; this version reads {FORMAT}", manifest.format));
    }
    for (name, expected) in &manifest.files {
        let found = record(&folder.join(name)).map_err(|error| format!("{name} cannot be read: {error}"))?;
        if found.bytes != expected.bytes {
            return Err(format!("{name} has {} bytes instead of {}", found.bytes, expected.bytes));
        }
        if found != *expected {
            return Err(format!("{name} has been changed: its SHA-256 is not the one recorded"));
        }
    }
    for name in [OPTIMIZER_FILE, TRAINER_STATE_FILE] {
        if !manifest.files.contains_key(name) {
            return Err(format!("{name} is missing from its list of files"));
        }
    }
    Ok(manifest)
}

/// Opens a checkpoint after checking all its files.
pub(crate) fn open(folder: &Path) -> Result<Opened> {
    let damaged = |reason: String| Error::Checkpoint { path: folder.into(), reason };
    let Manifest { progress, run, .. } = verify(folder).map_err(damaged)?;
    Ok(Opened { folder: folder.into(), progress, run })
}

impl Opened {
    /// Reads what a run with an adapter of this layout goes on from.
    pub(crate) fn read(&self, decoder: &Decoder, layout: &LoraLayout) -> Result<Restored> {
        let folder = &self.folder;
        let damaged = |reason: String| Error::Checkpoint { path: folder.clone(), reason };
        let path = folder.join(TRAINER_STATE_FILE);
        let text = fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let state: TrainerState =
            serde_json::from_str(&text).map_err(|error| damaged(format!("{TRAINER_STATE_FILE}: {error}")))?;
        let adapter = LoraAdapter::load(folder, decoder)?;
        if adapter.layout.targets() != layout.targets() {
            return Err(damaged("its adapter has other layers or ranks than the recipe asks for".into()));
        }
        let optimizer = read_optimizer(&folder.join(OPTIMIZER_FILE), layout, self.progress.updates())?;
        Ok(Restored { params: adapter.params, optimizer, state })
    }
}

/// `step` counts the updates, the first included.
fn read_optimizer(path: &Path, layout: &LoraLayout, step: u64) -> Result<OptimizerState> {
    let file = Checkpoint::open(path)?;
    let step = u32::try_from(step)
        .map_err(|_| Error::Checkpoint { path: path.into(), reason: format!("step {step} is impossible") })?;
    let check = |name: &str, shape: &[usize], dtype: TensorDtype| -> Result<()> {
        let found = file.info(name)?;
        if found.shape == shape && found.dtype == dtype {
            return Ok(());
        }
        let reason = format!(
            "`{name}` has the shape {:?} of {:?}; this adapter needs {shape:?} of {dtype:?}",
            found.shape, found.dtype
        );
        Err(Error::Checkpoint { path: path.into(), reason })
    };
    let parameters = layout.parameters();
    if file.contains(BLOCKWISE_NAMES[0][0]) {
        let read = |[codes, absmax]: [&str; 2]| -> Result<Blockwise8> {
            check(codes, &[parameters], TensorDtype::U8)?;
            check(absmax, &[parameters.div_ceil(MOMENT_BLOCK)], TensorDtype::F32)?;
            let codes = file.read_bytes(codes)?.into_owned();
            let mut scales = Vec::new();
            file.read_f32(absmax, &mut scales)?;
            Ok(Blockwise8 { codes, absmax: scales })
        };
        let [first, second] = BLOCKWISE_NAMES;
        return Ok(OptimizerState { moments: HostMoments::Blockwise8([read(first)?, read(second)?]), step });
    }
    let read = |moment: &str| -> Result<Vec<f32>> {
        let mut values = vec![0.0; parameters];
        let mut buffer = Vec::new();
        for (name, range, shape) in matrices(layout) {
            let name = format!("{moment}.{name}");
            check(&name, &shape, TensorDtype::F32)?;
            file.read_f32(&name, &mut buffer)?;
            values[range].copy_from_slice(&buffer);
        }
        Ok(values)
    };
    Ok(OptimizerState { moments: HostMoments::F32([read("exp_avg")?, read("exp_avg_sq")?]), step })
}

/// Removes the oldest checkpoints beyond a limit. `keep` is never among them.
pub(crate) fn rotate(output: &Path, limit: usize, keep: &Path) -> Result<()> {
    let mut older: Vec<PathBuf> = list(output)?.into_iter().map(|(_, folder)| folder).collect();
    older.retain(|folder| folder != keep);
    let excess = (older.len() + 1).saturating_sub(limit);
    for folder in &older[..excess.min(older.len())] {
        discard(output, folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
    }
    Ok(())
}

/// Removes every checkpoint of an output folder.
pub(crate) fn remove_all(output: &Path) -> Result<()> {
    for (_, folder) in list(output)? {
        discard(output, &folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
    }
    Ok(())
}

/// Removes a checkpoint: renamed first, so that none is ever seen half removed.
fn discard(output: &Path, folder: &Path) -> io::Result<()> {
    let grave = temporary(output)?;
    fs::rename(folder, grave.path().join("old"))?;
    grave.close()
}

/// Removes what crashed runs left half written.
pub(crate) fn clean(output: &Path) {
    let Ok(entries) = fs::read_dir(output) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let temporary = name
            .to_str()
            .is_some_and(|name| name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX));
        if temporary {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
