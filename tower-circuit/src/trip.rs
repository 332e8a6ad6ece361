use std::{
    fmt,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tower_outcome::Verdict;

use crate::{Counts, LastCalls, Reason};

/// When a closed circuit opens.
///
/// Default: five failures in a row, as Finagle, linkerd and Envoy have it, **or** half of at least twenty calls within ten
/// seconds. The first finds a dead upstream in five calls at any rate of traffic; the second finds one that answers now
/// and then, which never fails five times in a row.
///
/// Conditions are joined by [`or`](Self::or): a circuit has at most one of each kind.
///
/// ```
/// # use std::{num::NonZeroU32, time::Duration};
/// use tower_circuit::{Circuit, Ratio, Trip};
///
/// let trip = Trip::consecutive(NonZeroU32::new(3).unwrap())
///     .or(Trip::failure_ratio(Ratio::percent(20).unwrap()))
///     .or(Trip::slow_ratio(Duration::from_millis(500), Ratio::HALF));
/// let circuit = Circuit::builder().trip(trip).window(Duration::from_secs(30)).build();
/// ```
///
/// What counts as a failure is the classification's business. A soft answer (`429`) lowers a ratio, but neither counts
/// nor resets a row. A circuit is judged when a call ends badly (a failure, a soft answer, a slow one) and never by a
/// success, so it does not open while all goes well, whatever leaves the window.
#[derive(Clone)]
pub struct Trip {
    consecutive: Option<NonZeroU32>,
    ratio: Option<Ratio>,
    last: Option<(NonZeroU16, Ratio)>,
    slow: Option<(Duration, Ratio)>,
    policy: Option<Arc<dyn TripPolicy>>,
}

/// A share of calls: more than none and at most all. Compared in whole numbers, so that a half is a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratio {
    parts: u32,
    of: u32,
}

/// A condition of the user's own.
///
/// It sees what became of a call and what the circuit has counted, and says whether to open; what is admitted, for how
/// long it stays open and when it closes remain the circuit's. It is asked after the circuit's own conditions, while the
/// circuit is closed, about each call that ended badly, and **outside of the circuit's lock**: it may take
/// its time, keep a state of its own behind a lock of its own, and ask the circuit anything. Several threads may ask at
/// once. If the circuit left the closed state meanwhile, or is forced closed, the answer is ignored. It must not panic: it may be asked by a
/// destructor.
///
/// ```
/// use tower_circuit::{Circuit, Evidence, Trip, TripPolicy};
///
/// /// Opens once a hundred calls failed in the window, however many went well.
/// struct TooMany;
///
/// impl TripPolicy for TooMany {
///     fn judge(&self, evidence: &Evidence) -> Option<&'static str> {
///         (evidence.window.failed >= 100).then_some("too-many")
///     }
/// }
///
/// let circuit = Circuit::builder().trip(Trip::default().or(Trip::policy(TooMany))).build();
/// ```
pub trait TripPolicy: Send + Sync + 'static {
    /// Whether to open, and why: lower-case words joined by `-`, for [`Reason::Policy`].
    fn judge(&self, evidence: &Evidence) -> Option<&'static str>;

    /// Whether to be asked about successes too. Default: no, and then a success costs nothing. With yes, each takes the
    /// circuit's lock for a moment, to collect the evidence. Asked once, when the circuit is built.
    fn wants_successes(&self) -> bool {
        false
    }
}

/// What a [`TripPolicy`] is shown: one call, and the counts with that call in them.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Evidence {
    /// What became of the call. Never `Ignore`.
    pub verdict: Verdict,
    /// Whether it took longer than the slow-call limit; never without one.
    pub slow: bool,
    /// When it ended.
    pub now: Instant,
    /// A number that changes with each transition. A policy with a memory forgets when it does.
    pub generation: u32,
    /// Failures since the last success or transition.
    pub failures_in_row: u32,
    /// The calls of the time window.
    pub window: Counts,
    /// The last calls, where the circuit counts them.
    pub last_calls: Option<LastCalls>,
}

// === impl Trip ===

impl Trip {
    /// Never opens by itself: for circuits that an operator opens, and as a beginning.
    #[must_use]
    pub const fn never() -> Self {
        Self {
            consecutive: None,
            ratio: None,
            last: None,
            slow: None,
            policy: None,
        }
    }

    /// Opens after this many failures with no success between them. Default: 5.
    #[must_use]
    pub fn consecutive(failures: NonZeroU32) -> Self {
        Self {
            consecutive: Some(failures),
            ..Self::never()
        }
    }

