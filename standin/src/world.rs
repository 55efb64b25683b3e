//! All state of the stand-in behind one lock: devices, streams, events, memory, modules. Whatever runs, runs under this lock,
//! on the thread whose call drives it; so one kernel runs at a time and shared state needs no other care.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::codes::Code;
use crate::config::Config;
use crate::failures::Kind;
use crate::kernels::{Kernels, Launch};
use crate::memory::{self, Memory, Owner};
use crate::nvrtc::Programs;
use crate::order::{Order, Touched};
use crate::rules::{self, Answer, Rule};
use crate::schedule::Schedule;

/// A device.
#[derive(Default)]
pub struct Device {
    /// The error that every call returns from now on.
    pub lost: Option<Code>,
    /// Bytes that it has.
    pub total_bytes: usize,
    /// Bytes that are allocated.
    pub used_bytes: usize,
    /// The most that ever were.
    pub peak_bytes: usize,
    /// How often its context is held.
    pub retained: u64,
}

/// A queue of work.
pub struct Stream {
    /// Index of its device.
    pub device: usize,
    /// What is still to be done, in order.
    pub queue: std::collections::VecDeque<Work>,
    /// Destroyed by the program; goes once its queue is empty.
    pub destroyed: bool,
}

/// An event. Its records are numbered; a wait is for the number that was the last when it was asked for.
pub struct Event {
    /// Index of its device.
    pub device: usize,
    /// Whether it takes the time.
    pub timing: bool,
    /// Records asked for.
    pub recorded: u64,
    /// Records that have happened.
    pub done: u64,
    /// When the last one happened.
    pub at: Option<Instant>,
    /// Destroyed by the program; work in queues may still name it.
    pub destroyed: bool,
}

/// One entry of a stream's queue.
pub enum Work {
    /// Copies between blocks, or from or to pinned memory, whose range is `host`.
    Copy { to: usize, from: usize, len: usize, host: Option<usize> },
    /// Copies what was taken from pageable memory when the copy was asked for.
    Upload { to: usize, bytes: Vec<u8> },
    /// Copies to pageable memory; the caller waits for it.
    Download { to: usize, from: usize, len: usize },
    /// Fills bytes.
    Fill { to: usize, value: u8, len: usize },
    /// Fills words.
    FillWords { to: usize, value: u32, count: usize },
    /// Runs a kernel.
    Launch(Launch),
    /// Marks an event's record as happened.
    Record { event: usize, number: u64 },
    /// Goes on once an event's record has happened.
    Wait { event: usize, number: u64 },
    /// Frees device memory.
    Free { address: usize },
    /// Work of a library. Its operands were checked when it was asked for.
    Call(LibraryCall),
}

/// Work of a library.
pub struct LibraryCall {
    /// Does it.
    pub run: Box<dyn FnOnce() -> Result<(), String> + Send>,
    /// Memory that it writes and does not read: address, bytes. Once nothing is left that comes before it, nobody may look there
    /// until it has run, and poison lies there.
    pub writes: Vec<(usize, usize)>,
    /// Whether that is so.
    pub is_next: bool,
}

impl Work {
    /// The memory that it touches, where that is known.
    fn touched(&self) -> Touched {
        match *self {
            Work::Copy { to, from, len, .. } | Work::Download { to, from, len } => {
                Some(vec![(to, len, true), (from, len, false)])
            }
            Work::Upload { to, ref bytes } => Some(vec![(to, bytes.len(), true)]),
            Work::Fill { to, len, .. } => Some(vec![(to, len, true)]),
            Work::FillWords { to, count, .. } => Some(vec![(to, 4 * count, true)]),
            Work::Launch(_) | Work::Free { .. } | Work::Call(_) => None,
            Work::Record { .. } | Work::Wait { .. } => Some(Vec::new()),
        }
    }
}

