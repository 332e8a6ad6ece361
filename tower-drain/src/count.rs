//! The counts of a drain in one atomic word: a closed bit and three counters.
//!
//! The same atomic operation that decrements a counter shows whether it was the last guard and whether the drain waits
//! for it. So the end is an event, needs no polling, and is not lost when one guard is dropped while another is created
//! (as in `TaskTracker` of tokio-util).

use crate::{
    report::{Census, Tally},
    sync::{
        AtomicU64, AtomicUsize,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

#[derive(Debug, Default)]
pub(crate) struct Count {
    word: AtomicU64,
    left_guests: AtomicUsize,
    left_requests: AtomicUsize,
    /// For the report only; incremented where a connection is upgraded.
    pub(crate) upgraded: AtomicUsize,
}

/// What a guard counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A connection, an upgraded connection, a task.
    Guest,
    /// A request inside the layer.
    Request,
    /// An accept loop: waited for, since it may still accept a connection, but not part of the report.
    Loop,
}

const CLOSED: u64 = 1;
const LOOPS: Field = Field { shift: 1, bits: 12 };
const REQUESTS: Field = Field {
    shift: 13,
    bits: 24,
};
const GUESTS: Field = Field {
    shift: 37,
    bits: 27,
};

/// A counter inside the word. It holds 134 million connections and tasks, 16 million requests and 4 095 loops.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
}

// === impl Count ===

impl Count {
    pub(crate) fn enter(&self, kind: Kind) {
        self.word.fetch_add(kind.field().one(), Relaxed);
    }

    /// Returns whether this was the last one and the drain waits for it. `counted`: it is part of the report.
    #[must_use]
    pub(crate) fn leave(&self, kind: Kind, counted: bool) -> bool {
        if counted {
            self.note(kind);
        }
        let one = kind.field().one();
        let last = self.word.fetch_sub(one, Release) == CLOSED | one;
        if last {
            // Writes made before the other guards were dropped are visible to the caller that ends the drain.
            self.word.load(Acquire);
        }
        last
    }

    /// From now on, dropping the last guard is reported.
    pub(crate) fn close(&self) {
        self.word.fetch_or(CLOSED, AcqRel);
    }

    pub(crate) fn census(&self) -> Census {
        let word = self.word.load(Acquire);
        Census {
            here: Tally {
                guests: GUESTS.of(word),
                requests: REQUESTS.of(word),
            },
            left: Tally {
                guests: self.left_guests.load(Relaxed),
                requests: self.left_requests.load(Relaxed),
            },
            upgraded: self.upgraded.load(Relaxed),
            loops: LOOPS.of(word),
        }
    }

    fn note(&self, kind: Kind) {
        match kind {
            Kind::Guest => self.left_guests.fetch_add(1, Relaxed),
            Kind::Request => self.left_requests.fetch_add(1, Relaxed),
            Kind::Loop => 0,
        };
    }
}

// === impl Kind ===

impl Kind {
    const fn field(self) -> Field {
        match self {
            Self::Guest => GUESTS,
            Self::Request => REQUESTS,
            Self::Loop => LOOPS,
        }
    }
}

// === impl Field ===

impl Field {
    const fn one(self) -> u64 {
        1 << self.shift
    }

    const fn of(self, word: u64) -> usize {
        ((word >> self.shift) & ((1 << self.bits) - 1)) as usize
    }
}
