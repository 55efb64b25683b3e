//! Models of the Hub that are not on this machine: a server on the loopback plays the Hub.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use merganser::dtype::Dtype;
use serde_json::{Value, json};

use crate::support::family::Rng;
use crate::support::tensor::{Tensor, write_folder};
use crate::support::{binary, quick_folder, read};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LARGE: &str = "model.layers.0.mlp.up_proj.weight";
const SMALL: &str = "model.norm.weight";

/// What was asked for: method, path, range, and how many bytes were sent.
type Asked = Arc<Mutex<Vec<(String, u64)>>>;

/// A server of models: `owner/name` and its folder.
struct Hub {
    endpoint: String,
    asked: Asked,
    folder: tempfile::TempDir,
    /// After how many bytes of an answer the connection breaks; 0 for never.
    breaks: Arc<Mutex<u64>>,
}

impl Hub {
    fn start() -> Self {
        let folder = quick_folder();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (asked, breaks) = (Asked::default(), Arc::new(Mutex::new(0)));
        let (root, notes, limit) = (folder.path().join("served"), Arc::clone(&asked), Arc::clone(&breaks));
        // The thread ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, notes, limit) = (root.clone(), Arc::clone(&notes), Arc::clone(&limit));
                std::thread::spawn(move || answer(&stream, &root, &notes, &limit));
            }
        });
        Self { endpoint, asked, folder, breaks }
    }

    /// A model of two shards, with a tensor that is larger than what is asked of a header.
    fn serve(&self, name: &str, seed: u64) -> Vec<Tensor> {
        let mut rng = Rng(seed);
        let mut random = |name: &str, shape: &[u64]| {
            let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
            Tensor::new(name, Dtype::F32, shape, &values)
        };
        let tensors = vec![random(LARGE, &[400, 500]), random(SMALL, &[500])];
        let folder = self.folder.path().join("served").join(name);
        write_folder(&folder, &tensors, 2);
        std::fs::write(folder.join("config.json"), "{\"architectures\": [\"Test\"]}").unwrap();
        std::fs::write(folder.join("code.py"), "raise SystemExit").unwrap();
        tensors
    }

    fn recipe(&self, models: [&str; 2]) -> PathBuf {
        let path = self.folder.path().join("recipe.yaml");
        let text = format!("merge_method: linear\nmodels: [{{model: {}}}, {{model: {}}}]\n", models[0], models[1]);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn run(&self, args: &[&str], with: &[(&str, &str)]) -> (Option<i32>, Value, String) {
        let mut command = Command::new(binary());
        for name in
            ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"]
        {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HUB_CACHE", self.cache()).env_remove("HF_TOKEN");
        let run = command.args(args).envs(with.iter().copied()).arg("--json").output().unwrap();
        let document = serde_json::from_slice(&run.stdout).unwrap_or(Value::Null);
        (run.status.code(), document, String::from_utf8(run.stderr).unwrap())
    }

    /// Paths asked for since the last call, and the bytes sent.
    fn asked(&self) -> (Vec<String>, u64) {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        let sent = asked.iter().map(|(_, bytes)| bytes).sum();
        (asked.into_iter().map(|(path, _)| path).collect(), sent)
    }
}

fn answer(mut stream: &TcpStream, root: &Path, notes: &Asked, limit: &Mutex<u64>) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap_or_default();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap_or_default();
        let Some((key, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
    }
    let path = first.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let (mut status, mut body, mut extra) = ("404 Not Found", Vec::new(), String::new());
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let (name, revision) = rest.split_once("/revision/").unwrap_or_default();
        if name == "org/gated" && headers.get("authorization").map(String::as_str) != Some("Bearer secret") {
            status = "403 Forbidden";
        } else if root.join(name).is_dir() && (revision == "main" || revision == COMMIT) {
            let files = std::fs::read_dir(root.join(name)).unwrap().flatten();
            let sibling = |file: std::fs::DirEntry| {
                let (file, bytes) = (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap());
                let hash = blake3_hex(&bytes);
                json!({"rfilename": file, "size": bytes.len(), "blobId": hash})
            };
            let mut siblings: Vec<Value> = files.map(sibling).collect();
            // What would lead out of the folder is not fetched.
            siblings.push(json!({"rfilename": "../../evil.json", "size": 2, "blobId": "00"}));
            body = json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes();
            status = "200 OK";
        }
    } else if let Some((name, file)) = path[1..].split_once(&format!("/resolve/{COMMIT}/"))
        && let Ok(bytes) = std::fs::read(root.join(name).join(file))
    {
        let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (from, to) = range.map_or((0, bytes.len()), |(from, to)| {
            (from.parse().unwrap(), to.parse::<usize>().unwrap().min(bytes.len() - 1) + 1)
        });
        extra = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, bytes.len());
        body = bytes[from..to].to_vec();
        status = "206 Partial Content";
    }
    let length = body.len();
    let mut most = limit.lock().unwrap();
    if *most > 0 && *most < body.len() as u64 {
        body.truncate(*most as usize);
        *most = 0;
    }
    notes.lock().unwrap().push((path, body.len() as u64));
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{extra}Connection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// A number of the content, as the Hub has one.
fn blake3_hex(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(1469598103934665603_u64, |sum, b| (sum ^ u64::from(*b)).wrapping_mul(1099511628211));
    format!("{sum:016x}{:024x}", bytes.len())
}

