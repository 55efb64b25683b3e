//! Adapters of one base in the space that they span together (Core Space, arXiv 2509.17786): each as a small matrix.
//!
//! Of one module let A_t be [r_t, n] and B_t [m, r_t], alpha/r inside B_t. With orthonormal V of the rows of all A_t together
//! and U of the columns of all B_t, s_t·B_t·A_t = U M_t Vᵀ for M_t = (Uᵀ B_t)(A_t V), exactly: a method merges the M_t, and
//! U M Vᵀ is an adapter again. Here U and V come of QR decompositions, whose triangles are Uᵀ B and A V.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use faer::Mat;
use faer::linalg::solvers::Qr;

use super::Held;
use super::adapter::{Adapter, Module};
use super::lora::Instead;
use crate::backend::cpu::stored::Stored;
use crate::checkpoint::{Checkpoint, Made, Origin, Shard, quoted, quoted_path};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};

/// Modules whose decompositions are kept.
const KEPT: usize = 4;
const F64_BYTES: u64 = 8;

/// Adapters of one base.
#[derive(Debug)]
pub(crate) struct Core {
    /// Modules that any of them changes.
    pub modules: Vec<CoreModule>,
    /// Tensors that any of them holds whole: the base's name, and the name in an adapter's file.
    pub whole: Vec<(String, String)>,
    /// Whether matrices are stored transposed (`fan_in_fan_out`), as all of the adapters say.
    pub is_transposed: bool,
    /// Whether biases of modules with factors are among the whole tensors.
    pub has_biases: bool,
    /// The widest type of factors.
    pub dtype: Dtype,
    of_adapters: Vec<BTreeMap<String, Held>>,
    adapters: Vec<Checkpoint>,
    kept: Mutex<VecDeque<(usize, Arc<Reduced>)>>,
}

/// One module of all adapters.
#[derive(Debug)]
pub(crate) struct CoreModule {
    /// Its name in the base.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [u64; 2],
    /// Whether it is an embedding, whose factors have other names.
    pub is_embedding: bool,
    /// By adapter; none for one that leaves the module as it is.
    factors: Vec<Option<Factors>>,
    /// Σ r_t.
    ranks: u64,
}

#[derive(Debug)]
struct Factors {
    a: Held,
    b: Held,
    rank: u64,
    scale: f64,
    /// Where its columns begin among those of all.
    begin: u64,
}

/// A module's bases and what of each adapter is in them.
#[derive(Debug)]
pub(crate) struct Reduced {
    /// U: [m, k_b].
    pub u: Mat<f64>,
    /// V: [n, k_a].
    pub v: Mat<f64>,
    /// Uᵀ [B_1 …]: [k_b, Σ r].
    left: Mat<f64>,
    /// Vᵀ [A_1ᵀ …]: [k_a, Σ r].
    right: Mat<f64>,
}

impl CoreModule {
    /// Rows and columns of its core matrices.
    pub fn core_shape(&self) -> [u64; 2] {
        [self.ranks.min(self.shape[0]), self.ranks.min(self.shape[1])]
    }
}

