//! A hash of text that is the same on every machine and in every version.

/// FNV-1a over the bytes, then the finaliser of SplitMix64 so that every bit depends on every byte.
pub(crate) fn hash(seed: u64, parts: &[&str]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut take = |byte: u8| state = (state ^ u64::from(byte)).wrapping_mul(PRIME);
    seed.to_le_bytes().into_iter().for_each(&mut take);
    for part in parts {
        part.bytes().for_each(&mut take);
        // 0xff occurs in no UTF-8, so it parts "ab", "c" from "a", "bc".
        take(0xff);
    }
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fixed_and_parts_its_parts() {
        assert_eq!(hash(42, &["a", "b"]), hash(42, &["a", "b"]));
        assert_ne!(hash(42, &["ab", "c"]), hash(42, &["a", "bc"]));
        assert_ne!(hash(42, &["a"]), hash(43, &["a"]));
    }
}
