use std::{error::Error, fmt, time::Duration};

use tower_outcome::{Class, Refusal, Refused};

/// The bucket is empty: the request was refused and the inner service not called.
///
/// Its `source()` is the [`Refusal`] (class [`Limited`](Class::Limited), but for the last row), so it is found in any
/// error chain. As HTTP it
/// is a 429, as gRPC `RESOURCE_EXHAUSTED`, both with the time of [`retry_after`](Self::retry_after) where there is one.
/// The code of the refusal is the reason:
///
/// | code | | waiting helps |
/// |---|---|---|
/// | `rate-limited` | the bucket is empty | yes |
/// | `rate-limit-cost` | the request costs more than the bucket ever holds | no |
/// | `rate-limit-key-missing` | it has no key, and must have one ([`OnMissingKey::Deny`](crate::OnMissingKey)) | no |
/// | `rate-limit-unavailable` | the server that decides does not reply (an [adapter](crate::adapter)'s); a 503 | unknown |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted(Refusal);

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub enum Reason {
    /// It would pass after this time, in nanoseconds.
    Wait(u64),
    /// It costs more than the bucket ever holds.
    Cost,
    /// It has no key.
    Keyless,
    /// The place that decides does not reply.
    Unavailable,
}

// === impl Exhausted ===

impl Exhausted {
    #[cold]
    pub(crate) const fn new(reason: Reason) -> Self {
        Self(match reason {
            Reason::Wait(nanos) => RATE_LIMITED.with_retry_after(Some(Duration::from_nanos(nanos))),
            Reason::Cost => COST,
            Reason::Keyless => KEY_MISSING,
            Reason::Unavailable => UNAVAILABLE,
        })
    }

    /// How long until a request would pass, if no other request takes the token first: to the nanosecond, and never zero. Of
    /// several limits that refuse it is the longest wait. `None` if waiting does not help.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after()
    }

    /// Whether the request costs more than the bucket ever holds, so that it can never pass.
    #[must_use]
    pub fn is_cost(&self) -> bool {
        self.0.code() == COST.code()
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.code() {
            code if code == COST.code() => "request costs more than the rate limit ever allows",
            code if code == KEY_MISSING.code() => "rate limit key missing",
            code if code == UNAVAILABLE.code() => "rate limit unavailable",
            _ => "rate limit exhausted",
        })
    }
}

impl Error for Exhausted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl Refused for Exhausted {
    fn refusal(&self) -> &Refusal {
        &self.0
    }
}

const RATE_LIMITED: Refusal = Refusal::new(Class::Limited, "rate-limited");
const COST: Refusal = Refusal::new(Class::Limited, "rate-limit-cost");
const KEY_MISSING: Refusal = Refusal::new(Class::Limited, "rate-limit-key-missing");
const UNAVAILABLE: Refusal = Refusal::new(Class::Unavailable, "rate-limit-unavailable");
