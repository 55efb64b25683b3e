//! What a merge takes on a graphics card, predicted without one: counts of bytes and operations by kind ([`Work`]), over a card's
//! rates as its maker states them ([`cards`]) and the shares of those that have been measured and published ([`rates`]).
//!
//! No number here was measured by merganser on a card, and every result is called a prediction where it is shown. The shares were
//! written down before the predictions were made; `tests.rs` holds the model against published timings that it was not made from.

pub mod cards;
pub mod rates;

#[cfg(test)]
mod tests;

use serde::Serialize;

use cards::Card;

/// Decompositions of matrices of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eigen {
    /// Rows and columns of each.
    pub side: u64,
    /// How many matrices.
    pub matrices: u64,
    /// Calls of the solver that take them.
    pub calls: u64,
}

/// What a merge does on a device and around it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// Bytes of sources that are read from their files.
    pub read_bytes: u64,
    /// Bytes that cross the bus to the device.
    pub to_device_bytes: u64,
    /// Bytes that element-wise kernels read and write in the device's memory.
    pub element_bytes: u64,
    /// Operations of matrix products in f64.
    pub product_operations: f64,
    /// Eigenvectors of symmetric matrices in f64.
    pub eigen: Vec<Eigen>,
    /// Bytes that cross the bus to the host.
    pub from_device_bytes: u64,
    /// Bytes that are written to files.
    pub written_bytes: u64,
}

/// The part of a machine beside its card that a prediction takes for granted.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// Threads that stage sources for each device.
    pub lanes: usize,
    /// Devices that share the work.
    pub devices: usize,
}

/// Seconds of one way that the data takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Path {
    /// `read`, `host to device`, `element-wise`, `products`, `eigenvectors`, `device to host` or `write`.
    pub name: &'static str,
    /// Seconds that it takes by itself.
    pub seconds: f64,
}

/// What is predicted of a merge.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Prediction {
    /// The card's name in the table.
    pub card: &'static str,
    /// Seconds of the whole merge where the sources are in the page cache. All ways are taken at once, so that the slowest counts;
    /// computing is one way, whatever its kinds.
    pub seconds: f64,
    /// The same where the sources come from a disk.
    pub cold_seconds: f64,
    /// Of those, seconds until the device is open.
    pub open_seconds: f64,
    /// Seconds of the device's work of all kinds.
    pub compute_seconds: f64,
    /// The slowest way, sources in the page cache: one of `paths`, of computing its largest kind.
    pub bottleneck: &'static str,
    /// Seconds by way.
    pub paths: Vec<Path>,
}

impl Work {
    /// Adds what another part of the merge does.
    pub fn add(&mut self, other: Self) {
        self.read_bytes += other.read_bytes;
        self.to_device_bytes += other.to_device_bytes;
        self.element_bytes += other.element_bytes;
        self.product_operations += other.product_operations;
        self.from_device_bytes += other.from_device_bytes;
        self.written_bytes += other.written_bytes;
        for of in other.eigen {
            match self.eigen.iter_mut().find(|e| e.side == of.side) {
                Some(same) => (same.matrices, same.calls) = (same.matrices + of.matrices, same.calls + of.calls),
                None => self.eigen.push(of),
            }
        }
    }

    /// Predicts the seconds of this work on a card.
    pub fn on(&self, card: &Card, host: Host) -> Prediction {
        let devices = host.devices.max(1) as f64;
        let stage = rates::STAGE_PER_LANE * (host.lanes.max(1) as f64) * devices;
        let [up, down] = rates::bus(card);
        // Where both directions are busy each gets less.
        let both = if self.to_device_bytes.min(self.from_device_bytes) > 0 { rates::BOTH_WAYS } else { 1.0 };
        let eigen = |e: &Eigen| rates::eigen_seconds(card, e.side as f64, e.matrices as f64, e.calls as f64);
        let read = self.read_bytes as f64 / stage;
        let cold = read.max(self.read_bytes as f64 / rates::DISK_READ);
        let path = |name, seconds| Path { name, seconds };
        let paths = vec![
            path("read", read),
            path("host to device", self.to_device_bytes as f64 / (up * both * devices)),
            path("element-wise", self.element_bytes as f64 / (rates::memory(card) * devices)),
            path("products", self.product_operations / (rates::products(card.f64_products) * devices)),
            path("eigenvectors", self.eigen.iter().map(eigen).sum::<f64>() / devices),
            path("device to host", self.from_device_bytes as f64 / (down * both * devices)),
            path("write", self.written_bytes as f64 / rates::DISK_WRITE),
        ];
        let computes = |name: &str| matches!(name, "element-wise" | "products" | "eigenvectors");
        let compute: f64 = paths.iter().filter(|p| computes(p.name)).map(|p| p.seconds).sum();
        let ways = paths.iter().filter(|p| !computes(p.name)).map(|p| p.seconds);
        let slowest = ways.fold(compute, f64::max);
        let by_seconds = |a: &&Path, b: &&Path| a.seconds.total_cmp(&b.seconds);
        let bottleneck = if compute >= slowest {
            paths.iter().filter(|p| computes(p.name)).max_by(by_seconds)
        } else {
            paths.iter().filter(|p| !computes(p.name)).max_by(by_seconds)
        };
        Prediction {
            card: card.name,
            seconds: rates::OPEN_SECONDS + slowest,
            cold_seconds: rates::OPEN_SECONDS + slowest.max(cold),
            open_seconds: rates::OPEN_SECONDS,
            compute_seconds: compute,
            bottleneck: bottleneck.map_or("read", |p| p.name),
            paths,
        }
    }
}
