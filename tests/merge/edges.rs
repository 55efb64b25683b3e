//! Tensors so large that they have edges inside: of turns (8192 elements), segments and digest blocks (65 536), panels of a matrix.
//! Held to the methods' definitions in f64, and digests to what the files hold.

use std::path::Path;

use merganser::dtype::Dtype::{self, *};
use merganser::report::manifest::Manifest;
use twox_hash::XxHash3_128;

use crate::support::family::{Family, Merged, relative};
use crate::support::matrix::Matrix;
use crate::support::recipes::Text;
use crate::support::{Run, assert_whole, quick_folder, read};

/// Lengths around the edges, rows and columns across them.
const LONG: &[(&str, Dtype, &[u64])] = &[
    ("turn.under", F32, &[8191]),
    ("turn.exact", BF16, &[8192]),
    ("turn.over", F32, &[8193]),
    ("segment.under", F16, &[65_535]),
    ("segment.exact", F32, &[65_536]),
    ("segment.over", BF16, &[65_537]),
    ("segments", F32, &[3 * 65_536]),
    ("rows", F32, &[3, 70_001]),
    ("columns", BF16, &[70_001, 3]),
    ("wide", F64, &[131_075]),
    ("copied", I32, &[70_001]),
];

/// Two threads and buffers of one segment, or of as many as there are.
fn runs() -> [Run; 2] {
    let budget = 24 << 20;
    [Run { budget, ..Run::default() }, Run::default()]
}

fn merged(family: &Family, name: &str, text: &Text, run: Run) -> Merged {
    let out = family.path(&format!("out-{name}"));
    run.merge(&family.recipe(name, &text.yaml()), &out).unwrap_or_else(|e| panic!("{name}: {e} {:?}", e.hints()));
    Merged { tensors: read(&out), out }
}

/// What a method gives for one element, from θ₀ and the task vectors.
type Rule = fn(f64, &[f64]) -> f64;

fn sum(base: f64, taus: &[f64]) -> f64 {
    base + 0.7 * taus.iter().sum::<f64>()
}

fn magmax(base: f64, taus: &[f64]) -> f64 {
    base + 0.7 * taus.iter().fold(taus[0], |best, tau| if tau.abs() >= best.abs() { *tau } else { best })
}

/// The sign of the sum is elected; the mean of those that agree.
fn elected(base: f64, taus: &[f64]) -> f64 {
    let sign = if taus.iter().sum::<f64>() >= 0.0 { 1.0 } else { -1.0 };
    let agree: Vec<f64> = taus.iter().copied().filter(|tau| tau * sign > 0.0).collect();
    base + 0.7 * agree.iter().sum::<f64>() / agree.len().max(1) as f64
}

/// The largest of a vector's magnitudes, `share` of them and what equals the smallest.
fn trimmed(tau: &[f64], share: f64) -> Vec<f64> {
    let mut sizes: Vec<f64> = tau.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let cut = sizes[sizes.len() - 1.max((share * sizes.len() as f64) as usize)];
    tau.iter().map(|x| if x.abs() >= cut { *x } else { 0.0 }).collect()
}

#[test]
fn every_element_is_its_methods_definition_across_turns_segments_and_buffers() {
    let family = Family::new(quick_folder(), LONG, 3, 31);
    let cases: [(Text, f64, Rule); 3] = [
        (Text::plain("task_arithmetic", 3).set("lambda", "0.7"), 1.0, sum),
        (Text::plain("magmax", 3).set("lambda", "0.7"), 1.0, magmax),
        (Text::plain("ties", 3).set("lambda", "0.7").set("density", "0.3"), 0.3, elected),
    ];
    for (text, share, rule) in cases {
        let text = text.more("out_dtype: float64");
        let [small, large] = runs().map(|run| merged(&family, &format!("{}-{}", text.method, run.budget), &text, run));
        for tensor in family.members[0].iter().filter(|t| t.is_float()) {
            let base = tensor.values();
            let taus: Vec<Vec<f64>> = (1..=3)
                .map(|t| family.tensor(t, &tensor.name).values().iter().zip(&base).map(|(x, b)| x - b).collect())
                .map(|tau: Vec<f64>| if share < 1.0 { trimmed(&tau, share) } else { tau })
                .collect();
            let found = small.values(&tensor.name);
            // What float32 cannot tell from a tie or from 0 may go either way; how often that may be is known.
            let mut doubtful = 0;
            for (i, (found, base)) in found.iter().zip(&base).enumerate() {
                let here: Vec<f64> = taus.iter().map(|tau| tau[i]).collect();
                let expected = rule(*base, &here);
                let scale = base.abs() + here.iter().map(|x| x.abs()).sum::<f64>();
                let is_near = (found - expected).abs() <= 1e-6 * scale;
                doubtful += u64::from(!is_near);
                assert!(found.is_finite(), "{}: `{}`, element {i}", text.method, tensor.name);
            }
            let allowed = found.len() as u64 / 10_000;
            assert!(doubtful <= allowed, "{}: {doubtful} elements of `{}` are wrong", text.method, tensor.name);
            assert!(small.bytes(&tensor.name) == large.bytes(&tensor.name), "{}: `{}`", text.method, tensor.name);
        }
        assert!(small.bytes("copied") == family.tensor(0, "copied").bytes);
    }
}

