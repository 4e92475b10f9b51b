//! The loop: steps, evaluation, logs, checkpoints. Wherever the device runs out of memory, it can be taken up again
//! over another engine.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use eyas_backend::{Backend, FlatBatch};
use eyas_data::{Position, Step, Steps};
use eyas_model::LoraAdapter;
use serde_json::{Map, Value};

use crate::checkpoint::{self, Contents, Progress, TRAINER_STATE_FILE};
use crate::engine::{Engine, Measured, Update};
use crate::events::{Ending, Evaluation, Event, Observer, Outcome, StepReport, Summary};
use crate::room::{Planner, Room, Share};
use crate::schedule::Schedule;
use crate::state::TrainerState;
use crate::trainer::Job;
use crate::{Error, Result};

/// Where a run stands, and all that it needs besides the device's memory.
#[derive(Debug)]
pub(crate) struct Run<'a, B: Backend> {
    pub job: Job<'a, B>,
    pub output: PathBuf,
    pub planner: Planner<'a, B>,
    pub room: Room,
    pub schedule: Schedule,
    pub summary: Summary,
    pub state: TrainerState,
    pub progress: Progress,
    /// Weights of the blocks' linear layers, for Trainer's count of operations.
    pub linear_parameters: u64,
    /// What the result depends on.
    pub depends_on: Map<String, Value>,
    pub due: Due,
    pub newest_checkpoint: Option<PathBuf>,
}

/// What comes before the next step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    pub evaluation: bool,
    pub checkpoint: bool,
}

impl<'a, B: Backend> Run<'a, B> {
    /// Goes on from where the run stands.
    pub fn go_on(
        &mut self,
        engine: &mut Engine<'a, B>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome> {
        let sampler = self.planner.sampler.clone();
        let Share { batch, micro_batches } = self.room.share;
        let mut steps = Steps::new(self.job.train, &sampler, batch, micro_batches, self.progress.position)?;
        loop {
            if self.due.evaluation && !self.evaluate(engine, observer, stop)? {
                return self.interrupted(engine, observer);
            }
            self.due.evaluation = false;
            let last = self.progress.global_step >= self.summary.max_steps;
            if self.due.checkpoint {
                self.save(engine, last, observer)?;
            }
            self.due.checkpoint = false;
            if last {
                return self.finish(engine, observer);
            }
            let Some(step) = steps.next().transpose()? else { return self.finish(engine, observer) };
            if stop.load(Ordering::Relaxed) || !self.step(engine, &step, observer, stop)? {
                return self.interrupted(engine, observer);
            }
        }
    }

