//! Holding rows out for evaluation so that no question is on both sides, and how often a run passes over the
//! rows that remain.

use std::collections::HashMap;
use std::fmt;

use crate::dataset::Row;
use crate::error::{Error, Result};
use crate::hash::hash;

/// The share of rows held out unless the caller says otherwise.
pub const DEFAULT_EVAL_SHARE: f64 = 0.1;

/// Rows for training and rows for evaluation, by their places, each in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Places of the rows to train on.
    pub train: Vec<usize>,
    /// Places of the rows held out.
    pub eval: Vec<usize>,
    /// Sets of rows that belong together because they share a question or a group.
    pub sets: usize,
    /// Such sets held out.
    pub eval_sets: usize,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (train, eval) = (self.train.len(), self.eval.len());
        if eval == 0 {
            return write!(f, "{train} rows to train on ({} questions), none held out", self.sets);
        }
        let train_sets = self.sets - self.eval_sets;
        write!(f, "{train} rows to train on ({train_sets} questions), {eval} held out ({})", self.eval_sets)?;
        write!(f, ": {:.1}% of all", 100.0 * eval as f64 / (train + eval) as f64)
    }
}

/// A question reduced to what tells it from others: its letters and digits in lower case.
///
/// ```
/// use eyas_data::split::question_key;
/// assert_eq!(question_key(" What is  STRESS?"), question_key("what is stress"));
/// ```
pub fn question_key(question: &str) -> String {
    let words = question.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// Holds out about `share` of the rows. Rows with the same question, or the same group, stay together, also
/// through one another.
///
/// The order in which sets are held out depends on the seed and on their questions alone, not on where they
/// stand in the file: rows added later change little, and reordering changes nothing. A set that would pass the
/// share is passed over; at least one set is held out where there are two and the share is not zero.
///
/// # Errors
/// When the share is not in 0..1.
pub fn split(rows: &[Row], share: f64, seed: u64) -> Result<Split> {
    let keys = rows.iter().map(|row| (question_key(row.sample.question()), row.group.as_deref()));
    split_keys(keys, share, seed)
}

fn split_keys<'a>(
    keys: impl IntoIterator<Item = (String, Option<&'a str>)>,
    share: f64,
    seed: u64,
) -> Result<Split> {
    if !(0.0..1.0).contains(&share) {
        let reason = format!("is {share}; the share held out must be at least 0 and less than 1");
        return Err(Error::Option { key: "eval_share", reason });
    }
    let keys: Vec<(String, Option<&str>)> = keys.into_iter().collect();
    let mut sets = Sets::new(keys.len());
    let mut questions: HashMap<&str, usize> = HashMap::new();
    let mut groups: HashMap<&str, usize> = HashMap::new();
    for (row, (question, group)) in keys.iter().enumerate() {
        // A row without letters has no question to share.
        if !question.is_empty() {
            sets.join(row, *questions.entry(question).or_insert(row));
        }
        if let Some(group) = group {
            sets.join(row, *groups.entry(group).or_insert(row));
        }
    }
    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for row in 0..keys.len() {
        members.entry(sets.root(row)).or_default().push(row);
    }
    let mut ordered: Vec<(u64, &str, Vec<usize>)> = members
        .into_values()
        .map(|rows| {
            let name = rows.iter().map(|&row| keys[row].0.as_str()).min().unwrap_or("");
            (hash(seed, &[name]), name, rows)
        })
        .collect();
    ordered.sort();

    let target = (keys.len() as f64 * share).round() as usize;
    let target = if share > 0.0 { target.max(1) } else { 0 };
    let mut held = vec![false; keys.len()];
    let (mut count, mut eval_sets) = (0, 0);
    let total = ordered.len();
    let mut hold = |rows: &[usize]| {
        rows.iter().for_each(|&row| held[row] = true);
        count += rows.len();
        eval_sets += 1;
        count
    };
    if target > 0 && total > 1 {
        let mut have = 0;
        for (_, _, rows) in &ordered {
            if have + rows.len() <= target && have + rows.len() < keys.len() {
                have = hold(rows);
            }
        }
        if have == 0 {
            // Every set is larger than the share: the smallest comes nearest.
            if let Some((_, _, rows)) = ordered.iter().min_by_key(|(_, _, rows)| rows.len()) {
                hold(rows);
            }
        }
    }
    let (eval, train) = (0..keys.len()).partition(|&row| held[row]);
    Ok(Split { train, eval, sets: total, eval_sets })
}

/// Disjoint sets of rows.
struct Sets {
    parent: Vec<usize>,
}

impl Sets {
    fn new(rows: usize) -> Self {
        Self { parent: (0..rows).collect() }
    }

    fn root(&mut self, mut row: usize) -> usize {
        while self.parent[row] != row {
            self.parent[row] = self.parent[self.parent[row]];
            row = self.parent[row];
        }
        row
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}

/// How often a run sees its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passes {
    /// Rows trained on.
    pub rows: usize,
    /// Optimiser steps in one pass: an epoch ends in a step of the rows that are left.
    pub steps_per_epoch: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Passes over the rows.
    pub passes: f64,
}

impl Passes {
    /// From this many passes on, a run without held-out rows deserves a warning.
    pub const MANY: f64 = 10.0;

    /// The figures of a run of `max_steps` optimiser steps, each over `accumulation` batches of `batch` rows.
    ///
    /// # Errors
    /// When there are no rows, or a batch or its accumulation is empty.
    pub fn of(rows: usize, batch: usize, accumulation: usize, max_steps: u64) -> Result<Self> {
        let steps_per_epoch = steps_per_epoch(rows, batch, accumulation)?;
        Ok(Self {
            rows,
            steps_per_epoch,
            steps: max_steps,
            passes: max_steps as f64 / steps_per_epoch as f64,
        })
    }

    /// The sentence that tells a user that the run will learn its rows by heart unseen; `None` where it
    /// will not, or where held-out rows would show it.
    pub fn warning(&self, eval_rows: usize) -> Option<String> {
        (self.passes >= Self::MANY && eval_rows == 0).then(|| {
            format!(
                "{} steps pass {:.0} times over the same {} rows, with nothing held out: the model will know \
                 them by heart, and a falling loss will not show it. Hold out a share (eval_share), or take at \
                 most {} steps (3 passes)",
                self.steps,
                self.passes,
                self.rows,
                3 * self.steps_per_epoch
            )
        })
    }
}

/// Optimiser steps in one pass over the rows.
///
/// # Errors
/// When there are no rows, or a batch or its accumulation is empty.
pub fn steps_per_epoch(rows: usize, batch: usize, accumulation: usize) -> Result<u64> {
    for (key, value) in
        [("per_device_train_batch_size", batch), ("gradient_accumulation_steps", accumulation)]
    {
        if value == 0 {
            return Err(Error::Option { key, reason: "must be at least 1".into() });
        }
    }
    if rows == 0 {
        return Err(Error::Option { key: "dataset", reason: "has no row to train on".into() });
    }
    Ok(rows.div_ceil(batch).div_ceil(accumulation) as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn keys(rows: &[(u8, Option<u8>)]) -> Vec<(String, Option<String>)> {
        rows.iter().map(|(q, g)| (format!("question {q}"), g.map(|g| format!("group {g}")))).collect()
    }

    fn split_of(keys: &[(String, Option<String>)], share: f64, seed: u64) -> Split {
        split_keys(keys.iter().map(|(q, g)| (q.clone(), g.as_deref())), share, seed).unwrap()
    }

    proptest! {
        #[test]
        fn no_question_and_no_group_is_on_both_sides(
            rows in prop::collection::vec((0_u8..30, prop::option::of(0_u8..8)), 1..80),
            share in 0.0..0.9,
            seed: u64,
        ) {
            let keys = keys(&rows);
            let split = split_of(&keys, share, seed);
            let mut all: Vec<usize> = split.train.iter().chain(&split.eval).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..keys.len()).collect::<Vec<_>>());
            prop_assert!(!split.train.is_empty());
            let side = |places: &[usize]| -> (HashSet<String>, HashSet<String>) {
                places.iter().map(|&i| keys[i].clone()).fold(Default::default(), |mut sets: (HashSet<_>, HashSet<_>), (q, g)| {
                    sets.0.insert(q);
                    sets.1.extend(g);
                    sets
                })
            };
            let (train, eval) = (side(&split.train), side(&split.eval));
            prop_assert!(train.0.is_disjoint(&eval.0));
            prop_assert!(train.1.is_disjoint(&eval.1));
            if split.sets > 1 && share > 0.0 {
                prop_assert!(!split.eval.is_empty());
            }
        }

        #[test]
        fn the_order_of_rows_does_not_matter(
            rows in prop::collection::vec((0_u8..30, prop::option::of(0_u8..8)), 1..40),
            seed: u64,
        ) {
            let forward = keys(&rows);
            let backward: Vec<_> = forward.iter().rev().cloned().collect();
            let held = |keys: &[(String, Option<String>)]| -> HashSet<String> {
                split_of(keys, 0.2, seed).eval.into_iter().map(|i| keys[i].0.clone()).collect()
            };
            prop_assert_eq!(held(&forward), held(&backward));
        }
    }

    #[test]
    fn the_share_is_met_and_a_seed_decides() {
        let rows: Vec<(u8, Option<u8>)> = (0..100).map(|i| (i, None)).collect();
        let keys = keys(&rows);
        let split = split_of(&keys, 0.1, 42);
        assert_eq!((split.train.len(), split.eval.len(), split.sets), (90, 10, 100));
        assert_eq!(split, split_of(&keys, 0.1, 42));
        assert_ne!(split.eval, split_of(&keys, 0.1, 43).eval);
        assert_eq!(split.to_string(), "90 rows to train on (90 questions), 10 held out (10): 10.0% of all");
    }

    #[test]
    fn nothing_is_held_out_of_one_question_or_by_a_share_of_zero() {
        let one = keys(&[(1, None), (1, None)]);
        assert!(split_of(&one, 0.5, 1).eval.is_empty());
        let two = keys(&[(1, None), (2, None)]);
        assert!(split_of(&two, 0.0, 1).eval.is_empty());
        assert!(split_keys([("q".into(), None)], 1.0, 1).is_err());
        assert!(split_keys([("q".into(), None)], f64::NAN, 1).is_err());
    }

    #[test]
    fn groups_join_rows_through_one_another() {
        // 1 and 2 share group 0; 2 and 3 share a question: all three rows are one set.
        let split = split_of(&keys(&[(1, Some(0)), (2, Some(0)), (2, None), (9, None)]), 0.25, 5);
        assert_eq!((split.sets, split.eval), (2, vec![3]));
    }

    #[test]
    fn the_published_run_is_told_from_its_figures() {
        let passes = Passes::of(172, 16, 4, 320).unwrap();
        assert_eq!(passes.steps_per_epoch, 3);
        assert!((passes.passes - 106.67).abs() < 0.01);
        let warning = passes.warning(0).unwrap();
        assert!(warning.contains("320 steps pass 107 times over the same 172 rows"), "{warning}");
        assert_eq!(passes.warning(17), None);
        assert_eq!(Passes::of(172, 16, 4, 9).unwrap().warning(0), None);
        assert!(Passes::of(0, 16, 4, 9).is_err());
        assert!(Passes::of(172, 0, 4, 9).is_err());
    }
}
