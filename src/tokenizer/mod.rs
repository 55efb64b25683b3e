//! Vocabularies: what a model's `tokenizer.json` holds, and that of a merge.
//!
//! The file is read as JSON. The `tokenizers` crate would encode text too, which a merge never does, and costs more to
//! compile than all that is here.

pub(crate) mod templates;
mod tokens;
mod vocabulary;

pub(crate) use tokens::Tokens;
pub(crate) use vocabulary::{FILE, Vocabulary};

/// Whether a tensor has a row for each token, from its name: embeddings, heads and their biases.
pub(crate) fn is_by_token(tensor: &str) -> bool {
    const MODULES: [&str; 13] = [
        "embed_tokens",
        "wte",
        "word_embeddings",
        "embed_in",
        "tok_embeddings",
        "shared",
        "lm_head",
        "embed_out",
        "output_layer",
        "embedding",
        "decoder",
        "predictions",
        "vocab_projector",
    ];
    let Some((module, _)) = tensor.rsplit_once('.') else { return false };
    let last = module.rsplit('.').next().unwrap_or(module);
    MODULES.contains(&last) || tensor == "output.weight"
}

/// Whether a tensor is the one that tokens are looked up in.
pub(crate) fn is_embedding(tensor: &str) -> bool {
    is_by_token(tensor)
        && ["embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared", "embedding"]
            .iter()
            .any(|module| tensor.contains(module))
}

/// Whether a small file of a model's folder belongs to its tokenizer.
pub(crate) fn is_file(name: &str) -> bool {
    const NAMES: [&str; 3] = ["merges.txt", "special_tokens_map.json", "added_tokens.json"];
    NAMES.contains(&name)
        || ["tokenizer", "vocab", "chat_template"].iter().any(|start| name.starts_with(start))
        || name.ends_with(".model")
}
