//! Which lists of layers a checkpoint has, and which of its tensors belong to which of them.
//!
//! A *tower* is a numbered list of layers (`model.layers`, `encoder.block`) with the tensors around it. Most models have
//! one; encoder-decoders have two, and models that see have a vision tower beside the language model.

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, LayerMap};

/// A checkpoint's towers.
#[derive(Debug)]
pub(super) struct Towers {
    /// In the order of their names.
    pub all: Vec<Tower>,
}

/// A list of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tower {
    /// What `modules` calls it.
    pub module: String,
    /// What stands before the number of a layer: `model.layers`.
    pub list: String,
    /// How many layers there are.
    pub depth: u32,
}

impl Towers {
    /// The towers of a checkpoint, from the names of its tensors.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Self::of_names(checkpoint.tensors().iter().map(|t| t.name.as_str()))
    }

    fn of_names<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut lists: BTreeMap<String, u32> = BTreeMap::new();
        for layer in LayerMap::new(names).groups() {
            let Some(index) = layer.index else { continue };
            let list = layer.label.strip_suffix(&format!(".{index}")).unwrap_or(&layer.label);
            // Layers that predict further tokens are an attachment of a decoder, not a tower.
            if list.split('.').any(|segment| segment == "mtp") {
                continue;
            }
            let depth = lists.entry(list.to_owned()).or_default();
            *depth = (index + 1).max(*depth);
        }
        let is_one = lists.len() == 1;
        let all = lists.into_iter().map(|(list, depth)| Tower { module: module_of(&list, is_one), list, depth });
        Self { all: all.collect() }
    }

    /// The tower that a module's name means: mergekit's name for it, or its list.
    pub fn named(&self, module: &str) -> Option<&Tower> {
        self.all.iter().find(|t| t.module == module || t.list == module)
    }

    /// The module that a tensor belongs to.
    pub fn module_of(&self, tensor: &str) -> &str {
        if let [only] = &self.all[..] {
            return &only.module;
        }
        let within = |t: &&Tower| tensor.strip_prefix(t.list.as_str()).is_some_and(|rest| rest.starts_with('.'));
        if let Some(tower) = self.all.iter().find(within) {
            return &tower.module;
        }
        if tensor.contains("projector") {
            return PROJECTOR;
        }
        // What lies beside a list, below the same parent as no other list, is that tower's.
        let beside = |t: &&Tower| {
            let root = t.list.split('.').find(|segment| !matches!(*segment, "model" | "transformer"));
            root.is_some_and(|root| tensor.split('.').any(|segment| segment == root))
        };
        let mut towers = self.all.iter().filter(beside);
        match (towers.next(), towers.next()) {
            (Some(tower), None) => &tower.module,
            _ if self.all.iter().any(|t| t.module == ENCODER) => "shared",
            _ => self.all.iter().find(|t| t.module == TEXT).map_or("default", |t| &t.module),
        }
    }

    /// Every module, for a message: `text_decoder` (`model.layers`, 32 layers).
    pub fn in_words(&self) -> String {
        let words = self.all.iter().map(|t| format!("`{}` (`{}`, {} layers)", t.module, t.list, t.depth));
        words.collect::<Vec<_>>().join(", ")
    }
}

const ENCODER: &str = "encoder";
const TEXT: &str = "text_decoder";
const VISION: &str = "vision_tower";
const PROJECTOR: &str = "multi_modal_projector";

/// mergekit's name for the module of a list.
fn module_of(list: &str, is_one: bool) -> String {
    if is_one {
        return "default".into();
    }
    let has = |word: &str| list.split('.').any(|segment| segment.contains(word));
    let first = list.split('.').next().unwrap_or(list);
    match first {
        "encoder" | "decoder" => first.into(),
        _ if list.starts_with("model.encoder.") => ENCODER.into(),
        _ if list.starts_with("model.decoder.") => "decoder".into(),
        // The towers of CLIP and its kin, which have no names in mergekit.
        "text_model" | "vision_model" => list.into(),
        _ if has("vision") || has("visual") => VISION.into(),
        _ if matches!(list, "model.layers" | "transformer.h") || has("language_model") => TEXT.into(),
        _ => list.into(),
    }
}

