//! Small programs for the stand-in's tests, most of them in two forms: as it should be, and with one mistake. The driver's
//! answer is printed; the status is 0 where the result is right, 1 where it is wrong, 2 where a call failed.
//!
//! `probe PROGRAM`; `tests/catches.rs` runs them under several seeds.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod libraries;
mod rules;

use std::process::ExitCode;
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUdeviceptr, CUevent_flags, CUfunction_attribute};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;

type Outcome = Result<bool, DriverError>;

const KERNELS: [&str; 10] = [
    "twice",
    "twice_too_far",
    "sums",
    "sums_no_barrier",
    "sums_of_warps",
    "divergent",
    "reversed",
    "wide_copy",
    "counted",
    "heavy",
];
const COUNT: usize = 1024;
const BYTES: usize = 4 * COUNT;

struct Device {
    context: Arc<CudaContext>,
}

/// Pinned host memory of `COUNT` numbers; freed by the process's end.
struct Pinned(*mut f32);

impl Pinned {
    fn values(&mut self) -> &mut [f32] {
        // SAFETY: the driver gave so much memory, and nothing else holds a reference to it.
        unsafe { std::slice::from_raw_parts_mut(self.0, COUNT) }
    }

    fn fill(&mut self, first: f32) {
        for (index, value) in self.values().iter_mut().enumerate() {
            *value = first + index as f32;
        }
    }
}

impl Device {
    fn open(ordinal: usize) -> Result<Device, DriverError> {
        let context = CudaContext::new(ordinal)?;
        // SAFETY: every order that a program needs is made by its own events.
        unsafe { context.disable_event_tracking() };
        Ok(Device { context })
    }

    fn stream(&self) -> Arc<CudaStream> {
        self.context.new_stream().unwrap()
    }

    fn event(&self) -> CudaEvent {
        self.context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC)).unwrap()
    }

    /// A kernel, whose module stays: it may not be unloaded while a program that failed has left something under way.
    fn kernel(&self, name: &str) -> CudaFunction {
        let kernel = self.context.load_module(Ptx::from_src(text())).unwrap().load_function(name).unwrap();
        std::mem::forget(kernel.clone());
        kernel
    }

    fn memory(&self, bytes: usize) -> Result<CUdeviceptr, DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: nothing reads it before it is written; where a program does, that is what it is for.
        unsafe { result::malloc_sync(bytes) }
    }

    fn pinned(&self) -> Result<Pinned, DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: filled before it is read.
        Ok(Pinned(unsafe { result::malloc_host(BYTES, 0) }?.cast()))
    }
}

/// What names the kernels.
fn text() -> String {
    KERNELS.iter().map(|name| format!(".visible .entry {name}(\n")).collect()
}

fn upload(to: CUdeviceptr, from: &mut Pinned, stream: &CudaStream) -> Result<(), DriverError> {
    // SAFETY: both are of `BYTES`; whether the order is right is what the program tries.
    unsafe { result::memcpy_htod_async(to, from.values(), stream.cu_stream()) }
}

fn download(to: &mut Pinned, from: CUdeviceptr, stream: &CudaStream) -> Result<(), DriverError> {
    // SAFETY: as for `upload`.
    unsafe { result::memcpy_dtoh_async(to.values(), from, stream.cu_stream()) }
}

fn shape(blocks: u32, threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: shared }
}

/// Launches a kernel of two pointers.
fn launch(
    stream: &Arc<CudaStream>,
    kernel: &CudaFunction,
    shape: LaunchConfig,
    from: CUdeviceptr,
    to: CUdeviceptr,
) -> Result<(), DriverError> {
    // SAFETY: the kernel takes these; what is wrong with a launch is what the program tries.
    unsafe { stream.launch_builder(kernel).arg(&from).arg(&to).launch(shape) }.map(|_| ())
}

/// Launches `twice` or one like it on `count` numbers.
fn launch_twice(
    stream: &Arc<CudaStream>,
    kernel: &CudaFunction,
    from: CUdeviceptr,
    to: CUdeviceptr,
    count: u32,
) -> Result<(), DriverError> {
    // SAFETY: as for `launch`.
    unsafe { stream.launch_builder(kernel).arg(&from).arg(&to).arg(&count).launch(shape(COUNT as u32 / 256, 256, 0)) }
        .map(|_| ())
}

fn is_run(values: &[f32], first: f32, step: f32) -> bool {
    values.iter().enumerate().all(|(index, value)| *value == first + step * index as f32)
}

