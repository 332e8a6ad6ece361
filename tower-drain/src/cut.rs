//! Cuts requests when the drain is over.

use std::sync::Arc;

use tower_outcome::{Class, Refusal};

use crate::{bell::Heard, drain::Shared, phase::Phase};

/// Whether the drain is over for a request.
///
/// A request that completes at once checks it with one atomic load. Only a request that has to wait registers.
#[derive(Debug)]
pub(crate) struct Cut {
    /// `None`: the request is not cut.
    shared: Option<Arc<Shared>>,
}

// === impl Cut ===

impl Cut {
    /// Never fires for a drain that is over already: a request that begins then is neither waited for nor cut.
    pub(crate) fn at_the_end_of(shared: Arc<Shared>) -> Self {
        let shared = (shared.told() != Phase::Done).then_some(shared);
        Self { shared }
    }

    pub(crate) const fn never() -> Self {
        Self { shared: None }
    }

    pub(crate) fn is_due(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.told() == Phase::Done)
    }

    /// Ready when the drain is over. An end before the first poll is not missed.
    pub(crate) fn heard(&self) -> Option<Heard> {
        let shared = self.shared.as_ref()?;
        Some(shared.requests_done.heard())
    }
}

/// The error of a request that was cut.
pub(crate) const CUT: Refusal = Refusal::new(Class::Unavailable, "drain-over");
