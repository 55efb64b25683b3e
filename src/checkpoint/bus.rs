//! SIGBUS: what the kernel sends when a mapped file has shrunk or its disk cannot be read.
//!
//! There is no going on from it in the thread that read, and unwinding out of a signal handler is not possible, so the
//! handler says which file it was and ends the process with the exit code of a failed environment. What was finished
//! before is on disk, and `--resume` goes on from it.
#![allow(unsafe_code)]

use super::text::quoted_path;
use crate::{Error, Result};
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

/// The exit code of a failed environment, as the command-line contract fixes it.
const EXIT_ENVIRONMENT: libc::c_int = 3;

/// What is said when the address belongs to no file known here.
const UNKNOWN: &[u8] = b"error: a memory-mapped file shrank or could not be read while it was in use\n\
hint: restore the source files and check their disk, then run the same command with --resume\n";

static INSTALLED: AtomicBool = AtomicBool::new(false);
/// Where the handler writes a byte for the thread that tells, once there is one.
static TELLER: AtomicI32 = AtomicI32::new(-1);
/// The address that could not be read.
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
/// How long the handler waits for that thread before it speaks itself, in seconds.
const TELLING_SECONDS: libc::time_t = 2;
static FATAL: AtomicBool = AtomicBool::new(false);
/// The newest of a list of [`Watch`]es that only ever grows, so that a signal handler can walk it at any moment.
static NEWEST: AtomicPtr<Watch> = AtomicPtr::new(ptr::null_mut());

/// One mapped file. Never freed nor used twice: about a hundred bytes for each map that a process makes.
struct Watch {
    /// Address of the map's first byte; 0 once it is unmapped.
    start: AtomicUsize,
    len: usize,
    message: Box<[u8]>,
    older: *const Watch,
}

/// Keeps a map known to the SIGBUS handler as long as it lives.
#[derive(Debug)]
pub(super) struct Watched(Option<&'static AtomicUsize>);

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(start) = self.0 {
            start.store(0, Ordering::Release);
        }
    }
}

/// Makes the map at `start..start + len` known, so that the handler can name its file.
///
/// Without a handler there is nothing to tell, and nothing is kept.
pub(super) fn watch(start: usize, len: usize, path: &Path) -> Watched {
    if !INSTALLED.load(Ordering::Acquire) {
        return Watched(None);
    }
    let message = format!(
        "error: {} shrank or could not be read while it was in use\n\
         hint: restore the file and check its disk, then run the same command with --resume\n",
        quoted_path(path)
    );
    let mut older = NEWEST.load(Ordering::Acquire);
    let message = message.into_bytes().into_boxed_slice();
    let this = Box::into_raw(Box::new(Watch { start: AtomicUsize::new(start), len, message, older }));
    loop {
        // SAFETY: (1) `this` is never freed; (2) until the exchange below succeeds no other
        // thread has it, so this write races with nothing.
        unsafe { (*this).older = older };
        match NEWEST.compare_exchange(older, this, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the node is leaked, and after publication nobody takes a mutable reference to it.
            Ok(_) => return Watched(Some(unsafe { &(*this).start })),
            Err(newer) => older = newer,
        }
    }
}

/// Makes SIGBUS end the process with exit code 3 and a message on stderr that names the file, instead of a core dump.
///
/// For a program's `main`, before it opens checkpoints; calling it again does nothing. A library's user who does not call
/// it keeps the default action.
///
/// # Errors
/// `Environment` if the kernel refuses the handler.
pub fn install_bus_handler() -> Result<()> {
    if INSTALLED.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    // SAFETY: (1) all-zero bytes are a valid `sigaction`: no handler, no flags, an empty mask; (2) `on_bus` has the
    // signature that SA_SIGINFO asks for and does only what is allowed in a signal handler; (3) both pointers are valid
    // during the call, the old action is not asked for.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as extern "C" fn(_, _, _) as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0
    };
    if failed {
        INSTALLED.store(false, Ordering::Release);
        return Err(Error::io("install the SIGBUS handler", &std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Has a thread of its own tell what the handler met, which may allocate and lock where a handler may not; `tell` must end the
/// process. The thread that met it waits; where nothing is told for two seconds the handler's own message is written.
///
/// For a program that has [installed the handler](install_bus_handler); calling it again does nothing.
///
/// # Errors
/// `Environment` if a socket or a thread cannot be had.
pub fn tell_bus_errors(tell: fn(&Error)) -> Result<()> {
    if TELLER.load(Ordering::Acquire) >= 0 {
        return Ok(());
    }
    let failed = |e: std::io::Error| Error::io("prepare for mapped files that shrink", &e);
    let (mut reader, writer) = UnixStream::pair().map_err(failed)?;
    let wait = move || {
        if reader.read_exact(&mut [0]).is_ok() {
            let text = String::from_utf8_lossy(message_for(ADDRESS.load(Ordering::Acquire)));
            let (message, hint) = text.trim_end().split_once("\nhint: ").unwrap_or((&text, ""));
            tell(&Error::environment(message.trim_start_matches("error: ")).hint(hint));
        }
    };
    std::thread::Builder::new().name("bus".into()).stack_size(1 << 17).spawn(wait).map_err(failed)?;
    // Never closed: the handler may need it at any moment.
    TELLER.store(writer.into_raw_fd(), Ordering::Release);
    Ok(())
}

/// Only atomic loads and stores, `write`, `nanosleep`, `pause` and `_exit` in here: all of them async-signal-safe.
extern "C" fn on_bus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // Several threads may fail at once; one of them speaks.
    if FATAL.swap(true, Ordering::AcqRel) {
        loop {
            // SAFETY: `pause` takes no arguments and only waits.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: the kernel gives a valid siginfo to a handler installed with SA_SIGINFO, and for SIGBUS it holds an address.
    let address = if info.is_null() { 0 } else { unsafe { (*info).si_addr() as usize } };
    let teller = TELLER.load(Ordering::Acquire);
    if teller >= 0 {
        ADDRESS.store(address, Ordering::Release);
        let time = libc::timespec { tv_sec: TELLING_SECONDS, tv_nsec: 0 };
        // SAFETY: (1) one byte of a live static array is written to a socket that is never closed; (2) `time` is a valid time, and
        // what is left of it is not asked for.
        unsafe {
            let _ = libc::write(teller, b"!".as_ptr().cast(), 1);
            let _ = libc::nanosleep(&time, ptr::null_mut());
        }
    }
    let message = message_for(address);
    // SAFETY: (1) the pointer and length are those of a live static or leaked slice; (2) a failed or short write to
    // stderr leaves nothing to be done; (3) `_exit` ends the process without running anything else.
    unsafe {
        let _ = libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::_exit(EXIT_ENVIRONMENT)
    }
}

fn message_for(address: usize) -> &'static [u8] {
    let mut at: *const Watch = NEWEST.load(Ordering::Acquire);
    // SAFETY: every node of the list was leaked and, but for `start`, is constant since it was published.
    while let Some(watch) = unsafe { at.as_ref() } {
        let start = watch.start.load(Ordering::Acquire);
        if start != 0 && address.checked_sub(start).is_some_and(|offset| offset < watch.len) {
            return &watch.message;
        }
        at = watch.older;
    }
    UNKNOWN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_no_map_gets_the_message_without_a_name() {
        assert_eq!(message_for(1), UNKNOWN);
    }
}
