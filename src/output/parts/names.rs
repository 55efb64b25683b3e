//! Names in the folder that keeps what the parts of a merge know of each other.

/// The folder, in the work folder.
pub(in crate::output) const FOLDER: &str = "merganser.parts";
/// Says that every data file has its full size: from then on a shorter one is a lost one.
pub(super) const READY: &str = "files.ready";
/// Of files that are written before they get their name.
pub(super) const DRAFT: &str = "draft-";

/// Who claims something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::output) enum Role {
    /// A part, from 0.
    Part(usize),
    /// Whoever completes the output once all parts are done.
    Finisher,
    /// A merge that is not in parts, on a file system without file locks.
    Whole,
}

impl Role {
    /// As file names have it: parts count from 1.
    pub fn word(self) -> String {
        match self {
            Self::Part(part) => format!("part-{}", part + 1),
            Self::Finisher => "finish".into(),
            Self::Whole => "whole".into(),
        }
    }

    /// Says who is at work. Of several with the same role the highest number counts, the others have ended.
    pub fn claim(self, generation: u32) -> String {
        format!("{}.claim-{generation}", self.word())
    }

    /// What one of them has finished.
    pub fn journal(self, generation: u32) -> String {
        format!("{}.journal-{generation}", self.word())
    }

    /// What one of them has measured for all.
    pub fn statistics(self, generation: u32) -> String {
        format!("{}.statistics-{generation}", self.word())
    }

    /// Says that a part is done and on the disk.
    pub fn done(self) -> String {
        format!("{}.done", self.word())
    }

    /// A part's bytes in blocks that it shares with others.
    pub fn edges(self) -> String {
        format!("{}.edges", self.word())
    }

    /// The number of a file of this role, if it is one that counts.
    pub fn generation(self, name: &str) -> Option<u32> {
        let (kind, number) = name.strip_prefix(&self.word())?.strip_prefix('.')?.split_once('-')?;
        matches!(kind, "claim" | "journal" | "statistics").then(|| decimal(number)).flatten()
    }
}

/// Whether a file of this name in [`FOLDER`] is of merganser's making.
pub(in crate::output) fn is_ours(name: &str) -> bool {
    if name == READY {
        return true;
    }
    if let Some(rest) = name.strip_prefix(DRAFT) {
        return !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    }
    let Some((who, what)) = name.split_once('.') else { return false };
    let known = matches!(who, "finish" | "whole") || who.strip_prefix("part-").and_then(decimal).is_some();
    let counted = |kind: &str| what.strip_prefix(kind).and_then(decimal).is_some();
    known && (matches!(what, "done" | "edges") || ["claim-", "journal-", "statistics-"].into_iter().any(counted))
}

/// Whether a file of this name in [`FOLDER`] is a journal.
pub(in crate::output) fn is_journal(name: &str) -> bool {
    is_ours(name) && name.contains(".journal-")
}

/// Whether a file of this name in [`FOLDER`] holds statistics.
pub(super) fn is_statistics(name: &str) -> bool {
    is_ours(name) && name.contains(".statistics-")
}

fn decimal(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_known_as_ours_and_nothing_else_is() {
        for role in [Role::Part(0), Role::Part(41), Role::Finisher, Role::Whole] {
            for name in [role.claim(1), role.journal(12), role.statistics(3), role.done(), role.edges()] {
                assert!(is_ours(&name), "{name}");
            }
            assert_eq!(role.generation(&role.journal(12)), Some(12));
            assert_eq!(role.generation(&role.edges()), None);
        }
        assert_eq!(Role::Part(0).generation("part-11.claim-3"), None);
        for name in [
            "",
            "part-1",
            "part-.done",
            "part-x.done",
            "part-1.claim-",
            "part-1.claim-+1",
            "draft-",
            "draft-x",
            "notes",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
