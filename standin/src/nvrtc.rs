//! NVRTC: it compiles nothing, and knows whether it was given the source that the stand-in's kernels were made from.
//!
//! A program is accepted when every line of it is a line of `kernels/`, when what it includes is there, and when its options
//! are ones that NVRTC takes. Its result is a text that names its kernels, which `cuModuleLoadData` reads again.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_char, c_int};

use crate::codes::Code;
use crate::images;
use crate::put;
use crate::rules;
use crate::world::{self, World};

const INVALID_INPUT: c_int = 3;
const INVALID_PROGRAM: c_int = 4;
const INVALID_OPTION: c_int = 5;
const COMPILATION: c_int = 6;
const INTERNAL_ERROR: c_int = 11;

const OPTIONS: [&str; 13] = [
    "--gpu-architecture=",
    "-arch=",
    "--std=",
    "-std=",
    "--fmad=",
    "-fmad=",
    "--define-macro=",
    "-D",
    "--use_fast_math=false",
    "--ftz=",
    "--prec-div=",
    "--prec-sqrt=",
    "-default-device",
];

/// A program.
#[derive(Default)]
struct Program {
    source: String,
    headers: HashMap<String, String>,
    result: CString,
    log: CString,
}

/// All programs, by handle.
#[derive(Default)]
pub struct Programs(HashMap<usize, Program>);

fn call(body: impl FnOnce(&mut World) -> Result<(), c_int>) -> c_int {
    body(&mut world::lock()).err().unwrap_or(0)
}

fn internal(_: Code) -> c_int {
    INTERNAL_ERROR
}

fn text(place: *const c_char) -> Result<String, c_int> {
    if place.is_null() {
        return Err(INVALID_INPUT);
    }
    // SAFETY: not null, and the interface requires a string that ends in a zero byte.
    Ok(unsafe { CStr::from_ptr(place) }.to_string_lossy().into_owned())
}

fn texts(places: *const *const c_char, count: c_int) -> Result<Vec<String>, c_int> {
    // SAFETY: the interface requires `count` pointers to strings.
    (0..count.max(0) as usize).map(|index| text(unsafe { places.add(index).read() })).collect()
}

