//! The journal of an unfinished output: one line of JSON for each finished tensor, appended by a single write.
//!
//! Every line ends with a check of itself, so that what a crash tore or a disk lost is never believed: reading stops
//! at the first line that does not hold, and the file is cut there.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twox_hash::XxHash3_64;

use super::disk;
use crate::error::{Error, Result};

/// The longest line that is read back, in bytes; only damage makes longer ones.
const MAX_LINE_BYTES: u64 = 64 << 20;
/// What joins a line's content and its check.
const CHECK_KEY: &str = ",\"check\":\"";
/// Bytes that the check adds to a line: its key, 16 hexadecimal digits, a quote, a brace, a newline.
const CHECK_BYTES: usize = CHECK_KEY.len() + 16 + 3;

/// Elements that are NaN or infinite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Nonfinite {
    /// In the output tensor.
    pub output: u64,
    /// Of those, where every source element was finite.
    pub introduced: u64,
}

/// The digest of a source tensor that was read for an output tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTensorDigest {
    /// Index of the source.
    pub source: usize,
    /// The tensor's name there.
    pub tensor: String,
    /// xxh3 digest as [`crate::output::source_digest::to_hex`] writes it.
    pub digest: String,
}

/// One finished tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The output tensor's name.
    pub tensor: String,
    /// blake3 of its stored bytes, hexadecimal.
    pub digest: String,
    /// Its elements that are not finite.
    pub nonfinite: Nonfinite,
    /// What the method states of it; goes to the manifest as it is.
    pub facts: Value,
    /// What was read for it.
    pub sources: Vec<SourceTensorDigest>,
    /// The boot under which it was written, set by [`crate::output::WorkDir::record`].
    pub boot: String,
}

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// A tensor's bytes are written.
    Done(JournalEntry),
    /// Writing this data file back to the disk failed: nothing noted of it so far can be believed.
    Doubt { file: String },
    /// Files of these names are about to be made: what is listed is ours to remove.
    Files { names: Vec<String> },
}

/// What a journal said.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Finished tensors by name; of several entries the last counts.
    pub done: HashMap<String, JournalEntry>,
    /// Bytes of the journal that hold.
    pub valid_bytes: u64,
    /// Whether something behind them was given up.
    pub damaged: bool,
}

impl Record {
    /// Reads a journal; a missing one says nothing. `file_of` names the data file of a tensor, `None` if the output
    /// has no such tensor.
    pub fn read<'a>(path: &Path, file_of: impl Fn(&str) -> Option<&'a str>) -> Result<Self> {
        let mut record = Self::default();
        record.read_on(path, file_of)?;
        Ok(record)
    }

    /// The same, of a journal that goes on where those that were read before ended.
    pub fn read_on<'a>(&mut self, path: &Path, file_of: impl Fn(&str) -> Option<&'a str>) -> Result<()> {
        let reading = |e: &std::io::Error| Error::io(format_args!("read the journal `{}`", path.display()), e);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(reading(&e)),
        };
        let mut reader = BufReader::new(file);
        let record = self;
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(|e| reading(&e))? == 0 {
                return Ok(());
            }
            match unseal(&line) {
                Some(Line::Done(entry)) if file_of(&entry.tensor).is_some() => {
                    record.done.insert(entry.tensor.clone(), entry);
                }
                Some(Line::Doubt { file }) => record.done.retain(|tensor, _| file_of(tensor) != Some(&file)),
                Some(Line::Files { .. }) => {}
                _ => {
                    record.damaged = true;
                    return Ok(());
                }
            }
            record.valid_bytes += line.len() as u64;
        }
    }
}

/// The files that a journal lists, of whatever plan; none of one that cannot be read.
pub(super) fn listed_files(path: &Path) -> BTreeSet<String> {
    let mut listed = BTreeSet::new();
    let Ok(file) = File::open(path) else { return listed };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        if let Some(Line::Files { names }) = unseal(&line) {
            listed.extend(names);
        }
        line.clear();
    }
    listed
}

/// A line with its check and newline.
pub(super) fn seal<T: Serialize>(line: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_string(line).map_err(|e| Error::internal(format!("journal: {e}")))?;
    let check = XxHash3_64::oneshot(text.as_bytes());
    text.pop(); // the closing brace, which the check's takes the place of
    text.push_str(&format!("{CHECK_KEY}{check:016x}\"}}\n"));
    Ok(text.into_bytes())
}

/// The content of a sealed line; `None` unless every byte is as [`seal`] made it.
pub(super) fn unseal<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let (body, tail) = line.split_at_checked(line.len().checked_sub(CHECK_BYTES)?)?;
    let text = [body, b"}"].concat();
    let expected = format!("{CHECK_KEY}{:016x}\"}}\n", XxHash3_64::oneshot(&text));
    (tail == expected.as_bytes()).then(|| serde_json::from_slice(&text).ok()).flatten()
}

/// A journal open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    bytes: u64,
    /// Set when a failed write could not be taken back: whatever followed it would not be believed.
    broken: bool,
}

impl Journal {
    /// Opens the journal at `path`, made if missing, and cuts it to the `valid_bytes` that [`Record::read`] found.
    pub fn open(path: PathBuf, valid_bytes: u64) -> Result<Self> {
        let opening = |e| Error::io(format_args!("open the journal `{}`", path.display()), &e);
        let file = disk::open_to_append(&path).map_err(opening)?;
        disk::set_len(&file, &path, valid_bytes).map_err(opening)?;
        Ok(Self { file, path, bytes: valid_bytes, broken: false })
    }

