//! Which stream goes next. A correct program gives the same result whatever is chosen here; the seed chooses so that an
//! incorrect one does not.
//!
//! Four ways take turns from seed to seed, and from seed 1 on one stream is starved: it runs only when nothing else can.
//!
//! | seed mod 4 | when work runs |
//! |---|---|
//! | 0 | at once, in order: a copy from pinned memory has read it before the call returns |
//! | 1 | as late as possible: when waited for, streams taking turns at random |
//! | 2 | as late as possible, and of other streams only what the awaited work depends on |
//! | 3 | some of it at every call, some later |
//!
//! Of seeds 4 to 7 and every other four from there on, streams hurry to the last of a library's work, which lets others go first.

use crate::codes::Code;
use crate::world::{FIRST_HANDLE, Work, World};

/// The generator of the schedule's choices (SplitMix64).
pub struct Schedule {
    seed: u64,
    state: u64,
}

/// What a caller waits for.
#[derive(Clone, Copy)]
pub enum Goal {
    /// A stream's queue to be empty.
    Stream(usize),
    /// A record of an event.
    Event(usize, u64),
    /// All streams of a device.
    Device(usize),
}

impl Schedule {
    /// Choices of a seed.
    pub fn new(seed: u64) -> Schedule {
        Schedule { seed, state: seed }
    }

    /// A random number.
    pub fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// Seed for the order of a kernel's threads and blocks; 0 is their natural order.
    pub fn kernel_seed(&mut self) -> u64 {
        if self.seed == 0 { 0 } else { self.random() | 1 }
    }

    /// Whether everything is done in order.
    pub fn is_plain(&self) -> bool {
        self.seed == 0
    }
}

impl World {
    /// After a call: what runs without being waited for.
    pub fn run_ahead(&mut self) {
        let steps = match self.schedule.seed % 4 {
            0 => usize::MAX,
            3 => (self.schedule.random() % 3) as usize,
            _ => 0,
        };
        for _ in 0..steps {
            let starved = self.starved();
            let mut ready = self.ready();
            ready.retain(|stream| Some(*stream) != starved);
            if ready.is_empty() {
                break;
            }
            let choice =
                if self.schedule.seed.is_multiple_of(4) { 0 } else { self.schedule.random() as usize % ready.len() };
            self.step(ready[choice]);
        }
    }

    /// Runs work until the goal is reached.
    pub fn drive(&mut self, goal: Goal) -> Result<(), Code> {
        while !self.reached(goal) {
            let Some(stream) = self.choose(goal) else {
                return Err(self.unknown("deadlock: every stream waits for an event of another"));
            };
            self.step(stream);
        }
        self.note(goal);
        let device = match goal {
            Goal::Device(device) => device,
            Goal::Stream(handle) => match self.streams.get(&handle) {
                Some(stream) => stream.device,
                None => return Ok(()),
            },
            Goal::Event(handle, _) => self.event(handle)?.device,
        };
        self.working(device).map(|_| ())
    }

    /// Notes that the calling thread knows what it has waited for; of events their own calls see to it.
    fn note(&mut self, goal: Goal) {
        let known: Vec<usize> = match goal {
            Goal::Event(..) => Vec::new(),
            Goal::Stream(stream) => vec![stream],
            Goal::Device(device) => {
                self.streams.iter().filter(|(_, stream)| stream.device == device).map(|(handle, _)| *handle).collect()
            }
        };
        for stream in known {
            self.order.catch_up(stream);
        }
    }

    /// Whether there is nothing left to wait for.
    pub fn reached(&self, goal: Goal) -> bool {
        match goal {
            Goal::Stream(handle) => self.streams.get(&handle).is_none_or(|stream| stream.queue.is_empty()),
            Goal::Event(handle, number) => self.events.get(&handle).is_none_or(|event| event.done >= number),
            Goal::Device(device) => self.idle(device),
        }
    }

