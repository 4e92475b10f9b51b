//! The order of rows in an epoch: length-grouped, shuffled, or as they stand.
//!
//! An order depends on the seed and the epoch alone. A place (epoch, index) is therefore all that a run needs
//! to go on from, and nothing has to be replayed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where a run stands in its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Rows of the epoch already taken.
    pub index: u64,
}

/// How the rows of an epoch are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they stand.
    Sequential,
    /// Shuffled.
    Random,
    /// Shuffled, then rows of like length together (`group_by_length`).
    GroupByLength {
        /// Rows of one optimiser step: batch times accumulation.
        rows_per_step: usize,
    },
}

/// Gives the order of the rows in any epoch.
#[derive(Clone, Debug)]
pub struct Sampler {
    order: Order,
    seed: u64,
    lengths: Vec<usize>,
}

impl Sampler {
    /// A sampler for sequences of these lengths.
    ///
    /// # Errors
    /// When there are no rows or more than `u32::MAX`, or a step has none.
    pub fn new(order: Order, seed: u64, lengths: Vec<usize>) -> Result<Self> {
        if lengths.is_empty() {
            return Err(Error::Option { key: "dataset", reason: "has no row to train on".into() });
        }
        if u32::try_from(lengths.len()).is_err() {
            return Err(Error::Option { key: "dataset", reason: "has more than 4294967295 rows".into() });
        }
        if order == (Order::GroupByLength { rows_per_step: 0 }) {
            let reason = "must be at least 1".into();
            return Err(Error::Option { key: "per_device_train_batch_size", reason });
        }
        Ok(Self { order, seed, lengths })
    }

    /// Rows in an epoch.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// The places of all rows in the order of an epoch, each exactly once.
    pub fn epoch(&self, epoch: u64) -> Vec<u32> {
        match self.order {
            Order::Sequential => (0..self.lengths.len() as u32).collect(),
            Order::Random => permutation(self.lengths.len() as u32, self.seed, epoch),
            Order::GroupByLength { rows_per_step } => {
                let shuffled = permutation(self.lengths.len() as u32, self.seed, epoch);
                group_by_length(shuffled, &self.lengths, rows_per_step)
            }
        }
    }
}

/// A permutation of `0..n` from ChaCha8. Its key is the seed and the epoch, eight bytes each, little-endian, and
/// then the sixteen letters `eyas row shuffle`.
fn permutation(n: u32, seed: u64, epoch: u64) -> Vec<u32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(b"eyas row shuffle");
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut rows: Vec<u32> = (0..n).collect();
    // Fisher and Yates' shuffle, written out so that no library's choice of method can change a run.
    for last in (1..n).rev() {
        rows.swap(last as usize, below(&mut rng, last + 1) as usize);
    }
    rows
}

/// A number in `0..bound` without bias (Lemire, "Fast random integer generation in an interval", 2019).
fn below(rng: &mut ChaCha8Rng, bound: u32) -> u32 {
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        if product as u32 >= bound.wrapping_neg() % bound {
            return (product >> 32) as u32;
        }
    }
}

/// Puts rows of like length together, as `transformers` does: the shuffled rows are cut into mega-batches of
/// `max(1, min(n / 4B, 50)) * B` rows for a step of `B`, each sorted from long to short, and the longest row of
/// all is swapped to the front, so that a lack of memory shows at once.
fn group_by_length(shuffled: Vec<u32>, lengths: &[usize], rows_per_step: usize) -> Vec<u32> {
    let multiple = (lengths.len() / rows_per_step.saturating_mul(4)).clamp(1, 50);
    let mut rows = shuffled;
    let mega_batch = rows_per_step.saturating_mul(multiple);
    for batch in rows.chunks_mut(mega_batch) {
        batch.sort_by_key(|&row| std::cmp::Reverse(lengths[row as usize]));
    }
    // The first of the longest: each mega-batch has its own longest in front.
    let longest = (0..rows.len())
        .step_by(mega_batch)
        .reduce(|a, b| if lengths[rows[b] as usize] > lengths[rows[a] as usize] { b } else { a });
    if let Some(longest) = longest {
        rows.swap(0, longest);
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_comes_exactly_once_an_epoch(
            lengths in prop::collection::vec(1_usize..500, 1..300),
            rows_per_step in 1_usize..70,
            seed: u64,
            epoch: u64,
        ) {
            for order in [Order::Sequential, Order::Random, Order::GroupByLength { rows_per_step }] {
                let sampler = Sampler::new(order, seed, lengths.clone()).unwrap();
                let rows = sampler.epoch(epoch);
                prop_assert_eq!(&rows, &sampler.epoch(epoch));
                let mut sorted = rows.clone();
                sorted.sort_unstable();
                prop_assert!(sorted.into_iter().eq(0..lengths.len() as u32));
                if order != Order::Sequential && order != Order::Random {
                    prop_assert_eq!(lengths[rows[0] as usize], *lengths.iter().max().unwrap());
                }
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let sampler = |seed| Sampler::new(Order::Random, seed, vec![1; 100]).unwrap();
        assert_ne!(sampler(42).epoch(0), sampler(42).epoch(1));
        assert_ne!(sampler(42).epoch(0), sampler(43).epoch(0));
    }

    /// Changing the generator or the shuffle would change every run that is resumed; this fixes them.
    #[test]
    fn the_shuffle_is_fixed() {
        assert_eq!(permutation(8, 42, 0), [3, 4, 5, 6, 1, 7, 0, 2]);
    }

    #[test]
    fn grouping_is_that_of_transformers() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../tests/golden/grouping.json")).unwrap();
        for case in cases.as_array().unwrap() {
            let list = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            let lengths: Vec<usize> = list("lengths").into_iter().map(|n| n as usize).collect();
            let rows_per_step = case["rows_per_step"].as_u64().unwrap() as usize;
            assert_eq!(group_by_length(list("shuffled"), &lengths, rows_per_step), list("grouped"));
        }
    }

    #[test]
    fn every_place_is_equally_likely() {
        const ROWS: usize = 5;
        let mut counts = [[0_u32; ROWS]; ROWS];
        for epoch in 0..10_000 {
            for (place, row) in permutation(ROWS as u32, 7, epoch).into_iter().enumerate() {
                counts[place][row as usize] += 1;
            }
        }
        // 2000 are expected; the standard deviation is 40.
        assert!(counts.iter().flatten().all(|&n| (1800..2200).contains(&n)), "{counts:?}");
    }

    #[test]
    fn unusable_arguments_are_refused() {
        assert!(Sampler::new(Order::Random, 0, vec![]).is_err());
        assert!(Sampler::new(Order::GroupByLength { rows_per_step: 0 }, 0, vec![1]).is_err());
    }
}
