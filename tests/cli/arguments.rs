//! Exit codes of arguments, and what holds for the output of every command: one JSON document, nothing that a terminal
//! acts on, no complaint about a reader that has gone.

use std::process::Stdio;

use serde_json::Value;

use crate::place::{FIXED, Place};

#[test]
fn values_at_fault_end_with_1_and_flags_at_fault_with_2() {
    let place = Place::new();
    let plan = ["plan", "cart.yaml"];
    let merge = ["merge", "cart.yaml", "-o", "out"];
    for (command, args, code) in [
        (&plan[..], &["--memory-budget", "x"][..], 1),
        (&plan, &["--memory-budget", "0"], 1),
        (&plan, &["--memory-budget", "-5"], 1),
        (&plan, &["--memory-budget=-5MiB"], 1),
        (&plan, &["--threads", "0"], 1),
        (&plan, &["--threads", "-1"], 1),
        (&plan, &["--threads", "1e9"], 1),
        (&plan, &["--seed", "-1"], 1),
        (&plan, &["--seed", "18446744073709551616"], 1),
        (&plan, &["--shard-size", "0"], 1),
        (&plan, &["--shard-size", "-1"], 1),
        (&plan, &["--log-format", "xml"], 1),
        (&merge, &["--device", "gpu"], 1),
        (&merge, &["--device", "cuda:x"], 1),
        (&merge, &["--device", "cuda"], 3),
        (&["bench"], &["--size", "64KiB"], 1),
        (&["bench"], &["--size", "16EiB"], 1),
        (&["bench"], &["--size", "18446744073709551615"], 1),
        (&["bench"], &["--runs", "0"], 1),
        (&["bench"], &["--size", "1MiB", "--runs", "1", "--dir", "nowhere"], 1),
        (&["bench"], &["--device", "gpu"], 1),
        (&plan, &["--threads"], 2),
        (&plan, &["--log-format"], 2),
        (&plan, &["--colour"], 2),
        (&plan, &["another.yaml"], 2),
        (&plan, &["-q", "-v"], 2),
        (&["merge", "cart.yaml"], &[], 2),
        (&["plan"], &[], 2),
        (&["bench-press"], &[], 2),
        (&[], &[], 2),
        (&["--version"], &[], 0),
        (&["plan", "--help"], &[], 0),
    ] {
        let args = [command, args].concat();
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout.is_empty(), code != 0, "{args:?} speaks on the wrong stream: {}", ended.stdout);
        assert!(!place.path("out").exists());
    }
}

#[test]
fn with_json_stdout_holds_one_document_however_the_command_ends() {
    let place = Place::new();
    let merge = [&["merge", "cart.yaml", "-o", "out"][..], &FIXED].concat();
    for (args, code) in [
        (&["plan", "cart.yaml"][..], 0),
        (&["plan", "none.yaml"], 1),
        (&["plan", "cart.yaml", "--seed", "-1"], 1),
        (&["plan", "cart.yaml", "--sed", "1"], 2),
        (&["plan", "cart.yaml", "--threads", "1", "--memory-budget", "1KiB"], 1),
        (&merge, 0),
        (&merge, 1),
        (&["merge", "cart.yaml", "-o", "other", "--device", "cuda"], 3),
        (&["inspect", "family/a"], 0),
        (&["inspect", "cart.yaml"], 1),
        (&["compare", "family/a", "family/b"], 0),
        (&["compare", "family/a", "nowhere"], 1),
        (&["verify", "out"], 0),
        (&["verify", "family/a"], 1),
        (&["methods"], 0),
        (&["methods", "cart"], 0),
        (&["methods", "x"], 1),
        (&["devices"], 0),
        (&["devices", "x"], 2),
    ] {
        let args = [args, &["--json"]].concat();
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        let document: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"));
        assert_eq!(document["schema"], 2, "{args:?}");
        if code == 0 {
            assert!(document["error"].is_null(), "{args:?}");
        } else {
            let error = &document["error"];
            assert_eq!(error["exit_code"], code, "{args:?}");
            assert!(error["kind"].is_string() && error["hints"].is_array(), "{args:?}: {error}");
            let message = error["message"].as_str().unwrap();
            assert!(ended.stderr.contains(message.lines().next().unwrap()), "{args:?}: {}", ended.stderr);
        }
    }
}

#[test]
fn with_a_json_log_every_line_of_stderr_is_an_object() {
    let place = Place::new();
    let log = ["-vv", "--log-format=json"];
    let merge = [&["merge", "cart.yaml", "-o", "out"][..], &FIXED, &log].concat();
    for (args, code) in [
        (&merge[..], 0),
        (&merge, 1),
        (&["inspect", "nowhere", "--log-format", "json"], 1),
        (&["plan", "cart.yaml", "--log-format", "json", "--no-such"], 2),
    ] {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().all(|line| line["level"].is_string() && line["message"].is_string()), "{lines:?}");
        if code != 0 {
            assert_eq!(lines.last().unwrap()["exit_code"], code, "{lines:?}");
        }
    }
}

