use std::time::Duration;

/// How a request counts in statistics about the service that answered it.
///
/// ```text
///              lowers a success ratio   counts as a consecutive failure
///   Success            no                        resets
///   Failure            yes                       yes
///   Throttled             yes                       no, and does not reset
///   Ignore             not counted               not counted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The service worked; a `404` is a success in this sense.
    Success,
    /// The service failed or could not be reached.
    Failure,
    /// The service works but limits the rate: `429`, `RESOURCE_EXHAUSTED`.
    Throttled,
    /// No statement about the service, for example because a local layer rejected the request.
    Ignore,
}

/// A [`Verdict`] and the delay before a retry that the service asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    verdict: Verdict,
    retry_after: Option<Duration>,
}

/// A guard that records the outcome of one request.
///
/// Layers implement this for a permit, a probe or a counter. A value that is **dropped without [`settle`](Settle::settle) was
/// cancelled**: the caller disconnected, timed out or panicked before the outcome was known. Implement `Drop` to record
/// that.
///
/// ```text
///   sent ──► head_received() ──► settle(..)     good head; the outcome is known at the end of the body
///     │          └────────► dropped        good head; the body was dropped before its end
///     ├───────────────────► settle(..)     the outcome is known from the head or from an error
///     └───────────────────► dropped        the call was dropped before a response
/// ```
pub trait Settle {
    /// A response head was received that is not a failure; the outcome depends on the end of the body.
    ///
    /// Called at most once, before [`settle`](Settle::settle). A stream may last for hours after this, so a guard that limits
    /// the time to the first response stops its timer here. Does nothing by default.
    fn head_received(&mut self) {}

    /// Records the outcome.
    fn settle(self, outcome: Outcome);
}

// === impl Outcome ===

impl Outcome {
    /// [`Verdict::Success`] without a retry hint.
    pub const SUCCESS: Self = Self::new(Verdict::Success);
    /// [`Verdict::Failure`] without a retry hint.
    pub const FAILURE: Self = Self::new(Verdict::Failure);
    /// [`Verdict::Throttled`] without a retry hint.
    pub const THROTTLED: Self = Self::new(Verdict::Throttled);
    /// [`Verdict::Ignore`] without a retry hint.
    pub const IGNORE: Self = Self::new(Verdict::Ignore);

    /// An outcome without a retry hint.
    #[must_use]
    pub const fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            retry_after: None,
        }
    }

    /// Sets the delay before a retry that the service asked for; `None` if it did not.
    #[must_use]
    pub const fn with_retry_after(self, after: Option<Duration>) -> Self {
        Self {
            retry_after: after,
            ..self
        }
    }

    /// The verdict.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The delay before a retry, from `Retry-After` or `grpc-retry-pushback-ms`.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        Self::new(verdict)
    }
}
