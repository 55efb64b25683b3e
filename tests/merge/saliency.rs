//! Reports of task vectors: that they say of a stage what a merge does, the same on any number of threads, and that what
//! strangers' files hold does no harm on the page.

use std::collections::BTreeMap;
use std::path::Path;

use merganser::dtype::Dtype;
use merganser::engine::Stop;
use merganser::recipe::Recipe;
use merganser::saliency::{Options, Report, Survey, Target, TensorReport};
use serde::Deserialize;

use crate::support::family::Family;
use crate::support::tensor::Tensor;
use crate::support::{MIB, Run, quick_folder, stated};

const MODELS: &str = "base_model: base
models:
  - model: model-1
  - model: model-2
  - model: model-3
";

fn options(keep: &[f64]) -> Options {
    Options { threads: 2, memory_budget: 256 * MIB, keep: keep.to_vec() }
}

fn survey(recipe: &Path, options: &Options) -> merganser::Result<Report> {
    Survey::new(Recipe::load(recipe)?, options)?.run(&|_| {}, &Stop::default())
}

fn tensors(report: &Report) -> impl Iterator<Item = &TensorReport> {
    report.layers.iter().flat_map(|layer| &layer.tensors)
}

/// Elements that each question's stage keeps, by question and model.
fn kept(tensor: &TensorReport) -> Vec<Vec<u64>> {
    let questions = tensor.group.tasks[0].pruned.len();
    (0..questions).map(|q| tensor.group.tasks.iter().map(|task| task.pruned[q].kept).collect()).collect()
}

/// The same, of every stage that changed the tensor, as a merge's manifest states it.
fn stated_kept(out: &Path, tensor: &str) -> Vec<Vec<u64>> {
    let facts = stated(out, tensor).facts;
    let stages = facts["stages"].as_array().cloned().unwrap_or_default();
    stages.iter().map(|stage| serde_json::from_value(stage["kept"].clone()).unwrap()).collect()
}

/// Merges, and compares what the manifest says of every tensor with the report. Gives the number of tensors compared.
fn assert_as_merged(recipe: &Path, report: &Report) -> usize {
    let scratch = quick_folder();
    let out = scratch.path().join("out");
    let plan = Run::default().plan(recipe).unwrap();
    crate::support::merge(recipe, &out).unwrap();
    let of_recipe: Vec<usize> = (0..report.choices.len()).filter(|i| report.choices[*i].of_recipe).collect();
    assert_eq!(of_recipe.len(), plan.recipe.stages.len());
    let mut compared = 0;
    for tensor in tensors(report) {
        let planned = plan.tensors.iter().find(|t| t.name == tensor.name).unwrap();
        let found = kept(tensor);
        let mut stated = stated_kept(&out, &tensor.name).into_iter();
        for i in &of_recipe {
            let expected = match planned.stage(report.choices[*i].stage) {
                Some(_) => stated.next().unwrap(),
                None => vec![planned.elems; report.tasks.len()],
            };
            assert_eq!(found[*i], expected, "{}: {}", recipe.display(), tensor.name);
        }
        assert_eq!(stated.next(), None, "a stage that the report does not know");
        compared += 1;
    }
    compared
}

#[derive(Deserialize)]
struct Golden {
    recipe: String,
}

#[test]
fn every_golden_recipe_prunes_what_its_report_says() {
    let folder = crate::support::root().join("tests/goldens");
    let list = std::fs::read_to_string(folder.join("goldens.json")).unwrap();
    let goldens: Vec<Golden> = serde_json::from_str(&list).unwrap();
    let mut staged = 0;
    for golden in goldens.iter().filter(|g| g.recipe.starts_with("lwptv")) {
        let recipe = folder.join(&golden.recipe);
        let report = survey(&recipe, &options(&[])).unwrap();
        assert!(assert_as_merged(&recipe, &report) >= 13);
        staged += 1;
    }
    assert!(staged >= 30, "{staged} recipes with a stage");
}