/// Upload, kernel and download on three streams; `missing` names the wait that is left out.
fn three_streams(missing: usize) -> Outcome {
    let device = Device::open(0)?;
    let (up, compute, down) = (device.stream(), device.stream(), device.stream());
    let (mut input, mut output) = (device.pinned()?, device.pinned()?);
    let (from, to) = (device.memory(BYTES)?, device.memory(BYTES)?);
    let (uploaded, computed) = (device.event(), device.event());
    let twice = device.kernel("twice");
    let mut right = true;
    for round in 0..3 {
        input.fill(round as f32);
        upload(from, &mut input, &up)?;
        uploaded.record(&up)?;
        if missing != 1 {
            compute.wait(&uploaded)?;
        }
        launch_twice(&compute, &twice, from, to, COUNT as u32)?;
        computed.record(&compute)?;
        if missing != 2 {
            down.wait(&computed)?;
        }
        download(&mut output, to, &down)?;
        if missing != 3 {
            down.synchronize()?;
        }
        right &= is_run(output.values(), 2.0 * round as f32, 2.0);
        device.context.synchronize()?;
    }
    Ok(right)
}

/// One pinned buffer for two uploads; without the wait it is filled again too early.
fn slot(waits: bool) -> Outcome {
    let device = Device::open(0)?;
    let stream = device.stream();
    let mut slot = device.pinned()?;
    let places = [device.memory(BYTES)?, device.memory(BYTES)?];
    let free = device.event();
    for (round, place) in places.iter().enumerate() {
        if waits {
            free.synchronize()?;
        }
        slot.fill(round as f32);
        upload(*place, &mut slot, &stream)?;
        free.record(&stream)?;
    }
    stream.synchronize()?;
    let mut right = true;
    for (round, place) in places.iter().enumerate() {
        let mut output = vec![0f32; COUNT];
        // SAFETY: pageable memory, written before the call returns.
        unsafe { result::memcpy_dtoh_async(&mut output, *place, stream.cu_stream())? };
        right &= is_run(&output, round as f32, 1.0);
    }
    Ok(right)
}

/// Fills a pinned buffer before, or only after, its upload was asked for.
fn filled(before: bool) -> Outcome {
    let device = Device::open(0)?;
    let stream = device.stream();
    let (mut slot, mut output) = (device.pinned()?, device.pinned()?);
    let place = device.memory(BYTES)?;
    if before {
        slot.fill(1.0);
    }
    upload(place, &mut slot, &stream)?;
    if !before {
        slot.fill(1.0);
    }
    download(&mut output, place, &stream)?;
    stream.synchronize()?;
    Ok(is_run(output.values(), 1.0, 1.0))
}

/// A kernel on memory of which all, or only half, was written. `again`: the memory had been in use and was freed.
fn written(all: bool, again: bool) -> Outcome {
    let device = Device::open(0)?;
    let stream = device.stream();
    let (mut input, mut output) = (device.pinned()?, device.pinned()?);
    input.fill(0.0);
    if again {
        let place = device.memory(BYTES)?;
        upload(place, &mut input, &stream)?;
        stream.synchronize()?;
        // SAFETY: freed once, and idle.
        unsafe { result::free_sync(place)? };
    }
    let (from, to) = (device.memory(BYTES)?, device.memory(BYTES)?);
    let part = if all { COUNT } else { COUNT / 2 };
    // SAFETY: inside of both.
    unsafe { result::memcpy_htod_async(from, &input.values()[..part], stream.cu_stream())? };
    launch_twice(&stream, &device.kernel("twice"), from, to, COUNT as u32)?;
    download(&mut output, to, &stream)?;
    stream.synchronize()?;
    Ok(is_run(output.values(), 0.0, 2.0))
}

/// Runs a kernel from `COUNT` numbers 0, 1, 2 … to another buffer and gives that.
fn run(kernel: &str, shape: LaunchConfig, offset: u64) -> Result<Vec<f32>, DriverError> {
    let device = Device::open(0)?;
    let stream = device.stream();
    let (mut input, mut output) = (device.pinned()?, device.pinned()?);
    input.fill(0.0);
    let (from, to) = (device.memory(BYTES)?, device.memory(BYTES)?);
    upload(from, &mut input, &stream)?;
    match kernel.starts_with("twice") {
        true => launch_twice(&stream, &device.kernel(kernel), from, to, COUNT as u32)?,
        false => launch(&stream, &device.kernel(kernel), shape, from + offset, to)?,
    }
    download(&mut output, to, &stream)?;
    stream.synchronize()?;
    Ok(output.values().to_vec())
}

fn sums(kernel: &str) -> Outcome {
    let output = run(kernel, shape(4, 256, 0), 0)?;
    let expected = |block: usize| (0..256).map(|index| (256 * block + index) as f32).sum::<f32>();
    Ok((0..4).all(|block| output[block] == expected(block)))
}

fn warps() -> Outcome {
    let output = run("sums_of_warps", shape(4, 256, 0), 0)?;
    let expected = |warp: usize| (0..32).map(|index| (32 * warp + index) as f32).sum::<f32>();
    Ok((0..32).all(|warp| output[warp] == expected(warp)))
}

