use std::{num::NonZeroU32, time::Duration};

/// How many requests in what time, and how many at once.
///
/// The words mean rates: `per_second(100)` lets through 100 requests a second, not one in 100 seconds. Over any stretch
/// of time *t* no more than `burst + rate * t` requests pass.
///
/// ```
/// use std::{num::NonZeroU32, time::Duration};
/// use tower_bucket::Quota;
///
/// const HUNDRED: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// const TWENTY: NonZeroU32 = NonZeroU32::new(20).unwrap();
///
/// let quota = Quota::per_second(HUNDRED).burst(TWENTY);
/// assert_eq!(quota.interval(), Duration::from_millis(10));
/// assert_eq!(quota.refill(), Duration::from_millis(200));
/// ```
///
/// # Burst
///
/// A rate made from a count and a period allows the whole count at once unless [`burst`](Self::burst) says otherwise:
/// who reads "60 per minute" sends 60 requests and then waits, and would be surprised to see the second one refused.
/// The price is that the first minute after a rest may see the burst and the rate, 120 requests; name a smaller burst
/// where that matters. [`every`](Self::every) names no count, so its burst is 1.
///
/// # Limits
///
/// The time for one request is kept in whole nanoseconds, rounded up: a rate is never exceeded, and is short of its
/// word by at most 0.1 % at a million a second. No rate is above a thousand million a second. What would take longer
/// than 146 years is cut to that: the interval, and the burst to what refills in that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Nanoseconds for one request; not zero, and `interval * burst <= HORIZON`.
    interval: u64,
    /// Not zero.
    burst: u32,
}

// === impl Quota ===

impl Quota {
    pub(crate) const ONE_A_SECOND: Self = Self::per_second(NonZeroU32::MIN);

    /// `count` requests a second, all of them at once if need be.
    #[must_use]
    pub const fn per_second(count: NonZeroU32) -> Self {
        Self::rate(count, 1)
    }

    /// `count` requests a minute, all of them at once if need be.
    #[must_use]
    pub const fn per_minute(count: NonZeroU32) -> Self {
        Self::rate(count, 60)
    }

    /// `count` requests an hour, all of them at once if need be.
    #[must_use]
    pub const fn per_hour(count: NonZeroU32) -> Self {
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

    /// How many requests may come at once after a rest. Default: the count of the rate; 1 for [`every`](Self::every).
    #[must_use]
    pub const fn burst(self, burst: NonZeroU32) -> Self {
        let most = HORIZON / self.interval;
        Self {
            burst: if burst.get() as u64 > most {
                most as u32
            } else {
                burst.get()
            },
            ..self
        }
    }

    /// The time in which one request becomes free again.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval)
    }

    /// How many requests may come at once.
    #[must_use]
    pub const fn burst_size(&self) -> NonZeroU32 {
        NonZeroU32::new(self.burst).expect("a burst is not zero")
    }

    /// The time from an empty bucket to a full one.
    #[must_use]
    pub const fn refill(&self) -> Duration {
        Duration::from_nanos(self.depth())
    }

    /// As they were in another quota.
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

    const fn rate(count: NonZeroU32, seconds: u64) -> Self {
        let interval = (seconds * 1_000_000_000).div_ceil(count.get() as u64);
        Self { interval, burst: 1 }.burst(count)
    }
}

/// 2^62 ns, 146 years: two of them add up without overflow, and nobody waits longer.
pub(crate) const HORIZON: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    const fn n(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[test]
    fn words_mean_rates() {
        assert_eq!(
            Quota::per_second(n(100)).interval(),
            Duration::from_millis(10)
        );
        assert_eq!(Quota::per_minute(n(60)).interval(), Duration::from_secs(1));
        assert_eq!(Quota::per_hour(n(60)).interval(), Duration::from_secs(60));
        let every = Quota::every(Duration::from_secs(5)).unwrap();
        assert_eq!(
            (every.interval(), every.burst_size()),
            (Duration::from_secs(5), n(1))
        );
    }

    #[test]
    fn a_count_may_come_at_once_unless_a_burst_is_named() {
        assert_eq!(Quota::per_minute(n(60)).burst_size(), n(60));
        assert_eq!(Quota::per_minute(n(60)).burst(n(5)).burst_size(), n(5));
        assert_eq!(
            Quota::per_minute(n(60)).burst(n(90)).refill(),
            Duration::from_secs(90)
        );
    }

    #[test]
    fn an_interval_is_rounded_up_so_that_the_rate_is_never_exceeded() {
        assert_eq!(
            Quota::per_second(n(3)).interval(),
            Duration::from_nanos(333_333_334)
        );
        assert_eq!(
            Quota::per_second(n(u32::MAX)).interval(),
            Duration::from_nanos(1)
        );
    }

    #[test]
    fn no_rate_is_no_quota() {
        assert_eq!(Quota::every(Duration::ZERO), None);
    }

    #[test]
    fn extremes_are_cut_to_the_horizon() {
        let ever = Duration::from_nanos(HORIZON);
        let never = Quota::every(Duration::MAX).unwrap();
        assert_eq!(never.interval(), ever);
        assert_eq!(never.burst(n(u32::MAX)).burst_size(), n(1));
        assert_eq!(
            Quota::per_second(n(1)).burst(n(u32::MAX)).burst_size(),
            n(u32::MAX)
        );
        assert!(Quota::per_hour(n(1)).burst(n(u32::MAX)).refill() <= ever);
        assert_eq!(Quota::per_second(n(u32::MAX)).burst_size(), n(u32::MAX));
    }
}
