//! The C allocator's habits, where they would break the promise of bounded memory.
#![allow(unsafe_code)]

/// Allocations of this size and more go back to the system as soon as they are freed. Smaller ones, of which the work on a
/// matrix makes many, are used again: fresh pages for each of them would take a tenth of the time.
const RETURNED_BYTES: i32 = 4 << 20;

/// Keeps glibc from raising its threshold for returning memory to the size of the largest block freed so far: blocks of
/// many sizes, as linear algebra frees them, would then pile up far beyond the plan's bound.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt may be called at any time from any thread; it takes the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_BYTES);
    }
}

/// Gives back what the allocator keeps for later: to be called when memory that was lent to a piece of work is counted as free.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time from any thread; it takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
