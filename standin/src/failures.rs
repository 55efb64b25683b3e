//! Calls that are made to fail, so that the backend's handling of it can be tested.
//!
//! `MERGANSER_STANDIN_FAIL` is a list such as `alloc:3,copy:10+`: the third allocation fails, and every copy from the tenth on.
//! `alloc>1048576` fails every allocation of more than so many bytes.

use std::collections::HashMap;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Device memory: out of memory, at the call.
    Alloc,
    /// Pinned memory: out of memory, at the call.
    Pinned,
    /// A stream or event cannot be made: out of memory, at the call.
    Stream,
    /// A copy or memset: unknown error, at the call.
    Copy,
    /// A launch: out of resources, at the call.
    Launch,
    /// A kernel that faults while it runs: illegal address, seen later, and the context is lost.
    Fault,
    /// A module that does not load.
    Module,
    /// A call of cuBLAS: execution failed, at the call.
    Blas,
    /// A call of cuSOLVER: internal error, at the call.
    Solver,
    /// A launch that finds no memory, such as for its threads' stacks.
    LaunchMemory,
    /// A call of cuBLAS that finds no memory.
    BlasMemory,
    /// A call of cuSOLVER that finds no memory.
    SolverMemory,
    /// A decomposition that does not converge: a positive `info`.
    Converge,
    /// A device that another program has for itself: unavailable, where its context is asked for.
    Context,
    /// The device is lost at this call of the driver, whatever it is.
    Lost,
}

const KINDS: [(&str, Kind); 15] = [
    ("alloc", Kind::Alloc),
    ("pinned", Kind::Pinned),
    ("stream", Kind::Stream),
    ("copy", Kind::Copy),
    ("launch", Kind::Launch),
    ("fault", Kind::Fault),
    ("module", Kind::Module),
    ("blas", Kind::Blas),
    ("solver", Kind::Solver),
    ("launch-memory", Kind::LaunchMemory),
    ("blas-memory", Kind::BlasMemory),
    ("solver-memory", Kind::SolverMemory),
    ("converge", Kind::Converge),
    ("context", Kind::Context),
    ("lost", Kind::Lost),
];

struct Rule {
    kind: Kind,
    nth: u64,
    onwards: bool,
}

/// The rules, and how often each kind of call has been made.
#[derive(Default)]
pub struct Failures {
    rules: Vec<Rule>,
    largest_alloc: Option<u64>,
    counts: HashMap<Kind, u64>,
}

impl Failures {
    /// Reads a list of rules; `None` where it is not one.
    pub fn parse(text: &str) -> Option<Failures> {
        let mut failures = Failures::default();
        for rule in text.split(',').map(str::trim).filter(|rule| !rule.is_empty()) {
            if let Some(bytes) = rule.strip_prefix("alloc>") {
                failures.largest_alloc = Some(bytes.parse().ok()?);
                continue;
            }
            let (name, count) = rule.split_once(':')?;
            let (count, onwards) = count.strip_suffix('+').map_or((count, false), |count| (count, true));
            let kind = KINDS.iter().find(|(known, _)| *known == name)?.1;
            let nth = count.parse().ok().filter(|nth| *nth > 0)?;
            failures.rules.push(Rule { kind, nth, onwards });
        }
        Some(failures)
    }

    /// Counts a call and says whether it is to fail.
    pub fn strike(&mut self, kind: Kind) -> bool {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        self.rules.iter().any(|rule| rule.kind == kind && (rule.nth == *count || rule.onwards && rule.nth < *count))
    }

    /// As [`strike`](Self::strike), for an allocation of `len` bytes.
    pub fn strike_alloc(&mut self, len: usize) -> bool {
        self.strike(Kind::Alloc) || self.largest_alloc.is_some_and(|largest| len as u64 > largest)
    }

    /// How often a kind of call has been made.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Every kind with its name and count.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.iter().map(|(name, kind)| (*name, self.count(*kind)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_strikes_the_call_it_names_and_with_a_plus_all_after_it() {
        let mut failures = Failures::parse("copy:2, launch:2+,alloc>10").unwrap();
        assert_eq!([1, 2, 3].map(|_| failures.strike(Kind::Copy)), [false, true, false]);
        assert_eq!([1, 2, 3].map(|_| failures.strike(Kind::Launch)), [false, true, true]);
        assert_eq!([10, 11].map(|len| failures.strike_alloc(len)), [false, true]);
        assert_eq!(failures.count(Kind::Copy), 3);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in ["copy", "copy:0", "copy:x", "kopie:1", "alloc>x"] {
            assert!(Failures::parse(text).is_none(), "{text}");
        }
    }
}
