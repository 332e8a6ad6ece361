use std::{error::Error, fmt, num::NonZeroU32, time::Duration};

use tower_outcome::{BoxError, Class, Refusal, Refused};

use crate::Generation;

/// No endpoint could take the request: none is known, or none became ready in time.
///
/// Rendered as HTTP 503 or gRPC `UNAVAILABLE`. Nothing was sent.
#[derive(Clone, Debug)]
pub struct NoEndpoints {
    refusal: Refusal,
    generation: Option<Generation>,
    counts: Counts,
}

/// The maximum number of endpoints returned the request unsent.
///
/// Rendered as HTTP 503 and gRPC `UNAVAILABLE`, and not as 502: no upstream has seen a byte of the request and none
/// responded, so a retry is safe for any method. 502 is for an upstream that failed during a request.
#[derive(Debug)]
pub struct Unreachable {
    refusal: Refusal,
    tried: NonZeroU32,
    cause: BoxError,
}

/// The driver of the balance is gone, so it will never follow its topology again. Terminal.
#[derive(Clone, Debug)]
pub struct Stopped {
    refusal: Refusal,
}

/// A source answers with an older generation than before: it lags behind, or it was restored and counts from one again. A
/// source that knows of a restore should use another [`SourceId`](crate::SourceId).
#[derive(Clone, Copy, Debug)]
pub(crate) struct WentBack {
    known: u64,
    seen: u64,
}

/// The numbers of endpoints of a balance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) known: usize,
    pub(crate) ready: usize,
    pub(crate) starting: usize,
    pub(crate) draining: usize,
    pub(crate) fenced: usize,
    pub(crate) ejected: usize,
}

// === impl NoEndpoints ===

impl NoEndpoints {
    pub(crate) const fn new(generation: Option<Generation>, counts: Counts) -> Self {
        Self {
            refusal: Refusal::new(Class::Unavailable, "no-endpoints"),
            generation,
            counts,
        }
    }

    /// The generation at the time of the decision; `None` if the source has not answered yet.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// The number of known endpoints.
    #[must_use]
    pub fn known(&self) -> usize {
        self.counts.known
    }

    /// The number of them that are ready and healthy.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.counts.ready
    }

    /// The number of them that are starting, as reported by the source.
    #[must_use]
    pub fn starting(&self) -> usize {
        self.counts.starting
    }

    /// The number of them that are draining, as reported by the source.
    #[must_use]
    pub fn draining(&self) -> usize {
        self.counts.draining
    }

    /// The number of them that are fenced, as reported by the source.
    #[must_use]
    pub fn fenced(&self) -> usize {
        self.counts.fenced
    }

    /// The number of endpoints that are meant to serve and are out because of their health: ejected, out because of their
    /// circuit, or failing their health checks.
    #[must_use]
    pub fn ejected(&self) -> usize {
        self.counts.ejected
    }

    /// When to retry: not known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for NoEndpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            known,
            ready,
            starting,
            draining,
            fenced,
            ejected,
        } = self.counts;
        write!(
            f,
            "no healthy replica ({known} known: {ready} ready, {starting} starting, "
        )?;
        write!(
            f,
            "{draining} draining, {ejected} ejected, {fenced} fenced)"
        )
    }
}

impl Error for NoEndpoints {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for NoEndpoints {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

// === impl Unreachable ===

impl Unreachable {
    pub(crate) fn new(tried: NonZeroU32, cause: BoxError) -> Self {
        let hint = Refusal::find(&*cause).and_then(Refusal::retry_after);
        let refusal =
            Refusal::new(Class::Unavailable, "no-endpoint-reachable").with_retry_after(hint);
        Self {
            refusal,
            tried,
            cause,
        }
    }

    /// The number of endpoints that the request was given to.
    #[must_use]
    pub fn tried(&self) -> NonZeroU32 {
        self.tried
    }

    /// The error with which the last of them returned it. (`source()` is the [`Refusal`](tower_outcome::Refusal), by which
    /// layers recognize it.)
    #[must_use]
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.cause
    }

    /// When to retry, if the last endpoint sent it.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no healthy replica could be reached ({} tried)",
            self.tried
        )
    }
}

impl Error for Unreachable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for Unreachable {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

// === impl Stopped ===

impl Stopped {
    pub(crate) const fn new() -> Self {
        Self {
            refusal: Refusal::new(Class::Unavailable, "balance-stopped"),
        }
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the driver of the balance is gone")
    }
}

impl Error for Stopped {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for Stopped {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

// === impl WentBack ===

impl WentBack {
    pub(crate) const fn new(known: Generation, seen: Generation) -> Self {
        Self {
            known: known.value,
            seen: seen.value,
        }
    }
}

impl fmt::Display for WentBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { known, seen } = self;
        write!(
            f,
            "the source answers with generation {seen} after it had answered with {known}: it lags behind, or counts from one again"
        )
    }
}

impl Error for WentBack {}

/// The number of consecutive answers with an older generation that make a source degraded. One or two are a replica that
/// lags behind.
pub(crate) const OLDER_IN_A_ROW: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_found_in_the_chain_and_carry_the_numbers() {
        let counts = Counts {
            known: 3,
            draining: 1,
            ..Counts::default()
        };
        let error: BoxError = NoEndpoints::new(None, counts).into();
        assert_eq!(Refusal::find(&*error).unwrap().code(), "no-endpoints");
        assert_eq!(
            error.to_string(),
            "no healthy replica (3 known: 0 ready, 0 starting, 1 draining, 0 ejected, 0 fenced)"
        );
    }

    #[test]
    fn the_last_endpoints_hint_is_passed_on() {
        let hint = Some(Duration::from_secs(7));
        let open = Refusal::new(Class::Unavailable, "circuit-open").with_retry_after(hint);
        let error = Unreachable::new(NonZeroU32::MIN, open.into());
        assert_eq!(error.retry_after(), hint);
        assert_eq!(
            Refusal::find(&error).unwrap().code(),
            "no-endpoint-reachable"
        );
    }
}