#[test]
fn a_quiet_command_says_nothing_but_its_data_and_its_error() {
    let place = Place::new();
    let merge = ["merge", "cart.yaml", "-o", "out", "-q"];
    let ended = place.run(&merge);
    assert_eq!((ended.code, &*ended.stdout, &*ended.stderr), (Some(0), "", ""));
    let ended = place.run(&merge);
    assert_eq!((ended.code, &*ended.stdout), (Some(1), ""));
    assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
    assert!(!place.run(&["inspect", "family/a", "-q"]).stdout.is_empty());
}

#[test]
fn no_command_lets_through_what_a_terminal_acts_on() {
    // Escape sequences as 7-bit and 8-bit codes, and characters that reverse or hide text.
    const EVIL: &str = "w\u{1b}[2J\u{9b}31m\u{202e}x\u{200b}\r\u{7f}";
    // Headers with control characters are refused, so a name in a valid one can only hold the others.
    const NAME: &str = "layers.0.\u{202e}evil\u{200b}\u{2066}.weight";
    let place = Place::new();
    let file = |name: &str, tensor: &str, dims: &str, key: &str| {
        let string = |text: &str| serde_json::to_string(text).unwrap();
        let header = format!(
            r#"{{"__metadata__":{{{}:{}}},{}:{{"dtype":"F32","shape":{dims},"data_offsets":[0,8]}}}}"#,
            string(key),
            string(EVIL),
            string(tensor),
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes().chain([0, 0, 128, 63, 0, 0, 0, 64]));
        std::fs::write(place.path(name), bytes).unwrap();
    };
    file("name.safetensors", NAME, "[2]", "a");
    file("shape.safetensors", NAME, "[1,2]", "a");
    file("refused.safetensors", EVIL, "[2]", "a");
    file("metadata.safetensors", "w", "[2]", EVIL);
    let odd = format!("odd{EVIL}.safetensors");
    file(&odd, "w", "[2]", "a");
    let recipe = |name: &str, base: &str, model: &str| {
        let text = |path: &str| serde_json::to_string(path).unwrap();
        let yaml = format!(
            "merge_method: task_arithmetic\nbase_model: {}\nmodels: [{{model: {}}}]\n",
            text(base),
            text(model)
        );
        place.write(name, &yaml);
    };
    recipe("good.yaml", "name.safetensors", "name.safetensors");
    recipe("shape.yaml", "name.safetensors", "shape.safetensors");
    recipe("lacks.yaml", "name.safetensors", "metadata.safetensors");
    recipe("missing.yaml", EVIL, "name.safetensors");
    recipe("odd.yaml", &odd, &odd);
    place.write("key.yaml", &format!("{}: 1\n", serde_json::to_string(EVIL).unwrap()));
    place.write("method.yaml", &format!("merge_method: {}\n", serde_json::to_string(EVIL).unwrap()));

    let mut codes = Vec::new();
    for args in [
        &["inspect", "name.safetensors"][..],
        &["inspect", "refused.safetensors"],
        &["inspect", "metadata.safetensors"],
        &["inspect", &odd],
        &["inspect", EVIL],
        &["compare", "name.safetensors", "name.safetensors"],
        &["compare", "name.safetensors", "shape.safetensors"],
        &["compare", "name.safetensors", &odd],
        &["plan", "good.yaml"],
        &["plan", "shape.yaml"],
        &["plan", "lacks.yaml"],
        &["plan", "missing.yaml"],
        &["plan", "odd.yaml"],
        &["plan", "key.yaml"],
        &["plan", "method.yaml"],
        &["plan", EVIL],
        &["merge", "good.yaml", "-vv", "-o", "out"],
        &["merge", "good.yaml", "-o", EVIL],
        &["merge", "good.yaml", "-o", EVIL],
        &["verify", "out"],
        &["verify", EVIL],
        &["verify", "good.yaml"],
        &["methods", EVIL],
        &["devices", EVIL],
    ] {
        for more in [&[][..], &["--json"], &["--log-format", "json"]] {
            let args = [args, more].concat();
            let ended = place.run(&args);
            let all = ended.stdout + &ended.stderr;
            let bad = all.chars().find(|c| merganser::checkpoint::is_unsafe(*c) && !matches!(c, '\n' | '\t'));
            assert_eq!(bad, None, "{args:?}: {all:?}");
            assert!(!all.is_empty(), "{args:?}");
            codes.push(ended.code);
        }
        // The same command again must find OUT absent.
        let _ = std::fs::remove_dir_all(place.path("merged"));
    }
    assert!(codes.iter().all(|code| matches!(code, Some(0..=2))), "{codes:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    place.variant("many.safetensors", |tensors| {
        // More lines than a pipe holds.
        tensors.extend((0..4000).map(|i| (format!("layers.{i}.weight"), safetensors::Dtype::U8, vec![1], vec![0])));
    });
    for args in [&["inspect", "many.safetensors"][..], &["inspect", "many.safetensors", "--json"], &["methods"]] {
        let mut child = place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}

