//! Measured stages as one blob of device memory: entries by stage and model, then the masks of rows and columns.

use bytemuck::{Pod, Zeroable};

use super::params::score_code;
use crate::ops::{Geometry, Granularity, Mask, Prune, StageState};

/// `Stage` of elementwise.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Entry {
    keep: u64,
    cut: u64,
    factor: f64,
    kind: u32,
    lowest: u32,
    score: u32,
    sums: u32,
}

const _: () = assert!(size_of::<Entry>() == 40);

const ROW_MASKS: u32 = 1;
const COLUMN_MASKS: u32 = 2;

/// Stages for kernels: upload `bytes` to a multiple of 16 bytes, then take [`StageBlob::at`] that address. It holds offsets, no
/// addresses.
#[derive(Debug, Clone, Default)]
pub struct StageBlob {
    /// What to upload; empty without stages.
    pub bytes: Vec<u8>,
    stages: Stages,
}

/// Stages that lie on the device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stages {
    pub(super) ptr: u64,
    pub(super) count: u32,
    pub(super) flags: u32,
    /// Whether some element's mask looks at other tasks.
    pub(super) is_relational: bool,
}

impl StageBlob {
    /// Of stages measured for this many models.
    pub fn new(stages: &[(Prune, StageState)], models: usize) -> Self {
        let mut summary = Stages { count: stages.len() as u32, ..Stages::default() };
        let mut entries = Vec::with_capacity(stages.len() * models);
        let mut masks = Vec::new();
        let first_mask = stages.len() * models * size_of::<Entry>();
        for (prune, state) in stages {
            let is_ranked = state.masks.iter().any(|mask| matches!(mask, Mask::Elements { .. }));
            let sums = is_ranked && prune.score.is_relational();
            summary.is_relational |= sums;
            for (mask, factor) in state.masks.iter().zip(&state.factors) {
                let mut entry =
                    Entry { factor: *factor, score: score_code(prune.score), sums: sums.into(), ..Entry::zeroed() };
                let mut keep = |bytes: &[u8]| {
                    let at = first_mask + masks.len();
                    masks.extend_from_slice(bytes);
                    at as u64
                };
                match mask {
                    Mask::All => {}
                    Mask::None => entry.kind = 1,
                    Mask::Rows(bytes) => (entry.kind, entry.keep) = (2, keep(bytes)),
                    Mask::Columns(bytes) => (entry.kind, entry.keep) = (3, keep(bytes)),
                    Mask::Elements { cut, lowest } => {
                        (entry.kind, entry.cut, entry.lowest) = (4, *cut, u32::from(*lowest));
                    }
                }
                summary.flags |= match entry.kind {
                    2 => ROW_MASKS,
                    3 => COLUMN_MASKS,
                    _ => 0,
                };
                entries.push(entry);
            }
        }
        let mut bytes = bytemuck::cast_slice(&entries).to_vec();
        bytes.extend(masks);
        Self { bytes, stages: summary }
    }

    /// Most bytes that the stages of a tensor can take, for a plan.
    pub fn most_bytes(stages: &[Prune], models: usize, geometry: Geometry) -> u64 {
        let masks = |prune: &Prune| match prune.granularity {
            Granularity::Row => geometry.rows,
            Granularity::Column => geometry.columns,
            Granularity::Layer | Granularity::Tensor | Granularity::Element => 0,
        };
        stages.iter().map(|prune| models as u64 * (size_of::<Entry>() as u64 + masks(prune))).sum()
    }

    /// The stages, once `bytes` lie at this address.
    pub fn at(&self, ptr: u64) -> Stages {
        Stages { ptr, ..self.stages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Rescale, Score};

    fn prune(score: Score, granularity: Granularity) -> Prune {
        Prune { stage: 0, score, granularity, keep: 0.5, keep_redundant: false, rescale: Rescale::None }
    }

    #[test]
    fn masks_follow_the_entries_and_are_found_by_their_offsets() {
        let rows = StageState { masks: vec![Mask::Rows(vec![1, 0, 1]), Mask::All], factors: vec![1.0, 2.0] };
        let columns = StageState { masks: vec![Mask::None, Mask::Columns(vec![0, 1])], factors: vec![1.0; 2] };
        let stages =
            [(prune(Score::Magnitude, Granularity::Row), rows), (prune(Score::Tall, Granularity::Column), columns)];
        let blob = StageBlob::new(&stages, 2);
        let (entries, masks) = blob.bytes.split_at(4 * size_of::<Entry>());
        let entries: Vec<Entry> = entries.chunks(size_of::<Entry>()).map(bytemuck::pod_read_unaligned).collect();
        assert_eq!(entries.iter().map(|e| e.kind).collect::<Vec<_>>(), [2, 0, 1, 3]);
        assert_eq!((entries[0].keep, entries[3].keep), (160, 163));
        assert_eq!(masks, [1, 0, 1, 0, 1]);
        let at = blob.at(4096);
        assert_eq!((at.ptr, at.count, at.flags, at.is_relational), (4096, 2, ROW_MASKS | COLUMN_MASKS, false));
        let geometry = Geometry::of(&[3, 2]);
        assert!(blob.bytes.len() as u64 <= StageBlob::most_bytes(&[stages[0].0, stages[1].0], 2, geometry));
    }

    #[test]
    fn only_cuts_of_relational_scores_need_all_models_at_once() {
        let masks = |mask: Mask| StageState { masks: vec![mask], factors: vec![1.0] };
        let cut = Mask::Elements { cut: 7, lowest: true };
        for (score, mask, relational) in [
            (Score::Agreement, cut.clone(), true),
            (Score::Relative, cut, false),
            (Score::Agreement, Mask::Rows(vec![1]), false),
        ] {
            let blob = StageBlob::new(&[(prune(score, Granularity::Element), masks(mask))], 1);
            assert_eq!(blob.at(16).is_relational, relational);
        }
    }
}