/// The state.
pub struct World {
    /// What the environment asked for.
    pub config: Config,
    /// By ordinal.
    pub devices: Vec<Device>,
    /// By handle.
    pub streams: BTreeMap<usize, Stream>,
    /// By handle.
    pub events: HashMap<usize, Event>,
    /// Blocks.
    pub memory: Memory,
    /// The kernels and the modules that name them.
    pub kernels: Kernels,
    /// Programs given to NVRTC.
    pub programs: Programs,
    /// Who goes next.
    pub schedule: Schedule,
    /// What comes after what.
    pub order: Order,
    /// Misuses seen.
    pub misuses: u64,
    /// Whether the driver was started.
    pub initialized: bool,
    /// Events made that take the time.
    pub timed_events: u64,
    /// Bytes copied between host and device.
    pub copied_bytes: [u64; 2],
    /// Operations of matrix products, in f32 and in f64.
    pub product_operations: [u64; 2],
    /// Matrices whose eigenvectors were asked for, and the calls that did; the sum of the cubes of their sides.
    pub eigen: [u64; 3],
    next_handle: usize,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new()));

thread_local! {
    /// The calling thread's current context: the device's ordinal.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The state, locked.
pub fn lock() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state if nobody holds it.
pub fn try_lock() -> Option<MutexGuard<'static, World>> {
    WORLD.try_lock().ok()
}

/// Runs one call of the driver's interface, which must have been started.
pub fn call(body: impl FnOnce(&mut World) -> Result<(), Code>) -> i32 {
    let mut world = lock();
    if !world.initialized {
        return world.breaks(rules::INITIALIZED, "a call before cuInit").0;
    }
    run(&mut world, body)
}

/// Runs one call that may come before the driver is started.
pub fn call_any_time(body: impl FnOnce(&mut World) -> Result<(), Code>) -> i32 {
    run(&mut lock(), body)
}

fn run(world: &mut World, body: impl FnOnce(&mut World) -> Result<(), Code>) -> i32 {
    if world.config.failures.strike(Kind::Lost) {
        let device = CURRENT.get().unwrap_or(0);
        world.lose(device, Code::UNKNOWN, "injected: the device is lost");
    }
    match body(world) {
        Ok(()) => 0,
        Err(code) => code.0,
    }
}

/// Sets the calling thread's context.
pub fn set_current(device: Option<usize>) {
    CURRENT.set(device);
}

/// The calling thread's context.
pub fn current() -> Option<usize> {
    CURRENT.get()
}

/// Handles of the streams that a device has from the start.
fn null_stream(device: usize) -> usize {
    0x100 + device
}

/// The first handle that is given to the program; those below are of streams that were there.
pub const FIRST_HANDLE: usize = 0x5000_0000;

impl World {
    fn new() -> World {
        let config = Config::from_environment();
        let size = |device: usize| config.memory_bytes.get(device).or(config.memory_bytes.last()).copied().unwrap_or(0);
        let devices: Vec<_> =
            (0..config.devices).map(|device| Device { total_bytes: size(device), ..Device::default() }).collect();
        let stream = |device| Stream { device, queue: Default::default(), destroyed: false };
        let streams = (0..config.devices).map(|device| (null_stream(device), stream(device))).collect();
        crate::report::at_exit();
        World {
            schedule: Schedule::new(config.seed),
            kernels: Kernels::new(config.kernels.clone(), config.sabotage.barrier.clone()),
            programs: Programs::default(),
            devices,
            streams,
            events: HashMap::new(),
            memory: Memory::default(),
            order: Order::default(),
            misuses: 0,
            initialized: false,
            timed_events: 0,
            copied_bytes: [0; 2],
            product_operations: [0; 2],
            eigen: [0; 3],
            next_handle: FIRST_HANDLE,
            config,
        }
    }

    /// A number that no handle had before.
    pub fn new_handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    /// The device of the calling thread, if it works.
    pub fn current_device(&mut self) -> Result<usize, Code> {
        match CURRENT.get() {
            Some(device) => self.working(device),
            None => Err(self.breaks(rules::CONTEXT_CURRENT, "a call without a current context")),
        }
    }

    /// `device`, unless it is lost.
    pub fn working(&self, device: usize) -> Result<usize, Code> {
        match self.devices.get(device) {
            None => Err(Code::INVALID_DEVICE),
            Some(Device { lost: Some(code), .. }) => Err(*code),
            Some(_) => Ok(device),
        }
    }

    /// A use that a rule forbids: said aloud. Unless programs may try it, it is counted and remembered by the device, or
    /// the process ends here.
    pub fn breaks(&mut self, rule: Rule, text: &str) -> Code {
        match rule.answer {
            Answer::Tried(code) => {
                eprintln!("standin: {text} ({}: {})", rule.name, rule.source);
                Code(code)
            }
            Answer::Code(code) => {
                self.misuses += 1;
                eprintln!("standin: misuse: {text} ({}: {})", rule.name, rule.source);
                self.lose(CURRENT.get().unwrap_or(0), Code(code), text);
                Code(code)
            }
            Answer::Stop => {
                eprintln!("standin: misuse: {text} ({}: {}); what comes of it is undefined", rule.name, rule.source);
                crate::report::stop()
            }
        }
    }

