//! Mistakes put into the program under test: it asks for a wait, a copy or a memset and does not get it, or a barrier is not there.
//! The program stays as it is; what it relies on is taken away, and a test sees that the result is then wrong under some seed.
//!
//! `MERGANSER_STANDIN_SABOTAGE` is one of
//!
//! | | |
//! |---|---|
//! | `wait:N` | the N-th `cuStreamWaitEvent` orders nothing |
//! | `host:N` | the N-th `cuEventSynchronize`, `cuStreamSynchronize`, `cuEventQuery` or `cuStreamQuery` says at once that all is done |
//! | `clear:N` | the N-th memset to zero does nothing |
//! | `upload:N` | the N-th copy to a device does nothing |
//! | `barrier:FILE:LINE` | the `__syncthreads` or `__syncwarp` on that line of `kernels/FILE` holds nobody |
//!
//! With `MERGANSER_STANDIN_WHERE` set, a call that is taken away says from where it came.

use std::backtrace::Backtrace;
use std::ffi::{CString, c_int};

/// A kind of call that can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A stream's wait for an event.
    Wait,
    /// A wait of the program itself.
    Host,
    /// A memset to zero.
    Clear,
    /// A copy to a device.
    Upload,
}

const CALLS: [(&str, Call); 4] =
    [("wait", Call::Wait), ("host", Call::Host), ("clear", Call::Clear), ("upload", Call::Upload)];

/// A barrier of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// File in `kernels/`.
    pub file: CString,
    /// Line.
    pub line: c_int,
}

/// What is taken away.
#[derive(Default)]
pub struct Sabotage {
    call: Option<(Call, u64)>,
    /// Whether the calls that lead to the one that is taken away are told.
    pub says_where: bool,
    /// The barrier, if it is one.
    pub barrier: Option<Barrier>,
    counts: [u64; CALLS.len()],
    /// How many calls were taken away: 0 or 1.
    pub removed: u64,
}

impl Sabotage {
    /// Reads the variable; `None` where it makes no sense.
    pub fn parse(text: &str) -> Option<Sabotage> {
        let (kind, rest) = text.split_once(':')?;
        if kind == "barrier" {
            let (file, line) = rest.split_once(':')?;
            let (file, line) = (CString::new(file).ok()?, line.parse().ok().filter(|line| *line > 0)?);
            return Some(Sabotage { barrier: Some(Barrier { file, line }), ..Sabotage::default() });
        }
        let call = CALLS.iter().find(|(name, _)| *name == kind)?.1;
        let nth = rest.parse().ok().filter(|nth| *nth > 0)?;
        Some(Sabotage { call: Some((call, nth)), ..Sabotage::default() })
    }

    /// Counts a call and says whether it is taken away.
    pub fn removes(&mut self, call: Call) -> bool {
        let count = &mut self.counts[call as usize];
        *count += 1;
        let is_it = self.call == Some((call, *count));
        self.removed += u64::from(is_it);
        if is_it && self.says_where {
            eprintln!("standin: this call is taken away:\n{}", Backtrace::force_capture());
        }
        is_it
    }

    /// How many calls of each kind there were.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CALLS.iter().map(|(name, call)| (*name, self.counts[*call as usize]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_call_of_the_kind_that_is_named_is_taken_away() {
        let mut sabotage = Sabotage::parse("host:2").unwrap();
        let calls = [Call::Wait, Call::Host, Call::Clear, Call::Host, Call::Host];
        assert_eq!(calls.map(|call| sabotage.removes(call)), [false, false, false, true, false]);
        assert_eq!(sabotage.removed, 1);
        assert_eq!(Sabotage::parse("barrier:sums.cu:79").unwrap().barrier.unwrap().line, 79);
    }

    #[test]
    fn what_is_no_mistake_is_refused() {
        for text in ["wait", "wait:0", "host:x", "barrier:sums.cu", "barrier:sums.cu:0", "warte:1"] {
            assert!(Sabotage::parse(text).is_none(), "{text}");
        }
    }
}
