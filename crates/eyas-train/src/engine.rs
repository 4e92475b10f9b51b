//! One optimiser step and one evaluation, over one replica of the model or several: the program that the loop repeats.
//!
//! The micro-batches of a step are dealt out in turn. Each replica sums the gradient of its own; the sums are added in the
//! order of the replicas, in host memory, and the first replica, the leader, measures and takes the step. The others get the
//! adapter with their next work, so all compute with the same bits, and what fails on the way there has changed nothing.

use std::sync::atomic::AtomicBool;

use eyas_backend::{Backend, Dropout, Dtype, FlatBatch, MomentStorage};
use eyas_model::{LoraLayout, MemoryPlan};

use crate::loss_scale::LossScale;
use crate::optimizer::{Optimizer, OptimizerState};
use crate::recipe::Training;
use crate::replica::{Common, Gradient, Replica, Worker};
use crate::together::{Signals, together};
use crate::{Error, Result};

/// The memory of a run on its devices, and the steps over it.
#[derive(Debug)]
pub struct Engine<'a, B: Backend> {
    /// The first leads: it has the optimiser.
    workers: Vec<Worker<'a, B>>,
    optimizer: Optimizer<B>,
    layout: LoraLayout,
    /// The adapter on its way from the leader to the others, if there are any.
    adapter: Option<B::HostBuffer>,
    /// Which one that is; `None` where the leader has taken a step since.
    adapter_version: Option<u64>,
    /// Adapters that were on their way so far.
    versions: u64,
    /// Where activations are in half precision.
    pub loss_scale: Option<LossScale>,
}

/// What a run goes on from, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The adapter.
    pub params: Vec<f32>,
    /// The optimiser's moments; `None` before the first step, when they are zero.
    pub optimizer: Option<OptimizerState>,
    /// Where activations are in half precision; `None` for the scale to begin with.
    pub loss_scale: Option<LossScale>,
}

