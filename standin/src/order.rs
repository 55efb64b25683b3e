//! Which waits order anything. A program may ask for more waits than it needs: one that is taken away is then missed by nobody,
//! whatever the seed. Which those are follows from the order of the calls alone, by vector clocks: for every stream and every
//! thread of the host, how much of each stream is known to be done before its next work; and from the memory that copies and
//! memsets touch. Of kernels and libraries it is not known: they may touch everything.

use std::collections::{BTreeMap, HashMap};
use std::thread::{self, ThreadId};

/// How many pieces of each stream's work are done.
type Clock = BTreeMap<usize, u64>;

/// What a wait does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It orders work that nothing else orders.
    Orders,
    /// Its event was never recorded: it waits for nothing, as CUDA has it.
    Unrecorded,
    /// Earlier waits, of the stream or of the host, have ordered the same.
    Ordered,
    /// A later wait of the stream orders the same, and work in between touches nothing of what it would order.
    Covered,
    /// Nothing that it would order comes after it.
    Last,
}

impl Verdict {
    /// As the report has it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Orders => "orders",
            Verdict::Unrecorded => "unrecorded",
            Verdict::Ordered => "ordered",
            Verdict::Covered => "covered",
            Verdict::Last => "last",
        }
    }
}

/// Memory that a piece of work touches: address, bytes, whether it is written. `None` where that is not known.
pub type Touched = Option<Vec<(usize, usize, bool)>>;

/// A wait that may come to order something.
struct Pending {
    wait: usize,
    /// What is done once it is over.
    ordered: Clock,
    /// What earlier waits see to without it.
    before: Clock,
}

#[derive(Default)]
struct Stream {
    clock: Clock,
    /// Waits that have ordered nothing yet.
    pending: Vec<Pending>,
    /// What its work touches.
    work: Vec<Touched>,
}

/// All clocks.
#[derive(Default)]
pub struct Order {
    streams: HashMap<usize, Stream>,
    events: HashMap<usize, Clock>,
    hosts: HashMap<ThreadId, Clock>,
    /// Of each `cuStreamWaitEvent`, in the order of the calls.
    pub waits: Vec<Verdict>,
    /// Of each wait of the host.
    pub host_waits: Vec<Verdict>,
}

fn join(clock: &mut Clock, other: &Clock) {
    for (stream, count) in other {
        let own = clock.entry(*stream).or_default();
        *own = (*own).max(*count);
    }
}

fn conflict(one: &Touched, other: &Touched) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return true };
    let overlap =
        |a: &(usize, usize, bool), b: &(usize, usize, bool)| (a.2 || b.2) && a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
    one.iter().any(|a| other.iter().any(|b| overlap(a, b)))
}

fn is_known(clock: &Clock, other: &Clock) -> bool {
    other.iter().all(|(stream, count)| clock.get(stream).is_some_and(|own| own >= count))
}

impl Order {
    /// Work enters a stream: it comes after what the stream has waited for, and after what the calling thread has.
    pub fn work(&mut self, stream: usize, touched: Touched) {
        self.join_host(stream);
        self.settle(stream, Some(&touched));
        let Stream { clock, work, .. } = self.streams.entry(stream).or_default();
        *clock.entry(stream).or_default() += 1;
        work.push(touched);
    }

    /// An event is recorded. Who waits for it waits for what the stream waits for.
    pub fn record(&mut self, stream: usize, event: usize) {
        self.join_host(stream);
        self.settle(stream, None);
        let clock = self.streams.get(&stream).map(|stream| stream.clock.clone()).unwrap_or_default();
        self.events.insert(event, clock);
    }

    fn join_host(&mut self, stream: usize) {
        let host = self.host().clone();
        join(&mut self.streams.entry(stream).or_default().clock, &host);
    }

    /// Waits of a stream that order something before this work; all of them where it is none, but a record, which carries them
    /// to others.
    fn settle(&mut self, stream: usize, touched: Option<&Touched>) {
        let Some(Stream { clock, pending, .. }) = self.streams.get_mut(&stream) else { return };
        let (known, waits) = (clock.clone(), std::mem::take(pending));
        for mut pending in waits {
            join(&mut pending.before, &known);
            let orders = touched.is_none_or(|touched| {
                pending.ordered.iter().any(|(of, count)| {
                    let work = self.streams.get(of).map(|stream| &stream.work[..]).unwrap_or_default();
                    let from = pending.before.get(of).copied().unwrap_or_default() as usize;
                    work.iter().take(*count as usize).skip(from).any(|earlier| conflict(earlier, touched))
                })
            });
            let Some(own) = self.streams.get_mut(&stream) else { return };
            if orders {
                self.waits[pending.wait] = Verdict::Orders;
                join(&mut own.clock, &pending.ordered);
            } else {
                own.pending.push(pending);
            }
        }
    }

