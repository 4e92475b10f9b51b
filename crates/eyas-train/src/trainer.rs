//! The loop: steps, schedule, evaluation, logs, checkpoints.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use eyas_backend::memory::host_memory;
use eyas_backend::{Backend, FlatBatch};
use eyas_data::split::Passes;
use eyas_data::{Example, Order, Position, Sampler, Step, Steps};
use eyas_model::{LoraAdapter, LoraLayout, Model};
use serde_json::{Map, Value};

use crate::checkpoint::{self, Contents, ExtraFile, Progress, TRAINER_STATE_FILE};
use crate::engine::{Engine, Measured, Update};
use crate::events::{Ending, Evaluation, Event, Observer, Outcome, StepReport, Summary};
use crate::optimizer::OptimizerState;
use crate::plan::{self, Shape, TrainingPlan};
use crate::prepare::{Largest, check_dtype, check_rows, starting_checkpoint, within};
use crate::recipe::{MemoryBudget, Recipe};
use crate::report::Reporting;
use crate::resume;
use crate::schedule::Schedule;
use crate::state::TrainerState;
use crate::{Error, Result};

/// All that a run needs.
#[derive(Debug)]
pub struct Job<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// The base, on the device.
    pub model: &'a Model<B>,
    /// What to do.
    pub recipe: &'a Recipe,
    /// Rows to train on.
    pub train: &'a [Example],
    /// Rows held out; may be empty.
    pub eval: &'a [Example],
    /// Files that every checkpoint gets: the recipe, the tokenizer.
    pub extra_files: Vec<ExtraFile>,
}

