//! What a batch system does to a merge: its signals, its grants, a second job on the same output.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::place::Place;

/// How often a merge that was faster than its signal is begun anew.
const ATTEMPTS: usize = 40;

/// A merge of the slow family on one thread, with `before` run in the process before it starts.
fn long_merge(place: &Place, out: &str, before: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static) -> Child {
    let mut command = place.command(&["merge", "cart.yaml", "-o", out, "--threads", "1", "--json"]);
    // SAFETY: `before` calls nothing but signal(2).
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(before)
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(child: &Child, signal: i32) {
    // SAFETY: kill(2) takes two numbers; the child has not been waited for, so that its number is its own.
    #[allow(unsafe_code)]
    let failed = unsafe { libc::kill(child.id() as i32, signal) };
    assert_eq!(failed, 0);
}

/// A family whose merge by CART takes seconds on one thread: matrices of this many rows and columns.
fn slow_family(place: &Place, side: usize) {
    use safetensors::tensor::{Dtype, TensorView};
    std::fs::create_dir_all(place.path("slow")).unwrap();
    for (model, name) in ["base", "a", "b", "c"].iter().enumerate() {
        let mut state = model as u32 + 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let tensors: Vec<(String, Vec<u8>)> = (0..12)
            .map(|layer| {
                let bytes = (0..side * side).flat_map(|_| next().to_le_bytes()).collect();
                (format!("layers.{layer}.mlp.weight"), bytes)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, bytes)| (name.as_str(), TensorView::new(Dtype::F32, vec![side, side], bytes).unwrap()));
        let file = safetensors::serialize(views, None).unwrap();
        std::fs::write(place.path(&format!("slow/{name}.safetensors")), file).unwrap();
    }
    let models = "[{model: slow/a.safetensors}, {model: slow/b.safetensors}, {model: slow/c.safetensors}]";
    place.write("cart.yaml", &format!("merge_method: cart\nbase_model: slow/base.safetensors\nmodels: {models}\n"));
}

/// Waits until the merge has said that it computes: its signals are handled by then.
fn until_it_computes(child: &mut Child) -> BufReader<std::process::ChildStderr> {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("computing on") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended early");
    }
    lines
}

/// Waits until every thread of the process has stopped; whether it did not end instead.
fn until_it_is_stopped(child: &mut Child) -> bool {
    let state = |task: &std::path::Path| {
        let text = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
        text.rsplit(") ").next().and_then(|rest| rest.chars().next())
    };
    let tasks = format!("/proc/{}/task", child.id());
    while child.try_wait().unwrap().is_none() {
        let mut all = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
        if all.all(|task| state(&task.path()) == Some('T')) {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    false
}

#[test]
fn each_signal_of_a_batch_system_stops_a_merge_that_resume_ends() {
    let place = Place::new();
    slow_family(&place, 256);
    for (signal, name, code) in [
        (libc::SIGHUP, "SIGHUP", 129),
        (libc::SIGINT, "SIGINT", 130),
        (libc::SIGUSR1, "SIGUSR1", 138),
        (libc::SIGUSR2, "SIGUSR2", 140),
        (libc::SIGTERM, "SIGTERM", 143),
    ] {
        // The merge may be over before this thread runs again, on a machine with much to do: it is begun anew then.
        let ended = (0..ATTEMPTS).find_map(|_| {
            let mut child = long_merge(&place, name, || Ok(()));
            let _log = until_it_computes(&mut child);
            send(&child, signal);
            let ended = child.wait_with_output().unwrap();
            let is_late = ended.status.code() == Some(0);
            if is_late {
                std::fs::remove_dir_all(place.path(name)).unwrap();
            }
            (!is_late).then_some(ended)
        });
        let ended = ended.expect("the merge was always faster");
        assert_eq!(ended.status.code(), Some(code), "{name}");
        let document: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(document["error"]["kind"], "interrupted");
        assert!(document["error"]["message"].as_str().unwrap().contains(name), "{document}");
        assert!(!place.path(name).exists());
    }
    let ended = place.run(&["merge", "cart.yaml", "-o", "SIGUSR1", "--resume", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(place.run(&["verify", "SIGUSR1"]).code, Some(0));
}

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    let place = Place::new();
    slow_family(&place, 128);
    let ignore = || {
        // SAFETY: signal(2) is async-signal-safe, and SIG_IGN is a valid action.
        #[allow(unsafe_code)]
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN)
        };
        Ok(())
    };
    let mut child = long_merge(&place, "out", ignore);
    let _log = until_it_computes(&mut child);
    send(&child, libc::SIGHUP);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
    assert!(place.path("out/merganser.json").is_file());
}

#[test]
fn a_second_merge_into_the_same_output_is_told_to_come_back() {
    let place = Place::new();
    slow_family(&place, 384);
    let child = (0..ATTEMPTS).find_map(|_| {
        let mut child = long_merge(&place, "out", || Ok(()));
        let _log = until_it_computes(&mut child);
        let partial = place.path("out.merganser-partial/merganser.plan.json");
        // Made by the first thing that the merge does.
        while !partial.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        send(&child, libc::SIGSTOP);
        if until_it_is_stopped(&mut child) && partial.exists() {
            return Some(child);
        }
        send(&child, libc::SIGCONT);
        child.wait().unwrap();
        std::fs::remove_dir_all(place.path("out")).unwrap();
        None
    });
    let child = child.expect("the merge was always faster");
    for more in [&[][..], &["--resume"], &["--overwrite"]] {
        let args = [&["merge", "cart.yaml", "-o", "out", "--json"][..], more].concat();
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(75), "{more:?}: {}", ended.stderr);
        let document: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&document["error"]["kind"], &document["error"]["exit_code"]), (&"busy".into(), &75.into()));
    }
    send(&child, libc::SIGTERM);
    send(&child, libc::SIGCONT);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
}

