use tokio::time::Instant;

use super::{Denial, Standing, Terms, sealed::Decide};
use crate::{Fields, PolicyName};

/// A limit that is told in the `RateLimit` fields of answers; see [`Fields`].
#[derive(Clone, Copy, Debug)]
pub struct Told<L> {
    pub(super) limit: L,
    pub(super) name: PolicyName,
}

// === impl Told ===

impl<L> Told<L> {
    pub(crate) fn new(limit: L, name: PolicyName) -> Self {
        Self { limit, name }
    }
}

impl<Req, L: Decide<Req>> Decide<Req> for Told<L> {
    as_inside!();
    type Note = (L::Note, Fields);

    fn ask(&self, request: &Req, terms: Terms) -> L::Ask {
        self.limit.ask(request, terms)
    }

    fn note(&self, ask: L::Ask, decision: Result<L::Taken, Denial>) -> Self::Note {
        (
            self.limit.note(ask, decision),
            Fields::new(self.name, self.limit.standing(ask, decision)),
        )
    }
}
