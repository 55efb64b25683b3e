//! Philox4x32-10 (Salmon et al., SC 2011): random words addressed by counter, so that a mask depends on neither threads,
//! chunks nor device.

/// What two words of the counter are multiplied by in each round.
pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What is added to the key after each round.
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds.
pub(crate) const ROUNDS: usize = 10;

/// Ten rounds on one counter.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The key of the element masks of one model's tensor.
///
/// One Philox call keyed by the seed, on the FNV-1a hash of the tensor's name, the model's index and the word "DARE".
pub fn element_key(seed: u64, tensor: &str, model: usize) -> [u32; 2] {
    let hash = fnv1a(tensor.as_bytes());
    let [a, b, ..] =
        philox([hash as u32, (hash >> 32) as u32, model as u32, 0x4441_5245], [seed as u32, (seed >> 32) as u32]);
    [a, b]
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The threshold below which a random word keeps its element.
pub fn threshold(density: f64) -> u64 {
    (density.clamp(0.0, 1.0) * 4_294_967_296.0) as u64
}

/// Random words of elements `start..start + words.len()`: four elements a counter.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn fill(words: &mut [u32], start: u64, key: [u32; 2]) {
    let skip = (start % 4) as usize;
    let mut counter = start / 4;
    let (head, rest) = words.split_at_mut(if skip == 0 { 0 } else { (4 - skip).min(words.len()) });
    if !head.is_empty() {
        let r = philox([counter as u32, (counter >> 32) as u32, 0, 0], key);
        head.copy_from_slice(&r[skip..skip + head.len()]);
        counter += 1;
    }
    // Lanes of independent counters, so that the rounds become vector instructions.
    const LANES: usize = 16;
    let mut groups = rest.chunks_exact_mut(4 * LANES);
    for group in &mut groups {
        let mut out = [[0u32; 4]; LANES];
        for (lane, slot) in out.iter_mut().enumerate() {
            let c = counter + lane as u64;
            *slot = philox([c as u32, (c >> 32) as u32, 0, 0], key);
        }
        for (to, from) in group.as_chunks_mut::<4>().0.iter_mut().zip(&out) {
            *to = *from;
        }
        counter += LANES as u64;
    }
    for group in groups.into_remainder().chunks_mut(4) {
        let r = philox([counter as u32, (counter >> 32) as u32, 0, 0], key);
        group.copy_from_slice(&r[..group.len()]);
        counter += 1;
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::philox::*;

    #[test]
    fn philox_gives_the_published_test_vectors() {
        // Random123's kat_vectors for philox4x32-10.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn words_do_not_depend_on_where_a_chunk_starts() {
        let mut whole = [0; 1000];
        fill(&mut whole, 0, [1, 2]);
        for start in [0usize, 1, 2, 3, 4, 63, 64, 65, 500, 999] {
            for len in [0usize, 1, 3, 64, 129, 400] {
                let len = len.min(1000 - start);
                let mut part = vec![0; len];
                fill(&mut part, start as u64, [1, 2]);
                assert_eq!(part, whole[start..start + len]);
            }
        }
    }

    #[test]
    fn counters_go_beyond_32_bits() {
        let key = [3, 4];
        for counter in [1_u64 << 32, (1 << 32) - 20, (5 << 32) + 7] {
            // Whole groups of lanes, what is left of one, and a start within a counter.
            for (skip, len) in [(0, 64), (0, 4), (0, 151), (1, 2), (3, 130)] {
                let mut words = vec![0; len];
                fill(&mut words, 4 * counter + skip as u64, key);
                for (i, word) in words.iter().enumerate() {
                    let at = counter + (skip + i) as u64 / 4;
                    let expected = philox([at as u32, (at >> 32) as u32, 0, 0], key)[(skip + i) % 4];
                    assert_eq!(*word, expected, "word {i} from counter {counter}, {skip} on");
                }
            }
        }
    }
}