#[test]
fn a_full_disk_under_stdout_is_told() {
    let place = Place::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = place.command(&["methods"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: cannot write to stdout"));
}

#[test]
fn devices_says_what_there_is_and_claims_no_cuda_that_is_not_there() {
    let place = Place::new();
    let text = place.run(&["devices"]).stdout;
    for label in ["CPU ", "threads ", "loops ", "RAM ", "budget ", "CUDA     none: ", "driver "] {
        assert!(text.lines().any(|line| line.starts_with(label)), "{label}: {text}");
    }
    let json: Value = serde_json::from_str(&place.run(&["devices", "--json"]).stdout).unwrap();
    assert_eq!((&json["cuda"]["usable"], &json["cuda"]["devices"]), (&Value::Bool(false), &Value::Array(vec![])));
    let bytes = |key: &str| json["memory"][key].as_u64();
    let (ram, budget) = (bytes("ram_bytes").unwrap(), json["memory_budget"].as_u64().unwrap());
    let usable = bytes("control_group_limit_bytes").unwrap_or(ram);
    assert!(budget == usable / 4 && usable <= ram, "{json}");
    assert!(json["cpu"]["threads"].as_u64().unwrap() >= 1);
    // A plan takes the same budget.
    let plan: Value = serde_json::from_str(&place.run(&["plan", "cart.yaml", "--json"]).stdout).unwrap();
    assert_eq!(plan["memory_budget"].as_u64(), Some(budget));
}

#[test]
fn methods_as_json_is_the_whole_registry() {
    let json: Value = serde_json::from_str(&Place::new().run(&["methods", "--json"]).stdout).unwrap();
    let methods = json["methods"].as_array().unwrap();
    let registry = merganser::methods::REGISTRY;
    assert_eq!(methods.len(), registry.len());
    for (shown, spec) in methods.iter().zip(registry) {
        assert_eq!((shown["name"].as_str(), shown["source"].as_str()), (Some(spec.name), Some(spec.source)));
        let parameters = shown["parameters"].as_array().unwrap();
        assert_eq!(parameters.len(), spec.parameters.len());
        for (shown, spec) in parameters.iter().zip(spec.parameters) {
            assert_eq!(shown["name"].as_str(), Some(spec.name));
            assert!(shown["kind"].is_string() && shown["scope"].is_string() && shown.get("default").is_some());
        }
    }
}

#[test]
fn an_instruction_set_is_forced_stated_and_gives_the_same_bytes() {
    let place = Place::new();
    let devices: Value = serde_json::from_str(&place.run(&["devices", "--json"]).stdout).unwrap();
    let possible: Vec<&str> =
        devices["cpu"]["possible_instructions"].as_array().unwrap().iter().map(|set| set.as_str().unwrap()).collect();
    assert!(possible[0] == "portable" && possible.last().copied() == devices["cpu"]["instructions"].as_str());
    let digests = |set: &str| {
        let merge = ["merge", "ties.yaml", "-o", set, "-q"];
        let ended = place.command(&merge).env("MERGANSER_CPU", set).output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
        let manifest = std::fs::read(place.path(set).join("merganser.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["device"]["instructions"], set);
        let tensors = manifest["tensors"].as_array().unwrap();
        tensors.iter().map(|tensor| tensor["digest"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all: Vec<_> = possible.iter().map(|set| digests(set)).collect();
    assert!(all[0].len() > 10 && all.iter().all(|digests| *digests == all[0]));
    for (set, said) in [("sse9", "is `sse9`, expected one of `portable`, `avx2`, `avx512`"), ("\u{7f}", "\\u{7f}")] {
        let ended = place.command(&["plan", "ties.yaml", "--json"]).env("MERGANSER_CPU", set).output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let error: Value = serde_json::from_slice(&ended.stdout).unwrap();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(error["error"]["kind"] == "usage" && message.contains(said), "{error}");
        assert!(error["error"]["hints"][0].as_str().unwrap().starts_with("possible here: `portable`"), "{error}");
    }
    // Nothing asked for is nothing asked for.
    assert_eq!(place.command(&["methods"]).env("MERGANSER_CPU", "").output().unwrap().status.code(), Some(0));
}
