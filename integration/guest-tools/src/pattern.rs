//! Data that can be made again from a seed, and a hash to compare it by.
//!
//! Both work a word at a time: a guest without KVM runs some thirty times slower than its host.

/// SplitMix64: one multiplication-rich step, good enough to make every block different.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `into` (any length) with the stream that `seed` names.
pub fn stream(seed: u64, into: &mut [u8]) {
    for (index, chunk) in into.chunks_mut(8).enumerate() {
        let word = mix(seed ^ mix(index as u64)).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Any single changed word changes it; order and length count too.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut state = mix(bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
    mix(state)
}
