//! What this processor is and can do, for `devices` and manifests.

/// The processor's name as the system gives it, or its architecture.
pub fn name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    name_in(&info).map_or_else(|| std::env::consts::ARCH.to_owned(), str::to_owned)
}

/// The first name that `/proc/cpuinfo` gives. Not every architecture's kernel gives one.
fn name_in(cpuinfo: &str) -> Option<&str> {
    // x86 has `model name`, POWER `cpu`, RISC-V `uarch`.
    ["model name", "cpu", "uarch"].into_iter().find_map(|key| {
        let names = cpuinfo.lines().filter_map(|line| line.split_once(':')).filter(|(found, _)| found.trim() == key);
        names.map(|(_, name)| name.trim()).find(|name| !name.is_empty())
    })
}

/// Instruction sets that the vector loops make use of, and whether they are here.
pub fn instruction_sets() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        vec![
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("f16c", std::arch::is_x86_feature_detected!("f16c")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
            ("avx512dq", std::arch::is_x86_feature_detected!("avx512dq")),
            ("avx512vl", std::arch::is_x86_feature_detected!("avx512vl")),
        ]
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}

/// The widest form of the vector loops that this processor can run: the one that is taken.
///
/// The loops are compiled once for each form, by `multiversion`; all give the same bits.
pub fn vector_loops() -> &'static str {
    let sets = instruction_sets();
    let has = |wanted: &str| sets.iter().any(|(name, present)| *name == wanted && *present);
    if ["avx512f", "avx512bw", "avx512dq", "avx512vl"].into_iter().all(has) {
        "AVX-512"
    } else if has("avx2") {
        "AVX2"
    } else if cfg!(target_arch = "x86_64") {
        "SSE2"
    } else if cfg!(target_arch = "aarch64") {
        "NEON"
    } else {
        "the architecture's own"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_found_in_what_kernels_of_several_architectures_write() {
        let x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.50GHz \n";
        assert_eq!(name_in(x86), Some("Some CPU @ 2.50GHz"));
        assert_eq!(name_in("processor\t: 0\ncpu\t\t: POWER9, altivec supported\n"), Some("POWER9, altivec supported"));
        assert_eq!(name_in("processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n"), None);
        assert_eq!(name_in("model name\t:\n"), None);
        assert!(!name().is_empty());
    }

    #[test]
    fn the_loops_taken_are_ones_that_the_processor_has() {
        let has = |name| instruction_sets().contains(&(name, true));
        match vector_loops() {
            "AVX-512" => assert!(has("avx512f") && has("avx512vl")),
            "AVX2" => assert!(has("avx2")),
            _ => assert!(!has("avx2")),
        }
    }
}
