//! The work folder beside OUT: started, gone on with, written to from many threads, and finished by one rename.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk;
use super::files::DataFiles;
use super::fingerprint::Fingerprint;
use super::finish;
use super::found::{
    Found, JOURNAL_NAME, PLAN_DRAFT_NAME, PLAN_NAME, broken_file, check_work_folder, look, may_replace, refused,
};
use super::journal::{Journal, JournalEntry, Record, listed_files};
use super::layout::{Layout, Placement};
use super::lock::{LOCK_NAME, Lock, busy};
use super::ours::Ours;
use super::parts::{self, Part, PartDone, Share, publish_draft};
use super::target::{OutState, Target};
use crate::error::{Error, Result};
use crate::output::manifest::Manifest;

/// Bytes read back at once when a tensor is confirmed.
const CONFIRM_BYTES: usize = 1 << 20;

/// What to open, and what the user allows.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// OUT as the user wrote it.
    pub out: PathBuf,
    /// `--resume`.
    pub resume: bool,
    /// `--overwrite`.
    pub overwrite: bool,
    /// The plan's fingerprint.
    pub fingerprint: Fingerprint,
    /// Every file and folder that this merge reads, the recipe too: finishing never replaces what contains one.
    pub sources: Vec<PathBuf>,
    /// The part of the merge to be done; `None` for all of it. A part always goes on with what is there.
    pub part: Option<Share>,
}

/// What [`WorkDir::open`] found.
#[derive(Debug)]
pub enum Opened {
    /// Work is to be done.
    Work(Box<WorkDir>),
    /// OUT is the finished output of this plan already.
    AlreadyDone(Box<Manifest>),
    /// The part is done already, and others are not.
    PartDone(PartDone),
}

/// An unfinished output, held by this process alone. Dropping it keeps everything for `--resume`.
#[derive(Debug)]
pub struct WorkDir {
    pub(super) target: Target,
    pub(super) options: OpenOptions,
    pub(super) layout: Layout,
    pub(super) data: DataFiles,
    pub(super) hold: Hold,
    progress: Mutex<Progress>,
    pub(super) boot: String,
    resume_hint: String,
}

/// What keeps others from the same work.
#[derive(Debug)]
pub(super) enum Hold {
    Whole(Lock),
    Part(Box<Part>),
}

/// What earlier processes have finished, and of that what is to be confirmed.
type Earlier = (HashMap<String, JournalEntry>, HashMap<String, JournalEntry>);

#[derive(Debug)]
struct Progress {
    journal: Journal,
    finished: HashMap<String, JournalEntry>,
    unverified: HashMap<String, JournalEntry>,
}

impl WorkDir {
    /// Starts a merge into OUT, or goes on with an interrupted one, as the options allow.
    ///
    /// # Errors
    ///
    /// OUT or the work folder holds something that the options do not allow to touch (input); another process works
    /// there, or there is no space or no permission (environment).
    pub fn open(options: OpenOptions, layout: &Layout) -> Result<Opened> {
        Self::open_under(options, layout, disk::boot_id())
    }

    fn open_under(options: OpenOptions, layout: &Layout, boot: String) -> Result<Opened> {
        let target = Target::resolve(&options.out, &options.sources)?;
        if let Some(share) = options.part.clone() {
            return parts::open(&target, &options, &share, layout, &boot);
        }
        let is_filled = target.state()? == OutState::FilledDir;
        if is_filled {
            // That another process is at work there goes before what stands there now, which that process may change.
            let found = may_replace(&target, &options, layout);
            if let Some(manifest) = found.map_err(|e| Lock::refusal(&target, &boot).unwrap_or(e))? {
                return Ok(Opened::AlreadyDone(manifest));
            }
        }
        let resume_hint = if is_filled { "`--resume --overwrite`" } else { "`--resume`" };
        // Before anything is made in it, and again once nobody else can be at work there.
        check_work_folder(&target.partial, &options.fingerprint, layout)?;
        let lock = Lock::take(&target, &boot)?;
        check_work_folder(&target.partial, &options.fingerprint, layout)?;
        let goes_on = match look(&target.partial)? {
            Found::Nothing => false,
            Found::Plan(found) if options.resume && found == options.fingerprint => true,
            Found::Complete(manifest)
                if options.resume
                    && manifest.fingerprint == options.fingerprint.digest()
                    && broken_file(&target.partial, layout).is_none() =>
            {
                // A kill while the state was being removed may have left the journal.
                let _ = disk::remove_file(&target.partial.join(JOURNAL_NAME));
                finish::place(&target, Some(lock), options.overwrite)?;
                return Ok(Opened::AlreadyDone(manifest));
            }
            _ if options.overwrite => {
                wipe(&target.partial)?;
                false
            }
            found => return Err(refused(&target, &options, &found)),
        };
        let (data, journal, record) = if goes_on {
            go_on(&target.partial, layout, resume_hint)?
        } else {
            start(&target, layout, &options.fingerprint, resume_hint)?
        };
        let earlier = record.done.into_iter().partition(|(_, e)| !boot.is_empty() && e.boot == boot);
        let what = (target, &options, layout.clone());
        let words = (boot, resume_hint.into());
        Ok(Opened::Work(Box::new(Self::new(what, data, Hold::Whole(lock), journal, earlier, words))))
    }

