//! LwPTV (arXiv 2506.09093): layer-wise pruned task vectors, a stage in front of any method on task vectors.

use crate::error::{Error, Result};
use crate::ops::spec::*;
use crate::ops::{Granularity, Prune, Rescale, Score, StageContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "lwptv",
    summary: "prune each task vector by a saliency mask: τ_t ← m_t ⊙ τ_t",
    source: "arXiv 2506.09093",
    role: Role::Stage,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: false,
    matrices: Matrices::No,
    parameters: &[
        ParamSpec {
            name: "score",
            kind: ParamKind::Choice(&["magnitude", "relative", "deviation", "agreement", "tall"]),
            scope: Scope::Global,
            default: ParamDefault::Word("magnitude"),
            help: "saliency of an element or group",
        },
        ParamSpec {
            name: "granularity",
            kind: ParamKind::Choice(&["layer", "tensor", "row", "column", "element"]),
            scope: Scope::Global,
            default: ParamDefault::Word("tensor"),
            help: "what is kept or pruned as one",
        },
        ParamSpec {
            name: "keep",
            kind: ParamKind::Float { min: 0.0, max: 1.0 },
            scope: Scope::PerModel,
            default: ParamDefault::Float(0.5),
            help: "share kept: of the task's layers or tensors; of the rows, columns or elements inside each tensor",
        },
        ParamSpec {
            name: "order",
            kind: ParamKind::Choice(&["keep_salient", "keep_redundant"]),
            scope: Scope::Global,
            default: ParamDefault::Word("keep_salient"),
            help: "keep the highest scores, or the lowest",
        },
        ParamSpec {
            name: "rescale",
            kind: ParamKind::Choice(&["none", "l1", "l2"]),
            scope: Scope::Global,
            default: ParamDefault::Word("none"),
            help: "restore the norm that a task vector had in its layer before pruning",
        },
    ],
    exclusive: &[],
    rule: Rule::Stage(rule),
    tolerance: 1e-5,
    notes: "The paper's abstract gives neither the score's formula, nor the ratio, nor the granularity; these \
            definitions are ours, and the defaults were chosen by measurement.",
};

fn rule(tensor: &StageContext<'_>) -> Result<Option<Prune>> {
    let keep = tensor.get("keep")?.float()?;
    let score = match tensor.get("score")?.word()? {
        "magnitude" => Score::Magnitude,
        "relative" => Score::Relative,
        "deviation" => Score::Deviation,
        "agreement" => Score::Agreement,
        "tall" => Score::Tall,
        other => return Err(Error::internal(format!("unhandled score `{other}`"))),
    };
    let granularity = match tensor.get("granularity")?.word()? {
        "layer" => Granularity::Layer,
        "tensor" => Granularity::Tensor,
        "row" => Granularity::Row,
        "column" => Granularity::Column,
        "element" => Granularity::Element,
        other => return Err(Error::internal(format!("unhandled granularity `{other}`"))),
    };
    let rescale = match tensor.get("rescale")?.word()? {
        "none" => Rescale::None,
        "l1" => Rescale::L1,
        "l2" => Rescale::L2,
        other => return Err(Error::internal(format!("unhandled rescale `{other}`"))),
    };
    if score.is_relational() && tensor.models < 2 {
        return Err(Error::input(format!(
            "the stage `lwptv` compares task vectors with `score: {}`, but there is one model",
            tensor.get("score")?.word()?
        ))
        .hint("with one model use `score: magnitude` or `score: relative`"));
    }
    let keep_redundant = tensor.get("order")?.word()? == "keep_redundant";
    Ok((keep < 1.0).then_some(Prune { stage: tensor.index, score, granularity, keep, keep_redundant, rescale }))
}