    /// Gives back an engine of which a replica ran out of memory and plans another for what is left; any other error stays
    /// one. The step or evaluation that failed has changed nothing that lasts.
    pub fn make_room(
        &mut self,
        engine: Engine<'a, B>,
        error: Error,
        observer: &mut dyn Observer,
    ) -> Result<Engine<'a, B>> {
        if error.missing_memory().is_none() {
            return Err(error);
        }
        let state = engine.state()?;
        drop(engine);
        let settled = match self.planner.refit(&self.room, &error) {
            Ok(Some(room)) => self.planner.settle(room, &state),
            Ok(None) => return Err(error),
            Err(no_plan) => Err(no_plan),
        };
        let (room, engine, _) = settled.map_err(|error| self.no_room(error))?;
        let dropout = self.planner.layout.config.lora_dropout > 0.0;
        let next = self.progress.global_step + 1;
        let change = self.room.change(&room, &error.to_string(), next, dropout);
        self.room = room;
        self.take_over_room();
        self.tell_room(&change, observer);
        Ok(engine)
    }

    /// Notes the room in all that tells of it.
    pub fn take_over_room(&mut self) {
        let share = self.room.share;
        self.summary.plans.clone_from(&self.room.plans);
        self.progress.logit_rows = self.room.logit_rows();
        let asked = Share::of(&self.job.recipe.training, self.job.replicas.len());
        self.progress.micro_batch_rows = (share != asked).then_some(share.batch);
        self.state.train_batch_size = share.batch;
    }

    /// Tells of a room that became smaller.
    pub fn tell_room(&mut self, change: &str, observer: &mut dyn Observer) {
        observer.event(&Event::Warning(change));
        let room = &self.room;
        let entry = self.state.log([
            ("per_device_train_batch_size", room.share.batch as f64),
            ("gradient_accumulation_steps", room.accumulation() as f64),
            ("planned_memory_bytes", room.total() as f64),
        ]);
        observer.event(&Event::Logged(entry));
    }

    /// That no plan fits what is left, with where the run stands.
    fn no_room(&self, error: Error) -> Error {
        let Error::Memory { device, needed, budget, advice } = error else { return error };
        let next = self.progress.global_step + 1;
        let stands = match &self.newest_checkpoint {
            Some(folder) => format!(
                "step {next} was not taken, and {} is whole: go on from it with resume_from_checkpoint = true once \
                 so much is free",
                folder.display()
            ),
            None => format!("step {next} was not taken, and no checkpoint had been saved"),
        };
        Error::Memory { device, needed, budget, advice: format!("{stands}. Otherwise {advice}") }
    }

    /// Takes one step; false when it was asked to stop on the way.
    fn step(
        &mut self,
        engine: &mut Engine<'a, B>,
        step: &Step,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let begun = Instant::now();
        let training = &self.job.recipe.training;
        let of = step.micro_batches.len();
        let measured =
            engine.accumulate(&step.micro_batches, self.progress.micro_batches, training, stop, |done| {
                observer.event(&Event::MicroBatch { done, of })
            })?;
        let Some(measured) = measured else { return Ok(false) };
        let Measured { loss, grad_norm } = measured;
        if !loss.is_finite() {
            return Err(self.not_finite("loss", loss));
        }
        let learning_rate = self.schedule.rate(self.progress.updates());
        match engine.update(measured, training, learning_rate)? {
            Update::Taken => {}
            Update::LeftOut { loss_scale } => observer.event(&Event::Warning(&format!(
                "step {} is left out: a gradient overflowed float16. The loss is scaled by {loss_scale} from now on",
                self.progress.global_step + 1
            ))),
            Update::Impossible => return Err(self.not_finite("gradient's norm", grad_norm)),
        }
        let seconds = begun.elapsed().as_secs_f64();

        let progress = &mut self.progress;
        progress.loss_scale = engine.loss_scale;
        progress.global_step += 1;
        progress.micro_batches = progress.micro_batches.wrapping_add(of as u32);
        progress.position = step.to;
        progress.num_tokens += step.tokens as u64;
        progress.num_rows += step.rows as u64;
        progress.interval_loss += f64::from(loss);
        progress.interval_steps += 1;
        progress.total_loss += f64::from(loss);
        progress.train_seconds += seconds;
        self.state.global_step = progress.global_step;
        self.state.epoch = self.epoch(step.to);
        self.state.total_flos += 6.0 * step.tokens as f64 * self.linear_parameters as f64;
        observer.event(&Event::Step(&StepReport {
            global_step: self.state.global_step,
            max_steps: self.summary.max_steps,
            epoch: self.state.epoch,
            loss: f64::from(loss),
            grad_norm: f64::from(grad_norm),
            learning_rate,
            tokens: step.tokens,
            seconds,
            memory: self.used_memory(),
        }));
        if is_due(self.state.global_step, training.logging_steps) {
            let progress = &mut self.progress;
            let entry = self.state.log([
                ("loss", progress.interval_loss / progress.interval_steps as f64),
                ("grad_norm", f64::from(grad_norm)),
                ("learning_rate", learning_rate),
                ("num_tokens", progress.num_tokens as f64),
            ]);
            (progress.interval_loss, progress.interval_steps) = (0.0, 0);
            observer.event(&Event::Logged(entry));
        }
        let step = self.progress.global_step;
        let last = step == self.summary.max_steps;
        self.due = Due {
            evaluation: last || is_due(step, training.eval_steps),
            checkpoint: training.save_steps > 0 && (last || is_due(step, training.save_steps)),
        };
        Ok(true)
    }

    /// Passes over the rows, counted in micro-batches as Trainer counts them.
    fn epoch(&self, position: Position) -> f64 {
        let batch = self.room.share.batch;
        let (done, all) = ((position.index as usize).div_ceil(batch), self.job.train.len().div_ceil(batch));
        position.epoch as f64 + done as f64 / all as f64
    }

    /// Evaluates the held-out rows, if there are any; false when it was asked to stop on the way.
    fn evaluate(
        &mut self,
        engine: &mut Engine<'a, B>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let batches = &self.room.eval_batches;
        if batches.is_empty() {
            return Ok(true);
        }
        let begun = Instant::now();
        let of = batches.len();
        let sum = engine.evaluate(batches, stop, |done| {
            observer.event(&Event::EvaluationBatch { done, of });
        })?;
        let Some(sum) = sum else { return Ok(false) };
        let target_tokens: usize = batches.iter().map(FlatBatch::target_tokens).sum();
        let loss = sum / target_tokens as f64;
        let seconds = begun.elapsed().as_secs_f64();
        let evaluation = Evaluation {
            global_step: self.progress.global_step,
            loss,
            perplexity: loss.exp(),
            rows: self.job.eval.len(),
            batches: of,
            tokens: batches.iter().map(|batch| batch.tokens() as u64).sum(),
            target_tokens: target_tokens as u64,
            seconds,
        };
        let num_tokens = self.progress.num_tokens as f64;
        let entry = self.state.log([
            ("eval_loss", loss),
            ("eval_num_tokens", num_tokens),
            ("eval_runtime", seconds),
            ("eval_samples_per_second", evaluation.rows as f64 / seconds),
            ("eval_steps_per_second", of as f64 / seconds),
        ]);
        observer.event(&Event::Logged(entry));
        observer.event(&Event::Evaluated(&evaluation));
        Ok(true)
    }

    /// Bytes in use on each device, where they tell.
    fn used_memory(&self) -> Vec<u64> {
        self.job.replicas.iter().filter_map(|replica| Some(replica.backend.used_memory()?.0)).collect()
    }

    fn adapter(&self, engine: &Engine<'a, B>) -> Result<LoraAdapter> {
        Ok(LoraAdapter {
            layout: engine.layout().clone(),
            params: engine.params()?,
            base_model: self.job.recipe.model.model_name_or_path.clone().unwrap_or_default(),
        })
    }

    fn save(&mut self, engine: &Engine<'a, B>, last: bool, observer: &mut dyn Observer) -> Result<()> {
        self.state.set_control(last);
        let (adapter, optimizer) = (self.adapter(engine)?, engine.optimizer_state()?);
        let folder = checkpoint::write(
            &self.output,
            &Contents {
                adapter: &adapter,
                optimizer: &optimizer,
                state: &self.state,
                progress: &self.progress,
                run: &self.depends_on,
                extra: &self.job.extra_files,
            },
        )?;
        observer.event(&Event::Saved { step: self.progress.global_step, folder: &folder });
        if let Some(limit) = self.job.recipe.training.save_total_limit
            && let Err(error) = checkpoint::rotate(&self.output, limit, &folder)
        {
            observer.event(&Event::Warning(&format!("an old checkpoint could not be removed: {error}")));
        }
        self.newest_checkpoint = Some(folder);
        Ok(())
    }

    fn interrupted(&mut self, engine: &Engine<'a, B>, observer: &mut dyn Observer) -> Result<Outcome> {
        let saved = self.newest_checkpoint.as_deref() == Some(&self.checkpoint_folder());
        if self.progress.global_step > 0 && !saved {
            self.save(engine, false, observer)?;
        }
        self.outcome(engine, Ending::Interrupted)
    }

    fn checkpoint_folder(&self) -> PathBuf {
        checkpoint::folder(&self.output, self.progress.global_step)
    }

    fn finish(&mut self, engine: &Engine<'a, B>, observer: &mut dyn Observer) -> Result<Outcome> {
        let progress = &self.progress;
        let seconds = progress.train_seconds.max(f64::MIN_POSITIVE);
        self.state.set_control(true);
        let has_summary = self.state.log_history.last().is_some_and(|entry| entry.contains_key("train_loss"));
        if !has_summary {
            let entry = self.state.log([
                ("total_flos", self.state.total_flos),
                ("train_loss", progress.total_loss / progress.global_step.max(1) as f64),
                ("train_runtime", progress.train_seconds),
                ("train_samples_per_second", progress.num_rows as f64 / seconds),
                ("train_steps_per_second", progress.global_step as f64 / seconds),
                ("train_tokens_per_second", progress.num_tokens as f64 / seconds),
            ]);
            observer.event(&Event::Logged(entry));
        }
        let outcome = self.outcome(engine, Ending::Finished)?;
        outcome.adapter.save(&self.output)?;
        checkpoint::write_extra(&self.output, &self.job.extra_files)?;
        let text = self.state.to_json();
        eyas_checkpoint::write_atomic(&self.output.join(TRAINER_STATE_FILE), |file| {
            file.write_all(text.as_bytes())
        })?;
        observer.event(&Event::Finished(&outcome));
        Ok(outcome)
    }

    fn outcome(&self, engine: &Engine<'a, B>, ending: Ending) -> Result<Outcome> {
        let mut evaluations =
            self.state.log_history.iter().filter_map(|entry| entry.get("eval_loss")?.as_f64());
        let first_evaluation = evaluations.next();
        Ok(Outcome {
            ending,
            global_step: self.progress.global_step,
            train_loss: self.progress.total_loss / self.progress.global_step.max(1) as f64,
            train_seconds: self.progress.train_seconds,
            num_tokens: self.progress.num_tokens,
            first_evaluation,
            last_evaluation: evaluations.next_back().or(first_evaluation),
            checkpoint: self.newest_checkpoint.clone(),
            adapter: self.adapter(engine)?,
        })
    }

    /// Makes the output folder, so that a folder that cannot be written to shows before the first step.
    pub fn prepare_output(&self) -> Result<()> {
        let fail = |source| Error::Io { path: self.output.clone(), source };
        std::fs::create_dir_all(&self.output).map_err(fail)?;
        tempfile::tempfile_in(&self.output).map_err(fail)?;
        if self.job.recipe.training.overwrite_output_dir {
            checkpoint::remove_all(&self.output)?;
        }
        Ok(())
    }

    fn not_finite(&self, what: &'static str, value: f32) -> Error {
        let last = match &self.newest_checkpoint {
            Some(folder) => format!("the last checkpoint, {}, is from before it", folder.display()),
            None => "no checkpoint had been saved".into(),
        };
        let advice = format!(
            "the step was not taken, and {last}. Lower learning_rate, lengthen the warm-up or lower max_grad_norm; \
             in float16 take bfloat16 instead"
        );
        Error::NotFinite { step: self.progress.global_step + 1, what, value, advice }
    }
}

fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
