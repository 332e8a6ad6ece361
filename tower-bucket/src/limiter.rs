use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Exhausted, Quota,
    gcra::{Cell, Decision},
    quota::HORIZON,
};

/// One bucket for all: a cheap handle, whose clones share it.
///
/// ```
/// use std::num::NonZeroU32;
/// use tower_bucket::{Limiter, Quota};
///
/// let limiter = Limiter::new(Quota::per_minute(NonZeroU32::MIN));
/// assert!(limiter.check().is_ok());
/// assert!(limiter.clone().check().unwrap_err().retry_after().is_some());
/// assert_eq!(limiter.snapshot().refused, 1);
/// ```
///
/// A check costs a clock reading, one compare-and-swap and one addition; no lock, no allocation.
#[derive(Clone, Debug)]
pub struct Limiter(Arc<Shared>);

/// A token was taken: what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    debt: u64,
    quota: Quota,
}

/// What a limiter has done so far, as plain numbers. They only grow, but for `keys`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Requests let through, with or without a key.
    pub allowed: u64,
    /// Requests refused, with or without a key.
    pub refused: u64,
    /// Keys remembered just now; never more than the capacity. 0 for a [`Limiter`].
    pub keys: u64,
    /// Keys forgotten because another needed the room. All of them were indistinguishable from new.
    pub evictions: u64,
    /// Requests, let through or refused, of new keys that found no room and shared the overflow bucket.
    pub overflowed: u64,
    /// Requests, let through or refused, that had no key. Many of them: something does not tell us who is asking.
    pub keyless: u64,
}

#[derive(Debug)]
struct Shared {
    cell: Cell,
    tally: Tally,
    quota: Quota,
    start: Start,
}

/// The moment that is nanosecond zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start(Instant);

/// Counts decisions.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    allowed: AtomicU64,
    refused: AtomicU64,
}

// === impl Limiter ===

impl Limiter {
    /// A full bucket.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self(Arc::new(Shared { cell: Cell::default(), tally: Tally::default(), quota, start: Start::now() }))
    }

    /// Takes one token, now.
    ///
    /// # Errors
    ///
    /// The bucket is empty. Nothing was taken.
    #[inline]
    pub fn check(&self) -> Result<Admitted, Exhausted> {
        let shared = &*self.0;
        let decision = shared.cell.take(shared.start.elapsed(), shared.quota);
        shared.tally.count(decision);
        Admitted::or_exhausted(decision, shared.quota)
    }

    /// The quota it keeps.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.0.quota
    }

    /// What it has done so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.0.tally.add_to(&mut snapshot);
        snapshot
    }
}

// === impl Admitted ===

impl Admitted {
    #[inline]
    pub(crate) fn or_exhausted(decision: Decision, quota: Quota) -> Result<Self, Exhausted> {
        match decision {
            Ok(debt) => Ok(Self { debt, quota }),
            Err(wait) => Err(Exhausted::until(wait)),
        }
    }

    /// How many more would have passed at that very moment.
    #[must_use]
    pub const fn remaining(&self) -> u32 {
        // At most the burst, which is a `u32`.
        ((self.quota.depth() - self.debt) / self.quota.interval_nanos()) as u32
    }

    /// How long until the bucket is full again, if nobody else takes from it.
    #[must_use]
    pub const fn reset_after(&self) -> Duration {
        Duration::from_nanos(self.debt)
    }

    /// The quota that was applied.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.quota
    }
}

// === impl Start ===

impl Start {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since then, below [`HORIZON`]: the one clock reading of a request.
    #[inline]
    pub(crate) fn elapsed(self) -> u64 {
        let elapsed = self.0.elapsed();
        let seconds = elapsed.as_secs().min(HORIZON / 1_000_000_000 - 1);
        seconds * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }
}

// === impl Tally ===

impl Tally {
    #[inline]
    pub(crate) fn count(&self, decision: Decision) {
        let counter = if decision.is_ok() { &self.allowed } else { &self.refused };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_allowed(&self) {
        self.allowed.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_to(&self, snapshot: &mut Snapshot) {
        snapshot.allowed += self.allowed.load(Relaxed);
        snapshot.refused += self.refused.load(Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn five_a_second() -> Quota {
        Quota::per_second(NonZeroU32::new(5).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_admission_tells_what_is_left() {
        let limiter = Limiter::new(five_a_second());
        let admitted = limiter.check().unwrap();
        assert_eq!((admitted.remaining(), admitted.reset_after()), (4, Duration::from_millis(200)));
        assert_eq!(admitted.quota(), limiter.quota());
        let left: Vec<_> = (0..4).map(|_| limiter.check().unwrap().remaining()).collect();
        assert_eq!(left, [3, 2, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_tells_the_exact_wait_and_takes_nothing() {
        let limiter = Limiter::new(five_a_second());
        while limiter.check().is_ok() {}
        tokio::time::advance(Duration::from_millis(150)).await;
        for _ in 0..10 {
            assert_eq!(limiter.check().unwrap_err().retry_after(), Some(Duration::from_millis(50)));
        }
        tokio::time::advance(Duration::from_millis(50)).await;
        assert!(limiter.check().is_ok());
        assert!(limiter.check().is_err());
    }

    #[test]
    fn a_check_does_not_allocate() {
        let limiter = Limiter::new(five_a_second());
        let count = allocation_counter::measure(|| assert_eq!((0..10).filter(|_| limiter.check().is_ok()).count(), 5));
        assert_eq!(count.count_total, 0);
        assert_eq!(limiter.snapshot(), Snapshot { allowed: 5, refused: 5, ..Snapshot::default() });
    }
}
