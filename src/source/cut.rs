//! Embeddings and heads cut to the rows that all models have, as `--unsafe-truncate-embeddings` asks.

use std::sync::Arc;

use super::Held;
use super::lora::Instead;
use crate::checkpoint::{Checkpoint, quoted};
use crate::error::Result;
use crate::tokenizer::is_by_token;

/// Cuts tensors with a row for each token to the fewest rows of any model, whatever the tokens are. Gives warnings. Models are
/// given with what the user calls them.
///
/// # Errors
/// A tensor of an impossible shape.
pub(crate) fn cut_embeddings(models: &mut [(&str, &mut Checkpoint)]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let names: Vec<String> = match models.first() {
        Some((_, first)) => first.tensors().iter().map(|t| t.name.clone()).filter(|name| is_by_token(name)).collect(),
        None => Vec::new(),
    };
    for name in names {
        let rows = |checkpoint: &Checkpoint| checkpoint.get(&name)?.shape.first().copied();
        let Some(least) = models.iter().filter_map(|(_, checkpoint)| rows(checkpoint)).min() else { continue };
        for (written, checkpoint) in models.iter_mut() {
            let Some(at) = checkpoint.position(&name) else { continue };
            let tensor = checkpoint.tensors()[at].clone();
            let Some((all, rest)) = tensor.shape.split_first().filter(|(all, _)| **all > least) else { continue };
            warnings.push(format!(
                "{} of {} is cut from {all} to {least} rows, whatever their tokens are; `vocab_size` stays",
                quoted(&name),
                quoted(written)
            ));
            let shape = [&[least], rest].concat();
            let held = Held { shard: Arc::clone(checkpoint.shared_shard(tensor.shard)), tensor: tensor.clone() };
            checkpoint.replace(at, tensor.dtype, shape, Arc::new(Instead(held)))?;
        }
    }
    Ok(warnings)
}