    /// A use that the stand-in does not model.
    pub fn unknown(&mut self, text: &str) -> Code {
        self.misuses += 1;
        eprintln!("standin: misuse: {text}");
        self.lose(CURRENT.get().unwrap_or(0), Code::NOT_SUPPORTED, text);
        Code::NOT_SUPPORTED
    }

    /// From now on every call that concerns the device fails.
    pub fn lose(&mut self, device: usize, code: Code, text: &str) {
        if let Some(device) = self.devices.get_mut(device)
            && device.lost.is_none()
        {
            eprintln!("standin: error {}: {text}", code.0);
            device.lost = Some(code);
        }
    }

    /// The stream behind a handle, 0 being that of the current context.
    pub fn stream(&mut self, handle: usize) -> Result<usize, Code> {
        let handle = match handle {
            0 => null_stream(self.current_device()?),
            1 | 2 => return Err(self.unknown("the special stream handles are not modelled")),
            handle => handle,
        };
        match self.streams.get(&handle) {
            Some(stream) if !stream.destroyed => {
                let device = stream.device;
                self.working(device)?;
                Ok(handle)
            }
            _ => Err(self.breaks(rules::STREAM_HANDLE, "use of a stream that does not exist")),
        }
    }

    /// The event behind a handle.
    pub fn event(&mut self, handle: usize) -> Result<&mut Event, Code> {
        if self.events.get(&handle).is_none_or(|event| event.destroyed) {
            return Err(self.breaks(rules::EVENT_HANDLE, "use of an event that does not exist or was destroyed"));
        }
        self.events.get_mut(&handle).ok_or(Code::INVALID_HANDLE)
    }

    /// Device of a range; a range that is not a device's is a misuse.
    pub fn device_range(&mut self, what: &str, address: usize, len: usize) -> Result<usize, Code> {
        self.memory
            .device_of(address, len)
            .map_err(|text| self.breaks(rules::COPY_RANGE, &format!("{what} of {len} bytes: {text}")))
    }

    /// Whether a host range is pinned; one that crosses the end of a pinned block is a misuse.
    pub fn host_range(&mut self, what: &str, address: usize, len: usize) -> Result<bool, Code> {
        self.memory
            .is_pinned(address, len)
            .map_err(|text| self.breaks(rules::COPY_RANGE, &format!("{what} of {len} bytes: {text}")))
    }

    /// What the program has made and not destroyed: streams, events, modules, handles of libraries, page-locked blocks.
    pub fn left(&self) -> usize {
        let streams = self.streams.iter().filter(|(handle, stream)| **handle >= FIRST_HANDLE && !stream.destroyed);
        let events = self.events.values().filter(|event| !event.destroyed);
        let (modules, handles) = (self.kernels.modules.len(), crate::libraries::handles().len());
        streams.count() + events.count() + modules + handles + self.memory.pinned_blocks()
    }

