//! What comes back from a device on its way to the writers: chunks joined to the pieces that the plan writes.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;

use super::audited;
use crate::backend::cuda::lane::{Fetch, Lane};
use crate::engine::Engine;
use crate::engine::buffers::Buffer;
use crate::engine::sink::Sink;
use crate::engine::writer::Written;
use crate::error::{Error, Result};

/// Pieces of one output tensor.
pub(super) struct Pieces<'a, 'p> {
    engine: &'a Engine<'p>,
    device: &'a str,
    index: usize,
    sink: Sink<'a, 'p>,
    piece_bytes: usize,
    piece: usize,
    buffer: Option<Buffer>,
    /// All that was sent, of a matrix that is audited.
    kept: Option<Vec<u8>>,
}

impl<'a, 'p> Pieces<'a, 'p> {
    pub fn new(engine: &'a Engine<'p>, device: &'a str, index: usize, to_writers: &SyncSender<Written>) -> Self {
        let piece_bytes = (engine.plan.memory.chunk_elems * engine.plan.tensors[index].elem_bytes) as usize;
        let sink = Sink::new(engine, index, to_writers.clone());
        let kept = engine.audit.has_matrix(index).then(Vec::new);
        Self { engine, device, index, sink, piece_bytes, piece: 0, buffer: None, kept }
    }

    /// Takes what the oldest copy brought.
    pub fn take_oldest(&mut self, lane: &mut Lane, under_way: &mut VecDeque<Fetch>) -> Result<()> {
        let Some(fetch) = under_way.pop_front() else { return Ok(()) };
        self.add(lane.fetched(&fetch)?)
    }

    /// Adds the tensor's next bytes.
    pub fn add(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let mut buffer = match self.buffer.take() {
                Some(buffer) => buffer,
                None => {
                    self.engine.buffer_for(self.index).ok_or_else(|| Error::internal("the merge is being stopped"))?
                }
            };
            let (now, later) = bytes.split_at(bytes.len().min(self.piece_bytes - buffer.len()));
            buffer.extend_from_slice(now);
            bytes = later;
            if buffer.len() == self.piece_bytes { self.send(buffer)? } else { self.buffer = Some(buffer) }
        }
        Ok(())
    }

    fn send(&mut self, buffer: Buffer) -> Result<()> {
        let start = self.piece as u64 * self.engine.plan.memory.chunk_elems;
        if let Err(error) = audited::segments(self.engine, self.device, self.index, start, &buffer) {
            self.engine.buffers.give_back(buffer);
            return Err(error);
        }
        if let Some(kept) = &mut self.kept {
            kept.extend_from_slice(&buffer);
        }
        self.piece += 1;
        self.sink.send(self.piece - 1, buffer)
    }

    /// Sends what is left; a matrix that is audited is then compared with the CPU's.
    pub fn finish(mut self) -> Result<()> {
        if let Some(buffer) = self.buffer.take() {
            self.send(buffer)?;
        }
        self.kept.take().map_or(Ok(()), |sent| audited::matrix(self.engine, self.device, self.index, &sent))
    }
}

impl Drop for Pieces<'_, '_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.engine.buffers.give_back(buffer);
        }
    }
}
