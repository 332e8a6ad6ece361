//! What many threads touch at once, laid out so that each has cache lines of its own.

use std::{
    array,
    cell::Cell,
    ops::Deref,
    sync::{
        Arc,
        atomic::{
            self, AtomicUsize,
            Ordering::{Acquire, Relaxed},
            fence,
        },
    },
};

use crate::{Totals, window::Ring};

/// What groups of threads count, each in lines of its own.
#[derive(Debug)]
pub(crate) struct Lanes(Box<[Arc<Lane>]>);

/// One value with many reference counts, so that calls on different threads do not fight for one.
#[derive(Debug)]
pub(crate) struct StripedArc<T>(Arc<Root<T>>);

/// A reference to the value of a [`StripedArc`], counted on its thread's stripe, with the lane to count in.
pub(crate) type Held<T> = Arc<Stripe<T>>;

#[derive(Debug)]
struct Root<T> {
    value: Arc<T>,
    /// Where there are fewer stripes, they come again.
    held: [Held<T>; MOST],
    /// How often each.
    times: usize,
}

#[derive(Debug)]
pub(crate) struct Stripe<T> {
    value: Arc<T>,
    pub(crate) lane: Arc<Lane>,
    /// Keeps the reference counts of two stripes, which stand before all this, a cache line apart.
    _room: [u64; 4],
}

/// What one group of threads counts: the good calls by time, and the others, and those that the heart has taken, by how
/// they ended.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) ring: Ring,
    totals: [atomic::AtomicU64; KINDS],
    /// Keeps what others write off the last line.
    _room: [u64; 6],
}

/// How a call ended, as the totals know it. Those that succeeded and of which the heart was not told, the ring counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Succeeded,
    Failed,
    Soft,
    Ignored,
    Cancelled,
    Stale,
    Refused,
}

/// How many groups of threads a circuit tells apart: at most as many as there are, and a divisor of that.
///
/// A group takes a cache line for its references and four for its counts, 320 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stripes(usize);

// === impl Stripes ===

impl Stripes {
    /// Eight threads in a circuit at once are many; more of them share.
    pub(crate) const MANY: Self = Self(MOST);
    /// For circuits of which there are many, so that each has few calls at once.
    pub(crate) const FEW: Self = Self(2);
    #[cfg(all(test, loom))]
    pub(crate) const ONE: Self = Self(1);
}

const MOST: usize = 8;

// === impl Lanes ===

impl Lanes {
    pub(crate) fn new(stripes: Stripes) -> Self {
        Self((0..stripes.0).map(|_| Arc::new(Lane::new())).collect())
    }

    /// This thread's, which takes its stripe if it has none.
    pub(crate) fn mine(&self) -> &Lane {
        take_stripe();
        &self.0[stripe() % self.0.len()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.0.iter().map(|lane| &**lane)
    }

    pub(crate) fn totals(&self) -> Totals {
        let sum = |count: Count| {
            self.iter()
                .map(|lane| lane.totals[count as usize].load(Relaxed))
                .sum()
        };
        Totals {
            succeeded: sum(Count::Succeeded)
                + self.iter().map(|lane| lane.ring.total()).sum::<u64>(),
            failed: sum(Count::Failed),
            soft: sum(Count::Soft),
            ignored: sum(Count::Ignored),
            cancelled: sum(Count::Cancelled),
            stale: sum(Count::Stale),
            refused: sum(Count::Refused),
        }
    }
}

// === impl StripedArc ===

impl<T> StripedArc<T> {
    /// As many stripes as `value` has lanes.
    pub(crate) fn new(value: T, lanes: impl Fn(&T) -> &Lanes) -> Self {
        let value = Arc::new(value);
        let hold = |lane: &Arc<Lane>| {
            Arc::new(Stripe {
                value: value.clone(),
                lane: lane.clone(),
                _room: [0; 4],
            })
        };
        let held: Box<[_]> = lanes(&value).0.iter().map(hold).collect();
        let times = MOST / held.len();
        Self(Arc::new(Root {
            held: array::from_fn(|index| held[index % held.len()].clone()),
            times,
            value,
        }))
    }

    #[inline]
    pub(crate) fn get(&self) -> &T {
        &self.0.value
    }

    #[inline]
    pub(crate) fn hold(&self) -> Held<T> {
        self.0.held[stripe() % MOST].clone()
    }

    /// Whether nobody else has it: no other handle, and no reference held.
    pub(crate) fn is_alone(&self) -> bool {
        // The counts are read relaxed, hence the fences: whoever has let go of a handle may have taken references through
        // it before, and whoever has let go of a reference may have counted a call.
        let no_handle = Arc::strong_count(&self.0) == 1;
        fence(Acquire);
        let no_reference = self
            .0
            .held
            .iter()
            .all(|stripe| Arc::strong_count(stripe) == self.0.times);
        fence(Acquire);
        no_handle && no_reference
    }
}

impl<T> Clone for StripedArc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// === impl Stripe ===

impl<T> Deref for Stripe<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

// === impl Lane ===

impl Lane {
    fn new() -> Self {
        let totals = array::from_fn(|_| atomic::AtomicU64::new(0));
        Self {
            ring: Ring::new(),
            totals,
            _room: [0; 6],
        }
    }

    #[inline]
    pub(crate) fn count(&self, count: Count) {
        self.totals[count as usize].fetch_add(1, Relaxed);
    }
}

const KINDS: usize = 7;

/// Which stripe is this thread's. Until it [takes one](take_stripe) that is the first.
#[inline]
fn stripe() -> usize {
    STRIPE.get()
}

/// Threads take the stripes in turn, each when it first counts a call: so the many that never do take none.
pub(crate) fn take_stripe() {
    if STRIPE.get() == UNKNOWN {
        STRIPE.set(MOST + NEXT.fetch_add(1, Relaxed) % MOST);
    }
}

const UNKNOWN: usize = 0;

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Modulo [`MOST`].
    static STRIPE: Cell<usize> = const { Cell::new(UNKNOWN) };
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    #[test]
    fn threads_that_only_refuse_do_not_all_count_in_one_lane() {
        let lanes = Lanes::new(Stripes::MANY);
        let mine = || {
            thread::scope(|scope| {
                scope
                    .spawn(|| std::ptr::from_ref(lanes.mine()).addr())
                    .join()
                    .unwrap()
            })
        };
        let theirs: HashSet<_> = (0..2 * MOST).map(|_| mine()).collect();
        assert!(theirs.len() > 1);
    }
}
