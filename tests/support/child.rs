//! The binary as a process of its own: to be killed, signalled, limited.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A child that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The document of `--json`.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e} in {:?}; stderr: {}", self.stdout, self.stderr))
    }

    /// Fails unless the exit code is this one and stderr holds every one of these texts.
    #[track_caller]
    pub fn expect(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code(), Some(code), "{:?}: {}", self.status, self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// `merganser merge RECIPE -o OUT --json ARGS`, inside `ulimit LIMIT` if one is given (in the shell's units).
pub fn command(recipe: &Path, out: &Path, args: &[&str], limit: Option<&str>) -> Command {
    let binary = super::binary();
    let mut command = match limit {
        None => Command::new(&binary),
        Some(limit) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]).arg(&binary);
            shell
        }
    };
    command.args(["merge", "--json"]).arg(recipe).arg("-o").arg(out).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn start(recipe: &Path, out: &Path, args: &[&str]) -> Child {
    command(recipe, out, args, None).spawn().unwrap()
}

pub fn end(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs to the end.
pub fn run(recipe: &Path, out: &Path, args: &[&str]) -> Ended {
    end(start(recipe, out, args))
}

/// Runs to the end inside `ulimit LIMIT`.
pub fn run_limited(recipe: &Path, out: &Path, args: &[&str], limit: &str) -> Ended {
    end(command(recipe, out, args, Some(limit)).spawn().unwrap())
}

/// Waits until `is_so` or the child has ended; whether it still runs.
pub fn wait_until(child: &mut Child, mut is_so: impl FnMut() -> bool) -> bool {
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Sends a signal; nothing if the child has ended.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    // It has not been waited for, so the number is still its own.
    let _ = rustix::process::kill_process(pid, signal);
}
