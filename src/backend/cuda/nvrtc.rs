//! Kernels from source: NVRTC compiles them at first use, for the device at hand, and a cache on disk keeps the result.
//!
//! A cache entry is named by a hash of source, options, architecture and NVRTC's version, and begins with the hash of what follows: one
//! that is damaged is made again. Entries are written beside their place and renamed. That a cache cannot be used is no error.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::{env, fs};

use super::error;
use super::libraries::{self, Name, functions};
use crate::error::{Error, Result};

/// As in `build.rs`: contraction would change bits; the rest are the defaults that the arithmetic stands on.
const OPTIONS: [&str; 5] = ["--std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false"];
/// Length of a digest.
const DIGEST_BYTES: usize = 32;

type Handle = *mut c_void;
type Text = *const c_char;

functions! {
    /// What is called of NVRTC, by its manual.
    Functions {
        version: c"nvrtcVersion" = fn(*mut c_int, *mut c_int);
        count_architectures: c"nvrtcGetNumSupportedArchs" = fn(*mut c_int);
        architectures: c"nvrtcGetSupportedArchs" = fn(*mut c_int);
        create: c"nvrtcCreateProgram" = fn(*mut Handle, Text, Text, c_int, *const Text, *const Text);
        destroy: c"nvrtcDestroyProgram" = fn(*mut Handle);
        compile: c"nvrtcCompileProgram" = fn(Handle, c_int, *const Text);
        log_size: c"nvrtcGetProgramLogSize" = fn(Handle, *mut usize);
        log: c"nvrtcGetProgramLog" = fn(Handle, *mut c_char);
        ptx_size: c"nvrtcGetPTXSize" = fn(Handle, *mut usize);
        ptx: c"nvrtcGetPTX" = fn(Handle, *mut c_char);
        cubin_size: c"nvrtcGetCUBINSize" = fn(Handle, *mut usize);
        cubin: c"nvrtcGetCUBIN" = fn(Handle, *mut c_char);
    }
}

/// `nvrtcResult`, by its number.
const RESULTS: [(c_int, &str); 12] = [
    (1, "OUT_OF_MEMORY"),
    (2, "PROGRAM_CREATION_FAILURE"),
    (3, "INVALID_INPUT"),
    (4, "INVALID_PROGRAM"),
    (5, "INVALID_OPTION"),
    (6, "COMPILATION"),
    (7, "BUILTIN_OPERATION_FAILURE"),
    (8, "NO_NAME_EXPRESSIONS_AFTER_COMPILATION"),
    (9, "NO_LOWERED_NAMES_BEFORE_COMPILATION"),
    (10, "NAME_EXPRESSION_NOT_VALID"),
    (11, "INTERNAL_ERROR"),
    (12, "TIME_FILE_WRITE_FAILED"),
];

/// The module `name` for a compute capability (90: 9.0): a cubin or, where NVRTC is older than the device, PTX.
///
/// # Errors
/// `Environment` if NVRTC is not installed or cannot compile for a device like this.
pub(super) fn image(name: &str, source: &[u8], capability: i32) -> Result<Vec<u8>> {
    let library = libraries::open(Name::Nvrtc).map_err(|why| {
        Error::device(format!("this build compiles its CUDA kernels at first use with NVRTC: {why}"))
            .hint("install NVRTC of the CUDA toolkit (12.0 or newer), or build merganser where nvcc is found, or use `--device cpu`")
    })?;
    let nvrtc = Functions::of(library)?;
    let arch = nvrtc.architecture(capability)?;
    let version = nvrtc.version()?;
    let path =
        cache_folder(|name| env::var_os(name)).map(|folder| folder.join(entry_name(name, source, &arch, version)));
    if let Some(found) = path.as_deref().and_then(load) {
        return Ok(found);
    }
    tracing::info!("compiling the CUDA kernels `{name}` for {arch}");
    let (image, log) = nvrtc.image_of(name, source, &arch)?;
    if !log.is_empty() {
        tracing::debug!("NVRTC on {name}.cu: {log}");
    }
    if let Some(path) = path
        && let Err(error) = keep(&path, &image)
    {
        tracing::debug!("cannot keep compiled kernels in {}: {error}", path.display());
    }
    Ok(image)
}

