//! How fast bytes cross the bus, from page-locked and from ordinary memory, and how fast the device copies its own memory.

use super::device::Open;
use crate::backend::cuda::rates::{self, Clock};
use crate::bench::{Bench, Row, Unit, rounds};
use crate::cost::cards::Card;
use crate::cost::rates as cost;
use crate::error::{Error, Result};

/// Names of the limits.
pub const TO_DEVICE: &str = "host to device, page-locked";
const FROM_DEVICE: &str = "device to host, page-locked";
const TO_DEVICE_PAGEABLE: &str = "host to device, pageable";
const FROM_DEVICE_PAGEABLE: &str = "device to host, pageable";
pub const DEVICE_COPY: &str = "device memory copy";

/// Half of the data, there and back again, and from one place on the device to another.
pub(super) fn all(bench: &mut Bench<'_>) -> Result<()> {
    let mut block = bench.take_block()?;
    let half = block.len() / 2;
    let (from, back) = block.split_at_mut(half);
    let back = &mut back[..half];
    let (mut open, spans) = Open::with_spans(bench.settings, &[half as u64; 2], false)?;
    let (gpu, lane) = open.first()?;
    let (clock, mut locked) = (Clock::new(gpu)?, rates::page_locked(gpu, half)?);
    let filled = locked.slot(0).fill(half);
    filled.map_err(|e| crate::backend::cuda::error::driver(&gpu.label, "give a slot", e))?.copy_from_slice(from);

    let card = bench.card();
    let row = |name, work, predicted: fn(&Card) -> f64| {
        Row::new(name, 1, Unit::Bytes, work, None).predicted(card.map(predicted))
    };
    // From and to ordinary memory a copy goes by way of the driver's own buffers, of which nothing is predicted.
    let pageable = |name, work| Row::new(name, 1, Unit::Bytes, work, None);
    let once = half as f64;
    bench.measure(row(TO_DEVICE, once, |card| cost::bus(card)[0]), |stop| {
        rounds::check(stop)?;
        clock.time(gpu, lane, |lane| rates::send_locked(gpu, lane, &mut locked, spans[0]))
    })?;
    bench.measure(row(DEVICE_COPY, 2.0 * once, cost::memory), |stop| {
        rounds::check(stop)?;
        clock.time(gpu, lane, |lane| rates::copy_within(gpu, lane, spans[0], spans[1]))
    })?;
    bench.measure(pageable(FROM_DEVICE_PAGEABLE, once), |stop| {
        rounds::check(stop)?;
        clock.time(gpu, lane, |lane| rates::fetch_pageable(gpu, lane, spans[1], back))
    })?;
    if back != from {
        return Err(Error::internal(format!("bytes that went through {} came back as others", gpu.label)));
    }
    bench.measure(row(FROM_DEVICE, once, |card| cost::bus(card)[1]), |stop| {
        rounds::check(stop)?;
        clock.time(gpu, lane, |lane| rates::fetch_locked(gpu, lane, spans[1], &mut locked))
    })?;
    bench.measure(pageable(TO_DEVICE_PAGEABLE, once), |stop| {
        rounds::check(stop)?;
        clock.time(gpu, lane, |lane| rates::send_pageable(gpu, lane, from, spans[0]))
    })?;
    lane.finish()?;
    bench.block = block;
    Ok(())
}
