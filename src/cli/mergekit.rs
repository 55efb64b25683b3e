//! What users of mergekit type: its options, each of which does what it means, or says in one line that it has no effect.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::{DeviceArgs, PlanArgs};
use crate::backend::device::Request;

/// Options without effect here: name, whether it takes a value, and why.
const IDLE: [(&str, bool, &str); 14] = [
    ("allow-crimes", false, "what fits together is judged by names and shapes, not by architectures"),
    ("trust-remote-code", false, "no code of a model is ever run"),
    ("clone-tensors", false, "sources are mapped and stay as they are"),
    ("lora-merge-cache", true, "adapters are applied as the base is read, without a copy"),
    ("lora-merge-dtype", true, "adapters are applied in float32 and rounded once"),
    ("async-write", false, "writing always goes on beside merging"),
    ("write-threads", true, "the number of writing threads follows from the plan"),
    ("lazy-unpickle", false, "only what is needed of a file is ever read"),
    ("low-cpu-memory", false, "memory is bounded by --memory-budget on any device"),
    ("read-to-gpu", false, "with --device cuda sources go to the device's memory at once"),
    ("multi-gpu", false, "--device cuda takes all devices"),
    ("safe-serialization", false, "outputs are always safetensors"),
    ("write-model-card", false, "the model card is always written, as it is part of what `verify` checks"),
    ("transformers-cache", true, "models are looked for in the Hub's cache: set HF_HUB_CACHE"),
];

/// Options of mergekit that are switches with a meaning here.
const SWITCHES: [&str; 4] = ["cuda", "gpu-rich", "copy-tokenizer", "unsafe-truncate-embeddings"];

/// mergekit's options and its second argument.
#[derive(Debug, Default)]
pub(super) struct Mergekit {
    /// OUT as the second argument.
    pub out: Option<PathBuf>,
    /// Whether the base's tokenizer is copied.
    pub copies_tokenizer: bool,
    /// Whether embeddings are cut to the rows that all models have.
    pub cuts_embeddings: bool,
    cuda: Option<bool>,
    shard_size: Option<u64>,
    seed: Option<u64>,
    threads: Option<u16>,
    idle: Vec<String>,
}

impl Mergekit {
    /// Puts what has a meaning into the command's own options; gives what to say of the rest.
    pub fn apply(&self, plan: &mut PlanArgs, device: &mut DeviceArgs) -> Vec<String> {
        if let Some(bytes) = self.shard_size {
            plan.shard_size = bytes;
        }
        if let Some(seed) = self.seed {
            plan.seed = seed;
        }
        if let Some(threads) = self.threads {
            plan.threads.threads.get_or_insert(threads);
        }
        match self.cuda {
            Some(true) if device.device == Request::Auto => device.device = Request::Cuda(None),
            Some(false) if device.device == Request::Auto => device.device = Request::Cpu,
            _ => {}
        }
        self.idle.clone()
    }
}

