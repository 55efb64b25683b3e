//! The outputs of slices: layers of several models put on top of each other, and the tensors around them.

use std::ops::Range;

use super::SourceTensor;
use super::outputs::{Output, Parts};
use super::towers::{Towers, is_behind_layers};
use crate::checkpoint::{Tensor, quoted};
use crate::dtype::DtypeExt;
use crate::error::{Error, Result};
use crate::recipe::{Listed, Module, Slice};

/// The slices of one module.
pub(super) struct Stack<'a> {
    pub all: &'a Parts,
    pub towers: &'a [Towers],
    pub file: &'a str,
    pub module: &'a Module,
    /// Its slices' parts.
    pub parts: Range<usize>,
}

/// Layers of one source of a slice.
struct Layers<'a> {
    list: &'a str,
    range: Range<u32>,
}

impl Stack<'_> {
    fn error(&self, line: usize, message: String) -> Error {
        Error::at_line(self.file, line, message)
    }

    pub fn outputs(&self, copied: &impl Fn(&str, &Tensor) -> bool, outputs: &mut Vec<Output>) -> Result<()> {
        let (Some(first), Some(last)) = (self.parts.clone().next(), self.parts.clone().next_back()) else {
            return Ok(());
        };
        let mut mistakes = Vec::new();
        let slices: Vec<_> =
            self.parts.clone().zip(&self.module.slices).map(|(p, slice)| self.slice(p, slice, &mut mistakes)).collect();
        if let Some(error) = together(mistakes) {
            return Err(error);
        }
        let mut misfits = Vec::new();
        self.outside(first, false, copied, outputs, &mut misfits);
        // The layers' output names follow the reference's list of the first slice.
        let list = slices.iter().find_map(|slice| Some(slice.as_ref()?.0.list.to_owned()));
        let mut layer = 0;
        for (part, slice) in self.parts.clone().zip(&slices) {
            let (Some((reference, sources)), Some(list)) = (slice, &list) else { continue };
            let length = reference.range.len() as u32;
            for offset in 0..length {
                let t = if length == 1 { 1.0 } else { f64::from(offset) / f64::from(length - 1) };
                let place = Place { part, list, layer: layer + offset, offset, t };
                self.layer(&place, reference, sources, copied, outputs, &mut misfits);
            }
            layer += length;
        }
        self.outside(last, true, copied, outputs, &mut misfits);
        match misfits.len() {
            0 => Ok(()),
            count => {
                let more = match count - 1 {
                    0 => String::new(),
                    1 => " (and 1 more tensor does not fit)".into(),
                    n => format!(" (and {n} more tensors do not fit)"),
                };
                Err(Error::input(format!("{}{more}", misfits[0])))
            }
        }
    }

    /// The layers of a slice's reference and of its participants; `None` if the module has no layers.
    fn slice(&self, part: usize, slice: &Slice, mistakes: &mut Vec<Error>) -> Option<(Layers<'_>, Vec<Layers<'_>>)> {
        let made = &self.all.parts[part];
        let mut of = |source: usize, line: usize, wanted: Option<&Range<u32>>| -> Option<Layers<'_>> {
            let (towers, written) = (&self.towers[source], &self.all.sources[source].written);
            let tower = match (&self.module.name, &towers.all[..]) {
                (None, [only]) => only,
                (None, []) => {
                    mistakes.push(self.error(line, format!("{} has no numbered layers", quoted(written))));
                    return None;
                }
                (None, _) => {
                    let message = format!("{} has several lists of layers: {}", quoted(written), towers.in_words());
                    let hint = "say which by `modules: {NAME: {slices: …}, …}`";
                    mistakes.push(self.error(line, message).hint(hint));
                    return None;
                }
                (Some(name), _) => match towers.named(name) {
                    Some(tower) => tower,
                    // A projector, or what an encoder and a decoder share: tensors without layers.
                    None if wanted.is_none() => return None,
                    None => {
                        let message = format!(
                            "{} has no layers in a module `{name}`; it has {}",
                            quoted(written),
                            towers.in_words()
                        );
                        mistakes.push(self.error(line, message));
                        return None;
                    }
                },
            };
            let range = wanted.cloned().unwrap_or(0..tower.depth);
            if range.end > tower.depth {
                let message = format!(
                    "`layer_range: [{}, {}]` ends behind the {} layers of {} (`{}`)",
                    range.start,
                    range.end,
                    tower.depth,
                    quoted(written),
                    tower.list
                );
                mistakes.push(self.error(line, message));
                return None;
            }
            Some(Layers { list: &tower.list, range })
        };
        let mut layers = Vec::with_capacity(made.sources.len());
        for (participant, source) in made.participants.iter().zip(&made.sources) {
            let stands = |s: &&crate::recipe::SliceSource| match participant {
                Listed::Base => s.is_base,
                Listed::Model(i) => {
                    !s.is_base && made.recipe.models.get(*i).is_some_and(|m| m.line == s.line && m.model == s.model)
                }
            };
            let at = slice.sources.iter().find(stands)?;
            layers.push(of(*source, at.line, at.layers.as_ref()));
        }
        let base = slice.sources.iter().find(|s| s.is_base);
        let reference = match base {
            Some(base) => of(made.reference, base.line, base.layers.as_ref()),
            None if made.recipe.method.base.is_origin(made.recipe.base.is_some()) => {
                // Where whole models are merged, the base's layers are all of them.
                let whole = of(made.reference, slice.line, None)?;
                let is_whole = |l: &Option<Layers<'_>>| l.as_ref().is_none_or(|l| l.range == whole.range);
                if self.module.slices.len() > 1 || !layers.iter().all(is_whole) {
                    let base = made.recipe.base.as_ref().map(|b| b.written.as_str()).unwrap_or_default();
                    let method = made.recipe.method.name;
                    let message =
                        format!("method `{method}` needs the base {} among the sources of this slice", quoted(base));
                    let hint = "add it with the `layer_range` that the others are measured from";
                    mistakes.push(self.error(slice.line, message).hint(hint));
                }
                Some(whole)
            }
            None => layers.first().and_then(Option::as_ref).map(|l| Layers { list: l.list, range: l.range.clone() }),
        };
        let layers: Option<Vec<_>> = layers.into_iter().collect();
        reference.zip(layers)
    }

    /// The tensors of one output layer.
    fn layer(
        &self,
        place: &Place<'_>,
        reference: &Layers<'_>,
        sources: &[Layers<'_>],
        copied: &impl Fn(&str, &Tensor) -> bool,
        outputs: &mut Vec<Output>,
        misfits: &mut Vec<String>,
    ) {
        let made = &self.all.parts[place.part];
        let checkpoint = &self.all.sources[made.reference].checkpoint;
        let prefix = |layers: &Layers<'_>| format!("{}.{}.", layers.list, layers.range.start + place.offset);
        let own = prefix(reference);
        for (tensor, stored) in checkpoint.tensors().iter().enumerate() {
            let Some(rest) = stored.name.strip_prefix(&own) else { continue };
            let name = format!("{}.{}.{rest}", place.list, place.layer);
            let output = Output {
                part: place.part,
                name,
                t: place.t,
                reference: SourceTensor { source: made.reference, tensor },
                is_copied: false,
                inputs: Vec::new(),
            };
            let inputs = |at: usize| format!("{}{rest}", prefix(&sources[at]));
            outputs.extend(self.fitted(output, stored, inputs, copied, misfits));
        }
        for (layers, source) in sources.iter().zip(&made.sources) {
            let other = &self.all.sources[*source];
            let prefix = prefix(layers);
            for stored in other.checkpoint.tensors() {
                let Some(rest) = stored.name.strip_prefix(&prefix) else { continue };
                if checkpoint.get(&format!("{own}{rest}")).is_none() {
                    misfits.push(extra(&other.written, stored, &self.all.sources[made.reference].written));
                }
            }
        }
    }

    /// The tensors of the module that lie outside its layers, before or behind them.
    fn outside(
        &self,
        part: usize,
        behind: bool,
        copied: &impl Fn(&str, &Tensor) -> bool,
        outputs: &mut Vec<Output>,
        misfits: &mut Vec<String>,
    ) {
        let made = &self.all.parts[part];
        let is_here = |source: usize, name: &str| {
            let towers = &self.towers[source];
            let in_layers =
                towers.all.iter().any(|t| name.strip_prefix(&t.list).is_some_and(|rest| rest.starts_with('.')));
            let module = towers.module_of(name);
            let is_mine = self
                .module
                .name
                .as_deref()
                .is_none_or(|own| own == module || towers.named(own).is_some_and(|tower| tower.module == module));
            !in_layers && is_mine && is_behind_layers(name) == behind
        };
        let checkpoint = &self.all.sources[made.reference].checkpoint;
        for (tensor, stored) in checkpoint.tensors().iter().enumerate() {
            if !is_here(made.reference, &stored.name) {
                continue;
            }
            let reference = SourceTensor { source: made.reference, tensor };
            let output =
                Output { part, name: stored.name.clone(), t: 0.0, reference, is_copied: false, inputs: Vec::new() };
            outputs.extend(self.fitted(output, stored, |_| stored.name.clone(), copied, misfits));
        }
        for source in &made.sources {
            let other = &self.all.sources[*source];
            for stored in other.checkpoint.tensors() {
                if is_here(*source, &stored.name)
                    && checkpoint.get(&stored.name).is_none()
                    && !copied(&stored.name, stored)
                {
                    misfits.push(extra(&other.written, stored, &self.all.sources[made.reference].written));
                }
            }
        }
    }

    /// An output with its inputs, if each is there in the reference's shape.
    fn fitted(
        &self,
        mut output: Output,
        stored: &Tensor,
        name: impl Fn(usize) -> String,
        copied: &impl Fn(&str, &Tensor) -> bool,
        misfits: &mut Vec<String>,
    ) -> Option<Output> {
        if copied(&output.name, stored) {
            output.is_copied = true;
            return Some(output);
        }
        let made = &self.all.parts[output.part];
        let reference = &self.all.sources[made.reference].written;
        for (at, source) in made.sources.iter().enumerate() {
            let (name, from) = (name(at), &self.all.sources[*source]);
            let Some(tensor) = from.checkpoint.position(&name) else {
                misfits.push(format!(
                    "`{}` lacks the tensor {}, of which {} is made with {} of `{reference}`",
                    from.written,
                    quoted(&name),
                    quoted(&output.name),
                    quoted(&stored.name)
                ));
                return None;
            };
            let found = &from.checkpoint.tensors()[tensor];
            if found.shape != stored.shape {
                misfits.push(format!(
                    "shape mismatch in {}: {} of `{}` has {:?}, {} of `{reference}` has {:?}",
                    quoted(&output.name),
                    quoted(&name),
                    from.written,
                    found.shape,
                    quoted(&stored.name),
                    stored.shape
                ));
                return None;
            }
            if !found.dtype.is_mergeable_float() {
                misfits.push(format!(
                    "{} of `{}` is stored as {}, which cannot be merged with {}",
                    quoted(&name),
                    from.written,
                    found.dtype,
                    stored.dtype
                ));
                return None;
            }
            output.inputs.push(SourceTensor { source: *source, tensor });
        }
        Some(output)
    }
}

/// Where a layer of the output comes from.
struct Place<'a> {
    part: usize,
    list: &'a str,
    layer: u32,
    /// Its place in the slice.
    offset: u32,
    t: f64,
}

fn extra(label: &str, stored: &Tensor, reference: &str) -> String {
    format!(
        "`{label}` has the tensor {} ({} {:?}), which `{reference}` lacks",
        quoted(&stored.name),
        stored.dtype,
        stored.shape
    )
}

/// Several mistakes as one error.
fn together(mistakes: Vec<Error>) -> Option<Error> {
    if mistakes.len() < 2 {
        return mistakes.into_iter().next();
    }
    let message = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let mut error = Error::input(message);
    for hint in mistakes.iter().flat_map(Error::hints) {
        if !error.hints().contains(hint) {
            error = error.hint(hint.clone());
        }
    }
    Some(error)
}
