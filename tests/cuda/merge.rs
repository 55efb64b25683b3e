//! Merges on CUDA devices give the bytes of the CPU's, whatever fits into the device's memory; low-rank merges are within
//! their bound of them. Skipped, with the reason, where no device is there.

use merganser::dtype::Dtype::{self, *};
use merganser::engine;
use merganser::report::manifest::Manifest;

use crate::both::{Both, Way, devices};
use crate::support::family::Family;
use crate::support::recipes::{Text, methods};
use crate::support::tensor::Tensor;
use crate::support::{MIB, Run, assert_whole, quick_folder};

/// Every dtype, and the shapes where counting goes wrong.
const ODD: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.q_proj.weight", F32, &[33, 65]),
    ("model.layers.0.mlp.up_proj.weight", BF16, &[24, 40]),
    ("model.layers.0.mlp.down_proj.weight", F16, &[40, 24]),
    ("model.layers.0.norm.weight", F32, &[33]),
    ("model.layers.1.self_attn.q_proj.weight", F64, &[20, 12]),
    ("model.layers.1.mlp.row.weight", F32, &[1, 500]),
    ("model.layers.1.mlp.column.weight", BF16, &[500, 1]),
    ("model.layers.1.conv.weight", F32, &[8, 4, 3, 3]),
    ("model.layers.1.one", BF16, &[1]),
    ("model.layers.1.thirty_one", F16, &[31]),
    ("model.layers.1.bias", BF16, &[65_537]),
    ("model.layers.2.scalar", F32, &[]),
    ("model.layers.2.empty", BF16, &[0, 7]),
    ("model.layers.2.codes", F8_E4M3, &[65, 33]),
    ("model.layers.2.short_codes", F8_E5M2, &[129]),
    ("model.layers.2.wide", F64, &[3, 701]),
    ("model.steps", I64, &[3]),
    ("model.flags", BOOL, &[7]),
    ("model.nibbles", F4, &[6]),
];

/// What rounding to short floats allows of a low-rank merge, beside its bound of 10⁻⁴.
const ROUNDED: f64 = 5e-3;

#[test]
fn every_method_agrees_with_the_cpu_on_every_dtype_and_odd_size() {
    let Some(device) = devices("every method") else { return };
    let family = Family::new(quick_folder(), ODD, 3, 11);
    for method in methods() {
        let both = Both::of(&family, &device, Way::default(), method.name, &Text::of(method));
        both.agree(&family, ROUNDED);
        assert_whole(&both.cuda);
    }
}

#[test]
fn a_merge_that_has_nothing_for_a_device_is_made_without_its_memory() {
    let Some(device) = devices("nothing for a device") else { return };
    let family = Family::new(quick_folder(), &ODD[..2], 2, 13);
    let copies = Text { base: false, ..Text::plain("passthrough", 1) };
    // Matrices alone, in less memory than they take.
    let matrices = Text::plain("cart", 2).set("rank", "2");
    for (text, way) in [(copies, Way::default()), (matrices, Way::in_memory(4096))] {
        let both = Both::of(&family, &device, way, &text.method, &text);
        both.agree(&family, 0.0);
        assert_whole(&both.cuda);
        let recipe = family.recipe("planned", &text.yaml());
        let mut plan = way.run.plan(&recipe).unwrap();
        engine::plan_for_devices(&mut plan, &device, way.device_memory).unwrap();
        assert_eq!(plan.document().devices.unwrap().lanes, 0);
        assert!(plan.to_text().contains("makes none of these tensors"), "{}", plan.to_text());
    }
}

#[test]
fn every_output_dtype_is_rounded_as_on_the_cpu() {
    let Some(device) = devices("every output dtype") else { return };
    let family = Family::new(quick_folder(), &ODD[..12], 2, 5);
    for dtype in ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"] {
        let text = Text::plain("task_arithmetic", 2).more(&format!("out_dtype: {dtype}"));
        Both::of(&family, &device, Way::default(), dtype, &text).agree(&family, 0.0);
    }
}

