//! One merge in several parts, by processes on one machine or on many, into one output on a file system that they share.
//!
//! Every process knows from the plan alone which tensors are its part's. The parts share the work folder and its data files;
//! what they know of each other lies in a folder in it: who is at work ([`claim`]), what is finished (a journal for each process),
//! what was measured ([`statistics`]), bytes in blocks that parts share ([`blocks`]). The process that notes the last part as done
//! finishes the output.
//!
//! All of it rests on steps that network file systems do as one: exclusive creation, links, renames; and on waiting for the disk
//! before something is said to be done. Two processes that do the same part, because one was taken for dead, write the same bytes to the
//! same places and note them in journals of their own: that does no harm.

mod blocks;
mod claim;
pub(super) mod names;
mod publish;
mod statistics;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use blocks::{Edges, SharedBlocks};
pub use claim::SILENCE;
pub(super) use claim::{Claim, Holder};
pub(super) use names::Role;
pub(super) use publish::{draft_name, publish_draft, publish_new};
pub use statistics::Statistics;

use super::files::DataFiles;
use super::fingerprint::Fingerprint;
use super::found::{Found, PLAN_NAME, broken_file, check_work_folder, look, may_replace};
use super::journal::{Journal, Record};
use super::layout::Layout;
use super::lock::{self, Lock};
use super::ours::Ours;
use super::target::{OutState, Target};
use super::workdir::{Hold, OpenOptions, Opened, WorkDir};
use super::{finish, journal};
use crate::error::{Error, Result};
use crate::output::manifest::Manifest;

/// How often opening is tried again when the output is finished meanwhile.
const ATTEMPTS: usize = 8;
/// How often, and how far apart, a plan that is just being written is read again.
const PATIENCE_TRIES: u32 = 50;
const PATIENCE_STEP: Duration = Duration::from_millis(40);

/// A part of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Which part, from 0.
    pub part: usize,
    /// How many there are.
    pub of: usize,
    /// The part of each tensor of the output.
    pub owners: Vec<usize>,
    /// What computes: all parts do so on the same kinds of device.
    pub devices: Vec<String>,
}

impl Share {
    /// How many tensors the part has.
    pub fn tensors(&self) -> usize {
        self.owners.iter().filter(|owner| **owner == self.part).count()
    }

    /// What the work folder says of the plan.
    pub(super) fn noted(&self, fingerprint: &Fingerprint) -> Fingerprint {
        fingerprint.with("parts", self.of.into()).with("devices", self.devices.clone().into())
    }
}

/// What a part has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PartTotals {
    /// Wall-clock seconds of the process that ended it.
    pub seconds: f64,
    /// Bytes read from sources by it.
    pub bytes_read: u64,
    /// Bytes written by it.
    pub bytes_written: u64,
}

/// A part that is done while the output is not finished.
#[derive(Debug, Clone, PartialEq)]
pub struct PartDone {
    /// OUT, which is not there yet.
    pub path: PathBuf,
    /// Which part, from 0.
    pub part: usize,
    /// How many there are.
    pub of: usize,
    /// Its tensors.
    pub tensors: usize,
    /// Parts that are not done, from 0. With none of them, another process is finishing the output.
    pub open: Vec<usize>,
    /// Whether it was done before this call.
    pub was_done: bool,
    /// What it cost this process.
    pub totals: PartTotals,
}

/// What [`WorkDir::end_part`] leaves to do.
#[derive(Debug)]
pub enum PartEnd {
    /// All tensors are there: finish the output.
    Finish(Box<WorkDir>),
    /// Others are still at work.
    Done(PartDone),
}

/// What a process at work on a part holds.
#[derive(Debug)]
pub(super) struct Part {
    pub share: Share,
    pub claim: Claim,
    /// The folder of what parts know of each other.
    pub folder: PathBuf,
    pub blocks: SharedBlocks,
    /// Whether it finishes the output; else it is at work on its part.
    pub finishes: bool,
    pub statistics: Statistics,
}

