use tokio::time::Instant;

use super::{Denial, Standing, Terms, sealed::Decide};
use crate::{PolicyName, RateLimitHeaders};

/// A limit that is reported in the `RateLimit` fields of responses; see [`RateLimitHeaders`].
#[derive(Clone, Copy, Debug)]
pub struct WithHeaders<L> {
    pub(super) limit: L,
    pub(super) name: PolicyName,
}

// === impl WithHeaders ===

impl<L> WithHeaders<L> {
    pub(crate) fn new(limit: L, name: PolicyName) -> Self {
        Self { limit, name }
    }
}

impl<Req, L: Decide<Req>> Decide<Req> for WithHeaders<L> {
    as_inside!();
    type Note = (L::Note, RateLimitHeaders);

    fn charge(&self, request: &Req, terms: Terms) -> L::Charge {
        self.limit.charge(request, terms)
    }

    fn note(&self, charge: L::Charge, decision: Result<L::Taken, Denial>) -> Self::Note {
        (
            self.limit.note(charge, decision),
            RateLimitHeaders::new(self.name, self.limit.standing(charge, decision)),
        )
    }
}
