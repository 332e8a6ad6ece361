use std::fmt;

use tokio::time::Instant;

use super::{
    Denial, Standing, Terms,
    sealed::{Decide, Tune},
};
use crate::Quota;

/// A limit of which something else is asked: a [`Cost`], a [`QuotaFn`], or only to count, [`Shadow`].
#[derive(Clone, Copy, Debug)]
pub struct Tuned<L, T> {
    pub(super) limit: L,
    pub(super) tune: T,
}

/// How many tokens a request costs, by a function of the request.
#[derive(Clone, Copy)]
pub struct Cost<F>(F);

/// Which quota a request is held to, by a function of the request; `None` for the limiter's own.
#[derive(Clone, Copy)]
pub struct QuotaFn<F>(F);

/// Refuses nothing, and counts what would have been refused.
#[derive(Clone, Copy, Debug)]
pub struct Shadow;

// === impl Tuned ===

impl<L, T> Tuned<L, T> {
    pub(crate) const fn new(limit: L, tune: T) -> Self {
        Self { limit, tune }
    }
}

impl<Req, L: Decide<Req>, T: Tune<Req>> Decide<Req> for Tuned<L, T> {
    as_inside!();
    type Note = L::Note;

    fn charge(&self, request: &Req, terms: Terms) -> L::Charge {
        self.limit.charge(request, self.tune.tune(request, terms))
    }

    fn note(&self, charge: L::Charge, decision: Result<L::Taken, Denial>) -> L::Note {
        self.limit.note(charge, decision)
    }
}

// === impl Cost ===

impl<F> Cost<F> {
    pub(crate) const fn new(cost: F) -> Self {
        Self(cost)
    }
}

impl<Req, F: Fn(&Req) -> u32> Tune<Req> for Cost<F> {
    fn tune(&self, request: &Req, terms: Terms) -> Terms {
        Terms {
            tokens: (self.0)(request),
            ..terms
        }
    }
}

impl<F> fmt::Debug for Cost<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cost").finish_non_exhaustive()
    }
}

// === impl QuotaFn ===

impl<F> QuotaFn<F> {
    pub(crate) const fn new(plan: F) -> Self {
        Self(plan)
    }
}

impl<Req, F: Fn(&Req) -> Option<Quota>> Tune<Req> for QuotaFn<F> {
    fn tune(&self, request: &Req, terms: Terms) -> Terms {
        Terms {
            quota: (self.0)(request).or(terms.quota),
            ..terms
        }
    }
}

impl<F> fmt::Debug for QuotaFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QuotaFn").finish_non_exhaustive()
    }
}

// === impl Shadow ===

impl<Req> Tune<Req> for Shadow {
    fn tune(&self, _: &Req, terms: Terms) -> Terms {
        Terms {
            shadow: true,
            ..terms
        }
    }
}