/// Whether a tensor outside the layers stands behind them: the final norm, heads, poolers. Others, and those that nobody
/// knows, stand before them, as in mergekit.
pub(super) fn is_behind_layers(tensor: &str) -> bool {
    const LAST: [&str; 25] = [
        "norm",
        "norm_f",
        "ln_f",
        "ln_post",
        "final_layernorm",
        "final_layer_norm",
        "final_norm",
        "post_layernorm",
        "lm_head",
        "embed_out",
        "output_layer",
        "output",
        "score",
        "classifier",
        "pooler",
        "predictions",
        "qa_outputs",
        "visual_projection",
        "text_projection",
        "head",
        "vocab_projector",
        "vocab_transform",
        "vocab_layer_norm",
        "logit_scale",
        "proj_out",
    ];
    // `embeddings.norm`, `patch_embed.norm`: norms of what stands before the layers.
    let is_embedding = |segment: &str| segment.contains("embed") || segment.contains("patch") || segment == "wte";
    let mut segments = tensor.split('.');
    !segments.clone().any(|s| is_embedding(s) && s != "embed_out")
        && segments.any(|segment| LAST.contains(&segment) || (segment == "layernorm" && !tensor.contains("pre")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn towers(names: &[&str]) -> Towers {
        Towers::of_names(names.iter().copied())
    }

    #[test]
    fn a_model_of_one_list_is_one_module() {
        let all = towers(&[
            "model.embed_tokens.weight",
            "model.layers.0.w",
            "model.layers.3.mlp.experts.7.w",
            "lm_head.weight",
        ]);
        assert_eq!(all.all, [Tower { module: "default".into(), list: "model.layers".into(), depth: 4 }]);
        assert_eq!(all.module_of("lm_head.weight"), "default");
        assert_eq!(towers(&["h.0.w", "mtp.layers.0.w"]).all.len(), 1);
    }

    #[test]
    fn an_encoder_decoder_has_two_towers_and_what_they_share() {
        let all = towers(&["shared.weight", "encoder.block.1.w", "decoder.block.0.w", "lm_head.weight"]);
        for (tensor, module) in [
            ("shared.weight", "shared"),
            ("lm_head.weight", "shared"),
            ("encoder.final_layer_norm.weight", "encoder"),
            ("decoder.block.0.w", "decoder"),
        ] {
            assert_eq!(all.module_of(tensor), module, "{tensor}");
        }
        assert_eq!(all.named("encoder").unwrap().depth, 2);
    }

    #[test]
    fn a_model_that_sees_has_a_vision_tower_beside_its_decoder() {
        for (language, vision) in [
            ("language_model.model.layers", "vision_tower.vision_model.encoder.layers"),
            ("model.language_model.layers", "model.visual.blocks"),
            ("model.layers", "visual.blocks"),
        ] {
            let names = [format!("{language}.0.w"), format!("{vision}.1.w")];
            let all = Towers::of_names(names.iter().map(String::as_str));
            assert_eq!(all.named("text_decoder").unwrap().list, language);
            assert_eq!(all.named("vision_tower").unwrap().list, vision);
            assert_eq!(all.module_of("multi_modal_projector.linear_1.weight"), "multi_modal_projector");
            assert_eq!(all.module_of("lm_head.weight"), "text_decoder");
        }
        let all = towers(&["model.language_model.layers.0.w", "model.visual.blocks.0.w"]);
        assert_eq!(all.module_of("model.visual.merger.mlp.0.weight"), "vision_tower");
        assert_eq!(all.module_of("model.language_model.embed_tokens.weight"), "text_decoder");
    }

    #[test]
    fn final_norms_and_heads_stand_behind_the_layers_and_embeddings_before() {
        for name in [
            "lm_head.weight",
            "model.norm.weight",
            "transformer.ln_f.bias",
            "gpt_neox.final_layer_norm.weight",
            "embed_out.weight",
            "bert.pooler.dense.weight",
            "cls.predictions.bias",
            "vision_model.post_layernorm.weight",
            "classifier.weight",
        ] {
            assert!(is_behind_layers(name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "embeddings.LayerNorm.weight",
            "transformer.wpe.weight",
            "vision_model.pre_layrnorm.weight",
            "embeddings.norm.weight",
            "rotary.inv_freq",
        ] {
            assert!(!is_behind_layers(name), "{name}");
        }
    }
}
