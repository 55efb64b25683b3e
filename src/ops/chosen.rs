//! Elements that were chosen one by one, of one task vector.

/// What is kept of a run of elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Chosen {
    /// A bit for each element, from the lowest of a byte on.
    Bits(Vec<u8>),
    /// What each element is multiplied by; 0 where it is dropped.
    Scales(Vec<f32>),
}

impl Chosen {
    /// Of so many elements, none of which is kept.
    pub fn none(elems: usize, scales: bool) -> Self {
        if scales { Self::Scales(vec![0.0; elems]) } else { Self::Bits(vec![0; elems.div_ceil(8)]) }
    }

    /// Bytes that it takes for so many elements.
    pub fn bytes(elems: u64, scales: bool) -> u64 {
        if scales { 4 * elems } else { elems.div_ceil(8) }
    }

    /// Keeps an element.
    pub fn keep(&mut self, element: usize, scale: f32) {
        match self {
            Self::Bits(bits) => bits[element / 8] |= 1 << (element % 8),
            Self::Scales(scales) => scales[element] = scale,
        }
    }

    /// What an element is multiplied by; `None` where it is dropped.
    pub fn scale(&self, element: usize) -> Option<f32> {
        match self {
            Self::Bits(bits) => (bits[element / 8] >> (element % 8) & 1 == 1).then_some(1.0),
            Self::Scales(scales) => Some(scales[element]).filter(|scale| *scale != 0.0),
        }
    }

    /// Adds what was chosen of `elems` elements from `first` on.
    pub fn add(&mut self, first: usize, elems: usize, of: &Self) {
        match (self, of) {
            (Self::Bits(bits), Self::Bits(of)) if first.is_multiple_of(8) => {
                bits[first / 8..].iter_mut().zip(of).for_each(|(bits, of)| *bits |= of);
            }
            (Self::Scales(scales), Self::Scales(of)) => scales[first..first + elems].copy_from_slice(&of[..elems]),
            (all, of) => (0..elems).for_each(|i| {
                if let Some(scale) = of.scale(i) {
                    all.keep(first + i, scale);
                }
            }),
        }
    }

    /// Elements that are kept.
    pub fn kept(&self) -> u64 {
        match self {
            Self::Bits(bits) => bits.iter().map(|bits| u64::from(bits.count_ones())).sum(),
            Self::Scales(scales) => scales.iter().map(|scale| u64::from(*scale != 0.0)).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_of_parts_is_chosen_of_the_whole() {
        for scales in [false, true] {
            for first in [0, 3, 8, 17] {
                let mut part = Chosen::none(21, scales);
                [0, 2, 7, 8, 20].into_iter().for_each(|i| part.keep(i, 0.5));
                let mut whole = Chosen::none(40, scales);
                whole.add(first, 21, &part);
                let kept: Vec<usize> = (0..40).filter(|i| whole.scale(*i).is_some()).collect();
                assert_eq!(kept, [0, 2, 7, 8, 20].map(|i| first + i), "{scales} {first}");
                assert_eq!((whole.kept(), part.kept()), (5, 5));
                assert_eq!(whole.scale(first), Some(if scales { 0.5 } else { 1.0 }));
            }
        }
    }
}
