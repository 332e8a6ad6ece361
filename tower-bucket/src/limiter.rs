use std::{sync::Arc, task::Waker, time::Duration};

use tokio::time::Instant;

use crate::{
    Exhausted, Quota, Snapshot,
    clock::Start,
    error::Reason,
    gcra::{AtomicTat, Charge},
    queue::{Answer, Turn, WaitQueues, WaiterId},
    quota_cell::QuotaCell,
    snapshot::{Counters, Decision},
};

/// One bucket for all: a cheap handle, whose clones share it.
///
/// ```
/// use tower_bucket::{Limiter, Quota};
///
/// let limiter = Limiter::new(Quota::per_minute(1));
/// assert!(limiter.check().is_ok());
/// assert!(limiter.clone().check().unwrap_err().retry_after().is_some());
/// assert_eq!(limiter.snapshot().refused, 1);
///
/// limiter.set_quota(Quota::per_second(u32::MAX)); // for all clones, from here on
/// ```
///
/// A check costs a clock reading, one compare-and-swap and one addition; no lock, no allocation.
#[derive(Clone, Debug)]
pub struct Limiter(Arc<Shared>);

/// How a bucket stands after a request was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    debt: u64,
    quota: Quota,
}

#[derive(Debug)]
struct Shared {
    tat: AtomicTat,
    quota_cell: QuotaCell,
    start: Start,
    counters: Counters,
    queue: WaitQueues<()>,
}

// === impl Limiter ===

impl Limiter {
    /// A full bucket.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        let (tat, quota_cell, start, counters) = (
            AtomicTat::default(),
            QuotaCell::new(quota),
            Start::now(),
            Counters::default(),
        );
        Self(Arc::new(Shared {
            tat,
            quota_cell,
            start,
            counters,
            queue: WaitQueues::default(),
        }))
    }

    /// Takes one token, now.
    ///
    /// # Errors
    ///
    /// The bucket is empty. Nothing was taken.
    pub fn check(&self) -> Result<Admitted, Exhausted> {
        self.check_cost(1)
    }

    /// Takes `tokens`. Zero tokens always pass.
    ///
    /// # Errors
    ///
    /// The bucket does not hold that many now, or never does. Nothing was taken.
    pub fn check_cost(&self, tokens: u32) -> Result<Admitted, Exhausted> {
        let (quota, now) = (self.quota(), self.since_start(Instant::now()));
        if tokens == 0 {
            self.count(Decision::Allowed);
            return Ok(Admitted::new(self.0.tat.debt(now), quota));
        }
        let charge = Charge::tokens(now, quota, tokens).ok_or(Reason::Cost);
        let decision = charge.and_then(|charge| self.take(&charge).map_err(Reason::Wait));
        self.count(if decision.is_ok() {
            Decision::Allowed
        } else {
            Decision::Refused
        });
        decision
            .map(|debt| Admitted::new(debt, quota))
            .map_err(Exhausted::new)
    }

    /// What [`check`](Self::check) would answer; nothing is taken or counted.
    ///
    /// # Errors
    ///
    /// The bucket is empty.
    pub fn peek(&self) -> Result<Admitted, Exhausted> {
        let quota = self.quota();
        let charge = Charge::tokens(self.since_start(Instant::now()), quota, 1).ok_or(Reason::Cost);
        charge
            .and_then(|charge| self.peek_at(&charge).map_err(Reason::Wait))
            .map(|debt| Admitted::new(debt, quota))
            .map_err(Exhausted::new)
    }

    /// The quota it keeps.
    #[must_use]
    #[inline]
    pub fn quota(&self) -> Quota {
        self.0.quota_cell.read()
    }

    /// Keeps another quota from now on, without forgetting what was taken: one atomic change, for all clones.
    ///
    /// What is owed stays what it is in *time*, but no more than an empty bucket owes under the new quota. A client that
    /// had used up a
    /// bucket of 10 a second waits for a tenth of a second before the next request passes, also if the rate is 1 a minute
    /// then; and one that had used up 10 an hour waits for 10 milliseconds if it is 100 a second. So each quota by itself is
    /// kept for as long as it stands. Requests that [`wait`](crate::BucketLayer::wait) keep the turns they were given, or
    /// earlier ones as other requests leave; where requests may wait, their longest wait is added to the clamp.
    pub fn set_quota(&self, quota: Quota) {
        self.0
            .quota_cell
            .set(quota, self.since_start(Instant::now()));
    }

    /// What it has done so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.0.counters.add_to(&mut snapshot);
        snapshot
    }

    #[inline]
    pub(crate) fn since_start(&self, now: Instant) -> u64 {
        self.0.start.until(now)
    }

    #[inline]
    pub(crate) fn take(&self, charge: &Charge) -> Result<u64, u64> {
        self.0.quota_cell.note_max_wait(charge);
        self.0.tat.take(charge).map_err(|wait| {
            let (wait, latest) = self.0.quota_cell.clamp_debt(charge, wait);
            if let Some(tat) = latest {
                self.0.tat.lower(tat);
            }
            wait
        })
    }

    pub(crate) fn peek_at(&self, charge: &Charge) -> Result<u64, u64> {
        self.0
            .tat
            .peek(charge)
            .map_err(|wait| self.0.quota_cell.clamp_debt(charge, wait).0)
    }

    /// Takes, behind all that wait.
    pub(crate) fn queue(&self, charge: &Charge) -> Result<(u64, Turn), u64> {
        self.0.queue.push(charge, || {
            let debt = self.take(charge)?;
            Ok(((), debt, debt))
        })
    }

    pub(crate) fn poll_turn(&self, waiter: WaiterId, now: u64, waker: &Waker) -> Answer {
        let waker = waker.clone();
        let (answer, _unused) = self
            .0
            .queue
            .with((), |queue| queue.poll(waiter, now, waker));
        answer
    }

    /// For one that took and will not call.
    pub(crate) fn give_back(&self, charge: &Charge, turn: Turn, now: u64) {
        self.0.queue.with((), |queue| {
            self.0.tat.refund(queue.leave(charge, turn, now));
        });
    }

    #[inline]
    pub(crate) fn count(&self, decision: Decision) {
        self.0.counters.count(decision);
    }
}

impl From<&Self> for Limiter {
    fn from(limiter: &Self) -> Self {
        limiter.clone()
    }
}

// === impl Admitted ===

impl Admitted {
    pub(crate) const fn new(debt: u64, quota: Quota) -> Self {
        Self { debt, quota }
    }

    /// How many more would have passed at that very moment.
    #[must_use]
    pub const fn remaining(&self) -> u32 {
        // At most the burst, which is a `u32`.
        (self.left() / self.quota.interval_nanos()) as u32
    }

    /// How long until the bucket is full again, if no request takes from it.
    #[must_use]
    pub const fn reset_after(&self) -> Duration {
        Duration::from_nanos(self.debt)
    }

    /// How long until one more would pass than [`remaining`](Self::remaining); zero if the bucket is full.
    #[must_use]
    pub const fn next_after(&self) -> Duration {
        let interval = self.quota.interval_nanos();
        if self.debt == 0 {
            Duration::ZERO
        } else {
            Duration::from_nanos(interval - self.left() % interval)
        }
    }

    /// The quota that was applied.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.quota
    }

    const fn left(&self) -> u64 {
        self.quota.depth().saturating_sub(self.debt)
    }
}

#[cfg(test)]
mod tests;
