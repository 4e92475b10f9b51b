//! Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", 2018), with the constants of torch's
//! `GradScaler`.
//!
//! Half precision has no numbers below 6e-8, where many gradients lie. The loss is multiplied by a power of two, and
//! the update divides by it. Where a gradient overflows, the step is left out and the scale halved.

use serde::{Deserialize, Serialize};

const INITIAL: f32 = 65536.0;
const GROWTH: f32 = 2.0;
const GROWTH_INTERVAL: u32 = 2000;
const BACKOFF: f32 = 0.5;
/// Below this it is not the scale that makes gradients overflow.
const SMALLEST: f32 = 1.0;

/// What the loss is multiplied by, and how it came to that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor: a power of two.
    pub scale: f32,
    /// Steps taken since it changed.
    pub good_steps: u32,
    /// Steps left out in the whole run. The schedule and the optimiser do not count them.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: INITIAL, good_steps: 0, skipped: 0 }
    }
}

impl LossScale {
    /// A step was taken: after enough of them the scale grows.
    pub fn taken(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            self.good_steps = 0;
            // Beyond `f32` there is nothing to gain.
            let grown = self.scale * GROWTH;
            self.scale = if grown.is_finite() { grown } else { self.scale };
        }
    }

    /// A gradient was not finite: the step is left out and the scale backs off. False, and nothing changed, where the
    /// scale cannot be the reason.
    pub fn back_off(&mut self) -> bool {
        let smaller = self.scale * BACKOFF;
        if smaller < SMALLEST {
            return false;
        }
        *self = Self { scale: smaller, good_steps: 0, skipped: self.skipped + 1 };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_doubles_after_two_thousand_steps_in_a_row() {
        let mut scale = LossScale::default();
        (0..1999).for_each(|_| scale.taken());
        assert_eq!(scale.scale, 65536.0);
        assert!(scale.back_off());
        assert_eq!(scale, LossScale { scale: 32768.0, good_steps: 0, skipped: 1 });
        (0..1999).for_each(|_| scale.taken());
        assert_eq!(scale.scale, 32768.0);
        scale.taken();
        assert_eq!((scale.scale, scale.good_steps), (65536.0, 0));
    }

    #[test]
    fn backing_off_ends_where_the_scale_is_not_the_reason() {
        let mut scale = LossScale::default();
        assert_eq!((0..100).filter(|_| scale.back_off()).count(), 16);
        assert_eq!((scale.scale, scale.skipped), (1.0, 16));
    }
}
