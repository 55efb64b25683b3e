//! Handles of cuBLAS and cuSOLVER: a stream, a workspace, a mode. Shared by both.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::codes::Code;
use crate::memory::{POISON, fill};
use crate::rules;
use crate::world::{self, LibraryCall, Work, World};

/// What a handle holds.
#[derive(Clone, Copy, Default)]
pub struct Handle {
    /// Device that was current when the handle was made.
    pub device: usize,
    /// Where its work goes; 0 is the device's own stream.
    pub stream: usize,
    /// Device memory lent to it, and how much.
    pub workspace: (usize, usize),
    /// Mode of arithmetic.
    pub math_mode: i32,
}

static HANDLES: LazyLock<Mutex<HashMap<usize, Handle>>> = LazyLock::new(Mutex::default);

/// All handles, locked.
pub fn handles() -> MutexGuard<'static, HashMap<usize, Handle>> {
    HANDLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new handle on the current device.
pub fn create(world: &mut World) -> Result<usize, Code> {
    let device = world.current_device()?;
    let handle = world.new_handle();
    handles().insert(handle, Handle { device, ..Handle::default() });
    Ok(handle)
}

/// The handle, or a misuse.
pub fn find(world: &mut World, handle: usize) -> Result<Handle, Code> {
    let found = handles().get(&handle).copied();
    let found =
        found.ok_or_else(|| world.breaks(rules::LIBRARY_HANDLE, "use of a library's handle that does not exist"))?;
    if world::current() != Some(found.device) {
        return Err(world.breaks(rules::LIBRARY_DEVICE, "a library's handle is used while another device is current"));
    }
    Ok(found)
}

/// Changes a handle.
pub fn change(world: &mut World, handle: usize, change: impl FnOnce(&mut Handle)) -> Result<(), Code> {
    find(world, handle)?;
    if let Some(handle) = handles().get_mut(&handle) {
        change(handle);
    }
    Ok(())
}

/// Sets the stream of a handle, which must be one of its device.
pub fn set_stream(world: &mut World, handle: usize, stream: usize) -> Result<(), Code> {
    let device = find(world, handle)?.device;
    let of = world.stream(stream)?;
    if world.streams[&of].device != device {
        return Err(world.breaks(rules::LIBRARY_STREAM, "a library's handle and its stream are of two devices"));
    }
    change(world, handle, |found| found.stream = stream)
}

/// A range that a library's call reads or writes.
pub fn operand(world: &mut World, what: &str, device: usize, address: usize, len: usize) -> Result<(), Code> {
    if len == 0 {
        return Ok(());
    }
    let text = match world.memory.device_of(address, len) {
        Ok(of) if of == device => return Ok(()),
        Ok(_) => format!("{what} lies on another device"),
        Err(text) => format!("{what} of {len} bytes: {text}"),
    };
    Err(world.breaks(rules::LIBRARY_OPERAND, &text))
}

/// What a library does to memory that was lent to it: it is not left as it was.
pub fn scribble(address: usize, len: usize) {
    fill(address, POISON, len.min(1 << 20));
}

/// Puts a library's work into a stream; `writes` is what it writes and does not read.
pub fn enqueue(
    world: &mut World,
    stream: usize,
    run: impl FnOnce() -> Result<(), String> + Send + 'static,
    writes: Vec<(usize, usize)>,
) {
    world.enqueue(stream, Work::Call(LibraryCall { run: Box::new(run), writes, is_next: false }));
}
