use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a limiter has done so far, as plain numbers. They only grow, but for `keys`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Requests let through, with or without a key.
    pub allowed: u64,
    /// Requests refused, with or without a key. Of several limits, those that refused count it.
    pub refused: u64,
    /// Of those allowed, the ones that waited for their turn first.
    pub waited: u64,
    /// Requests that were dropped while they waited for their turn, or for the reply of an [adapter](crate::adapter);
    /// neither allowed nor refused.
    pub abandoned: u64,
    /// Requests that would have been refused, but passed in shadow mode; neither allowed nor refused.
    pub shadowed: u64,
    /// Keys remembered just now; never more than the capacity. 0 for a [`Limiter`](crate::Limiter).
    pub keys: u64,
    /// Keys forgotten because another needed the room. All of them were indistinguishable from new.
    pub evictions: u64,
    /// Requests of new keys that found no room and were put to the overflow bucket.
    pub overflowed: u64,
    /// Requests, let through or refused, that had no key. A great number means that the server does not pass on addresses or keys.
    pub keyless: u64,
}

/// Counts what became of requests.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    allowed: AtomicU64,
    refused: AtomicU64,
    waited: AtomicU64,
    abandoned: AtomicU64,
    shadowed: AtomicU64,
}

/// What became of a request, for the counter of that name in a [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It was let through.
    Allowed,
    /// It was rejected.
    Refused,
    /// It was let through after it had waited; counted as allowed, too.
    Waited,
    /// It was dropped before the decision.
    Abandoned,
    /// It was let through in shadow mode, and would have been rejected.
    Shadowed,
}

// === impl Counters ===

impl Counters {
    #[inline]
    pub(crate) fn count(&self, decision: Decision) {
        if decision == Decision::Waited {
            self.waited.fetch_add(1, Relaxed);
        }
        self.counter(decision).fetch_add(1, Relaxed);
    }

    #[inline]
    fn counter(&self, decision: Decision) -> &AtomicU64 {
        match decision {
            Decision::Allowed | Decision::Waited => &self.allowed,
            Decision::Refused => &self.refused,
            Decision::Abandoned => &self.abandoned,
            Decision::Shadowed => &self.shadowed,
        }
    }

    pub(crate) fn add_to(&self, snapshot: &mut Snapshot) {
        snapshot.allowed += self.allowed.load(Relaxed);
        snapshot.refused += self.refused.load(Relaxed);
        snapshot.waited += self.waited.load(Relaxed);
        snapshot.abandoned += self.abandoned.load(Relaxed);
        snapshot.shadowed += self.shadowed.load(Relaxed);
    }
}
