//! NVIDIA's libraries beside the driver's: where they lie, which of them fit the driver, and how a function of theirs is found.
//!
//! They come with the toolkit, as wheels of Python or with conda, and mostly where the loader does not look. So each is opened by its
//! absolute path, after those that it needs itself, which the loader then knows by name. A library of a newer CUDA than the
//! driver's is left alone: it would load, and fail at its first call. A function that an older library lacks is no error until it
//! is asked for.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsString, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs};

use crate::backend::device::Version;
use crate::error::{Error, Result};

/// A library that merganser calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// Products of matrices.
    Cublas,
    /// Eigenvectors.
    Cusolver,
    /// Compiling kernels.
    Nvrtc,
}

/// The majors of CUDA whose libraries are known, the newest first.
const MAJORS: [u32; 2] = [13, 12];

impl Name {
    /// As in `libNAME.so`.
    pub fn stem(self) -> &'static str {
        match self {
            Name::Cublas => "cublas",
            Name::Cusolver => "cusolver",
            Name::Nvrtc => "nvrtc",
        }
    }

    /// Its file's name in a CUDA of this major.
    fn file(self, cuda: u32) -> String {
        match self {
            Name::Cusolver => format!("libcusolver.so.{}", cuda - 1),
            _ => format!("lib{}.so.{cuda}", self.stem()),
        }
    }

    /// The files that must be loaded before it, in this order, where the loader would not find them.
    fn needs(self, cuda: u32) -> Vec<String> {
        match self {
            Name::Cublas => vec![format!("libcublasLt.so.{cuda}")],
            Name::Cusolver => vec![
                format!("libcublasLt.so.{cuda}"),
                format!("libcublas.so.{cuda}"),
                format!("libnvJitLink.so.{cuda}"),
                "libcusparse.so.12".to_owned(),
            ],
            Name::Nvrtc => Vec::new(),
        }
    }
}

/// An open library.
#[derive(Debug)]
pub struct Library {
    handle: *mut c_void,
    name: Name,
    /// The file, or the name by which the loader found it.
    pub path: PathBuf,
}

// SAFETY: a handle of the loader may be used by any thread; it is never closed.
unsafe impl Send for Library {}
// SAFETY: see above.
unsafe impl Sync for Library {}

impl Library {
    /// The address of a function, if the library has it.
    pub fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is open, and the name ends in a zero byte.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    }

    /// The address of a function that cannot be done without.
    ///
    /// # Errors
    /// `Environment` if the library lacks it.
    pub fn need(&self, name: &CStr) -> Result<*mut c_void> {
        self.symbol(name).ok_or_else(|| {
            let (path, name) = (self.path.display(), name.to_string_lossy());
            Error::device(format!("`{path}` has no function {name}: it is no lib{} that fits", self.name.stem()))
                .hint("install CUDA's libraries of 12.0 or newer")
        })
    }
}

/// Declares a table of a library's functions by their types, and how it is filled.
macro_rules! functions {
    ($(#[$about:meta])* $table:ident { $($field:ident: $symbol:literal = fn($($argument:ty),* $(,)?);)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $table {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,)*
        }

        impl $table {
            /// Finds every function.
            ///
            /// # Errors
            /// `Environment` if the library lacks one.
            pub fn of(library: &crate::backend::cuda::libraries::Library) -> crate::error::Result<Self> {
                // SAFETY: the library's functions of these names have these types, as its manual has them; they stay where they
                // are, as it is never closed.
                Ok(unsafe {
                    Self {
                        $($field: std::mem::transmute::<
                            *mut std::ffi::c_void,
                            unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,
                        >(library.need($symbol)?),)*
                    }
                })
            }
        }
    };
}
pub(super) use functions;

/// The library, opened at the first call.
///
/// # Errors
/// In words, what was looked for and what was found instead.
pub fn open(name: Name) -> std::result::Result<&'static Library, &'static str> {
    static OPEN: [OnceLock<std::result::Result<Library, String>>; 3] = [const { OnceLock::new() }; 3];
    let opened = OPEN[name as usize].get_or_init(|| {
        let program = env::current_exe().ok();
        let folders = folders(&|name| env::var_os(name), program.as_deref());
        find(name, super::probe::driver_version(), &folders, &mut load)
    });
    opened.as_ref().map_err(String::as_str)
}

