use std::{fmt, thread};

use tokio::time::Instant;
use tower_outcome::{Outcome, Settle};

use crate::{
    fast_path::{packed::CallId, shard::StripedRef},
    shared::{Call, Caller, Shared},
};

/// An admitted call, and the guard that records its outcome.
///
/// It starts as abandoned: dropped without an outcome, it records that the caller has gone away. Once a good response head
/// has [arrived](Settle::head_received), the other side has done its part: consecutive failures are reset, and a permit that
/// is dropped records a success, because what the reader does with a good response is not evidence about its sender. The
/// permit of a probe frees the probe's slot however it ends.
#[must_use = "a permit that is dropped is an abandoned call"]
pub struct Permit {
    /// `None`: the outcome is recorded.
    circuit: Option<StripedRef<Shared>>,
    call: Call,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Without a response so far.
    Pending,
    /// The inner service is running: if that drops the permit, it panics.
    Running,
    /// A good response head has arrived.
    Answered,
}

/// A probe that is reserved for a ready gate. Returned when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) circuit: StripedRef<Shared>,
    pub(crate) call: CallId,
}

// === impl Permit ===

impl Permit {
    #[inline(always)]
    pub(crate) fn new(circuit: StripedRef<Shared>, call: Call) -> Self {
        Self {
            circuit: Some(circuit),
            call,
            stage: Stage::Pending,
        }
    }

    /// Whether this call is a probe of a half-open circuit.
    pub const fn is_probe(&self) -> bool {
        self.call.id.is_probe()
    }

    /// Records a success. Other outcomes are recorded by [`Settle::settle`].
    pub fn success(self) {
        self.settle(Outcome::SUCCESS);
    }

    /// Records a failure. Other outcomes are recorded by [`Settle::settle`].
    pub fn failure(self) {
        self.settle(Outcome::FAILURE);
    }

    /// Runs the inner service. If that panics, the call has failed.
    #[inline(always)]
    pub(crate) fn run<T>(&mut self, inner: impl FnOnce() -> T) -> T {
        self.stage = Stage::Running;
        let result = inner();
        self.stage = Stage::Pending;
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
            stage: self.stage,
        }
    }

    #[inline(always)]
    pub(crate) fn record(&mut self, outcome: Outcome) {
        if let Some(circuit) = self.circuit.take() {
            circuit.record(&circuit.shard, &self.call, outcome);
        }
    }

    #[cold]
    fn record_drop(&mut self) {
        match self.stage {
            Stage::Answered => self.record(Outcome::SUCCESS),
            Stage::Running => self.record(Outcome::FAILURE),
            Stage::Pending if self.call.caller == Caller::Manual && thread::panicking() => {
                self.record(Outcome::FAILURE);
            }
            Stage::Pending => {
                if let Some(circuit) = self.circuit.take() {
                    circuit.record_abandoned(&circuit.shard, &self.call);
                }
            }
        }
    }
}

impl Settle for Permit {
    #[inline]
    fn head_received(&mut self) {
        self.stage = Stage::Answered;
        // How long it took is known now, and the time that its reader takes is not added.
        if let Some(circuit) = &self.circuit
            && !circuit.record_head(&self.call)
        {
            self.call.started = None;
        }
    }

    #[inline]
    fn settle(mut self, outcome: Outcome) {
        self.record(outcome);
    }
}

impl Drop for Permit {
    #[inline(always)]
    fn drop(&mut self) {
        if self.circuit.is_some() {
            self.record_drop();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("probe", &self.is_probe())
            .field("started", &self.call.started)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

// === impl Reservation ===

impl Reservation {
    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        self.circuit
            .with_breaker(|breaker| breaker.is_reserved(self.call, now))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.circuit
            .with_breaker(|breaker| breaker.release(self.call));
    }
}
