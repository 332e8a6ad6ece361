use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use crate::{BootInstant, Clock};

/// A clock that runs too fast or too slow, starts elsewhere, and can sleep through time: for simulations. It follows
/// Tokio's clock, which a test can pause.
#[derive(Clone, Debug)]
pub struct SkewedClock {
    origin: Instant,
    /// Nanoseconds of this clock in a millisecond of Tokio's.
    rate: u64,
    /// What it has counted and Tokio's clock has not.
    ahead: Arc<AtomicU64>,
}

const MILLION: u128 = 1_000_000;

// === impl SkewedClock ===

impl SkewedClock {
    /// A clock that reads `offset` now, and gains `ppm` millionths from here on; negative ones it loses. Clones agree
    /// with it. Less than −999 999 is that: it must go on.
    #[must_use]
    pub fn new(ppm: i32, offset: Duration) -> Self {
        let rate = 1_000_000_u64.saturating_add_signed(ppm.into()).max(1);
        let ahead = u64::try_from(offset.as_nanos()).unwrap_or(u64::MAX);
        Self {
            origin: Instant::now(),
            rate,
            ahead: Arc::new(ahead.into()),
        }
    }

    /// The machine was suspended for that long: this clock counts it, Tokio's does not.
    pub fn suspend(&self, slept: Duration) {
        self.ahead
            .fetch_add(u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn scaled(duration: Duration, by: u128, over: u128) -> Duration {
        Duration::from_nanos(
            u64::try_from((duration.as_nanos() * by).div_ceil(over)).unwrap_or(u64::MAX),
        )
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> BootInstant {
        let passed = Self::scaled(self.origin.elapsed(), self.rate.into(), MILLION);
        BootInstant::from_nanos(self.ahead.load(Relaxed)).after(passed)
    }

    fn sleep_until(&self, deadline: BootInstant) -> Sleep {
        sleep(Self::scaled(
            deadline.since(self.now()),
            MILLION,
            self.rate.into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_gains_loses_and_sleeps_by_its_own_measure() {
        for ppm in [-30_000, 0, 10_000] {
            let clock = SkewedClock::new(ppm, Duration::from_secs(5));
            assert_eq!(clock.now(), BootInstant::from_nanos(5_000_000_000));
            tokio::time::advance(Duration::from_secs(100)).await;
            let expected = 105_000 + i64::from(ppm) / 10;
            assert_eq!(
                clock.now().as_nanos() / 1_000_000,
                expected.unsigned_abs(),
                "{ppm}"
            );
            let deadline = clock.now().after(Duration::from_secs(10));
            clock.sleep_until(deadline).await;
            assert!(
                clock.now() >= deadline && clock.now().since(deadline) < Duration::from_millis(3),
                "{ppm}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn r3_it_counts_a_suspension_that_tokio_does_not() {
        let (clock, before) = (SkewedClock::new(0, Duration::ZERO), Instant::now());
        clock.clone().suspend(Duration::from_secs(7));
        assert_eq!(
            (clock.now().as_nanos(), before.elapsed()),
            (7_000_000_000, Duration::ZERO)
        );
    }
}