/// Opens the first file that can be loaded, in the order of the folders and then as the loader finds it by name.
fn find(
    name: Name,
    driver: Option<Version>,
    folders: &[PathBuf],
    load: &mut dyn FnMut(&Path) -> std::result::Result<*mut c_void, String>,
) -> std::result::Result<Library, String> {
    let fits = |cuda: &u32| driver.is_none_or(|driver| *cuda <= driver.0);
    let mut reasons = Vec::new();
    for folder in folders {
        for cuda in MAJORS.into_iter().filter(fits) {
            let path = folder.join(name.file(cuda));
            if !path.is_file() {
                continue;
            }
            for needed in name.needs(cuda) {
                // What is in none of the folders, the loader may know.
                if let Some(path) = folders.iter().map(|f| f.join(&needed)).find(|path| path.is_file()) {
                    let _ = load(&path);
                }
            }
            match load(&path) {
                Ok(handle) => return Ok(Library { handle, name, path }),
                Err(reason) => reasons.push(reason),
            }
        }
    }
    for cuda in MAJORS.into_iter().filter(fits) {
        let path = PathBuf::from(name.file(cuda));
        match load(&path) {
            Ok(handle) => return Ok(Library { handle, name, path }),
            // Of a name that is nowhere the loader has nothing to tell.
            Err(reason) if !reason.contains("No such file") => reasons.push(reason),
            Err(_) => {}
        }
    }
    let wanted: Vec<String> = MAJORS.into_iter().filter(fits).map(|cuda| name.file(cuda)).collect();
    let mut text = format!("{} was not found", wanted.join(" or "));
    let unfit = MAJORS.into_iter().filter(|cuda| !fits(cuda));
    let unfit = unfit.flat_map(|cuda| folders.iter().map(move |f| (cuda, f.join(name.file(cuda)))));
    if let (Some((cuda, path)), Some(driver)) = (unfit.into_iter().find(|(_, path)| path.is_file()), driver) {
        text += &format!(
            "; `{}` is of CUDA {cuda}, and the driver supports CUDA {driver}: install the library of CUDA {}",
            path.display(),
            driver.0
        );
    }
    reasons.dedup();
    Err(reasons.into_iter().fold(text, |text, reason| format!("{text}; {reason}")))
}

/// Opens a library and keeps it open.
fn load(path: &Path) -> std::result::Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: loading a library by NVIDIA's name runs its own initialisers, nothing else.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: dlerror gives null or a string that lives until this thread's next call of the loader.
    let said = unsafe { libc::dlerror() };
    if said.is_null() {
        return Err(format!("{} cannot be loaded", path.display()));
    }
    // SAFETY: not null, see above.
    Err(unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned())
}

/// Opens the driver's library by the name that the driver itself installs, and tells the address of a function of it.
pub(super) fn in_driver(symbol: &CStr) -> std::result::Result<*mut c_void, String> {
    let handle = load(Path::new("libcuda.so.1"))?;
    // SAFETY: the handle is open, and the name ends in a zero byte.
    let address = unsafe { libc::dlsym(handle, symbol.as_ptr()) };
    if address.is_null() { Err(format!("libcuda.so.1 has no {}", symbol.to_string_lossy())) } else { Ok(address) }
}

