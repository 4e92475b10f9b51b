//! Rotary position tables, with the scalings found in Llama checkpoints.

use std::f64::consts::PI;

use eyas_backend::{Backend, Dtype, Rope};

use crate::Result;

/// How rotary frequencies are made.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of each head that are rotated.
    pub dim: usize,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// The scalings of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths longer than the original context over this are divided in full.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original context over this are kept.
        high_freq_factor: f64,
        /// The context before scaling.
        original_max_positions: f64,
    },
    /// Every frequency has a divisor of its own (`rope_freqs.weight` of GGUF files).
    Divisors(Vec<f32>),
}

impl RopeSpec {
    /// Radians a position, for each of the `dim / 2` pairs.
    pub fn frequencies(&self) -> Vec<f32> {
        (0..self.dim / 2)
            .map(|pair| {
                // f32 where the peers use it: the tables then agree to the last bits at long positions.
                let exponent = (2 * pair) as f32 / self.dim as f32;
                let frequency = 1.0 / (self.theta as f32).powf(exponent);
                self.scaling.apply(pair, f64::from(frequency)) as f32
            })
            .collect()
    }

    /// The tables for `positions` positions on a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn tables<B: Backend>(&self, backend: &B, positions: usize) -> Result<Rope<B>> {
        let frequencies = self.frequencies();
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let mut cos = backend.zeros(Dtype::F32, positions, self.dim / 2)?;
        let mut sin = backend.zeros(Dtype::F32, positions, self.dim / 2)?;
        backend.upload(&angles().map(f32::cos).collect::<Vec<_>>(), &mut cos)?;
        backend.upload(&angles().map(f32::sin).collect::<Vec<_>>(), &mut sin)?;
        Ok(Rope { dim: self.dim, cos, sin })
    }
}

impl RopeScaling {
    fn apply(&self, pair: usize, frequency: f64) -> f64 {
        match *self {
            Self::Default => frequency,
            Self::Divisors(ref divisors) => frequency / f64::from(divisors[pair]),
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let wavelength = 2.0 * PI / frequency;
                if wavelength < original_max_positions / high_freq_factor {
                    return frequency;
                }
                if wavelength > original_max_positions / low_freq_factor {
                    return frequency / factor;
                }
                let smooth = (original_max_positions / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// ALiBi's biases by head and key position, `[heads, positions]`: as Falcon has them, rounded to bfloat16 and then
/// divided by the square root of the head size like the scores.
pub fn alibi_table(heads: usize, head_dim: usize, positions: usize) -> Vec<f32> {
    let scale = 1.0 / (head_dim as f32).sqrt();
    alibi_slopes(heads)
        .into_iter()
        .flat_map(|slope| {
            (0..positions).map(move |position| half::bf16::from_f32(slope * position as f32).to_f32() * scale)
        })
        .collect()
}

/// ALiBi's slopes for `heads` heads, as BLOOM and Falcon make them: a geometric series for the largest power of
/// two, the odd terms of the next finer series for the rest, rounded to bfloat16.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let power = 1 << heads.max(1).ilog2();
    let series = |count: usize| 2f64.powf(-8.0 / count as f64);
    let (base, fine) = (series(power), series(2 * power));
    (0..heads)
        .map(
            |head| {
                if head < power {
                    base.powi(head as i32 + 1)
                } else {
                    fine.powi(2 * (head - power) as i32 + 1)
                }
            },
        )
        .map(|slope| half::bf16::from_f64(slope).to_f32())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_a_power_of_two_are_a_geometric_series() {
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
    }

    #[test]
    fn other_head_counts_take_the_odd_terms_of_the_finer_series() {
        let slopes = alibi_slopes(6);
        assert_eq!(slopes[..4], [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(slopes[4..], [0.5, 0.125]);
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192.0,
        };
        assert_eq!(scaling.apply(0, 1.0), 1.0);
        assert_eq!(scaling.apply(0, 1e-5), 1e-5 / 8.0);
        let between = scaling.apply(0, 2.0 * PI / 4000.0);
        assert!(between > 2.0 * PI / 32000.0 && between < 2.0 * PI / 4000.0);
    }
}
