//! The batches of a run: each optimiser step's micro-batches, without padding, and what they count.

use eyas_backend::FlatBatch;

use crate::encode::Example;
use crate::error::{Error, Result};
use crate::sampler::{Position, Sampler};

/// The micro-batches of one optimiser step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The batches, in order.
    pub micro_batches: Vec<FlatBatch>,
    /// Targets of all of them: what the summed loss is divided by.
    pub target_tokens: usize,
    /// Tokens of all of them.
    pub tokens: usize,
    /// Tokens that padding each micro-batch to its longest row would have made of them.
    pub padded_tokens: usize,
    /// Rows of all of them.
    pub rows: usize,
    /// Where the step begins.
    pub from: Position,
    /// Where the next one begins.
    pub to: Position,
}

/// An endless iterator over the steps of a run, epoch after epoch. The last step of an epoch takes the rows
/// that are left, so that a row comes once in each.
#[derive(Clone, Debug)]
pub struct Steps<'a> {
    examples: &'a [Example],
    sampler: &'a Sampler,
    batch: usize,
    accumulation: usize,
    position: Position,
    order: Vec<u32>,
}

impl<'a> Steps<'a> {
    /// The steps from a position on: the start of a run, or where one was stopped.
    ///
    /// # Errors
    /// When a batch or its accumulation is empty, or the sampler and the position do not fit the examples.
    pub fn new(
        examples: &'a [Example],
        sampler: &'a Sampler,
        batch: usize,
        accumulation: usize,
        position: Position,
    ) -> Result<Self> {
        crate::split::steps_per_epoch(examples.len(), batch, accumulation)?;
        if sampler.rows() != examples.len() {
            let reason = format!("orders {} rows of {}", sampler.rows(), examples.len());
            return Err(Error::Option { key: "sampler", reason });
        }
        let rows = examples.len() as u64;
        let step = batch.saturating_mul(accumulation) as u64;
        if position.index > rows || (position.index < rows && !position.index.is_multiple_of(step)) {
            let reason = format!(
                "row {} of {rows} is not where a step of {step} rows begins; were the rows or the batch changed \
                 since the checkpoint?",
                position.index
            );
            return Err(Error::Option { key: "resume position", reason });
        }
        let mut steps =
            Self { examples, sampler, batch, accumulation, position, order: sampler.epoch(position.epoch) };
        steps.turn();
        Ok(steps)
    }

    /// Where the next step begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Passes over the rows so far, as `trainer_state.json` counts epochs.
    pub fn epochs(&self) -> f64 {
        self.position.epoch as f64 + self.position.index as f64 / self.examples.len() as f64
    }

    /// Begins the next epoch when this one is through.
    fn turn(&mut self) {
        if self.position.index == self.order.len() as u64 {
            self.position = Position { epoch: self.position.epoch + 1, index: 0 };
            self.order = self.sampler.epoch(self.position.epoch);
        }
    }

    fn step(&mut self) -> Result<Step> {
        let from = self.position;
        let start = from.index as usize;
        let end = start.saturating_add(self.batch.saturating_mul(self.accumulation)).min(self.order.len());
        let rows = self.order[start..end].iter().map(|&row| &self.examples[row as usize]);
        let micro_batches = micro_batches(rows, self.batch)?;
        self.position.index = end as u64;
        self.turn();
        Ok(Step {
            target_tokens: micro_batches.iter().map(FlatBatch::target_tokens).sum(),
            tokens: micro_batches.iter().map(FlatBatch::tokens).sum(),
            padded_tokens: micro_batches.iter().map(|b| b.sequences() * b.max_seqlen()).sum(),
            rows: end - start,
            micro_batches,
            from,
            to: self.position,
        })
    }
}

impl Iterator for Steps<'_> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.step())
    }
}

fn micro_batches<'e>(rows: impl Iterator<Item = &'e Example>, batch: usize) -> Result<Vec<FlatBatch>> {
    let mut batches: Vec<FlatBatch> = Vec::new();
    for row in rows {
        if batches.last().is_none_or(|last| last.sequences() == batch) {
            batches.push(FlatBatch::new());
        }
        if let Some(last) = batches.last_mut() {
            last.push_causal(&row.input_ids, &row.target_mask)?;
        }
    }
    Ok(batches)
}