/// Large enough for several units of work, samples of cuts and batches of columns.
fn large() -> Family {
    let specs: [(&str, Dtype, &[u64]); 6] = [
        ("embed.weight", Dtype::BF16, &[801, 700]),
        ("layers.0.up.weight", Dtype::F32, &[125, 4500]),
        ("layers.0.norm.weight", Dtype::F64, &[700]),
        ("layers.1.conv.weight", Dtype::F16, &[9, 8, 3, 5]),
        ("layers.1.none.weight", Dtype::F32, &[0, 4]),
        ("layers.1.ids", Dtype::I64, &[5]),
    ];
    Family::new(quick_folder(), &specs, 3, 11)
}

fn staged(stages: &[&str]) -> String {
    let stages: Vec<String> = stages.iter().map(|s| format!("{{stage: lwptv, parameters: {{{s}}}}}")).collect();
    format!("{MODELS}merge_method: task_arithmetic\ntask_vector_stages: [{}]\n", stages.join(", "))
}

#[test]
fn large_tensors_are_pruned_as_their_report_says_also_at_other_shares() {
    let family = large();
    for (i, (stage, keep)) in [
        ("score: deviation, granularity: column", 0.6),
        ("score: tall, granularity: row, order: keep_redundant", 0.45),
        ("score: magnitude, granularity: element", 0.3),
        ("score: agreement, granularity: element, order: keep_redundant", 0.7),
        ("score: relative, granularity: layer", 0.5),
        ("score: deviation, granularity: tensor, order: keep_redundant", 0.4),
    ]
    .into_iter()
    .enumerate()
    {
        let of = |keep: f64| family.recipe(&format!("{i}-{keep}"), &staged(&[&format!("{stage}, keep: {keep}")]));
        let report = survey(&of(keep), &options(&[0.0, 0.2, keep, 0.9, 1.0])).unwrap();
        assert_eq!(assert_as_merged(&of(keep), &report), 5, "{stage}");
        let other = survey(&of(0.2), &options(&[])).unwrap();
        assert_as_merged(&of(0.2), &other);
        for (tensor, other) in tensors(&report).zip(tensors(&other)) {
            let kept = kept(tensor);
            assert!(kept[1].iter().all(|k| *k == 0), "keep 0");
            assert_eq!(kept[2], self::kept(other)[0], "{stage}: {}", tensor.name);
            assert_eq!(kept[3], kept[0], "the recipe's own share, asked for");
            assert!(kept[5].iter().all(|k| *k == tensor.group.elements), "keep 1");
            for pruned in tensor.group.tasks.iter().map(|task| &task.pruned) {
                let shares: Vec<_> = [1, 2, 4, 5].iter().filter_map(|q| pruned[*q].energy_share).collect();
                assert!(shares.windows(2).all(|w| w[0] >= w[1]), "{stage}: {shares:?}");
            }
        }
    }
}

#[test]
fn stages_behind_each_other_are_asked_about_what_the_one_before_leaves() {
    let family = large();
    let first = "score: magnitude, granularity: row, keep: 0.5, rescale: l2";
    for second in [
        "score: deviation, granularity: column, keep: 0.6",
        "score: relative, granularity: layer, keep: 0.5",
        "score: agreement, granularity: element, keep: 0.4",
    ] {
        let recipe = family.recipe("two", &staged(&[first, second]));
        let report = survey(&recipe, &options(&[0.3])).unwrap();
        assert_eq!(report.choices.len(), 3);
        assert_eq!(assert_as_merged(&recipe, &report), 5);
        let three = family.recipe("three", &staged(&[first, "granularity: layer, keep: 0.7, rescale: l1", second]));
        assert_as_merged(&three, &survey(&three, &options(&[])).unwrap());
    }
}

#[test]
fn a_report_does_not_depend_on_threads_or_budget() {
    let family = large();
    for granularity in ["column", "element", "tensor"] {
        let recipe = family.recipe("same", &staged(&[&format!("granularity: {granularity}, keep: 0.4")]));
        let json = |threads: usize, memory_budget: u64| {
            let options = Options { threads, memory_budget, keep: vec![0.1, 0.8] };
            serde_json::to_string(&survey(&recipe, &options).unwrap()).unwrap()
        };
        let one = json(1, 1 << 30);
        let least = least_budget(&recipe);
        for (threads, budget) in [(2, 1 << 30), (5, 1 << 30), (16, 64 * MIB), (3, least)] {
            assert_eq!(json(threads, budget), one, "{granularity}: {threads} threads, {budget} bytes");
        }
    }
}

