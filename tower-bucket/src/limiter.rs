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

    /// Takes so many tokens, now. What costs none always passes.
    ///
    /// # Errors
    ///
    /// The bucket has not so many now, or never holds so many. Nothing was taken.
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
    /// What is owed stays what it is in *time*, but no more than an empty bucket owes under the new quota. Who had used up a
    /// bucket of 10 a second waits for a tenth of a second before the next request passes, also if the rate is 1 a minute
    /// then; and who had used up one of 10 an hour waits for 10 milliseconds if it is 100 a second. So each quota by itself is
    /// kept for as long as it stands. Requests that [`wait`](crate::BucketLayer::wait) keep the turns they were given, or
    /// earlier ones as others leave; where some may, the longest that they may wait is added to what is owed at most.
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

    /// How long until the bucket is full again, if nobody else takes from it.
    #[must_use]
    pub const fn reset_after(&self) -> Duration {
        Duration::from_nanos(self.debt)
    }

    /// How long until one more would pass than [`remaining`](Self::remaining) says; zero if the bucket is full.
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
mod tests {
    use super::*;

    fn five_a_second() -> Quota {
        Quota::per_second(5)
    }

    #[tokio::test(start_paused = true)]
    async fn an_admission_tells_what_is_left() {
        let limiter = Limiter::new(five_a_second());
        let admitted = limiter.check().unwrap();
        assert_eq!(
            (admitted.remaining(), admitted.reset_after()),
            (4, Duration::from_millis(200))
        );
        assert_eq!(admitted.next_after(), Duration::from_millis(200));
        assert_eq!(admitted.quota(), limiter.quota());
        let left: Vec<_> = (0..4)
            .map(|_| limiter.check().unwrap().remaining())
            .collect();
        assert_eq!(left, [3, 2, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_tells_the_exact_wait_and_takes_nothing() {
        let limiter = Limiter::new(five_a_second());
        while limiter.check().is_ok() {}
        tokio::time::advance(Duration::from_millis(150)).await;
        for _ in 0..10 {
            assert_eq!(
                limiter.check().unwrap_err().retry_after(),
                Some(Duration::from_millis(50))
            );
        }
        tokio::time::advance(Duration::from_millis(50)).await;
        assert!(limiter.check().is_ok());
        assert!(limiter.check().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peek_takes_nothing_and_tells_what_a_check_would() {
        let limiter = Limiter::new(five_a_second());
        for _ in 0..10 {
            assert_eq!(limiter.peek().unwrap().remaining(), 4);
        }
        while limiter.check().is_ok() {}
        assert_eq!(limiter.peek(), limiter.check());
        assert_eq!(
            (limiter.snapshot().allowed, limiter.snapshot().refused),
            (5, 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_cost_more_than_one_or_nothing() {
        let limiter = Limiter::new(five_a_second());
        assert_eq!(limiter.check_cost(3).unwrap().remaining(), 2);
        assert_eq!(
            limiter.check_cost(3).unwrap_err().retry_after(),
            Some(Duration::from_millis(200))
        );
        assert_eq!(limiter.check_cost(2).unwrap().remaining(), 0);
        assert!(limiter.check_cost(0).is_ok());
        let never = limiter.check_cost(6).unwrap_err();
        assert!(never.is_cost() && never.retry_after().is_none());
        assert_eq!(limiter.snapshot().refused, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn another_quota_takes_effect_at_once_and_what_is_owed_stays_owed() {
        let limiter = Limiter::new(five_a_second());
        while limiter.check().is_ok() {}
        let other = limiter.clone();
        other.set_quota(Quota::per_second(10));
        assert_eq!(limiter.quota().interval(), Duration::from_millis(100));
        assert_eq!(
            limiter.check().unwrap_err().retry_after(),
            Some(Duration::from_millis(100))
        );
        other.set_quota(Quota::per_minute(1));
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(
            limiter.check().unwrap_err().retry_after(),
            Some(Duration::from_millis(1))
        );
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(limiter.check().is_ok() && limiter.check().is_err());
    }

    /// Who had used up a slow quota stayed refused for as long as that had said: for hours, after it was made a fast one.
    #[tokio::test(start_paused = true)]
    async fn after_a_change_to_a_faster_quota_what_is_empty_is_empty_and_no_emptier() {
        let (ten_an_hour, hundred) = (10, 100);
        let limiter = Limiter::new(Quota::per_hour(ten_an_hour));
        while limiter.check().is_ok() {}
        limiter.set_quota(Quota::per_second(hundred));
        let wait = Some(Duration::from_millis(10));
        assert_eq!(limiter.peek().unwrap_err().retry_after(), wait);
        assert_eq!(
            limiter.check().unwrap_err().retry_after(),
            wait,
            "and not an hour"
        );
        for _ in 0..10 {
            tokio::time::advance(Duration::from_millis(10)).await;
            assert!(
                limiter.check().is_ok() && limiter.check().is_err(),
                "at the new rate"
            );
        }
        tokio::time::advance(Duration::from_secs(7200)).await;
        assert_eq!((0..200).filter(|_| limiter.check().is_ok()).count(), 100);
        limiter.set_quota(Quota::per_hour(ten_an_hour));
        assert_eq!(
            (0..200).filter(|_| limiter.check().is_ok()).count(),
            9,
            "a second of it is owed"
        );
    }

    #[test]
    fn a_check_does_not_allocate() {
        let limiter = Limiter::new(five_a_second());
        let count = allocation_counter::measure(|| {
            assert_eq!((0..10).filter(|_| limiter.check().is_ok()).count(), 5)
        });
        assert_eq!(count.count_total, 0);
        assert_eq!(
            limiter.snapshot(),
            Snapshot {
                allowed: 5,
                refused: 5,
                ..Snapshot::default()
            }
        );
    }
}
