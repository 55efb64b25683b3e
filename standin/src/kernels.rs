//! The kernels: a shared object made of `kernels/*.cu` by the host's compiler (see `shim/`), and the modules that name them.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::{Path, PathBuf};

use crate::cards::{Card, SHARED_UNASKED};
use crate::compiled::{self, Compiled};
use crate::sabotage::Barrier;

type CountFn = extern "C" fn() -> c_int;
type DescribeFn = extern "C" fn(c_int, *mut *const c_char, *mut c_int, *mut *const c_int, *mut c_int);
type LaunchFn = extern "C" fn(c_int, *const c_uint, *const c_uint, usize, *const *mut c_void, u64) -> *const c_char;
type RemoveFn = extern "C" fn(*const c_char, c_int);
type RemovalsFn = extern "C" fn() -> c_ulonglong;
type SourcesFn = extern "C" fn() -> *const c_char;

/// A kernel of the shared object.
#[derive(Clone)]
pub struct Kernel {
    index: c_int,
    name: CString,
    /// Bytes of every parameter.
    pub sizes: Vec<usize>,
    /// Threads a block may have, from `__launch_bounds__` or 1024.
    pub max_threads: u32,
}

/// A kernel as a module gave it out.
pub struct Function {
    /// Which.
    pub kernel: Kernel,
    /// Device of its module.
    pub device: usize,
    /// The module.
    pub module: usize,
    /// Dynamic shared memory that a launch may have.
    pub max_shared: usize,
    /// What the device's compiler made of it.
    pub compiled: Compiled,
}

/// A module: the kernels that its image names, all where it does not tell.
pub struct Module {
    /// Device on which it was loaded.
    pub device: usize,
    names: Option<Vec<String>>,
}

/// A kernel, its grid and its arguments.
pub struct Launch {
    /// Index of the kernel in the shared object.
    kernel: c_int,
    /// The module that it came with.
    pub module: usize,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: usize,
    arguments: Vec<Vec<u64>>,
    seed: u64,
}

/// What was loaded from the shared object.
struct Library {
    launch: LaunchFn,
    removals: RemovalsFn,
    kernels: HashMap<String, Kernel>,
    sources: String,
}

/// Kernels, modules, functions.
pub struct Kernels {
    path: Option<PathBuf>,
    removed: Option<Barrier>,
    loaded: Option<Library>,
    /// By handle.
    pub modules: HashMap<usize, Module>,
    /// By handle.
    pub functions: HashMap<usize, Function>,
}

impl Kernels {
    /// Nothing is loaded until a module is.
    pub fn new(path: Option<PathBuf>, removed: Option<Barrier>) -> Kernels {
        Kernels { path, removed, loaded: None, modules: HashMap::new(), functions: HashMap::new() }
    }

    /// How often a thread came past the barrier that was taken out.
    pub fn removals(&self) -> u64 {
        self.loaded.as_ref().map_or(0, |library| (library.removals)())
    }

    /// The source that the kernels were made from, every file of it.
    pub fn sources(&mut self) -> Result<&str, String> {
        Ok(&self.loaded()?.sources)
    }

    /// A module of an image: a fat binary or cubin (which does not tell its kernels), or text that does.
    ///
    /// # Errors
    /// In words: the image is none of these, or names a kernel that the host's build lacks.
    pub fn module(&mut self, device: usize, image: &[u8; 4], text: Option<&str>) -> Result<Module, String> {
        let library = self.loaded()?;
        let names = match image {
            [0x50, 0xED, 0x55, 0xBA] | [0x7F, b'E', b'L', b'F'] => None,
            _ => {
                let text = text.ok_or("an image that is neither a fat binary, a cubin nor text")?;
                let names: Vec<_> = text.split(".entry").skip(1).filter_map(entry_name).collect();
                if names.is_empty() {
                    return Err("a text without an .entry".into());
                }
                if let Some(name) = names.iter().find(|name| !library.kernels.contains_key(*name)) {
                    return Err(format!("kernel {name} is not in the stand-in's build"));
                }
                Some(names)
            }
        };
        Ok(Module { device, names })
    }

    /// A kernel of a module, as compiled for a card; `None` for one that the module lacks.
    ///
    /// # Errors
    /// In words: no table says what the device's compiler makes of it.
    pub fn function(&mut self, module: usize, name: &str, card: &Card) -> Result<Option<Function>, String> {
        let Some(Module { device, names }) = self.modules.get(&module) else { return Ok(None) };
        if names.as_ref().is_some_and(|names| !names.iter().any(|known| known == name)) {
            return Ok(None);
        }
        let device = *device;
        let Some(kernel) = self.loaded()?.kernels.get(name).cloned() else { return Ok(None) };
        let compiled = compiled::of(name, card.capability).ok_or_else(|| {
            format!("docs/cuda-kernels.md has no row for the kernel {name}; scripts/cuda/kernel-report writes it")
        })?;
        // As the manual has it: what needs no asking less what the kernel declares.
        let max_shared = SHARED_UNASKED.saturating_sub(compiled.shared);
        Ok(Some(Function { kernel, device, module, max_shared, compiled }))
    }

    /// Runs a grid to its end.
    ///
    /// # Errors
    /// What the kernel did that no kernel may, in words.
    pub fn run(&mut self, launch: Launch) -> Result<(), String> {
        let library = self.loaded()?;
        let pointers: Vec<_> = launch.arguments.iter().map(|argument| argument.as_ptr() as *mut c_void).collect();
        let (grid, block) = (launch.grid.as_ptr(), launch.block.as_ptr());
        let error = (library.launch)(launch.kernel, grid, block, launch.shared, pointers.as_ptr(), launch.seed);
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: the shared object returns null or a string of its own that ends in a zero byte.
        Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
    }

