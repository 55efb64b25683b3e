//! Threads that write finished pieces in their places, and note a tensor once all of its pieces are written.

use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};

use super::Engine;
use super::buffers::Buffer;
use crate::error::Result;
use crate::output::digest::Piece;

/// A piece of an output tensor on its way to the file.
#[derive(Debug)]
pub(super) struct Written {
    /// Which of the outputs, from 0.
    pub output: usize,
    pub tensor: usize,
    /// Which piece; pieces of a tensor have [`crate::plan::memory::Memory::chunk_elems`] elements.
    pub piece: usize,
    pub digest: Piece,
    /// Whether it holds zeros alone.
    pub is_zero: bool,
    pub bytes: Buffer,
}

pub(super) fn write_all(engine: &Engine<'_>, pieces: &Mutex<Receiver<Written>>) {
    loop {
        // Ends when every computing thread has dropped its sender.
        let received = pieces.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(piece) = received else { return };
        if let Err(error) = write(engine, &piece) {
            engine.fail(error);
        }
        engine.buffers.give_back(piece.bytes);
    }
}

fn write(engine: &Engine<'_>, piece: &Written) -> Result<()> {
    let place = engine.plan.layout.placement(piece.tensor);
    let tensor = &engine.plan.tensors[piece.tensor];
    let offset = piece.piece as u64 * engine.plan.memory.chunk_elems * tensor.elem_bytes;
    let output = engine.output(piece.output);
    engine.work_of(piece.output)?.write_at(place.file, place.offset + offset, &piece.bytes)?;
    engine.progress.add_written(piece.bytes.len() as u64);
    if let Some(entry) = output.tensors[piece.tensor].piece_written(output.plan, piece)? {
        engine.record(piece.output, tensor, entry)?;
    }
    Ok(())
}
