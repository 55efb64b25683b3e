//! The way of merged elements from a computing thread to the writers: cut into pieces, hashed, sent.

use std::sync::mpsc::SyncSender;

use super::Engine;
use super::buffers::Buffer;
use super::writer::Written;
use crate::backend::cpu::stored::Widen;
use crate::error::{Error, Result};
use crate::ops::RunFacts;
use crate::output::{PieceDigests, nonfinite};

/// Pieces of one output tensor.
pub(super) struct Sink<'a, 'p> {
    engine: &'a Engine<'p>,
    output: usize,
    tensor: usize,
    to_writers: SyncSender<Written>,
    piece: usize,
    buffer: Option<Buffer>,
    facts: RunFacts,
}

impl<'a, 'p> Sink<'a, 'p> {
    pub fn new(engine: &'a Engine<'p>, tensor: usize, to_writers: SyncSender<Written>) -> Self {
        Self::of(engine, 0, tensor, to_writers)
    }

    /// Of a tensor of one of several outputs.
    pub fn of(engine: &'a Engine<'p>, output: usize, tensor: usize, to_writers: SyncSender<Written>) -> Self {
        Self { engine, output, tensor, to_writers, piece: 0, buffer: None, facts: RunFacts::default() }
    }

    /// Sends a whole piece.
    pub fn send(&self, piece: usize, bytes: Buffer) -> Result<()> {
        let (plan, tensor) = (self.engine.plan, &self.engine.plan.tensors[self.tensor]);
        let piece_bytes = plan.memory.chunk_elems * tensor.elem_bytes;
        let digest = PieceDigests::hash_piece(tensor.elems * tensor.elem_bytes, piece_bytes, piece, &bytes)?;
        let is_zero = nonfinite::is_zero(tensor.dtype, &bytes);
        let written = Written { output: self.output, tensor: self.tensor, piece, digest, is_zero, bytes };
        // Writers live as long as there are senders.
        self.to_writers.send(written).map_err(|_| Error::internal("the writers have gone"))
    }

    /// Rounds the next elements of the tensor, in order, to what is stored.
    pub fn push(&mut self, mut values: &[f64]) -> Result<()> {
        let tensor = &self.engine.plan.tensors[self.tensor];
        let (size, dtype) = (tensor.elem_bytes as usize, tensor.dtype);
        let capacity = self.engine.plan.memory.chunk_elems as usize * size;
        while !values.is_empty() {
            let mut buffer = match self.buffer.take() {
                Some(buffer) => buffer,
                None => self.engine.buffer_for(self.tensor).ok_or_else(stopping)?,
            };
            let n = values.len().min((capacity - buffer.len()) / size);
            let (now, later) = values.split_at(n);
            let from = buffer.len();
            buffer.set_len(from + n * size);
            if f64::narrow(now, dtype, &mut buffer[from..]) {
                self.facts.nonfinite += nonfinite::count(dtype, &buffer[from..]);
            }
            values = later;
            if buffer.len() == capacity {
                self.send(self.piece, buffer)?;
                self.piece += 1;
            } else {
                self.buffer = Some(buffer);
            }
        }
        Ok(())
    }

    /// Sends what is left.
    pub fn finish(mut self) -> Result<RunFacts> {
        if let Some(buffer) = self.buffer.take() {
            self.send(self.piece, buffer)?;
        }
        Ok(std::mem::take(&mut self.facts))
    }
}

impl Drop for Sink<'_, '_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.engine.buffers.give_back(buffer);
        }
    }
}

/// What a thread that was interrupted in the middle of a unit returns; the run's own error came first.
fn stopping() -> Error {
    Error::internal("the merge is being stopped")
}