/// The batches of an evaluation: every example once, long ones first, so that a batch has like lengths.
///
/// # Errors
/// When a batch is empty.
pub fn eval_batches(examples: &[Example], batch: usize) -> Result<Vec<FlatBatch>> {
    if batch == 0 {
        return Err(Error::Option { key: "per_device_eval_batch_size", reason: "must be at least 1".into() });
    }
    let mut ordered: Vec<&Example> = examples.iter().collect();
    ordered.sort_by_key(|example| std::cmp::Reverse(example.input_ids.len()));
    micro_batches(ordered.into_iter(), batch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sampler::Order;

    fn examples(lengths: &[usize]) -> Vec<Example> {
        let example =
            |(i, &n): (usize, &usize)| Example { input_ids: vec![i as u32; n], target_mask: vec![true; n] };
        lengths.iter().enumerate().map(example).collect()
    }

    fn sampler(examples: &[Example], rows_per_step: usize) -> Sampler {
        let lengths = examples.iter().map(|e| e.input_ids.len()).collect();
        Sampler::new(Order::GroupByLength { rows_per_step }, 42, lengths).unwrap()
    }

    #[test]
    fn a_step_counts_its_targets_and_padding() {
        let examples = examples(&[4, 2, 3]);
        let sampler = Sampler::new(Order::Sequential, 0, vec![4, 2, 3]).unwrap();
        let mut steps = Steps::new(&examples, &sampler, 2, 2, Position::default()).unwrap();
        let step = steps.next().unwrap().unwrap();
        assert_eq!(step.micro_batches.len(), 2);
        assert_eq!((step.tokens, step.target_tokens, step.padded_tokens, step.rows), (9, 6, 11, 3));
        assert_eq!(step.to, Position { epoch: 1, index: 0 });
        assert_eq!(steps.epochs(), 1.0);
    }

    proptest! {
        #[test]
        fn a_run_goes_on_bit_for_bit_from_any_position(
            lengths in prop::collection::vec(1_usize..9, 1..40),
            batch in 1_usize..5,
            accumulation in 1_usize..4,
            stop in 0_usize..12,
        ) {
            let examples = examples(&lengths);
            let sampler = sampler(&examples, batch * accumulation);
            let steps = |from| Steps::new(&examples, &sampler, batch, accumulation, from).unwrap();
            let whole: Vec<_> = steps(Position::default()).take(16).map(Result::unwrap).collect();
            let mut stopped = steps(Position::default());
            stopped.by_ref().take(stop).for_each(drop);
            let saved = serde_json::to_string(&stopped.position()).unwrap();
            let resumed: Vec<_> =
                steps(serde_json::from_str(&saved).unwrap()).take(16 - stop).map(Result::unwrap).collect();
            prop_assert_eq!(&whole[stop..], &resumed);
        }

        #[test]
        fn an_epoch_holds_every_row_once(
            lengths in prop::collection::vec(1_usize..9, 1..60),
            batch in 1_usize..5,
            accumulation in 1_usize..4,
        ) {
            let examples = examples(&lengths);
            let sampler = sampler(&examples, batch * accumulation);
            let steps = Steps::new(&examples, &sampler, batch, accumulation, Position::default()).unwrap();
            let epoch: Vec<_> = steps.map(Result::unwrap).take_while(|step| step.from.epoch == 0).collect();
            let expected = crate::split::steps_per_epoch(lengths.len(), batch, accumulation).unwrap();
            prop_assert_eq!(epoch.len() as u64, expected);
            let mut seen: Vec<u32> = epoch
                .iter()
                .flat_map(|step| &step.micro_batches)
                .flat_map(|batch| batch.ranges().map(|range| batch.input_ids()[range.start]).collect::<Vec<_>>())
                .collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..lengths.len() as u32));
        }
    }

    #[test]
    fn a_position_of_another_run_is_refused() {
        let examples = examples(&[1; 10]);
        let sampler = sampler(&examples, 4);
        let at = |index| Steps::new(&examples, &sampler, 2, 2, Position { epoch: 0, index });
        assert!(at(4).is_ok());
        assert!(at(3).unwrap_err().to_string().contains("row 3 of 10"));
        assert!(at(11).is_err());
        assert!(Steps::new(&examples[..9], &sampler, 2, 2, Position::default()).is_err());
    }

    #[test]
    fn an_evaluation_takes_every_example_once() {
        let batches = eval_batches(&examples(&[1, 5, 3]), 2).unwrap();
        let sizes: Vec<_> = batches.iter().map(|b| (b.sequences(), b.tokens())).collect();
        assert_eq!(sizes, [(2, 8), (1, 1)]);
        assert!(eval_batches(&[], 0).is_err());
    }
}
