//! The matrix product inside a tile of attention: a few rows times panels of sixteen columns.
//!
//! Every output element is one chain of fused multiply-adds in the order of `k`, so the result depends neither on
//! the instruction set nor on how rows and columns are grouped.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

use crate::cpu::simd::Level;
#[cfg(target_arch = "x86_64")]
use crate::cpu::vector::Floats;

/// Rows of the left operand that are multiplied at once.
pub(super) const ROWS: usize = 6;
/// Columns of a panel.
pub(super) const COLS: usize = 16;

/// The left operand: element `(i, l)` is `data[i * row + l * col]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) col: usize,
}

/// The right operand: element `(l, j)` is `data[l * row + j / 16 * panel + j % 16]`.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) panel: usize,
}

/// `c = a b`, or `c += a b`: `a` `[rows, k]`, `b` `[k, 16 * panels]`, `c` of `stride` elements a row.
///
/// # Panics
/// When there are no rows or more than [`ROWS`], or an operand reaches past the end of its slice.
#[inline]
pub(super) fn product(
    level: Level,
    (rows, k, panels): (usize, usize, usize),
    a: Left<'_>,
    b: Right<'_>,
    c: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    assert!((1..=ROWS).contains(&rows), "{rows} rows in a tile");
    if panels == 0 || (k == 0 && accumulate) {
        return;
    }
    assert!((rows - 1) * stride + panels * COLS <= c.len(), "c is too short");
    if k > 0 {
        assert!((rows - 1) * a.row + (k - 1) * a.col < a.data.len(), "a is too short");
        assert!((k - 1) * b.row + (panels - 1) * b.panel + COLS <= b.data.len(), "b is too short");
    }
    let tile = Tile {
        k,
        panels,
        a: a.data.as_ptr(),
        a_row: a.row,
        a_col: a.col,
        b: b.data.as_ptr(),
        b_row: b.row,
        b_panel: b.panel,
        c: c.as_mut_ptr(),
        c_row: stride,
        accumulate,
    };
    // SAFETY: every element that the tile names lies inside its slice, as just checked, and `c` is borrowed
    // mutably, so it overlaps neither operand; the processor has the instructions of `level`.
    unsafe {
        match rows {
            1 => tile.run::<1>(level),
            2 => tile.run::<2>(level),
            3 => tile.run::<3>(level),
            4 => tile.run::<4>(level),
            5 => tile.run::<5>(level),
            _ => tile.run::<6>(level),
        }
    }
}

/// The operands of one product, checked.
#[derive(Clone, Copy)]
struct Tile {
    k: usize,
    panels: usize,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    b_row: usize,
    b_panel: usize,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
}

