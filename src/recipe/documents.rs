//! Several documents in one file: those with a name are merged first, and are models of the others by that name.

use std::rc::Rc;

use super::reader::{Reader, text};
use super::yaml::{Data, Node, quote};
use super::{Recipe, read};

/// Reads the documents of a file: the one without a name is the output. `None` after mistakes, all of which are noted.
pub(super) fn read(reader: &mut Reader, roots: &[Rc<Node>]) -> Option<Recipe> {
    let names: Vec<Option<(String, usize)>> = roots.iter().map(|root| name_of(reader, root)).collect();
    let mut outputs = names.iter().enumerate().filter(|(_, name)| name.is_none()).map(|(at, _)| at);
    let output = outputs.next();
    if let Some(second) = outputs.next() {
        let message =
            "a second document without a `name` starts here: one of several is the output, and the others have names";
        reader.keep::<()>(Err(reader.error(roots[second].line, message)));
    }
    if output.is_none() {
        let line = roots.last().map_or(1, |root| root.line);
        let message = "every document has a `name`, so that none of them is the output";
        reader.keep::<()>(Err(reader.error(line, message).hint("take the `name` of the last one away")));
    }
    for (at, name) in names.iter().enumerate() {
        let Some((name, line)) = name else { continue };
        if !is_folder_name(name) {
            let message = format!("a document's `name` must do for a folder, found {}", quote(name));
            reader.keep::<()>(Err(reader.error(*line, message).hint("write letters, digits, `-`, `_` and `.`")));
        }
        if names[..at].iter().flatten().any(|(other, _)| other == name) {
            reader.keep::<()>(Err(reader.error(*line, format_args!("two documents have the name {}", quote(name)))));
        }
    }
    reader.names = names.iter().flatten().map(|(name, _)| name.clone()).collect();
    let reader = &*reader;
    let read: Vec<Option<Recipe>> =
        roots.iter().map(|root| reader.keep(read::document(reader, root)).flatten()).collect();
    let mut waiting: Vec<(String, usize, Recipe)> = Vec::new();
    let mut last = None;
    for (at, (name, recipe)) in names.into_iter().zip(read).enumerate() {
        match (name, recipe?) {
            (Some((name, line)), recipe) => waiting.push((name, line, recipe)),
            (None, recipe) if Some(at) == output => last = Some(recipe),
            (None, _) => {}
        }
    }
    let mut recipe = last?;
    // Whatever needs nothing that is still to come is next.
    while !waiting.is_empty() {
        let pending: Vec<String> = waiting.iter().map(|(name, _, _)| name.clone()).collect();
        let ready = waiting.iter_mut().position(|(_, _, recipe)| {
            !recipe.references_mut().any(|model| model.is_made && pending.contains(&model.written))
        });
        let Some(ready) = ready else {
            let (name, line, _) = &waiting[0];
            reader.keep::<()>(Err(reader
                .error(*line, format_args!("the documents need each other in a circle, {} among them", quote(name)))));
            return None;
        };
        let (name, _, next) = waiting.remove(ready);
        recipe.before.push((name, next));
    }
    Some(recipe)
}

/// A document's `name` and its line.
fn name_of(reader: &Reader, root: &Node) -> Option<(String, usize)> {
    let Data::Map(entries) = &root.data else { return None };
    let entry = entries.iter().find(|entry| entry.key == "name" && !entry.value.is_null())?;
    reader.keep(text(reader, entry)).flatten().map(|name| (name, entry.line))
}

fn is_folder_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 100
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}