    pub(super) fn new(
        (target, options, layout): (Target, &OpenOptions, Layout),
        data: DataFiles,
        hold: Hold,
        journal: Journal,
        (finished, unverified): Earlier,
        (boot, resume_hint): (String, String),
    ) -> Self {
        let progress = Mutex::new(Progress { journal, finished, unverified });
        Self { target, options: options.clone(), layout, data, hold, progress, boot, resume_hint }
    }

    /// The layout that is being written.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The work folder.
    pub fn folder(&self) -> &Path {
        &self.target.partial
    }

    /// The options that go on with this merge if it stops now, for messages: `` `--resume` `` or
    /// `` `--resume --overwrite` ``.
    pub fn resume_hint(&self) -> &str {
        &self.resume_hint
    }

    /// Tensors whose bytes are in place, by name: from earlier runs and from this one.
    pub fn finished(&self) -> HashMap<String, JournalEntry> {
        self.progress().finished.clone()
    }

    /// Names of tensors that an earlier run finished before the machine was restarted, sorted. Their bytes may have
    /// been lost: [confirm](Self::confirm) each, or do it again.
    pub fn unverified(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.progress().unverified.keys().cloned().collect();
        names.into_iter().collect()
    }

    /// Reads an unverified tensor back; if its bytes have the digest that was noted, it counts as finished. Whether
    /// it does.
    ///
    /// # Errors
    ///
    /// The tensor is not an unverified one, or a read or write failed.
    pub fn confirm(&self, tensor: &str) -> Result<bool> {
        let entry = self.progress().unverified.remove(tensor);
        let entry = entry.ok_or_else(|| Error::internal(format!("tensor `{tensor}` is not to be confirmed")))?;
        let place = self.placement(tensor)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CONFIRM_BYTES.min(usize::try_from(place.bytes).unwrap_or(CONFIRM_BYTES))];
        let mut done = 0;
        while done < place.bytes {
            let len = (place.bytes - done).min(buffer.len() as u64) as usize;
            self.data.read_at(place.file, place.offset + done, &mut buffer[..len])?;
            hasher.update(&buffer[..len]);
            done += len as u64;
        }
        if hasher.finalize().to_hex().as_str() != entry.digest {
            return Ok(false);
        }
        self.record(entry)?;
        Ok(true)
    }

    /// Where a tensor goes.
    ///
    /// # Errors
    ///
    /// The output has no such tensor.
    pub fn placement(&self, tensor: &str) -> Result<Placement> {
        let index = self.layout.index_of(tensor);
        let index = index.ok_or_else(|| Error::internal(format!("the output has no tensor `{tensor}`")))?;
        Ok(self.layout.placement(index))
    }

    /// Writes bytes into the data of a file (index in [`Layout::files`]), at an offset from the file's start, as
    /// [`Placement`] counts it. Threads may write different places at once.
    ///
    /// # Errors
    ///
    /// The disk is full, failing, or read-only (environment); a place outside the file's data (internal).
    pub fn write_at(&self, file: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.data.write_at(file, offset, bytes)
    }

    /// Notes that a tensor's bytes have all been written. The entry's `boot` is filled in here.
    ///
    /// # Errors
    ///
    /// The output has no such tensor, or the journal cannot be written.
    pub fn record(&self, mut entry: JournalEntry) -> Result<()> {
        self.placement(&entry.tensor)?;
        entry.boot.clone_from(&self.boot);
        let mut progress = self.progress();
        let entry = progress.journal.done(entry)?;
        tracing::trace!(digest = %entry.digest, "finished `{}`", entry.tensor);
        progress.unverified.remove(&entry.tensor);
        progress.finished.insert(entry.tensor.clone(), entry);
        Ok(())
    }

    /// Completes every data file and waits until they are on the disk. [`Self::finish`] does it if it was not done;
    /// by itself it can be timed.
    ///
    /// # Errors
    ///
    /// A tensor is missing (internal), or the disk failed: what it failed to keep is done again by `--resume`.
    pub fn sync(&self) -> Result<()> {
        let progress = self.progress();
        let is_ours = |tensor: usize| self.part().is_none_or(|share| share.owners[tensor] == share.part);
        let mut tensors = self.layout.tensors().iter().enumerate().filter(|(i, _)| is_ours(*i));
        if let Some((_, missing)) = tensors.find(|(_, t)| !progress.finished.contains_key(&t.name)) {
            return Err(Error::internal(format!("the output's tensor `{}` was never written", missing.name)));
        }
        drop(progress);
        if self.part().is_none() {
            for (i, file) in self.layout.files().iter().enumerate() {
                self.data.write_header(i, &file.header)?;
            }
        }
        if let Hold::Part(part) = &self.hold
            && part.finishes
        {
            self.data.put_together(&part.blocks, &self.layout, &part.share.owners, &part.folder)?;
        }
        for (i, file) in self.layout.files().iter().enumerate() {
            self.data.sync(i).map_err(|error| self.doubted(&file.name, error))?;
        }
        // One file for bytes of all: none of them can be believed then.
        self.data
            .sync_edges()
            .map_err(|error| self.layout.files().iter().fold(error, |error, file| self.doubted(&file.name, error)))
    }

    /// Notes that nothing in a data file can be believed, because of an error.
    fn doubted(&self, file: &str, error: Error) -> Error {
        if self.progress().journal.doubt(file).is_err() {
            tracing::warn!(file, "cannot note that this file's data may be lost");
            return error.hint("or start again with `--overwrite`: the journal could not be written");
        }
        error
    }

    /// Brings the journal to the disk.
    pub(super) fn sync_journal(&self) -> Result<()> {
        self.progress().journal.sync()
    }

    /// Leaves everything for `--resume`, after a failure or a signal.
    pub fn abandon(self) {
        if let Err(error) = self.progress().journal.sync() {
            tracing::warn!("{error}");
        }
    }

    /// Throws everything away: what was written is not to be believed.
    ///
    /// # Errors
    ///
    /// The disk failed: what is left is named.
    pub fn discard(self) -> Result<()> {
        wipe(&self.target.partial)
    }

    /// Notes files that are about to be made in the work folder.
    pub(super) fn announce(&self, names: Vec<String>) -> Result<()> {
        self.progress().journal.files(names)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // A thread that panicked while it held this left a journal whose lines check themselves.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Parts = (DataFiles, Journal, Record);

fn start(target: &Target, layout: &Layout, fingerprint: &Fingerprint, resume_hint: &str) -> Result<Parts> {
    let partial = &target.partial;
    let (plan, draft) = (partial.join(PLAN_NAME), partial.join(PLAN_DRAFT_NAME));
    let write = || {
        let file = disk::create(&draft)?;
        disk::write_all_at(&file, &draft, fingerprint.to_file().as_bytes(), 0)?;
        disk::sync(&file, &draft)?;
        publish_draft(&draft, &plan, fingerprint.to_file().as_bytes())
    };
    let started = write()
        .map_err(|e| super::files::write_error(&e, &plan, format_args!("write `{}`", plan.display()), resume_hint))?;
    if !started {
        // A part, which does without file locks, has begun just now.
        return Err(busy(target, "", None));
    }
    let mut journal = Journal::open(partial.join(JOURNAL_NAME), 0)?;
    journal.files(DataFiles::names(layout).collect())?;
    let (data, _) = DataFiles::open(partial, layout, false, resume_hint)?;
    Ok((data, journal, Record::default()))
}

fn go_on(partial: &Path, layout: &Layout, resume_hint: &str) -> Result<Parts> {
    let file_of = |tensor: &str| layout.file_of(tensor);
    let path = partial.join(JOURNAL_NAME);
    let mut record = Record::read(&path, file_of)?;
    if record.damaged {
        tracing::warn!(journal = %path.display(), "the end of the journal is damaged; what it noted is done again");
    }
    let listed = listed_files(&path);
    let mut journal = Journal::open(path, record.valid_bytes)?;
    if DataFiles::names(layout).any(|name| !listed.contains(&name)) {
        journal.files(DataFiles::names(layout).collect())?;
    }
    // A lost file is made anew at its full size below; were that not noted first, the next resume would take its
    // zeros for finished tensors.
    for (file, whole) in layout.files().iter().zip(DataFiles::existing(partial, layout)) {
        if !whole && record.done.keys().any(|t| file_of(t) == Some(&file.name)) {
            tracing::warn!(file = file.name, "a data file is missing or cut; its tensors are done again");
            journal.doubt(&file.name)?;
            record.done.retain(|t, _| file_of(t) != Some(&file.name));
        }
    }
    let (data, _) = DataFiles::open(partial, layout, true, resume_hint)?;
    Ok((data, journal, record))
}

/// Empties the work folder, but for the lock that this process holds.
fn wipe(partial: &Path) -> Result<()> {
    Ours::of_work(partial, None).remove(partial, &[LOCK_NAME].into())
}
