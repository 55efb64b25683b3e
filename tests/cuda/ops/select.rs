//! The search for a cut.

use merganser::backend::cpu::prune::Scratch;
use merganser::backend::cpu::stats;
use merganser::backend::cpu::stored::Widen;
use merganser::backend::cuda::ops::{self, StageBlob};
use merganser::dtype::Dtype;
use merganser::ops::search::Ranked;
use merganser::ops::{Geometry, Prune, Score, StageState};

use super::cases::{SCORES, mixes, stages};
use super::{Family, Gpu};

/// Scores (or τ) of every element and model, from the CPU, as keys.
fn keys(family: &Family, ranked: Ranked, stages: &[(Prune, StageState)]) -> Vec<Vec<u64>> {
    fn run<C: Widen>(family: &Family, score: Score, stages: &[(Prune, StageState)]) -> Vec<Vec<u64>> {
        let geometry = Geometry::of(&[family.len as u64]);
        let mut scratch = Scratch::<C>::new(family.models());
        let scores = family.on_cpu(|sources| stats::row_scores(score, geometry, stages, sources, &mut scratch));
        scores.iter().map(|s| s.iter().map(|x| C::of(*x).key()).collect()).collect()
    }
    let score = match ranked {
        Ranked::Magnitude => Score::Magnitude,
        Ranked::Score(score) => score,
    };
    if family.wide() { run::<f64>(family, score, stages) } else { run::<f32>(family, score, stages) }
}

fn check_select(gpu: &Gpu, family: &Family, ranked: Ranked, stages: &[(Prune, StageState)], phase: usize) {
    let (models, n, wide) = (family.models(), family.len as u64, family.wide());
    let keys = keys(family, ranked, stages);
    for lowest in [false, true] {
        for share in if lowest { [0.0, 0.5] } else { [0.2, 1.0] } {
            let rank = |t: usize| (((share + 0.07 * t as f64) * n as f64) as u64).clamp(1, n);
            // The last of several models has no search.
            let is_searched = |t: usize| models == 1 || t + 1 < models;
            let begin = |t: usize| {
                if is_searched(t) {
                    ops::select::SelectState::new(rank(t), lowest, wide)
                } else {
                    ops::select::SelectState::none()
                }
            };
            let states = gpu.put(&(0..models).map(begin).collect::<Vec<_>>());
            let bins = gpu.zeros(ops::select::bins_bytes(models));
            let blob = StageBlob::new(stages, models);
            let on_device = blob.at(gpu.put(&blob.bytes));
            let geometry = Geometry::of(&[n]);
            family.on_device(gpu, phase, |sources| {
                for _ in 0..ops::select::levels(wide) {
                    let (k, s) = (&gpu.kernels, &gpu.stream);
                    ops::select::count(k, s, ranked, wide, geometry, on_device, sources, states, bins).unwrap();
                    ops::select::advance(k, s, models, states, bins).unwrap();
                }
            });
            let found: Vec<ops::select::SelectState> = gpu.get(states);
            for (t, (found, keys)) in found.iter().zip(&keys).enumerate() {
                let what = format!("{ranked:?} model {t} of {models}, {n} elements, lowest {lowest}, share {share}");
                let Some(cut) = found.cut() else {
                    assert!(!is_searched(t), "{what}");
                    continue;
                };
                let mut sorted = keys.clone();
                sorted.sort_unstable();
                let at = if lowest { rank(t) - 1 } else { n - rank(t) } as usize;
                assert_eq!(cut.key, sorted[at], "{what}");
                let kept = keys.iter().filter(|k| if lowest { **k <= cut.key } else { **k >= cut.key }).count();
                assert_eq!(cut.kept, kept as u64, "{what}");
            }
            gpu.clear();
        }
    }
}

#[test]
fn the_cut_is_the_kth_key_whatever_is_ranked() {
    let Some(gpu) = Gpu::open() else { return };
    for (i, mix) in mixes().iter().enumerate() {
        for (models, len) in [(1, 1), (2, 33), (6, 2049)] {
            let family = Family::new(i as u64 + 31, mix, models, len);
            check_select(&gpu, &family, Ranked::Magnitude, &[], i % 2);
            for score in SCORES.into_iter().filter(|s| models > 1 || !s.is_relational()).step_by(2) {
                check_select(&gpu, &family, Ranked::Score(score), &[], 0);
            }
        }
    }
}

#[test]
fn a_search_goes_through_stages_and_through_many_models() {
    let Some(gpu) = Gpu::open() else { return };
    for (mix, models) in [(vec![Dtype::BF16], 3), (vec![Dtype::F64], 9), (vec![Dtype::F32], 64)] {
        let family = Family::new(8, &mix, models, 257);
        let all = stages(Geometry::of(&[257]), models, family.wide(), 4);
        check_select(&gpu, &family, Ranked::Magnitude, &all[2..4], 0);
        check_select(&gpu, &family, Ranked::Score(Score::Agreement), &all[..1], 0);
    }
}
