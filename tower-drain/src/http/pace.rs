//! The state machine of a request body's timer: how slow is too slow.

use std::time::Duration;

use tokio::time::Instant;

/// The limits for a body while it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) idle: Duration,
    pub(super) grace: Duration,
    /// Bytes per second; `0` is off.
    pub(super) rate: u32,
}

/// How much was read, and how long the reader waited for it.
///
/// Only waiting counts: an app that does not read, or works between two reads, does not use up its client's time.
#[derive(Debug)]
pub(super) struct Pace {
    bytes: u64,
    /// All waits so far but the first: the rate counts from the first byte.
    waited: Duration,
    waiting_since: Option<Instant>,
    began: bool,
}

// === impl Pace ===

impl Pace {
    pub(super) const fn new() -> Self {
        Self {
            bytes: 0,
            waited: Duration::ZERO,
            waiting_since: None,
            began: false,
        }
    }

    /// The reader waits; returns until when it may.
    pub(super) fn wait(&mut self, limits: &Limits, now: Instant) -> Instant {
        let since = *self.waiting_since.get_or_insert(now);
        let idle = since + limits.idle;
        self.left(limits)
            .map_or(idle, |left| idle.min(since + left))
    }

    pub(super) fn read(&mut self, bytes: usize, now: Instant) {
        let waited = self
            .waiting_since
            .take()
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if self.began {
            self.waited += waited;
        }
        self.began = true;
        self.bytes += bytes as u64;
    }

    /// How much longer the reader may wait at this rate.
    fn left(&self, limits: &Limits) -> Option<Duration> {
        let earned = Duration::from_secs(self.bytes.checked_div(u64::from(limits.rate))?);
        self.began
            .then(|| (limits.grace + earned).saturating_sub(self.waited))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const LIMITS: Limits = Limits {
        idle: secs(30),
        grace: secs(5),
        rate: 240,
    };

    #[test]
    fn the_first_byte_has_the_idle_time() {
        let (mut pace, start) = (Pace::new(), Instant::now());
        assert_eq!(pace.wait(&LIMITS, start), start + secs(30));
        assert_eq!(
            pace.wait(&LIMITS, start + secs(9)),
            start + secs(30),
            "asking again does not help"
        );
    }

    #[test]
    fn a_trickle_ends_when_its_grace_is_used_up() {
        let (mut pace, start) = (Pace::new(), Instant::now());
        // A byte a second: each is in time by itself.
        let mut now = start;
        let mut end = pace.wait(&LIMITS, now);
        let mut seconds = 0;
        while now < end && seconds < 60 {
            pace.read(1, now);
            end = pace.wait(&LIMITS, now);
            now += secs(1);
            seconds += 1;
        }
        assert_eq!(
            seconds, 5,
            "the grace, since a byte a second earns next to nothing"
        );
    }

    #[test]
    fn an_honest_slow_client_lives() {
        let (mut pace, start) = (Pace::new(), Instant::now());
        for second in 0..1000 {
            let now = start + secs(second);
            assert!(pace.wait(&LIMITS, now) > now + secs(1));
            pace.read(300, now + secs(1));
        }
    }

    #[test]
    fn an_app_that_takes_its_time_costs_its_client_nothing() {
        let (mut pace, start) = (Pace::new(), Instant::now());
        pace.wait(&LIMITS, start);
        pace.read(10, start);
        // It wrote the ten bytes to a slow disk for an hour.
        assert_eq!(pace.wait(&LIMITS, start + secs(3600)), start + secs(3605));
    }

    #[test]
    fn no_rate_leaves_the_idle_time() {
        let (mut pace, start) = (Pace::new(), Instant::now());
        pace.read(1, start);
        assert_eq!(
            pace.wait(&Limits { rate: 0, ..LIMITS }, start),
            start + secs(30)
        );
    }

    proptest! {
        #[test]
        fn no_body_may_take_longer_than_the_rate_allows(reads in proptest::collection::vec((0_u64..40, 0_usize..5000), 1..50)) {
            let (mut pace, start) = (Pace::new(), Instant::now());
            let (mut now, mut bytes, mut waited) = (start, 0, secs(0));
            for (index, (wait, read)) in reads.into_iter().enumerate() {
                let end = pace.wait(&LIMITS, now);
                prop_assert!(end <= now + LIMITS.idle);
                if now + secs(wait) > end {
                    break;
                }
                now += secs(wait);
                if index > 0 {
                    waited += secs(wait);
                }
                prop_assert!(index == 0 || waited <= LIMITS.grace + secs(bytes / 240));
                bytes += read as u64;
                pace.read(read, now);
            }
        }
    }
}