/// A run that is planned, allocated and ready.
#[derive(Debug)]
pub struct Trainer<'a, B: Backend> {
    job: Job<'a, B>,
    output: PathBuf,
    engine: Engine<'a, B>,
    sampler: Sampler,
    eval_batches: Vec<FlatBatch>,
    schedule: Schedule,
    summary: Summary,
    state: TrainerState,
    progress: Progress,
    position: Position,
    run: Map<String, Value>,
    warnings: Vec<String>,
    newest_checkpoint: Option<PathBuf>,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Checks the recipe, finds the checkpoint to go on from, plans the memory and allocates it.
    ///
    /// # Errors
    /// When the recipe makes no sense or asks for another device, a row does not fit the model, the memory is too
    /// small, or the checkpoint belongs to another run.
    pub fn new(job: Job<'a, B>) -> Result<Self> {
        let Job { backend, model, recipe, train, eval, .. } = job;
        recipe.validate()?;
        let training = &recipe.training;
        check_dtype(backend, recipe)?;
        check_rows(model, train)?;
        check_rows(model, eval)?;
        let mut warnings = recipe.notes();

        let (batch, accumulation) =
            (training.per_device_train_batch_size, training.gradient_accumulation_steps);
        let steps_per_epoch = eyas_data::split::steps_per_epoch(train.len(), batch, accumulation)?;
        let max_steps = match u64::try_from(training.max_steps) {
            Ok(steps) => steps,
            Err(_) => (training.num_train_epochs * steps_per_epoch as f64).ceil() as u64,
        };
        let warmup_steps = match training.warmup_steps {
            0 => Schedule::warmup_steps(max_steps, training.warmup_ratio),
            steps => steps,
        };
        warnings.extend(Passes::of(train.len(), batch, accumulation, max_steps)?.warning(eval.len()));

        let order = if training.group_by_length {
            Order::GroupByLength { rows_per_step: batch.saturating_mul(accumulation) }
        } else {
            Order::Random
        };
        let lengths = train.iter().map(|example| example.input_ids.len()).collect();
        let sampler = Sampler::new(order, training.seed, lengths)?;
        let largest = Largest::of(train, &sampler, batch, accumulation, max_steps.div_ceil(steps_per_epoch));
        let longest_eval = eval.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let max_tokens = largest.tokens.max(longest_eval);
        let eval_batches = within(eval, training.per_device_eval_batch_size, max_tokens)?;
        let eval_sequences = eval_batches.iter().map(FlatBatch::sequences).max().unwrap_or(0);

        let layout = LoraLayout::new(model.decoder(), recipe.lora.config())?;
        let run = resume::describe(backend, model, recipe, train, max_steps, warmup_steps)?;
        let output = PathBuf::from(&training.output_dir);
        checkpoint::clean(&output);
        let from = starting_checkpoint(&output, training, &mut warnings)?;
        let opened = from.as_deref().map(checkpoint::open).transpose()?;
        if let (Some(folder), Some(opened)) = (&from, &opened) {
            warnings.extend(resume::compare(folder, &opened.run, &run)?);
        }

        let shape = Shape {
            decoder: model.decoder(),
            layout: &layout,
            weights: model.footprint(),
            dtype: backend.compute_dtype(),
            max_tokens,
            max_sequences: largest.rows.max(eval_sequences),
            max_targets: largest.targets,
            moments: training.optim.moments(),
            host_memory: host_memory(),
        };
        let rows = opened.as_ref().map(|opened| opened.progress.logit_rows);
        let plan_now = || -> Result<TrainingPlan> {
            let budget = plan::budget(backend, model.footprint(), training.memory_budget)?;
            TrainingPlan::new::<B>(&shape, training.gradient_checkpointing, budget, rows)
        };

        let num_train_epochs = max_steps.div_ceil(steps_per_epoch);
        let mut state = TrainerState::new(max_steps, num_train_epochs, training);
        let restored = opened.as_ref().map(|opened| opened.read(model.decoder(), &layout)).transpose()?;
        let params = match &restored {
            Some(restored) => &restored.params,
            None => &layout.initialize(training.seed),
        };
        let allocate = |plan: &TrainingPlan| {
            Engine::new(backend, model, layout.clone(), params, plan.moments, plan.memory.clone())
        };
        let mut plan = plan_now()?;
        let mut engine = match allocate(&plan) {
            // Somebody else took memory after it was counted: what is left may still do.
            Err(error) if error.is_out_of_memory() && training.memory_budget == MemoryBudget::Auto => {
                plan = plan_now()?;
                warnings.push(format!(
                    "memory that had been free was taken by another program ({error}); the run was planned anew"
                ));
                allocate(&plan)?
            }
            engine => engine?,
        };
        let mut progress = Progress { logit_rows: plan.memory.logit_rows, ..Progress::default() };
        if let (Some(opened), Some(restored)) = (opened, restored) {
            engine.optimizer.restore(backend, &restored.optimizer)?;
            progress = opened.progress;
            if engine.loss_scale.is_some() {
                engine.loss_scale = progress.loss_scale.or(engine.loss_scale);
            }
            state.log_history = restored.state.log_history;
            state.epoch = restored.state.epoch;
            state.total_flos = restored.state.total_flos;
            state.global_step = progress.global_step;
        }
        let summary = Summary {
            device: backend.name(),
            plan,
            trainable_parameters: layout.parameters() as u64,
            base_parameters: model.decoder().parameters(),
            train_rows: train.len(),
            eval_rows: eval.len(),
            train_tokens: train.iter().map(|example| example.input_ids.len() as u64).sum(),
            max_steps,
            steps_per_epoch,
            warmup_steps,
            global_step: progress.global_step,
            resumed_from: from.clone(),
        };
        let schedule = Schedule {
            lr_scheduler_type: training.lr_scheduler_type,
            learning_rate: training.learning_rate,
            warmup_steps,
            max_steps,
        };
        let position = progress.position;
        Ok(Self {
            job,
            output,
            engine,
            sampler,
            eval_batches,
            schedule,
            summary,
            state,
            progress,
            position,
            run,
            warnings,
            newest_checkpoint: from,
        })
    }

    /// What the run is going to be.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Runs to the end, or until `stop` is set; then the last whole step is saved first. At the end the adapter is
    /// in the output folder.
    ///
    /// # Errors
    /// When the device fails, a loss is not finite, or a file cannot be written. Earlier checkpoints stay whole.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let Job { recipe, model, .. } = self.job;
        let mut reporting = Reporting::open(observer, recipe, model.decoder(), &self.state)?;
        let result = self.train(&mut reporting, stop);
        reporting.close(&result);
        result
    }

    fn train(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        observer.event(&Event::Started(&self.summary));
        for warning in std::mem::take(&mut self.warnings) {
            observer.event(&Event::Warning(&warning));
        }
        if self.progress.global_step == 0 {
            self.prepare_output()?;
            if !self.evaluate(observer, stop)? {
                return self.interrupted(observer);
            }
        }
        let (train, sampler) = (self.job.train, self.sampler.clone());
        let training = &self.job.recipe.training;
        let (batch, accumulation) =
            (training.per_device_train_batch_size, training.gradient_accumulation_steps);
        let mut steps = Steps::new(train, &sampler, batch, accumulation, self.position)?;
        while self.progress.global_step < self.summary.max_steps {
            let Some(step) = steps.next().transpose()? else { break };
            if !self.step(&step, observer, stop)? || !self.after_step(observer, stop)? {
                return self.interrupted(observer);
            }
        }
        self.finish(observer)
    }

    /// Takes one step; false when it was asked to stop on the way.
    fn step(&mut self, step: &Step, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<bool> {
        let begun = Instant::now();
        let training = &self.job.recipe.training;
        let of = step.micro_batches.len();
        let measured = self.engine.accumulate(
            &step.micro_batches,
            self.progress.micro_batches,
            training,
            stop,
            |done| observer.event(&Event::MicroBatch { done, of }),
        )?;
        let Some(measured) = measured else { return Ok(false) };
        let Measured { loss, grad_norm } = measured;
        if !loss.is_finite() {
            return Err(self.not_finite("loss", loss));
        }
        let learning_rate = self.schedule.rate(self.progress.updates());
        match self.engine.update(measured, training, learning_rate)? {
            Update::Taken => {}
            Update::LeftOut { loss_scale } => observer.event(&Event::Warning(&format!(
                "step {} is left out: a gradient overflowed float16. The loss is scaled by {loss_scale} from now on",
                self.progress.global_step + 1
            ))),
            Update::Impossible => return Err(self.not_finite("gradient's norm", grad_norm)),
        }
        let seconds = begun.elapsed().as_secs_f64();

        let progress = &mut self.progress;
        progress.loss_scale = self.engine.loss_scale;
        progress.global_step += 1;
        progress.micro_batches = progress.micro_batches.wrapping_add(of as u32);
        progress.position = step.to;
        progress.num_tokens += step.tokens as u64;
        progress.num_rows += step.rows as u64;
        progress.interval_loss += f64::from(loss);
        progress.interval_steps += 1;
        progress.total_loss += f64::from(loss);
        progress.train_seconds += seconds;
        self.position = step.to;
        self.state.global_step = progress.global_step;
        self.state.epoch = self.epoch(step.to);
        self.state.total_flos +=
            6.0 * step.tokens as f64 * self.job.model.decoder().linear_parameters() as f64;
        observer.event(&Event::Step(&StepReport {
            global_step: self.state.global_step,
            max_steps: self.summary.max_steps,
            epoch: self.state.epoch,
            loss: f64::from(loss),
            grad_norm: f64::from(grad_norm),
            learning_rate,
            tokens: step.tokens,
            seconds,
            memory: self.job.backend.used_memory().map(|(now, _)| now),
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
        Ok(true)
    }

    /// Evaluates and saves where it is time to; false when it was asked to stop on the way.
    fn after_step(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<bool> {
        let training = &self.job.recipe.training;
        let last = self.progress.global_step == self.summary.max_steps;
        let saves =
            training.save_steps > 0 && (last || is_due(self.progress.global_step, training.save_steps));
        if (last || is_due(self.progress.global_step, training.eval_steps))
            && !self.evaluate(observer, stop)?
        {
            return Ok(false);
        }
        if saves {
            self.save(last, observer)?;
        }
        Ok(last || !stop.load(Ordering::Relaxed))
    }

    /// Passes over the rows, counted in micro-batches as Trainer counts them.
    fn epoch(&self, position: Position) -> f64 {
        let batch = self.job.recipe.training.per_device_train_batch_size;
        let (done, all) = ((position.index as usize).div_ceil(batch), self.job.train.len().div_ceil(batch));
        position.epoch as f64 + done as f64 / all as f64
    }

    /// Evaluates the held-out rows, if there are any; false when it was asked to stop on the way.
    fn evaluate(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<bool> {
        if self.eval_batches.is_empty() {
            return Ok(true);
        }
        let begun = Instant::now();
        let of = self.eval_batches.len();
        let sum = self.engine.evaluate(&self.eval_batches, stop, |done| {
            observer.event(&Event::EvaluationBatch { done, of });
        })?;
        let Some(sum) = sum else { return Ok(false) };
        let target_tokens: usize = self.eval_batches.iter().map(FlatBatch::target_tokens).sum();
        let loss = sum / target_tokens as f64;
        let seconds = begun.elapsed().as_secs_f64();
        let evaluation = Evaluation {
            global_step: self.progress.global_step,
            loss,
            perplexity: loss.exp(),
            rows: self.job.eval.len(),
            batches: of,
            tokens: self.eval_batches.iter().map(|batch| batch.tokens() as u64).sum(),
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

    fn adapter(&self) -> Result<LoraAdapter> {
        Ok(LoraAdapter {
            layout: self.engine.layout().clone(),
            params: self.engine.optimizer.download_params(self.job.backend)?,
            base_model: self.job.recipe.model.model_name_or_path.clone().unwrap_or_default(),
        })
    }

    fn save(&mut self, last: bool, observer: &mut dyn Observer) -> Result<()> {
        self.state.set_control(last);
        let adapter = self.adapter()?;
        let optimizer: OptimizerState = self.engine.optimizer.state(self.job.backend)?;
        let folder = checkpoint::write(
            &self.output,
            &Contents {
                adapter: &adapter,
                optimizer: &optimizer,
                state: &self.state,
                progress: &self.progress,
                run: &self.run,
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

    fn interrupted(&mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let saved = self.newest_checkpoint.as_deref() == Some(&self.checkpoint_folder());
        if self.progress.global_step > 0 && !saved {
            self.save(false, observer)?;
        }
        self.outcome(Ending::Interrupted)
    }

    fn checkpoint_folder(&self) -> PathBuf {
        checkpoint::folder(&self.output, self.progress.global_step)
    }

    fn finish(&mut self, observer: &mut dyn Observer) -> Result<Outcome> {
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
        let outcome = self.outcome(Ending::Finished)?;
        outcome.adapter.save(&self.output)?;
        checkpoint::write_extra(&self.output, &self.job.extra_files)?;
        let text = self.state.to_json();
        eyas_checkpoint::write_atomic(&self.output.join(TRAINER_STATE_FILE), |file| {
            file.write_all(text.as_bytes())
        })?;
        observer.event(&Event::Finished(&outcome));
        Ok(outcome)
    }

    fn outcome(&self, ending: Ending) -> Result<Outcome> {
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
            adapter: self.adapter()?,
        })
    }

    /// Makes the output folder, so that a folder that cannot be written to shows before the first step.
    fn prepare_output(&self) -> Result<()> {
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