/// The budget that a refusal says would do.
fn least_budget(recipe: &Path) -> u64 {
    let refused = survey(recipe, &Options { threads: 3, memory_budget: 1, keep: vec![0.1, 0.8] }).unwrap_err();
    assert_eq!(refused.exit_code(), 1);
    let hint = refused.hints()[0].clone();
    let mib = hint.split("--memory-budget ").nth(1).unwrap().split("MiB").next().unwrap();
    mib.parse::<u64>().unwrap() * MIB
}

#[test]
fn shares_add_up_and_matrices_are_symmetric() {
    let family = large();
    let recipe = family.recipe("plain", &format!("{MODELS}merge_method: ties\n"));
    let report = survey(&recipe, &options(&[0.5])).unwrap();
    assert_eq!((report.method, report.copied_tensors, report.tensors), ("ties", 1, 5));
    assert!(!report.choices[0].of_recipe, "the recipe has no stage of its own");
    for t in 0..3 {
        let shares = |of: &mut dyn Iterator<Item = Option<f64>>| of.flatten().sum::<f64>();
        let layers = shares(&mut report.layers.iter().map(|l| l.group.tasks[t].energy_share));
        let all = shares(&mut tensors(&report).map(|x| x.group.tasks[t].energy_share));
        assert!((layers - 1.0).abs() < 1e-12 && (all - 1.0).abs() < 1e-12, "{layers} {all}");
        for s in 0..3 {
            assert_eq!(report.total.cosine[s][t], report.total.cosine[t][s]);
            assert_eq!(report.total.sign_agreement[s][t], report.total.sign_agreement[t][s]);
        }
        let own = report.total.cosine[t][t].unwrap();
        assert!((own - 1.0).abs() < 1e-15, "{own}");
    }
}

#[test]
fn neither_the_method_nor_its_output_changes_a_report() {
    let family = large();
    let report = |method: &str, keep: &[f64]| {
        let recipe = family.recipe("method", &format!("{MODELS}{method}"));
        // Warnings are of the recipe, whose file they name.
        Report { method: "", warnings: Vec::new(), ..survey(&recipe, &options(keep)).unwrap() }
    };
    // What the stage does by itself in front of a method on matrices is something else.
    for (method, keep) in [
        ("merge_method: cart\noutput: factors\n", [].as_slice()),
        ("merge_method: ties\n", &[0.5]),
        ("merge_method: linear\nout_dtype: bfloat16\n", &[0.5]),
    ] {
        assert_eq!(report(method, keep), report("merge_method: task_arithmetic\n", keep), "{method}");
    }
}

#[test]
fn a_nan_is_counted_and_leaves_what_it_is_part_of_undefined() {
    let values = [1.0, 2.0, 3.0, 4.0];
    let tensor = |name: &str, values: &[f64]| Tensor::new(name, Dtype::F32, &[4], values);
    let member = |x: f64| vec![tensor("a.weight", &values.map(|v| v + x)), tensor("b.weight", &values.map(|v| v * x))];
    let mut members = vec![member(1.0), member(2.0), member(3.0), member(0.5)];
    members[2][0] = tensor("a.weight", &[f64::NAN, 1.0, f64::INFINITY, 1.0]);
    let family = Family::of(members);
    let report = survey(&family.recipe("nan", &staged(&["keep: 0.5, granularity: element"])), &options(&[])).unwrap();
    let of = |name: &str| &tensors(&report).find(|t| t.name == name).unwrap().group;
    let (a, b) = (of("a.weight"), of("b.weight"));
    assert_eq!(a.tasks.iter().map(|t| t.nonfinite).collect::<Vec<_>>(), [0, 2, 0]);
    assert_eq!((a.tasks[1].norm, a.cosine[0][1], a.tasks[0].cosine_with_others), (None, None, None));
    assert!(a.cosine[0][2].is_some() && a.tasks[0].norm.is_some());
    assert!(b.tasks.iter().all(|t| t.norm.is_some() && t.cosine_with_others.is_some()));
    assert_eq!(report.total.tasks[1].energy_share, None);
    let json = serde_json::to_string(&report).unwrap();
    assert!(!json.contains("NaN") && serde_json::from_str::<serde_json::Value>(&json).is_ok());
}

