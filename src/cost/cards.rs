//! Graphics cards as their maker describes them: rates at their peak, dense, with the document that states each.

use crate::backend::device::{CudaDevice, Device, Version};

/// How a card reaches the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// Sixteen lanes of PCI Express of this generation.
    PciExpress(u8),
    /// NVLink-C2C, coherent: so many bytes a second in each direction.
    Coherent(u64),
}

/// A card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// Its name for `--card`.
    pub name: &'static str,
    /// How its maker calls it.
    pub product: &'static str,
    /// Parts of the names that drivers give such cards, each with all of its words.
    pub known_as: &'static [&'static str],
    /// Compute capability.
    pub capability: Version,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes a second of its memory.
    pub memory_rate: f64,
    /// The way to the host.
    pub bus: Bus,
    /// f64 operations a second outside tensor cores.
    pub f64: f64,
    /// f64 operations a second of matrix products: on tensor cores where they have f64.
    pub f64_products: f64,
    /// f32 operations a second.
    pub f32: f64,
    /// TF32 operations a second of matrix products; `None` before Ampere.
    pub tf32: Option<f64>,
    /// The documents that state these numbers.
    pub source: &'static str,
}

const GB: u64 = 1_000_000_000;
const TERA: f64 = 1e12;

/// Every card that can be predicted for.
pub const CARDS: &[Card] = &[
    Card {
        name: "h100-sxm",
        product: "H100 SXM 80 GB",
        known_as: &["H100 80GB HBM3"],
        capability: Version(9, 0),
        multiprocessors: 132,
        memory_bytes: 80 * GB,
        memory_rate: 3.35 * TERA,
        bus: Bus::PciExpress(5),
        f64: 34.0 * TERA,
        f64_products: 67.0 * TERA,
        f32: 67.0 * TERA,
        tf32: Some(494.5 * TERA),
        source: "NVIDIA H100 Tensor Core GPU, datasheet (TF32 there with sparsity: halved)",
    },
    Card {
        name: "h200",
        product: "H200 SXM 141 GB",
        known_as: &["H200"],
        capability: Version(9, 0),
        multiprocessors: 132,
        memory_bytes: 141 * GB,
        memory_rate: 4.8 * TERA,
        bus: Bus::PciExpress(5),
        f64: 34.0 * TERA,
        f64_products: 67.0 * TERA,
        f32: 67.0 * TERA,
        tf32: Some(494.5 * TERA),
        source: "NVIDIA H200 Tensor Core GPU, datasheet (TF32 there with sparsity: halved)",
    },
    Card {
        name: "b200",
        product: "B200 180 GB",
        known_as: &["B200"],
        capability: Version(10, 0),
        multiprocessors: 148,
        memory_bytes: 180 * GB,
        memory_rate: 7.7 * TERA,
        bus: Bus::PciExpress(5),
        f64: 37.0 * TERA,
        f64_products: 37.0 * TERA,
        f32: 75.0 * TERA,
        tf32: Some(1100.0 * TERA),
        source: "NVIDIA HGX platform, datasheet, an eighth of HGX B200; multiprocessors and memory as the driver tells them, \
                 pytorch/ao pull request 4002",
    },
    Card {
        name: "gh200",
        product: "GH200 96 GB",
        known_as: &["GH200"],
        capability: Version(9, 0),
        multiprocessors: 132,
        memory_bytes: 96 * GB,
        memory_rate: 4.0 * TERA,
        bus: Bus::Coherent(450 * GB),
        f64: 34.0 * TERA,
        f64_products: 67.0 * TERA,
        f32: 67.0 * TERA,
        tf32: Some(494.0 * TERA),
        source: "NVIDIA GH200 Grace Hopper Superchip, datasheet",
    },
    Card {
        name: "gb200",
        product: "GB200, one of its two GPUs, 186 GB",
        known_as: &["GB200"],
        capability: Version(10, 0),
        multiprocessors: 152,
        memory_bytes: 186 * GB,
        memory_rate: 8.0 * TERA,
        // 900 GB/s of one Grace for two GPUs, both directions together.
        bus: Bus::Coherent(225 * GB),
        f64: 40.0 * TERA,
        f64_products: 40.0 * TERA,
        f32: 80.0 * TERA,
        tf32: Some(1250.0 * TERA),
        source: "NVIDIA GB200 NVL72, datasheet, half of a Grace Blackwell Superchip",
    },
    Card {
        name: "a100-80g",
        product: "A100 SXM 80 GB",
        known_as: &["A100-SXM4-80GB"],
        capability: Version(8, 0),
        multiprocessors: 108,
        memory_bytes: 80 * GB,
        memory_rate: 2.039 * TERA,
        bus: Bus::PciExpress(4),
        f64: 9.7 * TERA,
        f64_products: 19.5 * TERA,
        f32: 19.5 * TERA,
        tf32: Some(156.0 * TERA),
        source: "NVIDIA A100 Tensor Core GPU, datasheet",
    },
    Card {
        name: "l40s",
        product: "L40S 48 GB",
        known_as: &["L40S"],
        capability: Version(8, 9),
        multiprocessors: 142,
        memory_bytes: 48 * GB,
        memory_rate: 0.864 * TERA,
        bus: Bus::PciExpress(4),
        f64: 1.43 * TERA,
        f64_products: 1.43 * TERA,
        f32: 91.6 * TERA,
        tf32: Some(183.0 * TERA),
        source: "NVIDIA L40S, datasheet; f64 is 1/64 of f32: NVIDIA Ada GPU Architecture, whitepaper",
    },
    Card {
        name: "rtx-4090",
        product: "GeForce RTX 4090",
        known_as: &["RTX 4090"],
        capability: Version(8, 9),
        multiprocessors: 128,
        memory_bytes: 24 * GB,
        memory_rate: 1.008 * TERA,
        bus: Bus::PciExpress(4),
        f64: 1.29 * TERA,
        f64_products: 1.29 * TERA,
        f32: 82.6 * TERA,
        tf32: Some(82.6 * TERA),
        source: "NVIDIA Ada GPU Architecture, whitepaper, appendix A",
    },
    Card {
        name: "rtx-3090",
        product: "GeForce RTX 3090",
        known_as: &["RTX 3090"],
        capability: Version(8, 6),
        multiprocessors: 82,
        memory_bytes: 24 * GB,
        memory_rate: 0.936 * TERA,
        bus: Bus::PciExpress(4),
        f64: 0.556 * TERA,
        f64_products: 0.556 * TERA,
        f32: 35.6 * TERA,
        tf32: Some(35.6 * TERA),
        source: "NVIDIA Ampere GA102 GPU Architecture, whitepaper, table 9",
    },
    Card {
        name: "rtx-5090",
        product: "GeForce RTX 5090",
        known_as: &["RTX 5090"],
        capability: Version(12, 0),
        multiprocessors: 170,
        memory_bytes: 32 * GB,
        memory_rate: 1.792 * TERA,
        bus: Bus::PciExpress(5),
        f64: 1.64 * TERA,
        f64_products: 1.64 * TERA,
        f32: 104.8 * TERA,
        tf32: Some(104.8 * TERA),
        source: "NVIDIA RTX Blackwell GPU Architecture, whitepaper, appendix A",
    },
    Card {
        name: "t4",
        product: "Tesla T4",
        known_as: &["T4"],
        capability: Version(7, 5),
        multiprocessors: 40,
        memory_bytes: 16 * GB,
        memory_rate: 0.32 * TERA,
        bus: Bus::PciExpress(3),
        f64: 0.253 * TERA,
        f64_products: 0.253 * TERA,
        f32: 8.1 * TERA,
        tf32: None,
        source: "NVIDIA T4, datasheet; f64 is 1/32 of f32: NVIDIA Turing GPU Architecture, whitepaper",
    },
];

