use std::{error::Error, fmt, num::NonZeroU32, time::Duration};

use tower_outcome::{BoxError, Class, Refusal, Refused};

use crate::Generation;

/// No endpoint could take the request: none is known, or none became ready in time.
///
/// Told as HTTP 503 or gRPC `UNAVAILABLE`. Nothing was sent.
#[derive(Clone, Debug)]
pub struct NoEndpoints {
    refusal: Refusal,
    generation: Option<Generation>,
    counts: Counts,
}

/// As many endpoints as allowed handed the request back unsent.
///
/// Told as HTTP 503 and gRPC `UNAVAILABLE`, not as 502: no upstream saw a byte of the request and none answered, so
/// coming back later is safe whatever the method is. 502 stays the word for an upstream that broke in the middle.
#[derive(Debug)]
pub struct Unreachable {
    refusal: Refusal,
    tried: NonZeroU32,
    cause: BoxError,
}

/// The balance's driver is gone, so it will never follow its topology again. Terminal.
#[derive(Clone, Debug)]
pub struct Stopped {
    refusal: Refusal,
}

/// A source answers with an older generation than it did before: it lags behind, or it was restored and counts from one
/// again. One that knows that should take another [`SourceId`](crate::SourceId).
#[derive(Clone, Copy, Debug)]
pub(crate) struct WentBack {
    known: u64,
    seen: u64,
}

/// The endpoints of a balance, counted.
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

    /// The generation that this was decided on; `None` when the source has not answered yet.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// How many endpoints are known.
    #[must_use]
    pub fn known(&self) -> usize {
        self.counts.known
    }

    /// How many of them are ready and well.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.counts.ready
    }

    /// How many of them are starting, as their source tells it.
    #[must_use]
    pub fn starting(&self) -> usize {
        self.counts.starting
    }

    /// How many of them are draining, as their source tells it.
    #[must_use]
    pub fn draining(&self) -> usize {
        self.counts.draining
    }

    /// How many of them are fenced, as their source tells it.
    #[must_use]
    pub fn fenced(&self) -> usize {
        self.counts.fenced
    }

    /// How many of those that are meant to serve are out for their health: ejected, out for their circuit, or failing their
    /// checks.
    #[must_use]
    pub fn ejected(&self) -> usize {
        self.counts.ejected
    }

    /// When to come back: not known.
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

    /// How many endpoints the request was given to.
    #[must_use]
    pub fn tried(&self) -> NonZeroU32 {
        self.tried
    }

    /// Why the last of them handed it back. (`source()` is the refusal, by which layers know it.)
    #[must_use]
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.cause
    }

    /// When to come back, if the last endpoint said so.
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

/// So many answers in a row with an older generation are trouble. One or two are a replica that lags behind.
pub(crate) const OLDER_IN_A_ROW: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_found_in_the_chain_and_say_what_is_known() {
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
