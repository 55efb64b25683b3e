//! Which layer a tensor belongs to, from names alone.
//!
//! A *block* is one of a numbered list of modules: the first segment of a name that is all digits, with a segment before
//! and one after it, is its index (`model.layers.3.mlp.up_proj.weight` is in block 3 of `model.layers`; a digit further
//! in, such as an expert's, does not count). Every tensor outside blocks belongs to its module: the name without its last
//! segment.

use std::collections::{BTreeMap, HashMap};

/// A block, or a module outside blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// `model.layers.3` for a block, `model.embed_tokens` for a module; a tensor without a module stands for itself.
    pub label: String,
    /// The block's index in its list; `None` outside blocks.
    pub index: Option<u32>,
    /// Place in a gradient over the layers, in [0, 1]: index / (blocks in the list − 1), as mergekit has it. 1 for the
    /// block of a list of one, 0 outside blocks. A list has as many blocks as its highest index says, so that a
    /// checkpoint that holds only some of them places those as the whole model does.
    pub t: f64,
}

/// The layers of a set of tensors. What it says depends on the set of names, not on their order.
#[derive(Debug, Default)]
pub struct LayerMap {
    groups: Vec<Layer>,
    group_of: HashMap<String, usize>,
}

impl LayerMap {
    /// Sorts tensors into layers by their names.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let names: Vec<&str> = names.collect();
        let mut last = HashMap::<&str, u32>::new();
        let mut ids = BTreeMap::new();
        for name in &names {
            let (prefix, index) = place(name);
            if let Some(index) = index {
                let highest = last.entry(prefix).or_insert(index);
                *highest = index.max(*highest);
            }
            ids.insert((prefix, index), 0);
        }
        let mut groups = Vec::with_capacity(ids.len());
        for ((prefix, index), id) in &mut ids {
            *id = groups.len();
            groups.push(match index {
                None => Layer { label: (*prefix).to_owned(), index: None, t: 0.0 },
                Some(index) => {
                    let t = match last[prefix] {
                        0 => 1.0,
                        last => f64::from(*index) / f64::from(last),
                    };
                    Layer { label: format!("{prefix}.{index}"), index: Some(*index), t }
                }
            });
        }
        let group_of = names.into_iter().map(|name| (name.to_owned(), ids[&place(name)])).collect();
        Self { groups, group_of }
    }

    /// All layers: modules and blocks sorted by name, the blocks of one list by their index.
    pub fn groups(&self) -> &[Layer] {
        &self.groups
    }

    /// The layer of a tensor, as a position in [`groups`](Self::groups). `None` for a name that was not in the set.
    pub fn group(&self, name: &str) -> Option<usize> {
        self.group_of.get(name).copied()
    }

    /// The layer of a tensor. `None` for a name that was not in the set.
    pub fn layer(&self, name: &str) -> Option<&Layer> {
        self.group(name).map(|group| &self.groups[group])
    }
}

/// A block's list and index, or a module and no index.
fn place(name: &str) -> (&str, Option<u32>) {
    let mut from = 0;
    for (dot, _) in name.match_indices('.') {
        let segment = &name[from..dot];
        // Digits too many for an index name no block that anyone numbered.
        let digits = !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
        if from > 0
            && digits
            && let Ok(index) = segment.parse()
        {
            return (&name[..from - 1], Some(index));
        }
        from = dot + 1;
    }
    (name.rsplit_once('.').map_or(name, |(module, _)| module), None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn layer(names: &[&str], of: &str) -> (String, Option<u32>, f64) {
        let map = LayerMap::new(names.iter().copied());
        let layer = map.layer(of).unwrap();
        (layer.label.clone(), layer.index, layer.t)
    }

    #[test]
    fn the_blocks_of_common_architectures_are_found() {
        for (name, label, index) in [
            ("model.layers.3.mlp.up_proj.weight", "model.layers.3", 3),
            ("encoder.layer.11.attention.self.query.bias", "encoder.layer.11", 11),
            ("transformer.h.0.attn.c_attn.weight", "transformer.h.0", 0),
            ("blocks.7.norm1.weight", "blocks.7", 7),
            ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder.block.2", 2),
            ("visual.transformer.resblocks.5.ln_1.bias", "visual.transformer.resblocks.5", 5),
            ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3", 3),
            ("layer1.0.conv1.weight", "layer1.0", 0),
        ] {
            let (found, at, _) = layer(&[name], name);
            assert_eq!((found.as_str(), at), (label, Some(index)), "{name}");
        }
    }

    #[test]
    fn tensors_outside_blocks_belong_to_their_module_at_t_0() {
        for (name, label) in [
            ("model.embed_tokens.weight", "model.embed_tokens"),
            ("lm_head.weight", "lm_head"),
            ("logit_scale", "logit_scale"),
            ("0.weight", "0"),
            ("prompts.3", "prompts"),
            ("layers.99999999999.weight", "layers.99999999999"),
            ("layers.３.weight", "layers.３"),
            ("", ""),
            (".", ""),
        ] {
            assert_eq!(layer(&[name], name), (label.to_owned(), None, 0.0), "{name}");
        }
    }

    #[test]
    fn t_runs_from_0_to_1_over_each_list_by_itself() {
        let names = ["a.layers.0.w", "a.layers.1.w", "a.layers.2.w", "b.layers.0.w", "b.layers.1.w", "c.layers.0.w"];
        let t = |name| layer(&names, name).2;
        assert_eq!([t(names[0]), t(names[1]), t(names[2])], [0.0, 0.5, 1.0]);
        assert_eq!([t(names[3]), t(names[4])], [0.0, 1.0]);
        assert_eq!(t(names[5]), 1.0, "the block of a list of one");
    }

    #[test]
    fn a_checkpoint_of_the_last_layers_alone_keeps_their_places() {
        assert_eq!(layer(&["h.3.w", "h.4.w"], "h.3.w").2, 0.75);
    }

    #[test]
    fn groups_do_not_depend_on_the_order_of_names_and_count_blocks_by_number() {
        let mut names: Vec<String> =
            (0..12).flat_map(|i| [format!("m.layers.{i}.w"), format!("m.layers.{i}.b")]).collect();
        names.extend(["m.embed.weight", "m.norm.weight", "m.norm.bias"].map(str::to_owned));
        let forward = LayerMap::new(names.iter().map(String::as_str));
        let backward = LayerMap::new(names.iter().rev().map(String::as_str));
        assert_eq!(forward.groups(), backward.groups());
        let labels: Vec<&str> = forward.groups().iter().map(|group| group.label.as_str()).collect();
        assert_eq!(labels[0], "m.embed");
        assert_eq!(labels[1..13], (0..12).map(|i| format!("m.layers.{i}")).collect::<Vec<_>>());
        assert_eq!(labels[13..], ["m.norm"]);
        for name in &names {
            assert_eq!(forward.group(name), backward.group(name));
        }
        assert_eq!(forward.group("m.layers.3.w"), forward.group("m.layers.3.b"));
        assert_eq!(forward.group("unknown"), None);
    }
}
