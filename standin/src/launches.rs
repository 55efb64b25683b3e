//! Modules and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::codes::Code;
use crate::failures::Kind;
use crate::images;
use crate::kernels::Function;
use crate::put;
use crate::rules::{self, Rule};
use crate::world::{Work, World, call};

const MAX_THREADS: c_int = 0;
const SHARED_SIZE: c_int = 1;
const CONST_SIZE: c_int = 2;
const LOCAL_SIZE: c_int = 3;
const REGISTERS: c_int = 4;
const PTX_VERSION: c_int = 5;
const BINARY_VERSION: c_int = 6;
const MAX_DYNAMIC_SHARED: c_int = 8;
const CARVEOUT: c_int = 9;

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(place: *mut usize, image: *const c_void) -> c_int {
    call(|world| {
        let device = world.current_device()?;
        if image.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        if world.config.failures.strike(Kind::Module) {
            return Err(Code::INVALID_IMAGE);
        }
        // SAFETY: an image is a fat binary, a cubin, or text that ends in a zero byte; each has four bytes at least.
        let start: [u8; 4] = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
        let text = (start.is_ascii() && start[0] != 0x7F).then(|| {
            // SAFETY: begins as text does, so it ends in a zero byte.
            unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy()
        });
        if let Some(text) = &text {
            let checked = images::check(text, world.config.driver_version, world.config.card.capability);
            checked.map_err(|(rule, text)| world.breaks(rule, &text))?;
        }
        let module = world.kernels.module(device, &start, text.as_deref()).map_err(|text| {
            eprintln!("standin: module: {text}");
            Code::INVALID_IMAGE
        })?;
        let handle = world.new_handle();
        world.kernels.modules.insert(handle, module);
        put(place, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    place: *mut usize,
    image: *const c_void,
    _count: c_uint,
    _options: *mut c_int,
    _values: *mut *mut c_void,
) -> c_int {
    cuModuleLoadData(place, image)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> c_int {
    call(|world| {
        let Some(found) = world.kernels.modules.remove(&module) else {
            return Err(world.breaks(rules::MODULE_HANDLE, "a module is unloaded that does not exist"));
        };
        if world.module_in_use(module) {
            return Err(world.breaks(rules::MODULE_BUSY, "a module is unloaded of which a kernel is under way"));
        }
        world.kernels.functions.retain(|_, function| function.module != module);
        world.working(found.device).map(|_| ())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(place: *mut usize, module: usize, name: *const c_char) -> c_int {
    call(|world| {
        if name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and the interface requires a string that ends in a zero byte.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        if !world.kernels.modules.contains_key(&module) {
            return Err(world.breaks(rules::MODULE_HANDLE, "use of a module that does not exist"));
        }
        let function = world.kernels.function(module, &name, &world.config.card);
        let function = function.map_err(|text| world.unknown(&text))?.ok_or(Code::NOT_FOUND)?;
        let handle = world.new_handle();
        world.kernels.functions.insert(handle, function);
        put(place, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> c_int {
    call(|world| {
        let opt_in = world.config.card.shared_opt_in;
        let Some(function) = world.kernels.functions.get_mut(&function) else {
            return Err(world.breaks(rules::FUNCTION_HANDLE, "use of a function that does not exist"));
        };
        match attribute {
            // "The sum of this value and the function attribute CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES cannot exceed the device
            // attribute CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN."
            MAX_DYNAMIC_SHARED => {
                let declared = function.compiled.shared;
                let bytes = usize::try_from(value).ok().filter(|bytes| bytes + declared <= opt_in);
                let Some(bytes) = bytes else {
                    let text = format!("{value} bytes of dynamic shared memory beside {declared}, of {opt_in}");
                    return Err(world.breaks(rules::SHARED_OPT_IN, &text));
                };
                function.max_shared = bytes;
                Ok(())
            }
            CARVEOUT => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(place: *mut c_int, attribute: c_int, function: usize) -> c_int {
    call(|world| {
        let Some(function) = world.kernels.functions.get(&function) else {
            return Err(world.breaks(rules::FUNCTION_HANDLE, "use of a function that does not exist"));
        };
        let capability = world.config.card.capability as c_int;
        match attribute {
            MAX_THREADS => put(place, function.max_threads() as c_int),
            SHARED_SIZE => put(place, function.compiled.shared as c_int),
            REGISTERS => put(place, function.compiled.registers as c_int),
            // No kernel has constants of its own or spills: the table's gate.
            CONST_SIZE | LOCAL_SIZE => put(place, 0),
            PTX_VERSION | BINARY_VERSION => put(place, capability),
            MAX_DYNAMIC_SHARED => put(place, function.max_shared as c_int),
            _ => Err(Code::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetName(place: *mut *const c_char, function: usize) -> c_int {
    call(|world| match world.kernels.functions.get(&function) {
        Some(function) => put(place, function.name().as_ptr()),
        None => Err(world.breaks(rules::FUNCTION_HANDLE, "use of a function that does not exist")),
    })
}

/// What is wrong with a launch's shape.
fn shape(grid: [u32; 3], block: [u32; 3], shared: usize, function: &Function) -> Option<(Rule, String)> {
    let (max_threads, max_shared) = (function.kernel.max_threads, function.max_shared);
    let threads: u64 = block.iter().map(|count| u64::from(*count)).product();
    if grid.contains(&0) || block.contains(&0) {
        return Some((rules::GRID_SIZE, "nothing to launch".into()));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > 65_535 || grid[2] > 65_535 {
        return Some((rules::GRID_SIZE, "too many blocks".into()));
    }
    if threads > u64::from(max_threads) || block[2] > 64 {
        return Some((rules::BLOCK_THREADS, format!("{threads} threads, {max_threads} are allowed")));
    }
    let text = || format!("{shared} bytes of shared memory, {max_shared} are allowed");
    (shared > max_shared).then(|| (rules::SHARED_LAUNCH, text()))
}

fn launch(
    world: &mut World,
    function: usize,
    (grid, block): ([u32; 3], [u32; 3]),
    shared: usize,
    stream: usize,
    arguments: *const *const c_void,
) -> Result<(), Code> {
    let stream = world.stream(stream)?;
    let device = world.streams[&stream].device;
    let current = world.current_device()?;
    let Some(found) = world.kernels.functions.get(&function) else {
        return Err(world.breaks(rules::FUNCTION_HANDLE, "launch of a function that does not exist"));
    };
    let name = found.name().to_string_lossy().into_owned();
    if found.device != device || current != device {
        return Err(
            world.breaks(rules::LAUNCH_CONTEXT, &format!("{name}: module, stream and context are not of one device"))
        );
    }
    if let Some((rule, text)) = shape(grid, block, shared, found) {
        return Err(world.breaks(rule, &format!("launch of {name}: {text}")));
    }
    let (threads, most) = (block.iter().product::<u32>(), found.max_threads());
    if threads > most {
        let text = format!("launch of {name}: {threads} threads, its registers allow {most}");
        return Err(world.breaks(rules::BLOCK_REGISTERS, &text));
    }
    if arguments.is_null() && !found.kernel.sizes.is_empty() {
        return Err(world.breaks(rules::LAUNCH_ARGUMENTS, &format!("launch of {name} without arguments")));
    }
    if world.config.failures.strike(Kind::Launch) {
        return Err(Code::LAUNCH_OUT_OF_RESOURCES);
    }
    if world.config.failures.strike(Kind::LaunchMemory) {
        return Err(Code::OUT_OF_MEMORY);
    }
    let seed = world.schedule.kernel_seed();
    let work = found_launch(world, function, grid, block, shared, arguments, seed)?;
    world.enqueue(stream, work);
    Ok(())
}

fn found_launch(
    world: &World,
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared: usize,
    arguments: *const *const c_void,
    seed: u64,
) -> Result<Work, Code> {
    let function = world.kernels.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
    Ok(Work::Launch(function.launch(grid, block, shared, arguments, seed)))
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: usize,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    call(|world| {
        if !extra.is_null() {
            return Err(world.unknown("packed arguments are not modelled"));
        }
        let shape = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(world, function, shape, shared as usize, stream, arguments.cast())
    })
}
