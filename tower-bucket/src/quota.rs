use std::time::Duration;

/// A rate and a burst: how many requests in what time, and how many at once.
///
/// `per_second(100)` is a rate of 100 requests a second, not one in 100 seconds. In any period *t* no more than
/// `burst + rate * t` requests pass.
///
/// ```
/// use std::time::Duration;
/// use tower_bucket::Quota;
///
/// let quota = Quota::per_second(100).burst(20);
/// assert_eq!(quota.interval(), Duration::from_millis(10));
/// assert_eq!(quota.refill(), Duration::from_millis(200));
/// ```
///
/// # Burst
///
/// A rate made from a count and a period allows the whole count at once unless [`burst`](Self::burst) is set: a reader of
/// "60 per minute" expects to send 60 requests and then to wait. So the first minute after a pause may see the burst and the
/// rate, 120 requests; set a smaller burst where that matters. [`every`](Self::every) has no count, so its burst is 1.
///
/// # Zero
///
/// A count or a burst of zero admits nothing: each request is rejected without a time to retry, as one that costs more than the
/// bucket ever holds. Requests that cost no tokens still pass.
///
/// # Limits
///
/// The time for one request is kept in whole nanoseconds, rounded up: a rate is never exceeded, and is at most 0.1 % lower
/// at a million a second. No rate is above a thousand million a second. Times above 146 years are cut to that: the interval, and
/// the burst to what refills in that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Nanoseconds for one request; not zero, and `interval * burst <= HORIZON`.
    interval: u64,
    /// Zero: nothing passes.
    burst: u32,
}

// === impl Quota ===

impl Quota {
    pub(crate) const ONE_A_SECOND: Self = Self::per_second(1);

    /// `count` requests a second, all of them at once if need be. Zero: nothing passes.
    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self::rate(count, 1)
    }

    /// `count` requests a minute, all of them at once if need be. Zero: nothing passes.
    #[must_use]
    pub const fn per_minute(count: u32) -> Self {
        Self::rate(count, 60)
    }

    /// `count` requests an hour, all of them at once if need be. Zero: nothing passes.
    #[must_use]
    pub const fn per_hour(count: u32) -> Self {
        Self::rate(count, 3600)
    }

    /// One request in each `interval`, and no burst. `None` if it is zero, which is no rate.
    #[must_use]
    pub const fn every(interval: Duration) -> Option<Self> {
        let nanos = interval.as_nanos();
        let nanos = if nanos > HORIZON as u128 {
            HORIZON
        } else {
            nanos as u64
        };
        if nanos == 0 {
            None
        } else {
            Some(Self {
                interval: nanos,
                burst: 1,
            })
        }
    }

    /// How many requests may come at once after a pause. Zero: nothing passes. Default: the count of the rate; 1 for
    /// [`every`](Self::every).
    #[must_use]
    pub const fn burst(self, burst: u32) -> Self {
        let most = HORIZON / self.interval;
        Self {
            burst: if burst as u64 > most {
                most as u32
            } else {
                burst
            },
            ..self
        }
    }

    /// The time in which one request becomes free again; above 146 years for a rate of zero.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval)
    }

    /// How many requests may come at once.
    #[must_use]
    pub const fn burst_size(&self) -> u32 {
        self.burst
    }

    /// The time from an empty bucket to a full one.
    #[must_use]
    pub const fn refill(&self) -> Duration {
        Duration::from_nanos(self.depth())
    }

    /// From the parts of another quota.
    #[inline]
    pub(crate) const fn from_parts((interval, burst): (u64, u32)) -> Self {
        Self { interval, burst }
    }

    /// Nanoseconds for one request, and the burst.
    #[inline]
    pub(crate) const fn parts(&self) -> (u64, u32) {
        (self.interval, self.burst)
    }

    pub(crate) const fn interval_nanos(&self) -> u64 {
        self.interval
    }

    /// The bucket's size in nanoseconds.
    pub(crate) const fn depth(&self) -> u64 {
        self.interval * self.burst as u64
    }

    const fn rate(count: u32, seconds: u64) -> Self {
        // A rate of zero has an interval beyond the horizon, so that no burst fits below it.
        let interval = if count == 0 {
            HORIZON + 1
        } else {
            (seconds * 1_000_000_000).div_ceil(count as u64)
        };
        Self { interval, burst: 0 }.burst(count)
    }
}

/// 2^62 ns, 146 years: two of them add up without overflow, and no request waits longer.
pub(crate) const HORIZON: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_rates() {
        assert_eq!(Quota::per_second(100).interval(), Duration::from_millis(10));
        assert_eq!(Quota::per_minute(60).interval(), Duration::from_secs(1));
        assert_eq!(Quota::per_hour(60).interval(), Duration::from_secs(60));
        let every = Quota::every(Duration::from_secs(5)).unwrap();
        assert_eq!(
            (every.interval(), every.burst_size()),
            (Duration::from_secs(5), 1)
        );
    }

    #[test]
    fn a_count_may_come_at_once_unless_a_burst_is_named() {
        assert_eq!(Quota::per_minute(60).burst_size(), 60);
        assert_eq!(Quota::per_minute(60).burst(5).burst_size(), 5);
        assert_eq!(
            Quota::per_minute(60).burst(90).refill(),
            Duration::from_secs(90)
        );
    }

    #[test]
    fn an_interval_is_rounded_up_so_that_the_rate_is_never_exceeded() {
        assert_eq!(
            Quota::per_second(3).interval(),
            Duration::from_nanos(333_333_334)
        );
        assert_eq!(
            Quota::per_second(u32::MAX).interval(),
            Duration::from_nanos(1)
        );
    }

    #[test]
    fn no_rate_is_no_quota() {
        assert_eq!(Quota::every(Duration::ZERO), None);
    }

    #[test]
    fn a_rate_of_zero_has_no_burst_after_any_call_and_a_burst_of_zero_can_be_set_again() {
        assert_eq!(Quota::per_second(0).burst_size(), 0);
        assert_eq!(Quota::per_hour(0).burst(u32::MAX).burst_size(), 0);
        assert_eq!(Quota::per_second(5).burst(0).burst(3).burst_size(), 3);
        assert_eq!(Quota::per_second(0).refill(), Duration::ZERO);
    }

    #[test]
    fn extremes_are_cut_to_the_horizon() {
        let ever = Duration::from_nanos(HORIZON);
        let never = Quota::every(Duration::MAX).unwrap();
        assert_eq!(never.interval(), ever);
        assert_eq!(never.burst(u32::MAX).burst_size(), 1);
        assert_eq!(Quota::per_second(1).burst(u32::MAX).burst_size(), u32::MAX);
        assert!(Quota::per_hour(1).burst(u32::MAX).refill() <= ever);
        assert_eq!(Quota::per_second(u32::MAX).burst_size(), u32::MAX);
    }
}
