//! The counters of all units of a pass, added up: only of the bins that were counted in, which are few.

use super::{AT_PIVOT, BEYOND, BINS, GROUP, LOW, TOUCHED};

/// Groups of bins.
const GROUPS: usize = BINS / GROUP;

/// The counters of a pass over one model, all units together.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// By group of bins; none where nothing was counted, and at first no groups at all.
    groups: Vec<Option<Box<Group>>>,
    /// Keys beyond the range.
    pub(crate) beyond: u64,
    /// Keys at the pivot.
    pub(crate) at_pivot: u64,
}

/// Counters of neighbouring bins.
#[derive(Debug, Clone)]
struct Group {
    /// How often a bin's first key came, and how often others.
    bins: [[u64; 2]; GROUP],
    /// Which low bits of a bin's others were 1 and, from bit 16 on, which were 0.
    low: [u32; GROUP],
}

impl Totals {
    /// The most that one takes, in bytes: every group, with what an allocator adds.
    pub const BYTES: usize = GROUPS * (size_of::<Option<Box<Group>>>() + size_of::<Group>() + 16);

    /// Adds the counters of a unit ([`super::COUNTERS`]), and clears them for the next.
    pub fn add(&mut self, counts: &mut [u32]) {
        self.groups.resize(GROUPS, None);
        for (number, group) in self.groups.iter_mut().enumerate() {
            if std::mem::take(&mut counts[TOUCHED + number]) == 0 {
                continue;
            }
            let group = group.get_or_insert_with(|| Box::new(Group { bins: [[0; 2]; GROUP], low: [0; GROUP] }));
            let bins = number * GROUP..(number + 1) * GROUP;
            let counted = &mut counts[2 * bins.start..2 * bins.end];
            for (total, count) in group.bins.as_flattened_mut().iter_mut().zip(counted) {
                *total += u64::from(std::mem::take(count));
            }
            for (total, low) in group.low.iter_mut().zip(&mut counts[LOW + bins.start..LOW + bins.end]) {
                *total |= std::mem::take(low);
            }
        }
        for (total, at) in [(&mut self.beyond, BEYOND), (&mut self.at_pivot, AT_PIVOT)] {
            *total += u64::from(std::mem::take(&mut counts[at]));
        }
    }

    /// Forgets what was counted, for the next pass.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How often the first key of a bin came, and how often others.
    pub(crate) fn bin(&self, bin: usize) -> [u64; 2] {
        self.group(bin / GROUP).map_or([0; 2], |group| group.bins[bin % GROUP])
    }

    /// Which low bits of a bin's others were 1, and which were 0.
    pub(crate) fn low(&self, bin: usize) -> u32 {
        self.group(bin / GROUP).map_or(0, |group| group.low[bin % GROUP])
    }

    /// Ranges of bins that were counted in, in their order.
    pub(crate) fn counted(&self) -> impl DoubleEndedIterator<Item = std::ops::Range<usize>> {
        let counted = self.groups.iter().enumerate().filter(|(_, group)| group.is_some());
        counted.map(|(number, _)| number * GROUP..(number + 1) * GROUP)
    }

    fn group(&self, number: usize) -> Option<&Group> {
        self.groups.get(number)?.as_deref()
    }
}
