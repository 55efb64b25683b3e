//! Recipes of several documents: those that others take as models are merged first, into a folder beside OUT that goes once
//! OUT is there.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::PlanArgs;
use crate::engine::{self, Progress, Request, Stop};
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// The outputs of documents, while they are needed.
pub(super) struct Documents {
    folder: PathBuf,
    made: Vec<PathBuf>,
}

/// Merges the documents that `recipe` needs, and makes it name their folders.
pub(super) fn merge(args: &PlanArgs, recipe: &mut Recipe, out: &Path, resume: bool, stop: &Stop) -> Result<Documents> {
    let mut name: OsString = out.file_name().map(Into::into).unwrap_or_default();
    name.push(".merganser-documents");
    let mut documents = Documents { folder: out.with_file_name(name), made: Vec::new() };
    let before = std::mem::take(&mut recipe.before);
    if before.is_empty() {
        return Ok(documents);
    }
    let at = |e: &std::io::Error, folder: &Path| Error::io(format_args!("make the folder `{}`", folder.display()), e);
    fs::create_dir_all(&documents.folder).map_err(|e| at(&e, &documents.folder))?;
    for (name, mut document) in before {
        documents.name(&mut document);
        let target = documents.folder.join(&name);
        tracing::info!("merging the document `{name}` first");
        let plan = args.plan_of(document)?;
        let request = Request { plan: &plan, out: &target, resume, overwrite: true };
        engine::merge(&request, &Progress::default(), stop)?;
        documents.made.push(target);
    }
    documents.name(recipe);
    Ok(documents)
}

impl Documents {
    /// Makes a recipe name the folders of what was merged.
    fn name(&self, recipe: &mut Recipe) {
        for model in recipe.references_mut().filter(|model| model.is_made) {
            model.path = self.folder.join(&model.written);
            model.is_made = false;
        }
    }

    /// Removes what was merged, now that OUT is there. What is left of it is told and does no harm.
    pub fn remove(self) {
        let removed = self.made.iter().try_for_each(fs::remove_dir_all);
        let removed = removed.and_then(|()| if self.made.is_empty() { Ok(()) } else { fs::remove_dir(&self.folder) });
        if let Err(error) = removed {
            tracing::warn!("`{}` is not needed any more and cannot be removed: {error}", self.folder.display());
        }
    }
}