    /// Appends a finished tensor.
    pub fn done(&mut self, entry: JournalEntry) -> Result<JournalEntry> {
        let line = Line::Done(entry);
        self.append(&seal(&line)?)?;
        match line {
            Line::Done(entry) => Ok(entry),
            _ => Err(Error::internal("a journal entry changed its kind")),
        }
    }

    /// Notes that nothing written to this data file so far can be believed.
    pub fn doubt(&mut self, file: &str) -> Result<()> {
        self.append(&seal(&Line::Doubt { file: file.into() })?)?;
        self.sync()
    }

    /// Notes files before they are made, so that they are known as ours.
    pub fn files(&mut self, names: Vec<String>) -> Result<()> {
        self.append(&seal(&Line::Files { names })?)?;
        self.sync()
    }

    /// Asks for the journal to be on the disk.
    pub fn sync(&self) -> Result<()> {
        disk::sync_data(&self.file, &self.path)
            .map_err(|e| Error::io(format_args!("write the journal `{}`", self.path.display()), &e))
    }

    fn append(&mut self, line: &[u8]) -> Result<()> {
        if self.broken {
            return Err(Error::environment(format!(
                "the journal `{}` cannot be written any more",
                self.path.display()
            )));
        }
        // One write(2): a kill leaves the whole line or a torn one, which reading drops.
        let written = match disk::append(&mut self.file, &self.path, line, self.bytes) {
            Ok(n) if n == line.len() => {
                self.bytes += n as u64;
                return Ok(());
            }
            Ok(_) => std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
            Err(e) => e,
        };
        self.broken = disk::set_len(&self.file, &self.path, self.bytes).is_err();
        Err(Error::environment(format!("cannot write the journal `{}`: {written}", self.path.display()))
            .because_of_io(&written)
            .hint("free some space, then run the same command with `--resume`"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(tensor: &str) -> JournalEntry {
        let sources = vec![SourceTensorDigest { source: 1, tensor: tensor.into(), digest: "0f".into() }];
        let nonfinite = Nonfinite { output: 3, introduced: 0 };
        let facts = json!({"kept": 0.25, "note": "é \"quoted\" \n"});
        JournalEntry { tensor: tensor.into(), digest: "ab".into(), nonfinite, facts, sources, boot: "b".into() }
    }

    fn file_of(tensor: &str) -> Option<&'static str> {
        (tensor != "unknown").then_some(if tensor == "c" { "two" } else { "one" })
    }

    fn names(record: &Record) -> Vec<&str> {
        let mut names: Vec<_> = record.done.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn entries_read_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        assert!(Record::read(&path, file_of).unwrap().done.is_empty());
        let mut journal = Journal::open(path.clone(), 0).unwrap();
        journal.done(entry("a")).unwrap();
        let second = JournalEntry { digest: "newer".into(), ..entry("a") };
        journal.done(second.clone()).unwrap();
        let record = Record::read(&path, file_of).unwrap();
        assert_eq!(record.done["a"], second);
        assert!(!record.damaged);
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            serde_json::from_str::<Value>(line).unwrap();
        }
    }

    #[test]
    fn a_journal_torn_at_any_byte_keeps_the_lines_before_and_can_be_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let lines: Vec<Vec<u8>> = ["a", "b", "c"].iter().map(|t| seal(&Line::Done(entry(t))).unwrap()).collect();
        let whole = lines.concat();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let record = Record::read(&path, file_of).unwrap();
            let mut end = 0;
            let complete = lines.iter().take_while(|l| {
                end += l.len();
                end <= cut
            });
            let complete = complete.count();
            assert_eq!(names(&record), &["a", "b", "c"][..complete], "cut at {cut}");
            assert_eq!(record.damaged, lines[..complete].concat().len() != cut);
            Journal::open(path.clone(), record.valid_bytes).unwrap().done(entry("d")).unwrap();
            let record = Record::read(&path, file_of).unwrap();
            assert!(record.done.contains_key("d") && !record.damaged);
            assert_eq!(record.done.len(), complete + 1);
        }
    }

    #[test]
    fn a_changed_byte_anywhere_ends_what_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let first = seal(&Line::Done(entry("a"))).unwrap();
        let whole = [first.clone(), seal(&Line::Done(entry("b"))).unwrap()].concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x01;
            std::fs::write(&path, &bytes).unwrap();
            let record = Record::read(&path, file_of).unwrap();
            assert!(record.damaged, "byte {at}");
            let expected: &[&str] = if at < first.len() { &[] } else { &["a"] };
            assert_eq!(names(&record), expected, "byte {at}");
        }
    }

    #[test]
    fn tensors_that_the_output_does_not_have_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        Journal::open(path.clone(), 0).unwrap().done(entry("unknown")).unwrap();
        assert!(Record::read(&path, file_of).unwrap().damaged);
    }

    #[test]
    fn doubt_drops_what_was_noted_of_that_file_and_only_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal = Journal::open(path.clone(), 0).unwrap();
        for tensor in ["a", "c"] {
            journal.done(entry(tensor)).unwrap();
        }
        journal.doubt("one").unwrap();
        journal.done(entry("b")).unwrap();
        assert_eq!(names(&Record::read(&path, file_of).unwrap()), ["b", "c"]);
    }
}