#[test]
fn one_task_has_nothing_to_be_compared_with() {
    let family = large();
    let text = "base_model: base\nmodels: [{model: model-1}]\nmerge_method: task_arithmetic\n";
    let recipe = family.recipe("one", text);
    let report = survey(&recipe, &options(&[])).unwrap();
    let task = &report.total.tasks[0];
    assert!(task.scores.magnitude.is_some() && task.scores.deviation.is_none() && task.cosine_with_others.is_none());
    // The stage's defaults rank a task's own tensors, and need no other task; a score that compares tasks does.
    let asked = survey(&recipe, &options(&[0.5])).unwrap();
    assert!(asked.total.tasks[0].pruned[0].kept < asked.total.elements);
    let compares = format!("{text}task_vector_stages: [{{stage: lwptv, parameters: {{score: deviation}}}}]\n");
    let error = survey(&family.recipe("compares", &compares), &options(&[])).unwrap_err();
    assert!(error.to_string().contains("compares task vectors"), "{error}");
}

#[test]
fn what_has_no_task_vectors_is_refused() {
    let family = large();
    let refused = |name: &str, text: &str, keep: &[f64]| {
        let error = survey(&family.recipe(name, text), &options(keep)).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        assert!(!error.hints().is_empty(), "{error} has no hint");
        error.to_string()
    };
    let models = MODELS.split_once('\n').unwrap().1;
    assert!(refused("a", &format!("{models}merge_method: linear\n"), &[]).contains("names no `base_model`"));
    let alone = "base_model: base\nmodels: [{model: base}]\nmerge_method: linear\n";
    assert!(refused("b", alone, &[]).contains("lists no model besides its base"));
    let copied = format!("{MODELS}merge_method: linear\ncopy: ['.*']\n");
    assert!(refused("c", &copied, &[]).contains("every tensor of its base is copied"));
    let all = staged(&["keep: 1"]);
    assert!(refused("d", &all, &[0.5]).contains("keeps everything"));
    let nan = survey(&family.recipe("e", &staged(&["keep: 0.5"])), &options(&[f64::NAN])).unwrap_err();
    assert!(nan.to_string().contains("[0, 1]"));
}

