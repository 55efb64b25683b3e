//! Merging methods and task-vector stages: one file each, and the registry that everything else iterates.

use crate::ops::spec::*;

mod breadcrumbs;
mod cart;
mod dare;
mod iso;
mod karcher;
mod linear;
mod low_rank;
mod lwptv;
mod magmax;
pub(crate) mod matrices;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod ram;
pub(crate) mod slerp;
mod task_arithmetic;
mod ties;
mod tsv;

/// Every method and stage, in the order in which they are shown.
pub static REGISTRY: &[&MethodSpec] = &[
    &linear::SPEC,
    &task_arithmetic::SPEC,
    &ties::SPEC,
    &dare::LINEAR,
    &dare::TIES,
    &breadcrumbs::LINEAR,
    &breadcrumbs::TIES,
    &magmax::SPEC,
    &ram::RAM,
    &ram::RAMPLUS_TL,
    &slerp::SPEC,
    &nearswap::SPEC,
    &model_stock::SPEC,
    &karcher::SPEC,
    &multislerp::SPEC,
    &nuslerp::SPEC,
    &passthrough::SPEC,
    &cart::SPEC,
    &low_rank::SPEC,
    &tsv::SPEC,
    &iso::COMMON,
    &iso::COMMON_AND_SPECIFIC,
    &lwptv::SPEC,
];

/// The method or stage of this name.
pub fn find(name: &str) -> Option<&'static MethodSpec> {
    REGISTRY.iter().copied().find(|spec| spec.name == name)
}

/// The weight of a model, shared by most methods.
pub(crate) const WEIGHT: ParamSpec = ParamSpec {
    name: "weight",
    kind: ParamKind::Float { min: -1e6, max: 1e6 },
    scope: Scope::PerModel,
    default: ParamDefault::Float(1.0),
    help: "the model's weight w",
};

/// The scale of the summed change, shared by most methods.
pub(crate) const LAMBDA: ParamSpec = ParamSpec {
    name: "lambda",
    kind: ParamKind::Float { min: -1e6, max: 1e6 },
    scope: Scope::Global,
    default: ParamDefault::Float(1.0),
    help: "scale λ of the merged change",
};

/// Accepted for mergekit's sake.
pub(crate) const INT8_MASK: ParamSpec = ParamSpec {
    name: "int8_mask",
    kind: ParamKind::Bool,
    scope: Scope::Global,
    default: ParamDefault::Bool(false),
    help: "accepted as mergekit accepts it; changes nothing in the result",
};
