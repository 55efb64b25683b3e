//! Prepares the CUDA kernels: with nvcc as a fatbin, else as source that NVRTC compiles at first use.
//!
//! Nothing is needed: without nvcc the build is the same but for what it embeds, and no slower. nvcc is `$NVCC`, or that of
//! `$CUDA_HOME`, or the first on the path; `NVCC=` (empty) embeds the source whatever there is.

#[path = "build/entries.rs"]
mod entries;
#[path = "src/ops/rules/mod.rs"]
#[allow(dead_code, unused_imports)]
mod rules;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, thread};

/// SASS for sm_80 (A100; runs on 8.6 and 8.9) and sm_90 (H100), and PTX for what comes after.
const TARGETS: [&str; 2] = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"];

fn main() -> ExitCode {
    println!("cargo::rustc-check-cfg=cfg(merganser_fatbin)");
    for ours in ["build.rs", "build", "src/ops/rules"] {
        println!("cargo::rerun-if-changed={ours}");
    }
    tell_the_build();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        println!("cargo::rustc-env=MERGANSER_CUDA=none: built without it");
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

/// The facts that `--version` states.
fn tell_the_build() {
    let of_cargo = |name: &str| env::var(name).unwrap_or_else(|_| "unknown".into());
    let rustc = env::var_os("RUSTC").and_then(|rustc| Command::new(rustc).arg("--version").output().ok());
    let rustc = rustc.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default();
    println!("cargo::rustc-env=MERGANSER_TARGET={}", of_cargo("TARGET"));
    println!("cargo::rustc-env=MERGANSER_PROFILE={}", of_cargo("PROFILE"));
    println!("cargo::rustc-env=MERGANSER_RUSTC={rustc}");
}

/// Writes `kernels/`, the sources with their entry points, and `kernels.rs`: the table of modules, each a source, and the names of the
/// entry points that were made.
fn embed() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?);
    let whole = out.join("kernels");
    let _ = fs::remove_dir_all(&whole);
    fs::create_dir_all(&whole).map_err(|e| format!("cannot make {}: {e}", whole.display()))?;
    for source in files("kernels")? {
        let stem = source.file_stem().and_then(|s| s.to_str()).ok_or("a kernel's file has no name")?;
        let mut text = read(&source)?;
        if source.extension().is_some_and(|e| e == "cu") {
            text.push_str(&entries::of_source(stem));
        }
        write(&whole.join(source.file_name().unwrap_or_default()), &text)?;
    }
    let rules = files("kernels/rules")?.iter().map(|path| read(path)).collect::<Result<String, _>>()?;
    write(&whole.join("rules.cuh"), &format!("#pragma once\n{rules}"))?;
    let mut sources = files(&whole)?;
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    let mut extension = "cu";
    let mut kernels = "kernels as source, compiled at first use";
    if let Some((nvcc, is_wanted)) = nvcc() {
        match compile(&nvcc, &sources, &out) {
            Ok(()) => {
                println!("cargo::rustc-cfg=merganser_fatbin");
                extension = "fatbin";
                kernels = "kernels for sm_80 and sm_90, and PTX for later ones";
            }
            Err(message) if is_wanted => return Err(message),
            Err(message) => println!("cargo::warning={message}; NVRTC will compile the kernels at first use"),
        }
    }
    let mut table = String::from("pub(super) static MODULES: &[(&str, &[u8])] = &[\n");
    println!("cargo::rustc-env=MERGANSER_CUDA={kernels}");
    for source in &sources {
        let stem = source.file_stem().and_then(|s| s.to_str()).ok_or("a kernel's file has no name")?;
        if extension == "cu" {
            write(&out.join(stem).with_extension("cu"), &flattened(source, &mut Vec::new())?)?;
        }
        let _ =
            writeln!(table, "    (\"{stem}\", include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.{extension}\"))),");
    }
    table.push_str("];\n\n");
    write(&out.join("kernels.rs"), &table)?;
    write(&out.join("entries.rs"), &entries::names())
}

/// The files of a folder, in the order of their names.
fn files(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>, String> {
    let folder = folder.as_ref();
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// nvcc, and whether the environment names it.
fn nvcc() -> Option<(PathBuf, bool)> {
    if let Some(named) = env::var_os("NVCC") {
        return (!named.is_empty()).then(|| (named.into(), true));
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>());
    home.into_iter()
        .chain(path.unwrap_or_default())
        .map(|folder| folder.join("nvcc"))
        .find(|nvcc| nvcc.is_file())
        .map(|nvcc| (nvcc, false))
}

/// Compiles every source, as many at a time as cargo allows.
fn compile(nvcc: &Path, sources: &[PathBuf], out: &Path) -> Result<(), String> {
    let jobs: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for group in sources.chunks(jobs.max(1)) {
        thread::scope(|scope| {
            let running: Vec<_> = group.iter().map(|source| scope.spawn(|| compile_one(nvcc, source, out))).collect();
            running.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err("nvcc's thread panicked".into())))
        })?;
    }
    Ok(())
}

fn compile_one(nvcc: &Path, source: &Path, out: &Path) -> Result<(), String> {
    let to = out.join(source.file_stem().unwrap_or_default()).with_extension("fatbin");
    let run = Command::new(nvcc)
        // Contraction would change bits; the rest are the defaults that the arithmetic stands on.
        .args(["-std=c++17", "-O3", "--fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false", "-fatbin"])
        .args(TARGETS)
        .arg("-o")
        .args([&to, source])
        .output()
        .map_err(|e| format!("cannot run {}: {e}", nvcc.display()))?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    let line = said.lines().find(|line| line.contains("error")).or_else(|| said.lines().next()).unwrap_or_default();
    Err(format!("{} cannot compile {}: {line}", nvcc.display(), source.display()))
}

/// A source with its own headers in the place where they are first included.
fn flattened(source: &Path, seen: &mut Vec<PathBuf>) -> Result<String, String> {
    let text = read(source)?;
    let mut whole = String::with_capacity(text.len());
    for line in text.lines() {
        let header = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match header.map(|name| source.with_file_name(name)) {
            Some(header) if seen.contains(&header) => {}
            Some(header) => {
                seen.push(header.clone());
                whole.push_str(&flattened(&header, seen)?);
            }
            None if line == "#pragma once" => {}
            None => {
                whole.push_str(line);
                whole.push('\n');
            }
        }
    }
    Ok(whole)
}
