use std::time::Duration;

use crate::{Counts, Reason};

/// When a closed circuit opens.
///
/// Default: five consecutive failures, as in Finagle, linkerd and Envoy, **or** half of at least twenty calls within ten
/// seconds. The first finds an upstream that is down within five calls at any rate of traffic; the second finds one that
/// fails often, but rarely five times in a row.
///
/// Conditions are joined by [`or`](Self::or): a circuit has at most one of each kind.
///
/// ```
/// # use std::time::Duration;
/// use tower_circuit::{Circuit, Ratio, Trip};
///
/// let trip = Trip::consecutive(3)
///     .or(Trip::failure_ratio(Ratio::percent(20)))
///     .or(Trip::slow_ratio(Duration::from_millis(500), Ratio::HALF));
/// let circuit = Circuit::builder().trip(trip).window(Duration::from_secs(30)).build();
/// ```
///
/// The classification decides what a failure is. A throttled call (`429`) counts in a failure ratio as a failure does, but
/// is neither a consecutive failure nor the end of a series of them. A circuit is judged when a call fails, is throttled or
/// is slow, and never at a success; so it does not open because old successes leave the window.
///
/// For a condition of another kind, such as a health check, see [`Circuit::trip`](crate::Circuit::trip).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Trip {
    consecutive: Option<u32>,
    failures: Option<Ratio>,
    slow: Option<(Duration, Ratio)>,
}

/// A share of calls. Compared in whole numbers, so a half is exactly a half.
///
/// Zero is reached by any failure, once there are enough calls; a share of more than all calls is never reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Ratio {
    parts: u32,
    of: u32,
}

// === impl Trip ===

impl Trip {
    /// Never opens by itself: for circuits that an operator or a health check opens, and to start from.
    pub const fn never() -> Self {
        Self {
            consecutive: None,
            failures: None,
            slow: None,
        }
    }

    /// Opens after this many failures without a success in between. Default: 5. Zero is the same as 1.
    pub const fn consecutive(failures: u32) -> Self {
        Self {
            consecutive: Some(if failures == 0 { 1 } else { failures }),
            ..Self::never()
        }
    }

    /// Opens when this share of the calls in the time window has failed, if there were at least
    /// [`min_calls`](crate::CircuitBuilder::min_calls). Default: a half of at least 20 within 10 s.
    pub const fn failure_ratio(ratio: Ratio) -> Self {
        Self {
            failures: Some(ratio),
            ..Self::never()
        }
    }

    /// Opens when this share of the calls in the time window took `limit` or longer, if there were at least
    /// [`min_calls`](crate::CircuitBuilder::min_calls). Default: off, because only the application knows what is slow.
    ///
    /// A call is measured to the head of a response whose body follows, and otherwise to its end: a client that reads a
    /// body slowly must not open the circuit for every other client. A slow success counts as a success in the failure ratio; but a
    /// slow probe does not close the circuit. The limit is also the age from which an
    /// [abandoned](crate::CircuitBuilder::abandoned_is_failure_after) call is a failure. Costs a reading of the clock for
    /// each call.
    pub const fn slow_ratio(limit: Duration, ratio: Ratio) -> Self {
        Self {
            slow: Some((limit, ratio)),
            ..Self::never()
        }
    }

    /// Opens on either. Of two conditions of the same kind, that of `other` is used.
    pub fn or(self, other: Self) -> Self {
        Self {
            consecutive: other.consecutive.or(self.consecutive),
            failures: other.failures.or(self.failures),
            slow: other.slow.or(self.slow),
        }
    }

    /// The condition that is met, after a call that was no plain success.
    pub(crate) fn reason(
        &self,
        consecutive_failures: u32,
        window: &Counts,
        min_calls: u32,
    ) -> Option<Reason> {
        let calls = window.calls();
        let is_reached = |ratio: Option<Ratio>, parts| {
            calls >= min_calls.into() && ratio.is_some_and(|ratio| ratio.is_reached(parts, calls))
        };
        let is_met = |limit| consecutive_failures >= limit;
        if self.consecutive.is_some_and(is_met) {
            Some(Reason::ConsecutiveFailures)
        } else if window.bad() > 0 && is_reached(self.failures, window.bad()) {
            Some(Reason::FailureRatio)
        } else if window.slow > 0 && is_reached(self.slow.map(|(_, ratio)| ratio), window.slow) {
            Some(Reason::SlowRatio)
        } else {
            None
        }
    }

