use std::{error::Error, fmt, time::Duration};

use tower_outcome::{Class, Refusal, Refused};

/// The bucket is empty: the request was refused and the inner service not called.
///
/// Its `source()` is the [`Refusal`] (class [`Limited`](Class::Limited), code `rate-limited`), so it is found in any
/// error chain. Told as HTTP it is a 429, as gRPC `RESOURCE_EXHAUSTED`, both with the time of
/// [`retry_after`](Self::retry_after).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted(Refusal);

// === impl Exhausted ===

impl Exhausted {
    /// Refused for so many nanoseconds.
    #[cold]
    pub(crate) const fn until(wait: u64) -> Self {
        let wait = Some(Duration::from_nanos(wait));
        Self(Refusal::new(Class::Limited, "rate-limited").with_retry_after(wait))
    }

    /// Refused for want of a key ([`OnMissingKey::Deny`](crate::OnMissingKey)); code `rate-limit-key-missing`.
    pub(crate) const fn keyless() -> Self {
        Self(Refusal::new(Class::Limited, "rate-limit-key-missing"))
    }

    /// How long until a request would pass, if nobody else takes the token first: to the nanosecond, and never zero.
    /// `None` if waiting does not help, because the request has no key.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after()
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.retry_after().is_some() { "rate limit exhausted" } else { "rate limit key missing" })
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
