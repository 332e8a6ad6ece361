//! Who is here, in one atomic word: a closed bit and three counts.
//!
//! Whoever leaves sees in the very same step whether it was the last, and whether anybody waits for that. So the end is
//! an event, needs no polling, and is not lost when one leaves while another comes (TaskTracker's scheme).

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
    /// Only told in the report; whoever upgrades a connection counts it.
    pub(crate) upgraded: AtomicUsize,
}

/// What a guard stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A connection, an upgraded connection, a task.
    Guest,
    /// A request inside the layer.
    Request,
    /// An accept loop: waited for, since it may still let somebody in, but not told in the report.
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

/// A count inside the word. 134 million guests, 16 million requests and 4 095 loops fit.
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

    /// Tells whether this was the last one, and somebody waits for that. `counted`: it goes into the report.
    #[must_use]
    pub(crate) fn leave(&self, kind: Kind, counted: bool) -> bool {
        if counted {
            self.note(kind);
        }
        let one = kind.field().one();
        let last = self.word.fetch_sub(one, Release) == CLOSED | one;
        if last {
            // What the others did before they left is seen by whoever tells the end.
            self.word.load(Acquire);
        }
        last
    }

    /// From now on the last one to leave says so.
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