impl Core {
    /// Reads adapters, each by what the recipe calls it and its folder, of a base.
    ///
    /// # Errors
    /// Input, for adapters that do not fit the base or each other, and for DoRA.
    pub fn open(base: &Checkpoint, written: &str, folders: &[(&str, &Path)]) -> Result<Self> {
        let mut adapters = Vec::with_capacity(folders.len());
        for (_, folder) in folders {
            adapters.push(Adapter::read(folder)?);
        }
        let is_transposed = adapters.iter().any(|adapter| adapter.config.flag("fan_in_fan_out"));
        let mut names: Vec<&String> = adapters.iter().flat_map(|adapter| adapter.modules.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let mut modules = Vec::with_capacity(names.len());
        for name in names {
            modules.push(module(base, written, name, &adapters, is_transposed)?);
        }
        let mut whole: BTreeMap<String, String> = BTreeMap::new();
        for (adapter, (own, _)) in adapters.iter().zip(folders) {
            for (name, held) in &adapter.whole {
                let stored = base.get(name).filter(|stored| stored.shape == held.tensor.shape).ok_or_else(|| {
                    let message = format!(
                        "{} of {} fits no tensor of {}",
                        quoted(&held.tensor.name),
                        quoted(own),
                        quoted(written)
                    );
                    adapter.config.error(message)
                })?;
                if !stored.dtype.is_mergeable_float() || !held.tensor.dtype.is_mergeable_float() {
                    return Err(adapter.config.error(format!(
                        "{} is stored as {}, which is no float",
                        quoted(name),
                        held.tensor.dtype
                    )));
                }
                whole.entry(name.clone()).or_insert_with(|| held.tensor.name.clone());
            }
        }
        let factors = modules.iter().flat_map(|module: &CoreModule| module.factors.iter().flatten());
        let is_wide =
            factors.flat_map(|f| [f.a.tensor.dtype, f.b.tensor.dtype]).any(|d| matches!(d, Dtype::F32 | Dtype::F64));
        let has_biases = whole.values().any(|name| name.contains(".base_layer."));
        let of_adapters =
            adapters.iter_mut().map(|adapter| std::mem::take(&mut adapter.whole).into_iter().collect()).collect();
        Ok(Self {
            modules,
            whole: whole.into_iter().collect(),
            is_transposed,
            has_biases,
            dtype: if is_wide { Dtype::F32 } else { Dtype::BF16 },
            of_adapters,
            adapters: adapters.into_iter().map(|adapter| adapter.checkpoint).collect(),
            kept: Mutex::default(),
        })
    }

    /// The base (`None`) or an adapter as a checkpoint of core matrices, and of whole tensors as the model has them.
    pub fn checkpoint(self: &Arc<Self>, base: &Checkpoint, adapter: Option<usize>) -> Result<Checkpoint> {
        let held = |name: &String| {
            let own = adapter.and_then(|at| self.of_adapters[at].get(name));
            own.cloned().or_else(|| {
                let tensor = base.get(name)?;
                Some(Held { shard: Arc::clone(base.shared_shard(tensor.shard)), tensor: tensor.clone() })
            })
        };
        let mut planned = Vec::new();
        let mut made: Vec<Arc<dyn Made>> = Vec::new();
        for (at, module) in self.modules.iter().enumerate() {
            planned.push((format!("{}.weight", module.name), Dtype::F64, module.core_shape().to_vec()));
            let is_changed = |adapter: &usize| module.factors[*adapter].is_some();
            made.push(match adapter.filter(is_changed) {
                Some(adapter) => Arc::new(CoreMatrix { core: Arc::clone(self), module: at, adapter }),
                None => Arc::new(Zeros),
            });
        }
        for (name, _) in &self.whole {
            let held = held(name).ok_or_else(|| Error::internal(format!("`{name}` vanished")))?;
            planned.push((name.clone(), held.tensor.dtype, held.tensor.shape.clone()));
            made.push(Arc::new(Instead(held)));
        }
        let facts: Vec<(Dtype, Vec<u64>)> = planned.iter().map(|(_, dtype, shape)| (*dtype, shape.clone())).collect();
        let path = base.path().to_string_lossy();
        let mut checkpoint = Checkpoint::planned(&path, None, planned)?;
        for (at, ((dtype, shape), made)) in facts.into_iter().zip(made).enumerate() {
            checkpoint.replace(at, dtype, shape, made)?;
        }
        match adapter {
            Some(adapter) => checkpoint.adopt(&self.adapters[adapter]),
            None => checkpoint.adopt(base),
        }
        Ok(checkpoint)
    }

    /// Bytes that bases of modules take, and what is made of one of them.
    pub fn bytes(&self) -> u64 {
        let of = |module: &CoreModule| {
            let ([m, n], r) = (module.shape, module.ranks);
            // U, V and both triangles; the stacks that they come of, and the factors that are made, are as large again.
            8 * (m.saturating_add(n).saturating_mul(r) + 2 * r.saturating_mul(r))
        };
        (KEPT as u64 + 3) * self.modules.iter().map(of).max().unwrap_or_default()
    }

    /// The bases of a module.
    pub fn reduced(&self, at: usize) -> Result<Arc<Reduced>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = kept.iter().find(|(module, _)| *module == at) {
            return Ok(Arc::clone(known));
        }
        // One thread decomposes while others that want the same wait.
        let reduced = Arc::new(self.modules[at].reduce()?);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((at, Arc::clone(&reduced)));
        Ok(reduced)
    }
}