#[test]
fn sums_that_overflow_are_merged_again_to_the_bytes_of_the_cpu() {
    let Some(device) = devices("overflow") else { return };
    let specs: &[(&str, Dtype, &[u64])] =
        &[("model.norm", BF16, &[66_001]), ("model.bias", F32, &[701]), ("model.codes", F16, &[300])];
    let mut family = Family::new(quick_folder(), specs, 3, 17);
    // Every 37th element near the end of its type, of either sign.
    for (i, member) in family.members.iter_mut().enumerate() {
        for tensor in member {
            let most = if tensor.dtype == F16 { 6e4 } else { 3.2e38 };
            let mut values = tensor.values();
            for (at, v) in values.iter_mut().enumerate().filter(|(at, _)| at % 37 == 5) {
                *v = if (i == 0) == (at % 2 == 0) { most } else { -most };
            }
            *tensor = Tensor::new(&tensor.name, tensor.dtype, &tensor.shape, &values);
        }
    }
    family.write();
    for method in methods().filter(|method| method.name != "model_stock" && method.name != "karcher") {
        let text = Text::of(method);
        Both::of(&family, &device, Way::default(), method.name, &text).agree(&family, 0.0);
    }
    let staged =
        Text::plain("ties", 3).set("density", "0.5").lwptv("score: magnitude, granularity: element, keep: 0.6");
    let both = Both::of(&family, &device, Way::in_memory(5 * MIB / 2), "staged", &staged);
    both.agree(&family, 0.0);
    let average = Text::plain("linear", 3);
    let both = Both::of(&family, &device, Way::default(), "average", &average);
    let found = Manifest::read(&both.cuda).unwrap().totals.nonfinite;
    assert_eq!((found.output, found.introduced), (0, 0));
}

#[test]
fn a_tensor_that_does_not_fit_is_streamed_to_the_same_bytes() {
    let Some(device) = devices("streamed") else { return };
    // Seven segments of three sources are 2.8 MB, of which 2.6 MB are to be had.
    let specs: &[(&str, Dtype, &[u64])] =
        &[("model.layers.0.mlp.long", BF16, &[458_753]), ("model.layers.0.norm", F32, &[77])];
    let family = Family::new(quick_folder(), specs, 2, 3);
    for text in [
        Text::plain("linear", 2),
        Text::plain("ties", 2).set("density", "0.3"),
        Text::plain("dare_ties", 2).set("density", "0.4"),
        Text::plain("slerp", 1).set("t", "0.3"),
        Text::plain("task_arithmetic", 2).lwptv("keep: 0.5, granularity: element, rescale: l2"),
        Text::plain("task_arithmetic", 2).lwptv("keep: 0.5, granularity: tensor, score: deviation"),
    ] {
        let name = format!("streamed-{}-{}", text.method, text.stages.len() + text.stages.concat().len());
        Both::of(&family, &device, Way::in_memory(5 * MIB / 2), &name, &text).agree(&family, 0.0);
    }
}

#[test]
fn threads_and_the_hosts_memory_change_nothing() {
    let Some(device) = devices("threads and memory") else { return };
    let family = Family::new(quick_folder(), ODD, 2, 23);
    let text = Text::plain("ties", 2).set("density", "0.3");
    let recipe = family.recipe("small", &text.yaml());
    let least = (16..200).find(|mib| {
        Way { run: Run { budget: mib * MIB, threads: 1, ..Run::default() }, ..Way::default() }
            .merge(&device, &recipe, &family.path("least"))
            .is_ok()
    });
    let budget = least.expect("some budget does") * MIB;
    let run = Run { budget, threads: 1, unmapped: true, ..Run::default() };
    Both::of(&family, &device, Way { run, ..Way::default() }, "least-budget", &text).agree(&family, 0.0);
}