    pub(crate) fn slow_limit(&self) -> Option<Duration> {
        self.slow.map(|(limit, _)| limit)
    }
}

impl Default for Trip {
    fn default() -> Self {
        Self::consecutive(5).or(Self::failure_ratio(Ratio::HALF))
    }
}

// === impl Ratio ===

impl Ratio {
    /// One of two.
    pub const HALF: Self = Self { parts: 1, of: 2 };
    /// All calls.
    pub const ALL: Self = Self { parts: 1, of: 1 };

    /// `parts` of `of` calls.
    pub const fn new(parts: u32, of: u32) -> Self {
        Self { parts, of }
    }

    /// This many of a hundred calls.
    pub const fn percent(percent: u32) -> Self {
        Self::new(percent, 100)
    }

    fn is_reached(self, parts: u64, of: u64) -> bool {
        u128::from(parts) * u128::from(self.of) >= u128::from(of) * u128::from(self.parts)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn reason(trip: &Trip, succeeded: u64, failed: u64, slow: u64) -> Option<Reason> {
        let window = Counts {
            succeeded,
            failed,
            slow,
            ..Counts::default()
        };
        trip.reason(0, &window, 20)
    }

    #[test]
    fn a_ratio_is_reached_exactly_and_not_before() {
        let third = Ratio::new(1, 3);
        assert!(
            third.is_reached(1, 3) && third.is_reached(334, 1_000) && !third.is_reached(333, 1_000)
        );
        assert!(
            Ratio::ALL.is_reached(u64::MAX, u64::MAX)
                && !Ratio::ALL.is_reached(u64::MAX - 1, u64::MAX)
        );
    }

    #[test]
    fn every_number_has_a_meaning() {
        let none =
            Trip::failure_ratio(Ratio::percent(0)).or(Trip::slow_ratio(Duration::ZERO, Ratio::ALL));
        assert_eq!(reason(&none, 19, 1, 0), Some(Reason::FailureRatio));
        assert_eq!(reason(&none, 20, 0, 1), None, "a slow call is no failure");
        for never in [Ratio::percent(101), Ratio::new(4, 3), Ratio::new(1, 0)] {
            assert_eq!(reason(&Trip::failure_ratio(never), 0, 1_000, 0), None);
        }
        assert_eq!(Trip::consecutive(0), Trip::consecutive(1));
        let at_once = Trip::failure_ratio(Ratio::ALL);
        let failed = Counts {
            failed: 1,
            ..Counts::default()
        };
        assert_eq!(at_once.reason(1, &failed, 0), Some(Reason::FailureRatio));
    }

    #[test]
    fn a_ratio_needs_enough_calls() {
        let trip = Trip::failure_ratio(Ratio::HALF);
        assert_eq!(reason(&trip, 9, 10, 0), None, "nineteen");
        assert_eq!(reason(&trip, 10, 10, 0), Some(Reason::FailureRatio));
        assert_eq!(reason(&trip, 11, 10, 0), None, "less than a half");
    }

    #[test]
    fn throttled_calls_count_in_the_failure_ratio() {
        let window = Counts {
            succeeded: 10,
            throttled: 10,
            ..Counts::default()
        };
        let reason = Trip::failure_ratio(Ratio::HALF).reason(0, &window, 20);
        assert_eq!(reason, Some(Reason::FailureRatio));
    }

    #[test]
    fn slow_calls_are_a_share_of_all_calls() {
        let trip = Trip::slow_ratio(Duration::from_secs(1), Ratio::HALF);
        assert_eq!(reason(&trip, 15, 5, 9), None);
        assert_eq!(reason(&trip, 15, 5, 10), Some(Reason::SlowRatio));
    }

    #[test]
    fn of_two_conditions_of_a_kind_the_later_is_used_and_others_stay() {
        let trip = Trip::default().or(Trip::consecutive(2));
        assert_eq!(
            trip.reason(2, &Counts::default(), 20),
            Some(Reason::ConsecutiveFailures)
        );
        assert_eq!(reason(&trip, 10, 10, 0), Some(Reason::FailureRatio));
        assert_eq!(reason(&Trip::never(), 0, 1_000, 1_000), None);
    }
}
