//! An explanation as a person reads it.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::document::{Explanation, OfElement, OfSource};
use crate::checkpoint::escaped;
use crate::units::format_bytes;

impl Explanation {
    /// As a person reads it, a line for each thing.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { tensor, shape, dtype, output, program, path, .. } = self;
        writeln!(out, "tensor    {}  {shape:?} {dtype}", escaped(tensor))?;
        let (bytes, offset) = (format_bytes(output.bytes), output.offset);
        writeln!(out, "output    {}, {bytes} from byte {offset} on", escaped(&output.file))?;
        self.sources.iter().try_for_each(|source| write_source(source, out))?;
        writeln!(out, "program   {}: {}", program.method, program.work)?;
        for stage in &program.stages {
            writeln!(out, "          stage: {}", in_words(stage))?;
        }
        if let Some(drop) = &program.drop {
            writeln!(out, "          drop: {}", in_words(&drop.rule))?;
        }
        if let Some(matrix) = &program.matrix {
            writeln!(out, "          matrix: {} minus the {}", word(&matrix.rule), word(&matrix.centre))?;
            if let Some(how) = &matrix.decomposition {
                writeln!(out, "          decomposition: {how}")?;
            }
        }
        if let Some(fit) = &program.fit {
            writeln!(out, "          numbers by {fit}, measured")?;
        }
        if !program.weights.is_empty() {
            writeln!(out, "          weights: {}", list(&program.weights))?;
        }
        if !program.numbers.is_empty() {
            writeln!(out, "          {}", in_words(&program.numbers))?;
        }
        let step = |step: &super::OfStep| {
            format!("{}{}", step.step, if step.of_all { ", of all that are ranked with it" } else { "" })
        };
        let steps: Vec<String> = self.steps.iter().map(step).collect();
        let passes = format!("{} pass{}", self.passes, if self.passes == 1 { "" } else { "es" });
        writeln!(out, "steps     {}", steps.join("; then "))?;
        writeln!(out, "reads     {} in {passes}", format_bytes(self.bytes_read))?;
        match (&path.computed_by, path.computed_in) {
            (Some(by), Some(kind)) => writeln!(out, "path      {by}, in {kind}")?,
            _ => writeln!(out, "path      copied as it is")?,
        }
        if let Some(why) = &path.why_there {
            writeln!(out, "          on the CPU: {why}")?;
        }
        self.element.as_ref().map_or(Ok(()), |element| self.write_element(element, out))
    }

    fn write_element(&self, element: &OfElement, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nelement   {:?}, number {}", element.index, element.flat)?;
        for (source, value) in self.sources.iter().zip(&element.stored) {
            writeln!(out, "{:<9} {}", source.role, word(value))?;
        }
        for step in &element.steps {
            writeln!(out, "{}", step.step)?;
            for (model, value) in step.values.iter().enumerate() {
                writeln!(out, "  model {:<2}{}", model + 1, word(value))?;
            }
        }
        if !element.weights.is_empty() {
            writeln!(out, "weights   {}", list(&element.weights))?;
        }
        if !element.numbers.is_empty() {
            writeln!(out, "numbers   {}", in_words(&element.numbers))?;
        }
        if let (Some(merged), Some(exact)) = (&element.merged, &element.merged_in_float64) {
            let kind = self.path.computed_in.unwrap_or("float64");
            writeln!(out, "merged    {} in {kind}; all in float64: {}", word(merged), word(exact))?;
        }
        writeln!(out, "stored    {} as {}", word(&element.result), self.dtype)
    }
}

fn write_source(source: &OfSource, out: &mut String) -> std::fmt::Result {
    let OfSource { role, model, tensor, shape, dtype, file, offset, bytes, made, parts } = source;
    writeln!(out, "{role:<9} {}: {}  {shape:?} {dtype}", escaped(model), escaped(tensor))?;
    let bytes = format_bytes(*bytes);
    if let (Some(file), Some(offset)) = (file, offset) {
        writeln!(out, "          {}, {bytes} from byte {offset} on", escaped(file))?;
    }
    if let Some(made) = made {
        writeln!(out, "          made as it is read, {bytes}: {made}")?;
    }
    for part in parts {
        let (name, file) = (escaped(&part.tensor), escaped(&part.file));
        let (shape, dtype) = (&part.shape, &part.dtype);
        writeln!(out, "          {}: {name}  {shape:?} {dtype}, byte {} of {file}", part.what, part.offset)?;
    }
    Ok(())
}

fn list(values: &[f64]) -> String {
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
}

/// A JSON value without quotes.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join(", "),
        Value::Object(entries) => in_words(entries),
        other => other.to_string(),
    }
}

/// `keep 0.5, score magnitude`.
fn in_words(entries: &Map<String, Value>) -> String {
    let entry = |(name, value): (&String, &Value)| match value {
        Value::Array(values) => {
            format!("{name} [{}]", values.iter().map(word).collect::<Vec<_>>().join(", "))
        }
        _ => format!("{name} {}", word(value)),
    };
    entries.iter().map(entry).collect::<Vec<_>>().join(", ")
}