impl Tile {
    /// # Safety
    /// The operands are readable and `c` writable for `R` rows, and the processor has the level's instructions.
    #[inline(always)]
    unsafe fn run<const R: usize>(self, level: Level) {
        // SAFETY: the caller's.
        unsafe {
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => self.avx512::<R>(),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => self.avx2::<R>(),
                Level::Portable => self.portable::<R>(),
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`].
    unsafe fn portable<const R: usize>(self) {
        for panel in 0..self.panels {
            let mut sums = [[0.0f32; COLS]; R];
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let c = unsafe { &mut *self.c.add(i * self.c_row + panel * COLS).cast::<[f32; COLS]>() };
                if self.accumulate {
                    *sums = *c;
                }
                for l in 0..self.k {
                    // SAFETY: the caller's.
                    let (a, b) = unsafe {
                        (
                            *self.a.add(i * self.a_row + l * self.a_col),
                            &*self.b.add(l * self.b_row + panel * self.b_panel).cast::<[f32; COLS]>(),
                        )
                    };
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = a.mul_add(*b, *sum);
                    }
                }
                *c = *sums;
            }
        }
    }

    /// A panel at a time.
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize>(self) {
        for panel in 0..self.panels {
            // SAFETY: the caller's; the panel exists.
            unsafe { self.vectors::<__m256, R, 2>(panel) };
        }
    }

    /// Two panels at a time.
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const R: usize>(self) {
        let mut panel = 0;
        while panel < self.panels {
            // SAFETY: the caller's; both panels exist.
            unsafe {
                if panel + 2 <= self.panels {
                    self.vectors::<__m512, R, 2>(panel);
                    panel += 2;
                } else {
                    self.vectors::<__m512, R, 1>(panel);
                    panel += 1;
                }
            }
        }
    }

    /// `N` vectors of columns from the beginning of a panel on, in it or in the next one too. Two are twelve sums in
    /// flight at six rows.
    ///
    /// # Safety
    /// As [`Tile::run`], and the panels exist.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn vectors<V: Floats, const R: usize, const N: usize>(self, panel: usize) {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [[V::zero(); N]; R];
            let c = self.c.add(panel * COLS);
            if self.accumulate {
                for i in 0..R {
                    for n in 0..N {
                        sums[i][n] = V::load(c.add(i * self.c_row + n * V::LANES));
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b.add(panel * self.b_panel));
            for _ in 0..self.k {
                let mut columns = [V::zero(); N];
                for n in 0..N {
                    let (panel, col) = (n * V::LANES / COLS, n * V::LANES % COLS);
                    columns[n] = V::load(b.add(panel * self.b_panel + col));
                }
                for i in 0..R {
                    let row = V::splat(*a.add(i * self.a_row));
                    for n in 0..N {
                        sums[i][n] = row.mul_add(columns[n], sums[i][n]);
                    }
                }
                a = a.wrapping_add(self.a_col);
                b = b.wrapping_add(self.b_row);
            }
            for i in 0..R {
                for n in 0..N {
                    sums[i][n].store(c.add(i * self.c_row + n * V::LANES));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 101) % 61) as f32 / 61.0 - 0.5).collect()
    }

    /// Each level gives the bits of a plain loop of fused multiply-adds.
    #[test]
    fn every_level_gives_the_same_bits() {
        let levels = [
            Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512,
        ];
        for level in levels.into_iter().filter(|&level| level <= Level::detect()) {
            for (rows, k, panels) in
                [(1, 3, 1), (2, 16, 3), (3, 7, 2), (4, 1, 5), (5, 33, 4), (6, 64, 4), (6, 0, 1)]
            {
                for (a_row, a_col) in [(k.max(1), 1), (1, 6)] {
                    for (b_row, b_panel) in [(16, 16 * k), (16 * panels, 16)] {
                        for accumulate in [false, true] {
                            let (a, b) = (values(6 * (k + 1), 1), values(16 * panels * (k + 1), 2));
                            let stride = 16 * panels + 3;
                            let mut c = values(rows * stride, 3);
                            let mut expected = c.clone();
                            for i in 0..rows {
                                for j in 0..16 * panels {
                                    let sum = &mut expected[i * stride + j];
                                    *sum = (0..k).fold(if accumulate { *sum } else { 0.0 }, |sum, l| {
                                        a[i * a_row + l * a_col]
                                            .mul_add(b[l * b_row + j / 16 * b_panel + j % 16], sum)
                                    });
                                }
                            }
                            let left = Left { data: &a, row: a_row, col: a_col };
                            let right = Right { data: &b, row: b_row, panel: b_panel };
                            product(level, (rows, k, panels), left, right, &mut c, stride, accumulate);
                            assert_eq!(c, expected, "{level:?} {rows} x {k} x {panels} panels");
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "b is too short")]
    fn a_short_operand_is_refused() {
        let left = Left { data: &[1.0; 4], row: 2, col: 1 };
        let right = Right { data: &[1.0; 31], row: 16, panel: 32 };
        product(Level::detect(), (2, 2, 1), left, right, &mut [0.0; 32], 16, false);
    }
}