#[test]
fn without_leave_nothing_is_asked_of_the_network() {
    let hub = Hub::start();
    hub.serve("org/a", 1);
    let recipe = hub.recipe(["org/a", "org/a@main"]).display().to_string();
    for command in ["plan", "merge"] {
        let out = hub.folder.path().join("out").display().to_string();
        let more = if command == "merge" { vec!["-o", &out] } else { Vec::new() };
        let (status, _, told) = hub.run(&[&[command, &recipe][..], &more].concat(), &[]);
        assert!(status == Some(1) && told.contains("--download"), "{told}");
    }
    assert_eq!(hub.asked().0, Vec::<String>::new());
    // A path that is written as one never speaks of downloads.
    let recipe = hub.recipe(["./org/a", "./org/b"]).display().to_string();
    let (status, _, told) = hub.run(&["plan", &recipe, "--download"], &[]);
    assert!(status == Some(1) && !told.contains("download"), "{told}");
    assert_eq!(hub.asked().0, Vec::<String>::new());
    let recipe = hub.recipe(["org/a", "org/b"]).display().to_string();
    let (status, _, told) = hub.run(&["plan", &recipe, "--download"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(status == Some(2) || status == Some(1), "{told}");
    assert!(told.contains("HF_HUB_OFFLINE"), "{told}");
    assert_eq!(hub.asked().0, Vec::<String>::new());
}

#[test]
fn a_plan_fetches_headers_and_small_files_and_a_merge_everything_once() {
    let hub = Hub::start();
    let (a, b) = (hub.serve("org/a", 1), hub.serve("org/b", 2));
    let recipe = hub.recipe(["org/a", "org/b"]).display().to_string();
    let (status, plan, told) = hub.run(&["plan", &recipe], &[("MERGANSER_DOWNLOAD", "1")]);
    assert_eq!(status, Some(0), "{told}");
    assert_eq!(plan["totals"]["tensors"], 2);
    assert_eq!(plan["sources"][0]["path"], "org/a");
    let (paths, sent) = hub.asked();
    // Each file's first 256 KiB at most, of 800 KB.
    assert!(sent < 600_000, "{sent} bytes for a plan");
    assert!(!paths.iter().any(|path| path.contains("code.py") || path.contains("evil")), "{paths:?}");
    assert!(!hub.cache().exists());

    let out = hub.folder.path().join("out");
    let merge = ["merge", &recipe, "-o", &out.display().to_string(), "--download"].map(str::to_owned);
    let merge: Vec<&str> = merge.iter().map(String::as_str).collect();
    // A connection that breaks in the middle of a file is gone on with.
    *hub.breaks.lock().unwrap() = 700_000;
    let (status, _, told) = hub.run(&merge, &[]);
    assert_eq!(status, Some(0), "{told}");
    let merged = read(&out);
    for (tensor, other) in a.iter().zip(&b) {
        let mean: Vec<f64> = tensor.values().iter().zip(other.values()).map(|(a, b)| (a + b) / 2.0).collect();
        assert_eq!(merged[&tensor.name], Tensor::new(&tensor.name, Dtype::F32, &tensor.shape, &mean));
    }
    assert!(out.join("config.json").exists());
    let manifest = std::fs::read_to_string(out.join("merganser.json")).unwrap();
    assert!(manifest.contains("\"path\": \"org/a\"") && !manifest.contains(COMMIT));
    let model = hub.cache().join("models--org--a");
    assert_eq!(std::fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    let link = model.join("snapshots").join(COMMIT).join("config.json");
    assert!(std::fs::read_link(&link).unwrap().starts_with("../../blobs"));
    assert!(!model.join("snapshots").join(COMMIT).join("code.py").exists());
    let left: Vec<_> = std::fs::read_dir(model.join("blobs")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".incomplete")), "{left:?}");

    // Now from the cache, without the network and without leave.
    hub.asked();
    let (status, _, told) = hub.run(&["plan", &recipe], &[]);
    assert_eq!(status, Some(0), "{told}");
    assert_eq!(hub.asked().0, Vec::<String>::new());
    // Of a cache that lost a file, the file alone is fetched again.
    let shard = model.join("snapshots").join(COMMIT).join("model-00001-of-00002.safetensors");
    std::fs::remove_file(std::fs::canonicalize(&shard).unwrap()).unwrap();
    let (status, _, told) = hub.run(&["plan", &recipe], &[]);
    assert!(status == Some(1) && told.contains("only partly in the cache") && told.contains("--download"), "{told}");
    std::fs::remove_dir_all(&out).unwrap();
    let (status, _, told) = hub.run(&merge, &[]);
    assert_eq!(status, Some(0), "{told}");
    let whole: Vec<String> = hub.asked().0.into_iter().filter(|path| path.contains("org/b")).collect();
    assert_eq!(whole, Vec::<String>::new());
}

#[test]
fn every_mistake_is_found_before_the_first_whole_file() {
    let hub = Hub::start();
    hub.serve("org/a", 1);
    hub.serve("org/b", 2);
    let other =
        vec![Tensor::new(LARGE, Dtype::F32, &[2, 2], &[0.0; 4]), Tensor::new(SMALL, Dtype::F32, &[2], &[0.0; 2])];
    write_folder(&hub.folder.path().join("served/org/b"), &other, 2);
    let recipe = hub.recipe(["org/a", "org/b"]).display().to_string();
    let out = hub.folder.path().join("out").display().to_string();
    let (status, _, told) = hub.run(&["merge", &recipe, "-o", &out, "--download"], &[]);
    assert!(status == Some(1) && told.contains("shape mismatch"), "{told}");
    assert!(hub.asked().1 < 600_000);
    assert!(!hub.cache().exists());
    // A model that is not there, one of another revision, and one that this user may not see.
    for (name, words) in [
        ("org/none", "the Hub has no model `org/none`"),
        ("org/a@other", "of revision `other`"),
        ("org/gated", "HF_TOKEN"),
    ] {
        let recipe = hub.recipe(["org/a", name]).display().to_string();
        let (status, _, told) = hub.run(&["plan", &recipe, "--download"], &[]);
        assert!(status == Some(1) && told.contains(words), "{told}");
        assert!(told.contains("recipe.yaml:2"), "{told}");
    }
    hub.serve("org/gated", 3);
    let recipe = hub.recipe(["org/a", "org/gated"]).display().to_string();
    let (status, _, told) = hub.run(&["plan", &recipe, "--download"], &[("HF_TOKEN", "secret")]);
    assert_eq!(status, Some(0), "{told}");
}
