//! `trainer_state.json`, in Hugging Face's own format.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The progress of a run, as Hugging Face's Trainer writes it. Keys are in the order of the alphabet, as there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Not used: nothing chooses a best checkpoint.
    pub best_global_step: Option<u64>,
    /// Not used.
    pub best_metric: Option<f64>,
    /// Not used.
    pub best_model_checkpoint: Option<String>,
    /// Passes over the rows, with the share of the current one.
    pub epoch: f64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    /// Steps taken.
    pub global_step: u64,
    /// Always false: one run, no search.
    pub is_hyper_param_search: bool,
    /// True on the first process of a machine.
    pub is_local_process_zero: bool,
    /// True on the first process of all.
    pub is_world_process_zero: bool,
    /// What was logged and when.
    pub log_history: Vec<LogEntry>,
    /// Steps between entries.
    pub logging_steps: u64,
    /// Steps of the whole run.
    pub max_steps: u64,
    /// Tokens, where their count is kept here; Trainer leaves it at 0 by default.
    pub num_input_tokens_seen: u64,
    /// Passes that the run begins.
    pub num_train_epochs: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// The state of Trainer's own control.
    pub stateful_callbacks: Value,
    /// Floating point operations, as Trainer counts them: 6 a weight and token.
    pub total_flos: f64,
    /// Rows a micro-batch.
    pub train_batch_size: usize,
    /// Not used.
    pub trial_name: Option<String>,
    /// Not used.
    pub trial_params: Option<Value>,
}

/// One entry of `log_history`: metrics by name, with `epoch` and `step` among them.
pub type LogEntry = Map<String, Value>;

impl TrainerState {
    /// The state of a run that has not begun.
    pub(crate) fn new(max_steps: u64, num_train_epochs: u64, training: &crate::recipe::Training) -> Self {
        let mut state = Self {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: training.eval_steps,
            global_step: 0,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: Vec::new(),
            logging_steps: training.logging_steps,
            max_steps,
            num_input_tokens_seen: 0,
            num_train_epochs,
            save_steps: training.save_steps,
            stateful_callbacks: Value::Null,
            total_flos: 0.0,
            train_batch_size: training.per_device_train_batch_size,
            trial_name: None,
            trial_params: None,
        };
        state.set_control(false);
        state
    }

    /// Sets the control's state as Trainer has it while it saves.
    pub(crate) fn set_control(&mut self, finished: bool) {
        self.stateful_callbacks = json!({
            "TrainerControl": {
                "args": {
                    "should_epoch_stop": false,
                    "should_evaluate": false,
                    "should_log": false,
                    "should_save": true,
                    "should_training_stop": finished,
                },
                "attributes": {},
            }
        });
    }

    /// Appends an entry with the current epoch and step, its keys in the order of the alphabet.
    pub(crate) fn log(&mut self, metrics: impl IntoIterator<Item = (&'static str, f64)>) -> &LogEntry {
        let mut entry: Vec<(&str, Value)> =
            metrics.into_iter().map(|(name, value)| (name, json!(value))).collect();
        entry.push(("epoch", json!(self.epoch)));
        entry.push(("step", json!(self.global_step)));
        entry.sort_by_key(|(name, _)| *name);
        self.log_history.push(entry.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        &self.log_history[self.log_history.len() - 1]
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        // Every field is a plain value; nothing in it can fail to serialise.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}