fn reversed(shared: u32) -> Outcome {
    let output = run("reversed", shape(1, 256, shared), 0)?;
    Ok(output[..256].iter().rev().enumerate().all(|(index, value)| *value == index as f32))
}

/// A kernel that declares 2048 bytes of shared memory, and is given all that a block can have beside `less` bytes.
fn opted_in(less: i32) -> Outcome {
    let device = Device::open(0)?;
    let most = device.context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let kernel = device.kernel("counted");
    let wanted = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(wanted, most - less)?;
    let stream = device.stream();
    let (mut input, mut output) = (device.pinned()?, device.pinned()?);
    input.fill(0.0);
    let (from, to) = (device.memory(BYTES)?, device.memory(BYTES)?);
    upload(from, &mut input, &stream)?;
    launch(&stream, &kernel, shape(4, 256, (most - less).unsigned_abs()), from, to)?;
    download(&mut output, to, &stream)?;
    stream.synchronize()?;
    Ok(is_run(output.values(), 0.0, 2.0))
}

/// Calls that no program may make.
fn misuse(which: &str) -> Outcome {
    let device = Device::open(0)?;
    let stream = device.stream();
    let mut slot = device.pinned()?;
    slot.fill(0.0);
    let place = device.memory(BYTES)?;
    // SAFETY: none of these is safe; the driver has to say so.
    unsafe {
        match which {
            "copy-past-end" => result::memcpy_htod_async(place + 4, slot.values(), stream.cu_stream())?,
            "memset-past-end" => result::memset_d8_async(place, 0, BYTES + 1, stream.cu_stream())?,
            "copy-past-pinned" => {
                let longer = std::slice::from_raw_parts(slot.0, COUNT + 1);
                result::memcpy_htod_async(device.memory(2 * BYTES)?, longer, stream.cu_stream())?;
            }
            "free-twice" => {
                result::free_sync(place)?;
                result::free_sync(place)?;
            }
            "free-inside" => result::free_sync(place + 256)?,
            "pinned-freed-early" => {
                device.event().record(&stream)?;
                upload(place, &mut slot, &stream)?;
                result::free_host(slot.0.cast())?;
            }
            "event-destroyed" => {
                let event = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
                result::event::destroy(event)?;
                result::event::record(event, stream.cu_stream())?;
            }
            "too-many-threads" => launch(&stream, &device.kernel("sums"), shape(1, 512, 0), place, place)?,
            "too-much-shared" => launch(&stream, &device.kernel("reversed"), shape(1, 256, 49_153), place, place)?,
            "static-and-dynamic" => launch(&stream, &device.kernel("counted"), shape(1, 256, 47 << 10), place, place)?,
            "too-many-registers" => launch(&stream, &device.kernel("heavy"), shape(1, 512, 0), place, place)?,
            "stream-of-other-device" => {
                let other = Device::open(1)?;
                upload(place, &mut slot, &other.stream())?;
            }
            other => panic!("no misuse {other}"),
        }
    }
    stream.synchronize()?;
    Ok(true)
}

fn program(name: &str) -> Outcome {
    match name {
        "streams" => three_streams(0),
        "streams-no-wait-for-upload" => three_streams(1),
        "streams-no-wait-for-kernel" => three_streams(2),
        "streams-result-read-early" => three_streams(3),
        "slot" => slot(true),
        "slot-reused-early" => slot(false),
        "filled" => filled(true),
        "filled-late" => filled(false),
        "written" => written(true, false),
        "unwritten" => written(false, false),
        "unwritten-again" => written(false, true),
        "barrier" => sums("sums"),
        "no-barrier" => sums("sums_no_barrier"),
        "warps" => warps(),
        "divergent" => run("divergent", shape(1, 64, 0), 0).map(|_| true),
        "shared" => reversed(1024),
        "shared-overrun" => reversed(1020),
        "opted-in" => opted_in(2048),
        "opted-in-but-for-1024" => opted_in(1024),
        "in-bounds" => run("twice", shape(1, 1, 0), 0).map(|output| is_run(&output, 0.0, 2.0)),
        "out-of-bounds" => run("twice_too_far", shape(1, 1, 0), 0).map(|_| true),
        "aligned" => run("wide_copy", shape(1, 64, 0), 16).map(|output| is_run(&output[..256], 4.0, 1.0)),
        "misaligned" => run("wide_copy", shape(1, 64, 0), 4).map(|_| true),
        "libraries" => libraries::product_and_decomposition(),
        "memory" => Device::open(1).and_then(|device| {
            Ok(device.context.mem_get_info()? == (1 << 20, 1 << 20) && device.memory((1 << 20) + 1).is_err())
        }),
        other => match other.strip_prefix("rule:") {
            Some(rule) => rules::broken(rule),
            None => misuse(other),
        },
    }
}

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    match program(&name) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("wrong");
            ExitCode::from(1)
        }
        Err(error) => {
            println!("{error:?}");
            ExitCode::from(2)
        }
    }
}
