//! The device, open for one set of measurements, with as much of its memory as that takes.

use crate::backend::cuda::gpu::{Gpu, takeable};
use crate::backend::cuda::lane::{Lane, LaneSizes};
use crate::backend::cuda::pool::{Lease, Pool, Span};
use crate::backend::device::CudaDevice;
use crate::bench::Settings;
use crate::error::{Error, Result};
use crate::units::format_bytes;

/// Bytes of a page-locked slot where nothing asks for another size.
const SLOT_BYTES: u64 = 1 << 20;

/// An open device.
pub(super) struct Open {
    // Lanes go before the memory that their work touches.
    pub lanes: Vec<Lane>,
    pub gpu: Gpu,
}

impl Open {
    /// The first of the chosen devices with spans of these sizes, all of them leased, and one lane, with a solver if it `solves`.
    pub fn with_spans(settings: &Settings, sizes: &[u64], solves: bool) -> Result<(Self, Vec<Span>)> {
        let lane = LaneSizes { up_bytes: SLOT_BYTES, down_bytes: SLOT_BYTES, solves };
        let open = Self::new(settings, Pool::taken_by(sizes.iter().copied()), 1, lane)?;
        let spans = open.lease(&[], sizes)?.work;
        Ok((open, spans))
    }

    /// The first of the chosen devices with so much of its memory and so many lanes.
    pub fn new(settings: &Settings, bytes: u64, lanes: usize, sizes: LaneSizes) -> Result<Self> {
        let info = settings.device.cuda.first().ok_or_else(|| Error::internal("no CUDA device was chosen"))?;
        check_memory(info, settings.size_bytes, bytes)?;
        let (gpu, lanes) = Gpu::open(info, lanes, sizes, bytes, bytes)?;
        Ok(Self { lanes, gpu })
    }

    /// Spans of the device's memory.
    pub fn lease(&self, sources: &[u64], work: &[u64]) -> Result<Lease> {
        self.gpu.pool().lease(None, sources, work).ok_or_else(|| Error::internal("a pool is smaller than it was made"))
    }

    /// The device with its first lane.
    pub fn first(&mut self) -> Result<(&Gpu, &mut Lane)> {
        let lane = self.lanes.first_mut().ok_or_else(|| Error::internal("a device without a lane"))?;
        Ok((&self.gpu, lane))
    }
}

/// Refuses what the device has no room for, before anything is asked of it.
fn check_memory(info: &CudaDevice, size_bytes: u64, bytes: u64) -> Result<()> {
    let free = takeable(info.free_bytes.unwrap_or(info.total_bytes));
    if bytes <= free {
        return Ok(());
    }
    Err(Error::device(format!(
        "{} has too little free memory: {} can be had, and measuring with {} of data takes {}",
        info.label(),
        format_bytes(free),
        format_bytes(size_bytes),
        format_bytes(bytes)
    ))
    .hint("end what else uses the device, or give a smaller --size"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::device::Version;

    #[test]
    fn what_does_not_fit_is_the_environments_and_says_how_much_would() {
        let info = CudaDevice {
            ordinal: 0,
            name: "a GPU".into(),
            capability: Version(9, 0),
            total_bytes: 1 << 30,
            free_bytes: Some(1 << 29),
            multiprocessors: 4,
            problem: None,
        };
        assert!(check_memory(&info, 1, 1 << 20).is_ok());
        let error = check_memory(&info, 1 << 29, 1 << 29).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("cuda:0 (a GPU)") && error.hints()[0].contains("--size"), "{error}");
    }
}