    fn choose(&mut self, goal: Goal) -> Option<usize> {
        if self.schedule.seed % 4 == 2
            && let Some(stream) = self.needed(goal)
        {
            return Some(stream);
        }
        let lingers = self.schedule.seed / 4 % 2 == 1;
        let hurried = self.streams.keys().find(|stream| lingers && self.next_is_a_librarys(**stream) == Some(false));
        if let Some(stream) = hurried.and_then(|stream| self.holds_up(*stream)) {
            return Some(stream);
        }
        let ready = self.ready();
        let starved = self.starved();
        let others: Vec<_> = ready.iter().copied().filter(|stream| Some(*stream) != starved).collect();
        let mut from = if others.is_empty() { ready } else { others };
        if lingers {
            // Whoever looks too early is let look where a library's results are not yet.
            let quick: Vec<_> = from.iter().copied().filter(|s| self.next_is_a_librarys(*s) != Some(true)).collect();
            from = if quick.is_empty() { from } else { quick };
        }
        match from.len() {
            0 => None,
            _ if self.schedule.is_plain() => from.first().copied(),
            count => Some(from[self.schedule.random() as usize % count]),
        }
    }

    /// The stream at the end of the chain of waits that holds up the goal.
    fn needed(&self, goal: Goal) -> Option<usize> {
        self.holds_up(match goal {
            Goal::Stream(handle) => handle,
            Goal::Event(handle, number) => self.recorder(handle, number)?,
            Goal::Device(device) => {
                *self.streams.iter().find(|(_, stream)| stream.device == device && !stream.queue.is_empty())?.0
            }
        })
    }

    /// The stream that records an event.
    fn recorder(&self, event: usize, number: u64) -> Option<usize> {
        self.streams.iter().find_map(|(handle, stream)| {
            let records =
                |work: &Work| matches!(work, Work::Record { event: e, number: n } if *e == event && *n >= number);
            stream.queue.iter().any(records).then_some(*handle)
        })
    }

    /// The stream at the end of the chain of waits that holds up a stream: itself if nothing does.
    fn holds_up(&self, mut stream: usize) -> Option<usize> {
        for _ in 0..=self.streams.len() {
            match self.streams.get(&stream)?.queue.front()? {
                Work::Wait { event, number } if !self.reached(Goal::Event(*event, *number)) => {
                    stream = self.recorder(*event, *number)?;
                }
                _ => return Some(stream),
            }
        }
        None
    }

    fn starved(&self) -> Option<usize> {
        let made = self.streams.range(FIRST_HANDLE..);
        let count = made.clone().count() as u64;
        let chosen = self.schedule.seed.wrapping_mul(0x9E37_79B9) >> 8;
        let (handle, _) =
            (self.schedule.seed > 0 && count > 1).then(|| made.clone().nth((chosen % count) as usize))??;
        Some(*handle)
    }

    fn ready(&self) -> Vec<usize> {
        let ready = |queue: &std::collections::VecDeque<Work>| match queue.front() {
            None => false,
            Some(Work::Wait { event, number }) => self.reached(Goal::Event(*event, *number)),
            Some(_) => true,
        };
        self.streams.iter().filter(|(_, stream)| ready(&stream.queue)).map(|(handle, _)| *handle).collect()
    }

    /// Whether the last of a library's work in a stream is next there; `None` if there is none in it.
    fn next_is_a_librarys(&self, handle: usize) -> Option<bool> {
        let queue = &self.streams.get(&handle)?.queue;
        let has_results = |work: &Work| matches!(work, Work::Call(call) if !call.writes.is_empty());
        queue.iter().rposition(has_results).map(|last| last == 0)
    }

    fn step(&mut self, handle: usize) {
        let Some(stream) = self.streams.get_mut(&handle) else { return };
        let device = stream.device;
        let Some(work) = stream.queue.pop_front() else { return };
        self.perform(device, work);
        self.spoil(handle);
        if self.streams.get(&handle).is_some_and(|stream| stream.destroyed && stream.queue.is_empty()) {
            self.streams.remove(&handle);
        }
    }
}
