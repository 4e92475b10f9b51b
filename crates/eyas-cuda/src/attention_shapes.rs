//! The shapes of the flash attention kernels: how many rows a block takes, and the shared memory that it needs.
//!
//! They repeat the `Shape`s of `kernels/flash_*.cu`, where they are constants of the code.

/// Sizes of heads that there are kernels for; a head takes the next one.
const HEADS: [usize; 4] = [64, 96, 128, 256];

/// The branches of the kernels' code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// wgmma: compute capability 9.0.
    Hopper,
    /// mma.sync and asynchronous copies.
    Ampere,
    /// Neither bfloat16 nor asynchronous copies, and 64 KB of shared memory.
    Turing,
}

impl Generation {
    pub(crate) fn of(sm: (u32, u32)) -> Self {
        match sm {
            (9, 0) => Self::Hopper,
            (7, _) => Self::Turing,
            _ => Self::Ampere,
        }
    }
}

/// `Shape` of flash.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Columns of a head in shared memory.
    pub(crate) dim: usize,
    /// Rows of the tiles that a block walks over.
    pub(crate) tile: usize,
    /// Warps of a block, 16 rows each.
    pub(crate) warps: usize,
    /// Tiles in flight.
    pub(crate) stages: usize,
    /// Blocks of a multiprocessor that the registers are shared out for.
    blocks: usize,
}

impl Shape {
    /// Rows of a block.
    pub(crate) fn rows(&self) -> usize {
        16 * self.warps
    }

    pub(crate) fn threads(&self) -> u32 {
        32 * self.warps as u32
    }

    /// Bytes of `rows` rows of a head: panels of 64 columns, 128 bytes a row.
    fn bytes(&self, rows: usize) -> usize {
        rows * 128 * self.dim.div_ceil(64)
    }
}

/// The kernels whose blocks have a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Queries stay, keys and values come by.
    Forward,
    /// Queries and their gradients stay, keys and values come by.
    Query,
    /// Keys and values stay, queries and their gradients come by.
    Key,
    /// Sixteen rows of queries; each warp has tiles of its own.
    Decode,
}

/// Shape and dynamic shared memory of a kernel for heads of `head_dim`, at most 256.
pub(crate) fn shape(kernel: Kernel, generation: Generation, head_dim: usize) -> (Shape, u32) {
    let size = HEADS.iter().position(|dim| head_dim <= *dim).unwrap_or(HEADS.len() - 1);
    let shapes = match kernel {
        Kernel::Forward => &FORWARD,
        Kernel::Query => &QUERY,
        Kernel::Key => &KEY,
        Kernel::Decode => &DECODE,
    };
    let [tile, warps, stages, blocks] = shapes[generation as usize][size];
    let s = Shape { dim: HEADS[size], tile, warps, stages, blocks };
    let bytes = match kernel {
        Kernel::Forward => s.bytes(s.rows()) + stages * 2 * s.bytes(tile),
        Kernel::Query => 2 * s.bytes(s.rows()) + stages * 2 * s.bytes(tile),
        // A tile's queries, gradients and statistics, in whole kilobytes.
        Kernel::Key => 2 * s.bytes(s.rows()) + stages * (2 * s.bytes(tile) + 8 * tile).next_multiple_of(1024),
        Kernel::Decode => s.bytes(tile) + warps * stages * 2 * s.bytes(tile),
    };
    // wgmma's swizzle needs a boundary of 1024 bytes, which the block looks for itself.
    let slack = if generation == Generation::Hopper && kernel != Kernel::Decode { 1024 } else { 0 };
    (s, (bytes + slack) as u32)
}

/// By generation and size of head: tile, warps, stages, blocks.
type Table = [[[usize; 4]; HEADS.len()]; 3];

