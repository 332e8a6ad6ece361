use std::fmt;

use tokio::time::Instant;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are rejected.
    Open {
        /// The first call at or after this instant is a probe. `None`: forced open, until an operator changes it.
        until: Option<Instant>,
    },
    /// A limited number of calls pass as probes; all other calls are rejected.
    HalfOpen,
}

/// Whether outcomes or an operator decide the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The outcomes of calls decide.
    Automatic,
    /// Held open by [`Circuit::force_open`](crate::Circuit::force_open).
    ForcedOpen,
    /// Held closed by [`Circuit::force_closed`](crate::Circuit::force_closed).
    ForcedClosed,
}

/// Why a circuit opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// As many consecutive failures as set by [`Trip::consecutive`](crate::Trip::consecutive).
    ConsecutiveFailures,
    /// The share of failures in the time window, see [`Trip::failure_ratio`](crate::Trip::failure_ratio).
    FailureRatio,
    /// The share of slow calls in the time window, see [`Trip::slow_ratio`](crate::Trip::slow_ratio).
    SlowRatio,
    /// A probe failed.
    ProbeFailed,
    /// A probe succeeded, but took longer than the slow-call limit.
    ProbeSlow,
    /// There was no response to a probe by its deadline.
    ProbeTimedOut,
    /// By [`Circuit::trip`](crate::Circuit::trip).
    Requested,
    /// By [`Circuit::force_open`](crate::Circuit::force_open).
    Forced,
}

/// A circuit at one moment, for status pages, metrics and logs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// Whether outcomes or an operator decide the state.
    pub mode: Mode,
    /// Failures since the last success or transition; 0 unless closed.
    pub consecutive_failures: u32,
    /// The calls of the time window. While the circuit is not closed, those from before that are still in it.
    pub window: Counts,
    /// How often it opened, forced or not.
    pub trips: u64,
    /// How often a condition was met and the circuit stayed closed, because its
    /// [budget](crate::CircuitBuilder::ejection_budget) was exhausted.
    pub kept_closed: u64,
    /// Why it opened last.
    pub last_reason: Option<Reason>,
    /// Since when it has not been closed.
    pub open_since: Option<Instant>,
    /// When the next probe is possible at the latest, unless it is possible now or never (closed, forced).
    pub next_probe_at: Option<Instant>,
    /// All calls since the circuit was made.
    pub totals: Totals,
}

/// The calls in a time window that ended while the circuit was closed, each counted once.
///
/// Ignored and abandoned calls are not in it, nor are probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed, or were abandoned past the age limit.
    pub failed: u64,
    /// Calls whose response asks for fewer requests (`429`, `RESOURCE_EXHAUSTED`).
    pub throttled: u64,
    /// Of all these, the calls that took longer than the slow-call limit.
    pub slow: u64,
}

/// All calls since the circuit was made, in counters that only grow. Each call is counted once, when it ends.
///
/// Counters are read one after the other, so their sum may differ by calls that end meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Calls that succeeded, or whose body was dropped after a good response head.
    pub succeeded: u64,
    /// Calls that failed, or were abandoned past the age limit.
    pub failed: u64,
    /// Calls whose response asks for fewer requests.
    pub throttled: u64,
    /// Calls whose outcome is not evidence about the other side, such as a rejection further in.
    pub ignored: u64,
    /// Calls that were dropped by their caller before there was a response, and before the age limit.
    pub abandoned: u64,
    /// Calls that ended after a transition, and so had no effect. Includes a probe that ended past its deadline, which had.
    pub stale: u64,
    /// Calls that were rejected. A gate that is `Pending` rejects nothing.
    pub rejected: u64,
}

// === impl State ===

impl State {
    /// The state in lower-case words joined by `-`, for logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

// === impl Reason ===

impl Reason {
    /// The reason in lower-case words joined by `-`, for logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::FailureRatio => "failure-ratio",
            Self::SlowRatio => "slow-ratio",
            Self::ProbeFailed => "probe-failed",
            Self::ProbeSlow => "probe-slow",
            Self::ProbeTimedOut => "probe-timed-out",
            Self::Requested => "requested",
            Self::Forced => "forced",
        }
    }
}

impl Reason {
    /// A number, not zero, for the packed state.
    pub(crate) const fn code(self) -> u32 {
        self as u32 + 1
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    const ALL: [Self; 8] = [
        Self::ConsecutiveFailures,
        Self::FailureRatio,
        Self::SlowRatio,
        Self::ProbeFailed,
        Self::ProbeSlow,
        Self::ProbeTimedOut,
        Self::Requested,
        Self::Forced,
    ];
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Counts ===

impl Counts {
    /// All calls.
    pub const fn calls(&self) -> u64 {
        self.succeeded + self.failed + self.throttled
    }

    /// The calls that raise the failure ratio: failed or throttled.
    pub const fn bad(&self) -> u64 {
        self.failed + self.throttled
    }

    /// The share of bad calls, from 0 to 1; `None` if there were no calls.
    pub fn failure_ratio(&self) -> Option<f64> {
        (self.calls() > 0).then(|| self.bad() as f64 / self.calls() as f64)
    }

    /// The share of slow calls, from 0 to 1; `None` if there were no calls.
    pub fn slow_ratio(&self) -> Option<f64> {
        (self.calls() > 0).then(|| self.slow as f64 / self.calls() as f64)
    }
}

// === impl Totals ===

impl Totals {
    /// The calls that were admitted and have ended. Those in flight are not counted.
    pub const fn ended(&self) -> u64 {
        self.succeeded + self.failed + self.throttled + self.ignored + self.abandoned + self.stale
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_code() {
        for code in 1..=8 {
            assert_eq!(Reason::from_code(code).unwrap().code(), code);
        }
        assert_eq!((Reason::from_code(0), Reason::from_code(9)), (None, None));
    }

    #[test]
    fn ratios_are_shares_of_all_calls() {
        assert_eq!(Counts::default().failure_ratio(), None);
        let counts = Counts {
            succeeded: 5,
            failed: 3,
            throttled: 2,
            slow: 1,
        };
        assert_eq!(
            (counts.failure_ratio(), counts.slow_ratio()),
            (Some(0.5), Some(0.1))
        );
    }
}