fn choose(capability: i32, known: &[c_int]) -> String {
    let newest = known.iter().copied().filter(|arch| *arch <= capability).max();
    match newest {
        Some(arch) if arch == capability => format!("sm_{arch}"),
        Some(arch) => format!("compute_{arch}"),
        None => format!("sm_{capability}"),
    }
}

/// A program of NVRTC, destroyed when it goes.
struct Program(Handle, Functions);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed here alone.
        let _ = unsafe { (self.1.destroy)(&mut self.0) };
    }
}

impl Functions {
    /// `sm_NN` of the device, or the newest `compute_NN` below it that NVRTC knows.
    fn architecture(&self, capability: c_int) -> Result<String> {
        let doing = "say what it compiles for";
        let mut count: c_int = 0;
        // SAFETY: writes one number.
        said(doing, unsafe { (self.count_architectures)(&raw mut count) })?;
        let mut known = vec![0 as c_int; usize::try_from(count).unwrap_or_default()];
        // SAFETY: writes as many numbers as the call above said, and `known` holds so many.
        said(doing, unsafe { (self.architectures)(known.as_mut_ptr()) })?;
        Ok(choose(capability, &known))
    }

    fn version(&self) -> Result<(c_int, c_int)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two numbers.
        said("say its version", unsafe { (self.version)(&raw mut major, &raw mut minor) })?;
        Ok((major, minor))
    }

    /// What NVRTC makes of a source, and what it says of it.
    fn image_of(&self, name: &str, source: &[u8], arch: &str) -> Result<(Vec<u8>, String)> {
        let text =
            |bytes: &[u8]| CString::new(bytes).map_err(|_| Error::internal("a text for NVRTC holds a zero byte"));
        let (source, file) = (text(source)?, text(format!("{name}.cu").as_bytes())?);
        let (mut handle, none) = (std::ptr::null_mut(), std::ptr::null());
        // SAFETY: the pointer is to a live handle's place; both texts end in a zero byte; there are no headers.
        let made = unsafe { (self.create)(&mut handle, source.as_ptr(), file.as_ptr(), 0, none, none) };
        said("begin a program", made)?;
        let program = Program(handle, *self);
        let options = OPTIONS.iter().map(|o| (*o).to_owned()).chain([format!("--gpu-architecture={arch}")]);
        let options = options.map(|option| text(option.as_bytes())).collect::<Result<Vec<_>>>()?;
        let places: Vec<Text> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and so are its source and the options, as many as it is told.
        let compiled = unsafe { (self.compile)(program.0, places.len() as c_int, places.as_ptr()) };
        let log = self.bytes(&program, self.log_size, self.log).unwrap_or_default();
        let log: Vec<u8> = log.into_iter().take_while(|c| *c != 0).collect();
        let log = String::from_utf8_lossy(&log).into_owned();
        if compiled != 0 {
            tracing::debug!("NVRTC on {name}.cu: {log}");
        }
        said(&format!("compile `{name}` for {arch}"), compiled)
            .map_err(|e| e.hint("use another NVRTC, of CUDA 12.0 or newer; `-v` shows what it said"))?;
        // The text of PTX ends with a zero byte, as the driver wants it.
        let image = match arch.starts_with("sm_") {
            true => self.bytes(&program, self.cubin_size, self.cubin),
            false => self.bytes(&program, self.ptx_size, self.ptx),
        };
        Ok((image?, log))
    }

    /// What two functions hand out of a program: how long it is, and it.
    fn bytes(
        &self,
        program: &Program,
        size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>> {
        let (doing, mut bytes) = ("hand out what it compiled", 0);
        // SAFETY: the program is alive; writes one number.
        said(doing, unsafe { size(program.0, &raw mut bytes) })?;
        let mut all = vec![0u8; bytes];
        // SAFETY: writes as many bytes as the call above said, and `all` holds so many.
        said(doing, unsafe { get(program.0, all.as_mut_ptr().cast::<c_char>()) })?;
        Ok(all)
    }
}

fn said(doing: &str, result: c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => {
            let result = error::status("NVRTC_ERROR_", &RESULTS, result);
            Err(Error::device(format!("NVRTC, which compiles the CUDA kernels, could not {doing}: {result}")))
        }
    }
}