#[test]
fn as_many_models_as_a_recipe_may_name() {
    let Some(device) = devices("many models") else { return };
    let specs: &[(&str, Dtype, &[u64])] =
        &[("model.layers.0.mlp.w", BF16, &[31, 33]), ("model.layers.0.norm", F32, &[33])];
    let family = Family::new(quick_folder(), specs, 64, 3);
    for models in [9, 64] {
        let text = Text::plain("ties", models).set("density", "0.3");
        let both = Both::of(&family, &device, Way::default(), &format!("models-{models}"), &text);
        both.agree(&family, 0.0);
        let facts = both.stated("model.layers.0.mlp.w").facts;
        assert!(facts["computed_on"].as_str().unwrap().starts_with("cuda:"), "{facts}");
    }
}

/// Tensors of a member, near those of the others, all of one dtype.
fn member(member: usize, dtype: Dtype) -> Vec<Tensor> {
    let shapes: &[(&str, &[u64])] = &[
        ("model.layers.0.mlp.w", &[31, 33]),
        ("model.layers.0.row", &[1, 65]),
        ("model.layers.0.column", &[65, 1]),
        ("model.layers.0.one", &[1]),
        ("model.layers.0.none", &[0]),
        ("model.layers.0.bias", &[2049]),
    ];
    let value =
        |i: u64| ((i * 7919 % 1000) as f64 / 500.0 - 1.0) + member as f64 * ((i * 31 % 97) as f64 / 970.0 - 0.05);
    let tensor = |(name, shape): &(&str, &[u64])| {
        let values: Vec<f64> = (0..shape.iter().product()).map(value).collect();
        Tensor::new(name, dtype, shape, &values)
    };
    shapes.iter().map(tensor).collect()
}

#[test]
fn models_whose_dtypes_differ_agree_with_the_cpu() {
    let Some(device) = devices("mixed dtypes") else { return };
    for (i, dtypes) in [[BF16, F32, F16], [F32, F8_E4M3, BF16], [F64, BF16, F8_E5M2]].into_iter().enumerate() {
        let family = Family::of(dtypes.into_iter().enumerate().map(|(m, dtype)| member(m, dtype)).collect());
        for text in [
            Text::plain("linear", 2),
            Text::plain("task_arithmetic", 2),
            Text::plain("ties", 2).set("density", "0.3"),
            Text::plain("dare_linear", 2).set("density", "0.4"),
            Text::plain("slerp", 1).set("t", "0.3"),
            Text::plain("task_arithmetic", 2).lwptv("keep: 0.5, granularity: row, score: agreement"),
            Text::plain("cart", 2).set("rank", "3"),
        ] {
            let name = format!("mixed-{i}-{}-{}", text.method, text.stages.len());
            Both::of(&family, &device, Way::default(), &name, &text).agree(&family, ROUNDED);
        }
    }
}

#[test]
fn nan_and_infinity_are_counted_as_on_the_cpu() {
    let Some(device) = devices("NaN") else { return };
    let values = |bad: &[(usize, f64)]| {
        let mut values: Vec<f64> = (0..300).map(|i| f64::from(i) / 7.0 - 20.0).collect();
        bad.iter().for_each(|(at, v)| values[*at] = *v);
        vec![Tensor::new("w", F16, &[300], &values)]
    };
    let members = vec![
        values(&[(7, f64::INFINITY)]),
        values(&[(3, f64::NAN), (9, 60_000.0)]),
        values(&[(9, 60_000.0), (299, f64::NEG_INFINITY)]),
    ];
    let family = Family::of(members);
    let recipe = family.recipe("nan", &Text::plain("task_arithmetic", 2).yaml());
    let (cpu, cuda) = (family.path("cpu"), family.path("cuda"));
    Run::default().merge(&recipe, &cpu).unwrap();
    Way::default().merge(&device, &recipe, &cuda).unwrap();
    let counts = [&cpu, &cuda].map(|out| crate::support::stated(out, "w").nonfinite);
    assert_eq!(counts[0], counts[1]);
    assert!(counts[0].introduced >= 1 && counts[0].output > counts[0].introduced);
    let [a, b] = [&cpu, &cuda].map(|out| crate::support::read(out)["w"].values());
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{i}: {a} {b}");
    }
}
