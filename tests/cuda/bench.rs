//! `merganser bench --device cuda`, tiny: every limit and path is there and is held against its limit, nothing is left behind,
//! and what fails ends cleanly. No time is asserted. Skipped, with the reason, where no device is there.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::both::{devices, stand_in};
use crate::support::child::{self, Ended};
use crate::support::{binary, quick_folder};

/// Runs it in a folder, which must be empty afterwards.
fn bench(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let dir = quick_folder();
    let mut command = Command::new(binary());
    command.args(["bench", "--device", "cuda:0", "--threads", "2", "--runs", "1", "--dir"]).arg(dir.path()).args(args);
    command.envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = child::end(command.spawn().unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{args:?} left something behind");
    ended
}

#[test]
fn every_path_on_a_device_is_held_against_one_of_its_limits() {
    let Some(device) = devices("a bench") else { return };
    let document = bench(&["--size", "1MiB", "--json"], &[]).expect(0, &[]).json();
    assert_eq!(document["device"]["backend"], "cuda");
    assert_eq!(document["device"]["name"], device.cuda[0].label().as_str());
    assert!(document["device"]["libraries"]["cublas"].is_string(), "{}", document["device"]);
    let rows = document["rows"].as_array().unwrap();
    let named = |name: &str| rows.iter().find(|row| row["name"].as_str().unwrap().starts_with(name)).unwrap();
    for name in ["host to device, page-locked", "host to device, pageable", "device to host, page-locked"]
        .into_iter()
        .chain(["device to host, pageable", "device memory copy", "matrix product, f32", "matrix product, f64"])
        .chain(["eigenvectors, f64, side", "eigenvectors, f64, 8 of side"])
    {
        assert!(named(name)["limit"].is_null() && named(name)["rate"].as_f64().unwrap() > 0.0, "{name}");
    }
    let held = |limit: &str| -> Vec<&Value> { rows.iter().filter(|row| row["limit"] == limit).collect() };
    let (kernels, streamed) = (held("device memory copy"), held("host to device, page-locked"));
    assert_eq!((kernels.len(), streamed.len()), (9, 9), "{rows:?}");
    for (kernel, whole) in kernels.iter().zip(&streamed) {
        assert_eq!(whole["name"].as_str().unwrap(), format!("{}, streamed", kernel["name"].as_str().unwrap()));
        // The first counts the output too, and all of them bfloat16.
        assert!(kernel["work"].as_f64().unwrap() > whole["work"].as_f64().unwrap());
    }
    assert_eq!(held("matrix product, f64").len(), 1, "cart");
    assert!(rows.iter().all(|row| row["predicted"].is_null()) || !device.cuda[0].name.contains("stand-in"));
    for row in rows.iter().filter(|row| !row["limit"].is_null()) {
        let limit = rows.iter().find(|other| other["name"] == row["limit"]).unwrap();
        let share = row["rate"].as_f64().unwrap() / limit["rate"].as_f64().unwrap();
        assert!((row["of_limit"].as_f64().unwrap() / share - 1.0).abs() < 1e-9, "{row}");
    }
}

#[test]
fn the_table_names_the_device_and_holds_what_was_asked_for() {
    let Some(device) = devices("a bench's table") else { return };
    let ended = bench(&["--size", "1MiB", "--only", "copies"], &[]).expect(0, &[]);
    assert!(ended.stdout.starts_with(&device.cuda[0].label()), "{}", ended.stdout);
    assert_eq!(ended.stdout.matches("GB/s").count(), 5, "{}", ended.stdout);
    bench(&["--only", "memory"], &[]).expect(1, &["called `memory`", "copies, products"]);
}

#[test]
fn what_a_device_lacks_or_does_wrong_ends_a_bench_cleanly() {
    let Some(_) = stand_in("a bench that fails") else { return };
    let memory = ("MERGANSER_STANDIN_MEMORY", "4MiB");
    let said = ["too little free memory", "8.39 MB of data", "--size"];
    bench(&["--size", "8MiB", "--only", "kernels"], &[memory]).expect(3, &said);
    for (fail, suite, said) in [
        ("copy:3", "copies", "cuda:0"),
        ("launch:9", "kernels", "could not launch"),
        ("lost:90", "streamed", "cuda:0"),
        ("blas:1", "products", "cuBLAS on cuda:0"),
        ("converge:1", "eigenvectors", "did not converge"),
    ] {
        let failed = bench(&["--size", "1MiB", "--only", suite], &[("MERGANSER_STANDIN_FAIL", fail)]);
        failed.expect(3, &["error: ", said]);
    }
    bench(&["--size", "1MiB", "--only", "cart"], &[("MERGANSER_STANDIN_FAIL", "solver:1")]).expect(3, &["cuSOLVER"]);
}

#[test]
fn what_the_rates_of_a_known_card_let_expect_stands_beside_what_was_measured() {
    let Some(_) = stand_in("a bench of a known card") else { return };
    let named = [("MERGANSER_STANDIN_NAME", "NVIDIA H100 80GB HBM3 (merganser stand-in)")];
    let document = bench(&["--size", "1MiB", "--json"], &named).expect(0, &[]).json();
    let rows = document["rows"].as_array().unwrap();
    let predicted = |name: &str| {
        let row = rows.iter().find(|row| row["name"].as_str().unwrap().starts_with(name)).unwrap();
        row["predicted"].as_f64()
    };
    for (name, expected) in [
        ("host to device, page-locked", 0.89 * 63e9),
        ("device to host, page-locked", 0.91 * 63e9),
        ("device memory copy", 0.89 * 3.35e12),
        ("matrix product, f64", 0.82 * 67e12),
        ("linear", 0.89 * 3.35e12),
    ] {
        let found = predicted(name).unwrap_or(f64::NAN);
        assert!((found / expected - 1.0).abs() < 1e-9, "{name}: {found}");
    }
    for name in ["eigenvectors, f64, side", "eigenvectors, f64, 8 of side", "task_arithmetic, streamed", "cart, small"]
    {
        assert!(predicted(name).is_some_and(|rate| rate > 0.0), "{name}");
    }
    for name in ["host to device, pageable", "ties"] {
        assert_eq!(predicted(name), None, "{name}");
    }
    let told = bench(&["--size", "1MiB", "--only", "copies"], &named).expect(0, &[]).stdout;
    assert!(told.contains("predicted") && told.contains("56.07 GB/s"), "{told}");
}
