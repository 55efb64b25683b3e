//! Which instruction set the loops run on that are written out for several: the widest of this processor, or the one that
//! `MERGANSER_CPU` names.
//!
//! Element-wise work and statistics give the same bits on all of them. Decompositions of matrices agree within their method's
//! tolerance. Loops that the compiler vectorises (and faer's) go by the processor, whatever is named here.

use std::fmt;
use std::sync::OnceLock;

use crate::error::{Cause, Error, Result};

/// The environment's variable that forces an instruction set.
pub const VARIABLE: &str = "MERGANSER_CPU";

/// An instruction set that loops are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// None: plain loops, for every processor.
    Portable,
    /// AVX2, with FMA, F16C, BMI and POPCNT.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, with all of AVX2's.
    Avx512,
}

static CHOSEN: OnceLock<Instructions> = OnceLock::new();

impl Instructions {
    /// All of them, the widest last.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// `portable`, `avx2` or `avx512`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this processor has it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// Those of this processor, the widest last.
    pub fn here() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|set| set.is_here())
    }

    /// The one that is taken in this process.
    pub fn chosen() -> Self {
        *CHOSEN.get_or_init(|| asked().unwrap_or_else(|_| widest()))
    }

    /// As [`Instructions::chosen`], for who can refuse what the environment names.
    ///
    /// # Errors
    /// `Input`, if the environment names none, or one that this processor lacks.
    pub fn from_environment() -> Result<Self> {
        asked().map(|_| Self::chosen())
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

fn widest() -> Instructions {
    Instructions::here().last().unwrap_or(Instructions::Portable)
}

/// What the environment asks for; the widest where it asks for nothing.
fn asked() -> Result<Instructions> {
    match std::env::var_os(VARIABLE) {
        Some(text) if !text.is_empty() => named(&text.to_string_lossy()),
        _ => Ok(widest()),
    }
}

fn named(text: &str) -> Result<Instructions> {
    let known = |sets: &mut dyn Iterator<Item = Instructions>| {
        sets.map(|set| format!("`{set}`")).collect::<Vec<_>>().join(", ")
    };
    let possible = format!("possible here: {}", known(&mut Instructions::here()));
    let Some(set) = Instructions::ALL.into_iter().find(|set| set.word() == text) else {
        let (shown, all) = (crate::checkpoint::quoted(text), known(&mut Instructions::ALL.into_iter()));
        let error = Error::input(format!("{VARIABLE} is {shown}, expected one of {all}"));
        return Err(error.because(Cause::Usage).hint(format!("{possible}; without it the widest is taken")));
    };
    if set.is_here() {
        return Ok(set);
    }
    Err(Error::input(format!("{VARIABLE} is `{set}`, which this processor lacks"))
        .because(Cause::Usage)
        .hint(format!("{possible}; without it the widest is taken")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_set_is_found_by_its_word_where_the_processor_has_it() {
        for set in Instructions::ALL {
            match named(set.word()) {
                Ok(found) => assert!(found == set && set.is_here()),
                Err(error) => {
                    assert!(!set.is_here() && error.to_string().contains("lacks"), "{error}");
                    assert!(error.hints()[0].contains("`portable`"), "{:?}", error.hints());
                }
            }
        }
        assert_eq!(named("portable").unwrap(), Instructions::Portable);
    }

    #[test]
    fn another_word_is_refused_with_what_is_possible() {
        for text in ["AVX2", "sse2", "avx512 ", "auto"] {
            let error = named(text).unwrap_err();
            assert_eq!((error.cause(), error.exit_code()), (Cause::Usage, 1));
            assert!(error.to_string().contains("`portable`, `avx2`, `avx512`"), "{error}");
            assert!(error.hints()[0].starts_with("possible here: `portable`"), "{:?}", error.hints());
        }
    }

    #[test]
    fn the_widest_is_the_last_that_the_processor_has() {
        assert!(Instructions::here().all(|set| set <= widest()) && widest().is_here());
    }
}
