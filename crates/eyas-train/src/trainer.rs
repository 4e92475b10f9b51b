//! A run from its recipe to its end: what is settled before the first step, and what happens when memory is taken.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use eyas_backend::Backend;
use eyas_data::split::Passes;
use eyas_data::{Example, Order, Sampler};
use eyas_model::{LoraLayout, Model};

use crate::Result;
use crate::checkpoint::{self, ExtraFile, Progress};
use crate::engine::{Engine, State};
use crate::events::{Event, Observer, Outcome, Summary};
use crate::prepare::{check_replicas, check_rows, share, starting_checkpoint};
use crate::recipe::Recipe;
use crate::replica::Replica;
use crate::report::Reporting;
use crate::resume;
use crate::room::{Lacking, Planner, Share};
use crate::run::{Due, Run};
use crate::schedule::Schedule;
use crate::state::TrainerState;

/// All that a run needs.
#[derive(Debug)]
pub struct Job<'a, B: Backend> {
    /// The base on its device, or a copy of it on each of several. The first has the optimiser too.
    pub replicas: Vec<Replica<'a, B>>,
    /// What to do.
    pub recipe: &'a Recipe,
    /// Rows to train on.
    pub train: &'a [Example],
    /// Rows held out; may be empty.
    pub eval: &'a [Example],
    /// Files that every checkpoint gets: the recipe, the tokenizer.
    pub extra_files: Vec<ExtraFile>,
}

impl<'a, B: Backend> Job<'a, B> {
    /// A run on one device whose checkpoints have no files but their own.
    pub fn alone(
        backend: &'a B,
        model: &'a Model<B>,
        recipe: &'a Recipe,
        train: &'a [Example],
        eval: &'a [Example],
    ) -> Self {
        let replicas = vec![Replica::alone(backend, model)];
        Self { replicas, recipe, train, eval, extra_files: Vec::new() }
    }
}

