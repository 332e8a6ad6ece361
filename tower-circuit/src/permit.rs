use std::fmt;

use tokio::time::Instant;
use tower_outcome::{Outcome, Settle};

use crate::{circuit::Shared, stripe::Held, word::Ticket};

/// Leave for one call, and the guard that tells the circuit how it ended.
///
/// It starts as cancelled: dropped without being settled, it records that the caller went away. Once a good head has
/// [come](Settle::answered), the other side has done its part: failures in a row are over, and a permit that is dropped
/// records a success, because what the reader does with a good response says nothing about its sender. A probe in that state
/// has succeeded at its deadline. A probe's permit frees the probe's slot however it ends.
#[must_use = "a permit that is dropped is a cancelled call"]
pub struct Permit {
    leave: Leave,
    /// A good head has come.
    answered: bool,
}

/// A permit before anything has been answered.
pub(crate) struct Leave {
    /// `None`: settled.
    circuit: Option<Held<Shared>>,
    ticket: Ticket,
    /// Unknown until somebody has to wait for the call: most of its cost would be the clock.
    started: Option<Instant>,
    callers: Callers,
    /// The inner service's code is running: what drops this now is its panic.
    inside: bool,
}

/// Whose calls they are, which decides what it means that one is dropped unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// The application's, which gives up where something takes too long: a failure from some age on.
    Ours,
    /// The clients' of a server, who hang up as they like: no failure, unless the user has set an age.
    Clients,
    /// The application's, without a service around it: it is dropped in a panic of the call's code, or given up.
    ByHand,
}

/// A probe, promised to a gate that is ready. Goes back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    circuit: Held<Shared>,
    ticket: Ticket,
}

// === impl Permit ===

impl Permit {
    /// Whether this call is one of those that decide a half-open circuit.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.leave.ticket.is_probe()
    }
}

impl From<Leave> for Permit {
    fn from(leave: Leave) -> Self {
        Self {
            leave,
            answered: false,
        }
    }
}

impl Settle for Permit {
    fn head_received(&mut self) {
        self.answered = true;
        self.leave.answered();
    }

    #[inline]
    fn settle(mut self, outcome: Outcome) {
        self.leave.tell(outcome);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.answered {
            self.leave.tell(Outcome::SUCCESS);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("probe", &self.is_probe())
            .field("started", &self.leave.started)
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

// === impl Leave ===

impl Leave {
    #[inline(always)]
    pub(crate) fn new(circuit: Held<Shared>, ticket: Ticket, started: Option<Instant>) -> Self {
        Self {
            circuit: Some(circuit),
            ticket,
            started,
            callers: Callers::Ours,
            inside: false,
        }
    }

    #[inline(always)]
    pub(crate) fn of(self, callers: Callers) -> Self {
        let mut leave = self;
        leave.callers = callers;
        leave
    }

    /// Runs the inner service's code. If that panics, the call has failed.
    #[inline(always)]
    pub(crate) fn run<T>(&mut self, inner: impl FnOnce() -> T) -> T {
        self.inside = true;
        let result = inner();
        self.inside = false;
        result
    }

    /// From now on the call takes time, if it did not before.
    #[inline(always)]
    pub(crate) fn start(&mut self) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
        }
    }

    /// Itself, out of a place where nothing remains of it.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            circuit: self.circuit.take(),
            ticket: self.ticket,
            started: self.started,
            callers: self.callers,
            inside: false,
        }
    }

    /// How the call ended.
    #[inline(always)]
    pub(crate) fn tell(&mut self, outcome: Outcome) {
        if let Some(circuit) = self.circuit.take() {
            circuit.settle(&circuit.lane, self.ticket, self.started, outcome);
        }
    }

    #[cold]
    fn dropped(&mut self) {
        let by_hand = self.callers == Callers::ByHand;
        if self.inside || by_hand && std::thread::panicking() {
            return self.tell(Outcome::FAILURE);
        }
        if let Some(circuit) = self.circuit.take() {
            circuit.cancel(&circuit.lane, self.ticket, self.started, self.callers);
        }
    }

    /// A good head has come. How long it took is known now, and what its reader takes from here on does not add to it.
    #[inline]
    fn answered(&mut self) {
        if let Some(circuit) = &self.circuit
            && !circuit.answered(self.ticket, self.started)
        {
            self.started = None;
        }
    }
}

impl Drop for Leave {
    #[inline(always)]
    fn drop(&mut self) {
        if self.circuit.is_some() {
            self.dropped();
        }
    }
}

// === impl Reservation ===

impl Reservation {
    pub(crate) fn new(circuit: Held<Shared>, ticket: Ticket) -> Self {
        Self { circuit, ticket }
    }

    pub(crate) fn holds(&self, now: Instant) -> bool {
        self.circuit.ask(|breaker| breaker.holds(self.ticket, now))
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.circuit.ask(|breaker| breaker.release(self.ticket));
    }
}
