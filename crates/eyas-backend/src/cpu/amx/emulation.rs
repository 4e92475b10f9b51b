//! Tile registers in plain Rust, as the instruction set's manual describes them, and tests of the kernel on them.

use std::cell::RefCell;

use super::super::product::{Operand, Output, multiply_panels};
use super::{Config, DEPTH, PANEL, TileKernel, Unit};
use crate::cpu::microkernel::Kernel;
use crate::cpu::panel::to_bf16;
use half::bf16;

/// The kernel on registers in plain Rust.
pub(in super::super) type EmulatedAmx = TileKernel<Emulation>;

/// The registers of a thread.
struct Registers {
    /// `None` after a release: every use is then a fault.
    config: Option<Config>,
    tiles: [[[u8; 64]; 16]; 8],
}

thread_local! {
    static REGISTERS: RefCell<Registers> =
        const { RefCell::new(Registers { config: None, tiles: [[[0; 64]; 16]; 8] }) };
}

impl Registers {
    /// Rows and bytes of a row of a register.
    fn shape(&self, tile: usize) -> (usize, usize) {
        let config = self.config.expect("a tile register was used without shapes");
        (config.rows[tile].into(), config.row_bytes[tile].into())
    }

    fn f32(&self, tile: usize, row: usize, col: usize) -> f32 {
        f32::from_le_bytes(self.tiles[tile][row][4 * col..][..4].try_into().unwrap())
    }

    fn bf16(&self, tile: usize, row: usize, col: usize) -> f32 {
        bf16::from_le_bytes(self.tiles[tile][row][2 * col..][..2].try_into().unwrap()).to_f32()
    }
}

pub(in super::super) struct Emulation;

impl Unit for Emulation {
    unsafe fn configure(config: &Config) {
        assert_eq!((config.palette, config.start_row, config.reserved), (1, 0, [0; 14]));
        for tile in 0..16 {
            let (rows, bytes) = (config.rows[tile], config.row_bytes[tile]);
            // The processor refuses a register with one of both zero, or a shape larger than its own.
            assert!((rows == 0) == (bytes == 0) && rows <= 16 && bytes <= 64 && (tile < 8 || rows == 0));
        }
        REGISTERS.with_borrow_mut(|registers| {
            *registers = Registers { config: Some(*config), tiles: [[[0; 64]; 16]; 8] };
        });
    }

    unsafe fn release() {
        REGISTERS.with_borrow_mut(|registers| registers.config = None);
    }

    unsafe fn zero<const T: usize>() {
        REGISTERS.with_borrow_mut(|registers| {
            registers.shape(T);
            registers.tiles[T] = [[0; 64]; 16];
        });
    }

    unsafe fn load<const T: usize>(from: *const u8, stride: usize) {
        REGISTERS.with_borrow_mut(|registers| {
            let (rows, bytes) = registers.shape(T);
            registers.tiles[T] = [[0; 64]; 16];
            for row in 0..rows {
                // SAFETY: the caller promises the memory as far as the shape reaches.
                let source = unsafe { std::slice::from_raw_parts(from.add(row * stride), bytes) };
                registers.tiles[T][row][..bytes].copy_from_slice(source);
            }
        });
    }

    unsafe fn store<const T: usize>(to: *mut u8, stride: usize) {
        REGISTERS.with_borrow(|registers| {
            let (rows, bytes) = registers.shape(T);
            for row in 0..rows {
                // SAFETY: the caller promises the memory as far as the shape reaches.
                let target = unsafe { std::slice::from_raw_parts_mut(to.add(row * stride), bytes) };
                target.copy_from_slice(&registers.tiles[T][row][..bytes]);
            }
        });
    }