/// What a step measured, before its update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Cross-entropy summed over the targets of all micro-batches, over their number.
    pub loss: f32,
    /// Norm of its gradient, before clipping. Not finite where a gradient overflowed.
    pub grad_norm: f32,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub enum Update {
    /// It was taken.
    Taken,
    /// A gradient overflowed half precision: the loss is scaled by less from now on.
    LeftOut {
        /// By how much.
        loss_scale: f32,
    },
    /// A gradient is not finite, and it is not the scale's fault.
    Impossible,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// Allocates all that steps of these plans need, one for each replica. The first has the optimiser.
    ///
    /// # Errors
    /// When a device has no room, or there are not as many plans as replicas.
    pub fn new(
        replicas: &[Replica<'a, B>],
        layout: LoraLayout,
        params: &[f32],
        moments: MomentStorage,
        plans: &[MemoryPlan],
    ) -> Result<Self> {
        let (Some(leader), true) = (replicas.first(), replicas.len() == plans.len()) else {
            return Err(Error::Replicas(format!(
                "{} memory plans for {} replicas",
                plans.len(),
                replicas.len()
            )));
        };
        let is_alone = replicas.len() == 1;
        let on = |number: usize| move |error| on_replica(replicas, number, error);
        let workers = (0..replicas.len())
            .map(|n| Worker::new(&replicas[n], &layout, params, plans[n].clone(), is_alone).map_err(on(n)))
            .collect::<Result<_>>()?;
        let optimizer = Optimizer::new(leader.backend, params.len(), moments).map_err(on(0))?;
        let adapter = (!is_alone).then(|| leader.backend.new_host_buffer(Dtype::F32, 1, params.len()));
        let adapter = adapter.transpose().map_err(|error| on(0)(error.into()))?;
        Ok(Self {
            workers,
            optimizer,
            layout,
            adapter,
            adapter_version: Some(0),
            versions: 0,
            loss_scale: (leader.backend.compute_dtype() == Dtype::F16).then(LossScale::default),
        })
    }

    /// As [`Engine::new`], going on from a state.
    ///
    /// # Errors
    /// As there, and when the moments are not of the format or the number that the plan says.
    pub fn resumed(
        replicas: &[Replica<'a, B>],
        layout: LoraLayout,
        state: &State,
        moments: MomentStorage,
        plans: &[MemoryPlan],
    ) -> Result<Self> {
        let mut engine = Self::new(replicas, layout, &state.params, moments, plans)?;
        if let Some(optimizer) = &state.optimizer {
            let backend = engine.leader().replica.backend;
            engine.optimizer.restore(backend, optimizer).map_err(|error| engine.on(0, error))?;
        }
        if engine.loss_scale.is_some() {
            engine.loss_scale = state.loss_scale.or(engine.loss_scale);
        }
        Ok(engine)
    }

    fn leader(&self) -> &Worker<'a, B> {
        &self.workers[0]
    }

    /// Names the replica that failed, where there are several.
    fn on(&self, number: usize, error: Error) -> Error {
        name_replica(self.workers.len(), number, &self.workers[number].replica.label, error)
    }

    /// Reads back what the run can go on from, bit for bit: the state after the last step that was taken.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<State> {
        let (params, optimizer) = (self.params()?, self.optimizer_state()?);
        Ok(State { params, optimizer: Some(optimizer), loss_scale: self.loss_scale })
    }

    /// The optimiser's moments and steps.
    ///
    /// # Errors
    /// When the device fails.
    pub fn optimizer_state(&self) -> Result<OptimizerState> {
        self.optimizer.state(self.leader().replica.backend).map_err(|error| self.on(0, error))
    }

    /// The adapter's current values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn params(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.layout.parameters()];
        self.leader().read_params(&mut values).map_err(|error| self.on(0, error))?;
        Ok(values)
    }

    /// The adapter's layout.
    pub fn layout(&self) -> &LoraLayout {
        &self.layout
    }

    /// Sums the gradient over the micro-batches of all replicas and measures it. `first` numbers the first micro-batch in
    /// the run, which decides its dropout; `done` is told after each. `None` when `stop` was set on the way: nothing has
    /// changed then.
    ///
    /// The loss is the mean over all targets of the accumulated batch, not the mean of the micro-batches' means,
    /// which would give a target in a short micro-batch more weight than one in a long.
    ///
    /// # Errors
    /// When a device fails, or a micro-batch is larger than planned.
    pub fn accumulate(
        &mut self,
        micro_batches: &[FlatBatch],
        first: u32,
        training: &Training,
        stop: &AtomicBool,
        done: impl FnMut(usize),
    ) -> Result<Option<Measured>> {
        let targets: usize = micro_batches.iter().map(FlatBatch::target_tokens).sum();
        let scale = 1.0 / targets.max(1) as f32;
        let loss_scale = self.loss_factor();
        let p = self.layout.config.lora_dropout as f32;
        let gradient = Gradient {
            scale: scale * loss_scale,
            dropout: Dropout { p, seed: training.seed, micro_batch: first },
        };
        let losses = self.deal(micro_batches, stop, done, |number, worker, common, signals| {
            worker.accumulate(number, common, gradient, signals)
        })?;
        let Some(losses) = losses else { return Ok(None) };
        add_up(&mut self.workers[..losses.len()]).map_err(|(number, error)| self.on(number, error))?;
        let leader = &self.workers[0];
        let grad_norm = self.optimizer.grad_norm(leader.replica.backend, &leader.grads);
        let grad_norm = grad_norm.map_err(|error| self.on(0, error))? / loss_scale;
        Ok(Some(Measured { loss: losses.iter().sum::<f32>() * scale, grad_norm }))
    }

    /// Has the batches done by the replicas, as many of them as there are batches for. What each has to say comes in
    /// their order.
    fn deal<T: Send>(
        &mut self,
        batches: &[FlatBatch],
        stop: &AtomicBool,
        done: impl FnMut(usize),
        work: impl Fn(usize, &mut Worker<'a, B>, Common<'_>, Signals<'_>) -> Result<Option<T>> + Sync,
    ) -> Result<Option<Vec<T>>> {
        let replicas = self.workers.len().min(batches.len()).max(1);
        let version = self.send_adapter()?;
        let leader = self.leader().replica.backend;
        let adapter = self.adapter.as_ref().map_or(Ok(&[][..]), |adapter| leader.host_values(adapter));
        let adapter = adapter.map_err(|error| self.on(0, error.into()))?;
        let Self { workers, layout, .. } = self;
        let common = Common { layout, batches, adapter: (adapter, version), replicas };
        let result = together(&mut workers[..replicas], stop, done, |number, worker, signals| {
            work(number, worker, common, signals)
        });
        result.map_err(|(number, error)| self.on(number, error))
    }

    /// Reads the leader's adapter for the others, if it has changed. Returns which one it is.
    fn send_adapter(&mut self) -> Result<u64> {
        if let Some(version) = self.adapter_version {
            return Ok(version);
        }
        if let Self { workers, adapter: Some(adapter), .. } = self {
            workers[0].send_params(adapter).map_err(|error| self.on(0, error))?;
            self.versions += 1;
        }
        self.adapter_version = Some(self.versions);
        Ok(self.versions)
    }

    /// Takes the step that [`Engine::accumulate`] measured. Where its gradient is not finite nothing changes but the
    /// loss's scale, if there is one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(&mut self, measured: Measured, training: &Training, learning_rate: f64) -> Result<Update> {
        if !measured.grad_norm.is_finite() {
            let backed_off = self.loss_scale.as_mut().is_some_and(LossScale::back_off);
            let loss_scale = self.loss_factor();
            return Ok(if backed_off { Update::LeftOut { loss_scale } } else { Update::Impossible });
        }
        let factor = self.loss_factor();
        let Worker { replica, grads, params, .. } = &mut self.workers[0];
        let taken = self.optimizer.step(replica.backend, training, learning_rate, factor, grads, params);
        taken.map_err(|error| self.on(0, error))?;
        self.adapter_version = None;
        if let Some(scale) = &mut self.loss_scale {
            scale.taken();
        }
        Ok(Update::Taken)
    }

    /// What the loss is multiplied by before the backward.
    fn loss_factor(&self) -> f32 {
        self.loss_scale.map_or(1.0, |scale| scale.scale)
    }

    /// Cross-entropy summed over the targets of the batches, without dropout. `None` when `stop` was set on the way. The
    /// losses of the batches are added in their order, so the number of replicas changes no bit.
    ///
    /// # Errors
    /// When a device fails, or a batch is larger than planned.
    pub fn evaluate(
        &mut self,
        batches: &[FlatBatch],
        stop: &AtomicBool,
        done: impl FnMut(usize),
    ) -> Result<Option<f64>> {
        let losses = self.deal(batches, stop, done, |number, worker, common, signals| {
            worker.evaluate(number, common, signals)
        })?;
        let in_order = |losses: Vec<Vec<f32>>| {
            let of = |batch: usize| f64::from(losses[batch % losses.len()][batch / losses.len()]);
            (0..batches.len()).map(of).sum()
        };
        Ok(losses.map(in_order))
    }
}

/// Adds the replicas' gradients up in their order; the first, the leader, has the sum afterwards. An error comes with the
/// number of the replica that failed.
fn add_up<B: Backend>(workers: &mut [Worker<'_, B>]) -> Result<(), (usize, Error)> {
    let Some((leader, others @ [_, ..])) = workers.split_first_mut() else { return Ok(()) };
    let sums =
        others.iter().enumerate().map(|(index, other)| other.sum().map_err(|error| (index + 1, error)));
    let sums = sums.collect::<Result<Vec<_>, _>>()?;
    leader.add(&sums).map_err(|error| (0, error))
}

/// Names the replica that failed, where there are several.
pub(crate) fn on_replica<B: Backend>(replicas: &[Replica<'_, B>], number: usize, error: Error) -> Error {
    name_replica(replicas.len(), number, &replicas[number].label, error)
}

fn name_replica(of: usize, replica: usize, label: &str, error: Error) -> Error {
    if of == 1 {
        return error;
    }
    Error::OnReplica { replica, label: label.into(), source: Box::new(error) }
}
