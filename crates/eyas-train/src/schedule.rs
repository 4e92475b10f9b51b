//! The learning rate of each step, as transformers' schedulers give it.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// A schedule's shape, under transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// Down to 0 in a straight line.
    Linear,
    /// Down to 0 along half a cosine (Loshchilov and Hutter 2017, without restarts).
    Cosine,
    /// At the peak from the first step; no warm-up.
    Constant,
    /// At the peak after the warm-up.
    ConstantWithWarmup,
}

/// The learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub lr_scheduler_type: LrSchedulerType,
    /// The peak.
    pub learning_rate: f64,
    /// Steps in which it rises to the peak.
    pub warmup_steps: u64,
    /// Steps in all.
    pub max_steps: u64,
}

impl Schedule {
    /// The steps of warm-up that a share of the steps makes, rounded up.
    pub fn warmup_steps(max_steps: u64, warmup_ratio: f64) -> u64 {
        (max_steps as f64 * warmup_ratio).ceil() as u64
    }

    /// The rate that a step uses; `step` is the number of steps before it, so the first is 0.
    ///
    /// ```
    /// use eyas_train::{LrSchedulerType, Schedule};
    /// let schedule = Schedule {
    ///     lr_scheduler_type: LrSchedulerType::Cosine,
    ///     learning_rate: 2e-4,
    ///     warmup_steps: Schedule::warmup_steps(320, 0.03),
    ///     max_steps: 320,
    /// };
    /// assert_eq!(schedule.rate(0), 0.0);
    /// assert_eq!(schedule.rate(10), 2e-4);
    /// ```
    pub fn rate(&self, step: u64) -> f64 {
        let rises = self.lr_scheduler_type != LrSchedulerType::Constant;
        let factor = if rises && step < self.warmup_steps {
            step as f64 / self.warmup_steps as f64
        } else {
            let rest = self.max_steps.saturating_sub(self.warmup_steps).max(1) as f64;
            match self.lr_scheduler_type {
                LrSchedulerType::Constant | LrSchedulerType::ConstantWithWarmup => 1.0,
                LrSchedulerType::Linear => self.max_steps.saturating_sub(step) as f64 / rest,
                LrSchedulerType::Cosine => {
                    let progress = (step - self.warmup_steps) as f64 / rest;
                    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
                }
            }
        };
        self.learning_rate * factor
    }
}
