//! Devices and contexts.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::cards::{REGISTERS, SHARED_UNASKED};
use crate::codes::Code;
use crate::failures::Kind;
use crate::put;
use crate::rules;
use crate::world::{self, World, call, call_any_time};

/// Handle of a device's one context.
fn context(device: usize) -> *mut c_void {
    (0xC000_0000usize + device) as *mut c_void
}

/// The device of a context's handle; null is no context.
pub fn device_of(context: *mut c_void) -> Result<Option<usize>, Code> {
    match context as usize {
        0 => Ok(None),
        handle => handle.checked_sub(0xC000_0000).map(Some).ok_or(Code::INVALID_CONTEXT),
    }
}

fn known(world: &World, device: c_int) -> Result<usize, Code> {
    usize::try_from(device).ok().filter(|device| *device < world.devices.len()).ok_or(Code::INVALID_DEVICE)
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> c_int {
    call_any_time(|world| {
        world.initialized = !world.devices.is_empty();
        if world.initialized { Ok(()) } else { Err(Code::NO_DEVICE) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    call_any_time(|world| put(version, world.config.driver_version))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> c_int {
    let (code, name) = Code::describe(error).map_or((Code::INVALID_VALUE.0, "\0"), |(name, _)| (0, name));
    put(text, name.as_ptr().cast()).map_or_else(|error| error.0, |()| code)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: c_int, text: *mut *const c_char) -> c_int {
    let (code, what) = Code::describe(error).map_or((Code::INVALID_VALUE.0, "\0"), |(_, what)| (0, what));
    put(text, what.as_ptr().cast()).map_or_else(|error| error.0, |()| code)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    call(|world| put(count, world.devices.len() as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    call(|world| {
        known(world, ordinal)?;
        put(device, ordinal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> c_int {
    call(|world| {
        let device = known(world, device)?;
        let text = format!("{} {device}", world.config.name);
        let len = usize::try_from(len).ok().filter(|len| *len > 0).ok_or(Code::INVALID_VALUE)?;
        for (index, byte) in text.bytes().take(len - 1).chain([0]).enumerate() {
            put(name.wrapping_add(index), byte as c_char)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> c_int {
    call(|world| {
        let device = known(world, device)?;
        let mut bytes = *b"merganser-cpu-00";
        bytes[15] = b'0' + device as u8;
        put(uuid, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetPCIBusId(name: *mut c_char, len: c_int, device: c_int) -> c_int {
    call(|world| {
        let device = known(world, device)?;
        let text = format!("0000:{device:02X}:00.0");
        if len as usize <= text.len() {
            return Err(Code::INVALID_VALUE);
        }
        text.bytes().chain([0]).enumerate().try_for_each(|(index, byte)| put(name.wrapping_add(index), byte as c_char))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> c_int {
    call(|world| {
        let device = known(world, device)?;
        put(bytes, world.devices[device].total_bytes)
    })
}

/// Attributes by their number in `cuda.h`; the limits are the card's, the number of processors is small so that grids are.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> c_int {
    call(|world| {
        let device = known(world, device)? as c_int;
        let card = world.config.card;
        let answer = match attribute {
            1..=3 => 1024,                 // threads of a block; along x and y
            4 => 64,                       // along z
            5 => i32::MAX,                 // blocks along x
            6 | 7 => 65_535,               // along y, z
            8 => SHARED_UNASKED as c_int,  // shared memory of a block
            10 => 32,                      // threads of a warp
            12 | 82 => REGISTERS as c_int, // registers of a block, of a processor
            13 => 1_000_000,               // clock, kHz
            16 => 4,                       // multiprocessors
            36 => 1_000_000,               // memory clock, kHz
            37 => 64,                      // width of the memory bus, bits
            38 => 4 << 20,                 // second-level cache
            39 => card.threads_of_processor as c_int,
            19 | 31 | 41 | 115 => 1, // maps host memory, concurrent kernels, one address space, memory pools
            40 => 3,                 // copy engines
            33 => device,            // bus
            75 => (card.capability / 10) as c_int,
            76 => (card.capability % 10) as c_int,
            81 => card.shared_of_processor as c_int,
            97 => card.shared_opt_in as c_int,
            106 => card.blocks_of_processor as c_int,
            20 => world.config.compute_mode,
            18 | 32 | 34 | 35 | 50 | 78 | 79 | 80 | 83..=96 | 98..=105 => 0,
            other => {
                eprintln!("standin: attribute {other} of a device is not modelled");
                return Err(Code::INVALID_VALUE);
            }
        };
        put(value, answer)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, _device: c_int, _peer: c_int) -> c_int {
    call(|_| put(can, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(handle: *mut *mut c_void, device: c_int) -> c_int {
    call(|world| {
        let device = known(world, device)?;
        world.working(device)?;
        // Prohibited; or another program has it for itself.
        if world.config.compute_mode == 2 || world.config.failures.strike(Kind::Context) {
            return Err(Code::DEVICE_UNAVAILABLE);
        }
        world.devices[device].retained += 1;
        put(handle, context(device))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    call(|world| {
        let device = known(world, device)?;
        match world.devices[device].retained.checked_sub(1) {
            Some(rest) => world.devices[device].retained = rest,
            None => return Err(world.breaks(rules::CONTEXT_RELEASED, "a context is released that nobody holds")),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    call(|world| {
        let device = device_of(context)?;
        if let Some(device) = device {
            known(world, device as c_int)?;
        }
        world::set_current(device);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(handle: *mut *mut c_void) -> c_int {
    call(|_| put(handle, world::current().map_or(std::ptr::null_mut(), context)))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: *mut c_int) -> c_int {
    call(|world| put(device, world.current_device()? as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: c_uint) -> c_int {
    call(|world| world.current_device().map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> c_int {
    call(|_| put(least, 0).and_then(|()| put(greatest, -5)))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> c_int {
    call(|world| {
        let device = world.current_device()?;
        world.drive(crate::schedule::Goal::Device(device))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    call(|world| {
        let device = world.current_device()?;
        let device = &world.devices[device];
        put(free, device.total_bytes - device.used_bytes)?;
        put(total, device.total_bytes)
    })
}
