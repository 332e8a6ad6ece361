use std::fmt;

use tokio::time::Instant;

/// Which state a circuit is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open {
        /// The first call at or after this instant is a probe. `None`: forced open, until somebody says otherwise.
        until: Option<Instant>,
    },
    /// As many calls as there are places for probes may try; all others are refused.
    HalfOpen,
}

/// Who decides: the circuit, or the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The circuit decides by what it sees.
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
    /// As many failures in a row as [`Trip::consecutive`](crate::Trip::consecutive) allows.
    ConsecutiveFailures,
    /// Too large a share of failures in the time window, see [`Trip::failure_ratio`](crate::Trip::failure_ratio).
    FailureRatio,
    /// Too large a share of the last so many calls, see
    /// [`Trip::failure_ratio_of_last`](crate::Trip::failure_ratio_of_last).
    FailureRatioOfLast,
    /// Too large a share of slow calls in the time window, see [`Trip::slow_ratio`](crate::Trip::slow_ratio).
    SlowRatio,
    /// By a [`TripPolicy`](crate::TripPolicy), in its own words.
    Policy(&'static str),
    /// A probe failed.
    ProbeFailed,
    /// A probe succeeded, but took longer than the slow-call limit.
    ProbeSlow,
    /// A probe was not answered by its deadline.
    ProbeTimedOut,
    /// By [`Circuit::force_open`](crate::Circuit::force_open).
    Forced,
}

/// A circuit at one moment, for status pages, metrics and logs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// Who decides.
    pub mode: Mode,
    /// Failures since the last success or transition; 0 unless closed.
    pub failures_in_row: u32,
    /// The calls of the time window; while it is not closed, those of the time before that are still in it.
    pub window: Counts,
    /// The last calls, where [`Trip::failure_ratio_of_last`](crate::Trip::failure_ratio_of_last) counts them.
    pub last_calls: Option<LastCalls>,
    /// How often it opened, forced or not.
    pub trips: u64,
    /// How often it should have opened and stayed closed, because too many others of its
    /// [budget](crate::CircuitBuilder::ejection_budget) were out.
    pub kept_closed: u64,
    /// Why it opened last.
    pub last_reason: Option<Reason>,
    /// Since when it has not been closed.
    pub opened_since: Option<Instant>,
    /// When the next probe is possible at the latest, unless it is possible now or never (closed, forced).
    pub next_probe_at: Option<Instant>,
    /// What became of all calls since the circuit was made.
    pub totals: Totals,
}

/// What became of the calls in a time window: those that were judged while the circuit was closed, each once.
///
/// Ignored and cancelled calls are not in it, nor are probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Answered, and well.
    pub succeeded: u64,
    /// Failed, or were dropped by their caller past the age limit.
    pub failed: u64,
    /// Answered with "ask for less".
    pub soft: u64,
    /// Of all these, the ones that took longer than the slow-call limit.
    pub slow: u64,
}

/// The last so many calls that were judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastCalls {
    /// How many they are; fewer than asked for until there were as many.
    pub calls: u32,
    /// How many of them failed, or were answered with "ask for less".
    pub failed: u32,
}

/// What became of the calls, in numbers that only grow. Each call is counted once, when it ends.
///
/// Counts of different kinds are read one after the other, so their sum may be off by what ended meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Answered, and well; or with a good head whose body was dropped by its reader.
    pub succeeded: u64,
    /// Failed, or were dropped by their caller, unanswered and past the age limit.
    pub failed: u64,
    /// Answered with "ask for less".
    pub soft: u64,
    /// Said nothing about the other side, such as a refusal further in.
    pub ignored: u64,
    /// Dropped by their caller, unanswered, before the age limit.
    pub cancelled: u64,
    /// Ended after the state they were admitted in, and so decided nothing. A probe past its deadline ends here: that decided.
    pub stale: u64,
    /// Refused. A gate that says `Pending` refuses nothing.
    pub refused: u64,
}

// === impl State ===

impl State {
    /// The state in lower-case words joined by `-`, for logs and status pages.
    #[must_use]
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
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::FailureRatio => "failure-ratio",
            Self::FailureRatioOfLast => "failure-ratio-of-last",
            Self::SlowRatio => "slow-ratio",
            Self::Policy(why) => why,
            Self::ProbeFailed => "probe-failed",
            Self::ProbeSlow => "probe-slow",
            Self::ProbeTimedOut => "probe-timed-out",
            Self::Forced => "forced",
        }
    }
}

impl Reason {
    /// A number that fits beside the state; zero for what has none.
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Policy(_) => 0,
            Self::ConsecutiveFailures => 1,
            Self::FailureRatio => 2,
            Self::FailureRatioOfLast => 3,
            Self::SlowRatio => 4,
            Self::ProbeFailed => 5,
            Self::ProbeSlow => 6,
            Self::ProbeTimedOut => 7,
            Self::Forced => 8,
        }
    }

    pub(crate) const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::ConsecutiveFailures,
            2 => Self::FailureRatio,
            3 => Self::FailureRatioOfLast,
            4 => Self::SlowRatio,
            5 => Self::ProbeFailed,
            6 => Self::ProbeSlow,
            7 => Self::ProbeTimedOut,
            8 => Self::Forced,
            _ => return None,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Counts ===

impl Counts {
    /// All of them.
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.succeeded + self.failed + self.soft
    }

    /// Those that lower the ratio.
    #[must_use]
    pub const fn bad(&self) -> u64 {
        self.failed + self.soft
    }

    /// The share of bad calls, from 0 to 1; `None` if there were no calls.
    #[must_use]
    pub fn failure_ratio(&self) -> Option<f64> {
        (self.calls() > 0).then(|| self.bad() as f64 / self.calls() as f64)
    }

    /// The share of slow calls, from 0 to 1; `None` if there were no calls.
    #[must_use]
    pub fn slow_ratio(&self) -> Option<f64> {
        (self.calls() > 0).then(|| self.slow as f64 / self.calls() as f64)
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            succeeded: self.succeeded + other.succeeded,
            failed: self.failed + other.failed,
            soft: self.soft + other.soft,
            slow: self.slow + other.slow,
        }
    }
}

// === impl Totals ===

impl Totals {
    /// The calls that were admitted and have ended. Those still under way are not counted anywhere.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.succeeded + self.failed + self.soft + self.ignored + self.cancelled + self.stale
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_has_a_code_is_found_by_it() {
        for code in 1..=8 {
            assert_eq!(Reason::from_code(code).unwrap().code(), code);
        }
        assert_eq!(Reason::from_code(Reason::Policy("mine").code()), None);
        assert_eq!(Reason::Policy("mine").to_string(), "mine");
    }

    #[test]
    fn ratios_are_shares_of_what_there_is() {
        assert_eq!(Counts::default().failure_ratio(), None);
        let counts = Counts {
            succeeded: 5,
            failed: 3,
            soft: 2,
            slow: 1,
        };
        assert_eq!(
            (counts.failure_ratio(), counts.slow_ratio()),
            (Some(0.5), Some(0.1))
        );
    }
}
