//! Scalars as mergekit's users rely on them: what PyYAML (YAML 1.1) reads, and what mergekit then converts.

/// A finite number as written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Int(i64),
    Float(f64),
}

/// Why a text is no finite number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotNumber {
    /// Infinite, not-a-number, or too large.
    NotFinite,
    /// PyYAML reads it in base eight, and the value would differ.
    Octal,
    /// Something else.
    Other,
}

/// YAML's ways to write null.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// PyYAML's booleans and what mergekit's validation adds to them.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" | "t" | "1" | "1.0" => Some(true),
        "false" | "no" | "off" | "n" | "f" | "0" | "0.0" => Some(false),
        _ => None,
    }
}

/// What PyYAML reads as a truth value where it stands plain.
pub(super) fn plain_boolean(text: &str) -> Option<bool> {
    let is_word = matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "false" | "no" | "off");
    boolean(text).filter(|_| is_word)
}

/// A decimal number: `1`, `-0.5`, `.5`, `5.`, `1e-5`, `1_000`.
pub(super) fn number(text: &str) -> Result<Number, NotNumber> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned.to_ascii_lowercase().as_str(), ".inf" | ".nan" | "inf" | "infinity" | "nan") {
        return Err(NotNumber::NotFinite);
    }
    let whole = scan(unsigned).ok_or(NotNumber::Other)?;
    let digits = text.replace('_', "");
    if whole && let Ok(int) = digits.parse::<i64>() {
        let octal = digits.trim_start_matches(['+', '-']);
        if octal.len() > 1
            && octal.starts_with('0')
            && u64::from_str_radix(octal, 8).is_ok_and(|n| n != int.unsigned_abs())
        {
            return Err(NotNumber::Octal);
        }
        return Ok(Number::Int(int));
    }
    match digits.parse::<f64>() {
        Ok(float) if float.is_finite() => Ok(Number::Float(float)),
        Ok(_) => Err(NotNumber::NotFinite),
        Err(_) => Err(NotNumber::Other),
    }
}

/// Whether an unsigned text is spelt as a number, and then whether it is a whole one. Underscores stand between digits.
fn scan(text: &str) -> Option<bool> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let mut i = 0;
    let run = |i: &mut usize| {
        let start = *i;
        while digit(*i) || (bytes.get(*i) == Some(&b'_') && *i > start && digit(*i - 1) && digit(*i + 1)) {
            *i += 1;
        }
        *i > start
    };
    let mut any = run(&mut i);
    let mut whole = true;
    if bytes.get(i) == Some(&b'.') {
        i += 1;
        whole = false;
        any |= run(&mut i);
    }
    if matches!(bytes.get(i), Some(b'e' | b'E')) {
        i += 1;
        whole = false;
        if matches!(bytes.get(i), Some(b'+' | b'-')) {
            i += 1;
        }
        if !run(&mut i) {
            return None;
        }
    }
    (any && i == bytes.len()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_mergekit_would_convert_them() {
        use Number::{Float, Int};
        for (text, expected) in [
            ("1", Int(1)),
            ("-3", Int(-3)),
            ("+7", Int(7)),
            ("0", Int(0)),
            ("1_000", Int(1000)),
            ("08", Int(8)),
            ("007", Int(7)),
            (".5", Float(0.5)),
            ("5.", Float(5.0)),
            ("-.5", Float(-0.5)),
            ("1e-5", Float(1e-5)),
            ("1E5", Float(1e5)),
            ("1_0.2_5e+0_1", Float(102.5)),
            ("9223372036854775808", Float(9_223_372_036_854_775_808.0)),
        ] {
            assert_eq!(number(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_finite_decimal_number_is_refused_with_its_reason() {
        for text in [".inf", "-.INF", "nan", ".NaN", "Infinity", "1e999"] {
            assert_eq!(number(text), Err(NotNumber::NotFinite), "{text}");
        }
        for text in ["010", "-0_17", "0777"] {
            assert_eq!(number(text), Err(NotNumber::Octal), "{text}");
        }
        for text in ["", ".", "e5", "1e", "1e+", "0x10", "0o17", "1:30", "_1", "1_", "1__0", "1 ", "--1", "１", "true"]
        {
            assert_eq!(number(text), Err(NotNumber::Other), "{text}");
        }
    }

    #[test]
    fn booleans_are_pyyamls_words_in_any_case() {
        for text in ["true", "True", "YES", "on", "y", "1"] {
            assert_eq!(boolean(text), Some(true), "{text}");
        }
        for text in ["false", "FALSE", "No", "off", "n", "0"] {
            assert_eq!(boolean(text), Some(false), "{text}");
        }
        for text in ["", "2", "truee", "none", "1.5"] {
            assert_eq!(boolean(text), None, "{text}");
        }
    }
}