/// Matrices of several panels each way, whose rows and columns cross digest blocks.
const MATRICES: &[(&str, Dtype, &[u64])] = &[
    ("layers.0.mlp.tall.weight", F32, &[1700, 40]),
    ("layers.0.mlp.wide.weight", BF16, &[40, 1700]),
    ("layers.1.mlp.tall.weight", F64, &[1100, 30]),
    ("layers.1.mlp.wide.weight", F16, &[30, 1100]),
];

#[test]
fn matrices_of_several_panels_are_sums_of_truncated_decompositions() {
    let family = Family::new(quick_folder(), MATRICES, 2, 37);
    let text = Text::plain("low_rank", 2).set("lambda", "0.6").set("rank", "4").more("out_dtype: float64");
    let out = merged(&family, "low_rank", &text, Run::default());
    for (name, ..) in MATRICES {
        let base = Matrix::of(family.tensor(0, name));
        let mut expected = base.clone();
        for t in 1..=2 {
            let (low, _) = Matrix::of(family.tensor(t, name)).zip(&base, |x, b| x - b).truncated(4);
            expected = expected.zip(&low, |x, l| x + 0.6 * l);
        }
        let apart = relative(&out.values(name), &expected.v, &base.v);
        assert!(apart <= 1e-5, "`{name}` is {apart:e} away");
    }
}

#[test]
fn as_many_models_as_a_matrix_has_rows_are_merged_by_singular_vectors() {
    let shapes: &[(&str, Dtype, &[u64])] =
        &[("layers.0.mlp.exact.weight", F32, &[3, 9]), ("layers.0.mlp.small.weight", F32, &[9, 2])];
    let family = Family::new(quick_folder(), shapes, 3, 41);
    let out = merged(&family, "tsv_m", &Text::plain("tsv_m", 3).set("lambda", "1.0"), Run::default());
    let mean = |name: &str| -> Vec<f64> {
        let of = |t| family.tensor(t, name).values();
        let [base, a, b, c] = [of(0), of(1), of(2), of(3)];
        (0..base.len()).map(|i| base[i] + (a[i] + b[i] + c[i] - 3.0 * base[i]) / 3.0).collect()
    };
    let apart = |name: &str| relative(&out.values(name), &mean(name), &family.tensor(0, name).values());
    assert!(apart("layers.0.mlp.small.weight") <= 1e-6, "two columns cannot hold a triple of each of three models");
    assert!(apart("layers.0.mlp.exact.weight") > 0.05, "a matrix with a triple a model was averaged");
}

/// A file's digest, by what the manifest's documentation says of it: of the header, then of each tensor in the file's order; a tensor's
/// of its blocks of 65 536 elements.
fn digest_of(file: &Path) -> String {
    let bytes = std::fs::read(file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..header]).unwrap();
    let mut tensors: Vec<(u64, u64, usize)> = entries
        .values()
        .map(|entry| {
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap();
            let dtype: Dtype = serde_json::from_value(entry["dtype"].clone()).unwrap();
            (at(0), at(1), dtype.bitsize() / 8)
        })
        .collect();
    tensors.sort_unstable();
    let together = |digests: Vec<u128>| {
        XxHash3_128::oneshot(&digests.iter().flat_map(|digest| digest.to_le_bytes()).collect::<Vec<u8>>())
    };
    let mut all = vec![XxHash3_128::oneshot(&bytes[..header])];
    for (begin, end, size) in tensors {
        let data = &bytes[header + begin as usize..header + end as usize];
        all.push(together(data.chunks(65_536 * size).map(XxHash3_128::oneshot).collect()));
    }
    format!("{:032x}", together(all))
}

#[test]
fn digests_of_sources_are_those_of_their_files_whatever_reads_them() {
    let specs = [LONG, MATRICES].concat();
    let family = Family::new(quick_folder(), &specs, 2, 43);
    let element = "granularity: element, keep: 0.5";
    for (i, text) in [
        Text::plain("task_arithmetic", 2),
        Text::plain("ties", 2).set("density", "0.3"),
        Text::plain("task_arithmetic", 2).lwptv("granularity: row, keep: 0.5"),
        Text::plain("low_rank", 2).set("rank", "4"),
        Text::plain("cart", 2).set("rank", "4").lwptv(element),
        Text::plain("tsv_m", 2),
        Text::plain("iso_c", 2),
        Text::plain("cart", 2).set("rank", "2").more("output: factors"),
    ]
    .iter()
    .enumerate()
    {
        for run in runs() {
            let out = family.path(&format!("digests-{i}-{}", run.budget));
            let unmapped = Run { unmapped: i % 2 == 1, ..run };
            unmapped.merge(&family.recipe(&format!("digests-{i}"), &text.yaml()), &out).unwrap();
            assert_whole(&out);
            let manifest = Manifest::read(&out).unwrap();
            assert_eq!(manifest.sources.len(), 3);
            for source in &manifest.sources {
                let folder = family.path(&source.path);
                for file in &source.files {
                    // What is copied is the base's alone: a model's file is then read in part, and its digest is of that part.
                    if file.tensors_read == file.tensors {
                        let expected = digest_of(&folder.join(&file.name));
                        assert_eq!(file.digest, expected, "{}: `{}` of {}", text.method, file.name, source.path);
                    }
                }
            }
            let whole = manifest.sources.iter().flat_map(|s| &s.files).filter(|f| f.tensors_read == f.tensors);
            let read: Vec<_> =
                manifest.sources.iter().flat_map(|s| &s.files).map(|f| (f.tensors_read, f.tensors)).collect();
            assert!(whole.count() >= 1, "{} {i}: {read:?}", text.method);
        }
    }
}
