//! What the planner predicts is what a run allocates, to the byte.

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use eyas_backend::backend::DeviceTensor;
use eyas_backend::spec::{
    Activation, AdamW, Adapter, AttentionSpec, HostMatrix, NormSpec, Projection, QkvLayout, Rope, Storage,
    Write,
};
use eyas_backend::{Backend, Dtype, Error, FlatBatch, HostMoments, MomentStorage, Result, StepShape};
use eyas_model::{LoadOptions, LoraLayout, ModelSource};
use eyas_quant::Quantized;
use eyas_train::plan::{Role, Shape};
use eyas_train::recipe::{GradientCheckpointing, Optim};
use eyas_train::{Engine, Job, Replica, Trainer, TrainingPlan};

/// A device that counts what is allocated and computes nothing.
#[derive(Debug)]
struct Counting {
    dtype: Dtype,
    bytes: AtomicU64,
    host: AtomicU64,
}

impl Counting {
    fn new(dtype: Dtype) -> Self {
        Self { dtype, bytes: AtomicU64::new(0), host: AtomicU64::new(0) }
    }
}

#[derive(Debug)]
struct Sized(Dtype, usize, usize);

impl DeviceTensor for Sized {
    fn shape(&self) -> (usize, usize) {
        (self.1, self.2)
    }

    fn dtype(&self) -> Dtype {
        self.0
    }
}

/// Operations that a plan never comes to.
macro_rules! operations {
    (@result) => { () };
    (@result $result:ty) => { $result };
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)+) => {
        $(fn $name(&self, $(_: $argument),*) -> Result<operations!(@result $($result)?)> {
            Err(Error::Device { device: self.name(), reason: concat!(stringify!($name), " computes nothing").into() })
        })+
    };
}

type T = Sized;

impl Backend for Counting {
    type Tensor = Sized;
    type Weight = Sized;
    type Batch = ();
    type Moments = MomentStorage;
    type HostBuffer = ();
    type Recording = ();

    const OFFLOADS: bool = true;

    fn name(&self) -> String {
        "counting".into()
    }

    fn compute_dtype(&self) -> Dtype {
        self.dtype
    }

    const LOGIT_ROWS: usize = 256;
    const PROMPT_TOKENS: usize = 256;

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn used_memory(&self) -> Option<(u64, u64)> {
        None
    }

    fn stored_bytes(_: Dtype, rows: usize, cols: usize, _: Storage) -> u64 {
        (rows * cols) as u64
    }

    fn scratch_bytes(_: &StepShape) -> u64 {
        0
    }

    fn reserve(&self, _: &StepShape) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn zeros(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Sized> {
        self.bytes.fetch_add((rows * cols * dtype.size()) as u64, Ordering::Relaxed);
        Ok(Sized(dtype, rows, cols))
    }

    fn upload(&self, _: &[f32], _: &mut Sized) -> Result<()> {
        Ok(())
    }

    fn load_weight(&self, matrix: HostMatrix<'_>, _: Storage) -> Result<Sized> {
        Ok(Sized(matrix.dtype, matrix.rows, matrix.cols))
    }

    fn load_quantized(&self, weight: Quantized) -> Result<Sized> {
        Ok(Sized(Dtype::F32, weight.rows(), weight.cols()))
    }

    fn weight_bytes(&self, weight: &Sized) -> u64 {
        (weight.1 * weight.2) as u64
    }

    fn download_weight(&self, weight: &Sized, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        values.resize(rows.len() * weight.2, 0.0);
        Ok(())
    }

    fn moment_bytes(parameters: usize, storage: MomentStorage) -> u64 {
        if storage.paged { 0 } else { storage.bytes(parameters) }
    }

    fn new_moments(&self, parameters: usize, storage: MomentStorage) -> Result<MomentStorage> {
        let counter = if storage.paged { &self.host } else { &self.bytes };
        counter.fetch_add(storage.bytes(parameters), Ordering::Relaxed);
        Ok(storage)
    }

    fn new_host_buffer(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<()> {
        self.host.fetch_add((rows * cols * dtype.size()) as u64, Ordering::Relaxed);
        Ok(())
    }

    fn host_values<'b>(&self, _: &'b ()) -> Result<&'b [f32]> {
        Ok(&[])
    }

