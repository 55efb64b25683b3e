//! The card that the stand-in says it is: what the CUDA C++ Programming Guide, "Technical Specifications per Compute
//! Capability", gives for its compute capability.

/// Limits of a compute capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// As `MERGANSER_STANDIN_CAPABILITY` names it: 90 is 9.0.
    pub capability: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_of_processor: usize,
    /// Shared memory of a block that asks for it, in bytes.
    pub shared_opt_in: usize,
    /// Threads and blocks that lie on a multiprocessor at the same time.
    pub threads_of_processor: u32,
    /// See [`Self::threads_of_processor`].
    pub blocks_of_processor: u32,
}

/// Registers of a block and of a multiprocessor, alike on all of them.
pub const REGISTERS: u32 = 65_536;
/// Registers are given to a warp in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Shared memory of a block that does not ask, in bytes.
pub const SHARED_UNASKED: usize = 48 << 10;
/// Threads of a warp.
const WARP: u32 = 32;

const fn card(capability: u32, shared: [usize; 2], threads: u32, blocks: u32) -> Card {
    Card {
        capability,
        shared_of_processor: shared[0] << 10,
        shared_opt_in: shared[1] << 10,
        threads_of_processor: threads,
        blocks_of_processor: blocks,
    }
}

/// Every capability that merganser has kernels for, and 7.0, for which it has none.
const CARDS: [Card; 8] = [
    card(70, [96, 96], 2048, 32),
    card(75, [64, 64], 1024, 16),
    card(80, [164, 163], 2048, 32),
    card(86, [100, 99], 1536, 16),
    card(89, [100, 99], 1536, 24),
    card(90, [228, 227], 2048, 32),
    card(100, [228, 227], 2048, 32),
    card(120, [100, 99], 1536, 24),
];

impl Card {
    /// The card of a capability, if it is in the table.
    pub fn of(capability: u32) -> Option<Card> {
        CARDS.into_iter().find(|card| card.capability == capability)
    }

    /// Threads that a block can have whose threads take so many registers each.
    pub fn threads_by_registers(registers: u32) -> u32 {
        let of_warp = (registers.max(1) * WARP).next_multiple_of(REGISTER_UNIT);
        REGISTERS / of_warp * WARP
    }
}

#[cfg(test)]
mod tests {
    use super::Card;

    #[test]
    fn registers_bound_the_threads_of_a_block() {
        for (registers, threads) in [(32, 2048), (64, 1024), (65, 896), (128, 512), (209, 288), (255, 256)] {
            assert_eq!(Card::threads_by_registers(registers), threads, "{registers}");
        }
    }
}