/// Who is at work on any part, or on completing the output; with what it does.
/// `is_whole` says that the claim on the whole is one's own.
pub(super) fn at_work(partial: &Path, boot: &str, is_whole: bool) -> Result<Option<(String, Holder)>> {
    let folder = partial.join(names::FOLDER);
    let mut roles = vec![Role::Finisher];
    roles.extend((!is_whole).then_some(Role::Whole));
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let parts = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (who, what) = name.split_once('.')?;
        let number: usize = who.strip_prefix("part-")?.parse().ok()?;
        what.starts_with("claim-").then_some(Role::Part(number.checked_sub(1)?))
    });
    parts.for_each(|role| {
        if !roles.contains(&role) {
            roles.push(role)
        }
    });
    for role in roles {
        if let Some(holder) = Claim::holder(&folder, role, boot)? {
            return Ok(Some((role.word(), holder)));
        }
    }
    Ok(None)
}

/// As [`WorkDir::open`], for one part.
pub(super) fn open(
    target: &Target,
    options: &OpenOptions,
    share: &Share,
    layout: &Layout,
    boot: &str,
) -> Result<Opened> {
    for _ in 0..ATTEMPTS {
        match open_once(target, options, share, layout, boot) {
            // Another process has just finished the output: the folder that was worked in is OUT by now.
            Err(_) if !target.partial.exists() && finished_as(target, &options.fingerprint).is_some() => {}
            opened => return opened,
        }
    }
    Err(Error::busy(format!("`{}` keeps changing while it is being opened", target.partial.display()))
        .hint("other processes are at work there: try again"))
}

fn open_once(target: &Target, options: &OpenOptions, share: &Share, layout: &Layout, boot: &str) -> Result<Opened> {
    let noted = share.noted(&options.fingerprint);
    if target.state()? == OutState::FilledDir {
        let resuming = OpenOptions { resume: true, ..options.clone() };
        let found = may_replace(target, &resuming, layout);
        if let Some(manifest) = found.map_err(|e| Lock::refusal(target, boot).unwrap_or(e))? {
            return Ok(Opened::AlreadyDone(manifest));
        }
    }
    if let Some(busy) = Lock::refusal(target, boot) {
        return Err(busy);
    }
    check_work_folder(&target.partial, &noted, layout)?;
    let found = look(&target.partial)?;
    if let Found::Complete(manifest) = &found
        && manifest.fingerprint == options.fingerprint.digest()
        && broken_file(&target.partial, layout).is_none()
    {
        finish::place(target, None, options.overwrite)?;
        return Ok(Opened::AlreadyDone(manifest.clone()));
    }
    if matches!(found, Found::Complete(_) | Found::Damaged) {
        return Err(another(target, "it holds something else"));
    }
    lock::make_folder(target)?;
    let folder = target.partial.join(names::FOLDER);
    let unusable = |e: &std::io::Error| lock::unwritable(&target.partial, e);
    match fs::create_dir(&folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(unusable(&e)),
        _ => {}
    }
    let plan = target.partial.join(PLAN_NAME);
    let starts = matches!(found, Found::Nothing);
    if starts {
        publish_new(&folder, &plan, noted.to_file().as_bytes()).map_err(|e| unusable(&e))?;
    }
    let earlier = read_plan(&plan)?.ok_or_else(|| another(target, "its plan is damaged"))?;
    if earlier != noted {
        return Err(another(target, &noted.differences(&earlier).join("; ")));
    }
    // Finished between the two looks: then the folder here is a new one that nobody needs.
    if starts && let Some(manifest) = finished_as(target, &options.fingerprint) {
        Ours::of_work(&target.partial, Some(layout)).remove(&target.partial, &[].into())?;
        let _ = fs::remove_dir(&target.partial);
        return Ok(Opened::AlreadyDone(manifest));
    }
    let at = Place { target, options, share, layout, boot, folder };
    at.work_or_finish(true)
}

/// The manifest of OUT, if it is what this plan makes.
pub(super) fn finished_as(target: &Target, fingerprint: &Fingerprint) -> Option<Box<Manifest>> {
    let manifest = Manifest::read(&target.path).ok()?;
    (manifest.fingerprint == fingerprint.digest()).then(|| Box::new(manifest))
}

fn read_plan(plan: &Path) -> Result<Option<Fingerprint>> {
    for _ in 0..PATIENCE_TRIES {
        if let Some(found) = Fingerprint::read(plan)? {
            return Ok(Some(found));
        }
        std::thread::sleep(PATIENCE_STEP);
    }
    Ok(None)
}

