//! Metrics for the programs that people watch runs with: TensorBoard, Weights & Biases.
//!
//! A [`Reporting`] stands between a run and its observer, so the loop knows nothing of it. Whatever is written follows
//! from `log_history`: a run that is resumed without its earlier files has them written anew.

mod protobuf;
mod tensorboard;
mod wandb;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use eyas_model::Decoder;
use serde_json::{Map, Value, json};

use crate::events::{Ending, Event, Observer, Outcome};
use crate::recipe::{Recipe, Reporter};
use crate::state::{LogEntry, TrainerState};
use crate::{Error, Result};

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Fresh,
    /// At a checkpoint.
    Resumed,
}

/// What is said of a run beside its metrics.
struct Run<'a> {
    recipe: &'a Recipe,
    decoder: &'a Decoder,
    state: &'a TrainerState,
    origin: Origin,
}

impl<'a> Run<'a> {
    /// What was logged from a step on.
    fn entries_from(&self, step: u64) -> impl Iterator<Item = &'a LogEntry> {
        self.state.log_history.iter().filter(move |entry| step_of(entry) >= step)
    }

    /// Every key of the recipe that has a value; keys are unique across sections.
    fn settings(&self) -> Map<String, Value> {
        let Ok(Value::Object(sections)) = serde_json::to_value(&**self.recipe) else { return Map::new() };
        let keys = sections.into_iter().filter_map(|(_, keys)| match keys {
            Value::Object(keys) => Some(keys),
            _ => None,
        });
        keys.flatten().filter(|(_, value)| !value.is_null()).collect()
    }

    /// The base's shape, under the names of `config.json`.
    fn model(&self) -> Map<String, Value> {
        let decoder = self.decoder;
        let values = json!({
            "family": decoder.family,
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.mlp.intermediate_size,
            "num_hidden_layers": decoder.blocks(),
            "num_attention_heads": decoder.attention.layout.heads,
            "num_key_value_heads": decoder.attention.layout.kv_heads,
            "head_dim": decoder.attention.layout.head_dim,
            "tie_word_embeddings": decoder.tie_word_embeddings,
            "num_parameters": decoder.parameters(),
        });
        if let Value::Object(values) = values { values } else { Map::new() }
    }
}

/// Writes metrics in one program's format.
trait MetricsWriter {
    /// Writes an entry of `log_history`.
    fn logged(&mut self, entry: &LogEntry) -> Result<()>;
    /// What the program is to be pointed at.
    fn place(&self) -> &Path;
    /// Writes how the run ended, by a process's exit code, and flushes to the disk.
    fn close(&mut self, exit_code: u8) -> Result<()>;
}

/// An observer that also writes metrics, and passes every event on.
pub(crate) struct Reporting<'o> {
    inner: &'o mut dyn Observer,
    writers: Vec<(Reporter, Box<dyn MetricsWriter>)>,
}

impl<'o> Reporting<'o> {
    /// Opens what the recipe asks for.
    ///
    /// # Errors
    /// When a file cannot be written: better before the first step than after it.
    pub(crate) fn open(
        inner: &'o mut dyn Observer,
        recipe: &Recipe,
        decoder: &Decoder,
        state: &TrainerState,
    ) -> Result<Self> {
        let origin = if state.global_step == 0 { Origin::Fresh } else { Origin::Resumed };
        let run = Run { recipe, decoder, state, origin };
        let open = |&reporter: &Reporter| -> Result<(Reporter, Box<dyn MetricsWriter>)> {
            Ok(match reporter {
                Reporter::Tensorboard => (reporter, Box::new(tensorboard::EventFile::open(&run)?)),
                Reporter::Wandb => (reporter, Box::new(wandb::RunLog::open(&run)?)),
            })
        };
        let writers = recipe.training.report_to.reporters().iter().map(open).collect::<Result<_>>()?;
        Ok(Self { inner, writers })
    }

    /// Ends every writer, telling how the run ended.
    pub(crate) fn close(mut self, result: &Result<Outcome>) {
        let exit_code = match result {
            Ok(outcome) if outcome.ending == Ending::Finished => 0,
            Ok(_) => 130,
            Err(_) => 1,
        };
        self.each(|writer| writer.close(exit_code));
    }

    /// Has every writer write. One that cannot is given up with a warning: hours of training are worth more than
    /// their curves, and `trainer_state.json` has all of them.
    fn each(&mut self, mut write: impl FnMut(&mut dyn MetricsWriter) -> Result<()>) {
        let Self { inner, writers } = self;
        writers.retain_mut(|(reporter, writer)| match write(&mut **writer) {
            Ok(()) => true,
            Err(error) => {
                inner.event(&Event::Warning(&format!(
                    "metrics for {} are written no more: {error}; the run goes on, and every metric is in \
                     trainer_state.json",
                    reporter.name()
                )));
                false
            }
        });
    }
}

impl Observer for Reporting<'_> {
    fn event(&mut self, event: &Event<'_>) {
        self.inner.event(event);
        match event {
            Event::Started(_) => {
                for (reporter, writer) in &self.writers {
                    self.inner.event(&Event::Reporting { reporter: *reporter, folder: writer.place() });
                }
            }
            Event::Logged(entry) => self.each(|writer| writer.logged(entry)),
            _ => {}
        }
    }
}

/// A metric's name as transformers' callbacks have it: `eval_loss` is `eval/loss`, and what is not of an evaluation is
/// of the training.
fn tag(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(rest) => format!("eval/{rest}"),
        None => format!("train/{name}"),
    }
}

/// The step of an entry.
fn step_of(entry: &LogEntry) -> u64 {
    entry.get("step").and_then(Value::as_u64).unwrap_or_default()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The paths in a folder; none where there is no folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |source| Error::Io { path: folder.into(), source };
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(fail)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(fail(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails from the second entry on.
    struct Failing(usize);

    impl MetricsWriter for Failing {
        fn logged(&mut self, _entry: &LogEntry) -> Result<()> {
            self.0 += 1;
            let full = || Error::Io { path: "events".into(), source: io::ErrorKind::StorageFull.into() };
            if self.0 < 2 { Ok(()) } else { Err(full()) }
        }

        fn place(&self) -> &Path {
            Path::new("events")
        }

        fn close(&mut self, _exit_code: u8) -> Result<()> {
            panic!("it was given up")
        }
    }

    #[test]
    fn a_writer_that_fails_is_given_up_with_one_warning_and_the_run_goes_on() {
        let (mut warnings, mut logged) = (Vec::new(), 0);
        let mut observer = |event: &Event<'_>| match event {
            Event::Warning(text) => warnings.push((*text).to_owned()),
            Event::Logged(_) => logged += 1,
            _ => {}
        };
        let writers: Vec<(Reporter, Box<dyn MetricsWriter>)> =
            vec![(Reporter::Tensorboard, Box::new(Failing(0)))];
        let mut reporting = Reporting { inner: &mut observer, writers };
        for _ in 0..4 {
            reporting.event(&Event::Logged(&LogEntry::new()));
        }
        reporting.close(&Err(Error::Rows(String::new())));
        assert_eq!((warnings.len(), logged), (1, 4), "{warnings:?}");
        assert!(warnings[0].contains("tensorboard") && warnings[0].contains("events"), "{warnings:?}");
    }
}
