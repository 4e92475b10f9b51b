//! Philox4x32-10, the counter-based generator of Salmon et al. (2011), and the dropout mask built on it.
//!
//! A mask is a pure function of (seed, micro-batch, projection, token, column): recomputation, backward and a
//! resumed run need no stored state, and every device draws the same mask.

pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
pub(crate) const ROUNDS: usize = 10;

/// Four random words for a counter and a key.
#[inline]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

/// The 16-bit threshold of a drop probability: an element is dropped when its 16 bits are below it.
#[inline]
pub fn dropout_threshold(p: f32) -> u32 {
    (p * 65536.0).round() as u32
}

/// The 16 random bits of eight neighbouring columns, `8 * block .. 8 * block + 8`, of one token.
#[inline]
pub fn dropout_bits(seed: u64, micro_batch: u32, projection: u32, token: u32, block: u32) -> [u16; 8] {
    let words = philox4x32([block, token, projection, micro_batch], [seed as u32, (seed >> 32) as u32]);
    let mut bits = [0; 8];
    for (pair, word) in bits.chunks_exact_mut(2).zip(words) {
        pair[0] = word as u16;
        pair[1] = (word >> 16) as u16;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn the_share_dropped_is_the_probability() {
        let threshold = dropout_threshold(0.05);
        let dropped = (0..20_000u32)
            .flat_map(|i| dropout_bits(42, 1, 2, i / 100, i % 100))
            .filter(|&bits| u32::from(bits) < threshold)
            .count();
        let share = dropped as f64 / 160_000.0;
        assert!((share - 0.05).abs() < 0.002, "{share}");
    }
}
