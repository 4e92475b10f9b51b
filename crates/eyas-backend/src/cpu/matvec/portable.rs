//! The inner loops on any processor.

use half::{bf16, f16};

use super::{Dense, Dot, Few, FourBitRows};

/// Plain loops, with as many sums as a compiler needs to use vectors.
pub(super) struct Portable;

impl Dot for Portable {
    const FOUR_BIT_ORDER: &'static [usize] = &[];
    const BF16_ORDER: &'static [usize] = &[];
    const FOUR_BIT_STEP: usize = 0;

    fn f32<const T: usize>(rows: &[f32], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense(rows, x, sums);
    }

    fn f16<const T: usize>(rows: &[f16], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense(rows, x, sums);
    }

    fn bf16<const T: usize>(rows: &[bf16], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense(rows, x, sums);
    }

    fn four_bit<const T: usize>(rows: FourBitRows<'_>, x: Few<'_>, sums: &mut [[f32; T]]) {
        let FourBitRows { book, codes, first, shift, scales } = rows;
        let depth = rows.check(sums.len());
        for (row, sums) in sums.iter_mut().enumerate() {
            let value = |i: usize| {
                let i = row * depth + i;
                let code = if i.is_multiple_of(2) { codes[i / 2] >> 4 } else { codes[i / 2] & 15 };
                book.levels[usize::from(code)] * scales[(first + i) >> shift]
            };
            *sums = dot(depth, value, x);
        }
    }
}

fn dense<E: Dense, const T: usize>(rows: &[E], x: Few<'_>, sums: &mut [[f32; T]]) {
    let depth = rows.len() / sums.len().max(1);
    for (number, sums) in sums.iter_mut().enumerate() {
        let row = &rows[number * depth..][..depth];
        *sums = dot(depth, |i| row[i].to_f32(), x);
    }
}

fn dot<const T: usize>(len: usize, weight: impl Fn(usize) -> f32, x: Few<'_>) -> [f32; T] {
    const LANES: usize = 8;
    let mut sums = [[0.0f32; LANES]; T];
    for start in (0..len).step_by(LANES) {
        let count = LANES.min(len - start);
        let mut weights = [0.0; LANES];
        for (i, value) in weights[..count].iter_mut().enumerate() {
            *value = weight(start + i);
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            let x = &x.values[t * x.stride + start..][..count];
            for ((sum, x), weight) in sums.iter_mut().zip(x).zip(weights) {
                *sum += x * weight;
            }
        }
    }
    sums.map(|sums| sums.iter().sum())
}
