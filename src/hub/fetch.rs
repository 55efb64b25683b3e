//! Models that are not in the cache, where the user allows a download: their headers and small files alone for a plan, all of
//! them, into the cache, for a merge.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::remote::{Listed, Listing, Remote};
use super::{folder_of, name};
use crate::checkpoint::{MAX_HEADER_BYTES, quoted, quoted_path};
use crate::engine::Stop;
use crate::error::{Cause, Error, Result};
use crate::output::copy::{MAX_BYTES, is_wanted};
use crate::units::format_bytes;

/// Bytes of a file that are asked for first: most headers are shorter.
const FIRST_BYTES: u64 = 256 << 10;
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";
/// Small files that are read and not copied.
const READ: [&str; 7] = [
    INDEX,
    "adapter_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "quant_strategy.json",
];

/// What of a model is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Headers and small files, into a folder that goes with the [`Fetcher`].
    Headers,
    /// Everything that a merge reads, into the cache.
    Whole,
}

/// A permission to download.
#[derive(Debug)]
pub struct Fetcher {
    remote: Remote,
    extent: Extent,
    stop: Stop,
    /// Headers and small files of this process.
    drafts: PathBuf,
    fetched: AtomicUsize,
}

impl Fetcher {
    /// Fetches so much of a model.
    ///
    /// # Errors
    /// Usage, where the environment forbids the network (`HF_HUB_OFFLINE`).
    pub fn new(extent: Extent, stop: Stop) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
        if ["1", "true", "yes", "on"].contains(&offline.to_ascii_lowercase().as_str()) {
            return Err(Error::input("HF_HUB_OFFLINE forbids what --download asks for")
                .because(Cause::Usage)
                .hint("take one of the two away"));
        }
        let own = format!("merganser-headers-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let drafts = std::env::temp_dir().join(own);
        Ok(Self { remote: Remote::new(), extent, stop, drafts, fetched: AtomicUsize::new(0) })
    }

    /// How many models were fetched.
    pub fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Fetches a model by its name; `None` for a text that is no name of the Hub.
    ///
    /// # Errors
    /// Input, for what the Hub does not have or does not show; environment, for the network and the disk.
    pub(crate) fn fetch(&self, written: &str, cache: &Path) -> Result<Option<PathBuf>> {
        let Some((name, revision)) = name(written) else { return Ok(None) };
        let draft = self.drafts.join(folder_of(written));
        if self.extent == Extent::Headers && draft.is_dir() {
            return Ok(Some(draft));
        }
        let listing = self.remote.list(name, revision)?;
        let (weights, small) = self.choose(name, &listing)?;
        self.fetched.fetch_add(1, Ordering::Relaxed);
        match self.extent {
            Extent::Headers => self.draft(name, &listing, &weights, &small, &draft).map(|()| Some(draft)),
            Extent::Whole => self.cached(name, revision, &listing, &weights, &small, cache).map(Some),
        }
    }

    /// The files of tensors, and the small ones.
    fn choose(&self, name: &str, listing: &Listing) -> Result<(Vec<Listed>, Vec<Listed>)> {
        let find = |wanted: &str| listing.files.iter().find(|file| file.name == wanted).cloned();
        let tensors: Vec<&Listed> = listing.files.iter().filter(|file| file.name.ends_with(".safetensors")).collect();
        let weights = match (find(INDEX), find("model.safetensors"), find(ADAPTER)) {
            (_, Some(one), _) | (None, None, Some(one)) => vec![one],
            (Some(index), ..) => {
                let text = self.small(name, &listing.commit, &index)?;
                let map: Option<Value> = serde_json::from_slice(&text).ok();
                let shards = map.as_ref().and_then(|index| index.get("weight_map")?.as_object());
                let mut names: Vec<&str> =
                    shards.into_iter().flat_map(|map| map.values().filter_map(Value::as_str)).collect();
                names.sort_unstable();
                names.dedup();
                let shard = |wanted: &str| {
                    find(wanted).ok_or_else(|| {
                        let message =
                            format!("{} of {} names {}, which is not there", INDEX, quoted(name), quoted(wanted));
                        Error::input(message).because(Cause::Checkpoint)
                    })
                };
                names.into_iter().map(shard).collect::<Result<_>>()?
            }
            (None, None, None) if tensors.len() == 1 => vec![tensors[0].clone()],
            (None, None, None) => {
                return Err(Error::input(format!(
                    "{} has no safetensors that could be read from the Hub",
                    quoted(name)
                ))
                .because(Cause::Checkpoint)
                .hint(format!("`hf download {name}` fetches it into the cache as it is")));
            }
        };
        let is_small =
            |file: &&Listed| file.bytes <= MAX_BYTES && (is_wanted(&file.name) || READ.contains(&file.name.as_str()));
        Ok((weights, listing.files.iter().filter(is_small).cloned().collect()))
    }

