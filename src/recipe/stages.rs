//! `task_vector_stages`: what prunes task vectors in front of a method.

use super::listing::{Named, named};
use super::parameters::{self, Place};
use super::reader::{Reader, list_of_names};
use super::yaml::{Data, Entry, Node, quote};
use super::{Parameters, Stage};
use crate::error::{Error, Result};
use crate::methods::{self, REGISTRY};
use crate::ops::{MethodSpec, ParamDefault, Role};
use crate::suggest::nearest;

/// Most stages: far above use, and a bound on the work that a recipe can ask for.
const MOST_STAGES: usize = 64;

/// All methods, or all stages, for a hint.
pub(super) fn methods_here(role: Role) -> String {
    let names = list_of_names(REGISTRY.iter().filter(|m| m.role == role).map(|m| m.name), "and");
    match role {
        Role::Method => format!("methods: {names}"),
        Role::Stage => format!("stages: {names}"),
    }
}

/// Adds to an error the nearest method or stage and the list of all.
pub(super) fn with_names(mut error: Error, name: &str, role: Role) -> Error {
    if let Some(near) = nearest(name, REGISTRY.iter().filter(|m| m.role == role).map(|m| m.name)) {
        error = error.hint(format!("did you mean `{near}`?"));
    }
    error.hint(methods_here(role))
}

/// Reads `task_vector_stages`.
pub(super) fn read(reader: &Reader, at: &Entry, method: &'static MethodSpec, has_base: bool) -> Result<Vec<Stage>> {
    let items = reader.list(&at.value, "`task_vector_stages`")?;
    if items.len() > MOST_STAGES {
        return Err(reader.error(at.line, format_args!("{} stages are more than {MOST_STAGES}", items.len())));
    }
    let mut stages = Vec::with_capacity(items.len());
    for item in items {
        let Named { name, parameters: parameters_at, .. } = named(reader, item, "task_vector_stages", "stage", false)?;
        let spec = stage(reader, name)?;
        let parameters = match parameters_at {
            Some(entry) => parameters::read(reader, entry, spec, Place::Stage)?,
            None => Parameters::default(),
        };
        if let Some(missing) =
            spec.parameters.iter().find(|p| p.default == ParamDefault::Required && !parameters.is_set(p.name))
        {
            return Err(
                reader.error(item.line, format_args!("stage `{}` needs the parameter `{}`", spec.name, missing.name))
            );
        }
        stages.push(Stage { spec, parameters });
    }
    if stages.is_empty() {
        return Ok(stages);
    }
    if !method.takes_stages {
        let able = REGISTRY.iter().filter(|m| m.role == Role::Method && m.takes_stages).map(|m| m.name);
        let message = format!("method `{}` does not work on task vectors: no stage can stand before it", method.name);
        return Err(reader
            .error(at.line, message)
            .hint(format!("methods that take stages: {}", list_of_names(able, "and"))));
    }
    if !has_base {
        let error =
            reader.error(at.line, "`task_vector_stages` needs `base_model`: a task vector is a model minus the base");
        return Err(error);
    }
    Ok(stages)
}

fn stage(reader: &Reader, node: &Node) -> Result<&'static MethodSpec> {
    let Data::Scalar { text: name, .. } = &node.data else {
        return Err(reader.error(node.line, format_args!("`stage` must be a word, found {}", node.describe())));
    };
    match methods::find(name) {
        Some(spec) if spec.role == Role::Stage => Ok(spec),
        Some(spec) => {
            let error =
                reader.error(node.line, format_args!("`{}` is a merge method, not a task-vector stage", spec.name));
            Err(error.hint(format!("name it as `merge_method: {}`", spec.name)).hint(methods_here(Role::Stage)))
        }
        None => {
            let error = reader.error(node.line, format_args!("unknown stage {}", quote(name)));
            Err(with_names(error, name, Role::Stage))
        }
    }
}