fn another(target: &Target, why: &str) -> Error {
    Error::input(format!("the merge in `{}` is not the one that this is a part of: {why}", target.partial.display()))
        .hint(format!(
            "undo the change to go on with it; or, once nobody is at work there, remove `{}` to start again",
            target.partial.display()
        ))
}

/// Where a part works, and what it knows of its merge.
struct Place<'a> {
    target: &'a Target,
    options: &'a OpenOptions,
    share: &'a Share,
    layout: &'a Layout,
    boot: &'a str,
    folder: PathBuf,
}

impl Place<'_> {
    /// Goes to work on the part, or on finishing the output where all parts are done.
    fn work_or_finish(&self, was_done: bool) -> Result<Opened> {
        if self.is_done(self.share.part)? {
            return self.finish(was_done);
        }
        let role = Role::Part(self.share.part);
        let claim = match Claim::take(&self.folder, role, self.boot)? {
            Ok(claim) => claim,
            Err(holder) => return Err(lock::busy(self.target, &role.word(), Some(&holder))),
        };
        // Its earlier holder may have ended just now.
        if self.is_done(self.share.part)? {
            drop(claim);
            return self.finish(was_done);
        }
        let mut record = self.record(role, claim.generation)?;
        record.done.retain(|tensor, _| self.owner(tensor) == Some(self.share.part));
        let (finished, unverified) =
            record.done.into_iter().partition(|(_, e)| !self.boot.is_empty() && e.boot == self.boot);
        self.work(claim, role, finished, unverified)
    }

    /// Completes the output, unless a part is not done or somebody else does it.
    fn finish(&self, was_done: bool) -> Result<Opened> {
        let mut open = Vec::new();
        for part in 0..self.share.of {
            if !self.is_done(part)? {
                open.push(part);
            }
        }
        let done = PartDone {
            path: self.target.path.clone(),
            part: self.share.part,
            of: self.share.of,
            tensors: self.share.tensors(),
            open,
            was_done,
            totals: PartTotals::default(),
        };
        if !done.open.is_empty() {
            return Ok(Opened::PartDone(done));
        }
        let Ok(claim) = Claim::take(&self.folder, Role::Finisher, self.boot)? else {
            return Ok(Opened::PartDone(done));
        };
        let mut finished = HashMap::new();
        for part in 0..self.share.of {
            let mut record = self.record(Role::Part(part), u32::MAX)?;
            record.done.retain(|tensor, _| self.owner(tensor) == Some(part));
            finished.extend(record.done);
        }
        if let Some(missing) = self.layout.tensors().iter().find(|t| !finished.contains_key(&t.name)) {
            let part = self.owner(&missing.name).unwrap_or_default();
            let note = self.folder.join(Role::Part(part).done());
            return Err(Error::input(format!(
                "`{}` says that part {} is done, but no journal there has its tensor `{}`",
                note.display(),
                part + 1,
                missing.name
            ))
            .hint(format!("remove `{}` and run that part again", note.display())));
        }
        self.work(claim, Role::Finisher, finished, HashMap::new())
    }

    fn work(
        &self,
        claim: Claim,
        role: Role,
        finished: HashMap<String, journal::JournalEntry>,
        unverified: HashMap<String, journal::JournalEntry>,
    ) -> Result<Opened> {
        let (partial, layout) = (&self.target.partial, self.layout);
        let mut journal = Journal::open(self.folder.join(role.journal(claim.generation)), 0)?;
        journal.files(DataFiles::names(layout).collect())?;
        let blocks = SharedBlocks::new(layout, &self.share.owners);
        let edges = match role {
            Role::Part(part) => Some(Edges::open(&self.folder, part, &blocks).map_err(|e| self.unusable(&e))?),
            _ => None,
        };
        let ready = self.folder.join(names::READY);
        let is_ready = exists(&ready).map_err(|e| self.unusable(&e))?;
        let resume_hint = "the same `--part`";
        let data = DataFiles::open_shared(partial, layout, &self.folder, is_ready, edges, resume_hint)?;
        if !is_ready {
            publish_new(&self.folder, &ready, b"").map_err(|e| self.unusable(&e))?;
        }
        let statistics = Statistics::new(&self.folder, &role.statistics(claim.generation));
        let part = Part {
            share: self.share.clone(),
            claim,
            folder: self.folder.clone(),
            blocks,
            finishes: role == Role::Finisher,
            statistics,
        };
        Ok(Opened::Work(Box::new(WorkDir::new(
            (self.target.clone(), self.options, layout.clone()),
            data,
            Hold::Part(Box::new(part)),
            journal,
            (finished, unverified),
            (self.boot.into(), resume_hint.into()),
        ))))
    }

    /// What all journals of a role with a number below `end` say together.
    fn record(&self, role: Role, end: u32) -> Result<Record> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|e| self.unusable(&e))? {
            let name = entry.map_err(|e| self.unusable(&e))?.file_name();
            let number = name.to_str().filter(|name| names::is_journal(name)).and_then(|name| role.generation(name));
            numbers.extend(number.filter(|number| *number < end));
        }
        numbers.sort_unstable();
        let mut record = Record::default();
        for number in numbers {
            record.read_on(&self.folder.join(role.journal(number)), |tensor| self.layout.file_of(tensor))?;
        }
        Ok(record)
    }

    fn owner(&self, tensor: &str) -> Option<usize> {
        self.layout.index_of(tensor).map(|index| self.share.owners[index])
    }

    fn is_done(&self, part: usize) -> Result<bool> {
        exists(&self.folder.join(Role::Part(part).done())).map_err(|e| self.unusable(&e))
    }

    fn unusable(&self, e: &std::io::Error) -> Error {
        lock::unwritable(&self.target.partial, e)
    }
}

