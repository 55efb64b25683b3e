//! `--overwrite` removes what merganser wrote and nothing else. Every state of OUT and its work folder: `tests/merge/output/states.rs`.

use std::fs;
use std::process::Stdio;

use merganser::dtype::Dtype;

use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::{binary, child, partial, quick_folder};

#[test]
fn overwrite_deletes_nothing_that_merganser_did_not_write() {
    let family = Family::new(quick_folder(), &[("a.weight", Dtype::F32, &[4, 4])], 2, 5);
    let recipe = family.recipe("merge", &Text::plain("linear", 2).yaml());
    let out = family.path("out");
    fs::create_dir_all(out.join("photos")).unwrap();
    fs::write(out.join("photos/1.jpg"), "kept").unwrap();
    let told = ["nothing tells that merganser wrote", "photos", "`--overwrite` replaces outputs of merganser alone"];
    child::run(&recipe, &out, &["--overwrite"]).expect(1, &told);
    assert_eq!(fs::read_to_string(out.join("photos/1.jpg")).unwrap(), "kept");
    fs::rename(out.join("photos"), family.path("photos")).unwrap();
    child::run(&recipe, &out, &["--overwrite"]).expect(0, &[]);
    // Its own output it replaces, an edited file of it too, but not one that was added.
    fs::write(out.join("README.md"), "edited").unwrap();
    child::run(&recipe, &out, &["--overwrite"]).expect(0, &[]);
    fs::write(out.join("notes.txt"), "kept").unwrap();
    child::run(&recipe, &out, &["--overwrite"]).expect(1, &["out/notes.txt` was not written by merganser"]);
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "kept");
    assert!(!partial(&out).exists());
}

#[test]
fn a_recipe_or_a_link_to_one_that_lies_in_out_is_not_deleted() {
    let family = Family::new(quick_folder(), &[("a.weight", Dtype::F32, &[4, 4])], 2, 5);
    let text = Text::plain("linear", 2).yaml();
    let (out, outside) = (family.path("out"), family.recipe("merge", &text));
    child::run(&outside, &out, &[]).expect(0, &[]);
    let inside = out.join("merge.yaml");
    fs::write(&inside, text.replace(": base", ": ../base").replace(": model-", ": ../model-")).unwrap();
    child::run(&inside, &out, &["--overwrite"]).expect(1, &["a file or folder that this merge reads"]);
    assert!(inside.is_file());
    fs::remove_file(&inside).unwrap();
    std::os::unix::fs::symlink(&outside, &inside).unwrap();
    child::run(&inside, &out, &["--overwrite"]).expect(1, &[]);
    assert!(inside.is_symlink() && outside.is_file());
}

#[test]
fn extract_replaces_nothing_but_an_output_either() {
    let shape: &[u64] = &[12, 8];
    let family = Family::new(quick_folder(), &[("layers.0.mlp.up_proj.weight", Dtype::F32, shape)], 2, 5);
    let text = Text::plain("cart", 2).set("rank", "2").more("output: factors").yaml();
    let (factors, task) = (family.path("factors"), family.path("task"));
    child::run(&family.recipe("merge", &text), &factors, &[]).expect(0, &[]);
    let extract = |args: &[&str]| {
        let mut command = std::process::Command::new(binary());
        command.arg("extract").arg(&factors).args(["--task", "model-1", "-o"]).arg(&task).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child::end(command.spawn().unwrap())
    };
    fs::create_dir(&task).unwrap();
    fs::write(task.join("photo.jpg"), "kept").unwrap();
    extract(&["--overwrite"]).expect(1, &["nothing tells that merganser wrote", "photo.jpg"]);
    assert_eq!(fs::read_to_string(task.join("photo.jpg")).unwrap(), "kept");
    fs::remove_file(task.join("photo.jpg")).unwrap();
    extract(&[]).expect(0, &[]);
    extract(&["--overwrite"]).expect(0, &[]);
    fs::write(task.join("photo.jpg"), "kept").unwrap();
    extract(&["--overwrite"]).expect(1, &["photo.jpg` was not written by merganser"]);
}