/// A card that the table lacks, taken for no faster than one of its capability and size is: for choosing, not for showing.
pub fn like(device: &CudaDevice) -> Card {
    let Version(major, minor) = device.capability;
    // Units of f32 in a multiprocessor, and how many times slower f64 is: CUDA C++ Programming Guide, arithmetic instructions.
    let units = if matches!((major, minor), (7, 5) | (8, 0)) { 64.0 } else { 128.0 };
    let slower = match (major, minor) {
        (8..=10, 0) => 2.0,
        (7, 5) => 32.0,
        _ => 64.0,
    };
    let f32 = 2.0 * units * f64::from(device.multiprocessors) * 1.4e9;
    Card {
        name: "a card that is not known",
        product: "a card that is not known",
        known_as: &[],
        capability: device.capability,
        multiprocessors: device.multiprocessors,
        memory_bytes: device.total_bytes,
        memory_rate: 0.3 * TERA,
        bus: Bus::PciExpress(3),
        f64: f32 / slower,
        f64_products: f32 / slower,
        f32,
        tf32: None,
        source: "assumed: clocks of 1.4 GHz, the memory and the bus of the slowest card in the table",
    }
}

/// One such card, which need not be there: to plan for.
pub fn device_of(card: &Card) -> Device {
    let device = CudaDevice {
        ordinal: 0,
        name: format!("NVIDIA {}", card.known_as.first().unwrap_or(&card.product)),
        capability: card.capability,
        total_bytes: card.memory_bytes,
        free_bytes: None,
        multiprocessors: card.multiprocessors,
        problem: None,
    };
    Device::of_cuda(vec![device], Vec::new(), None)
}

/// The card of this name.
pub fn named(name: &str) -> Option<&'static Card> {
    CARDS.iter().find(|card| card.name == name)
}

/// The card that a driver calls so; `None` if it is not in the table.
pub fn of_device(name: &str) -> Option<&'static Card> {
    let words: Vec<&str> = name.split([' ', '/']).collect();
    let has = |known: &str| {
        let known: Vec<&str> = known.split(' ').collect();
        words.windows(known.len()).any(|at| at == known)
    };
    CARDS.iter().find(|card| card.known_as.iter().any(|known| has(known)))
}
