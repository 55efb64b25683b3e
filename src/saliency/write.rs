//! The report's file: built beside its place under a name that says so, and put there by one rename.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::report::Report;
use crate::error::{Error, Result};

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A page for people.
    Html,
    /// A document for programs (`"schema": 2`).
    Json,
}

/// A file that a report can be written to.
#[derive(Debug)]
pub struct Target {
    shown: PathBuf,
    path: PathBuf,
    format: Format,
    overwrite: bool,
}

impl Target {
    /// Looks at the place before any work is done: `FILE.html` or `FILE.json` in a folder that exists, which is not there yet
    /// unless it may be overwritten, and which is none of the files and folders `reads`, nor in one of these.
    ///
    /// # Errors
    /// `Input`, saying what is wrong with the place.
    pub fn new(file: &Path, overwrite: bool, reads: &[PathBuf]) -> Result<Self> {
        let shown = file.display();
        let format = match file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("html" | "htm") => Format::Html,
            Some("json") => Format::Json,
            _ => {
                return Err(Error::input(format!("`{shown}` ends in neither .html nor .json"))
                    .hint("name a page, such as `-o saliency.html`, or a document, such as `-o saliency.json`"));
            }
        };
        let folder = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let reaching = |e| {
            Error::io(format_args!("reach the folder `{}` of the report", folder.display()), &e)
                .hint("create the folder first, or name a file in one that is there")
        };
        let mut path = fs::canonicalize(folder).map_err(reaching)?.join(file.file_name().unwrap_or_default());
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format_args!("look at `{shown}`"), &e)),
            Ok(facts) => {
                if facts.is_symlink() {
                    let leads = |e| Error::io(format_args!("follow the link `{shown}`"), &e);
                    path = fs::canonicalize(&path).map_err(leads)?;
                }
                check_existing(&path, file, overwrite, reads)?;
            }
        }
        Ok(Self { shown: file.to_owned(), path, format, overwrite })
    }

    /// How the report will be written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file's place.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a report; the file is at every moment what it was before or whole.
    ///
    /// # Errors
    /// `Environment` if there is no space or no permission; `Input` if a file has appeared meanwhile that may not be
    /// overwritten.
    pub fn write(&self, report: &Report) -> Result<()> {
        let partial = self.partial();
        let writing = |e: &std::io::Error| Error::io(format_args!("write `{}`", partial.display()), e);
        let file = OpenOptions::new().write(true).create_new(true).open(&partial).map_err(|e| writing(&e))?;
        let guard = Remove(&partial);
        self.fill(file, report).map_err(|e| writing(&e))?;
        self.rename(&partial)?;
        std::mem::forget(guard);
        Ok(())
    }

    fn fill(&self, file: File, report: &Report) -> std::io::Result<()> {
        let mut to = BufWriter::new(file);
        match self.format {
            Format::Html => to.write_all(super::html::page(report).as_bytes())?,
            Format::Json => serde_json::to_writer_pretty(&mut to, report)?,
        }
        to.write_all(b"\n")?;
        to.into_inner().map_err(|e| e.into_error())?.sync_all()
    }

    /// The name of the file while it is being written: of this process alone.
    fn partial(&self) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".{}.merganser-partial", std::process::id()));
        self.path.with_file_name(name)
    }

    fn rename(&self, partial: &Path) -> Result<()> {
        let ending = |e: &std::io::Error| Error::io(format_args!("finish `{}`", self.shown.display()), e);
        if !self.overwrite {
            match renameat_with(CWD, partial, CWD, &self.path, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => return Err(exists(&self.shown)),
                // Some file systems do not know the flag.
                Err(Errno::INVAL | Errno::NOSYS) if !self.path.exists() => {}
                Err(Errno::INVAL | Errno::NOSYS) => return Err(exists(&self.shown)),
                Err(e) => return Err(ending(&e.into())),
            }
        }
        fs::rename(partial, &self.path).map_err(|e| ending(&e))
    }
}

fn exists(shown: &Path) -> Error {
    Error::input(format!("`{}` exists", shown.display()))
        .hint("give --overwrite to replace it, or another name to `-o`")
}

/// Whether a report may take the place of what is there.
fn check_existing(path: &Path, shown: &Path, overwrite: bool, reads: &[PathBuf]) -> Result<()> {
    let another = "give another name to `-o`";
    if !path.is_file() {
        return Err(Error::input(format!("`{}` is not a file", shown.display())).hint(another));
    }
    if !overwrite {
        return Err(exists(shown));
    }
    for read in reads {
        if fs::canonicalize(read).is_ok_and(|real| path.starts_with(real)) {
            return Err(Error::input(format!(
                "the report `{}` would replace a file of `{}`, which it is made from",
                shown.display(),
                read.display()
            ))
            .hint(another));
        }
    }
    Ok(())
}

/// Removes an unfinished file.
struct Remove<'a>(&'a Path);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.0) {
            tracing::warn!("`{}` is left behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(file: &Path, overwrite: bool, reads: &[PathBuf]) -> String {
        let error = Target::new(file, overwrite, reads).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        error.to_string()
    }

    #[test]
    fn only_pages_and_documents_in_folders_that_exist_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        for (name, format) in [("a.html", Format::Html), ("a.JSON", Format::Json), ("b.c.htm", Format::Html)] {
            assert_eq!(Target::new(&dir.path().join(name), false, &[]).unwrap().format(), format);
        }
        for name in ["a", "a.txt", ".html", "a.html/", "html", "a.json.gz"] {
            let found = Target::new(&dir.path().join(name), false, &[]);
            if name != "a.html/" {
                assert!(found.unwrap_err().to_string().contains("neither .html nor .json"), "{name}");
            }
        }
        assert!(message(&dir.path().join("none/a.html"), false, &[]).contains("reach the folder"));
    }

    #[test]
    fn what_exists_is_replaced_only_on_request_and_never_a_source() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::create_dir(dir.path().join("folder.html")).unwrap();
        let (file, config) = (dir.path().join("a.json"), model.join("config.json"));
        fs::write(&file, "x").unwrap();
        fs::write(&config, "x").unwrap();
        assert!(message(&file, false, &[]).ends_with("exists"));
        assert!(message(&dir.path().join("folder.html"), true, &[]).contains("is not a file"));
        assert!(message(&config, true, std::slice::from_ref(&model)).contains("made from"));
        assert!(message(&file, true, std::slice::from_ref(&file)).contains("made from"));
        std::os::unix::fs::symlink(&config, dir.path().join("link.json")).unwrap();
        assert!(message(&dir.path().join("link.json"), true, std::slice::from_ref(&model)).contains("made from"));
        Target::new(&file, true, std::slice::from_ref(&model)).unwrap();
        Target::new(&model.join("new.json"), false, &[model]).unwrap();
    }
}
