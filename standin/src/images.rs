//! Which images a driver takes, as NVIDIA's documents on compatibility and the PTX manual's history of releases have it.

use crate::rules::{self, Rule};

/// The newest version of PTX that a driver of a CUDA reads, by that CUDA as `cuDriverGetVersion` numbers it.
const PTX: [(i32, (u32, u32)); 10] = [
    (13_000, (9, 0)),
    (12_090, (8, 8)),
    (12_080, (8, 7)),
    (12_060, (8, 5)),
    (12_050, (8, 5)),
    (12_040, (8, 4)),
    (12_030, (8, 3)),
    (12_020, (8, 2)),
    (12_010, (8, 1)),
    (12_000, (8, 0)),
];

/// The version of PTX that belongs to a CUDA.
pub fn ptx_of(cuda: i32) -> (u32, u32) {
    PTX.iter().find(|(known, _)| *known <= cuda).map_or((7, 8), |(_, version)| *version)
}

/// The architectures for which the NVRTC of a CUDA compiles.
pub fn architectures(cuda: i32) -> &'static [i32] {
    match cuda {
        13_000.. => &[75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121],
        12_080.. => &[50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 120],
        _ => &[50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90],
    }
}

/// Whether a driver takes a text for a card: not of a newer version, and for no newer architecture; what is compiled to the end, for
/// one of the card's own generation.
///
/// # Errors
/// The rule that forbids it, and why.
pub fn check(text: &str, driver: i32, capability: u32) -> Result<(), (Rule, String)> {
    let of = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    if let Some(version) = of(".version") {
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(u32::MAX));
        let version = (parts.next().unwrap_or(u32::MAX), parts.next().unwrap_or_default());
        if version > ptx_of(driver) {
            let text = format!("PTX {}.{} on a driver of CUDA {driver}", version.0, version.1);
            return Err((rules::PTX_VERSION, text));
        }
    }
    let target = of(".target").and_then(|target| target.strip_prefix("sm_")?.parse::<u32>().ok());
    let is_final = text.contains("// compiled to the end");
    let fits = |target: u32| target <= capability && (!is_final || target / 10 == capability / 10);
    match target {
        Some(target) if !fits(target) => {
            Err((rules::BINARY_FOR_GPU, format!("an image for {target} on a card of {capability}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_must_be_no_newer_than_driver_and_card() {
        let text =
            |version: &str, target: u32, end: &str| format!("//{end}\n.version {version}\n.target sm_{target}\n");
        let end = " compiled to the end";
        for (version, target, end, driver, capability, answer) in [
            ("8.0", 90, "", 12_000, 90, Ok(())),
            ("8.1", 90, "", 12_000, 90, Err(rules::PTX_VERSION)),
            ("9.0", 90, "", 12_090, 90, Err(rules::PTX_VERSION)),
            ("9.0", 75, "", 13_000, 120, Ok(())),
            ("9.0", 75, end, 13_000, 120, Err(rules::BINARY_FOR_GPU)),
            ("9.0", 80, end, 13_000, 89, Ok(())),
            ("9.0", 90, "", 13_000, 89, Err(rules::BINARY_FOR_GPU)),
        ] {
            assert_eq!(
                check(&text(version, target, end), driver, capability).map_err(|(rule, _)| rule),
                answer,
                "{version} {target} {capability}"
            );
        }
    }
}