    unsafe fn multiply_add<const C: usize, const A: usize, const B: usize>() {
        REGISTERS.with_borrow_mut(|registers| {
            let ((rows, c_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) =
                (registers.shape(C), registers.shape(A), registers.shape(B));
            // What the processor faults on.
            assert!(rows == a_rows && c_bytes == b_bytes && a_bytes / 4 == b_rows);
            for row in 0..rows {
                for col in 0..c_bytes / 4 {
                    let mut sums = [0.0f32; 2];
                    for pair in 0..b_rows {
                        for (i, sum) in sums.iter_mut().enumerate() {
                            let (a, b) =
                                (registers.bf16(A, row, 2 * pair + i), registers.bf16(B, pair, 2 * col + i));
                            *sum = a.mul_add(b, *sum);
                        }
                    }
                    let sum = registers.f32(C, row, col) + (sums[0] + sums[1]);
                    registers.tiles[C][row][4 * col..][..4].copy_from_slice(&sum.to_le_bytes());
                }
            }
        });
    }
}

/// Small integers: their products and sums are exact.
fn values(n: usize, seed: usize) -> Vec<bf16> {
    (0..n).map(|i| to_bf16(((i * 37 + seed * 101) % 17) as f32 - 8.0)).collect()
}

/// Any number of rows, columns and terms gives the product, and nothing around it is touched.
fn check<K: Kernel<Element = bf16>>() {
    let cases: [(usize, usize, Vec<usize>, bool); 8] = [
        (1, 1, vec![32], false),
        (15, 32, vec![32], true),
        (16, 31, vec![64, 32], false),
        (17, 64, vec![32], true),
        (31, 33, vec![96], true),
        (32, 96, vec![64], false),
        (49, 40, vec![32, 32, 32], true),
        (130, 70, vec![64], true),
    ];
    for (rows, cols, depths, add) in cases {
        let (stride, width) = (cols + 3, cols.next_multiple_of(PANEL));
        let operands: Vec<_> = depths
            .iter()
            .enumerate()
            .map(|(i, &depth)| (values(rows * (depth + 32), i), values(width * depth, 9 + i), depth))
            .collect();
        let before: Vec<f32> = (0..(rows + 1) * stride).map(|i| (i % 23) as f32).collect();
        let mut expected = before.clone();
        for row in 0..rows {
            for col in 0..cols {
                let sum: f32 = operands
                    .iter()
                    .flat_map(|(a, b, depth)| {
                        (0..*depth).map(move |k| {
                            // Pairs along the depth side by side, 32 columns to a panel.
                            let panel = col / PANEL * PANEL * depth;
                            let b = b[panel + k / 2 * 2 * PANEL + col % PANEL * 2 + k % 2];
                            a[row * (depth + 32) + k].to_f32() * b.to_f32()
                        })
                    })
                    .sum();
                let out = &mut expected[row * stride + col];
                *out = if add { *out + sum } else { sum };
            }
        }
        let operands: Vec<_> = operands
            .iter()
            .map(|(left, panels, depth)| Operand { left, stride: depth + 32, panels, depth: *depth })
            .collect();
        let mut got = before;
        let out = Output::new(&mut got, stride);
        // SAFETY: the processor has the instructions, or they are emulated; the output is this test's own.
        unsafe { multiply_panels::<K>(&operands, rows, cols, out, add) };
        assert_eq!(got, expected, "{rows} x {cols}, depths {depths:?}");
    }
}

#[test]
fn tiles_of_any_shape_give_the_product() {
    check::<EmulatedAmx>();
}

#[test]
fn the_processor_gives_what_the_emulation_gives() {
    #[cfg(target_arch = "x86_64")]
    if super::is_available() {
        return check::<super::AmxBf16>();
    }
    eprintln!("skipped: this processor has no AMX");
}

#[test]
fn the_shapes_lie_where_the_instruction_reads_them() {
    let config = Config::new(16, 5);
    // SAFETY: the structure has no padding: 1 + 1 + 14 + 32 + 16 bytes.
    let bytes = unsafe { std::mem::transmute::<Config, [u8; 64]>(config) };
    assert_eq!(bytes[..2], [1, 0]);
    for (tile, rows) in [16, 16, 5, 5, 16, 5, 16, 16].into_iter().enumerate() {
        assert_eq!(bytes[16 + 2 * tile..][..2], [64, 0]);
        assert_eq!(bytes[48 + tile], rows);
    }
    assert!(bytes[32..48].iter().chain(&bytes[56..]).all(|&byte| byte == 0));
    assert_eq!(DEPTH * size_of::<bf16>(), 64);
}