    fn small(&self, name: &str, commit: &str, file: &Listed) -> Result<Vec<u8>> {
        if file.bytes > MAX_BYTES {
            let message =
                format!("{} of {} has {} bytes, more than are read", quoted(&file.name), quoted(name), file.bytes);
            return Err(Error::input(message).because(Cause::Checkpoint));
        }
        self.remote.part(name, commit, file, 0..file.bytes)
    }

    /// Writes files that have their headers and the rest as a hole.
    fn draft(&self, name: &str, listing: &Listing, weights: &[Listed], small: &[Listed], to: &Path) -> Result<()> {
        tracing::info!("fetching headers and small files of {name}");
        let at = |e: &std::io::Error| Error::io(format_args!("write in {}", quoted_path(to)), e);
        fs::create_dir_all(to).map_err(|e| at(&e))?;
        for file in small {
            let text = self.small(name, &listing.commit, file)?;
            fs::write(to.join(&file.name), text).map_err(|e| at(&e))?;
        }
        for file in weights {
            if let Some(error) = self.stop.error() {
                return Err(error);
            }
            let mut head = self.remote.part(name, &listing.commit, file, 0..FIRST_BYTES)?;
            let Some(first) = head.first_chunk::<8>() else {
                let message =
                    format!("{} of {} has {} bytes and no header", quoted(&file.name), quoted(name), file.bytes);
                return Err(Error::input(message).because(Cause::Checkpoint));
            };
            let end = u64::from_le_bytes(*first).saturating_add(8);
            if end <= MAX_HEADER_BYTES + 8 && end > FIRST_BYTES {
                head.extend(self.remote.part(name, &listing.commit, file, FIRST_BYTES..end)?);
            }
            let mut into = File::create(to.join(&file.name)).map_err(|e| at(&e))?;
            into.write_all(&head).map_err(|e| at(&e))?;
            into.set_len(file.bytes).map_err(|e| at(&e))?;
        }
        Ok(())
    }

    /// Fetches all files into the cache, as the Hub's own programs lay it out.
    fn cached(
        &self,
        name: &str,
        revision: &str,
        listing: &Listing,
        weights: &[Listed],
        small: &[Listed],
        cache: &Path,
    ) -> Result<PathBuf> {
        let folder = cache.join(folder_of(name));
        let at = |e: &std::io::Error| Error::io(format_args!("write in {}", quoted_path(&folder)), e);
        let (blobs, snapshot) = (folder.join("blobs"), folder.join("snapshots").join(&listing.commit));
        for folder in [&blobs, &snapshot] {
            fs::create_dir_all(folder).map_err(|e| at(&e))?;
        }
        for file in weights.iter().chain(small) {
            let blob = blobs.join(&file.blob);
            if !fs::metadata(&blob).is_ok_and(|facts| facts.is_file() && facts.len() == file.bytes) {
                tracing::info!("downloading {name}: {} ({})", file.name, format_bytes(file.bytes));
                let unfinished = blobs.join(format!("{}.incomplete", file.blob));
                self.remote.fetch(name, &listing.commit, file, &unfinished, &self.stop)?;
                fs::rename(&unfinished, &blob).map_err(|e| at(&e))?;
            }
            let link = snapshot.join(&file.name);
            if !link.exists() {
                // A link that leads nowhere is replaced.
                let _ = fs::remove_file(&link);
                symlink(Path::new("../../blobs").join(&file.blob), &link).map_err(|e| at(&e))?;
            }
        }
        // Last: a reference stands for a whole snapshot.
        let reference = folder.join("refs").join(revision);
        if revision != listing.commit
            && let Some(parent) = reference.parent()
        {
            fs::create_dir_all(parent).map_err(|e| at(&e))?;
            fs::write(&reference, &listing.commit).map_err(|e| at(&e))?;
        }
        Ok(snapshot)
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        if self.drafts.is_dir()
            && let Err(error) = fs::remove_dir_all(&self.drafts)
        {
            tracing::debug!("`{}` cannot be removed: {error}", self.drafts.display());
        }
    }
}
