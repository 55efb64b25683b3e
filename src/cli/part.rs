//! `--part I/N`: which part of a merge a process does, as it is told or as a batch system's index says.

use std::str::FromStr;

use serde::Serialize;

use super::document::{Document, absolute};
use super::print::count;
use crate::error::{Cause, Error, Result};
use crate::output::PartDone;

/// The most parts of a merge.
const MOST: usize = 10_000;

/// Variables with the index of an array's task or of a pod, and the least index there is.
const INDICES: [(&str, usize); 5] = [
    ("SLURM_ARRAY_TASK_ID", 0),
    ("PBS_ARRAY_INDEX", 0),
    ("LSB_JOBINDEX", 1),
    ("SGE_TASK_ID", 1),
    ("JOB_COMPLETION_INDEX", 0),
];

/// The value of `--part`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartArg {
    /// From 0; `None` for `auto`.
    part: Option<usize>,
    of: usize,
}

impl FromStr for PartArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("expected I/N with 1 ≤ I ≤ N ≤ {MOST}, or auto/N");
        let (part, of) = text.split_once('/').ok_or_else(wanted)?;
        let number = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            is_plain.then(|| text.parse::<usize>().ok()).flatten().ok_or_else(wanted)
        };
        let of = number(of)?;
        let part = if part == "auto" { None } else { Some(number(part)?.checked_sub(1).ok_or_else(wanted)?) };
        if part.is_some_and(|part| part >= of) || !(1..=MOST).contains(&of) {
            return Err(wanted());
        }
        Ok(Self { part, of })
    }
}

impl PartArg {
    /// The part, from 0, and how many there are.
    ///
    /// # Errors
    /// `auto`, and no batch system says which, or one that there is not (input).
    pub fn resolve(self) -> Result<(usize, usize)> {
        self.resolve_by(|name| std::env::var(name).ok())
    }

    fn resolve_by(self, variable: impl Fn(&str) -> Option<String>) -> Result<(usize, usize)> {
        let of = self.of;
        if let Some(part) = self.part {
            return Ok((part, of));
        }
        // Grid Engine and, for jobs that are no array, LSF set theirs without one.
        let is_set = |value: &String| !matches!(value.trim(), "" | "undefined");
        let found = INDICES.into_iter().find_map(|(name, least)| {
            let value = variable(name).filter(is_set)?;
            (name != "LSB_JOBINDEX" || value.trim() != "0").then_some((name, least, value))
        });
        let Some((name, least, value)) = found else {
            let names: Vec<&str> = INDICES.iter().map(|(name, _)| *name).collect();
            return Err(Error::input(format!(
                "`--part auto/{of}` needs the index of an array's task, and none of {} is set to one",
                names.join(", ")
            ))
            .because(Cause::Usage)
            .hint(format!("run it in an array, or say which part it is: `--part 1/{of}`")));
        };
        let index = value.trim().parse::<usize>().ok();
        index.and_then(|index| index.checked_sub(least)).filter(|part| *part < of).map(|part| (part, of)).ok_or_else(
            || {
                let last = of - 1 + least;
                Error::input(format!("{name} is `{value}`; the parts of `--part auto/{of}` go from {least} to {last}"))
                    .because(Cause::Usage)
                    .hint(format!("give the array the indices {least} to {last}"))
            },
        )
    }
}

/// The document of a part that is done before others are.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct PartDocument {
    /// The output's folder, absolute; it is not there yet.
    out: String,
    /// The part, from 1.
    part: usize,
    /// How many parts there are.
    of: usize,
    /// Whether it was done before.
    already_done: bool,
    /// Parts that are not done, from 1; none where another process is finishing the output.
    open_parts: Vec<usize>,
    totals: PartTotals,
}

/// Sums over a part.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct PartTotals {
    tensors: usize,
    /// Bytes read of the sources, by this run.
    bytes_read: u64,
    /// Bytes written of tensors, by this run.
    bytes_written: u64,
}

impl Document for PartDocument {
    const COMMAND: &'static str = "merge";
}

pub(super) fn document(done: &PartDone) -> PartDocument {
    PartDocument {
        out: absolute(&done.path),
        part: done.part + 1,
        of: done.of,
        already_done: done.was_done,
        open_parts: done.open.iter().map(|part| part + 1).collect(),
        totals: PartTotals {
            tensors: done.tensors,
            bytes_read: done.totals.bytes_read,
            bytes_written: done.totals.bytes_written,
        },
    }
}

pub(super) fn in_words(done: &PartDone) -> String {
    let (part, of, tensors) = (done.part + 1, done.of, count(done.tensors as u64, "tensor"));
    let was = if done.was_done { "was done already" } else { "is done" };
    let path = done.path.display();
    match &done.open[..] {
        [] => format!("part {part} of {of} {was} ({tensors}); another process is finishing {path}\n"),
        open => {
            let numbers: Vec<String> = open.iter().map(|part| (part + 1).to_string()).collect();
            let (word, are) = if open.len() == 1 { ("part", "is") } else { ("parts", "are") };
            let numbers = numbers.join(", ");
            format!("part {part} of {of} {was} ({tensors}); {path} appears once {word} {numbers} {are}\n")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn auto(of: usize, set: &[(&str, &str)]) -> Result<(usize, usize)> {
        let part = PartArg { part: None, of };
        part.resolve_by(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn parts_are_written_from_one() {
        assert_eq!("1/8".parse(), Ok(PartArg { part: Some(0), of: 8 }));
        assert_eq!("8/8".parse(), Ok(PartArg { part: Some(7), of: 8 }));
        assert_eq!("auto/3".parse(), Ok(PartArg { part: None, of: 3 }));
        for wrong in ["", "1", "0/8", "9/8", "1/0", "auto/0", "auto", "-1/8", "+1/8", "1/8/2", " 1/8", "a/b", "1/10001"]
        {
            assert!(wrong.parse::<PartArg>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_systems_index_says_the_part_as_it_counts_itself() {
        for (name, least) in [
            ("SLURM_ARRAY_TASK_ID", 0),
            ("PBS_ARRAY_INDEX", 0),
            ("JOB_COMPLETION_INDEX", 0),
            ("LSB_JOBINDEX", 1),
            ("SGE_TASK_ID", 1),
        ] {
            for part in 0..4 {
                assert_eq!(auto(4, &[(name, &(part + least).to_string())]).unwrap(), (part, 4), "{name}");
            }
            let error = auto(4, &[(name, &(4 + least).to_string())]).unwrap_err();
            assert!(error.to_string().starts_with(name) && error.cause() == Cause::Usage, "{error}");
        }
        // An array that does not begin with the least index is no shifted one.
        assert_eq!(auto(8, &[("SLURM_ARRAY_TASK_ID", "5"), ("SLURM_ARRAY_TASK_MIN", "4")]).unwrap(), (5, 8));
    }

    #[test]
    fn without_an_array_there_is_no_part_to_take() {
        for set in [&[][..], &[("SGE_TASK_ID", "undefined")], &[("LSB_JOBINDEX", "0")], &[("PBS_ARRAY_INDEX", "")]] {
            let error = auto(4, set).unwrap_err();
            assert_eq!((error.exit_code(), error.cause()), (1, Cause::Usage), "{set:?}");
        }
        assert_eq!(auto(4, &[("SLURM_ARRAY_TASK_ID", "x")]).unwrap_err().exit_code(), 1);
    }
}
