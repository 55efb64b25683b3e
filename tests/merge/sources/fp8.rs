//! fp8 with scales: dequantised as it is read, copied byte for byte where everything is, refused where it does not fit.

use merganser::dtype::Dtype;
use serde_json::{Value, json};

use crate::support::family::Family;
use crate::support::tensor::{Tensor, write_folder};
use crate::support::{Run, assert_whole, family::Rng};

const UP: &str = "model.layers.0.mlp.up_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const NORM: &str = "model.norm.weight";

fn random(rng: &mut Rng, name: &str, dtype: Dtype, shape: &[u64]) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::new(name, dtype, shape, &values)
}

/// A base in bfloat16 and a model in fp8: `up` of [5, 7] in blocks of [2, 4], `down` of [3, 5] with a scale a row.
fn family() -> Family {
    let mut rng = Rng(11);
    let base = vec![
        random(&mut rng, UP, Dtype::BF16, &[5, 7]),
        random(&mut rng, DOWN, Dtype::BF16, &[3, 5]),
        random(&mut rng, NORM, Dtype::BF16, &[4]),
    ];
    let mut model = vec![
        random(&mut rng, UP, Dtype::F8_E4M3, &[5, 7]),
        random(&mut rng, DOWN, Dtype::F8_E4M3, &[3, 5]),
        random(&mut rng, NORM, Dtype::BF16, &[4]),
        random(&mut rng, &format!("{UP}_scale_inv"), Dtype::F32, &[3, 2]),
        random(&mut rng, &format!("{DOWN}_scale"), Dtype::BF16, &[3, 1]),
    ];
    model.push(Tensor::new(&UP.replace("weight", "input_scale"), Dtype::F32, &[1], &[0.5]));
    let family = Family::of(vec![base, model]);
    configure(&family, "model-1", fp8_config());
    family
}

fn fp8_config() -> Value {
    json!({"torch_dtype": "bfloat16", "hidden_size": 7,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 4]}})
}

fn configure(family: &Family, member: &str, config: Value) {
    std::fs::write(family.path(member).join("config.json"), config.to_string()).unwrap();
}

/// What the model's weights are.
fn dequantised(family: &Family, name: &str) -> Vec<f64> {
    let codes = family.tensor(1, name).values();
    let scale = |end: &str| family.tensor(1, &format!("{name}{end}")).values();
    let of = |at: usize| match name {
        UP => scale("_scale_inv")[(at / 7 / 2) * 2 + at % 7 / 4],
        _ => scale("_scale")[at / 5],
    };
    codes.iter().enumerate().map(|(at, code)| f64::from((*code as f32) * (of(at) as f32))).collect()
}

#[test]
fn codes_times_scales_are_merged_and_scales_are_gone() {
    let family = family();
    let merged = family.merged(
        "linear",
        "merge_method: linear\nmodels: [{model: model-1}, {model: base}]\nparameters: {weight: 1}\nout_dtype: float32\n",
    );
    assert_eq!(merged.tensors.keys().collect::<Vec<_>>(), [DOWN, UP, NORM]);
    for name in [UP, DOWN] {
        let base = family.tensor(0, name).values();
        let mean: Vec<f64> = dequantised(&family, name).iter().zip(&base).map(|(a, b)| (a + b) / 2.0).collect();
        let found = merged.values(name);
        assert!(found.iter().zip(&mean).all(|(a, b)| (a - b).abs() <= 1e-6 * (1.0 + b.abs())), "{found:?} {mean:?}");
    }
    let config: Value = serde_json::from_slice(&std::fs::read(merged.out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config, json!({"torch_dtype": "float32", "hidden_size": 7}));
    assert_whole(&merged.out);
}

#[test]
fn without_a_type_in_the_recipe_weights_are_stored_in_that_of_the_configuration() {
    let family = family();
    for (config, dtype) in
        [(json!("bfloat16"), Dtype::BF16), (json!("float16"), Dtype::F16), (Value::Null, Dtype::BF16)]
    {
        let mut whole = fp8_config();
        whole["torch_dtype"] = config;
        configure(&family, "model-1", whole);
        let name = format!("{dtype}-{}", family.folder.path().read_dir().unwrap().count());
        let merged =
            family.merged(&name, "merge_method: passthrough\nmodels: [{model: model-1, parameters: {scale: 1}}]\n");
        let expected = Tensor::new(UP, dtype, &[5, 7], &dequantised(&family, UP));
        assert_eq!(merged.tensors[UP], expected);
        assert_eq!(merged.tensors[NORM].bytes, family.tensor(1, NORM).bytes);
    }
    // As one of several: the base's type.
    let merged =
        family.merged("arithmetic", "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: model-1}]\n");
    assert_eq!(merged.tensors[DOWN], Tensor::new(DOWN, Dtype::BF16, &[3, 5], &dequantised(&family, DOWN)));
}

#[test]
fn chunks_and_reads_without_a_map_change_nothing() {
    let family = family();
    let text = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: model-1}]\nout_dtype: float32\n";
    let merged = family.merged("mapped", text);
    // A tensor of more than one segment, whose pieces begin within rows and blocks.
    let mut rng = Rng(5);
    let shape = [300, 701];
    let base = vec![random(&mut rng, UP, Dtype::F32, &shape)];
    let model = vec![
        random(&mut rng, UP, Dtype::F8_E5M2, &shape),
        random(&mut rng, &format!("{UP}_scale_inv"), Dtype::F32, &[3, 6]),
    ];
    let large = Family::of(vec![base, model]);
    let merged_large = large.merged("large", text);
    let (codes, scales) = (large.tensor(1, UP).values(), large.tensor(1, &format!("{UP}_scale_inv")).values());
    let base = large.tensor(0, UP).values();
    for (at, found) in merged_large.values(UP).into_iter().enumerate() {
        let weight = codes[at] as f32 * scales[(at / 701 / 128) * 6 + at % 701 / 128] as f32;
        let expected = base[at] as f32 + (weight - base[at] as f32);
        assert_eq!(found as f32, expected, "{at}");
    }
    assert_eq!(merged.tensors.len(), 3);
}

