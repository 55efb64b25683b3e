//! The first reading: what changed, how it is held, and the ranks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::pair::{At, Held, Pair};
use super::write::{self, Scratches};
use super::{Adaptation, in_parallel};
use crate::checkpoint::quoted;
use crate::error::{Error, Result};
use crate::factors::lora;
use crate::run::Stop;

/// How many tensors a note names.
const NAMED: usize = 3;

/// One tensor that the adapter holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub at: At,
    pub held: Held,
    /// Of a matrix: the rank of its factors.
    pub rank: u64,
}

/// What an adapter is made of.
#[derive(Debug)]
pub(super) struct Survey {
    /// In the fine-tune's order.
    pub changes: Vec<Change>,
    pub modules: lora::Modules,
    pub notes: Vec<String>,
}

impl Survey {
    /// Reads both models.
    pub fn take(of: &Adaptation<'_>, read: &AtomicU64, stop: &Stop) -> Result<Self> {
        let pair = of.pair;
        let all: Vec<At> = pair.all().collect();
        let found: Mutex<BTreeMap<usize, u64>> = Mutex::default();
        let threads = write::threads(of)?;
        in_parallel(threads, all.len(), stop, |item, scratches: &mut Scratches| {
            let at = all[item];
            if !pair.is_changed(at, &mut scratches.raw)? {
                return Ok(());
            }
            read.fetch_add(pair.base_at(at).bytes + pair.tuned_at(at).bytes, Ordering::Relaxed);
            let rank = if !pair.is_matrix(at) {
                0
            } else if of.keep.is_fixed() {
                write::most(of, at)
            } else {
                write::rank(of, at, scratches, stop, read)?
            };
            found.lock().unwrap_or_else(PoisonError::into_inner).insert(item, rank);
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        if found.is_empty() {
            return Err(Error::input(format!(
                "{} and {} are the same model: no element differs",
                quoted(&pair.base_name),
                quoted(&pair.tuned_name)
            ))
            .hint("an adapter holds what changed: give a fine-tune of the base"));
        }
        Ok(Self::of(pair, &all, &found))
    }

    /// How each tensor that changed is held. `found`: positions in `all`, with the ranks of matrices.
    fn of(pair: &Pair, all: &[At], found: &BTreeMap<usize, u64>) -> Self {
        let module_of = |at: At| pair.tuned_at(at).name.rsplit_once('.').map(|(module, _)| module);
        let is_factored = |item: &usize| pair.is_matrix(all[*item]) && found.get(item).is_some_and(|rank| *rank > 0);
        let factored: BTreeSet<&str> =
            (0..all.len()).filter(is_factored).filter_map(|item| module_of(all[item])).collect();
        let names: Vec<&str> = pair.tuned.tensors().iter().map(|t| t.name.as_str()).collect();
        // A module that holds tensors itself and no other modules.
        let is_leaf = |module: &str| {
            let within = |name: &&str| name.strip_prefix(module)?.strip_prefix('.').map(|rest| rest.contains('.'));
            names.iter().filter_map(within).all(|is_deeper| !is_deeper)
        };
        let (mut saved, mut alone, mut vanished) = (BTreeSet::new(), Vec::new(), 0_usize);
        let mut modules = lora::Modules::default();
        let mut held: BTreeMap<usize, Held> = BTreeMap::new();
        for (item, rank) in found {
            let at = all[*item];
            let name = &pair.tuned_at(at).name;
            match module_of(at) {
                _ if pair.is_matrix(at) && *rank == 0 => vanished += 1,
                Some(module) if pair.is_matrix(at) => {
                    modules.factors.push((module.to_owned(), *rank));
                    held.insert(*item, Held::Factors);
                }
                Some(module) if factored.contains(module) && name.ends_with(".bias") => {
                    modules.has_biases = true;
                    held.insert(*item, Held::Bias);
                }
                Some(module) if is_leaf(module) && !factored.contains(module) => {
                    saved.insert(module);
                }
                _ => {
                    alone.push(quoted(name));
                    held.insert(*item, Held::Alone);
                }
            }
        }
        // PEFT saves a module with all that it holds.
        for (item, at) in all.iter().enumerate() {
            if module_of(*at).is_some_and(|module| saved.contains(module)) {
                held.insert(item, Held::Whole);
            }
        }
        modules.saved = saved.into_iter().map(str::to_owned).collect();
        let mut notes = pair.warnings.clone();
        if vanished > 0 {
            notes
                .push(format!("{vanished} matrices changed by no more than `--epsilon` and stay as the base has them"));
        }
        if !alone.is_empty() {
            let more = alone.len().saturating_sub(NAMED);
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            notes.push(format!(
                "PEFT has no module for {}{rest}, which changed and are stored whole: merganser puts them on the base, PEFT \
                 leaves them out",
                alone[..alone.len().min(NAMED)].join(", ")
            ));
        }
        if modules.factors.is_empty() {
            notes.push(
                "no module has factors: PEFT asks for one at least, merganser puts what is stored whole on the base"
                    .into(),
            );
        }
        let change = |(item, held): (&usize, &Held)| Change {
            at: all[*item],
            held: *held,
            rank: found.get(item).copied().unwrap_or_default(),
        };
        let changes = held.iter().map(change).collect();
        Self { changes, modules, notes }
    }

    /// Tensors that are stored whole.
    pub fn whole(&self) -> usize {
        self.changes.iter().filter(|change| change.held != Held::Factors).count()
    }
}
