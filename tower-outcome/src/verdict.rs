use std::time::Duration;

/// How a request counts for whoever keeps score.
///
/// ```text
///              lowers a success ratio   counts as a failure in a row
///   Success            no                        resets
///   Failure            yes                       yes
///   Soft               yes                       no, and does not reset
///   Ignore             not counted               not counted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The other side did its job; a `404` is a success in this sense.
    Success,
    /// The other side failed, or could not be reached.
    Failure,
    /// The other side is well but asks for less: `429`, `RESOURCE_EXHAUSTED`.
    Soft,
    /// Says nothing about the other side; a refusal of our own, for example.
    Ignore,
}

/// A [`Verdict`], and when the other side said to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    verdict: Verdict,
    retry_after: Option<Duration>,
}

/// Is told the outcome of the one request it stands for.
///
/// This is what a layer implements for its guard: a permit, a probe, a counter. The contract is that a value **dropped
/// without [`settle`](Settle::settle) was cancelled**: the caller went away, timed out, or panicked before the answer
/// was known. So cancellation needs no code of its own; it is what `Drop` finds.
///
/// ```text
///   sent ──► answered() ──► settle(..)     a good head, and the outcome at the end of its body
///     │          └────────► dropped        a good head, and its reader went away
///     ├───────────────────► settle(..)     the outcome is known at the head, or from an error
///     └───────────────────► dropped        nobody waited for an answer
/// ```
pub trait Settle {
    /// A head has come that is not bad, and the rest is on its way; only the end will tell the outcome.
    ///
    /// Called at most once, and before the outcome. A stream may go on for hours from here: whoever gives an answer a time
    /// to come in learns that it has come. Default: does nothing.
    fn answered(&mut self) {}

    /// Takes the outcome. Called at most once, and then the value is gone.
    fn settle(self, outcome: Outcome);
}

// === impl Outcome ===

impl Outcome {
    /// [`Verdict::Success`] without a hint.
    pub const SUCCESS: Self = Self::new(Verdict::Success);
    /// [`Verdict::Failure`] without a hint.
    pub const FAILURE: Self = Self::new(Verdict::Failure);
    /// [`Verdict::Soft`] without a hint.
    pub const SOFT: Self = Self::new(Verdict::Soft);
    /// [`Verdict::Ignore`] without a hint.
    pub const IGNORE: Self = Self::new(Verdict::Ignore);

    /// An outcome without a hint.
    #[must_use]
    pub const fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            retry_after: None,
        }
    }

    /// Adds what the other side said about when to come back; `None` leaves the outcome without a hint.
    #[must_use]
    pub const fn with_retry_after(self, after: Option<Duration>) -> Self {
        Self {
            retry_after: after,
            ..self
        }
    }

    /// How it counts.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// When the other side said to come back: `Retry-After` or `grpc-retry-pushback-ms`.
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
