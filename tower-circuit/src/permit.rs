use std::fmt;

use tokio::time::Instant;
use tower_outcome::{Outcome, Settle};

use crate::{
    fast_path::{packed::CallId, shard::StripedRef},
    shared::{Call, Caller, Shared},
};

/// An admitted call, and the guard that records its outcome.
///
/// It starts as abandoned: dropped without an outcome, it records that the caller has gone away. Once a good response head
/// has [arrived](Settle::answered), the other side has done its part: consecutive failures are reset, and a permit that is
/// dropped records a success, because what the reader does with a good response is not evidence about its sender. The permit
/// of a probe frees the probe's slot however it ends.
#[must_use = "a permit that is dropped is an abandoned call"]
pub struct Permit {
    raw: RawPermit,
    answered: bool,
}

/// A permit before there is a response.
pub(crate) struct RawPermit {
    /// `None`: the outcome is recorded.
    circuit: Option<StripedRef<Shared>>,
    call: Call,
    /// The inner service is running: if that drops this, it panics.
    running: bool,
}

/// A probe that is reserved for a ready gate. Returned when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    circuit: StripedRef<Shared>,
    call: CallId,
}

// === impl Permit ===

impl Permit {
    /// Whether this call is a probe of a half-open circuit.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.raw.call.id.is_probe()
    }

    /// Records a success. Other outcomes are recorded by [`Settle::settle`].
    pub fn success(self) {
        self.settle(Outcome::SUCCESS);
    }

    /// Records a failure. Other outcomes are recorded by [`Settle::settle`].
    pub fn failure(self) {
        self.settle(Outcome::FAILURE);
    }
}

impl From<RawPermit> for Permit {
    fn from(raw: RawPermit) -> Self {
        Self {
            raw,
            answered: false,
        }
    }
}

impl Settle for Permit {
    fn head_received(&mut self) {
        self.answered = true;
        self.raw.answered();
    }

    #[inline]
    fn settle(mut self, outcome: Outcome) {
        self.raw.settle(outcome);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.answered {
            self.raw.settle(Outcome::SUCCESS);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("probe", &self.is_probe())
            .field("started", &self.raw.call.started)
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

// === impl RawPermit ===

impl RawPermit {
    #[inline(always)]
    pub(crate) fn new(circuit: StripedRef<Shared>, call: Call) -> Self {
        Self {
            circuit: Some(circuit),
            call,
            running: false,
        }
    }

    /// Runs the inner service. If that panics, the call has failed.
    #[inline(always)]
    pub(crate) fn run<T>(&mut self, inner: impl FnOnce() -> T) -> T {
        self.running = true;
        let result = inner();
        self.running = false;
        result
    }

    /// The call is pending: its time is measured from now on, if it was not before.
    #[inline(always)]
    pub(crate) fn start(&mut self) {
        if self.call.started.is_none() {
            self.call.started = Some(Instant::now());
        }
    }

    /// Moves out, and leaves one behind that records nothing.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            circuit: self.circuit.take(),
            call: self.call,
            running: false,
        }
    }

    #[inline(always)]
    pub(crate) fn settle(&mut self, outcome: Outcome) {
        if let Some(circuit) = self.circuit.take() {
            circuit.record(&circuit.shard, &self.call, outcome);
        }
    }

    #[cold]
    fn record_drop(&mut self) {
        let by_hand = self.call.caller == Caller::Manual;
        if self.running || by_hand && std::thread::panicking() {
            self.settle(Outcome::FAILURE);
        } else if let Some(circuit) = self.circuit.take() {
            circuit.record_abandoned(&circuit.shard, &self.call);
        }
    }

    /// A good response head has arrived. How long it took is known now, and the time its reader takes is not added.
    #[inline]
    fn answered(&mut self) {
        if let Some(circuit) = &self.circuit
            && !circuit.record_head(&self.call)
        {
            self.call.started = None;
        }
    }
}

impl Drop for RawPermit {
    #[inline(always)]
    fn drop(&mut self) {
        if self.circuit.is_some() {
            self.record_drop();
        }
    }
}

// === impl Reservation ===

impl Reservation {
    pub(crate) fn new(circuit: StripedRef<Shared>, call: CallId) -> Self {
        Self { circuit, call }
    }

    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        self.circuit
            .with_breaker(|breaker| breaker.is_reserved(self.call, now))
    }

    pub(crate) fn call(&self) -> CallId {
        self.call
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.circuit
            .with_breaker(|breaker| breaker.release(self.call));
    }
}