    fn host_values_mut<'b>(&self, _: &'b mut ()) -> Result<&'b mut [f32]> {
        Ok(&mut [])
    }

    fn new_batch(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    operations! {
        download(&T, &mut [f32]);
        clear(&mut T);
        offload(usize, &T, &mut ());
        fetch(usize, &(), &mut T);
        await_copy(&());
        load_batch(&FlatBatch, &mut ());
        embed(&(), &T, &mut T);
        norm(usize, NormSpec, &T, &T, Option<&T>, &mut T, &mut T);
        norm_backward(usize, NormSpec, &T, &T, &T, &T, &mut T, Write);
        head_norm(usize, &QkvLayout, f32, &T, &T, &T, &mut T);
        head_norm_backward(usize, &QkvLayout, f32, &T, &T, &T, &mut T);
        add(usize, &T, &mut T);
        copy(usize, &T, &mut T);
        copy_rows(&mut T, Range<usize>, usize);
        project(usize, &Projection<Self>, Option<Adapter<'_, Self>>, &T, &mut T, Option<&mut T>, Write);
        project_backward(
            usize, &Projection<Self>, Option<(Adapter<'_, Self>, &mut T)>, &T, Option<&T>, &T, Option<(&mut T, Write)>
        );
        rope(&(), &QkvLayout, &Rope<Self>, &mut T, bool);
        attention(&(), &AttentionSpec<Self>, &T, &mut T, &mut T);
        attention_backward(&(), &AttentionSpec<Self>, &T, &T, &T, &T, &mut T);
        cache_write(&(), &QkvLayout, Option<&Rope<Self>>, usize, &mut T, &mut T, &mut T);
        attention_cached(&(), &AttentionSpec<Self>, usize, &T, &T, &T, &mut T);
        activation(usize, Activation, &T, &mut T);
        activation_backward(usize, Activation, &T, &mut T);
        gather_targets(&(), Range<usize>, &T, &mut T);
        gather_last(&(), &T, &mut T);
        scatter_targets(&(), Range<usize>, &T, &mut T);
        cross_entropy(&(), Range<usize>, &mut T, &mut T, Option<f32>);
        grad_norm(&T, &mut T);
        read_moments(&MomentStorage) -> HostMoments;
        write_moments(&HostMoments, &mut MomentStorage);
        adamw(AdamW, &T, &T, &mut T, &mut MomentStorage);
    }
}

/// From all that a run can use down to what no plan fits, in small steps.
#[test]
fn every_budget_gets_the_plan_that_computes_least_twice() {
    let backend = Counting::new(Dtype::Bf16);
    let model = random_model(&backend, 6);
    let config = recipe(std::path::Path::new("x")).lora.config();
    let layout = LoraLayout::new(model.decoder(), config).unwrap();
    let params = vec![0.0; layout.parameters()];
    let shape = |host_memory| Shape {
        role: Role::Alone,
        decoder: model.decoder(),
        layout: &layout,
        weights: model.footprint(),
        dtype: Dtype::Bf16,
        batch: 8,
        max_tokens: 4096,
        max_sequences: 8,
        max_targets: 4096,
        moments: Optim::PagedAdamw.moments(),
        host_memory,
    };
    let plan = |budget: Option<u64>, host_memory: Option<u64>| {
        TrainingPlan::new::<Counting>(&shape(host_memory), GradientCheckpointing::Auto, budget, None)
    };
    let all = plan(None, None).unwrap();
    assert_eq!((all.kept_blocks(), all.memory.on_host(), all.host, all.moments.paged), (6, 0, 0, false));
    let input = 4096 * model.decoder().hidden_size as u64 * 2;
    let mut last = all.clone();
    let mut seen = std::collections::BTreeSet::new();
    for budget in (0..=all.total()).rev().step_by(input as usize / 3) {
        let Ok(plan) = plan(Some(budget), None) else { break };
        assert!(plan.total() <= budget);
        assert!(plan.kept_blocks() <= last.kept_blocks(), "less memory keeps more");
        let before = [&backend.bytes, &backend.host].map(|bytes| bytes.load(Ordering::Relaxed));
        Engine::new(
            &[Replica::alone(&backend, &model)],
            layout.clone(),
            &params,
            plan.moments,
            std::slice::from_ref(&plan.memory),
        )
        .unwrap();
        let after = [&backend.bytes, &backend.host].map(|bytes| bytes.load(Ordering::Relaxed));
        let elsewhere = |part: &str| matches!(part, "weights" | "batch");
        let planned: u64 =
            plan.parts.iter().filter(|(part, _)| !elsewhere(part)).map(|(_, bytes)| bytes).sum();
        assert_eq!([after[0] - before[0], after[1] - before[1]], [planned + 2 * 4, plan.host], "{plan}");
        seen.insert((plan.kept_blocks(), plan.memory.on_host()));
        last = plan;
    }
    // Inputs leave before a block gives up its activations, and at last all of them.
    assert!(seen.iter().any(|(kept, away)| *kept > 0 && *away > 0), "{seen:?}");
    assert!(seen.contains(&(0, 6)), "{seen:?}");
    assert!(seen.contains(&(0, 0)), "{seen:?}");
    // Where host memory is short too, only what fits goes there.
    let tight = last.total();
    assert!(plan(Some(tight), Some(last.host)).is_ok());
    let error = plan(Some(tight), Some(last.host - 1)).unwrap_err();
    assert!(matches!(error, eyas_train::Error::Memory { .. }), "{error}");
}

#[test]
fn the_plan_predicts_what_is_allocated() {
    let (train, eval) = (rows(40), rows(5));
    for name in ["llama2", "smollm2", "qwen3", "falcon-7b", "falcon-40b", "falcon-rw"] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (checkpointing, optim, replicas) in [
                (GradientCheckpointing::Never, Optim::AdamwTorch, 1),
                (GradientCheckpointing::Always, Optim::Adamw8bit, 1),
                (GradientCheckpointing::Always, Optim::PagedAdamw, 1),
                (GradientCheckpointing::Auto, Optim::Adamw8bit, 3),
            ] {
                let backends: Vec<_> = (0..replicas).map(|_| Counting::new(dtype)).collect();
                let source = ModelSource::open(&fixture(name)).unwrap();
                let options = LoadOptions { quantize: None, positions: 64, embedding_on_host: false };
                let load = |backend| source.load(backend, options, &mut |_, _| {}).unwrap();
                let models: Vec<_> = backends.iter().map(load).collect();
                let folder = tempfile::tempdir().unwrap();
                let mut recipe = recipe(folder.path());
                recipe.training.gradient_checkpointing = checkpointing;
                recipe.training.optim = optim;
                let held = || -> Vec<u64> {
                    backends.iter().map(|backend| backend.bytes.load(Ordering::Relaxed)).collect()
                };
                let before = held();
                let job = Job {
                    replicas: backends.iter().zip(&models).map(|(b, m)| Replica::alone(b, m)).collect(),
                    recipe: &recipe,
                    train: &train,
                    eval: &eval,
                    extra_files: Vec::new(),
                };
                let trainer = Trainer::new(job).unwrap();
                let after = held();
                for (replica, plan) in trainer.summary().plans.iter().enumerate() {
                    let counted = after[replica] - before[replica];
                    // The weights were there before, and the batch is no matrix.
                    let elsewhere = |part: &str| matches!(part, "weights" | "batch");
                    let planned: u64 =
                        plan.parts.iter().filter(|(part, _)| !elsewhere(part)).map(|(_, bytes)| bytes).sum();
                    // The loss, and where the optimiser is the norm.
                    let scalars = if replica == 0 { 2 * 4 } else { 4 };
                    let case = format!("{name}, {dtype:?}, {checkpointing:?}, {optim:?}, replica {replica}");
                    assert_eq!(counted, planned + scalars, "{case}");
                }
            }
        }
    }
}