    fn loaded(&mut self) -> Result<&Library, String> {
        if self.loaded.is_none() {
            let path = match &self.path {
                Some(path) => path.clone(),
                None => beside_us().ok_or("the stand-in does not know where it lies")?,
            };
            self.loaded = Some(load(&path, self.removed.as_ref())?);
        }
        self.loaded.as_ref().ok_or_else(|| "no kernels".into())
    }
}

impl Launch {
    /// Whether an argument, or a part of one, is an address of so many bytes from here on.
    pub fn names(&self, address: usize, len: usize) -> bool {
        let within = |word: &u64| (*word as usize).checked_sub(address).is_some_and(|offset| offset < len);
        self.arguments.iter().flatten().any(within)
    }
}

impl Function {
    /// A launch, its arguments copied as the driver does. Every argument points to as many bytes as the kernel takes.
    pub fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        arguments: *const *const c_void,
        seed: u64,
    ) -> Launch {
        let copy = |(index, size): (usize, &usize)| {
            let mut words = vec![0u64; size.div_ceil(8)];
            // SAFETY: the caller of cuLaunchKernel passes one pointer per parameter, each to a value of the parameter's type.
            unsafe {
                let argument = *arguments.add(index);
                std::ptr::copy_nonoverlapping(argument.cast::<u8>(), words.as_mut_ptr().cast::<u8>(), *size);
            }
            words
        };
        let arguments = self.kernel.sizes.iter().enumerate().map(copy).collect();
        Launch { kernel: self.kernel.index, module: self.module, grid, block, shared, arguments, seed }
    }

    /// Threads that a block may have: by its launch bounds, and by its registers.
    pub fn max_threads(&self) -> u32 {
        self.kernel.max_threads.min(Card::threads_by_registers(self.compiled.registers))
    }

    /// The kernel's name.
    pub fn name(&self) -> &CStr {
        &self.kernel.name
    }
}

fn entry_name(after: &str) -> Option<String> {
    let after = after.trim_start();
    let end = after.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(after.len());
    (end > 0).then(|| after[..end].to_owned())
}

/// `libkernels.so` in the folder through which the stand-in itself was found.
fn beside_us() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is one of this library's functions, and `info` has room for the answer.
    let found = unsafe { libc::dladdr(beside_us as *const c_void, info.as_mut_ptr()) };
    if found == 0 {
        return None;
    }
    // SAFETY: dladdr succeeded, so it filled the structure, with a name that ends in a zero byte.
    let name = unsafe { CStr::from_ptr(info.assume_init().dli_fname) };
    Some(Path::new(name.to_str().ok()?).parent()?.join("libkernels.so"))
}

fn load(path: &Path, removed: Option<&Barrier>) -> Result<Library, String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: loads the object that this project's script built; it is never unloaded.
    let object = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if object.is_null() {
        // SAFETY: after a failed dlopen, dlerror returns a string.
        let reason = unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy();
        return Err(format!("{}: {reason}", path.display()));
    }
    let symbol = |name: &CStr| {
        // SAFETY: `object` is open.
        let address = unsafe { libc::dlsym(object, name.as_ptr()) };
        if address.is_null() { Err(format!("{}: no {name:?}", path.display())) } else { Ok(address) }
    };
    // SAFETY: `shim/runtime.cpp` defines these six with these types.
    let (count, describe, launch, sources, remove, removals) = unsafe {
        (
            std::mem::transmute::<*mut c_void, CountFn>(symbol(c"shim_count")?),
            std::mem::transmute::<*mut c_void, DescribeFn>(symbol(c"shim_describe")?),
            std::mem::transmute::<*mut c_void, LaunchFn>(symbol(c"shim_launch")?),
            std::mem::transmute::<*mut c_void, SourcesFn>(symbol(c"shim_sources")?),
            std::mem::transmute::<*mut c_void, RemoveFn>(symbol(c"shim_remove")?),
            std::mem::transmute::<*mut c_void, RemovalsFn>(symbol(c"shim_removals")?),
        )
    };
    if let Some(Barrier { file, line }) = removed {
        // The object keeps the pointer: the name lives as long as the process.
        remove(file.clone().into_raw(), *line);
    }
    let mut kernels = HashMap::new();
    for index in 0..count() {
        let (mut name, mut sizes, mut parameters, mut threads) = (std::ptr::null(), std::ptr::null(), 0, 0);
        describe(index, &mut name, &mut parameters, &mut sizes, &mut threads);
        // SAFETY: shim_describe gives a name that ends in a zero byte and as many sizes as it says, both for ever.
        let (name, sizes) = unsafe { (CStr::from_ptr(name), std::slice::from_raw_parts(sizes, parameters as usize)) };
        let sizes = sizes.iter().map(|size| *size as usize).collect();
        let kernel = Kernel { index, name: name.to_owned(), sizes, max_threads: threads as u32 };
        kernels.insert(name.to_string_lossy().into_owned(), kernel);
    }
    // SAFETY: shim_sources gives a string that ends in a zero byte.
    let sources = unsafe { CStr::from_ptr(sources()) }.to_string_lossy().into_owned();
    Ok(Library { launch, removals, kernels, sources })
}
