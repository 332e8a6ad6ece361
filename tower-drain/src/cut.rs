//! The end of a drain, for the requests that it has waited for.

use std::sync::Arc;

use tower_outcome::{Class, Refusal};

use crate::{bell::Heard, drain::Shared, phase::Phase};

/// Whether the drain is over for a request.
///
/// One that is answered at once asks for it with one atomic load. Only one that has to wait listens.
#[derive(Debug)]
pub(crate) struct Cut {
    /// `None`: there is nothing to cut.
    shared: Option<Arc<Shared>>,
}

// === impl Cut ===

impl Cut {
    /// Not of a drain that is over already: what begins then is waited for by nobody, and cut by nobody.
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

    /// Ready when it is due, if that is to come. An end before the first poll is not missed.
    pub(crate) fn heard(&self) -> Option<Heard> {
        let shared = self.shared.as_ref()?;
        Some(shared.requests_done.heard())
    }
}

/// The end of what was cut.
pub(crate) const CUT: Refusal = Refusal::new(Class::Unavailable, "drain-over");
