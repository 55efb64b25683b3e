//! Names of element types in a recipe.

use super::reader::{Reader, list_of_names, text};
use super::yaml::{Entry, quote};
use crate::dtype::{Dtype, RECIPE_DTYPES};
use crate::error::Result;
use crate::suggest::nearest;

/// Short forms with the names they stand for.
const SHORT: [(&str, &str); 17] = [
    ("bf16", "bfloat16"),
    ("f16", "float16"),
    ("fp16", "float16"),
    ("half", "float16"),
    ("f32", "float32"),
    ("fp32", "float32"),
    ("float", "float32"),
    ("f64", "float64"),
    ("fp64", "float64"),
    ("double", "float64"),
    ("float8_e4m3", "float8_e4m3fn"),
    ("fp8_e4m3", "float8_e4m3fn"),
    ("f8_e4m3", "float8_e4m3fn"),
    ("fp8_e4m3fn", "float8_e4m3fn"),
    ("f8_e4m3fn", "float8_e4m3fn"),
    ("fp8_e5m2", "float8_e5m2"),
    ("f8_e5m2", "float8_e5m2"),
];

/// Reads `dtype` or `out_dtype`; `None` if it is null.
pub(super) fn read(reader: &Reader, entry: &Entry) -> Result<Option<Dtype>> {
    let Some(written) = text(reader, entry)? else { return Ok(None) };
    let name = written.to_ascii_lowercase();
    let name = name.strip_prefix("torch.").unwrap_or(&name);
    let full = SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, full)| full);
    if let Some((_, dtype)) = RECIPE_DTYPES.iter().find(|(known, _)| *known == full) {
        return Ok(Some(*dtype));
    }
    let known = || RECIPE_DTYPES.iter().map(|(n, _)| *n);
    let error = reader.error(entry.value.line, format_args!("unknown dtype {} in `{}`", quote(&written), entry.key));
    let error = match nearest(name, known()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    };
    Err(error.hint(format!("known dtypes: {}", list_of_names(known(), "and"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_form_stands_for_a_known_name() {
        for (short, full) in SHORT {
            assert!(RECIPE_DTYPES.iter().any(|(n, _)| *n == full), "{short}");
            assert!(RECIPE_DTYPES.iter().all(|(n, _)| *n != short), "{short} is a name of its own");
        }
    }
}