#[test]
fn copies_of_one_model_keep_its_codes_and_scales() {
    let family = family();
    let merged = family.merged("copy", "merge_method: passthrough\nmodels: [{model: model-1}]\n");
    assert_eq!(merged.tensors.len(), 6);
    for tensor in &family.members[1] {
        assert_eq!(merged.tensors[&tensor.name], *tensor);
    }
    let config: Value = serde_json::from_slice(&std::fs::read(merged.out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config, fp8_config());
    // Layers of models that are stored differently do not mix as codes.
    let slice = |model: &str| format!("- sources: [{{model: {model}, layer_range: [0, 1]}}]\n");
    let text = format!("merge_method: passthrough\nslices:\n{}{}", slice("model-1"), slice("base"));
    let stack = family.merged("stack", &text);
    assert_eq!(stack.tensors[UP], Tensor::new(UP, Dtype::BF16, &[5, 7], &dequantised(&family, UP)));
    assert_eq!(stack.bytes(&UP.replace("layers.0", "layers.1")), family.tensor(0, UP).bytes);
    assert_eq!(stack.tensors.len(), 5);
}

/// The error of a merge of the family after a change of the model's tensors.
fn error(change: impl Fn(&mut Vec<Tensor>)) -> String {
    let family = family();
    let mut tensors = family.members[1].clone();
    change(&mut tensors);
    write_folder(&family.path("model-1"), &tensors, 1);
    let recipe = family.recipe("wrong", "merge_method: linear\nmodels: [{model: base}, {model: model-1}]\n");
    let error = Run::default().merge(&recipe, &family.path("out")).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    error.to_string()
}

#[test]
fn scales_that_are_missing_ill_shaped_or_no_numbers_are_refused_by_name() {
    let scale = format!("{UP}_scale_inv");
    let missing = error(|tensors| tensors.retain(|t| t.name != scale));
    assert!(missing.contains(&format!("`{UP}` of `model-1` is stored as F8_E4M3 and has no scale")), "{missing}");
    let none = error(|tensors| tensors.retain(|t| !t.name.contains("_scale") || t.name.contains("input")));
    assert!(none.contains("has no scale") && none.contains("`quant_method: fp8`"), "{none}");
    let shape = error(|tensors| {
        let at = tensors.iter().position(|t| t.name == scale).unwrap();
        tensors[at] = Tensor::new(&scale, Dtype::F32, &[2, 3], &[1.0; 6]);
    });
    assert!(shape.contains(&format!("the scale `{scale}` of `model-1` has the shape [2, 3]")), "{shape}");
    for value in [f64::NAN, f64::INFINITY] {
        let nan = error(|tensors| {
            let at = tensors.iter().position(|t| t.name == scale).unwrap();
            tensors[at] = Tensor::new(&scale, Dtype::F32, &[3, 2], &[1.0, 1.0, 1.0, 1.0, 1.0, value]);
        });
        assert!(nan.contains(&scale) && nan.contains("which makes no weight"), "{nan}");
    }
    // Codes of another kind, among them.
    let other =
        error(|tensors| tensors.push(Tensor::new("model.layers.0.o.weight_packed", Dtype::U8, &[4], &[1.0; 4])));
    assert!(other.contains("belongs to codes"), "{other}");
}

#[test]
fn other_quantisers_are_refused_by_their_names() {
    for method in ["gptq", "awq", "bitsandbytes", "mxfp4"] {
        let family = family();
        configure(&family, "model-1", json!({"quantization_config": {"quant_method": method}}));
        let recipe = family.recipe("wrong", "merge_method: linear\nmodels: [{model: base}, {model: model-1}]\n");
        let error = Run::default().plan(&recipe).unwrap_err().to_string();
        assert!(error.contains("`model-1` is quantised") && error.contains(method), "{error}");
    }
}