impl Args for Mergekit {
    fn augment_args(command: Command) -> Command {
        let out = Arg::new("OUT")
            .help("Output directory, as --out")
            .value_parser(clap::value_parser!(PathBuf))
            .index(2)
            .required_unless_present("out")
            .conflicts_with("out");
        let value = |name: &'static str| Arg::new(name).long(name).hide(true).action(ArgAction::Set);
        let mut command = command
            .arg(out)
            .arg(value("out-shard-size").value_parser(short_bytes))
            .arg(value("random-seed").value_parser(clap::value_parser!(u64)))
            .arg(value("num-threads").short('j').value_parser(clap::value_parser!(u16).range(1..=1024)));
        for (name, takes_value, _) in IDLE {
            command = if takes_value { command.arg(value(name)) } else { with_no_form(command, name) };
        }
        SWITCHES.into_iter().fold(command, with_no_form)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A switch and its `--no-` form, the later of which counts.
fn with_no_form(command: Command, name: &'static str) -> Command {
    let no: &'static str = Box::leak(format!("no-{name}").into_boxed_str());
    let switch = |name: &'static str, other: &'static str| {
        Arg::new(name).long(name).hide(true).action(ArgAction::SetTrue).overrides_with(other)
    };
    command.arg(switch(name, no)).arg(switch(no, name))
}

impl FromArgMatches for Mergekit {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_set = |name: &str| matches.get_flag(name);
        let mut idle = Vec::new();
        for (name, takes_value, why) in IDLE {
            let no = format!("no-{name}");
            let given = match takes_value {
                true => matches.contains_id(name).then_some(name),
                false if is_set(name) => Some(name),
                false => is_set(&no).then_some(no.as_str()),
            };
            idle.extend(given.map(|given| format!("--{given} has no effect: {why}")));
        }
        let cuda = match () {
            () if is_set("cuda") || is_set("gpu-rich") => Some(true),
            () if is_set("no-cuda") => Some(false),
            () => None,
        };
        Ok(Self {
            out: matches.get_one("OUT").cloned(),
            copies_tokenizer: !is_set("no-copy-tokenizer"),
            cuts_embeddings: is_set("unsafe-truncate-embeddings"),
            cuda,
            shard_size: matches.get_one("out-shard-size").copied(),
            seed: matches.get_one("random-seed").copied(),
            threads: matches.get_one("num-threads").copied(),
            idle,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A number of bytes as mergekit writes it: whole, with `k`, `m` or `b` for a thousand, a million or a billion.
fn short_bytes(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last().map(u8::to_ascii_lowercase) {
        Some(b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'm') => (&text[..text.len() - 1], 1_000_000),
        Some(b'b') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected a whole number of bytes, such as 5B (billion), 500M or 800K".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Mergekit, clap::Error> {
        let command = Mergekit::augment_args(
            Command::new("merge").arg(Arg::new("RECIPE").index(1)).arg(Arg::new("out").long("out")),
        );
        Mergekit::from_arg_matches(&command.try_get_matches_from([&["merge", "r.yaml"], arguments].concat())?)
    }

    #[test]
    fn every_option_of_mergekit_is_taken_and_one_without_effect_is_told() {
        for (name, takes_value, why) in IDLE {
            let forms = if takes_value {
                vec![format!("--{name}=x")]
            } else {
                vec![format!("--{name}"), format!("--no-{name}")]
            };
            for form in forms {
                let told = parsed(&["out", &form]).unwrap().idle;
                assert_eq!(told, [format!("{} has no effect: {why}", form.trim_end_matches("=x"))]);
            }
        }
    }

    #[test]
    fn options_with_a_meaning_have_it() {
        let all = parsed(&[
            "out",
            "--cuda",
            "--out-shard-size",
            "5B",
            "--random-seed",
            "7",
            "-j",
            "3",
            "--no-copy-tokenizer",
            "--unsafe-truncate-embeddings",
        ])
        .unwrap();
        assert_eq!(
            (all.cuda, all.shard_size, all.seed, all.threads),
            (Some(true), Some(5_000_000_000), Some(7), Some(3))
        );
        assert!(!all.copies_tokenizer && all.cuts_embeddings && all.idle.is_empty());
        assert_eq!(all.out.unwrap(), PathBuf::from("out"));
        assert_eq!(parsed(&["out", "--cuda", "--no-cuda"]).unwrap().cuda, Some(false));
        assert_eq!(parsed(&["out", "--gpu-rich"]).unwrap().cuda, Some(true));
    }

    #[test]
    fn out_stands_once() {
        assert!(parsed(&["out", "--out", "x"]).is_err());
        assert!(parsed(&[]).is_err());
        assert_eq!(parsed(&["--out", "x"]).unwrap().out, None);
    }

    #[test]
    fn sizes_are_mergekits() {
        for (text, bytes) in [("5B", 5_000_000_000), ("20m", 20_000_000), ("3K", 3_000), ("12", 12)] {
            assert_eq!(short_bytes(text).unwrap(), bytes);
        }
        for wrong in ["", "B", "1.5B", "-1", "0", "5GiB", "99999999999B"] {
            assert!(short_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
