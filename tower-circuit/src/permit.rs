use std::fmt;

use tokio::time::Instant;
use tower_outcome::{Outcome, Settle};

use crate::{breaker::Ticket, circuit::Shared, stripe::Held};

/// Leave for one call, and the guard that tells the circuit how it ended.
///
/// It is born cancelled: dropped without being settled, it says that the caller went away. A probe's permit frees the
/// probe's place however it ends.
#[must_use = "a permit that is dropped is a cancelled call"]
pub struct Permit {
    circuit: Option<Held<Shared>>,
    ticket: Ticket,
    started: Instant,
}

/// The probe, promised to a gate that is ready. Goes back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    circuit: Held<Shared>,
    ticket: Ticket,
}

// === impl Permit ===

impl Permit {
    pub(crate) fn new(circuit: Held<Shared>, ticket: Ticket, started: Instant) -> Self {
        Self { circuit: Some(circuit), ticket, started }
    }

    /// Whether this call is the one that decides a half-open circuit.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }
}

impl Settle for Permit {
    fn settle(mut self, outcome: Outcome) {
        if let Some(circuit) = self.circuit.take() {
            circuit.settle(self.ticket, outcome);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(circuit) = self.circuit.take() {
            circuit.cancel(self.ticket, self.started);
        }
    }
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