/// `$XDG_CACHE_HOME/merganser/kernels`, or the same in `~/.cache`.
fn cache_folder(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("merganser").join("kernels"))
}

fn entry_name(name: &str, source: &[u8], arch: &str, (major, minor): (c_int, c_int)) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(format!("{OPTIONS:?} {arch} {major}.{minor}\n").as_bytes()).update(source);
    format!("{name}-{arch}-{}.bin", &hash.finalize().to_hex()[..32])
}

/// What an entry holds; `None` where there is none, or a damaged one.
fn load(path: &Path) -> Option<Vec<u8>> {
    let mut entry = fs::read(path).ok()?;
    let (digest, image) = entry.split_at_checked(DIGEST_BYTES)?;
    if blake3::hash(image).as_bytes() != digest {
        tracing::debug!("the compiled kernels in {} are damaged", path.display());
        return None;
    }
    entry.drain(..DIGEST_BYTES);
    Some(entry)
}

fn keep(path: &Path, image: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let entry = [blake3::hash(image).as_bytes(), image].concat();
    fs::write(&beside, entry).and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_a_damaged_entry_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("entry.bin");
        assert_eq!(load(&path), None);
        keep(&path, b"an image").unwrap();
        assert_eq!(load(&path).unwrap(), b"an image");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..DIGEST_BYTES - 1], &[]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(load(&path), None, "{} bytes", damaged.len());
        }
        let mut flipped = whole;
        flipped[DIGEST_BYTES + 2] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(load(&path), None);
    }

    #[test]
    #[ignore = "needs NVRTC; scripts/cuda/compilers runs it"]
    #[allow(clippy::print_stderr)]
    fn every_module_compiles_where_nvrtc_is_installed() {
        let library = libraries::open(Name::Nvrtc).unwrap();
        let nvrtc = Functions::of(library).unwrap();
        let mut count = 0;
        for (name, source) in super::super::module::MODULES {
            let text = std::str::from_utf8(source).unwrap();
            let kernels: Vec<&str> = text.lines().filter_map(kernel_of).collect();
            assert!(!kernels.is_empty(), "{name}");
            for arch in ["sm_80", "sm_90", "compute_90"] {
                let (image, log) = nvrtc.image_of(name, source, arch).unwrap();
                assert_eq!(log.trim(), "", "{name} for {arch}");
                for kernel in &kernels {
                    let is_there = image.windows(kernel.len()).any(|window| window == kernel.as_bytes());
                    assert!(is_there, "{kernel} is not in {name} for {arch}");
                }
            }
            count += kernels.len();
        }
        let (major, minor) = nvrtc.version().unwrap();
        eprintln!("NVRTC {major}.{minor}: {count} kernels for sm_80, sm_90 and as PTX; no warning");
    }

    /// The kernel that a line of source begins.
    fn kernel_of(line: &str) -> Option<&str> {
        let (_, after) = line.split_once("__global__")?;
        after.split_once("void ")?.1.split('(').next().map(str::trim)
    }

    #[test]
    fn entries_differ_by_source_architecture_and_version() {
        let names = [
            entry_name("a", b"x", "sm_90", (13, 0)),
            entry_name("a", b"y", "sm_90", (13, 0)),
            entry_name("a", b"x", "sm_80", (13, 0)),
            entry_name("a", b"x", "sm_90", (13, 1)),
        ];
        assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])));
    }

    #[test]
    fn a_device_that_nvrtc_does_not_know_gets_the_newest_ptx_below_it() {
        let known = [75, 80, 86, 89, 90];
        assert_eq!(choose(90, &known), "sm_90");
        assert_eq!(choose(87, &known), "compute_86");
        assert_eq!(choose(120, &known), "compute_90");
        assert_eq!(choose(70, &known), "sm_70");
    }

    #[test]
    fn the_cache_lies_in_the_users_cache_folder() {
        let of = |xdg: Option<&str>, home: Option<&str>| {
            cache_folder(|name| if name == "HOME" { home } else { xdg }.map(Into::into))
        };
        assert_eq!(of(Some("/c"), Some("/h")), Some("/c/merganser/kernels".into()));
        assert_eq!(of(Some("relative"), Some("/h")), Some("/h/.cache/merganser/kernels".into()));
        assert_eq!(of(None, None), None);
    }
}
