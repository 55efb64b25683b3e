//! One process at a time works in a work folder, or on a part.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::parts::{self, Claim, Holder, Role, names};
use super::target::Target;
use crate::error::{Error, Result};

/// The lock's name in the work folder.
pub(super) const LOCK_NAME: &str = "merganser.lock";

/// How often a folder that another process finishes under our feet is tried again.
const ATTEMPTS: usize = 16;
/// How often, and how far apart, a lock that is held is tried again.
const PATIENCE_TRIES: u32 = 25;
const PATIENCE_STEP: std::time::Duration = std::time::Duration::from_millis(20);

/// Held until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub(super) struct Lock {
    #[allow(dead_code, reason = "the open file is the lock")]
    file: File,
    /// What stands for the lock on file systems without locks.
    claim: Option<Claim>,
}

impl Lock {
    /// Makes the work folder if it does not exist and locks it. `boot` is this machine's.
    pub fn take(target: &Target, boot: &str) -> Result<Self> {
        let path = target.partial.join(LOCK_NAME);
        for _ in 0..ATTEMPTS {
            make_folder(target)?;
            let file = match super::disk::open(&path) {
                Ok(file) => file,
                // Renamed to OUT by another process between our two calls.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(unwritable(&target.partial, &e)),
            };
            let claim = match lock_patiently(&file) {
                Ok(()) => None,
                Err(Errno::WOULDBLOCK) => return Err(busy(target, "", None)),
                Err(error) => {
                    tracing::debug!(%error, "no file locks: a file says that this merge is at work");
                    Some(claim(target, boot)?)
                }
            };
            // The lock is worth something only on the file that others will find there.
            if is_same_file(&file, &path) {
                if let Some((part, holder)) = parts::at_work(&target.partial, boot, claim.is_some())? {
                    return Err(busy(target, &part, Some(&holder)));
                }
                return Ok(Self { file, claim });
            }
        }
        Err(Error::busy(format!("`{}` keeps changing while it is being locked", target.partial.display()))
            .hint("another merganser is at work there: wait for it to end"))
    }

    /// The error where another process, at work on the whole, holds the work folder; `None` where none does. Makes nothing.
    pub fn refusal(target: &Target, boot: &str) -> Option<Error> {
        let is_locked = File::open(target.partial.join(LOCK_NAME))
            .is_ok_and(|file| matches!(lock_patiently(&file), Err(Errno::WOULDBLOCK)));
        let folder = target.partial.join(names::FOLDER);
        let holder = || Claim::holder(&folder, Role::Whole, boot).ok().flatten();
        match is_locked {
            true => Some(busy(target, "", None)),
            false => holder().map(|holder| busy(target, "", Some(&holder))),
        }
    }

    /// Lets go of what lies in the work folder, which is about to become OUT.
    pub fn leave_folder(&mut self) {
        if let Some(claim) = self.claim.take() {
            claim.forget();
        }
    }
}

/// Claims the whole merge.
fn claim(target: &Target, boot: &str) -> Result<Claim> {
    let folder = target.partial.join(names::FOLDER);
    match fs::create_dir(&folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(unwritable(&target.partial, &e)),
        _ => {}
    }
    Claim::take(&folder, Role::Whole, boot)?.map_err(|holder| busy(target, "", Some(&holder)))
}

/// The error for a work folder, or a part of the merge in it (`part-3`), that somebody else is at work on.
pub(super) fn busy(target: &Target, part: &str, holder: Option<&Holder>) -> Error {
    let (shown, partial) = (target.shown.display(), target.partial.display());
    let what = match part.strip_prefix("part-") {
        Some(number) => format!("part {number} of `{shown}`"),
        None => format!("`{shown}`"),
    };
    let who = holder.map(|Holder { host, pid, .. }| match pid {
        0 => format!(" on {host}"),
        pid => format!(" (process {pid} on {host})"),
    });
    let hint = match part {
        "" => "wait for it to end, or give another folder to `-o`",
        _ => "wait for it to end; one that died on another machine is followed after a minute",
    };
    Error::busy(format!("another merganser{} is writing {what}, in `{partial}`", who.unwrap_or_default())).hint(hint)
}

pub(super) fn make_folder(target: &Target) -> Result<()> {
    let partial = &target.partial;
    match super::disk::create_dir(partial) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => match fs::symlink_metadata(partial) {
            Ok(m) if !m.is_dir() => {
                Err(Error::input(format!("`{}`, where the output would be built, is not a folder", partial.display()))
                    .hint("move it away, or give another folder to `-o`"))
            }
            _ => Ok(()),
        },
        Err(e) if e.kind() == ErrorKind::InvalidFilename => Err(Error::input(format!(
            "the name of `{}` is too long: the work folder beside it could not be made",
            target.shown.display()
        ))),
        Err(e) => Err(unwritable(partial, &e)),
    }
}

pub(super) fn unwritable(partial: &Path, e: &std::io::Error) -> Error {
    Error::environment(format!("cannot build the output in `{}`: {e}", partial.display()))
        .because_of_io(e)
        .hint("make its parent folder writable for this user, or give another folder to `-o`")
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

/// Tries for a moment: a process that has just ended, or a child that is about to start another program, still holds the
/// lock for some milliseconds.
fn lock_patiently(file: &File) -> rustix::io::Result<()> {
    for _ in 0..PATIENCE_TRIES {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PATIENCE_STEP),
            result => return result,
        }
    }
    flock(file, FlockOperation::NonBlockingLockExclusive)
}
