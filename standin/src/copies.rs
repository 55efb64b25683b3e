//! Memory: allocation, copies, fills.
//!
//! A copy from pinned memory reads it when it runs; the caller may not touch it before. A copy to pinned memory poisons it when
//! it is asked for, unless other work still needs what is there. Pageable memory is read before the call returns, and written
//! before the call returns.

use std::ffi::{c_int, c_uint, c_void};

use crate::codes::Code;
use crate::failures::Kind;
use crate::memory::{Block, Owner, POISON, fill, read};
use crate::put;
use crate::rules;
use crate::sabotage::Call;
use crate::schedule::Goal;
use crate::world::{Work, World, call};

fn allocate(world: &mut World, place: *mut u64, len: usize) -> Result<(), Code> {
    let device = world.current_device()?;
    if len == 0 {
        return Err(world.breaks(rules::ALLOCATION_SIZE, "an allocation of nothing"));
    }
    let fails = world.config.failures.strike_alloc(len);
    let free = world.devices[device].total_bytes - world.devices[device].used_bytes;
    if fails || len > free {
        return Err(Code::OUT_OF_MEMORY);
    }
    let address = world.memory.allocate(len, Owner::Device(device)).ok_or(Code::OUT_OF_MEMORY)?;
    let device = &mut world.devices[device];
    device.used_bytes += len;
    device.peak_bytes = device.peak_bytes.max(device.used_bytes);
    put(place, address as u64)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(place: *mut u64, len: usize) -> c_int {
    call(|world| allocate(world, place, len))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(place: *mut u64, len: usize, stream: usize) -> c_int {
    call(|world| {
        world.stream(stream)?;
        allocate(world, place, len)
    })
}

/// The device of a block that is to be freed; freeing anything else is a misuse.
fn freed(world: &mut World, address: u64) -> Result<usize, Code> {
    match world.memory.at(address as usize) {
        Some(Block { owner: Owner::Device(device), .. }) => Ok(device),
        _ => Err(world.breaks(rules::FREE_KNOWN, &format!("free of {address:#x}, which is no block of a device"))),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    call(|world| {
        let device = freed(world, address)?;
        let len = world.memory.at(address as usize).map_or(0, |block| block.len);
        if world.memory_in_use(address as usize, len) {
            return Err(world.breaks(rules::FREE_BUSY, "memory is freed that work under way still uses"));
        }
        world.give_back(address as usize);
        world.working(device).map(|_| ())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: usize) -> c_int {
    call(|world| {
        let device = freed(world, address)?;
        match world.stream(stream) {
            Ok(stream) => world.enqueue(stream, Work::Free { address: address as usize }),
            Err(code) if world.working(device).is_err() => {
                world.give_back(address as usize);
                return Err(code);
            }
            Err(code) => return Err(code),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(place: *mut *mut c_void, len: usize, _flags: c_uint) -> c_int {
    call(|world| {
        world.current_device()?;
        if len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        if world.config.failures.strike(Kind::Pinned) {
            return Err(Code::OUT_OF_MEMORY);
        }
        let address = world.memory.allocate(len, Owner::Pinned).ok_or(Code::OUT_OF_MEMORY)?;
        put(place, address as *mut c_void)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(place: *mut c_void) -> c_int {
    call(|world| match world.memory.at(place as usize) {
        Some(Block { owner: Owner::Pinned, len }) => {
            if world.pinned_in_use(place as usize, len) {
                return Err(world.breaks(rules::PINNED_BUSY, "pinned memory is freed while a copy still needs it"));
            }
            world.memory.release(place as usize);
            Ok(())
        }
        _ => Err(world.breaks(rules::PINNED_KNOWN, "free of host memory that the driver did not give")),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(place: *mut c_void, len: usize, _flags: c_uint) -> c_int {
    call(|world| {
        world.current_device()?;
        if world.config.failures.strike(Kind::Pinned) {
            return Err(Code::OUT_OF_MEMORY);
        }
        match world.memory.register(place as usize, len) {
            true => Ok(()),
            false => Err(Code::HOST_MEMORY_ALREADY_REGISTERED),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(place: *mut c_void) -> c_int {
    call(|world| match world.memory.at(place as usize) {
        Some(Block { owner: Owner::Registered, len }) => {
            if world.pinned_in_use(place as usize, len) {
                return Err(world.breaks(rules::PINNED_BUSY, "memory is unregistered while a copy still needs it"));
            }
            world.memory.release(place as usize);
            Ok(())
        }
        _ => Err(Code::HOST_MEMORY_NOT_REGISTERED),
    })
}

/// A stream for a copy on a device; copies between a stream and another device's memory are a misuse.
fn stream_for(world: &mut World, stream: usize, device: usize) -> Result<usize, Code> {
    let handle = world.stream(stream)?;
    if world.streams[&handle].device != device {
        return Err(world.breaks(rules::COPY_CONTEXT, "a copy in a stream of another device"));
    }
    if world.config.failures.strike(Kind::Copy) {
        return Err(Code::UNKNOWN);
    }
    Ok(handle)
}

fn upload(world: &mut World, to: u64, from: *const c_void, len: usize, stream: usize) -> Result<usize, Code> {
    let (to, from) = (to as usize, from as usize);
    let device = world.device_range("upload", to, len)?;
    let pinned = world.host_range("upload", from, len)?;
    let stream = stream_for(world, stream, device)?;
    world.copied_bytes[0] += len as u64;
    if world.idle(device) {
        fill(to, POISON, len);
    }
    let work = match pinned {
        true => Work::Copy { to, from, len, host: Some(from) },
        false => Work::Upload { to, bytes: read(from, len) },
    };
    if !world.config.sabotage.removes(Call::Upload) {
        world.enqueue(stream, work);
    }
    Ok(stream)
}

fn download(world: &mut World, to: *mut c_void, from: u64, len: usize, stream: usize) -> Result<usize, Code> {
    let (to, from) = (to as usize, from as usize);
    let device = world.device_range("download", from, len)?;
    let pinned = world.host_range("download", to, len)?;
    let stream = stream_for(world, stream, device)?;
    world.copied_bytes[1] += len as u64;
    if pinned {
        if !world.pinned_in_use(to, len) {
            fill(to, POISON, len);
        }
        world.enqueue(stream, Work::Copy { to, from, len, host: Some(to) });
    } else {
        world.enqueue(stream, Work::Download { to, from, len });
        world.drive(Goal::Stream(stream))?;
    }
    Ok(stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => upload(world, to, from, len, stream).map(|_| ()),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => upload(world, to, from, len, 0).and_then(|stream| world.drive(Goal::Stream(stream))),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => download(world, to, from, len, stream).map(|_| ()),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => download(world, to, from, len, 0).and_then(|stream| world.drive(Goal::Stream(stream))),
    })
}

fn within(world: &mut World, to: u64, from: u64, len: usize, stream: usize) -> Result<usize, Code> {
    let (to, from) = (to as usize, from as usize);
    let device = world.device_range("copy", to, len)?;
    if world.device_range("copy", from, len)? != device {
        return Err(world.breaks(rules::COPY_CONTEXT, "a copy between devices"));
    }
    let stream = stream_for(world, stream, device)?;
    world.enqueue(stream, Work::Copy { to, from, len, host: None });
    Ok(stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => within(world, to, from, len, stream).map(|_| ()),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => within(world, to, from, len, 0).and_then(|stream| world.drive(Goal::Stream(stream))),
    })
}

fn set(world: &mut World, to: u64, len: usize, stream: usize, work: Work) -> Result<usize, Code> {
    let device = world.device_range("memset", to as usize, len)?;
    let stream = stream_for(world, stream, device)?;
    let clears = matches!(work, Work::Fill { value: 0, .. } | Work::FillWords { value: 0, .. });
    if !(clears && world.config.sabotage.removes(Call::Clear)) {
        world.enqueue(stream, work);
    }
    Ok(stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, len: usize, stream: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => set(world, to, len, stream, Work::Fill { to: to as usize, value, len }).map(|_| ()),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: u8, len: usize) -> c_int {
    call(|world| match len {
        0 => Ok(()),
        _ => set(world, to, len, 0, Work::Fill { to: to as usize, value, len })
            .and_then(|stream| world.drive(Goal::Stream(stream))),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize) -> c_int {
    call(|world| {
        if count == 0 {
            return Ok(());
        }
        if !to.is_multiple_of(4) {
            return Err(world.breaks(rules::SET_ALIGNMENT, "words are set at an address that is no multiple of 4"));
        }
        let len = count.checked_mul(4).ok_or(Code::INVALID_VALUE)?;
        set(world, to, len, stream, Work::FillWords { to: to as usize, value, count }).map(|_| ())
    })
}
