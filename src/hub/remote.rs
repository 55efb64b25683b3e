//! The Hub over HTTP: which files a model has, a part of one, and a whole one onto the disk.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::checkpoint::{quoted, quoted_path};
use crate::engine::Stop;
use crate::error::{Cause, Error, Result};

/// The Hub where `HF_ENDPOINT` does not say another.
const ENDPOINT: &str = "https://huggingface.co";
/// Longest answer about a model that is read, in bytes.
const MOST_LISTED: u64 = 64 << 20;
/// Bytes that are read from the network at once.
const PIECE_BYTES: usize = 256 << 10;
const CONNECT: Duration = Duration::from_secs(30);
/// How often a download that breaks off is gone on with.
const ATTEMPTS: usize = 5;

/// A way to the Hub.
#[derive(Debug)]
pub(super) struct Remote {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub name: String,
    pub bytes: u64,
    /// What the cache names its content by.
    pub blob: String,
}

/// A revision of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    size: Option<u64>,
}

impl Remote {
    /// As the environment says: `HF_ENDPOINT`, and a token from `HF_TOKEN`.
    pub fn new() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let config = Agent::config_builder().http_status_as_error(false).timeout_connect(Some(CONNECT)).build();
        Self {
            agent: config.into(),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN").map(|token| token.trim().to_owned()),
        }
    }

    /// The files of a model.
    ///
    /// # Errors
    /// Input, if the Hub has no such model or revision, or does not let this user see it.
    pub fn list(&self, name: &str, revision: &str) -> Result<Listing> {
        let url = format!("{}/api/models/{name}/revision/{}?blobs=true", self.endpoint, encoded(revision));
        let mut response = self.get(&url, None)?;
        self.check(name, revision, &url, &response)?;
        let text = response.body_mut().with_config().limit(MOST_LISTED).read_to_vec().map_err(|e| lost(&url, &e))?;
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|e| Error::environment(format!("{} answered with what is no list of files: {e}", quoted(&url))))?;
        let is_hash = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hash(&answer.sha) {
            return Err(Error::environment(format!("{} answered with no commit's number", quoted(&url))));
        }
        let file = |sibling: Sibling| {
            let (hash, size) = match sibling.lfs {
                Some(lfs) => (lfs.sha256, lfs.size.or(sibling.size)),
                None => (sibling.blob_id, sibling.size),
            };
            let blob = hash.filter(|hash| is_hash(hash))?;
            // Names come from a stranger: those that lead elsewhere are of no use here.
            let is_plain = !sibling.rfilename.contains(['/', '\\', '\0']) && !sibling.rfilename.starts_with('.');
            is_plain.then_some(Listed { name: sibling.rfilename, bytes: size?, blob })
        };
        Ok(Listing { commit: answer.sha, files: answer.siblings.into_iter().filter_map(file).collect() })
    }

    fn url(&self, name: &str, commit: &str, file: &str) -> String {
        format!("{}/{name}/resolve/{commit}/{}", self.endpoint, encoded(file))
    }

    /// Bytes of a file.
    pub fn part(&self, name: &str, commit: &str, file: &Listed, range: Range<u64>) -> Result<Vec<u8>> {
        let range = range.start..range.end.min(file.bytes);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let url = self.url(name, commit, &file.name);
        let mut response = self.get(&url, Some(range.clone()))?;
        self.check(name, commit, &url, &response)?;
        if response.status().as_u16() != 206 && range != (0..file.bytes) {
            return Err(Error::environment(format!("{} answers no request for a part of the file", quoted(&url)))
                .hint(format!("`hf download {name}` fetches the whole model into the cache")));
        }
        let wanted = range.end - range.start;
        let bytes = response.body_mut().with_config().limit(wanted + 1).read_to_vec().map_err(|e| lost(&url, &e))?;
        if bytes.len() as u64 != wanted {
            let found = bytes.len();
            return Err(Error::environment(format!("{}: {found} bytes came, {wanted} were asked for", quoted(&url))));
        }
        Ok(bytes)
    }

    /// Fetches a whole file to a path, going on with what is there already.
    pub fn fetch(&self, name: &str, commit: &str, file: &Listed, to: &Path, stop: &Stop) -> Result<()> {
        let url = self.url(name, commit, &file.name);
        let at = |e: &std::io::Error| Error::io(format_args!("write {}", quoted_path(to)), e);
        let mut into = OpenOptions::new().create(true).append(true).open(to).map_err(|e| at(&e))?;
        let mut buffer = vec![0; PIECE_BYTES];
        let mut failures = 0;
        loop {
            let done = into.metadata().map_err(|e| at(&e))?.len();
            if done > file.bytes {
                into.set_len(0).map_err(|e| at(&e))?;
                continue;
            }
            if done == file.bytes {
                return into.sync_all().map_err(|e| at(&e));
            }
            let mut response = self.get(&url, Some(done..file.bytes))?;
            self.check(name, commit, &url, &response)?;
            if response.status().as_u16() != 206 && done > 0 {
                into.set_len(0).map_err(|e| at(&e))?;
            }
            let mut body = response.body_mut().as_reader();
            loop {
                if let Some(error) = stop.error() {
                    return Err(error.hint("run the same command again: it goes on where the download was"));
                }
                match body.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => into.write_all(&buffer[..n]).map_err(|e| at(&e))?,
                    Err(error) if failures + 1 < ATTEMPTS => {
                        tracing::debug!("{url}: {error}, going on");
                        break;
                    }
                    Err(error) => return Err(lost(&url, &error)),
                }
            }
            failures += 1;
            if failures >= ATTEMPTS && into.metadata().map_err(|e| at(&e))?.len() < file.bytes {
                return Err(Error::environment(format!("{} breaks off again and again", quoted(&url)))
                    .because(Cause::Io)
                    .hint("run the same command again: it goes on where the download was"));
            }
        }
    }

    fn get(&self, url: &str, range: Option<Range<u64>>) -> Result<Response<Body>> {
        let mut request = self.agent.get(url).header("User-Agent", concat!("merganser/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("Range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        request.call().map_err(|e| lost(url, &e))
    }

    fn check(&self, name: &str, revision: &str, url: &str, response: &Response<Body>) -> Result<()> {
        let status = response.status();
        let refused = |why: String| Error::input(why).because(Cause::Checkpoint);
        match status.as_u16() {
            200 | 206 => Ok(()),
            401 | 403 => Err(refused(format!("the Hub does not show {} to this user ({status})", quoted(name)))
                .hint("check the name; for a private or gated model set HF_TOKEN to a token that may read it")),
            404 => Err(refused(format!("the Hub has no model {} of revision {}", quoted(name), quoted(revision)))),
            _ => Err(Error::environment(format!("{} answered {status}", quoted(url)))
                .because(Cause::Io)
                .hint("try again later, or give a local path")),
        }
    }
}

fn lost(url: &str, error: &dyn std::fmt::Display) -> Error {
    Error::environment(format!("cannot fetch {}: {error}", quoted(url)))
        .because(Cause::Io)
        .hint("check the network, HF_ENDPOINT and proxies; a finished part is kept and gone on with")
}

/// A part of a URL's path, `/` included.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_and_names_are_encoded() {
        assert_eq!(encoded("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encoded("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors");
        assert_eq!(encoded("ä b"), "%C3%A4%20b");
    }
}
