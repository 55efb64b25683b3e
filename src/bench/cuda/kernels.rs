//! Paths over data that lies on the device: every kernel of a merge, with what the host does between them.

use super::DEVICE_COPY;
use super::device::Open;
use super::tensor::{COLUMNS, Tensor, Work, all_paths, compare, compared, work_bytes};
use crate::backend::cuda::rates::Clock;
use crate::bench::data::{ELEM_BYTES, Family, MODELS};
use crate::bench::{Bench, Row, Unit, rounds};
use crate::cost::rates as cost;
use crate::error::Result;

/// Every path, and a comparison of the last result with the CPU's.
pub(super) fn all(bench: &mut Bench<'_>) -> Result<()> {
    let mut family = Family::within(bench.take_block()?, bench.settings.threads)?;
    let elems = family.elems() / COLUMNS * COLUMNS;
    let bytes = elems * ELEM_BYTES;
    let mut sizes = vec![bytes as u64; MODELS + 2];
    sizes.extend(work_bytes(elems));
    let (mut open, spans) = Open::with_spans(bench.settings, &sizes, false)?;
    let (models, found) = family.parts();
    let (gpu, lane) = open.first()?;
    for (source, span) in spans[..=MODELS].iter().enumerate() {
        lane.put(gpu, *span, 0, models.bytes_of(source, 0..elems))?;
    }
    let (out, clock) = (spans[MODELS + 1], Clock::new(gpu)?);
    let tensor = Tensor { gpu, elems, sources: &spans[..=MODELS], work: Work(&spans[MODELS + 2..]) };
    for path in all_paths() {
        let moved = (path.sources().count() + 1) * bytes;
        let row = Row::new(path.method.name, 1, Unit::Bytes, moved as f64, Some(DEVICE_COPY));
        // How often the others look at their data depends on it.
        let once = bench.card().filter(|_| !path.looks_first());
        let row = row.predicted(once.map(cost::memory));
        let mut last = None;
        bench.measure(row, |stop| {
            rounds::check(stop)?;
            clock.time(gpu, lane, |lane| {
                let measured = tensor.measure(lane, &path)?;
                tensor.clear_facts(lane)?;
                tensor.blend(lane, &path, &measured, (0, elems), out)?;
                last = Some(measured);
                Ok(())
            })
        })?;
        let found = &mut found[..compared(elems) * ELEM_BYTES];
        lane.get(gpu, out, 0, found)?;
        if let Some((measured, _)) = last {
            compare(&path, &measured, models, found, &gpu.label)?;
        }
    }
    lane.finish()?;
    bench.block = family.into_block();
    Ok(())
}
