//! What the pages of `docs` say can be done: recipes are read, and links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use merganser::recipe::parse_bytes;

/// Every page of the project that a reader may come to, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned(), root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() && folder != root {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "md") {
                found.push((entry.clone(), fs::read_to_string(entry).unwrap()));
            }
        }
    }
    assert!(found.len() >= 10, "{found:?}");
    found
}

#[test]
fn every_recipe_of_a_how_to_page_is_valid() {
    let mut recipes = 0;
    for (path, text) in pages().iter().filter(|(path, _)| path.parent().is_some_and(|p| p.ends_with("how-to"))) {
        for block in text.split("\n```").skip(1).step_by(2).filter_map(|b| b.strip_prefix("yaml\n")) {
            parse_bytes(block.as_bytes()).unwrap_or_else(|e| panic!("{}: {e} in\n{block}", path.display()));
            recipes += 1;
        }
    }
    assert!(recipes >= 5, "{recipes} recipes");
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    let mut links = 0;
    for (path, text) in pages() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") || file.contains(char::is_whitespace) {
                continue;
            }
            assert!(path.parent().unwrap().join(file).exists(), "{}: `{target}` leads nowhere", path.display());
            links += 1;
        }
    }
    assert!(links >= 30, "{links} links");
}
