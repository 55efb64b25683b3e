//! Merges by truncated singular vectors on CUDA devices, with their factors, against an SVD and against the CPU. Skipped where
//! no device is there.

use merganser::dtype::Dtype::{self, *};

use crate::both::{Both, Way, devices};
use crate::support::family::{Family, Rng, relative};
use crate::support::matrix::Matrix;
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;
use crate::support::{MIB, quick_folder};

const SHAPES: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.square.weight", F32, &[40, 40]),
    ("model.layers.0.self_attn.wide.weight", F32, &[13, 130]),
    ("model.layers.0.self_attn.tall.weight", F32, &[130, 13]),
    ("model.layers.0.self_attn.double.weight", F64, &[31, 33]),
    ("model.layers.0.self_attn.row.weight", F32, &[1, 50]),
    ("model.layers.0.self_attn.column.weight", F32, &[50, 1]),
    ("model.layers.0.self_attn.one.weight", F32, &[1, 1]),
    ("model.layers.0.self_attn.no_rows.weight", F32, &[0, 9]),
    ("model.layers.0.self_attn.no_columns.weight", F32, &[9, 0]),
    ("model.layers.0.norm.weight", F32, &[40]),
];

#[test]
fn every_way_to_choose_a_rank_is_as_exact_as_promised() {
    let Some(device) = devices("ranks") else { return };
    let family = Family::new(quick_folder(), SHAPES, 3, 17);
    for (name, method, key, value) in [
        ("ratio", "cart", "rank_ratio", "0.2"),
        ("count", "cart", "rank", "4"),
        ("whole", "cart", "rank", "500"),
        ("energy", "cart", "energy", "0.7"),
        ("uncentred", "low_rank", "rank_ratio", "0.2"),
    ] {
        let text = Text::plain(method, 3).set(key, value).set("lambda", "1.3");
        Both::of(&family, &device, Way::default(), name, &text).agree(&family, 1e-4);
    }
}

/// Base and models whose task vectors have these singular values, or none: all of one model's, and those of the sum.
fn spectra(name: &str, (m, n): (usize, usize), models: usize, values: impl Fn(usize) -> f64) -> Vec<Vec<Tensor>> {
    let mut rng = Rng(7);
    let r = m.min(n);
    let base: Vec<f64> = (0..m * n).map(|_| rng.normal()).collect();
    // Columns of one orthogonal matrix each, by Gram and Schmidt.
    let mut basis = |rows: usize| {
        let mut columns: Vec<Vec<f64>> = Vec::new();
        while columns.len() < r {
            let mut x: Vec<f64> = (0..rows).map(|_| rng.normal()).collect();
            for _ in 0..2 {
                for c in &columns {
                    let along: f64 = c.iter().zip(&x).map(|(a, b)| a * b).sum();
                    x.iter_mut().zip(c).for_each(|(x, c)| *x -= along * c);
                }
            }
            let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            columns.push(x.iter().map(|x| x / norm).collect());
        }
        columns
    };
    let (left, right) = (basis(m), basis(n));
    let all = (0..=models).map(|t| {
        let mut x = base.clone();
        if t > 0 {
            for (j, (u, v)) in left.iter().zip(&right).enumerate() {
                let sigma = values(j) * (1.0 + 0.1 * t as f64 * (j % 3) as f64);
                for (i, x) in x.iter_mut().enumerate() {
                    *x += sigma * u[i / n] * v[i % n];
                }
            }
        }
        vec![Tensor::new(name, F64, &[m as u64, n as u64], &x)]
    });
    all.collect()
}

const ORTHOGONAL: [&str; 3] = ["tsv_m", "iso_c", "iso_cts"];

#[test]
fn orthogonal_merges_on_a_device_are_the_cpus() {
    let Some(device) = devices("orthogonal merges") else { return };
    let family = Family::new(quick_folder(), SHAPES, 3, 23);
    for (method, weights) in ORTHOGONAL.into_iter().flat_map(|method| [(method, &[][..]), (method, &[2.5, 0.25, 1.0])])
    {
        let text = Text::plain(method, 3).set("lambda", "0.7").more("out_dtype: float64").weights(weights);
        let text = if method == "iso_cts" { text.set("common_space_fraction", "0.6") } else { text };
        let both = Both::of(&family, &device, Way::default(), &format!("{method}-{}", weights.len()), &text);
        both.agree(&family, 1e-6);
        for (name, _, shape) in SHAPES.iter().filter(|(_, _, shape)| shape.len() == 2) {
            let facts = both.stated(name).facts;
            let is_empty = shape.contains(&0);
            assert_eq!(
                facts["computed_on"].as_str().is_some_and(|on| on.starts_with("cuda:")),
                !is_empty,
                "{name}: {facts}"
            );
        }
    }
}