/// Whether there is a file. Opening it asks the machine that has it, where looking may be answered from memory.
fn exists(path: &Path) -> std::io::Result<bool> {
    match File::open(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl WorkDir {
    /// The part that this is, and not the finishing of the output.
    pub fn part(&self) -> Option<&Share> {
        match &self.hold {
            Hold::Part(part) if !part.finishes => Some(&part.share),
            _ => None,
        }
    }

    /// What parts have measured for each other.
    pub fn statistics(&self) -> Option<&Statistics> {
        match &self.hold {
            Hold::Part(part) => Some(&part.statistics),
            Hold::Whole(_) => None,
        }
    }

    /// What all parts have cost, of an output that is being finished.
    pub fn part_totals(&self) -> Vec<PartTotals> {
        let Hold::Part(part) = &self.hold else { return Vec::new() };
        let read = |i: usize| serde_json::from_slice(&fs::read(part.folder.join(Role::Part(i).done())).ok()?).ok();
        (0..part.share.of).filter_map(read).collect()
    }

    /// Notes that a part is done, once [`Self::sync`] has brought it to the disk. Whoever notes the last one finishes the output.
    ///
    /// # Errors
    /// The folder that the parts share cannot be used.
    pub fn end_part(self, totals: PartTotals) -> Result<PartEnd> {
        let share = match &self.hold {
            Hold::Part(part) if !part.finishes => part.share.clone(),
            _ => return Ok(PartEnd::Finish(Box::new(self))),
        };
        self.sync_journal()?;
        let Self { target, layout, hold, boot, options, data, .. } = self;
        drop(data);
        let Hold::Part(part) = hold else { return Err(Error::internal("a part that is none")) };
        let Part { claim, folder, .. } = *part;
        let text = serde_json::to_vec(&totals).map_err(|e| Error::internal(format!("totals: {e}")))?;
        let noted = publish_new(&folder, &folder.join(Role::Part(share.part).done()), &text);
        let at = Place { target: &target, options: &options, share: &share, layout: &layout, boot: &boot, folder };
        noted.map_err(|e| at.unusable(&e))?;
        drop(claim);
        let ended = match at.finish(false) {
            // Another process finished the output meanwhile.
            Err(error) => match finished_as(&target, &options.fingerprint) {
                Some(_) => Opened::PartDone(PartDone {
                    path: target.path.clone(),
                    part: share.part,
                    of: share.of,
                    tensors: share.tensors(),
                    open: Vec::new(),
                    was_done: false,
                    totals,
                }),
                None => return Err(error),
            },
            Ok(opened) => opened,
        };
        match ended {
            Opened::Work(work) => Ok(PartEnd::Finish(work)),
            Opened::PartDone(done) => Ok(PartEnd::Done(PartDone { totals, ..done })),
            Opened::AlreadyDone(_) => Err(Error::internal("a part finished what it does not hold")),
        }
    }
}
