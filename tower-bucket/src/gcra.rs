//! The heart: the generic cell rate algorithm (ITU-T I.371) as arithmetic on nanoseconds.
//!
//! # Why not `governor`'s
//!
//! `governor` has the same algorithm, and is the oracle of the tests below. As the engine it does not carry what this
//! crate is for: its `StateStore` is not told the time, so a store cannot know which of its keys are indistinguishable
//! from new, and cannot evict them by itself; it has no peek and no refund, which several limits at once need; one
//! limiter has one quota, so there is none per key; it reads its clock itself; and very long quotas panic
//! (`every(Duration::MAX)`), where ours are cut. All of that wants the arithmetic in our own hands, and it is this:

use std::sync::atomic::Ordering::Relaxed;

use crate::{Quota, sync::AtomicU64};

/// `Ok`: how far the bucket is now in debt. `Err`: how long until one would pass. Both in nanoseconds.
pub(crate) type Decision = Result<u64, u64>;

/// One bucket. It holds the *theoretical arrival time*: the moment at which it is full again. Zero is full.
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

/// Takes one token out of a bucket that will be full at `full_at`. Gives the new moment, or how long to wait.
///
/// Nothing overflows: `now` and the quota's depth are at most [`HORIZON`](crate::quota::HORIZON), a quarter of `u64`, so
/// `full_at` is at most two quarters and `next` three.
#[inline]
pub(crate) fn take(full_at: u64, now: u64, quota: Quota) -> Result<u64, u64> {
    let next = full_at.max(now) + quota.interval_nanos();
    match (next - now).saturating_sub(quota.depth()) {
        0 => Ok(next),
        wait => Err(wait),
    }
}

// === impl Cell ===

impl Cell {
    /// Takes one token. Costs one compare-and-swap; a refusal only reads.
    #[inline]
    pub(crate) fn take(&self, now: u64, quota: Quota) -> Decision {
        let mut full_at = self.0.load(Relaxed);
        loop {
            let next = take(full_at, now, quota)?;
            match self.0.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(next - now),
                Err(seen) => full_at = seen,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use governor::{RateLimiter, clock::FakeRelativeClock};
    use proptest::prelude::*;

    use super::*;
    use crate::quota::HORIZON;

    fn quota(interval: Duration, burst: u32) -> Quota {
        Quota::every(interval).unwrap().burst(NonZeroU32::new(burst).unwrap())
    }

    #[test]
    fn a_burst_passes_at_once_and_then_one_an_interval() {
        let quota = quota(Duration::from_nanos(10), 3);
        let cell = Cell::default();
        assert_eq!([(); 4].map(|()| cell.take(100, quota)), [Ok(10), Ok(20), Ok(30), Err(10)]);
        assert_eq!(cell.take(109, quota), Err(1));
        assert_eq!(cell.take(110, quota), Ok(30));
        assert_eq!(cell.take(110, quota), Err(10));
        assert_eq!(cell.take(1000, quota), Ok(10), "rested, it is full, and not fuller than that");
    }

    #[test]
    fn a_thread_whose_clock_reading_is_older_gains_nothing() {
        let quota = quota(Duration::from_nanos(10), 1);
        let cell = Cell::default();
        assert_eq!(cell.take(100, quota), Ok(10));
        assert_eq!(cell.take(95, quota), Err(15));
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        for quota in [quota(Duration::MAX, 1), quota(Duration::from_nanos(1), u32::MAX), quota(Duration::MAX, u32::MAX)]
        {
            for now in [0, 1, HORIZON] {
                let cell = Cell::default();
                assert!(cell.take(now, quota).is_ok());
                assert!(cell.take(HORIZON, quota).is_ok() || quota.burst_size().get() == 1);
            }
        }
        assert_eq!(take(2 * HORIZON, HORIZON, quota(Duration::MAX, 1)), Err(HORIZON));
    }

    proptest! {
        #[test]
        fn governor_decides_the_same(
            interval in 1_u64..5_000,
            burst in 1_u32..20,
            steps in prop::collection::vec(prop_oneof![Just(0), 0_u64..200, 0_u64..20_000], 1..200),
        ) {
            let ours = quota(Duration::from_nanos(interval), burst);
            let theirs = governor::Quota::with_period(ours.interval()).unwrap().allow_burst(ours.burst_size());
            let clock = FakeRelativeClock::default();
            let limiter = RateLimiter::direct_with_clock(theirs, clock.clone());
            let cell = Cell::default();
            let mut now = 0;
            for step in steps {
                now += step;
                clock.advance(Duration::from_nanos(step));
                let decision = cell.take(now, ours).map(drop).map_err(Duration::from_nanos);
                let oracle = limiter.check().map_err(|not_until| {
                    not_until.wait_time_from(governor::clock::Clock::now(&clock))
                });
                prop_assert_eq!(decision, oracle);
            }
        }

        #[test]
        fn no_interval_sees_more_than_burst_and_rate(
            interval in 1_u64..1_000,
            burst in 1_u32..10,
            steps in prop::collection::vec(0_u64..500, 1..150),
        ) {
            let quota = quota(Duration::from_nanos(interval), burst);
            let cell = Cell::default();
            let mut now = 0;
            let mut admitted = Vec::new();
            for step in steps {
                now += step;
                admitted.extend(cell.take(now, quota).is_ok().then_some(now));
            }
            assert_conforming(&admitted, quota);
        }

        #[test]
        fn the_wait_that_is_told_is_exact(interval in 2_u64..1_000, burst in 1_u32..10, now in 0_u64..1_000) {
            let quota = quota(Duration::from_nanos(interval), burst);
            let cell = Cell::default();
            let wait = loop {
                if let Err(wait) = cell.take(now, quota) {
                    break wait;
                }
            };
            prop_assert_eq!(cell.take(now + wait - 1, quota), Err(1));
            prop_assert!(cell.take(now + wait, quota).is_ok());
        }
    }

    #[test]
    fn two_threads_together_get_no_more_than_one() {
        let quota = quota(Duration::from_secs(1), 1_000);
        let cell = Cell::default();
        let admitted = || (0..2_000).filter(|_| cell.take(0, quota).is_ok()).count();
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(admitted);
            admitted() + other.join().unwrap()
        });
        assert_eq!(both, 1_000);
    }

    /// Every stretch between two admissions, both counted: at most the burst and what the rate gives in that time.
    fn assert_conforming(admitted: &[u64], quota: Quota) {
        for (first, &from) in admitted.iter().enumerate() {
            for (last, &to) in admitted.iter().enumerate().skip(first) {
                let most = u64::from(quota.burst_size().get()) + (to - from) / quota.interval_nanos();
                assert!(((last - first) as u64) < most, "more than {most} in {from}..={to}");
            }
        }
    }
}
