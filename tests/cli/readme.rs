//! The README says what the program does: its recipes are read, its tables compared with the registry.

use merganser::methods::REGISTRY;
use merganser::ops::{ParamDefault, Role};
use merganser::recipe::parse_bytes;

const README: &str = include_str!("../../README.md");

/// The contents of its fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    README.split("\n```").skip(1).step_by(2).filter_map(|b| b.strip_prefix(language)?.strip_prefix('\n')).collect()
}

/// The row of a table that begins with this cell.
fn row(cell: &str) -> &'static str {
    let start = format!("| {cell} |");
    let mut rows = README.lines().filter(|line| line.starts_with(&start));
    let row = rows.next().unwrap_or_else(|| panic!("the README has no row {start}"));
    assert!(rows.next().is_none(), "the README has two rows {start}");
    row
}

#[test]
fn the_first_two_blocks_are_the_two_commands() {
    assert_eq!(blocks("sh")[..2], ["scripts/demo", "scripts/test"]);
}

#[test]
fn every_recipe_is_valid() {
    let mut methods: Vec<&str> = Vec::new();
    for block in blocks("yaml") {
        for recipe in block.split("\n---\n") {
            methods.push(parse_bytes(recipe.as_bytes()).unwrap_or_else(|e| panic!("{e} in\n{recipe}")).method.name);
        }
    }
    assert!(methods.len() >= 9, "{methods:?}");
}

#[test]
fn the_table_of_methods_is_the_registry() {
    for spec in REGISTRY.iter().filter(|spec| spec.role == Role::Method) {
        let row = row(&format!("`{}`", spec.name));
        if row.contains("as `dare_linear`") {
            continue;
        }
        // `int8_mask` changes nothing.
        for parameter in spec.parameters.iter().filter(|p| p.name != "int8_mask") {
            let expected = match parameter.default {
                ParamDefault::Int(value) => format!("`{}` ({value})", parameter.name),
                ParamDefault::Float(value) => format!("`{}` ({value})", parameter.name),
                ParamDefault::Bool(value) => format!("`{}` ({value})", parameter.name),
                ParamDefault::Word(value) => format!("`{}` ({value})", parameter.name),
                ParamDefault::Required => format!("`{}` (required)", parameter.name),
                ParamDefault::Absent => format!("`{}`", parameter.name),
            };
            assert!(row.contains(&expected), "{}: {expected} is missing in\n{row}", spec.name);
        }
    }
}

#[test]
fn the_stage_is_described_with_its_words_and_defaults() {
    let spec = merganser::methods::find("lwptv").unwrap();
    let (_, paragraph) = README.split_once("The stage `lwptv`").unwrap();
    let paragraph = &paragraph[..paragraph.find("\n\n").unwrap()].replace('\n', " ");
    for parameter in spec.parameters {
        let default = match parameter.default {
            ParamDefault::Float(value) => value.to_string(),
            ParamDefault::Word(word) => format!("`{word}`"),
            other => panic!("{other:?}"),
        };
        let expected = format!("`{}` ({default}", parameter.name);
        assert!(paragraph.contains(&expected), "{expected} is missing in\n{paragraph}");
    }
}
