//! The loops that bound element-wise merges, in registers: sources are widened, subtracted, pruned, combined and rounded
//! without a store in between, by the instructions of AVX-512 or of AVX2.
//!
//! Written out because the compiler does not get there: blocks of f32 that pass through the cache between one loop and
//! the next cost two to four times as much. Every operation is the one that the portable loops do, in the
//! same order and never fused, so that the bits are the same; tests compare them. Only quotients
//! have theirs in another way ([`divide`]). What is not covered here (F64 and F8 sources, other processors, the odd elements at
//! an end) is left to those loops.
#![allow(unsafe_code)]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod columns;
mod divide;
mod lanes;
mod merge;
mod random;
mod select;
#[cfg(test)]
mod tests;

use crate::instructions::Instructions;
pub(super) use columns::{Columns, add_column_deviations};
pub(super) use lanes::Source;
pub(super) use merge::{Keep, Merge, Model, takes};
pub(super) use random::{keep_random, mask_bytes};
pub(super) use select::{Range, count_differences, count_values};

/// Elements that every loop here takes at least: whatever the width of a vector, a multiple of it.
pub(super) const STEP: usize = 16;

/// An instruction set that the processor has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
}

/// The instruction set that is taken in this process; `None` where that is the portable loops.
pub(super) fn level() -> Option<Level> {
    level_of(Instructions::chosen())
}

/// Proof that the processor has an instruction set; `None` for the portable loops, and where it has not.
pub(super) fn level_of(set: Instructions) -> Option<Level> {
    match set {
        Instructions::Portable => None,
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => avx2::Avx2::detect().map(Level::Avx2),
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => avx512::Avx512::detect().map(Level::Avx512),
        #[cfg(not(target_arch = "x86_64"))]
        Instructions::Avx2 | Instructions::Avx512 => None,
    }
}

/// Every instruction set of this processor.
#[cfg(test)]
pub(super) fn levels() -> impl Iterator<Item = Level> {
    Instructions::ALL.into_iter().filter_map(level_of)
}

/// Functions that run a generic loop compiled for the instruction set that is asked for.
macro_rules! for_level {
    ($($(#[$doc:meta])* fn $name:ident$(<$R:ident: $bound:ident>)?($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty
        = $kernel:ident;)*) => {
        $($(#[$doc])*
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
        pub(in super::super) fn $name$(<$R: $bound>)?(level: super::Level, $($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,popcnt")]
            fn wide$(<$R: $bound>)?(l: super::avx512::Avx512, $($arg: $ty),*) -> $ret {
                $kernel::<_ $(, $R)?>(l, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt")]
            fn narrow$(<$R: $bound>)?(l: super::avx2::Avx2, $($arg: $ty),*) -> $ret {
                $kernel::<_ $(, $R)?>(l, $($arg),*)
            }
            match level {
                // SAFETY: an `Avx512` is only made where the processor has all of these instructions.
                #[cfg(target_arch = "x86_64")]
                super::Level::Avx512(l) => unsafe { wide$(::<$R>)?(l, $($arg),*) },
                // SAFETY: an `Avx2` is only made where the processor has all of these instructions.
                #[cfg(target_arch = "x86_64")]
                super::Level::Avx2(l) => unsafe { narrow$(::<$R>)?(l, $($arg),*) },
            }
        })*
    };
}
use for_level;
