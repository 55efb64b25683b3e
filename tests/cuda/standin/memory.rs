//! Memory of a device that runs out in the midst of a merge, and memory that is read before it was written.

use merganser::backend::cuda::gpu::Gpu;
use merganser::backend::cuda::lane::{LaneSizes, POISON};
use merganser::dtype::Dtype::{self, *};

use crate::both::stand_in;
use crate::support::child::{self, Ended};
use crate::support::family::{Family, relative};
use crate::support::recipes::Text;
use crate::support::{Run, digests, partial, quick_folder, read, stated};

const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.q_proj.weight", F32, &[20, 12]),
    ("model.layers.0.mlp.up_proj.weight", F32, &[24, 40]),
    ("model.layers.0.norm.weight", BF16, &[33]),
    ("model.layers.1.mlp.long", F16, &[200_001]),
];

/// Layers whose matrices are decomposed together, and what is no matrix.
const LAYERS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.mlp.up_proj.weight", F32, &[12, 6000]),
    ("model.layers.1.mlp.up_proj.weight", F32, &[12, 6000]),
    ("model.layers.2.mlp.up_proj.weight", F32, &[12, 6000]),
    ("model.layers.3.mlp.up_proj.weight", F32, &[12, 6000]),
    ("model.layers.4.mlp.up_proj.weight", F32, &[12, 6000]),
    ("model.layers.5.mlp.up_proj.weight", F32, &[12, 6000]),
    ("model.layers.5.norm.weight", BF16, &[33]),
];

struct Merge {
    family: Family,
    recipe: std::path::PathBuf,
}

impl Merge {
    fn of(specs: &[(&str, Dtype, &[u64])], text: &Text) -> Self {
        let family = Family::new(quick_folder(), specs, text.models.len(), 61);
        let recipe = family.recipe("memory", &text.yaml());
        Run::default().merge(&recipe, &family.path("cpu")).unwrap();
        Self { family, recipe }
    }

    fn run(&self, fail: &str, args: &[&str]) -> Ended {
        let out = self.family.path("out");
        let mut command = child::command(&self.recipe, &out, &[&["--device", "cuda"], args].concat(), None);
        command.env("MERGANSER_STANDIN_FAIL", fail);
        child::end(command.spawn().unwrap())
    }

    /// Fails unless the output is the CPU's; matrices may be 10⁻⁴ apart.
    fn is_the_cpus(&self) {
        let [cpu, out] = ["cpu", "out"].map(|name| self.family.path(name));
        let stated = [&cpu, &out].map(|out| digests(out));
        let (cpu, out) = (read(&cpu), read(&out));
        for (name, tensor) in &cpu {
            if stated[0][name] != stated[1][name] {
                let base = self.family.tensor(0, name).values();
                let apart = relative(&out[name].values(), &tensor.values(), &base);
                assert!(apart <= 1e-4, "{name}: {apart}");
                assert!(name.contains("proj"), "{name} is merged by element, and other bytes");
            }
        }
    }
}

#[test]
fn memory_that_runs_out_in_the_midst_shrinks_the_pool_and_the_merge_goes_on() {
    let Some(_) = stand_in("memory that runs out") else { return };
    let ties = Text::plain("ties", 2).set("density", "0.4");
    let cart = Text::plain("cart", 2).set("rank", "2");
    for (text, fail, said) in [
        (&ties, "launch-memory:1", "launch"),
        (&ties, "launch-memory:9", "launch"),
        (&cart, "blas-memory:2", "cuBLAS found no memory"),
        (&cart, "solver-memory:1", "cuSOLVER found no memory"),
        (&cart, "solver-memory:2", "cuSOLVER found no memory"),
    ] {
        let merge = Merge::of(SPECS, text);
        let ended =
            merge.run(fail, &[]).expect(0, &["ran out of memory", "going on with", "bytes of device memory", said]);
        let shrinks = ended.stderr.matches("going on with").count();
        assert_eq!(shrinks, 1, "{}", ended.stderr);
        merge.is_the_cpus();
    }
}

