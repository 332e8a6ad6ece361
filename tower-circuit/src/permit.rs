use std::fmt;

use tokio::time::Instant;
use tower_outcome::{Outcome, Settle};

use crate::{circuit::Shared, stripe::Held, word::Ticket};

/// Leave for one call, and the guard that tells the circuit how it ended.
///
/// It is born cancelled: dropped without being settled, it says that the caller went away. [Told](Settle::answered) that a
/// good head has come, it says no ill of the other side when it is dropped, and a probe has succeeded at its deadline. A
/// probe's permit frees the probe's place however it ends.
#[must_use = "a permit that is dropped is a cancelled call"]
pub struct Permit {
    /// `None`: settled.
    circuit: Option<Held<Shared>>,
    ticket: Ticket,
    /// Unknown until somebody has to wait for the call: most of its cost would be the clock.
    started: Option<Instant>,
    /// A good head has come: whoever goes away now goes for reasons of their own.
    answered: bool,
}

/// A probe, promised to a gate that is ready. Goes back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    circuit: Held<Shared>,
    ticket: Ticket,
}

// === impl Permit ===

impl Permit {
    #[inline(always)]
    pub(crate) fn new(circuit: Held<Shared>, ticket: Ticket, started: Option<Instant>) -> Self {
        Self { circuit: Some(circuit), ticket, started, answered: false }
    }

    /// Whether this call is one of those that decide a half-open circuit.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.ticket.is_probe()
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
        Self { circuit: self.circuit.take(), ..*self }
    }

    #[cold]
    fn tell_answered(&self) {
        if let Some(circuit) = &self.circuit {
            circuit.ask(|breaker| breaker.answered(self.ticket, Instant::now()));
        }
    }

    /// As [`settle`](Settle::settle), in place.
    #[inline(always)]
    pub(crate) fn tell(&mut self, outcome: Outcome) {
        if let Some(circuit) = self.circuit.take() {
            circuit.settle(&circuit.lane, self.ticket, self.started, outcome);
        }
    }
}

impl Settle for Permit {
    #[inline]
    fn answered(&mut self) {
        self.answered = true;
        if self.is_probe() {
            self.tell_answered();
        }
    }

    #[inline]
    fn settle(mut self, outcome: Outcome) {
        self.tell(outcome);
    }
}

impl Drop for Permit {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(circuit) = self.circuit.take() {
            cancel(circuit, self.ticket, self.started.filter(|_| !self.answered));
        }
    }
}

#[cold]
fn cancel(circuit: Held<Shared>, ticket: Ticket, started: Option<Instant>) {
    circuit.cancel(&circuit.lane, ticket, started);
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("probe", &self.is_probe())
            .field("started", &self.started)
            .finish_non_exhaustive()
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
