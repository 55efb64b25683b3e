//! Asks the kernel for the sources of the next steps, a bounded distance ahead of what has been read.

use std::time::Duration;

use super::Engine;

/// How far ahead: enough to keep a fast disk busy while a unit is computed.
const WINDOW_BYTES: u64 = 128 << 20;
/// Bytes of one source asked for at a time.
const STEP_BYTES: u64 = 4 << 20;
/// How often to look whether the threads have caught up.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) fn run(engine: &Engine<'_>) {
    let mut asked = 0;
    // Only the first pass over a tensor: later ones find it in the page cache, or come too late to help.
    for (tensor, _) in engine.plan.tensors.iter().zip(&engine.is_done).filter(|(_, is_done)| !**is_done) {
        let sources: Vec<_> = tensor.reads().map(|at| engine.plan.stored(at)).collect();
        let longest = sources.iter().map(|(t, _)| t.bytes).max().unwrap_or_default();
        for at in (0..longest).step_by(STEP_BYTES as usize) {
            for (stored, shard) in &sources {
                let end = stored.bytes.min(at + STEP_BYTES);
                if at < end {
                    shard.will_need(stored.begin + at..stored.begin + end);
                    asked += end - at;
                }
            }
            while asked > engine.progress.first_read_bytes() + WINDOW_BYTES {
                if engine.schedule.is_over() {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use crate::engine::{Progress, Request, Stop, merge};
    use crate::plan::{Options, Plan};
    use crate::recipe::Recipe;

    /// Elements of the tensor: enough that a search samples it first.
    const ELEMS: usize = 1 << 18;

    #[test]
    fn a_tensor_whose_search_goes_over_it_again_counts_as_first_read_once() {
        let folder = tempfile::tempdir().unwrap();
        for model in 0_u32..4 {
            let value =
                |i: u32| half::bf16::from_f32((i.wrapping_mul(2_654_435_761 + model) >> 8) as f32).to_le_bytes();
            let bytes: Vec<u8> = (0..ELEMS as u32).flat_map(value).collect();
            let view = TensorView::new(Dtype::BF16, vec![ELEMS], &bytes).unwrap();
            let at = folder.path().join(format!("{model}"));
            std::fs::create_dir(&at).unwrap();
            safetensors::serialize_to_file([("w", view)], None, &at.join("model.safetensors")).unwrap();
        }
        let recipe = folder.path().join("recipe.yaml");
        let text = "merge_method: ties\nbase_model: '0'\nmodels: [{model: '1'}, {model: '2'}, {model: '3'}]\n\
                    parameters: {density: 0.2}\n";
        std::fs::write(&recipe, text).unwrap();
        let options = Options { threads: 2, memory_budget: 1 << 30, seed: 0, shard_bytes: u64::MAX };
        let plan = Plan::new(Recipe::load(&recipe).unwrap(), options).unwrap();
        let (progress, out) = (Progress::default(), folder.path().join("out"));
        let request = Request { plan: &plan, out: &out, resume: false, overwrite: false };
        merge(&request, &progress, &Stop::default()).unwrap();
        let sources = 4 * ELEMS as u64 * 2;
        assert_eq!(progress.first_read_bytes(), sources);
        // A pass that counts, and one that merges; the sample before them is not worth counting.
        assert!(progress.read_bytes() >= 2 * sources);
    }
}