#[test]
fn memory_that_runs_out_again_and_again_ends_in_an_error_that_can_be_gone_on_from() {
    let Some(_) = stand_in("memory that runs out again") else { return };
    let ties = Text::plain("ties", 2).set("density", "0.4");
    let slerp = Text::plain("slerp", 1).set("t", "0.4");
    let cart = Text::plain("cart", 2).set("rank", "2");
    for (specs, text, fail) in [
        (SPECS, &ties, "launch-memory:6+"),
        (SPECS, &ties, "launch-memory:1+"),
        (SPECS, &slerp, "launch-memory:2+"),
        (SPECS, &cart, "solver-memory:1+"),
        (LAYERS, &cart, "launch-memory:1+"),
    ] {
        let merge = Merge::of(specs, text);
        let out = merge.family.path("out");
        let ended = merge.run(fail, &[]).expect(3, &["error: ", "memory", "--device-memory"]);
        assert!(!out.exists() && partial(&out).exists(), "{fail}");
        assert!(ended.stderr.matches("going on with").count() <= 4, "{}", ended.stderr);
        merge.run("", &["--resume"]).expect(0, &[]);
        merge.is_the_cpus();
    }
}

#[test]
fn a_batch_for_which_there_is_no_memory_is_halved_and_the_merge_goes_on() {
    let Some(_) = stand_in("a batch without memory") else { return };
    let text = Text::plain("cart", 2).set("rank", "2");
    for (fail, said) in [
        ("solver-memory:1", "cuSOLVER found no memory"),
        ("blas-memory:1", "cuBLAS found no memory"),
        ("blas-memory:3", "cuBLAS found no memory"),
        ("launch-memory:17", "launch"),
    ] {
        let merge = Merge::of(LAYERS, &text);
        let ended = merge.run(fail, &[]).expect(0, &["ran out of memory", "going on with", said]);
        assert_eq!(ended.stderr.matches("going on with").count(), 1, "{}", ended.stderr);
        merge.is_the_cpus();
        for (name, ..) in &LAYERS[..6] {
            let facts = stated(&merge.family.path("out"), name).facts;
            assert_eq!((&facts["batch"], &facts["computed_on"]), (&3.into(), &"cuda:0".into()), "{fail}: {facts}");
        }
    }
}

#[test]
fn a_span_that_was_used_before_is_poison_until_it_is_written() {
    let Some(device) = stand_in("poisoned spans") else { return };
    let sizes = LaneSizes { up_bytes: 4096, down_bytes: 4096, solves: false };
    let (gpu, mut lanes) = Gpu::open(&device.cuda[0], 1, sizes, 1 << 20, 1 << 20).unwrap();
    let lane = &mut lanes[0];
    lane.bind().unwrap();
    let first = gpu.pool().lease(None, &[1000], &[40]).unwrap();
    let place = first.sources[0];
    lane.put(&gpu, place, 0, &[7; 1000]).unwrap();
    lane.finish().unwrap();
    gpu.pool().give_back(first, false);
    let second = gpu.pool().lease(None, &[1000], &[]).unwrap();
    assert_eq!(second.sources[0], place, "the same room again");
    let mut found = [0; 1000];
    lane.get(&gpu, place, 0, &mut found).unwrap();
    assert_eq!(found, [7; 1000], "what the first lease left");
    lane.poison(&gpu, &second.sources).unwrap();
    // What comes later is not overtaken by the poison.
    lane.put(&gpu, place, 500, &[8; 500]).unwrap();
    lane.get(&gpu, place, 0, &mut found).unwrap();
    assert_eq!(found[..500], [POISON; 500]);
    assert_eq!(found[500..], [8; 500]);
    lane.finish().unwrap();
    gpu.pool().give_back(second, false);
}