/// A run that is planned, allocated and ready.
#[derive(Debug)]
pub struct Trainer<'a, B: Backend> {
    run: Run<'a, B>,
    engine: Engine<'a, B>,
    warnings: Vec<String>,
    /// What is to be told of a room smaller than asked for.
    change: Option<String>,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Checks the recipe, finds the checkpoint to go on from, plans each device's memory and allocates it. Where less memory is
    /// left than was counted, or than the run had before it was stopped, it is planned anew and told in [`Trainer::run`].
    ///
    /// # Errors
    /// When the recipe makes no sense or asks for another device, the replicas do not go together, a row does not fit the
    /// model, the memory is too small, or the checkpoint belongs to another run.
    pub fn new(job: Job<'a, B>) -> Result<Self> {
        let Job { recipe, train, eval, .. } = job;
        let replicas = job.replicas.clone();
        recipe.validate()?;
        let training = &recipe.training;
        check_replicas(&replicas, recipe)?;
        let model = replicas[0].model;
        check_rows(model, train)?;
        check_rows(model, eval)?;
        let mut warnings = recipe.notes();

        let asked = Share::of(training, replicas.len());
        let Share { batch, micro_batches } = asked;
        let steps_per_epoch = eyas_data::split::steps_per_epoch(train.len(), batch, micro_batches)?;
        let max_steps = match u64::try_from(training.max_steps) {
            Ok(steps) => steps,
            Err(_) => (training.num_train_epochs * steps_per_epoch as f64).ceil() as u64,
        };
        let warmup_steps = match training.warmup_steps {
            0 => Schedule::warmup_steps(max_steps, training.warmup_ratio),
            steps => steps,
        };
        warnings.extend(Passes::of(train.len(), batch, micro_batches, max_steps)?.warning(eval.len()));
        let num_train_epochs = max_steps.div_ceil(steps_per_epoch);

        let order = if training.group_by_length {
            Order::GroupByLength { rows_per_step: batch.saturating_mul(micro_batches) }
        } else {
            Order::Random
        };
        let lengths = train.iter().map(|example| example.input_ids.len()).collect();
        let sampler = Sampler::new(order, training.seed, lengths)?;
        let layout = LoraLayout::new(model.decoder(), recipe.lora.config())?;
        let depends_on = resume::describe(&replicas, recipe, train, max_steps, warmup_steps)?;
        let output = PathBuf::from(&training.output_dir);
        checkpoint::clean(&output);
        let from = starting_checkpoint(&output, training, &mut warnings)?;
        let opened = from.as_deref().map(checkpoint::open).transpose()?;
        if let (Some(folder), Some(opened)) = (&from, &opened) {
            warnings.extend(resume::compare(folder, &opened.run, &depends_on)?);
        }

        let mut trainer_state = TrainerState::new(max_steps, num_train_epochs, training);
        let mut progress = Progress::default();
        let mut state = State { params: Vec::new(), optimizer: None, loss_scale: None };
        match &opened {
            Some(opened) => {
                let restored = opened.read(model.decoder(), &layout)?;
                progress = opened.progress.clone();
                state.params = restored.params;
                state.optimizer = Some(restored.optimizer);
                state.loss_scale = progress.loss_scale;
                trainer_state.log_history = restored.state.log_history;
                trainer_state.epoch = restored.state.epoch;
                trainer_state.total_flos = restored.state.total_flos;
                trainer_state.global_step = progress.global_step;
            }
            None => state.params = layout.initialize(training.seed),
        }

        let planner = Planner {
            replicas,
            training,
            train,
            eval,
            layout: layout.clone(),
            sampler,
            epochs: num_train_epochs,
        };
        let (share, logit_rows) = match &opened {
            Some(opened) => (share(opened, &depends_on, asked)?, Some(progress.logit_rows)),
            None => (asked, None),
        };
        let (room, engine, lacking) = planner.start(share, logit_rows, &state)?;
        let change = lacking.map(|Lacking { asked, why }| {
            asked.change(&room, &why, progress.global_step + 1, layout.config.lora_dropout > 0.0)
        });
        let summary = Summary {
            device: devices(&planner.replicas),
            replicas: planner.replicas.iter().map(|replica| replica.label.clone()).collect(),
            plans: room.plans.clone(),
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
        let due = Due { evaluation: progress.global_step == 0, checkpoint: false };
        let mut run = Run {
            job,
            output,
            planner,
            room,
            schedule,
            summary,
            state: trainer_state,
            progress,
            linear_parameters: model.decoder().linear_parameters(),
            depends_on,
            due,
            newest_checkpoint: from,
        };
        run.take_over_room();
        Ok(Self { run, engine, warnings, change })
    }

    /// What the run is going to be.
    pub fn summary(&self) -> &Summary {
        &self.run.summary
    }

    /// Runs to the end, or until `stop` is set; then the last whole step is saved first. At the end the adapter is
    /// in the output folder.
    ///
    /// Where a device has no room for a step or an evaluation, the run is planned anew for what is left and repeats
    /// it, with smaller micro-batches if need be; a warning and an entry of `log_history` tell.
    ///
    /// # Errors
    /// When a device fails, no plan fits what is left of its memory, a loss is not finite, or a file cannot be
    /// written. Earlier checkpoints stay whole.
    pub fn run(self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let Job { recipe, replicas, .. } = &self.run.job;
        let decoder = replicas[0].model.decoder();
        let mut reporting = Reporting::open(observer, recipe, decoder, &self.run.state)?;
        let result = self.train(&mut reporting, stop);
        reporting.close(&result);
        result
    }

    fn train(self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let Self { mut run, mut engine, warnings, change } = self;
        observer.event(&Event::Started(&run.summary));
        for warning in &warnings {
            observer.event(&Event::Warning(warning));
        }
        if let Some(change) = change {
            run.tell_room(&change, observer);
        }
        if run.progress.global_step == 0 {
            run.prepare_output()?;
        }
        loop {
            let error = match run.go_on(&mut engine, observer, stop) {
                Err(error) => error,
                outcome => return outcome,
            };
            engine = run.make_room(engine, error, observer)?;
        }
    }
}

/// The name of the device, or of each kind and how many there are of it.
fn devices<B: Backend>(replicas: &[Replica<'_, B>]) -> String {
    let names: Vec<String> = replicas.iter().map(|replica| replica.backend.name()).collect();
    let mut kinds: Vec<&String> = Vec::new();
    names.iter().for_each(|name| {
        if !kinds.contains(&name) {
            kinds.push(name);
        }
    });
    let kind = |name: &String| match names.iter().filter(|other| *other == name).count() {
        1 => name.clone(),
        count => format!("{count} x {name}"),
    };
    kinds.into_iter().map(kind).collect::<Vec<_>>().join(" + ")
}
