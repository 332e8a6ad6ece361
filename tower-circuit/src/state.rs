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
    /// One call at a time may try; all others are refused.
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
    /// The probe failed.
    ProbeFailed,
    /// The probe was not answered before its deadline.
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
    /// How often it opened, forced or not.
    pub trips: u64,
    /// Why it opened last.
    pub last_reason: Option<Reason>,
    /// Since when it has not been closed.
    pub opened_since: Option<Instant>,
    /// When the next probe is possible at the latest, unless it is possible now or never (closed, forced).
    pub next_probe_at: Option<Instant>,
    /// What became of all calls since the circuit was made.
    pub totals: Totals,
}

/// What became of the calls, in numbers that only grow. Each call is counted once, when it ends.
///
/// Counts of different kinds are read one after the other, so their sum may be off by what ended meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Answered, and well.
    pub succeeded: u64,
    /// Failed, or were dropped by their caller past the age limit.
    pub failed: u64,
    /// Answered with "ask for less".
    pub soft: u64,
    /// Said nothing about the other side, such as a refusal further in.
    pub ignored: u64,
    /// Dropped by their caller before the age limit.
    pub cancelled: u64,
    /// Ended after the state they were admitted in, and so decided nothing. A probe past its deadline ends here.
    pub stale: u64,
    /// Refused. A gate that says `Pending` refuses nothing.
    pub refused: u64,
}

// === impl Reason ===

impl Reason {
    /// The reason in lower-case words joined by `-`, for logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::ProbeFailed => "probe-failed",
            Self::ProbeTimedOut => "probe-timed-out",
            Self::Forced => "forced",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
