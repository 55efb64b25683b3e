//! Device and pinned memory: every byte belongs to a known block, and is poison until something is written to it.

use std::collections::{BTreeMap, VecDeque};

/// What memory is filled with when it comes and when it goes: a number in every floating-point type, and none that a test merges. What
/// is not a number would be merged again on the host.
pub const POISON: u8 = 0x5A;

/// Freed memory is kept, poisoned, up to this many bytes, so that a late read finds poison; a later block of the same size takes
/// it again. Under the address sanitizer it is given back at once: the sanitizer then reports the read.
const QUARANTINE_BYTES: usize = 256 << 20;

/// Whose a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Memory of this device.
    Device(usize),
    /// Pinned host memory from the driver.
    Pinned,
    /// The caller's memory, pinned by registering it.
    Registered,
}

/// A live allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Bytes, exactly as asked for.
    pub len: usize,
    /// Whose it is.
    pub owner: Owner,
}

/// All live blocks.
#[derive(Default)]
pub struct Memory {
    live: BTreeMap<usize, Block>,
    quarantine: VecDeque<(usize, Block)>,
    quarantined_bytes: usize,
}

impl Memory {
    /// A poisoned block of exactly `len` bytes, aligned as the driver aligns. `None` when the machine has no more.
    pub fn allocate(&mut self, len: usize, owner: Owner) -> Option<usize> {
        let block = Block { len, owner };
        if let Some(oldest) = self.quarantine.iter().position(|(_, freed)| *freed == block) {
            let (address, _) = self.quarantine.remove(oldest)?;
            self.quarantined_bytes -= len;
            // Who still wrote to it after it was freed wrote here.
            fill(address, POISON, len);
            self.live.insert(address, block);
            return Some(address);
        }
        let align = if owner == Owner::Pinned { 4096 } else { 256 };
        let mut address = std::ptr::null_mut();
        // SAFETY: `address` is a valid place for the result, and the alignment is a power of two.
        if unsafe { libc::posix_memalign(&mut address, align, len) } != 0 {
            return None;
        }
        let address = address as usize;
        self.live.insert(address, block);
        fill(address, POISON, len);
        Some(address)
    }

    /// Notes memory of the caller's as pinned. `false` where it touches a block that is known.
    pub fn register(&mut self, address: usize, len: usize) -> bool {
        let Some(end) = address.checked_add(len) else { return false };
        if self.live.range(..end).next_back().is_some_and(|(start, block)| start + block.len > address) {
            return false;
        }
        self.live.insert(address, Block { len, owner: Owner::Registered });
        true
    }

    /// Blocks of pinned memory that live.
    pub fn pinned_blocks(&self) -> usize {
        self.live.values().filter(|block| block.owner == Owner::Pinned).count()
    }

    /// The block that begins at `address`.
    pub fn at(&self, address: usize) -> Option<Block> {
        self.live.get(&address).copied()
    }

    /// Poisons and frees the block that begins at `address`; a registered one is only forgotten.
    pub fn release(&mut self, address: usize) {
        let Some(block) = self.live.remove(&address) else { return };
        if block.owner == Owner::Registered {
            return;
        }
        fill(address, POISON, block.len);
        self.quarantine.push_back((address, block));
        self.quarantined_bytes += block.len;
        let limit = if crate::sanitized() { 0 } else { QUARANTINE_BYTES };
        while self.quarantined_bytes > limit {
            let Some((address, freed)) = self.quarantine.pop_front() else { break };
            self.quarantined_bytes -= freed.len;
            // SAFETY: came from posix_memalign, left `live` when it was released, and leaves the quarantine here, once.
            unsafe { libc::free(address as *mut libc::c_void) };
        }
    }

    /// The block that holds the first of `len` bytes at `address`; an error, in words, where they are not all inside it.
    pub fn holds(&self, address: usize, len: usize) -> Result<Option<Block>, String> {
        let Some((start, block)) = self.live.range(..=address).next_back() else { return Ok(None) };
        let offset = address - start;
        if offset >= block.len {
            return Ok(None);
        }
        if len > block.len - offset {
            return Err(format!("{len} bytes at offset {offset} of a block of {} bytes", block.len));
        }
        Ok(Some(*block))
    }

    /// The device whose memory `len` bytes at `address` are.
    pub fn device_of(&self, address: usize, len: usize) -> Result<usize, String> {
        match self.holds(address, len)? {
            Some(Block { owner: Owner::Device(device), .. }) => Ok(device),
            Some(_) => Err(format!("{address:#x} is host memory")),
            None => Err(format!("{address:#x} is in no block of a device")),
        }
    }

    /// Whether `len` bytes at a host address are pinned.
    pub fn is_pinned(&self, address: usize, len: usize) -> Result<bool, String> {
        match self.holds(address, len)? {
            Some(Block { owner: Owner::Device(_), .. }) => Err(format!("{address:#x} is device memory")),
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }
}

/// Fills `len` bytes.
pub fn fill(address: usize, value: u8, len: usize) {
    // SAFETY: callers pass a range inside a live block, checked by `Memory::holds`, or host memory that the program under test
    // handed to the driver for writing.
    unsafe { std::ptr::write_bytes(address as *mut u8, value, len) }
}

/// Fills `count` words of 32 bits.
pub fn fill_words(address: usize, value: u32, count: usize) {
    for index in 0..count {
        // SAFETY: as for `fill`; the caller checked alignment.
        unsafe { (address as *mut u32).add(index).write(value) }
    }
}

/// Copies `len` bytes; the ranges may overlap.
pub fn copy(to: usize, from: usize, len: usize) {
    // SAFETY: as for `fill`, both ways.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) }
}

/// Reads `len` bytes.
pub fn read(from: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    copy(bytes.as_mut_ptr() as usize, from, len);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_poison_and_knows_its_bounds() {
        let mut memory = Memory::default();
        let start = memory.allocate(1000, Owner::Device(1)).unwrap();
        assert_eq!(read(start, 1000), vec![POISON; 1000]);
        assert_eq!(memory.device_of(start + 999, 1), Ok(1));
        assert!(memory.device_of(start + 999, 2).is_err());
        assert!(memory.device_of(start + 1000, 1).is_err());
        assert_eq!(memory.is_pinned(&raw const memory as usize, 1), Ok(false));
        memory.release(start);
        assert!(memory.device_of(start, 1).is_err());
    }

    #[test]
    fn registered_memory_is_pinned_and_cannot_be_registered_twice() {
        let mut memory = Memory::default();
        let bytes = [7u8; 64];
        let address = bytes.as_ptr() as usize;
        assert!(memory.register(address, 64));
        assert!(!memory.register(address + 10, 64));
        assert_eq!(memory.is_pinned(address, 64), Ok(true));
        memory.release(address);
        assert_eq!((bytes[63], memory.is_pinned(address, 64)), (7, Ok(false)));
    }
}
