//! A base and its fine-tunes, seeded, in a folder that goes with the test.

use std::path::PathBuf;

use safetensors::Dtype;

use super::tensor::{Tensor, write_folder};

/// Numbers that look random and are the same every time (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Around 0, with a variance of about 1.
    pub fn normal(&mut self) -> f64 {
        let bits = self.bits();
        let quarter = |i: u32| f64::from((bits >> (16 * i)) as u16) / 65536.0 - 0.5;
        (quarter(0) + quarter(1) + quarter(2) + quarter(3)) * 1.73
    }
}

/// A family of checkpoints on disk, and their tensors.
#[derive(Debug)]
pub struct Family {
    pub folder: tempfile::TempDir,
    /// The base, then the models.
    pub members: Vec<Vec<Tensor>>,
}

impl Family {
    /// Tensors of these names, dtypes and shapes: a base around 0 and models that differ from it by about a tenth. What is
    /// not a float is the same in all.
    pub fn new(folder: tempfile::TempDir, specs: &[(&str, Dtype, &[u64])], models: usize, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut members = vec![Vec::new(); models + 1];
        for (name, dtype, shape) in specs {
            let n = shape.iter().product::<u64>();
            let base: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
            let first = Tensor { name: (*name).into(), dtype: *dtype, shape: shape.to_vec(), bytes: Vec::new() };
            for (i, member) in members.iter_mut().enumerate() {
                if dtype.bitsize() < 8 {
                    let bytes = (0..first.stored_bytes()).map(|i| i as u8).collect();
                    member.push(Tensor { bytes, ..first.clone() });
                } else if first.is_float() {
                    let value = |v: &f64| if i == 0 { *v } else { v + 0.1 * rng.normal() };
                    let values: Vec<f64> = base.iter().map(value).collect();
                    member.push(Tensor::new(name, *dtype, shape, &values));
                } else {
                    let values: Vec<f64> = base.iter().map(|v| (v.abs() * 10.0).trunc() % 2.0).collect();
                    member.push(Tensor::new(name, *dtype, shape, &values));
                }
            }
        }
        let family = Self { folder, members };
        family.write();
        family
    }

    /// Of these tensors: the base first.
    pub fn of(members: Vec<Vec<Tensor>>) -> Self {
        let family = Self { folder: super::quick_folder(), members };
        family.write();
        family
    }

    /// Writes the folders `base`, `model-1`, `model-2` and so on; the second model in two files.
    pub fn write(&self) {
        for (i, tensors) in self.members.iter().enumerate() {
            write_folder(&self.path(&name(i)), tensors, if i == 2 && tensors.len() > 1 { 2 } else { 1 });
        }
        std::fs::write(self.path("base/config.json"), "{\"architectures\": [\"Test\"]}").unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a recipe into the family's folder.
    pub fn recipe(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Merges as a recipe says into a folder beside it, and gives what came out.
    pub fn merged(&self, name: &str, text: &str) -> Merged {
        let out = self.path(&format!("out-{name}"));
        super::merge(&self.recipe(name, text), &out).unwrap_or_else(|e| panic!("{name}: {e} {:?}\n{text}", e.hints()));
        Merged { tensors: super::read(&out), out }
    }

    /// A tensor of the base (0) or of a model (from 1).
    pub fn tensor(&self, member: usize, name: &str) -> &Tensor {
        self.members[member].iter().find(|t| t.name == name).unwrap()
    }
}

/// A merged output.
#[derive(Debug)]
pub struct Merged {
    pub out: PathBuf,
    pub tensors: std::collections::BTreeMap<String, Tensor>,
}

impl Merged {
    pub fn bytes(&self, tensor: &str) -> &[u8] {
        &self.tensors[tensor].bytes
    }

    pub fn values(&self, tensor: &str) -> Vec<f64> {
        self.tensors[tensor].values()
    }

    /// What the manifest says of a tensor.
    pub fn facts(&self, tensor: &str) -> serde_json::Value {
        super::stated(&self.out, tensor).facts
    }
}

/// The folder's name of a member.
pub fn name(member: usize) -> String {
    if member == 0 { "base".into() } else { format!("model-{member}") }
}

/// ‖a − b‖ / ‖b − start‖: the difference relative to the change.
pub fn relative(a: &[f64], b: &[f64], start: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
    let (apart, change) = (norm(a, b), norm(b, start));
    if apart == 0.0 { 0.0 } else { apart / change }
}
