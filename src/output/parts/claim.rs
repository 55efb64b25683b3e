//! Who is at work on a part: a file, made by one step that only one process can do, and touched for as long as it works.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names::Role;
use super::publish::{publish_new, publish_over, time_there};
use crate::error::{Error, Result};

/// How often a process at work says so.
const BEAT: Duration = Duration::from_secs(10);
/// After so long without a word a process on another machine counts as dead (docs/how-to/several-nodes.md says so).
pub const SILENCE: Duration = Duration::from_secs(60);
/// How often a claim is tried while others make theirs.
const ATTEMPTS: usize = 64;

/// A process at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::output) struct Holder {
    /// Its machine's name, for people.
    pub host: String,
    /// The boot of the machine; empty if the system does not say.
    boot: String,
    /// What tells its process numbers from those of containers on the same machine.
    namespace: String,
    /// Its process number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since the boot.
    started: u64,
    /// Whether it has ended its work in order.
    ended: bool,
}

impl Holder {
    /// This process.
    fn this(boot: &str) -> Self {
        let uname = rustix::system::uname();
        let namespace = fs::read_link("/proc/self/ns/pid").map(|link| link.to_string_lossy().into_owned());
        let pid = std::process::id();
        Self {
            host: uname.nodename().to_string_lossy().into_owned(),
            boot: boot.into(),
            namespace: namespace.unwrap_or_default(),
            pid,
            started: started(pid).unwrap_or_default(),
            ended: false,
        }
    }

    /// Whether its process numbers are ours.
    fn is_here(&self, this: &Self) -> bool {
        !self.boot.is_empty() && (&self.boot, &self.namespace) == (&this.boot, &this.namespace)
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Held until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub(in crate::output) struct Claim {
    folder: PathBuf,
    path: PathBuf,
    holder: Holder,
    /// The how manieth with this role it is, from 1.
    pub generation: u32,
    beat: Option<Beat>,
}

impl Claim {
    /// Claims a role; who has it, if somebody at work does. `boot` is this machine's.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn take(folder: &Path, role: Role, boot: &str) -> Result<Result<Self, Holder>> {
        let this = Holder::this(boot);
        let mut known = 0;
        for _ in 0..ATTEMPTS {
            // Listings of network file systems may be old; opening a file is not.
            let latest = known.max(latest(folder, role).map_err(|e| unusable(folder, &e))?);
            if let Some(holder) = at_work(folder, role, latest, &this)? {
                return Ok(Err(holder));
            }
            let path = folder.join(role.claim(latest + 1));
            if publish_new(folder, &path, &this.text()).map_err(|e| unusable(folder, &e))? {
                let beat = Beat::start(path.clone(), this.text())?;
                let folder = folder.to_owned();
                return Ok(Ok(Self { folder, path, holder: this, generation: latest + 1, beat: Some(beat) }));
            }
            known = latest + 1;
        }
        Err(Error::busy(format!("`{}` keeps changing while a part is claimed in it", folder.display()))
            .hint("other processes are at work there: try again"))
    }

    /// Who is at work with a role, if anybody is. Makes nothing.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn holder(folder: &Path, role: Role, boot: &str) -> Result<Option<Holder>> {
        let latest = latest(folder, role).map_err(|e| unusable(folder, &e))?;
        at_work(folder, role, latest, &Holder::this(boot))
    }

    /// Ends it without a word, as the folder is about to go.
    pub fn forget(mut self) {
        self.beat = None;
        self.holder.ended = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // No beat may come after the last word.
        self.beat = None;
        if !self.holder.ended {
            self.holder.ended = true;
            if let Err(error) = publish_over(&self.folder, &self.path, &self.holder.text()) {
                tracing::debug!(claim = %self.path.display(), %error, "cannot note the end of a claim");
            }
        }
    }
}

fn unusable(folder: &Path, e: &std::io::Error) -> Error {
    Error::io(format_args!("use the folder `{}`", folder.display()), e)
}

/// The highest number of a claim, or of what its holder made; 0 without any.
fn latest(folder: &Path, role: Role) -> std::io::Result<u32> {
    let mut latest = 0;
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    for entry in entries {
        latest = latest.max(entry?.file_name().to_str().and_then(|name| role.generation(name)).unwrap_or_default());
    }
    Ok(latest)
}

/// The holder of a claim, unless it has ended or died.
fn at_work(folder: &Path, role: Role, generation: u32, this: &Holder) -> Result<Option<Holder>> {
    let path = folder.join(role.claim(generation));
    let mut text = Vec::new();
    // Opened, not only looked at: what the system knows of a file on another machine may be old until then.
    let read = File::open(&path).and_then(|mut file| {
        file.read_to_end(&mut text)?;
        file.metadata()?.modified()
    });
    let touched = match read {
        Ok(touched) => touched,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unusable(folder, &e)),
    };
    let holder: Option<Holder> = serde_json::from_slice(&text).ok();
    if let Some(holder) = holder.as_ref().filter(|h| h.ended || h.is_here(this)) {
        let is_alive = !holder.ended && started(holder.pid).is_some_and(|at| at == holder.started);
        return Ok(is_alive.then(|| holder.clone()));
    }
    let now = time_there(folder).map_err(|e| unusable(folder, &e))?;
    let is_silent = now.duration_since(touched).is_ok_and(|silence| silence > SILENCE);
    // One that cannot be read is just being written.
    let unknown = || Holder { host: "another machine".into(), pid: 0, ..this.clone() };
    Ok((!is_silent).then(|| holder.unwrap_or_else(unknown)))
}