/// The file that holds an address.
pub(super) fn file_of(address: *const c_void) -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` has room for the answer; any address may be asked for.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    // SAFETY: all zeros is a valid value of the structure, and a successful call has filled it.
    let name = unsafe { info.assume_init() }.dli_fname;
    if found == 0 || name.is_null() {
        return None;
    }
    // SAFETY: the loader's name of an open file, which ends in a zero byte.
    Some(PathBuf::from(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()))
}

/// Folders to look in, in this order: those of LD_LIBRARY_PATH; the active environment of Python, and the one that the program
/// lies in; conda's; the toolkit's.
fn folders(variable: &dyn Fn(&str) -> Option<OsString>, program: Option<&Path>) -> Vec<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let listed =
        variable("LD_LIBRARY_PATH").map(|list| env::split_paths(&list).collect::<Vec<_>>()).unwrap_or_default();
    let mut all: Vec<PathBuf> = listed.into_iter().filter(|path| path.is_absolute()).collect();
    let beside = program.and_then(Path::parent).filter(|folder| folder.ends_with("bin")).and_then(Path::parent);
    for root in [absolute("VIRTUAL_ENV"), beside.map(Path::to_owned), absolute("CONDA_PREFIX")].into_iter().flatten() {
        all.extend(of_environment(&root));
    }
    for root in [absolute("CUDA_HOME"), Some("/usr/local/cuda".into())].into_iter().flatten() {
        all.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|folder| root.join(folder)));
    }
    all
}

/// Folders of an environment of Python: its own, and those of NVIDIA's wheels, `nvidia/cublas/lib` or `nvidia/cu13/lib`.
fn of_environment(root: &Path) -> Vec<PathBuf> {
    let within = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|e| e.path()));
        let mut all: Vec<PathBuf> = entries.collect();
        all.sort();
        all
    };
    let lib = root.join("lib");
    let pythons = within(&lib)
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")));
    let packages = pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|name| python.join(name)));
    let wheels = packages.flat_map(|packages| within(&packages.join("nvidia"))).map(|wheel| wheel.join("lib"));
    let wheels: Vec<PathBuf> = wheels.filter(|folder| folder.is_dir()).collect();
    [lib].into_iter().chain(wheels).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"").unwrap();
        path
    }

    /// Finds a library where every file can be loaded, and tells what was loaded.
    fn found(
        name: Name,
        driver: (u32, u32),
        folders: &[PathBuf],
    ) -> (std::result::Result<PathBuf, String>, Vec<PathBuf>) {
        let mut loaded = Vec::new();
        let mut load = |path: &Path| {
            loaded.push(path.to_owned());
            if path.is_absolute() { Ok(std::ptr::null_mut()) } else { Err("No such file".into()) }
        };
        let library = find(name, Some(Version(driver.0, driver.1)), folders, &mut load);
        (library.map(|library| library.path), loaded)
    }

    #[test]
    fn wheels_conda_and_the_toolkit_are_looked_through_in_this_order() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let blas = touch(at("venv/lib/python3.11/site-packages/nvidia/cublas/lib/libcublas.so.12"));
        touch(at("venv/lib/python3.11/site-packages/nvidia/cublas/lib/libcublasLt.so.12"));
        let thirteen = touch(at("own/lib/python3.13/site-packages/nvidia/cu13/lib/libcublas.so.13"));
        let conda = touch(at("conda/lib/libcusolver.so.11"));
        let toolkit = touch(at("cuda/lib64/libnvrtc.so.12"));
        let program = touch(at("own/bin/merganser"));
        let variables = |wanted: &'static [&'static str]| {
            let root = root.path().to_owned();
            move |name: &str| {
                let folder = match name {
                    "VIRTUAL_ENV" => "venv",
                    "CONDA_PREFIX" => "conda",
                    "CUDA_HOME" => "cuda",
                    _ => return None,
                };
                wanted.contains(&name).then(|| root.join(folder).into_os_string())
            }
        };
        let all = &["VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME"];
        let everywhere = folders(&variables(all), Some(&program));
        let (path, loaded) = found(Name::Cublas, (13, 0), &everywhere);
        assert_eq!(path.unwrap(), blas, "the active environment goes before the program's");
        assert!(loaded[0].ends_with("libcublasLt.so.12"), "what it needs is loaded first: {loaded:?}");
        assert_eq!(found(Name::Cusolver, (12, 0), &everywhere).0.unwrap(), conda);
        assert!(found(Name::Cusolver, (12, 0), &everywhere).1.contains(&blas), "cuSOLVER needs cuBLAS");
        assert_eq!(found(Name::Nvrtc, (12, 4), &everywhere).0.unwrap(), toolkit);
        let beside = folders(&variables(&[]), Some(&program));
        assert_eq!(found(Name::Cublas, (13, 0), &beside).0.unwrap(), thirteen);
        let none = folders(&variables(&[]), Some(Path::new("/nowhere/merganser")));
        assert!(none.iter().all(|folder| folder.starts_with("/usr/local/cuda")), "{none:?}");
    }

    #[test]
    fn a_library_of_a_newer_cuda_than_the_drivers_is_named_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let newer = touch(root.path().join("libcublas.so.13"));
        let folders = [root.path().to_owned()];
        let (path, loaded) = found(Name::Cublas, (12, 4), &folders);
        let said = path.unwrap_err();
        assert!(said.contains("libcublas.so.12 was not found"), "{said}");
        assert!(said.contains("libcublas.so.13` is of CUDA 13, and the driver supports CUDA 12.4"), "{said}");
        assert!(!loaded.contains(&newer));
        assert_eq!(found(Name::Cublas, (13, 1), &folders).0.unwrap(), newer);
    }

    #[test]
    fn a_file_that_cannot_be_loaded_is_no_end_of_the_search_and_its_reason_is_told() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path().join("a/libnvrtc.so.12"));
        let folders = [root.path().join("a")];
        let said = find(Name::Nvrtc, Some(Version(12, 0)), &folders, &mut load).unwrap_err();
        assert!(
            said.contains("libnvrtc.so.12 was not found") && said.contains("a/libnvrtc.so.12: file too short"),
            "{said}"
        );
    }
}