    /// Puts work into a stream, then lets the schedule run what it likes.
    pub fn enqueue(&mut self, stream: usize, work: Work) {
        // It is kept for the report alone.
        if self.config.report.is_some() {
            match &work {
                Work::Record { event, .. } => self.order.record(stream, *event),
                Work::Wait { event, .. } => self.order.wait(stream, *event),
                _ => self.order.work(stream, work.touched()),
            }
        }
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.queue.push_back(work);
        }
        self.spoil(stream);
        self.run_ahead();
    }

    /// Puts poison where the next work of a stream writes what it has not read.
    pub fn spoil(&mut self, stream: usize) {
        let Some(Stream { device, queue, .. }) = self.streams.get_mut(&stream) else { return };
        let Some(Work::Call(call)) = queue.front_mut() else { return };
        if call.is_next || self.devices[*device].lost.is_some() {
            return;
        }
        call.is_next = true;
        for (address, len) in &call.writes {
            if let Ok(Some(_)) = self.memory.holds(*address, *len) {
                memory::fill(*address, memory::POISON, *len);
            }
        }
    }

    /// Whether any work in a queue uses pinned memory that overlaps a range.
    pub fn pinned_in_use(&self, address: usize, len: usize) -> bool {
        let overlaps = |start: usize, bytes: usize| start < address + len && address < start + bytes;
        self.is_to_be_done(|work| matches!(work, Work::Copy { len, host: Some(host), .. } if overlaps(*host, *len)))
    }

    /// Whether work that is still to be done holds for this: of devices that are lost nothing is.
    fn is_to_be_done(&self, holds: impl Fn(&Work) -> bool) -> bool {
        let works = |stream: &&Stream| self.devices[stream.device].lost.is_none();
        self.streams.values().filter(works).flat_map(|stream| &stream.queue).any(holds)
    }

    /// Whether work that is still to be done uses memory of a device, as far as that can be seen: of a library's call, what it
    /// writes.
    pub fn memory_in_use(&self, address: usize, len: usize) -> bool {
        let overlaps = |start: usize, bytes: usize| start < address + len && address < start + bytes;
        self.is_to_be_done(|work| match work {
            Work::Launch(launch) => launch.names(address, len),
            Work::Call(call) => call.writes.iter().any(|(start, bytes)| overlaps(*start, *bytes)),
            other => other.touched().into_iter().flatten().any(|(start, bytes, _)| overlaps(start, bytes)),
        })
    }

    /// Whether a kernel of a module is still to run.
    pub fn module_in_use(&self, module: usize) -> bool {
        self.is_to_be_done(|work| matches!(work, Work::Launch(launch) if launch.module == module))
    }

    /// Whether a device has nothing to do.
    pub fn idle(&self, device: usize) -> bool {
        self.streams.values().all(|stream| stream.device != device || stream.queue.is_empty())
    }

    /// Does one piece of work. On a lost device nothing happens but that waits end.
    pub fn perform(&mut self, device: usize, work: Work) {
        if let Work::Record { event, number } = work {
            if let Some(event) = self.events.get_mut(&event) {
                event.done = event.done.max(number);
                event.at = Some(Instant::now());
            }
            return;
        }
        if let Work::Free { address } = work {
            return self.give_back(address);
        }
        if self.devices[device].lost.is_some() {
            return;
        }
        let done = match work {
            Work::Copy { to, from, len, .. } => self
                .still_there(to, len)
                .and_then(|()| self.still_there(from, len))
                .map(|()| memory::copy(to, from, len)),
            Work::Upload { to, bytes } => {
                self.still_there(to, bytes.len()).map(|()| memory::copy(to, bytes.as_ptr() as usize, bytes.len()))
            }
            Work::Download { to, from, len } => self.still_there(from, len).map(|()| memory::copy(to, from, len)),
            Work::Fill { to, value, len } => self.still_there(to, len).map(|()| memory::fill(to, value, len)),
            Work::FillWords { to, value, count } => {
                self.still_there(to, 4 * count).map(|()| memory::fill_words(to, value, count))
            }
            Work::Launch(launch) => {
                if self.config.failures.strike(Kind::Fault) {
                    return self.lose(device, Code::ILLEGAL_ADDRESS, "injected: a kernel faults");
                }
                let ran = self.kernels.run(launch);
                return ran.unwrap_or_else(|text| {
                    let of_barrier = text.contains("__syncthreads") || text.contains("collective");
                    self.breaks(if of_barrier { rules::KERNEL_BARRIER } else { rules::KERNEL_SHARED }, &text);
                });
            }
            Work::Call(call) => {
                return (call.run)().unwrap_or_else(|text| {
                    self.breaks(rules::EIGEN_HOST, &text);
                });
            }
            Work::Record { .. } | Work::Wait { .. } | Work::Free { .. } => Ok(()),
        };
        if let Err(text) = done {
            self.breaks(rules::FREE_BUSY, &text);
        }
    }

    fn still_there(&self, address: usize, len: usize) -> Result<(), String> {
        match self.memory.holds(address, len) {
            Ok(Some(_)) => Ok(()),
            _ => Err(format!("memory of a copy at {address:#x} was freed before the copy ran")),
        }
    }

    /// Frees device memory.
    pub fn give_back(&mut self, address: usize) {
        if let Some(memory::Block { len, owner: Owner::Device(device) }) = self.memory.at(address) {
            self.devices[device].used_bytes -= len;
            self.memory.release(address);
        }
    }
}