const FORWARD: Table = [
    [[64, 8, 2, 2], [64, 8, 2, 2], [64, 8, 2, 2], [64, 8, 2, 1]],
    [[64, 4, 2, 3], [64, 4, 2, 2], [64, 4, 2, 2], [32, 4, 2, 1]],
    [[64, 4, 1, 2], [64, 4, 1, 1], [64, 4, 1, 1], [32, 4, 1, 1]],
];
const QUERY: Table = [
    [[64, 4, 2, 4], [64, 4, 2, 2], [64, 4, 1, 3], [32, 8, 2, 1]],
    [[64, 4, 2, 2], [64, 4, 2, 1], [64, 4, 2, 1], [32, 4, 1, 1]],
    [[64, 4, 1, 1], [64, 4, 1, 1], [64, 4, 1, 1], [32, 2, 1, 1]],
];
const KEY: Table = [
    [[64, 4, 3, 3], [64, 8, 2, 1], [64, 8, 3, 1], [32, 8, 2, 1]],
    [[64, 4, 2, 2], [32, 4, 2, 1], [32, 4, 2, 1], [32, 4, 1, 1]],
    [[64, 4, 1, 1], [32, 4, 1, 1], [32, 4, 1, 1], [16, 2, 1, 1]],
];
const DECODE: Table = [
    [[16, 4, 4, 1], [16, 4, 2, 1], [16, 4, 2, 1], [16, 2, 2, 1]],
    [[16, 4, 4, 1], [16, 4, 2, 1], [16, 4, 2, 1], [16, 2, 2, 1]],
    [[16, 4, 1, 1], [16, 4, 1, 1], [16, 4, 1, 1], [16, 2, 1, 1]],
];

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATIONS: [Generation; 3] = [Generation::Hopper, Generation::Ampere, Generation::Turing];
    const KERNELS: [(Kernel, &str, &str); 4] = [
        (Kernel::Forward, "Forward", include_str!("kernels/flash_forward.cu")),
        (Kernel::Query, "Query", include_str!("kernels/flash_backward.cu")),
        (Kernel::Key, "Key", include_str!("kernels/flash_backward.cu")),
        (Kernel::Decode, "Decode", include_str!("kernels/flash_decode.cu")),
    ];

    #[test]
    fn the_kernels_have_these_shapes() {
        for (kernel, name, source) in KERNELS {
            let source = source.replace("STEP", "16");
            for dim in HEADS {
                let end = format!("> {name}{dim};");
                let written: Vec<&str> = source
                    .lines()
                    .filter_map(|line| line.strip_prefix("typedef Shape<")?.strip_suffix(&end))
                    .collect();
                // The decode kernel has one branch for all cards with asynchronous copies.
                let all = match written[..] {
                    [ampere, turing] => [ampere, ampere, turing],
                    [hopper, ampere, turing] => [hopper, ampere, turing],
                    _ => panic!("{name}{dim}: {written:?}"),
                };
                for (generation, written) in GENERATIONS.into_iter().zip(all) {
                    let (s, _) = shape(kernel, generation, dim);
                    let here = format!("{}, {}, {}, {}, {}", s.dim, s.tile, s.warps, s.stages, s.blocks);
                    assert_eq!(here, written, "{name}{dim} {generation:?}");
                }
            }
        }
    }

    #[test]
    fn shared_memory_fits_the_smallest_card_of_each_generation() {
        for (generation, limit) in GENERATIONS.into_iter().zip([227 << 10, 99 << 10, 64 << 10]) {
            for (kernel, name, _) in KERNELS {
                for dim in HEADS {
                    let (s, bytes) = shape(kernel, generation, dim);
                    // The decode kernel's statistics are in static shared memory.
                    let fixed = if kernel == Kernel::Decode { 8 * 16 * s.warps } else { 0 };
                    assert!(bytes as usize + fixed <= limit, "{name}{dim} {generation:?}: {bytes}");
                    assert!(
                        generation != Generation::Hopper
                            || kernel == Kernel::Decode
                            || s.warps.is_multiple_of(4)
                    );
                }
            }
        }
    }
}
