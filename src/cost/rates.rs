//! What cards reach of their peaks, from measurements that others published; and what cuSOLVER takes, by what it does to memory.
//!
//! Each number names its source. Where none was found that is said, and what is assumed instead.

use super::cards::{Bus, Card};

/// Bytes a second of sixteen lanes of PCI Express in one direction: its line rate less the coding of 128 bits in 130.
fn pci_express(generation: u8) -> f64 {
    15.75e9 * f64::from(1u32 << generation.saturating_sub(3))
}

/// Bytes a second to the device and from it, from and to page-locked memory.
///
/// PCI Express 5: 56.3 and 57.3 of 63 GB/s on RTX 5090 (tinygrad/open-gpu-kernel-modules issue 29, nvbandwidth). 4 and 3: 26.3 and
/// 27.1 of 31.5 GB/s on RTX 4090 (NVIDIA/nvbandwidth issue 15). Coherent: 375 and 297 of 450 GB/s on GH200 (Schieffer et al., A First
/// Look into Grace Hopper's Integrated Memory, ICPP 2024).
pub fn bus(card: &Card) -> [f64; 2] {
    match card.bus {
        Bus::PciExpress(generation @ 5..) => [0.89, 0.91].map(|share| share * pci_express(generation)),
        Bus::PciExpress(generation) => [0.83, 0.86].map(|share| share * pci_express(generation)),
        Bus::Coherent(rate) => [0.83, 0.66].map(|share| share * rate as f64),
    }
}

/// What is left to each direction of the bus while the other is busy: 50.9 of 56.3 GB/s on RTX 5090 (as above).
pub const BOTH_WAYS: f64 = 0.90;

/// Bytes a second that kernels move in the device's memory: 1727 of 1935 GB/s on A800 (mli/transformers-benchmarks issue 4).
pub fn memory(card: &Card) -> f64 {
    0.89 * card.memory_rate
}

/// Operations a second of large matrix products at this peak: 29.2 of 35.5 TFLOP/s in f32 on RTX 4070 Ti (Yinghan-Li/YHs_Sample
/// issue 4). Of products in f64 no measurement was found; they are assumed to reach the same share.
pub fn products(peak: f64) -> f64 {
    0.82 * peak
}

/// The same of TF32: 106 of 156 TFLOP/s on A800 (mli/transformers-benchmarks issue 4).
pub fn tf32_products(peak: f64) -> f64 {
    0.68 * peak
}

/// Seconds that cuSOLVER takes for a column beside its arithmetic, as kernels wait for each other: 58.6 ms for the 1000 columns of
/// `cupy.linalg.eigh` and 482 ms for 5000 of which a half is arithmetic (cupy pull request 6178).
const EIGEN_COLUMN: f64 = 50e-6;
/// The same of a singular value decomposition: 23.3 ms for 256 columns on A100 (tensor4all/tenferro-rs issue 1720).
const SINGULAR_COLUMN: f64 = 90e-6;

/// Seconds of all eigenvectors of so many symmetric n×n matrices in f64, in so many calls.
///
/// Reduction to a tridiagonal matrix multiplies what is left of the matrix by a vector for each column, which reads all of it: n³/3
/// elements and 2/3 n³ operations outside products. The updates between, divide and conquer, and the way back are products, 4 n³
/// operations. In a batch the columns of all matrices are gone through together.
pub fn eigen_seconds(card: &Card, n: f64, matrices: f64, calls: f64) -> f64 {
    let cube = n.powi(3);
    let reduction = (8.0 * cube / 3.0 / memory(card)).max(2.0 / 3.0 * cube / card.f64);
    EIGEN_COLUMN * n * calls + matrices * (reduction + 4.0 * cube / products(card.f64_products))
}

/// Seconds of the singular value decomposition of an m×n matrix in f64, m ≥ n, with vectors.
///
/// Reduction to two diagonals reads what is left of the matrix twice a column; forming both sets of vectors and the updates are products.
/// Then QR sweeps rotate pairs of columns of both, two sweeps a singular value over half of the columns: 32 bytes an element and rotation.
pub fn svd_seconds(card: &Card, m: f64, n: f64) -> f64 {
    let reduction = 8.0 * 2.0 * (m * n * n / 2.0 - n.powi(3) / 6.0) / memory(card);
    let rotations = 32.0 * n * n * (m + n) / memory(card);
    let updates = (6.0 * m * n * n + 4.0 * n.powi(3)) / products(card.f64_products);
    SINGULAR_COLUMN * n + reduction + rotations + updates
}

/// Bytes a second that a thread copies from the page cache into page-locked memory and hashes on the way: of 12.0 GB/s that one
/// thread copies, 62 % where digests are taken (measured on the machine of docs/performance.md; other machines differ).
pub const STAGE_PER_LANE: f64 = 7.4e9;
/// Bytes a second of a disk of a server, read and written in order: Samsung PM9A3 3.84 TB, datasheet.
pub const DISK_READ: f64 = 6.8e9;
/// See [`DISK_READ`].
pub const DISK_WRITE: f64 = 4.0e9;
/// Seconds until a device is open: assumed, no source was found.
pub const OPEN_SECONDS: f64 = 0.5;

/// Bytes a second that a thread of the CPU reads, digests and merges of stored sources, and writes: `ties` of 0.99 B parameters on two
/// threads, each source read twice, 2.28 s (docs/performance.md; other machines differ).
pub const CPU_ELEMENTS: f64 = 3.9e9;
/// Operations a second of a thread of the CPU that decomposes matrices: 60 GFLOP/s on two (docs/performance.md).
pub const CPU_MATRICES: f64 = 30e9;