#[test]
fn a_page_holds_nothing_of_strangers_names_but_text_and_nothing_from_elsewhere() {
    let hostile = [
        "<script>alert(1)</script>.weight",
        "\"><img src=x onerror=alert(1)>.layers.0.w",
        "'onmouseover='x.weight",
        "a&lt;b&amp;c.weight",
        "\u{202e}txt.\u{200b}\u{2066}x.weight",
        "{{ 7 * 7 }}</style></title><svg/onload=x>.weight",
    ];
    let member = |x: f64| {
        let tensors = hostile
            .iter()
            .enumerate()
            .map(|(i, name)| Tensor::new(name, Dtype::F32, &[2, 3], &[1.0, x, 2.0, -x, x * i as f64, 0.5]));
        tensors.collect::<Vec<_>>()
    };
    let family = Family::of(vec![member(1.0), member(2.0), member(-3.0)]);
    let folder = "<b onclick=x>\"'&";
    std::fs::rename(family.path("model-1"), family.path(folder)).unwrap();
    let models = format!("base_model: base\nmodels:\n  - model: {folder:?}\n  - model: model-2\n");
    let recipe = family.recipe("<i>recipe", &format!("{models}merge_method: linear\n"));
    let report = survey(&recipe, &options(&[0.5])).unwrap();
    assert_eq!(report.tensors, hostile.len());
    let page = family.path("report.html");
    Target::new(&page, false, &[]).unwrap().write(&report).unwrap();
    let page = std::fs::read_to_string(page).unwrap();
    // Nothing opens but elements that the page is made of.
    let opened = regex::Regex::new("<([^ >/!]+)").unwrap();
    let mut elements: Vec<&str> = opened.captures_iter(&page).map(|c| c.get(1).unwrap().as_str()).collect();
    elements.sort_unstable();
    elements.dedup();
    let own = "a body caption details div figcaption figure h1 h2 h3 head header html i li meta nav p section span style \
               summary table tbody td th thead title tr ul";
    let strange: Vec<&&str> = elements.iter().filter(|e| !own.split(' ').any(|o| o == **e)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(elements.len() > 20, "the page's own elements are found: {elements:?}");
    // An attribute ends where the page ends it.
    let tags = regex::Regex::new(r#"<[a-z0-9]+((?: [a-z-]+(?:="[^"<>]*")?)*)>"#).unwrap();
    assert_eq!(tags.find_iter(&page).count(), opened.find_iter(&page).count());
    let attributes = regex::Regex::new(r#" ([a-z-]+)=""#).unwrap();
    let tag_attributes = tags.captures_iter(&page).map(|c| c.get(1).unwrap().as_str().to_owned());
    for tag in tag_attributes {
        for attribute in attributes.captures_iter(&tag) {
            let known = "class title scope id href lang charset name content http-equiv aria-hidden aria-label";
            assert!(known.split(' ').any(|k| k == &attribute[1]), "{tag}");
        }
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "shown as text");
    assert!(!page.contains(['\u{202e}', '\u{200b}', '\u{2066}']), "what hides text is shown as an escape");
    for elsewhere in ["http:", "https:", "url(", "@import", "src=", "javascript:"] {
        assert!(!page.replace("img src=x", "").contains(elsewhere), "{elsewhere}");
    }
    // The same names in JSON are the names themselves.
    let document = family.path("report.json");
    Target::new(&document, false, &[]).unwrap().write(&report).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(document).unwrap()).unwrap();
    let layers = document["layers"].as_array().unwrap();
    let names: BTreeMap<&str, ()> = layers
        .iter()
        .flat_map(|l| l["tensors"].as_array().unwrap())
        .map(|t| (t["name"].as_str().unwrap(), ()))
        .collect();
    assert!(hostile.iter().all(|name| names.contains_key(name)));
}

#[test]
fn a_report_appears_whole_and_replaces_nothing_unasked() {
    let family = large();
    let report = survey(&family.recipe("r", &staged(&["keep: 0.5"])), &options(&[])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let target = Target::new(&file, false, &[]).unwrap();
    // Somebody else was faster.
    std::fs::write(&file, "theirs").unwrap();
    let error = target.write(&report).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs");
    Target::new(&file, true, &[]).unwrap().write(&report).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["schema"], 2);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_signal_ends_a_survey() {
    let family = large();
    let survey =
        Survey::new(Recipe::load(&family.recipe("s", &staged(&["keep: 0.5"]))).unwrap(), &options(&[])).unwrap();
    let stop = Stop::default();
    let error = survey.run(&|_| stop.set(libc::SIGINT), &stop).unwrap_err();
    assert_eq!(error.exit_code(), 130);
}

#[test]
fn the_bytes_that_are_announced_are_those_that_are_read() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let family = large();
    for (granularity, keep) in [("column", 2), ("layer", 1), ("row", 0), ("tensor", 2)] {
        let recipe = family.recipe("b", &staged(&[&format!("granularity: {granularity}, keep: 0.5")]));
        let survey = Survey::new(Recipe::load(&recipe).unwrap(), &options(&[0.2, 0.8][..keep])).unwrap();
        let read = AtomicU64::new(0);
        let progress = |bytes| {
            read.fetch_add(bytes, Ordering::Relaxed);
        };
        survey.run(&progress, &Stop::default()).unwrap();
        let (read, announced) = (read.into_inner() as f64, survey.bytes_to_read() as f64);
        assert!((read / announced - 1.0).abs() < 0.01, "{granularity}: {read} of {announced}");
    }
}
