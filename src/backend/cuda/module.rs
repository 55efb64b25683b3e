//! The kernels of one device: loaded at first use, from a fatbin or from what NVRTC made of the source.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;

use crate::error::{Error, Result};

#[cfg(not(merganser_fatbin))]
use super::nvrtc;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Shared memory that every block may take without asking, what a kernel declares counted in.
const UNASKED_BYTES: u32 = 48 << 10;
/// More than any kernel declares whose launches choose a size beside it. Launches are held to what each really declares.
const SLOTTED_STATIC_BYTES: u32 = 1 << 10;

/// The kernels of one context. What has been loaded stays.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<CudaContext>,
    /// Shared memory that a block may have where it is asked for, what the kernel declares counted in.
    opt_in_bytes: u32,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<&'static str, Function>,
}

/// A kernel, and its limits as the driver tells them.
#[derive(Debug, Clone)]
struct Function {
    function: CudaFunction,
    /// Shared memory that a launch may choose at most.
    most_shared_bytes: u32,
    /// Shared memory that a launch may choose as things are.
    shared_bytes: u32,
    /// Threads of a block at most, which its registers bound too.
    threads: u32,
}

/// Blocks, threads of a block, and bytes of shared memory whose size the launch chooses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub grid: (u64, u32),
    pub threads: u32,
    pub shared_bytes: u32,
}

/// A parameter of a kernel, passed by value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arg<'a>(*mut c_void, PhantomData<&'a ()>);

/// A parameter of a kernel.
pub(super) fn arg<T: Pod>(value: &T) -> Arg<'_> {
    Arg(std::ptr::from_ref(value).cast_mut().cast(), PhantomData)
}

