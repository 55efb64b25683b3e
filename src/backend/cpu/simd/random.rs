//! Random masks: Philox4x32-10 on as many counters at once as there are lanes of 64 bits.

use super::for_level;
use super::lanes::Lanes;
use crate::ops::philox::{MULTIPLIERS, ROUNDS, WEYL};

/// Elements whose words come from one turn of the widest loop here.
const TURN: usize = 128;

/// Bytes of the mask of so many elements: a bit an element, in whole turns.
pub(in super::super) const fn mask_bytes(elems: usize) -> usize {
    elems.div_ceil(TURN) * TURN / 8
}

for_level! {
    /// Notes in `bits`, of [`mask_bytes`], which of `n` elements (a multiple of [`super::STEP`]) from `4 * counter` on have random words
    /// below the threshold, at most 2³²; how many they are. Bit 0 of a byte is its first element.
    fn keep_random(counter: u64, key: [u32; 2], threshold: u64, n: usize, bits: &mut [u8]) -> u64 = keep;
}

#[inline(always)]
fn keep<L: Lanes>(l: L, counter: u64, key: [u32; 2], threshold: u64, n: usize, bits: &mut [u8]) -> u64 {
    let Ok(threshold) = u32::try_from(threshold) else {
        bits.fill(u8::MAX);
        return n as u64;
    };
    let mut keys = [[l.word(0); 2]; ROUNDS];
    let mut round_key = key;
    for keys in &mut keys {
        *keys = [l.word(round_key[0]), l.word(round_key[1])];
        round_key = [round_key[0].wrapping_add(WEYL[0]), round_key[1].wrapping_add(WEYL[1])];
    }
    // As many vectors of counters at once as registers hold: a round waits for the one before.
    if L::N == 16 {
        turns::<L, 4>(l, counter, &keys, threshold, bits);
    } else {
        turns::<L, 2>(l, counter, &keys, threshold, bits);
    }
    let (words, rest) = bits[..n / 8].as_chunks::<8>();
    let kept: u32 = words.iter().map(|word| u64::from_le_bytes(*word).count_ones()).sum();
    u64::from(kept + rest.iter().map(|byte| byte.count_ones()).sum::<u32>())
}

#[inline(always)]
fn turns<L: Lanes, const GROUPS: usize>(
    l: L,
    counter: u64,
    keys: &[[L::W; 2]; ROUNDS],
    threshold: u32,
    bits: &mut [u8],
) {
    let multipliers = [l.word(MULTIPLIERS[0]), l.word(MULTIPLIERS[1])];
    for at in (0..bits.len() * 8).step_by(GROUPS * 2 * L::N) {
        let mut words = [[l.word(0); 4]; GROUPS];
        for (group, words) in words.iter_mut().enumerate() {
            let first = counter + (at / 4 + group * L::N / 2) as u64;
            (words[0], words[1]) = l.counter(first);
        }
        // Two rounds at a time, after which words are in the registers that they came from.
        for [even, odd] in keys.as_chunks::<2>().0 {
            for words in &mut words {
                *words = round(l, multipliers, *words, even);
            }
            for words in &mut words {
                *words = round(l, multipliers, *words, odd);
            }
        }
        for (group, words) in words.iter().enumerate() {
            l.below(*words, threshold, bits, at + group * 2 * L::N);
        }
    }
}

#[inline(always)]
fn round<L: Lanes>(l: L, multipliers: [L::W; 2], words: [L::W; 4], keys: &[L::W; 2]) -> [L::W; 4] {
    let (a, b) = (l.word_mul(multipliers[0], words[0]), l.word_mul(multipliers[1], words[2]));
    // The low halves of products are words as they stand.
    let x = l.word_xor(l.word_high(b), words[1], keys[0]);
    let y = l.word_xor(l.word_high(a), words[3], keys[1]);
    [x, b, y, a]
}
