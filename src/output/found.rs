//! What stands where a merge is to go, and whether its options allow to go on with it or to replace it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::files::DataFiles;
use super::fingerprint::Fingerprint;
use super::layout::Layout;
use super::lock::LOCK_NAME;
use super::ours::{Ours, not_ours};
use super::target::Target;
use super::workdir::OpenOptions;
use crate::error::{Error, Kind, Result};
use crate::output::manifest::{MANIFEST_NAME, Manifest};

/// Keeps the fingerprint of the plan that an unfinished output belongs to.
pub(super) const PLAN_NAME: &str = "merganser.plan.json";
/// Keeps what is finished.
pub(super) const JOURNAL_NAME: &str = "merganser.journal.jsonl";

/// The plan's name until all of it is written.
pub(super) const PLAN_DRAFT_NAME: &str = "merganser.plan.json.new";

/// What a work folder holds.
pub(super) enum Found {
    Nothing,
    Plan(Fingerprint),
    /// All but the rename is done.
    Complete(Box<Manifest>),
    Damaged,
}

/// Decides about an OUT with something in it: `Some` if it is what this plan would make, `None` if it may be
/// replaced at the end, which it may only if all of it is ours, else the error that says why not.
pub(super) fn may_replace(target: &Target, options: &OpenOptions, layout: &Layout) -> Result<Option<Box<Manifest>>> {
    let shown = target.shown.display();
    let manifest = Manifest::read(&target.path).ok();
    let is_this = manifest.as_ref().is_some_and(|m| m.fingerprint == options.fingerprint.digest());
    let broken = broken_file(&target.path, layout);
    // A replacement of it by the same merge, begun and interrupted, is gone on with.
    let is_begun = || matches!(look(&target.partial), Ok(Found::Plan(found)) if found == options.fingerprint);
    let is_done = options.resume && is_this && broken.is_none();
    match manifest {
        Some(manifest) if is_done && !(options.overwrite && is_begun()) => return Ok(Some(Box::new(manifest))),
        _ if options.overwrite => return check_replaceable(target).map(|()| None),
        _ => {}
    }
    let is_started = look(&target.partial).is_ok_and(|f| !matches!(f, Found::Nothing));
    let message = match broken {
        Some(file) if is_this => format!("`{shown}` was finished by this merge, but `{file}` in it is not whole"),
        _ if is_this => format!("`{shown}` holds the finished output of this very merge"),
        _ if manifest_exists(&target.path) => format!("`{shown}` holds the output of another merge"),
        _ => format!("`{shown}` exists and is not empty"),
    };
    let error = Error::input(message);
    Err(if is_started {
        error.hint("an interrupted merge waits beside it: `--resume --overwrite` goes on and replaces it at the end")
    } else {
        error.hint("`--overwrite` replaces it once the new output is complete; or give another folder to `-o`")
    })
}

/// Refuses to replace an OUT, or what an earlier replacement left beside it, in which there is something that is not ours.
pub(super) fn check_replaceable(target: &Target) -> Result<()> {
    for folder in [&target.path, &target.old] {
        match fs::symlink_metadata(folder) {
            Ok(facts) if facts.is_dir() => {}
            Ok(_) => return Err(not_ours(folder)),
            Err(_) => continue,
        }
        let mut entries =
            fs::read_dir(folder).map_err(|e| Error::io(format_args!("look into `{}`", folder.display()), &e))?;
        let Some(first) = entries.next() else { continue };
        let ours = Ours::of_output(folder).map_err(|e| {
            let first = first.map_or_else(|_| folder.clone(), |entry| entry.path());
            if e.kind() != Kind::Input {
                return e;
            }
            Error::input(format!("nothing tells that merganser wrote `{}`: {e}", first.display()))
                .hint("`--overwrite` replaces outputs of merganser alone: give another folder to `-o`, or remove this one yourself")
        })?;
        if let Some(stranger) = ours.stranger(folder)? {
            return Err(not_ours(&stranger));
        }
    }
    Ok(())
}

/// Refuses a work folder in which there is something that is not ours. `layout` is this merge's.
pub(super) fn check_work_folder(partial: &Path, fingerprint: &Fingerprint, layout: &Layout) -> Result<()> {
    if !partial.is_dir() {
        return Ok(());
    }
    let is_this = || Fingerprint::read(&partial.join(PLAN_NAME)).is_ok_and(|f| f.as_ref() == Some(fingerprint));
    let stranger = || Ours::of_work(partial, is_this().then_some(layout)).stranger(partial);
    // Another process may just be ending its merge here: a second look sees what that left.
    match stranger().and_then(|found| if found.is_some() { stranger() } else { Ok(None) }) {
        Ok(Some(stranger)) => Err(not_ours(&stranger)),
        Ok(None) => Ok(()),
        Err(_) if !partial.exists() => Ok(()),
        Err(e) => Err(e),
    }
}

fn manifest_exists(folder: &Path) -> bool {
    folder.join(MANIFEST_NAME).exists()
}

/// A data file of a finished output that is missing or has another size.
pub(super) fn broken_file(folder: &Path, layout: &Layout) -> Option<String> {
    let whole = DataFiles::existing(folder, layout);
    layout.files().iter().zip(whole).find(|(_, whole)| !whole).map(|(f, _)| f.name.clone())
}

/// What the work folder holds.
pub(super) fn look(partial: &Path) -> Result<Found> {
    let plan = partial.join(PLAN_NAME);
    if plan.exists() {
        return Ok(Fingerprint::read(&plan)?.map_or(Found::Damaged, Found::Plan));
    }
    if let Ok(manifest) = Manifest::read(partial) {
        return Ok(Found::Complete(Box::new(manifest)));
    }
    let entries = match fs::read_dir(partial) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(Error::io(format_args!("look into `{}`", partial.display()), &e)),
    };
    // A start that was killed before it noted its plan left nothing of worth.
    let is_empty = entries.flatten().all(|e| {
        let name = e.file_name();
        name == LOCK_NAME || name == PLAN_DRAFT_NAME || name == super::parts::names::FOLDER
    });
    Ok(if is_empty { Found::Nothing } else { Found::Damaged })
}

/// The error for a work folder that the options do not allow to go on with.
pub(super) fn refused(target: &Target, options: &OpenOptions, found: &Found) -> Error {
    let (out, partial) = (target.shown.display(), target.partial.display());
    if !options.resume {
        return Error::input(format!("an interrupted merge into `{out}` is in `{partial}`"))
            .hint("`--resume` goes on with it, `--overwrite` starts again");
    }
    let overwrite = "`--resume --overwrite` starts again where it cannot go on";
    match found {
        Found::Plan(earlier) => {
            let differences = options.fingerprint.differences(earlier).join("; ");
            Error::input(format!("the interrupted merge in `{partial}` is not this one: {differences}"))
                .hint(format!("undo the change to go on with it, or {overwrite}"))
        }
        Found::Complete(_) => Error::input(format!("`{partial}` holds the output of another merge")).hint(overwrite),
        _ => Error::input(format!("`{partial}` is damaged: what merge it belongs to cannot be told")).hint(overwrite),
    }
}