    /// A stream waits for an event.
    pub fn wait(&mut self, stream: usize, event: usize) {
        let mut known = self.host().clone();
        let wait = self.waits.len();
        let Stream { clock, pending, .. } = self.streams.entry(stream).or_default();
        join(&mut known, clock);
        let verdict = match self.events.get(&event) {
            None => Verdict::Unrecorded,
            Some(ordered) if is_known(&known, ordered) => Verdict::Ordered,
            Some(ordered) => {
                let mut before = known;
                pending.iter().for_each(|earlier| join(&mut before, &earlier.ordered));
                pending.retain(|earlier| {
                    let is_covered = is_known(ordered, &earlier.ordered);
                    if is_covered {
                        self.waits[earlier.wait] = Verdict::Covered;
                    }
                    !is_covered
                });
                if is_known(&before, ordered) {
                    // Each of two waits does without the other.
                    join(clock, ordered);
                    Verdict::Ordered
                } else {
                    pending.push(Pending { wait, ordered: ordered.clone(), before });
                    Verdict::Last
                }
            }
        };
        self.waits.push(verdict);
    }

    /// The host waits for an event.
    pub fn host_event(&mut self, event: usize) {
        let verdict = match self.events.get(&event).cloned() {
            None => Verdict::Unrecorded,
            Some(clock) => self.host_knows(&clock),
        };
        self.host_waits.push(verdict);
    }

    /// The host waits for a stream.
    pub fn host_stream(&mut self, stream: usize) {
        let verdict = self.host_knows_stream(stream);
        self.host_waits.push(verdict);
    }

    /// The host comes to know all of a stream, by a call that is more than a wait.
    pub fn catch_up(&mut self, stream: usize) {
        self.host_knows_stream(stream);
    }

    fn host_knows_stream(&mut self, stream: usize) -> Verdict {
        let clock = self.streams.get(&stream).map(|stream| stream.clock.clone()).unwrap_or_default();
        self.host_knows(&clock)
    }

    fn host_knows(&mut self, clock: &Clock) -> Verdict {
        let own = self.host();
        if is_known(own, clock) {
            return Verdict::Ordered;
        }
        join(own, clock);
        Verdict::Orders
    }

    fn host(&mut self) -> &mut Clock {
        self.hosts.entry(thread::current().id()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: usize = 1;
    const COMPUTE: usize = 2;
    const DOWN: usize = 3;

    fn writes(address: usize) -> Touched {
        Some(vec![(address, 10, true)])
    }

    #[test]
    fn a_wait_orders_unless_others_do_the_same() {
        let mut order = Order::default();
        order.wait(COMPUTE, 9);
        order.work(UP, None);
        order.record(UP, 9);
        order.wait(COMPUTE, 9);
        order.work(UP, None);
        order.record(UP, 9);
        // After more of the same stream: the wait before orders nothing that this one does not.
        order.wait(COMPUTE, 9);
        order.work(COMPUTE, None);
        order.wait(COMPUTE, 9);
        order.record(COMPUTE, 8);
        order.wait(DOWN, 8);
        order.work(DOWN, None);
        // The kernel came after the upload, and the copy back after the kernel.
        order.wait(DOWN, 9);
        order.work(UP, None);
        order.record(UP, 9);
        order.wait(COMPUTE, 9);
        use Verdict::*;
        assert_eq!(order.waits, [Unrecorded, Covered, Orders, Ordered, Orders, Ordered, Last]);
    }

    #[test]
    fn work_that_touches_other_memory_needs_no_wait() {
        for (address, verdict) in [(105, Verdict::Orders), (110, Verdict::Covered)] {
            let mut order = Order::default();
            order.work(UP, writes(100));
            order.record(UP, 9);
            order.wait(COMPUTE, 9);
            order.work(COMPUTE, writes(address));
            order.work(UP, writes(200));
            order.record(UP, 9);
            order.wait(COMPUTE, 9);
            order.work(COMPUTE, None);
            assert_eq!(order.waits, [verdict, Verdict::Orders]);
        }
    }

    #[test]
    fn of_two_waits_that_order_the_same_either_will_do() {
        let mut order = Order::default();
        order.work(UP, writes(100));
        order.record(UP, 9);
        order.wait(COMPUTE, 9);
        order.work(UP, writes(200));
        order.record(UP, 9);
        order.wait(COMPUTE, 9);
        order.work(COMPUTE, writes(100));
        assert_eq!(order.waits, [Verdict::Covered, Verdict::Last]);
        order.work(COMPUTE, writes(200));
        assert_eq!(order.waits, [Verdict::Covered, Verdict::Orders]);
        let mut order = Order::default();
        order.work(UP, None);
        order.record(UP, 9);
        order.wait(COMPUTE, 9);
        order.wait(COMPUTE, 9);
        order.work(COMPUTE, None);
        assert_eq!(order.waits, [Verdict::Covered, Verdict::Ordered]);
    }

    #[test]
    fn what_the_host_has_waited_for_its_next_work_need_not() {
        let mut order = Order::default();
        order.work(UP, None);
        order.record(UP, 9);
        order.host_event(9);
        order.wait(COMPUTE, 9);
        order.host_stream(UP);
        order.work(UP, None);
        order.host_stream(UP);
        assert_eq!(order.waits, [Verdict::Ordered]);
        assert_eq!(order.host_waits, [Verdict::Orders, Verdict::Ordered, Verdict::Orders]);
    }
}