    /// Opens when this share of the calls in the time window has failed, of at least as many as
    /// [`at_least`](crate::CircuitBuilder::at_least) says. Default: a half of at least 20 within 10 s.
    #[must_use]
    pub fn failure_ratio(ratio: Ratio) -> Self {
        Self {
            ratio: Some(ratio),
            ..Self::never()
        }
    }

    /// Opens when this share of the last so many calls has failed, however long ago they were. Default: off.
    ///
    /// Of at least as many as [`at_least`](crate::CircuitBuilder::at_least) says, or of all if `calls` is less. Each call
    /// pushes the oldest one out, which needs an order among all threads: with this condition, and only with it, **every
    /// call takes the circuit's lock** when it ends. Memory: one bit a call, 8 KiB at most.
    #[must_use]
    pub fn failure_ratio_of_last(calls: NonZeroU16, ratio: Ratio) -> Self {
        Self {
            last: Some((calls, ratio)),
            ..Self::never()
        }
    }

    /// Opens when this share of the calls in the time window took `limit` or longer: to the head of a response whose body
    /// follows, otherwise to the end. What the reader of a body takes does not count, because a client that reads slowly must
    /// not open the circuit for the others. Of at least as many as [`at_least`](crate::CircuitBuilder::at_least) says.
    /// Default: off, because only you know what is slow.
    ///
    /// A slow success still counts as a success among the failures; but a slow probe closes nothing. The limit is also
    /// the age from which a [cancelled](crate::CircuitBuilder::cancelled_after) call is a failure.
    #[must_use]
    pub fn slow_ratio(limit: Duration, ratio: Ratio) -> Self {
        Self {
            slow: Some((limit, ratio)),
            ..Self::never()
        }
    }

    /// Opens when a policy of your own says so.
    #[must_use]
    pub fn policy(policy: impl TripPolicy) -> Self {
        Self {
            policy: Some(Arc::new(policy)),
            ..Self::never()
        }
    }

    /// Opens on either. Of two conditions of the same kind, `other`'s holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            consecutive: other.consecutive.or(self.consecutive),
            ratio: other.ratio.or(self.ratio),
            last: other.last.or(self.last),
            slow: other.slow.or(self.slow),
            policy: other.policy.or(self.policy),
        }
    }

    /// Is asked about what ended badly, never about a success.
    pub(crate) fn judge(&self, evidence: &Evidence, at_least: NonZeroU32) -> Option<Reason> {
        let Evidence {
            failures_in_row,
            window,
            last_calls,
            ..
        } = *evidence;
        let enough = |calls: u64, at_least: u32| calls >= at_least.into();
        let (calls, at_least) = (window.calls(), at_least.get());
        if self
            .consecutive
            .is_some_and(|limit| failures_in_row >= limit.get())
        {
            Some(Reason::ConsecutiveFailures)
        } else if enough(calls, at_least)
            && self
                .ratio
                .is_some_and(|ratio| ratio.is_reached(window.bad(), calls))
        {
            Some(Reason::FailureRatio)
        } else if let (Some((row, ratio)), Some(LastCalls { calls, failed })) =
            (self.last, last_calls)
            && enough(calls.into(), at_least.min(row.get().into()))
            && ratio.is_reached(failed.into(), calls.into())
        {
            Some(Reason::FailureRatioOfLast)
        } else if enough(calls, at_least)
            && self
                .slow
                .is_some_and(|(_, ratio)| ratio.is_reached(window.slow, calls))
        {
            Some(Reason::SlowRatio)
        } else {
            None
        }
    }

    pub(crate) fn slow_limit(&self) -> Option<Duration> {
        self.slow.map(|(limit, _)| limit)
    }

    pub(crate) fn row(&self) -> Option<NonZeroU16> {
        self.last.map(|(calls, _)| calls)
    }

    pub(crate) fn own_policy(&self) -> Option<Arc<dyn TripPolicy>> {
        self.policy.clone()
    }
}

impl Default for Trip {
    fn default() -> Self {
        Self::consecutive(FAILURES).or(Self::failure_ratio(Ratio::HALF))
    }
}

impl fmt::Debug for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trip")
            .field("consecutive", &self.consecutive)
            .field("failure_ratio", &self.ratio)
            .field("failure_ratio_of_last", &self.last)
            .field("slow_ratio", &self.slow)
            .field("policy", &self.policy.is_some())
            .finish()
    }
}

const FAILURES: NonZeroU32 = NonZeroU32::new(5).unwrap();

// === impl TripPolicy ===

/// So that its maker can keep a handle of it.
impl<P: TripPolicy + ?Sized> TripPolicy for Arc<P> {
    fn judge(&self, evidence: &Evidence) -> Option<&'static str> {
        (**self).judge(evidence)
    }

    fn wants_successes(&self) -> bool {
        (**self).wants_successes()
    }
}

