//! What one part has measured for all: numbers under a key, in a file that each process at work appends to and all others read.
//!
//! Whoever needs what nobody has measured yet measures it. Nobody waits, so that some of it may be measured twice: to the same
//! bits.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::names::is_statistics;
use crate::error::{Error, Result};
use crate::output::journal::{seal, unseal};

/// How long what was read counts as what there is.
const FRESH: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    /// The bits of each number: JSON has no infinities.
    bits: Vec<u64>,
}

/// Numbers that the parts of a merge share.
#[derive(Debug)]
pub struct Statistics {
    folder: PathBuf,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    own: Option<File>,
    known: HashMap<String, Vec<f64>>,
    /// How far each file has been read.
    read: HashMap<String, u64>,
    looked: Option<Instant>,
}

impl Statistics {
    /// Those in `folder`; this process's own go to a file of this name there.
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        Self { folder: folder.to_owned(), path: folder.join(name), state: Mutex::default() }
    }

    /// What somebody has measured.
    pub fn get(&self, key: &str) -> Option<Vec<f64>> {
        let mut state = self.lock();
        if !state.known.contains_key(key) && state.looked.is_none_or(|at| at.elapsed() >= FRESH) {
            state.look(&self.folder);
        }
        state.known.get(key).cloned()
    }

    /// Lets others know what has been measured.
    ///
    /// # Errors
    /// The disk is full or failing.
    pub fn put(&self, key: &str, values: &[f64]) -> Result<()> {
        let line = seal(&Line { key: key.into(), bits: values.iter().map(|v| v.to_bits()).collect() })?;
        let mut state = self.lock();
        if state.own.is_none() {
            state.own =
                Some(OpenOptions::new().create(true).append(true).open(&self.path).map_err(|e| self.failed(&e))?);
        }
        if let Some(file) = &mut state.own {
            file.write_all(&line).and_then(|()| file.sync_data()).map_err(|e| self.failed(&e))?;
        }
        state.known.insert(key.into(), values.into());
        Ok(())
    }

    fn failed(&self, e: &std::io::Error) -> Error {
        Error::environment(format!("cannot write `{}`: {e}", self.path.display())).because_of_io(e)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reads what was appended since. What cannot be read is measured instead.
    fn look(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_statistics(&name)
                && let Err(error) = self.read_on(&entry.path(), name)
            {
                tracing::debug!(file = %entry.path().display(), %error, "cannot read what another part has measured");
            }
        }
        self.looked = Some(Instant::now());
    }

    fn read_on(&mut self, path: &Path, name: String) -> std::io::Result<()> {
        let from = self.read.entry(name).or_default();
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(*from))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        for line in text.split_inclusive(|b| *b == b'\n') {
            // A line that is not whole may be just being written.
            let Some(Line { key, bits }) = unseal(line) else { break };
            self.known.insert(key, bits.into_iter().map(f64::from_bits).collect());
            *from += line.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::output::parts::names::Role;

    #[test]
    fn what_one_has_measured_the_other_knows_to_the_bit_and_a_torn_line_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |part: usize| Statistics::new(folder.path(), &Role::Part(part).statistics(1));
        let (one, other) = (at(0), at(1));
        let values = [0.1, -0.0, f64::INFINITY, f64::NAN, 5e-324];
        one.put("a", &values).unwrap();
        let found = other.get("a").unwrap();
        assert!(found.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()) && found.len() == values.len());
        assert_eq!(other.get("b"), None);
        let path = folder.path().join(Role::Part(0).statistics(1));
        let line = seal(&Line { key: "b".into(), bits: vec![7] }).unwrap();
        let (torn, rest) = line.split_at(line.len() / 2);
        let append = |bytes: &[u8]| File::options().append(true).open(&path).unwrap().write_all(bytes).unwrap();
        append(torn);
        std::thread::sleep(FRESH);
        assert_eq!(other.get("b"), None);
        append(rest);
        std::thread::sleep(FRESH);
        assert_eq!(other.get("b").unwrap()[0].to_bits(), 7);
    }
}