/// A minor version that no real NVRTC has, so that nothing compiled here is taken for its work, in a cache for instance.
#[unsafe(no_mangle)]
extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    call(|world| {
        let cuda = world.config.driver_version;
        put(major, cuda / 1000).and_then(|()| put(minor, 900 + cuda % 1000 / 10)).map_err(internal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetErrorString(error: c_int) -> *const c_char {
    match error {
        0 => c"NVRTC_SUCCESS",
        INVALID_INPUT => c"NVRTC_ERROR_INVALID_INPUT",
        INVALID_PROGRAM => c"NVRTC_ERROR_INVALID_PROGRAM",
        INVALID_OPTION => c"NVRTC_ERROR_INVALID_OPTION",
        COMPILATION => c"NVRTC_ERROR_COMPILATION",
        _ => c"NVRTC_ERROR_INTERNAL_ERROR",
    }
    .as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcCreateProgram(
    place: *mut usize,
    source: *const c_char,
    _name: *const c_char,
    count: c_int,
    headers: *const *const c_char,
    names: *const *const c_char,
) -> c_int {
    call(|world| {
        let headers = texts(names, count)?.into_iter().zip(texts(headers, count)?).collect();
        let handle = world.new_handle();
        world.programs.0.insert(handle, Program { source: text(source)?, headers, ..Program::default() });
        put(place, handle).map_err(internal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcDestroyProgram(place: *mut usize) -> c_int {
    call(|world| {
        if place.is_null() {
            return Err(INVALID_PROGRAM);
        }
        // SAFETY: not null; it points to the handle.
        let handle = unsafe { place.replace(0) };
        world.programs.0.remove(&handle).map(|_| ()).ok_or(INVALID_PROGRAM)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcCompileProgram(program: usize, count: c_int, options: *const *const c_char) -> c_int {
    call(|world| {
        let options = texts(options, count)?;
        let known: HashSet<String> = match world.kernels.sources() {
            Ok(sources) => sources.lines().map(|line| line.trim().to_owned()).collect(),
            Err(text) => {
                eprintln!("standin: nvrtc: {text}");
                return Err(INTERNAL_ERROR);
            }
        };
        let cuda = world.config.driver_version;
        let program = world.programs.0.get_mut(&program).ok_or(INVALID_PROGRAM)?;
        let (code, log) = match program.compile(&options, &known, cuda) {
            Ok(result) => {
                program.result = CString::new(result).map_err(|_| INTERNAL_ERROR)?;
                (0, String::new())
            }
            Err((code, log)) => (code, log),
        };
        let is_unknown = log.contains("invalid value for --gpu-architecture");
        program.log = CString::new(log).map_err(|_| INTERNAL_ERROR)?;
        if is_unknown {
            return Err(world
                .breaks(rules::COMPILER_ARCHITECTURE, "a compilation for an architecture that is not known")
                .0);
        }
        if code == 0 { Ok(()) } else { Err(code) }
    })
}

impl Program {
    /// A text that names the kernels, or an error and a log.
    fn compile(&self, options: &[String], known: &HashSet<String>, cuda: c_int) -> Result<String, (c_int, String)> {
        if let Some(option) = options.iter().find(|option| !OPTIONS.iter().any(|known| option.starts_with(known))) {
            return Err((INVALID_OPTION, format!("nvrtc: error: unrecognized option {option}")));
        }
        let architecture = options.iter().find_map(|option| option.strip_prefix("--gpu-architecture="));
        let (end, target) = match architecture.and_then(|name| name.split_once('_')) {
            Some(("sm", target)) => ("// compiled to the end", target),
            Some(("compute", target)) => ("//", target),
            _ => return Err((INVALID_OPTION, "nvrtc: error: no --gpu-architecture".into())),
        };
        if !images::architectures(cuda).iter().any(|known| known.to_string() == target) {
            return Err((INVALID_OPTION, format!("nvrtc: error: invalid value for --gpu-architecture: {target}")));
        }
        // A product rounded once where the CPU rounds twice gives other bits.
        if !options.iter().any(|option| option.ends_with("fmad=false")) {
            return Err((INVALID_OPTION, "stand-in: error: without --fmad=false results differ from the CPU's".into()));
        }
        let all = [&self.source].into_iter().chain(self.headers.values());
        for line in all.flat_map(|source| source.lines()).map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(name) = line.strip_prefix("#include") {
                let name = name.trim().trim_matches(['"', '<', '>']);
                if !self.headers.contains_key(name) {
                    return Err((COMPILATION, format!("error: cannot open source file \"{name}\"")));
                }
            } else if !known.contains(line) && !line.starts_with("#line") {
                return Err((COMPILATION, format!("stand-in: error: not a line of kernels/: {line}")));
            }
        }
        let entries = self.source.lines().filter_map(kernel).map(|name| format!(".visible .entry {name}()\n"));
        let ((major, minor), entries) = (images::ptx_of(cuda), entries.collect::<String>());
        Ok(format!("{end}\n// stand-in\n.version {major}.{minor}\n.target sm_{target}\n{entries}"))
    }
}

/// The name of the kernel that a line begins.
fn kernel(line: &str) -> Option<&str> {
    let after = line.split_once("__global__")?.1;
    let before = after.split_once(" void ").map_or(after, |(_, after)| after);
    let name = before.trim_start().split('(').next()?.trim();
    (!line.trim_start().starts_with("//")).then_some(name)
}

fn results(world: &mut World, program: usize) -> Result<&Program, c_int> {
    world.programs.0.get(&program).ok_or(INVALID_PROGRAM)
}

fn give(text: &CStr, place: *mut c_char) -> Result<(), c_int> {
    if place.is_null() {
        return Err(INVALID_INPUT);
    }
    let bytes = text.to_bytes_with_nul();
    // SAFETY: the interface requires room for as many bytes as the function for the size says.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), place, bytes.len()) };
    Ok(())
}

macro_rules! results {
    ($($field:ident: $size:ident, $get:ident;)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $size(program: usize, size: *mut usize) -> c_int {
            call(|world| put(size, results(world, program)?.$field.as_bytes_with_nul().len()).map_err(internal))
        }

        #[unsafe(no_mangle)]
        extern "C" fn $get(program: usize, place: *mut c_char) -> c_int {
            call(|world| give(&results(world, program)?.$field, place))
        }
    )* };
}

results! {
    result: nvrtcGetPTXSize, nvrtcGetPTX;
    result: nvrtcGetCUBINSize, nvrtcGetCUBIN;
    log: nvrtcGetProgramLogSize, nvrtcGetProgramLog;
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetNumSupportedArchs(count: *mut c_int) -> c_int {
    call(|world| put(count, images::architectures(world.config.driver_version).len() as c_int).map_err(internal))
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetSupportedArchs(places: *mut c_int) -> c_int {
    call(|world| {
        let mut known = images::architectures(world.config.driver_version).iter().enumerate();
        known.try_for_each(|(i, known)| put(places.wrapping_add(i), *known)).map_err(internal)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn program(source: &str) -> Program {
        let headers = [("common.cuh".to_owned(), "typedef int t;".to_owned())].into();
        Program { source: source.into(), headers, ..Program::default() }
    }

    #[test]
    fn a_program_is_taken_when_its_lines_and_options_are_known() {
        let line = "extern \"C\" __launch_bounds__(256) __global__ void merge_f32(float* x) {}";
        let known: HashSet<_> = ["typedef int t;".to_owned(), line.to_owned()].into();
        let options = ["--gpu-architecture=sm_90".to_owned(), "--fmad=false".to_owned()];
        let good = program(&format!("#include \"common.cuh\"\n\n{line}\n"));
        assert!(good.compile(&options, &known, 13_000).unwrap().contains(".entry merge_f32("));
        assert_eq!(good.compile(&options[..1], &known, 13_000).unwrap_err().0, INVALID_OPTION);
        for (source, reason) in [("#include <cuda_fp16.h>", "cuda_fp16.h"), ("int other;", "int other;")] {
            let (code, log) = program(source).compile(&options, &known, 13_000).unwrap_err();
            assert_eq!(code, COMPILATION);
            assert!(log.contains(reason), "{log}");
        }
    }
}
