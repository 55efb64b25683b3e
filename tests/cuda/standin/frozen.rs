//! Matrices that models left as they were: nothing is decomposed for them.

use merganser::dtype::Dtype::F32;

use crate::both::{Both, stand_in};
use crate::support::family::{Family, Rng};
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;
use crate::support::{Run, child, read};

const SHAPES: [(&str, &[u64]); 4] = [
    ("model.layers.0.self_attn.q_proj.weight", &[13, 40]),
    ("model.layers.1.self_attn.q_proj.weight", &[13, 40]),
    ("model.layers.0.mlp.up_proj.weight", &[40, 13]),
    ("model.layers.2.self_attn.q_proj.weight", &[13, 40]),
];

/// A base and three models, of which model `m` differs from it in the tensors that `changes` names.
fn family(changes: &[(usize, usize)]) -> Family {
    let mut rng = Rng(211);
    let mut values =
        || SHAPES.map(|(_, shape)| (0..shape.iter().product()).map(|_| rng.normal()).collect::<Vec<f64>>());
    let (base, change) = (values(), values());
    let member = |m: usize| {
        let tensor = |(t, (name, shape)): (usize, &(&str, &[u64]))| {
            let by = if changes.contains(&(m, t)) { 0.1 } else { 0.0 };
            let all: Vec<f64> = base[t].iter().zip(&change[t]).map(|(b, c)| b + by * c).collect();
            Tensor::new(name, F32, shape, &all)
        };
        SHAPES.iter().enumerate().map(tensor).collect()
    };
    Family::of((0..4).map(member).collect())
}

#[test]
fn what_models_left_as_it_was_is_not_decomposed() {
    let Some(_) = stand_in("frozen matrices") else { return };
    let nobody = family(&[]);
    // Model 2 changed layer 1, model 3 changed the odd one: what is between them in a batch was not.
    let some = family(&[(2, 1), (3, 2)]);
    for (family, method, key, calls) in [
        (&nobody, "low_rank", Some("rank"), 0),
        (&nobody, "cart", Some("rank"), 0),
        (&nobody, "tsv_m", None, 0),
        (&nobody, "iso_c", None, 0),
        (&nobody, "iso_cts", None, 0),
        (&some, "low_rank", Some("rank"), 2),
    ] {
        let mut text = Text::plain(method, 3);
        if let Some(key) = key {
            text = text.set(key, "2");
        }
        let recipe = family.recipe(method, &text.yaml());
        let [cpu, cuda, report] = ["cpu", "cuda", "json"].map(|kind| family.path(&format!("{method}.{kind}")));
        Run::default().merge(&recipe, &cpu).unwrap();
        let mut command = child::command(&recipe, &cuda, &["--device", "cuda"], None);
        command.env("MERGANSER_STANDIN_REPORT", &report);
        child::end(command.spawn().unwrap()).expect(0, &["at work"]);
        let counts: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        assert_eq!(counts["converge"], calls, "{method}: {counts}");
        let both = Both { cpu, cuda, name: method.into() };
        both.agree(family, 1e-4);
        if calls == 0 {
            // λ times nothing: the base, to its last bit.
            for (name, _) in SHAPES {
                let bytes = [&both.cpu, &both.cuda].map(|out| read(out)[name].bytes.clone());
                assert_eq!(bytes, [&family.tensor(0, name).bytes; 2].map(Clone::clone), "{method}: {name}");
            }
        }
    }
}

#[test]
fn orthogonal_merges_of_matrices_of_96_by_96_agree_with_the_cpu() {
    let Some(_) = stand_in("matrices of 96×96") else { return };
    let mut rng = Rng(223);
    let mut member = |base: Option<&[f64]>| {
        let values: Vec<f64> = (0..96 * 96).map(|i| base.map_or(0.0, |base| base[i]) + 0.05 * rng.normal()).collect();
        vec![Tensor::new("model.layers.0.self_attn.q_proj.weight", F32, &[96, 96], &values)]
    };
    let base = member(None);
    let values = base[0].values();
    let members = [base].into_iter().chain((0..3).map(|_| member(Some(&values)))).collect();
    let family = Family::of(members);
    for method in ["tsv_m", "iso_c", "iso_cts"] {
        let recipe = family.recipe(method, &Text::plain(method, 3).yaml());
        let [cpu, cuda] = ["cpu", "cuda"].map(|kind| family.path(&format!("{method}.{kind}")));
        Run::default().merge(&recipe, &cpu).unwrap();
        child::end(child::command(&recipe, &cuda, &["--device", "cuda"], None).spawn().unwrap()).expect(0, &[]);
        Both { cpu, cuda, name: method.into() }.agree(&family, 1e-4);
    }
}
