//! Everything about the output of a merge: its layout, the folder it is built in, and the rename that finishes it.
//!
//! The order of use: [`Layout::new`] places every tensor before a byte is written; [`WorkDir::open`] starts, or goes
//! on with, the work folder beside OUT; tensors are written in place and [recorded](WorkDir::record) as they finish,
//! in any order and from any thread; [`WorkDir::finish`] completes the folder and renames it to OUT. Several processes may do
//! so together, a [part](Share) each.
//!
//! **Invariant:** OUT is either what it was before or a complete output, at every moment.

pub mod copy;
pub mod digest;
mod direct;
pub(crate) mod disk;
mod files;
pub mod fingerprint;
mod finish;
mod found;
pub mod journal;
pub mod layout;
mod lock;
pub mod manifest;
pub mod nonfinite;
mod ours;
mod parts;
pub mod source_digest;
mod target;
pub mod workdir;

pub use copy::{Content, Copies, SmallFile};
pub use digest::PieceDigests;
pub use direct::direct_alignment;
pub use fingerprint::Fingerprint;
pub use finish::{CARD_NAME, Finished};
pub use journal::{JournalEntry, Nonfinite, SourceTensorDigest};
pub use layout::{Layout, Placement, TensorSpec};
pub(crate) use ours::{remove_output, unlisted};
pub use parts::{PartDone, PartEnd, PartTotals, SILENCE, Share, Statistics};
pub use source_digest::{BlockDigests, SourceDigests};
pub use workdir::{OpenOptions, Opened, WorkDir};