#[test]
fn what_a_batch_system_grants_bounds_threads_and_memory_unless_options_say_otherwise() {
    let place = Place::new();
    let devices = |set: &[(&str, &str)]| -> Value {
        let output = place.command(&["devices", "--json"]).envs(set.iter().copied()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let granted = devices(&[("SLURM_CPUS_PER_TASK", "1"), ("SLURM_MEM_PER_CPU", "200")]);
    assert_eq!(granted["cpu"]["threads"], 1);
    assert_eq!(granted["memory_budget"], 50 << 20);
    for name in ["NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS"] {
        assert_eq!(devices(&[(name, "1")])["cpu"]["threads"], 1, "{name}");
    }
    let (all, more) = (devices(&[]), devices(&[("NSLOTS", "60000"), ("SLURM_MEM_PER_NODE", "0")]));
    assert_eq!((&more["threads"], &more["memory_budget"]), (&all["threads"], &all["memory_budget"]));
    assert_eq!(
        (&more["batch_system"]["threads_by"], &all["batch_system"]["threads_by"]),
        (&"NSLOTS".into(), &Value::Null)
    );
    let plan = place
        .command(&["plan", "ties.yaml", "--json", "--threads", "2", "--memory-budget", "8G"])
        .envs([("SLURM_CPUS_PER_TASK", "1"), ("SLURM_MEM_PER_NODE", "100")])
        .output()
        .unwrap();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["memory_budget"], 8_000_000_000_u64);
    assert_eq!(plan["threads"], 2);
    // And `-v` says who bounds what; `-vv` names every tensor.
    let said = |name: &str, more: &str| {
        let mut command = place.command(&["merge", "ties.yaml", "-o", name, more]);
        let output = command.envs([("NSLOTS", "1"), ("SLURM_MEM_PER_NODE", "400")]).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let (some, all) = (said("v", "-v"), said("vv", "-vv"));
    assert!(some.contains("debug: without options this job may use 1 threads (by NSLOTS)"), "{some}");
    assert!(some.contains("(by SLURM_MEM_PER_NODE)") && some.contains("debug: merge took "), "{some}");
    assert!(!some.contains("finished `lm_head.weight`") && all.contains("finished `lm_head.weight`"), "{all}");
}