// === impl Evidence ===

impl Evidence {
    /// Whether the call is one that a circuit judges.
    pub(crate) fn is_bad(&self) -> bool {
        self.slow || self.verdict != Verdict::Success
    }
}

// === impl Ratio ===

impl Ratio {
    /// One of two.
    pub const HALF: Self = Self { parts: 1, of: 2 };
    /// All of them.
    pub const ALL: Self = Self { parts: 1, of: 1 };

    /// So many of so many; `None` if that is none, or more than all.
    #[must_use]
    pub const fn new(parts: u32, of: u32) -> Option<Self> {
        if 0 < parts && parts <= of {
            Some(Self { parts, of })
        } else {
            None
        }
    }

    /// So many of a hundred, from 1 to 100.
    #[must_use]
    pub const fn percent(percent: u32) -> Option<Self> {
        Self::new(percent, 100)
    }

    fn is_reached(self, parts: u64, of: u64) -> bool {
        u128::from(parts) * u128::from(self.of) >= u128::from(of) * u128::from(self.parts)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TWENTY: NonZeroU32 = NonZeroU32::new(20).unwrap();

    fn evidence(window: Counts, last_calls: Option<LastCalls>, failures_in_row: u32) -> Evidence {
        let (verdict, now) = (Verdict::Failure, Instant::now());
        Evidence {
            verdict,
            slow: false,
            now,
            generation: 0,
            failures_in_row,
            window,
            last_calls,
        }
    }

    fn judge(trip: &Trip, succeeded: u64, failed: u64, slow: u64) -> Option<Reason> {
        let window = Counts {
            succeeded,
            failed,
            slow,
            ..Counts::default()
        };
        trip.judge(&evidence(window, None, 0), TWENTY)
    }

    #[test]
    fn a_ratio_is_reached_exactly_and_not_before() {
        let third = Ratio::new(1, 3).unwrap();
        assert!(
            third.is_reached(1, 3) && third.is_reached(334, 1_000) && !third.is_reached(333, 1_000)
        );
        assert!(
            Ratio::ALL.is_reached(u64::MAX, u64::MAX)
                && !Ratio::ALL.is_reached(u64::MAX - 1, u64::MAX)
        );
        assert_eq!(
            (Ratio::new(0, 3), Ratio::new(4, 3), Ratio::percent(101)),
            (None, None, None)
        );
        assert_eq!(Ratio::percent(100).unwrap().of, 100);
    }

    #[test]
    fn a_ratio_needs_enough_calls() {
        let trip = Trip::failure_ratio(Ratio::HALF);
        assert_eq!(judge(&trip, 9, 10, 0), None, "nineteen");
        assert_eq!(judge(&trip, 10, 10, 0), Some(Reason::FailureRatio));
        assert_eq!(judge(&trip, 11, 10, 0), None, "less than a half");
    }

    #[test]
    fn soft_answers_lower_a_ratio() {
        let window = Counts {
            succeeded: 10,
            soft: 10,
            ..Counts::default()
        };
        let judged = Trip::failure_ratio(Ratio::HALF).judge(&evidence(window, None, 0), TWENTY);
        assert_eq!(judged, Some(Reason::FailureRatio));
    }

    #[test]
    fn slow_calls_are_a_share_of_all_calls() {
        let trip = Trip::slow_ratio(Duration::from_secs(1), Ratio::HALF);
        assert_eq!(judge(&trip, 15, 5, 9), None);
        assert_eq!(judge(&trip, 15, 5, 10), Some(Reason::SlowRatio));
    }

    #[test]
    fn a_row_shorter_than_the_least_number_is_judged_when_it_is_full() {
        let trip = Trip::failure_ratio_of_last(NonZeroU16::new(4).unwrap(), Ratio::HALF);
        let judge = |calls, failed| {
            trip.judge(
                &evidence(Counts::default(), Some(LastCalls { calls, failed }), 0),
                TWENTY,
            )
        };
        assert_eq!((judge(3, 3), judge(4, 1)), (None, None));
        assert_eq!(judge(4, 2), Some(Reason::FailureRatioOfLast));
    }

    #[test]
    fn of_two_conditions_of_a_kind_the_later_holds_and_the_others_stay() {
        let two = NonZeroU32::new(2).unwrap();
        let trip = Trip::default().or(Trip::consecutive(two));
        assert_eq!(
            trip.judge(&evidence(Counts::default(), None, 2), TWENTY),
            Some(Reason::ConsecutiveFailures)
        );
        assert_eq!(judge(&trip, 10, 10, 0), Some(Reason::FailureRatio));
        assert_eq!(judge(&Trip::never(), 0, 1_000, 1_000), None);
    }
}
