//! What the tests of the command line share: a folder with a small family of checkpoints, and the binary run in it.

use std::borrow::Cow;
use std::process::{Child, Command, Stdio};

use regex::Regex;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

use crate::files::{copy_folder, root};

/// Threads and memory that the output states, fixed so that it is the same everywhere.
pub const FIXED: [&str; 4] = ["--threads", "2", "--memory-budget", "256MiB"];

/// A temporary folder with the goldens' family in `family/`, and recipes.
pub struct Place(TempDir);

/// How a run of the binary ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        copy_folder(&root().join("tests/goldens/family"), &place.path("family"));
        place.recipe("cart", "merge_method: cart\n", "base");
        place.recipe("ties", "merge_method: ties\nparameters: {density: 0.2, lambda: 1.0}\n", "base");
        place
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// `NAME.yaml`, of this base and the models a, b and c.
    pub fn recipe(&self, name: &str, method: &str, base: &str) {
        let models = "models:\n  - model: family/a\n  - model: family/b\n  - model: family/c.safetensors\n";
        self.write(&format!("{name}.yaml"), &format!("base_model: family/{base}\n{models}{method}"));
    }

    /// Writes a checkpoint of one file that is the base's but for what `change` does to its tensors.
    pub fn variant(&self, name: &str, change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) {
        let bytes = std::fs::read(self.path("family/base/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> = tensors
            .iter()
            .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            .collect();
        all.sort();
        change(&mut all);
        let views = all
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        std::fs::write(self.path(name), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_merganser"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        // What a user's shell may say of widths, colours and backtraces; `CI` makes the argument parser trust any terminal.
        const SAID: [&str; 8] = [
            "COLUMNS",
            "LINES",
            "CI",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            "FORCE_COLOR",
            "RUST_BACKTRACE",
            "RUST_LIB_BACKTRACE",
        ];
        // What a batch system may grant.
        const GRANTED: [&str; 7] = [
            "SLURM_CPUS_PER_TASK",
            "SLURM_CPUS_ON_NODE",
            "SLURM_MEM_PER_NODE",
            "SLURM_MEM_PER_CPU",
            "NCPUS",
            "LSB_DJOB_NUMPROC",
            "NSLOTS",
        ];
        command.env_remove("MERGANSER_CPU");
        for name in SAID.iter().chain(&GRANTED) {
            command.env_remove(name);
        }
        // What is said is the same whether this machine has devices or not.
        command.env("CUDA_VISIBLE_DEVICES", "");
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs the binary and compares everything it said with the snapshot `tests/cli/snapshots/NAME.txt`.
    #[track_caller]
    pub fn snapshot(&self, name: &str, args: &[&str]) {
        let Ended { code, stdout, stderr } = self.run(args);
        let code = code.map_or("signal".into(), |code| code.to_string());
        let shown: Vec<Cow<'_, str>> =
            args.iter().map(|arg| if arg.contains(' ') { format!("'{arg}'").into() } else { (*arg).into() }).collect();
        let text =
            format!("$ merganser {}\nexit code {code}\n--- stdout\n{stdout}--- stderr\n{stderr}", shown.join(" "));
        let path = root().join(format!("tests/cli/snapshots/{name}.txt"));
        snapbox::Assert::new()
            .action_env("SNAPSHOTS")
            .eq(snapbox::Data::text(self.redacted(text)), snapbox::Data::read_from(&path, None).raw());
    }

    /// What differs from machine to machine and from run to run, replaced by words in brackets.
    fn redacted(&self, text: String) -> String {
        let folder = self.0.path().canonicalize().unwrap();
        let mut text =
            text.replace(folder.to_str().unwrap(), "[DIR]").replace(self.0.path().to_str().unwrap(), "[DIR]");
        text = text.replace(&merganser::backend::cpu::features::name(), "[CPU]");
        text = text.replace(env!("CARGO_PKG_VERSION"), "[VERSION]");
        for (pattern, with) in [
            (r"in \d+\.\d\d s, \d+\.\d\d GB/s", "in [SECONDS] s, [RATE] GB/s"),
            (r"tensors? in \d+\.\d\d s\b", "tensors in [SECONDS] s"),
            (r#""(seconds|gb_per_s)": [-0-9.e]+"#, r#""$1": [NUMBER]"#),
            (r#""(created|timestamp|fingerprint)": ?"[^"]*""#, r#""$1": "[VOLATILE]""#),
            (r#""(instructions|computed_by)": "(portable|avx2|avx512)""#, r#""$1": "[SET]""#),
            (r"(?m)^path      (portable|avx2|avx512), ", "path      [SET], "),
            // What a plan takes is measured and tuned elsewhere, and not a matter of the command line.
            (r#""(passes|steps|read_bytes|bytes_read|operations)": [-0-9.e]+"#, r#""$1": [NUMBER]"#),
            (r#""(total|tables|per_thread|buffer|largest_step|memory)_bytes": \d+"#, r#""${1}_bytes": [SIZE]"#),
            (r"(?m)^memory .* of a budget of", "memory    [SIZE] of a budget of"),
            (r"(threads|buffers) × [0-9.]+ [kMG]?B", "$1 × [SIZE]"),
            (r"largest step [0-9.]+ [kMG]?B", "largest step [SIZE]"),
            (r"in at most [0-9.]+ [kMG]?B", "in at most [SIZE]"),
            (r"takes (at least )?[0-9.]+ [kMG]?B", "takes $1[SIZE]"),
            (r"give --memory-budget \d+MiB", "give --memory-budget [SIZE]"),
            // Why there is no CUDA: without a driver, and with one that is told to show no device.
            (
                r"libcuda.so.1, which comes with NVIDIA's driver, was not found|NVIDIA's driver finds no device(: CUDA_VISIBLE_DEVICES is set and empty, which hides every device)?",
                "[NO CUDA]",
            ),
            (r#"install an NVIDIA driver that supports [^"\n]*|unset CUDA_VISIBLE_DEVICES, or [^"\n]*"#, "[DO]"),
        ] {
            text = Regex::new(pattern).unwrap().replace_all(&text, with).into_owned();
        }
        text
    }
}

/// Waits until a process has its own handler of a signal; whether it still runs.
pub fn until_it_catches(child: &mut Child, signal: i32) -> bool {
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
        if u64::from_str_radix(caught, 16).unwrap() >> (signal - 1) & 1 == 1 {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    false
}