#[test]
fn spectra_of_which_a_gram_matrix_holds_too_little_are_decomposed_whole() {
    let Some(device) = devices("steep and null spectra") else { return };
    let name = "model.layers.0.mlp.up_proj.weight";
    let steep: fn(usize) -> f64 = |j| 10f64.powf(-0.6 * j as f64);
    let null: fn(usize) -> f64 = |j| if j < 3 { 1.0 + j as f64 } else { 0.0 };
    let nothing: fn(usize) -> f64 = |_| 0.0;
    for (what, values) in [("steep", steep), ("null", null), ("nothing", nothing)] {
        for shape in [(9, 14), (14, 9)] {
            let family = Family::of(spectra(name, shape, 2, values));
            for method in ORTHOGONAL {
                let text = Text::plain(method, 2).set("lambda", "0.7");
                let at = format!("{what}-{}-{method}", shape.0);
                let both = Both::of(&family, &device, Way::default(), &at, &text);
                both.agree(&family, 1e-4);
            }
        }
    }
}

#[test]
fn cart_on_a_device_is_near_the_sum_of_truncated_svds() {
    let Some(device) = devices("an SVD of its own") else { return };
    let family = Family::new(quick_folder(), &SHAPES[..3], 3, 29);
    let (rank, lambda) = (3, 1.5);
    let text = Text::plain("cart", 3).set("rank", "3").set("lambda", "1.5");
    let recipe = family.recipe("svd", &text.yaml());
    let out = family.path("svd");
    Way::default().merge(&device, &recipe, &out).unwrap();
    let merged = crate::support::read(&out);
    for (name, ..) in &SHAPES[..3] {
        let models: Vec<Matrix> = (1..=3).map(|i| Matrix::of(family.tensor(i, name))).collect();
        let sum = models[0].zip(&models[1], |a, b| a + b).zip(&models[2], |a, b| a + b);
        let mean = sum.zip(&sum, |a, _| a / 3.0);
        let mut exact = mean.clone();
        for model in &models {
            let (low, _) = model.zip(&mean, |a, b| a - b).truncated(rank);
            exact = exact.zip(&low, |a, b| a + lambda * b);
        }
        let apart = relative(&merged[*name].values(), &exact.v, &mean.v);
        assert!(apart < 1e-5, "{name}: {apart}");
        let facts = crate::support::stated(&out, name).facts;
        assert_eq!(facts["precision"], serde_json::json!(["float64", "float64", "float64"]));
        assert!(facts["computed_on"].as_str().unwrap().starts_with("cuda:"), "{facts}");
    }
}

#[test]
fn factors_from_a_device_multiply_to_the_cpus() {
    let Some(device) = devices("factors") else { return };
    let family = Family::new(quick_folder(), &SHAPES[..4], 2, 31);
    let text = Text::plain("cart", 2).set("rank", "3").more("output: factors");
    let both = Both::of(&family, &device, Way::default(), "factors", &text);
    let [cpu, cuda] = [&both.cpu, &both.cuda].map(|out| crate::support::read(out));
    let lefts: Vec<&String> = cpu.keys().filter(|name| name.contains("left")).collect();
    assert_eq!(cpu.keys().collect::<Vec<_>>(), cuda.keys().collect::<Vec<_>>());
    assert_eq!(lefts.len(), 4 * 2, "{:?}", cpu.keys());
    for left in lefts {
        let right = left.replace("left", "right");
        let [a, b] = [&cpu, &cuda].map(|all| Matrix::of(&all[left]).times(&Matrix::of(&all[&right])));
        assert!(a.zip(&b, |a, b| a - b).norm() <= 1e-4 * a.norm(), "{left}");
    }
}

#[test]
fn a_matrix_that_does_not_fit_is_the_cpus_and_says_so() {
    let Some(device) = devices("too large a matrix") else { return };
    let specs: &[(&str, Dtype, &[u64])] =
        &[("model.layers.0.self_attn.large.weight", F32, &[300, 250]), ("model.layers.0.norm.weight", F32, &[33])];
    let family = Family::new(quick_folder(), specs, 2, 37);
    for text in [Text::plain("cart", 2).set("rank", "3"), Text::plain("iso_c", 2)] {
        let both = Both::of(&family, &device, Way::in_memory(2 * MIB), &format!("large-{}", text.method), &text);
        both.agree(&family, 0.0);
        let facts = both.stated("model.layers.0.self_attn.large.weight").facts;
        assert_eq!(facts["computed_on"], "cpu");
        assert!(facts["why_there"].as_str().unwrap().contains("do not fit"), "{facts}");
    }
}

#[test]
fn a_nan_in_a_matrix_is_told_as_on_the_cpu() {
    let Some(device) = devices("NaN in a matrix") else { return };
    let mut family = Family::new(quick_folder(), &SHAPES[..2], 2, 41);
    let tensor = &mut family.members[2][1];
    tensor.bytes[4 * 70..4 * 71].copy_from_slice(&f32::NAN.to_le_bytes());
    family.write();
    let recipe = family.recipe("nan", &Text::plain("cart", 2).yaml());
    let errors = [
        crate::support::Run::default().merge(&recipe, &family.path("cpu")).unwrap_err(),
        Way::default().merge(&device, &recipe, &family.path("cuda")).unwrap_err(),
    ];
    assert_eq!(errors[0].to_string(), errors[1].to_string());
    assert_eq!(errors[1].exit_code(), 1);
}
