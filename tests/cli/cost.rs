//! `merganser plan --card`: what a merge is predicted to take on a card that is not there.
#![cfg(feature = "cuda")]

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use crate::place::Place;

/// Three layers of an 8 B parameter model.
const LAYER: &[(&str, [u64; 2])] = &[
    ("self_attn.q_proj", [4096, 4096]),
    ("self_attn.k_proj", [1024, 4096]),
    ("self_attn.v_proj", [1024, 4096]),
    ("self_attn.o_proj", [4096, 4096]),
    ("mlp.gate_proj", [14336, 4096]),
    ("mlp.up_proj", [14336, 4096]),
    ("mlp.down_proj", [4096, 14336]),
];
const ELEMENTS: u64 = 3 * 218_103_808;

/// A checkpoint of bfloat16 whose data is a hole: plans read headers alone.
fn sparse(path: &Path) {
    let (mut json, mut at) = (String::from("{"), 0);
    for layer in 0..3 {
        for (name, [m, n]) in LAYER {
            let (end, comma) = (at + 2 * m * n, if at == 0 { "" } else { "," });
            json += &format!(
                r#"{comma}"model.layers.{layer}.{name}.weight":{{"dtype":"BF16","shape":[{m},{n}],"data_offsets":[{at},{end}]}}"#
            );
            at = end;
        }
    }
    json.push('}');
    json += &" ".repeat(json.len().next_multiple_of(8) - json.len());
    let mut file = File::create(path).unwrap();
    file.write_all(&(json.len() as u64).to_le_bytes()).unwrap();
    file.write_all(json.as_bytes()).unwrap();
    file.set_len(8 + json.len() as u64 + at).unwrap();
}

/// A base and three fine-tunes, merged by CART and by a plain sum.
fn place() -> Place {
    let place = Place::new();
    for name in ["base", "a", "b", "c"] {
        sparse(&place.path(&format!("{name}.safetensors")));
    }
    let models = "models: [{model: a.safetensors}, {model: b.safetensors}, {model: c.safetensors}]";
    for (name, parameters) in [("cart", "\nparameters: {rank_ratio: 0.08}"), ("task_arithmetic", "")] {
        let text = format!("merge_method: {name}\nbase_model: base.safetensors\n{models}{parameters}\n");
        std::fs::write(place.path(&format!("{name}.yaml")), text).unwrap();
    }
    place
}

fn document(place: &Place, args: &[&str]) -> Value {
    let ended = place.run(&[&["plan", "--json"], args].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn seconds(prediction: &Value, path: &str) -> f64 {
    let paths = prediction["paths"].as_array().unwrap();
    paths.iter().find(|p| p["name"] == path).unwrap()["seconds"].as_f64().unwrap()
}

#[test]
fn a_card_that_is_not_there_is_planned_for_and_its_slowest_way_named() {
    let place = place();
    let plan = |recipe: &str, card: &str| document(&place, &[recipe, "--card", card, "--threads", "8"]);
    for (recipe, card, bottleneck) in [
        ("task_arithmetic.yaml", "h100-sxm", "write"),
        ("task_arithmetic.yaml", "t4", "host to device"),
        ("cart.yaml", "h100-sxm", "eigenvectors"),
        ("cart.yaml", "rtx-4090", "eigenvectors"),
    ] {
        let document = plan(recipe, card);
        let predicted = &document["prediction"];
        assert_eq!(predicted["card"], card);
        assert_eq!(predicted["bottleneck"], bottleneck, "{recipe} on {card}: {predicted}");
        let way = if predicted["compute_seconds"].as_f64().unwrap() + 0.5 >= predicted["seconds"].as_f64().unwrap() {
            predicted["compute_seconds"].as_f64().unwrap()
        } else {
            seconds(predicted, bottleneck)
        };
        assert!((predicted["seconds"].as_f64().unwrap() - 0.5 - way).abs() < 1e-9, "{predicted}");
        assert!(predicted["cold_seconds"].as_f64() >= predicted["seconds"].as_f64());
        assert_eq!(document["devices"]["devices"].as_array().unwrap().len(), 1);
    }
    // Sources cross the bus once, 55 GB/s each way at most: 4 × 2 bytes an element.
    let sum = &plan("task_arithmetic.yaml", "h100-sxm")["prediction"];
    let expected = 8.0 * ELEMENTS as f64 / (0.89 * 0.9 * 63e9);
    assert!((seconds(sum, "host to device") / expected - 1.0).abs() < 1e-6, "{sum}");
    assert_eq!((seconds(sum, "products"), seconds(sum, "eigenvectors")), (0.0, 0.0));
}

#[test]
fn products_and_eigenvectors_are_those_of_the_matrices_that_are_merged() {
    let place = place();
    let predicted = &document(&place, &["cart.yaml", "--card", "a100-80g"])["prediction"];
    // Of each of three tasks: A Aᵀ, B = Aᵀ Q and Q Bᵀ with k = ⌈0.08 r⌉ or what the recipe's rule makes of it, about.
    let of = |[m, n]: [u64; 2]| {
        let (r, long) = (m.min(n) as f64, m.max(n) as f64);
        let k = (0.08 * r).ceil();
        3.0 * (2.0 * r * r * long + 4.0 * r * long * k)
    };
    let operations: f64 = LAYER.iter().map(|(_, shape)| 3.0 * of(*shape)).sum();
    let ratio = seconds(predicted, "products") * 0.82 * 19.5e12 / operations;
    assert!((ratio - 1.0).abs() < 2e-3, "{ratio}");
    // Side 4096: five matrices of a layer, side 1024: two; three tasks, three layers.
    let cubes = 9.0 * (5.0 * 4096f64.powi(3) + 2.0 * 1024f64.powi(3));
    let least = 4.0 * cubes / (0.82 * 19.5e12) + 8.0 / 3.0 * cubes / (0.89 * 2.039e12);
    let eigen = seconds(predicted, "eigenvectors");
    assert!(eigen > least && eigen < least + 21.0 * 4096.0 * 50e-6 + 1e-3, "{eigen}, at least {least}");
}

#[test]
fn people_are_told_that_it_is_a_prediction() {
    let place = place();
    let ended = place.run(&["plan", "cart.yaml", "--card", "l40s"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for text in ["predicted ", " s on l40s", "not measured", "eigenvectors", "device    cuda:0 (NVIDIA L40S)"] {
        assert!(ended.stdout.contains(text), "{text}: {}", ended.stdout);
    }
}

#[test]
fn a_card_of_no_known_name_and_a_card_for_the_cpu_are_refused() {
    let place = place();
    let refused = |args: &[&str], texts: &[&str]| {
        let ended = place.run(&[&["plan", "cart.yaml"], args].concat());
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        for text in texts {
            assert!(ended.stderr.contains(text), "{text}: {}", ended.stderr);
        }
    };
    refused(&["--card", "h100-sx"], &["`h100-sx`", "perhaps `h100-sxm`", "rtx-3090"]);
    refused(&["--card", ""], &["there are h100-sxm"]);
    refused(&["--card", "t4", "--device", "cpu"], &["--device cpu", "leave one of them out"]);
    assert!(document(&place, &["cart.yaml", "--device", "cpu"])["prediction"].is_null());
}
