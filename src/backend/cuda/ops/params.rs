//! Parameters that all kernels share, as `kernels/common.cuh` and `elementwise.cuh` lay them out.

use bytemuck::{Pod, Zeroable};

use super::stages::Stages;
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};
use crate::ops::{Geometry, Score};

/// Models that a launch can take.
pub const MAX_MODELS: usize = 64;

/// A run of stored elements on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// A mergeable float type.
    pub dtype: Dtype,
    /// Where its first element lies.
    pub ptr: u64,
}

/// The sources of a run of elements of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSources<'a> {
    /// θ₀, where the program reads it.
    pub base: Option<Place>,
    /// The models, in order.
    pub models: &'a [Place],
    /// Index in the tensor of the run's first element.
    pub start: u64,
    /// Elements.
    pub len: u64,
}

impl DeviceSources<'_> {
    /// The type of every source, for kernels of that type; `any` where they differ or no kernel has it, `f64` where it is
    /// computed in f64.
    pub(super) fn kind(&self, wide: bool) -> Kind {
        if wide {
            return Kind::F64;
        }
        let mut dtypes = self.base.iter().chain(self.models).map(|place| place.dtype);
        let first = dtypes.next();
        match first.filter(|first| dtypes.all(|other| other == *first)) {
            Some(Dtype::BF16) => Kind::Bf16,
            Some(Dtype::F16) => Kind::F16,
            Some(Dtype::F32) => Kind::F32,
            _ => Kind::Any,
        }
    }
}

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// All sources bf16, computed in f32.
    Bf16,
    /// All sources f16, computed in f32.
    F16,
    /// All sources f32.
    F32,
    /// Any sources, computed in f32.
    Any,
    /// Any sources, computed in f64.
    F64,
}

impl Kind {
    /// What the names of its kernels end in.
    pub fn suffix(self) -> &'static str {
        match self {
            Kind::Bf16 => "bf16",
            Kind::F16 => "f16",
            Kind::F32 => "f32",
            Kind::Any => "any",
            Kind::F64 => "f64",
        }
    }

    /// Bytes of a computed value.
    pub fn value_bytes(self) -> u32 {
        if self == Kind::F64 { 8 } else { 4 }
    }
}

/// The kernel of a kind among those for bf16, f16, f32, any, f64.
pub(super) fn of_five(kind: Kind, names: [&'static str; 5]) -> &'static str {
    names[kind as usize]
}

/// The kernel of a kind among those for any and f64.
pub(super) fn of_two(kind: Kind, names: [&'static str; 2]) -> &'static str {
    names[usize::from(kind == Kind::F64)]
}

/// `Sources` of common.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct Sources {
    base: u64,
    models: [u64; MAX_MODELS],
    start: u64,
    len: u64,
    pub count: u32,
    base_dtype: u8,
    dtypes: [u8; MAX_MODELS],
    pad: [u8; 3],
}

/// `Load` of elementwise.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct Load {
    pub sources: Sources,
    blob: u64,
    stages: u32,
    flags: u32,
    rows: u64,
    row_elems: u64,
    columns: u64,
    inner: u64,
}

const _: () = assert!(size_of::<Sources>() == 608 && size_of::<Load>() == 656);

/// Every source begins at a multiple of 16 bytes.
const ALIGNED: u32 = 4;

impl Load {
    /// Checks the sources and lays them out.
    ///
    /// # Errors
    /// `Internal` if there are none or too many, or one lies where its elements cannot be read.
    pub fn new(sources: &DeviceSources<'_>, geometry: Geometry, stages: Stages) -> Result<Self> {
        let count = sources.models.len();
        if count == 0 || count > MAX_MODELS {
            return Err(Error::internal(format!("a launch takes 1 to {MAX_MODELS} models, not {count}")));
        }
        let mut load = Self::zeroed();
        let mut flags = stages.flags | ALIGNED;
        let of = &mut load.sources;
        for (t, place) in sources.models.iter().enumerate() {
            (of.models[t], of.dtypes[t]) = (place.ptr, code(*place)?);
        }
        if let Some(place) = sources.base {
            (of.base, of.base_dtype) = (place.ptr, code(place)?);
        }
        if sources.base.iter().chain(sources.models).any(|place| !place.ptr.is_multiple_of(16)) {
            flags &= !ALIGNED;
        }
        (of.start, of.len, of.count) = (sources.start, sources.len, count as u32);
        (load.blob, load.stages, load.flags) = (stages.ptr, stages.count, flags);
        // A kernel divides by these.
        load.rows = geometry.rows;
        (load.row_elems, load.columns, load.inner) =
            (geometry.row_elems.max(1), geometry.columns.max(1), geometry.inner.max(1));
        Ok(load)
    }
}

/// The number of a type in the kernels.
///
/// # Errors
/// `Internal` if it is no mergeable float, or the run does not lie at a multiple of its elements' size.
pub(super) fn code(place: Place) -> Result<u8> {
    let bytes = place.dtype.size_bytes().unwrap_or(1);
    if place.ptr == 0 || !place.ptr.is_multiple_of(bytes) {
        return Err(Error::internal(format!("{} cannot lie at {:#x} on the device", place.dtype, place.ptr)));
    }
    Ok(match place.dtype {
        Dtype::F64 => 0,
        Dtype::F32 => 1,
        Dtype::BF16 => 2,
        Dtype::F16 => 3,
        Dtype::F8_E4M3 => 4,
        Dtype::F8_E5M2 => 5,
        other => return Err(Error::internal(format!("{other} is not merged on a device"))),
    })
}

/// The number of a score in the kernels.
pub(super) fn score_code(score: Score) -> u32 {
    match score {
        Score::Magnitude => 0,
        Score::Relative => 1,
        Score::Deviation => 2,
        Score::Agreement => 3,
        Score::Tall => 4,
    }
}

/// `values` at the front of an array for all models.
pub(super) fn spread<T: Copy>(values: impl IntoIterator<Item = T>, rest: T) -> [T; MAX_MODELS] {
    let mut all = [rest; MAX_MODELS];
    all.iter_mut().zip(values).for_each(|(to, from)| *to = from);
    all
}