impl Kernels {
    /// For this context; loads nothing yet.
    ///
    /// # Errors
    /// `Environment` if the driver does not answer.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let most = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(|e| failed("say how much shared memory it has", e))?;
        Ok(Self { context: Arc::clone(context), opt_in_bytes: most.unsigned_abs(), loaded: Mutex::default() })
    }

    /// Whether this build embeds them compiled. If not, NVRTC compiles them at first use.
    pub fn are_embedded() -> bool {
        cfg!(merganser_fatbin)
    }

    /// What this build embeds: `fatbin` or `nvrtc`.
    pub fn how() -> &'static str {
        if Self::are_embedded() { "fatbin" } else { "nvrtc" }
    }

    /// Loads, or compiles, every module, so that nothing waits for one later.
    ///
    /// # Errors
    /// `Environment` if a module cannot be loaded, or NVRTC is missing or too old.
    pub fn warm(&self) -> Result<()> {
        let mut loaded = self.lock();
        MODULES.iter().try_for_each(|(name, _)| self.module(&mut loaded, name).map(|_| ()))
    }

    /// Shared memory that a launch may choose, of any kernel that lets it choose.
    pub(super) fn shared_bytes(&self) -> u32 {
        self.opt_in_bytes.saturating_sub(SLOTTED_STATIC_BYTES)
    }

    /// Launches a kernel.
    ///
    /// `args` must be the kernel's parameters, in type and order, and what they point to must be as the kernel's header says;
    /// the functions of `ops` see to it.
    ///
    /// # Errors
    /// `Environment` if the kernel cannot be loaded or launched.
    pub(super) fn launch(
        &self,
        stream: &Arc<CudaStream>,
        module: &'static str,
        kernel: &'static str,
        shape: Shape,
        args: &[Arg<'_>],
    ) -> Result<()> {
        let function = self.function(module, kernel, &shape)?;
        let (x, y) = shape.grid;
        let x = u32::try_from(x)
            .ok()
            .filter(|x| *x <= i32::MAX as u32)
            .ok_or_else(|| Error::internal(format!("{kernel} would take {x} blocks")))?;
        let mut params: Vec<*mut c_void> = args.iter().map(|a| a.0).collect();
        self.context.bind_to_thread().map_err(|e| failed("be bound to a thread", e))?;
        // SAFETY:
        // 1. `function` is a loaded kernel of this context, which is current, and `stream` is one of its streams.
        // 2. Every pointer in `params` is to a parameter that `args` borrows; the driver copies it before it returns.
        // 3. Types and order are those of the kernel: `ops` mirrors them, and static assertions in `kernels/` and tests
        //    beside the mirrors compare their sizes.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, 1),
                (shape.threads, 1, 1),
                shape.shared_bytes,
                stream.cu_stream(),
                &mut params,
            )
        }
        .map_err(|e| failed(&format!("launch {kernel}"), e))
    }

    /// A kernel that can be launched in this shape.
    fn function(&self, module: &'static str, kernel: &'static str, shape: &Shape) -> Result<CudaFunction> {
        let mut loaded = self.lock();
        if !loaded.functions.contains_key(kernel) {
            let module = self.module(&mut loaded, module)?;
            loaded.functions.insert(kernel, self.load(&module, kernel)?);
        }
        let Some(found) = loaded.functions.get_mut(kernel) else {
            return Err(Error::internal(format!("{kernel} was loaded and is not there")));
        };
        if shape.shared_bytes > found.most_shared_bytes || shape.threads > found.threads {
            return Err(Error::internal(format!(
                "{kernel} would take {} threads and {} bytes of shared memory a block; the device allows it {} and {}",
                shape.threads, shape.shared_bytes, found.threads, found.most_shared_bytes
            )));
        }
        if shape.shared_bytes > found.shared_bytes {
            // All at once: it is asked for once, and launches of other sizes may be under way.
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let asked = found.function.set_attribute(most, found.most_shared_bytes as i32);
            asked.map_err(|e| failed(&format!("give {kernel} its shared memory"), e))?;
            found.shared_bytes = found.most_shared_bytes;
        }
        Ok(found.function.clone())
    }

    fn load(&self, module: &Arc<CudaModule>, kernel: &'static str) -> Result<Function> {
        let function = module.load_function(kernel).map_err(|e| failed(&format!("find the kernel {kernel}"), e))?;
        let tells = |attribute| {
            let told = function.get_attribute(attribute).map_err(|e| failed(&format!("tell what {kernel} takes"), e));
            told.map(i32::unsigned_abs)
        };
        let declared = tells(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let threads = tells(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        Ok(Function {
            function,
            most_shared_bytes: self.opt_in_bytes.max(UNASKED_BYTES).saturating_sub(declared),
            shared_bytes: UNASKED_BYTES.saturating_sub(declared),
            threads,
        })
    }

    fn module(&self, loaded: &mut Loaded, name: &'static str) -> Result<Arc<CudaModule>> {
        if let Some(module) = loaded.modules.get(name) {
            return Ok(Arc::clone(module));
        }
        let (_, embedded) = MODULES
            .iter()
            .find(|(module, _)| *module == name)
            .ok_or_else(|| Error::internal(format!("there are no kernels `{name}`")))?;
        #[cfg(merganser_fatbin)]
        let image = embedded.to_vec();
        #[cfg(not(merganser_fatbin))]
        let image = nvrtc::image(name, embedded, self.capability()?)?;
        let module = self
            .context
            .load_module(Ptx::from_binary(image))
            .map_err(|e| failed(&format!("load the kernels `{name}`"), e))?;
        loaded.modules.insert(name, Arc::clone(&module));
        Ok(module)
    }

    #[cfg(not(merganser_fatbin))]
    fn capability(&self) -> Result<i32> {
        let (major, minor) = self.context.compute_capability().map_err(|e| failed("say its compute capability", e))?;
        Ok(10 * major + minor)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error of the driver while it was to do something.
fn failed(doing: &str, error: DriverError) -> Error {
    super::error::driver("the CUDA device", doing, error)
}