/// One module of all adapters, checked against the base and each other.
fn module(
    base: &Checkpoint,
    written: &str,
    name: &str,
    adapters: &[Adapter<'_>],
    is_transposed: bool,
) -> Result<CoreModule> {
    let mut found: Option<([u64; 2], bool)> = None;
    let (mut factors, mut begin) = (Vec::with_capacity(adapters.len()), 0);
    for adapter in adapters {
        let Some(module) = adapter.modules.get(name) else {
            factors.push(None);
            continue;
        };
        if module.magnitudes.is_some() {
            let message = format!("{} has DoRA's magnitudes, which core space cannot hold", quoted(name));
            return Err(adapter
                .config
                .error(message)
                .hint("merge the models: without `output: lora` DoRA is put on the base"));
        }
        // All that can be wrong with an adapter of its base.
        adapter.config.adapted(base, written, name, module.clone())?;
        let Module { a: Some(a), b: Some(b), is_embedding, .. } = module else {
            return Err(Error::internal(format!("half a pair of `{name}` passed")));
        };
        let (rank, shape) = (a.tensor.shape[0], [b.tensor.shape[0], a.tensor.shape[1]]);
        let known = *found.get_or_insert((shape, *is_embedding));
        if known != (shape, *is_embedding) || (!is_embedding && adapter.config.flag("fan_in_fan_out") != is_transposed)
        {
            let message = format!("factors of {} make {shape:?}, those of another adapter {:?}", quoted(name), known.0);
            return Err(adapter.config.error(message));
        }
        let scale = adapter.config.scale(name, rank)?;
        factors.push(Some(Factors { a: a.clone(), b: b.clone(), rank, scale, begin }));
        begin += rank;
    }
    let (shape, is_embedding) = found.ok_or_else(|| Error::internal(format!("no adapter has `{name}`")))?;
    Ok(CoreModule { name: name.to_owned(), shape, is_embedding, factors, ranks: begin })
}

impl CoreModule {
    fn reduce(&self) -> Result<Reduced> {
        let ([m, n], ranks) = (self.shape.map(|d| d as usize), self.ranks as usize);
        let (mut rows, mut columns) = (Mat::<f64>::zeros(n, ranks), Mat::<f64>::zeros(m, ranks));
        for factors in self.factors.iter().flatten() {
            let (rank, begin) = (factors.rank as usize, factors.begin as usize);
            let a = numbers(&factors.a)?;
            for (k, row) in a.chunks_exact(n.max(1)).enumerate() {
                row.iter().enumerate().for_each(|(j, v)| rows[(j, begin + k)] = *v);
            }
            let b = numbers(&factors.b)?;
            for (i, row) in b.chunks_exact(rank.max(1)).enumerate() {
                row.iter().enumerate().for_each(|(k, v)| columns[(i, begin + k)] = factors.scale * v);
            }
            if a.iter().chain(&b).any(|v| !v.is_finite()) {
                let message = format!("factors of {} hold a NaN or an infinity", quoted(&self.name));
                return Err(Error::input(format!("{}: {message}", quoted_path(factors.a.shard.path()))));
            }
        }
        let (left, right) = (Qr::new(columns.as_ref()), Qr::new(rows.as_ref()));
        Ok(Reduced {
            u: left.compute_thin_Q(),
            v: right.compute_thin_Q(),
            left: left.thin_R().to_owned(),
            right: right.thin_R().to_owned(),
        })
    }
}

fn numbers(held: &Held) -> Result<Vec<f64>> {
    let mut values = vec![0.0; held.tensor.elems as usize];
    let mut scratch = Vec::new();
    let bytes = held.shard.bytes(held.tensor.range(), &mut scratch)?;
    Stored { dtype: held.tensor.dtype, bytes }.widen(0, &mut values);
    Ok(values)
}

/// M_t of a module.
#[derive(Debug)]
struct CoreMatrix {
    core: Arc<Core>,
    module: usize,
    adapter: usize,
}

impl Made for CoreMatrix {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let module = &self.core.modules[self.module];
        let Some(factors) = &module.factors[self.adapter] else { return Zeros.make(range, out) };
        let reduced = self.core.reduced(self.module)?;
        let columns = module.core_shape()[1];
        let own = factors.begin as usize..(factors.begin + factors.rank) as usize;
        for element in range.start / F64_BYTES..range.end / F64_BYTES {
            let (i, j) = ((element / columns) as usize, (element % columns) as usize);
            let sum: f64 = own.clone().map(|k| reduced.left[(i, k)] * reduced.right[(j, k)]).sum();
            out.extend_from_slice(&sum.to_le_bytes());
        }
        Ok(())
    }

    fn of(&self, _: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        let factors = self.core.modules[self.module].factors[self.adapter].as_ref()?;
        Some((&factors.a.shard, factors.a.tensor.range()))
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        let factors = self.core.modules[self.module].factors[self.adapter].as_ref();
        let parts = factors.map_or_else(Vec::new, |factors| vec![factors.a.part("A"), factors.b.part("B")]);
        Origin { how: "(Uᵀ·s·B)(A·V), in the space that all adapters span".into(), parts }
    }
}

/// A module that is as the base has it.
#[derive(Debug)]
struct Zeros;

impl Made for Zeros {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        out.resize(out.len() + (range.end - range.start) as usize, 0);
        Ok(())
    }

    fn of(&self, _: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        None
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        Origin { how: "zero, as the adapter leaves the module as it is".into(), parts: Vec::new() }
    }
}
