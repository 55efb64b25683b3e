//! cuSOLVER: eigenvalues and eigenvectors of symmetric matrices, one at a time and in batches.
//!
//! An eigenvector's sign is nobody's promise: from seed 1 on it is chosen by the seed.

use std::ffi::{c_int, c_void};

use crate::codes::Code;
use crate::eigen::decompose;
use crate::failures::Kind;
use crate::gemm::{Matrix, Real};
use crate::libraries::{self, operand};
use crate::memory;
use crate::put;
use crate::rules::{self, Rule};
use crate::world::{self, World};

pub(crate) const NOT_INITIALIZED: c_int = 1;
const ALLOC_FAILED: c_int = 2;
pub(crate) const INVALID_VALUE: c_int = 3;
pub(crate) const INTERNAL_ERROR: c_int = 7;

/// Types of elements as the libraries number them.
const REAL_32: c_int = 0;
pub(crate) const REAL_64: c_int = 1;

/// Host memory that a decomposition asks for.
pub(crate) const HOST_BYTES: usize = 640;

pub(crate) fn call(body: impl FnOnce(&mut World) -> Result<(), c_int>) -> c_int {
    body(&mut world::lock()).err().unwrap_or(0)
}

pub(crate) fn invalid(_: Code) -> c_int {
    INVALID_VALUE
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnCreate(place: *mut usize) -> c_int {
    call(|world| {
        if world.config.failures.strike(Kind::Solver) {
            return Err(NOT_INITIALIZED);
        }
        let handle = libraries::create(world).map_err(|_| NOT_INITIALIZED)?;
        put(place, handle).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnDestroy(handle: usize) -> c_int {
    call(|world| {
        libraries::find(world, handle).map_err(|_| NOT_INITIALIZED)?;
        libraries::handles().remove(&handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnSetStream(handle: usize, stream: usize) -> c_int {
    call(|world| libraries::set_stream(world, handle, stream).map_err(invalid))
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnCreateParams(place: *mut usize) -> c_int {
    call(|world| {
        let handle = world.new_handle();
        put(place, handle).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnDestroyParams(_params: usize) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnSetAdvOptions(_params: usize, _function: c_int, _algorithm: c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnSetDeterministicMode(handle: usize, _mode: c_int) -> c_int {
    call(|world| libraries::find(world, handle).map(|_| ()).map_err(invalid))
}

#[unsafe(no_mangle)]
extern "C" fn cusolverGetVersion(version: *mut c_int) -> c_int {
    call(|world| put(version, (world.config.driver_version / 1000 - 1) * 1000).map_err(invalid))
}

#[unsafe(no_mangle)]
extern "C" fn cusolverGetProperty(which: c_int, value: *mut c_int) -> c_int {
    call(|_| put(value, if which == 0 { 12 } else { 0 }).map_err(invalid))
}

/// Matrices of one shape, one after another.
#[derive(Clone, Copy)]
struct Problem {
    vectors: bool,
    upper: bool,
    n: usize,
    leading: usize,
    batch: usize,
    double: bool,
}

impl Problem {
    fn new(job: c_int, fill: c_int, n: i64, leading: i64, types: [c_int; 3], batch: i64) -> Result<Problem, Rule> {
        let size = |size: i64| usize::try_from(size).map_err(|_| rules::EIGEN_SHAPE);
        let double = match types {
            [REAL_32, REAL_32, REAL_32] => false,
            [REAL_64, REAL_64, REAL_64] => true,
            _ => return Err(rules::EIGEN_SHAPE),
        };
        let problem = Problem {
            vectors: job == 1,
            upper: fill == 1,
            n: size(n)?,
            leading: size(leading)?,
            batch: size(batch)?,
            double,
        };
        let whole = problem.n.checked_mul(problem.leading).and_then(|elems| elems.checked_mul(problem.batch));
        if problem.leading < problem.n.max(1) {
            return Err(rules::EIGEN_SHAPE);
        }
        if problem.batch == 0 || batch > 1 && whole.is_none_or(|whole| whole > i32::MAX as usize) {
            return Err(rules::EIGEN_BATCH);
        }
        Ok(problem)
    }

    fn element_bytes(&self) -> usize {
        if self.double { 8 } else { 4 }
    }

    /// What a device of this number asks for: another than the one before, as unlike cards do.
    fn device_bytes(&self, device: usize) -> usize {
        (self.n * self.n + 8 * self.n + 64) * self.element_bytes() * self.batch * (1 + device)
    }
}

/// Addresses that a call was given.
#[derive(Clone, Copy)]
struct Places {
    matrices: usize,
    values: usize,
    device: (usize, usize),
    host: (usize, usize),
    info: usize,
}

/// The host's part of a workspace, which belongs to a decomposition until it has run.
#[derive(Clone, Copy)]
pub(crate) struct HostWorkspace {
    at: usize,
    owner: [u8; size_of::<usize>()],
}

impl HostWorkspace {
    /// Takes it for a decomposition: a number of its own lies there.
    pub fn take(world: &mut World, at: usize) -> Self {
        let owner = world.new_handle().to_ne_bytes();
        memory::fill(at, memory::POISON, HOST_BYTES);
        memory::copy(at, owner.as_ptr() as usize, owner.len());
        Self { at, owner }
    }

    /// Whether it is still that decomposition's.
    pub fn check(&self) -> Result<(), String> {
        match memory::read(self.at, self.owner.len()) == self.owner {
            true => Ok(()),
            false => Err("the host's workspace of a decomposition was used again before it ran".into()),
        }
    }
}

/// A problem that can be asked for.
fn asked(world: &mut World, problem: Result<Problem, Rule>) -> Result<Problem, c_int> {
    problem.map_err(|rule| world.breaks(rule, "a decomposition of a shape, type or number that there is not").0)
}

fn solve(world: &mut World, handle: usize, problem: Result<Problem, Rule>, places: Places) -> Result<(), c_int> {
    let problem = asked(world, problem)?;
    let handle = libraries::find(world, handle).map_err(|_| NOT_INITIALIZED)?;
    let (n, batch, bytes) = (problem.n, problem.batch, problem.element_bytes());
    let extent = Matrix { at: places.matrices, leading: problem.leading }.extent(n, n, bytes);
    let needed = [
        ("matrices to decompose", places.matrices, extent + (batch - 1) * problem.leading * n * bytes),
        ("eigenvalues", places.values, n * batch * bytes),
        ("workspace of cuSOLVER", places.device.0, problem.device_bytes(handle.device)),
        ("info of cuSOLVER", places.info, 4 * batch),
    ];
    for (what, at, len) in needed {
        operand(world, what, handle.device, at, len).map_err(invalid)?;
    }
    if places.device.1 < problem.device_bytes(handle.device) || places.host.1 < HOST_BYTES || places.host.0 == 0 {
        let text = "a decomposition with less workspace than was asked for";
        return Err(world.breaks(rules::EIGEN_WORKSPACE, text).0);
    }
    if world.config.failures.strike(Kind::Solver) {
        return Err(INTERNAL_ERROR);
    }
    if world.config.failures.strike(Kind::SolverMemory) {
        return Err(ALLOC_FAILED);
    }
    let cubes = (n as u64).pow(3) * batch as u64;
    world.eigen = [world.eigen[0] + batch as u64, world.eigen[1] + 1, world.eigen[2] + cubes];
    let diverges = world.config.failures.strike(Kind::Converge);
    let seed = world.config.seed;
    let stream = world.stream(handle.stream).map_err(|_| INTERNAL_ERROR)?;
    let workspace_of_host = HostWorkspace::take(world, places.host.0);
    let run = move || {
        workspace_of_host.check()?;
        libraries::scribble(places.device.0, problem.device_bytes(handle.device));
        for index in 0..batch {
            let matrix = Matrix { at: places.matrices + index * problem.leading * n * bytes, leading: problem.leading };
            let values = places.values + index * n * bytes;
            let converged = match problem.double {
                true => one::<f64>(&problem, matrix, values, seed),
                false => one::<f32>(&problem, matrix, values, seed),
            };
            let info = u32::from(!converged || diverges && index == 0);
            memory::fill_words(places.info + 4 * index, info, 1);
        }
        Ok(())
    };
    let writes = vec![(places.values, n * batch * bytes), (places.info, 4 * batch)];
    libraries::enqueue(world, stream, run, writes);
    Ok(())
}

/// Decomposes one matrix, of which one triangle is read; the vectors take its place.
fn one<T: Real>(problem: &Problem, matrix: Matrix, values: usize, seed: u64) -> bool {
    let n = problem.n;
    let mut full = vec![0.0; n * n];
    for column in 0..n {
        let stored: Vec<T> = matrix.column(column, n);
        let rows = if problem.upper { 0..column + 1 } else { column..n };
        for row in rows {
            let value = stored[row].to_f64();
            (full[column * n + row], full[row * n + column]) = (value, value);
        }
    }
    let eigen = decompose(full, n);
    let rounded: Vec<T> = eigen.values.iter().map(|value| T::from_f64(*value)).collect();
    Matrix { at: values, leading: n }.set_column(0, &rounded);
    for column in 0..n {
        let flip = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(column as u32) & 1 == 1;
        let sign = if flip { -1.0 } else { 1.0 };
        let vector = eigen.vectors[column * n..(column + 1) * n].iter();
        // Without vectors what was in the matrix is destroyed.
        let vector: Vec<T> =
            vector.map(|value| T::from_f64(if problem.vectors { sign * value } else { f64::NAN })).collect();
        matrix.set_column(column, &vector);
    }
    eigen.converged
}

fn sizes(
    world: &mut World,
    handle: usize,
    problem: Result<Problem, Rule>,
    device: *mut usize,
    host: *mut usize,
) -> Result<(), c_int> {
    let handle = libraries::find(world, handle).map_err(|_| NOT_INITIALIZED)?;
    let problem = asked(world, problem)?;
    put(device, problem.device_bytes(handle.device)).and_then(|()| put(host, HOST_BYTES)).map_err(invalid)
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnXsyevd_bufferSize(
    handle: usize,
    _params: usize,
    job: c_int,
    fill: c_int,
    n: i64,
    type_a: c_int,
    _a: usize,
    lda: i64,
    type_w: c_int,
    _w: usize,
    compute: c_int,
    device: *mut usize,
    host: *mut usize,
) -> c_int {
    call(|world| sizes(world, handle, Problem::new(job, fill, n, lda, [type_a, type_w, compute], 1), device, host))
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnXsyevd(
    handle: usize,
    _params: usize,
    job: c_int,
    fill: c_int,
    n: i64,
    type_a: c_int,
    a: usize,
    lda: i64,
    type_w: c_int,
    w: usize,
    compute: c_int,
    device: usize,
    device_len: usize,
    host: *mut c_void,
    host_len: usize,
    info: usize,
) -> c_int {
    let places = Places { matrices: a, values: w, device: (device, device_len), host: (host as usize, host_len), info };
    call(|world| solve(world, handle, Problem::new(job, fill, n, lda, [type_a, type_w, compute], 1), places))
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnXsyevBatched_bufferSize(
    handle: usize,
    _params: usize,
    job: c_int,
    fill: c_int,
    n: i64,
    type_a: c_int,
    _a: usize,
    lda: i64,
    type_w: c_int,
    _w: usize,
    compute: c_int,
    device: *mut usize,
    host: *mut usize,
    batch: i64,
) -> c_int {
    call(|world| sizes(world, handle, Problem::new(job, fill, n, lda, [type_a, type_w, compute], batch), device, host))
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnXsyevBatched(
    handle: usize,
    _params: usize,
    job: c_int,
    fill: c_int,
    n: i64,
    type_a: c_int,
    a: usize,
    lda: i64,
    type_w: c_int,
    w: usize,
    compute: c_int,
    device: usize,
    device_len: usize,
    host: *mut c_void,
    host_len: usize,
    info: usize,
    batch: i64,
) -> c_int {
    let places = Places { matrices: a, values: w, device: (device, device_len), host: (host as usize, host_len), info };
    call(|world| solve(world, handle, Problem::new(job, fill, n, lda, [type_a, type_w, compute], batch), places))
}
