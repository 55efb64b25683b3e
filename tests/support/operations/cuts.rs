//! The search for a cut, held to keys that are sorted.

use merganser::backend::contract::{Lane, Pass};
use merganser::dtype::Dtype;
use merganser::ops::search::{Ranked, Search};
use merganser::ops::{Geometry, Prune, Real, Score, StageState};

use super::Family;
use super::cases::{SCORES, mixes, stages};

/// Scores (or τ) of every element and model as keys: rows of a vector are its elements.
fn keys(lane: &mut dyn Lane, family: &Family, ranked: Ranked<'_>, stages: &[(Prune, StageState)]) -> Vec<Vec<u64>> {
    let score = match ranked {
        Ranked::Magnitude => Score::Magnitude,
        Ranked::Score(score) => score,
        Ranked::Spread | Ranked::Importance(_) => panic!("no score of one model"),
    };
    let geometry = Geometry::of(&[family.len as u64]);
    let scores = family.run(geometry, stages, |run| lane.pass(run, Pass::Rows(score)).unwrap());
    let key = |x: &f64| if family.wide() { x.key() } else { (*x as f32).key() };
    scores.chunks(family.len).map(|scores| scores.iter().map(key).collect()).collect()
}

fn same(a: &mut dyn Lane, b: &mut dyn Lane, family: &Family, ranked: Ranked<'_>, stages: &[(Prune, StageState)]) {
    let (models, n) = (family.models(), family.len as u64);
    let keys = keys(a, family, ranked, stages);
    for lowest in [false, true] {
        for share in if lowest { [0.0, 0.5] } else { [0.2, 1.0] } {
            let rank = |t: usize| (((share + 0.07 * t as f64) * n as f64) as u64).clamp(1, n);
            // The last of several models has no search.
            let is_searched = |t: usize| models == 1 || t + 1 < models;
            let new = if family.wide() { Search::new::<f64> } else { Search::new::<f32> };
            let searches: Vec<_> = (0..models).map(|t| is_searched(t).then(|| new(n, rank(t), lowest))).collect();
            let check = |lane: &mut dyn Lane| {
                let geometry = Geometry::of(&[n]);
                let cuts = family.run(geometry, stages, |run| lane.cuts(run, ranked, &searches).unwrap());
                for (t, (cut, keys)) in cuts.iter().zip(&keys).enumerate() {
                    let lane = lane.label();
                    let what =
                        format!("{lane}: {ranked:?} model {t} of {models}, {n} elements, lowest {lowest}, {share}");
                    let Some(cut) = cut else {
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
                assert_eq!(cuts.len(), models);
            };
            check(a);
            check(b);
        }
    }
}

pub fn cuts_are_the_kth_key(a: &mut dyn Lane, b: &mut dyn Lane) {
    for (i, mix) in mixes().iter().enumerate() {
        for (models, len) in [(1, 1), (2, 33), (6, 2049)] {
            let family = Family::new(i as u64 + 31, mix, models, len);
            same(a, b, &family, Ranked::Magnitude, &[]);
            for score in SCORES.into_iter().filter(|s| models > 1 || !s.is_relational()).step_by(2) {
                same(a, b, &family, Ranked::Score(score), &[]);
            }
        }
    }
}

pub fn cuts_of_many_models_behind_stages(a: &mut dyn Lane, b: &mut dyn Lane) {
    for (mix, models) in [(vec![Dtype::BF16], 3), (vec![Dtype::F64], 9), (vec![Dtype::F32], 64)] {
        let family = Family::new(8, &mix, models, 257);
        let all = stages(Geometry::of(&[257]), models, family.wide(), 4);
        same(a, b, &family, Ranked::Magnitude, &all[2..4]);
        same(a, b, &family, Ranked::Score(Score::Agreement), &all[..1]);
    }
}

pub fn cuts_over_all_models_and_by_rows(a: &mut dyn Lane, b: &mut dyn Lane) {
    for (mix, models, len) in [
        (vec![Dtype::BF16], 3, 5000),
        (vec![Dtype::F64], 2, 257),
        (vec![Dtype::F8_E4M3], 2, 1000),
        (vec![Dtype::F32], 1, 33),
        (vec![Dtype::F16, Dtype::F32], 64, 100),
    ] {
        let (family, n) = (Family::new(len as u64, &mix, models, len), len as u64);
        let find = |lane: &mut dyn Lane, ranked: Ranked<'_>, searches: &[Option<Search>], shape: &[u64]| {
            family.run(Geometry::of(shape), &[], |run| lane.cuts(run, ranked, searches).unwrap())[0]
        };
        for share in [0.0005, 0.1, 0.5, 0.999] {
            let new = if family.wide() { Search::of_nonzero::<f64> } else { Search::of_nonzero::<f32> };
            let searches = [Some(new(n, share))];
            let [left, right] = [&mut *a, &mut *b].map(|lane| find(lane, Ranked::Spread, &searches, &[n]));
            assert!(left.is_some() && left == right, "{models} models, {len} elements, {share}: {left:?}, {right:?}");
            // Where models are equal, or one, nothing differs.
            assert!(models > 1 || left.is_some_and(|cut| cut.kept == 0), "{left:?}");
        }
        let weights: Vec<f64> = (0..n).map(|row| row as f64 * 0.1).collect();
        let new = if family.wide() { Search::new::<f64> } else { Search::new::<f32> };
        let searches: Vec<_> = (0..models).map(|t| (t == 0).then(|| new(n, n / 2 + 1, true))).collect();
        let [left, right] = [&mut *a, &mut *b].map(|lane| find(lane, Ranked::Importance(&weights), &searches, &[n, 1]));
        assert!(left.is_some() && left == right, "{models} models, {len} elements: {left:?}, {right:?}");
    }
}
