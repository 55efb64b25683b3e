//! Small file systems for tests that fill a disk.

use std::path::Path;
use std::process::Command;

/// A tmpfs that is unmounted when dropped.
pub struct Mount(tempfile::TempDir);

impl Mount {
    /// `None` where this user may not mount.
    pub fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let run = Command::new("mount").args(["-t", "tmpfs", "-o", options, "merganser-test"]).arg(dir.path()).output();
        match run {
            Ok(run) if run.status.success() => Some(Self(dir)),
            Ok(_) => {
                super::skip("this user may not mount a tmpfs");
                None
            }
            Err(e) => {
                super::skip(&format!("cannot run mount: {e}"));
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
