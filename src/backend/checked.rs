//! Devices that a check found right, remembered in the user's cache folder by device, driver and build. That it cannot be written or
//! read is no error: then nothing is known.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::device::{self, CudaDevice};

/// Notes that a device passed, and when.
pub fn note(device: &CudaDevice, when: String) {
    let Some(path) = place(|name| std::env::var_os(name)) else { return };
    let mut all = read(&path);
    all.insert(key(device), when);
    // Written beside its place and renamed, so that no reader sees a half.
    let draft = path.with_extension(format!("{}.draft", std::process::id()));
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(&draft, text + "\n")?;
        std::fs::rename(&draft, &path)
    });
    if let Err(error) = written {
        tracing::debug!("the check of {} is not remembered: {error}", device.label());
    }
}

/// When the last of these devices passed a check of this build with this driver; `None` unless all have.
pub fn passed(devices: &[CudaDevice]) -> Option<String> {
    let all = read(&place(|name| std::env::var_os(name))?);
    devices.iter().map(|device| all.get(&key(device)).cloned()).collect::<Option<Vec<_>>>()?.into_iter().min()
}

fn read(path: &std::path::Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// What a result is true of. A build is told by its own bytes' digest: kernels are part of them, or their source is.
fn key(device: &CudaDevice) -> String {
    let build = std::env::current_exe().and_then(std::fs::read).map(|bytes| blake3::hash(&bytes).to_hex());
    let build = build.map_or_else(|_| "unknown".into(), |hex| hex[..16].to_owned());
    let driver = device::nvidia_driver().unwrap_or_else(|| "unknown driver".into());
    format!("{}, {}, {driver}, {} {build}", device.name, device.capability, env!("CARGO_PKG_VERSION"))
}

/// `$XDG_CACHE_HOME/merganser/checks.json`, or the same in `~/.cache`.
fn place(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("merganser").join("checks.json"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_record_lies_in_the_users_cache_folder_and_damage_is_no_knowledge() {
        let of = |xdg: Option<&str>, home: Option<&str>| {
            place(|name| if name == "HOME" { home } else { xdg }.map(Into::into))
        };
        assert_eq!(of(Some("/x"), Some("/h")), Some("/x/merganser/checks.json".into()));
        assert_eq!(of(Some("relative"), Some("/h")), Some("/h/.cache/merganser/checks.json".into()));
        assert_eq!(of(None, None), None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checks.json");
        assert!(read(&path).is_empty());
        std::fs::write(&path, "{\"a\": ").unwrap();
        assert!(read(&path).is_empty());
        std::fs::write(&path, "{\"a\": \"then\"}").unwrap();
        assert_eq!(read(&path)["a"], "then");
    }
}
