//! Sizes in bytes, as people write and read them.

use crate::{Error, Result};

/// Units by their lower-case name, without a `b` at its end.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("ki", 1 << 10),
    ("mi", 1 << 20),
    ("gi", 1 << 30),
    ("ti", 1 << 40),
];

/// Most digits behind the point that are read.
const FRACTION_DIGITS: usize = 9;

/// Reads a size such as `512MiB`, `2GiB`, `5GB`, `1.5 GB`, `64KB`, `8G` (8·10⁹), `8Gi` (2³³) or plain bytes, in any case
/// of letters.
///
/// # Errors
/// `Input` for anything else, for a size that is no whole number of bytes and for one of 2⁶⁴ bytes or more.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..split], trimmed[split..].trim_start().to_ascii_lowercase());
    let shown = crate::checkpoint::quoted(text);
    let wrong = |what: &str| {
        Err(Error::input(format!("{shown} is no size: {what}")).hint(
            "write bytes, or a number with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), a B behind it or not",
        ))
    };
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return wrong("its unit is not known");
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (fraction.is_empty() && number.contains('.')) {
        return wrong("it does not begin with a number");
    }
    if fraction.len() > FRACTION_DIGITS {
        return wrong("it has too many digits behind the point");
    }
    let too_large = || wrong("it is larger than 2^64 bytes");
    let Ok(whole) = whole.parse::<u64>() else { return too_large() };
    // At most nine digits, or none.
    let (part, tens) = (fraction.parse::<u128>().unwrap_or(0), 10_u128.pow(fraction.len() as u32));
    let scaled = (u128::from(whole) * tens + part).checked_mul(u128::from(*scale));
    let Some(bytes) = scaled.filter(|scaled| scaled % tens == 0).map(|scaled| scaled / tens) else {
        return wrong("it is no whole number of bytes");
    };
    u64::try_from(bytes).or_else(|_| too_large())
}

/// A size for people, with three digits that count: `0 B`, `999 B`, `1.23 GB`, `45.6 MB`. Powers of 1000.
pub fn format_bytes(bytes: u64) -> String {
    const NAMES: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1000.0, 0);
    // 999.5 would be shown as 1000: it belongs to the next unit.
    while value >= 999.5 && unit + 1 < NAMES.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", NAMES[unit])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_exactly() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("17b", 17),
            ("64KB", 64_000),
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("5GB", 5_000_000_000),
            ("8G", 8_000_000_000),
            ("8Gi", 1 << 33),
            ("3k", 3000),
            ("1.5ti", 3 << 39),
            ("  5 gb ", 5_000_000_000),
            ("1.5GiB", 3 << 29),
            ("0.1MB", 100_000),
            ("2.000000001GB", 2_000_000_001),
            ("18446744073709551615", u64::MAX),
            ("16777215.5TiB", u64::MAX - (1 << 39) + 1),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "does not begin with a number"),
            ("GB", "does not begin with a number"),
            (".5GB", "does not begin with a number"),
            ("1.GB", "does not begin with a number"),
            ("1.2.3GB", "does not begin with a number"),
            ("-1", "unit is not known"),
            ("1e9", "unit is not known"),
            ("5 parsecs", "unit is not known"),
            ("5GBB", "unit is not known"),
            ("5i", "unit is not known"),
            ("5iB", "unit is not known"),
            ("1.5", "no whole number of bytes"),
            ("0.0001KB", "no whole number of bytes"),
            ("0.0000000001GB", "too many digits"),
            ("18446744073709551616", "larger than 2^64"),
            ("99999999TiB", "larger than 2^64"),
            ("\u{661}GB", "unit is not known"),
        ] {
            let error = parse_bytes(text).unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert_eq!((error.exit_code(), error.hints().len()), (1, 1), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (1_234_567_890, "1.23 GB"),
            (9_994_999, "9.99 MB"),
            (9_995_000, "10.0 MB"),
            (45_649_999, "45.6 MB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(format_bytes(bytes), text, "{bytes}");
        }
    }
}