/// When a process of this machine started, in the kernel's ticks; `None` if it has ended, its parent not having noticed included.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Writes a claim anew now and then, so that its time says that its holder lives.
#[derive(Debug)]
struct Beat {
    ended: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Beat {
    fn start(path: PathBuf, text: Vec<u8>) -> Result<Self> {
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let theirs = Arc::clone(&ended);
        let beat = move || {
            let (flag, changed) = &*theirs;
            let mut is_over = flag.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                is_over = changed.wait_timeout(is_over, BEAT).unwrap_or_else(PoisonError::into_inner).0;
                if *is_over {
                    return;
                }
                let written = OpenOptions::new().write(true).open(&path).and_then(|file| {
                    file.write_all_at(&text, 0)?;
                    file.sync_all()
                });
                match written {
                    // The output is finished, and the folder gone.
                    Err(e) if e.kind() == ErrorKind::NotFound => return,
                    Err(error) => {
                        tracing::debug!(claim = %path.display(), %error, "cannot say that this part is at work")
                    }
                    Ok(()) => {}
                }
            }
        };
        let thread = std::thread::Builder::new().name("heartbeat".into()).stack_size(256 << 10).spawn(beat);
        let thread = thread.map_err(|e| Error::environment(format!("cannot start a thread: {e}")))?;
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const ROLE: Role = Role::Part(2);

    fn write(folder: &Path, generation: u32, holder: &Holder, age: Duration) {
        let path = folder.join(ROLE.claim(generation));
        fs::write(&path, holder.text()).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    fn take(folder: &Path) -> Result<Claim, Holder> {
        Claim::take(folder, ROLE, "boot").unwrap()
    }

    #[test]
    fn of_many_that_claim_at_once_one_gets_it_and_once_it_is_dropped_the_next_does() {
        let folder = tempfile::tempdir().unwrap();
        for round in 1..=3 {
            let all: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..12).map(|_| scope.spawn(|| take(folder.path()))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let got: Vec<_> = all.iter().filter_map(|claim| claim.as_ref().ok()).collect();
            assert_eq!((got.len(), got[0].generation), (1, round));
            let held = all.iter().filter_map(|claim| claim.as_ref().err());
            assert!(held.into_iter().all(|holder| holder.pid == std::process::id()));
        }
    }

    #[test]
    fn who_died_on_this_machine_is_followed_at_once_and_who_lives_is_not_however_silent() {
        let folder = tempfile::tempdir().unwrap();
        let this = Holder::this("boot");
        // A process number that is given to nobody, and ours at another time.
        for dead in [Holder { pid: 0x7fff_ffff, ..this.clone() }, Holder { started: this.started + 1, ..this.clone() }]
        {
            write(folder.path(), 1, &dead, Duration::ZERO);
            let claim = take(folder.path()).unwrap();
            assert_eq!(claim.generation, 2);
            drop(claim);
            fs::remove_file(folder.path().join(ROLE.claim(2))).unwrap();
        }
        write(folder.path(), 1, &this, SILENCE * 10);
        assert_eq!(take(folder.path()).unwrap_err(), this);
    }

    #[test]
    fn who_works_on_another_machine_is_followed_once_it_was_silent_for_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let this = Holder::this("boot");
        for other in
            [Holder { boot: "other".into(), ..this.clone() }, Holder { namespace: "other".into(), ..this.clone() }]
        {
            write(folder.path(), 1, &other, SILENCE - Duration::from_secs(5));
            assert_eq!(take(folder.path()).unwrap_err(), other);
            write(folder.path(), 1, &other, SILENCE + Duration::from_secs(5));
            assert_eq!(take(folder.path()).unwrap().generation, 2);
            fs::remove_file(folder.path().join(ROLE.claim(2))).unwrap();
            write(folder.path(), 1, &Holder { ended: true, ..other }, Duration::ZERO);
            assert_eq!(take(folder.path()).unwrap().generation, 2);
            fs::remove_file(folder.path().join(ROLE.claim(2))).unwrap();
        }
    }

    #[test]
    fn a_claim_that_is_just_being_written_is_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(ROLE.claim(1)), "{").unwrap();
        assert_eq!(take(folder.path()).unwrap_err().host, "another machine");
        assert!(Claim::holder(folder.path(), Role::Finisher, "boot").unwrap().is_none());
    }
}
