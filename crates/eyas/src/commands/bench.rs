//! What the commands under `eyas bench` share: they measure random weights, so that nothing has to be downloaded.

use anyhow::Result;
use eyas_backend::{Backend, OpTime};
use eyas_model::{Decoder, LoadOptions, Model, shapes};
use eyas_train::Recipe;
use serde_json::{Value, json};

use crate::device::Choice;
use crate::progress::LoadBar;
use crate::session;

/// Side of the product that a device's ceiling is measured with: larger where the device has memory of its own, which
/// makes it a card.
pub fn ceiling<B: Backend>() -> usize {
    if B::OFFLOADS { 8192 } else { 1024 }
}

/// What is measured: a model's shape, and how it is held and run.
#[derive(Debug)]
pub struct Subject {
    pub decoder: Decoder,
    pub recipe: Recipe,
}

impl Subject {
    /// A published shape under the demo's recipe with some keys changed, then those that the user sets.
    ///
    /// # Errors
    /// When the shape is not known or a key does not take its value.
    pub fn new(shape: &str, keys: &[String], set: &[String], device: &Choice) -> Result<Self> {
        let decoder = shapes::published(shape)?;
        let mut recipe = session::builtin("demo")?;
        session::change(&mut recipe, keys)?;
        session::change(&mut recipe, set)?;
        device.limit(&mut recipe);
        recipe.validate()?;
        Ok(Self { decoder, recipe })
    }

    /// The model on a device, with random weights and room for sequences of so many positions.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn model<B: Backend>(&self, backend: &B, positions: usize) -> Result<Model<B>> {
        let options = LoadOptions {
            quantize: self.recipe.quantization.config(),
            positions,
            embedding_on_host: self.recipe.is_tight(),
        };
        let bar = LoadBar::new("making weights");
        let model =
            Model::random(backend, &self.decoder, options, 1, &mut |done, total| bar.set(done, total))?;
        bar.finish();
        Ok(model)
    }
}

/// Where a step's time went, for a program to read: name, calls and milliseconds of each operation.
pub fn operations_as_json(operations: &[OpTime]) -> Value {
    operations.iter().map(|op| json!([op.op, op.calls, op.milliseconds])).collect()
}

/// Where a step's time went, as [`Backend::measured`] tells; nothing where it cannot.
pub fn print_operations(operations: &[OpTime]) {
    if operations.is_empty() {
        return;
    }
    let all: f64 = operations.iter().map(|op| op.milliseconds).sum();
    println!("\n{:<42} {:>6} {:>10} {:>7}", "where a step's time goes", "calls", "ms", "%");
    for op in operations {
        println!(
            "{:<42} {:>6} {:>10.2} {:>7.1}",
            op.op,
            op.calls,
            op.milliseconds,
            100.0 * op.milliseconds / all
        );
    }
    println!("{:<42} {:>6} {all:>10.2}", "together", "");
}
