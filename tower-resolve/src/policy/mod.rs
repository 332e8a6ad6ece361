//! Which of the eligible endpoints gets the next request.
//!
//! | policy | picks | cost |
//! |---|---|---|
//! | [`LeastRequest`] (default) | of two at random, the one with fewer requests in flight | two random numbers, two loads |
//! | [`RoundRobin`] | one after the other | one shared counter |
//!
//! A policy only picks. Whether an endpoint may be used at all is readiness, and is decided before and after it.

mod least_request;
mod round_robin;

pub use self::{least_request::LeastRequest, round_robin::RoundRobin};
use crate::Endpoint;

/// Picks among candidates.
pub trait Policy: Send + Sync + 'static {
    /// What is computed once for each set of candidates instead of once a request: a ring, a schedule, or `()`.
    type Table: Send + Sync + 'static;

    /// Computes the table. Called by the driver when the set of eligible endpoints changes; there is at least one.
    fn table<C: Candidates>(&self, candidates: &C) -> Self::Table;

    /// Picks the index of a candidate. What is out of range wraps around.
    ///
    /// Called once a request, and again with the next [`step`](Turn::step) for each pick that turned out not to be
    /// ready. It must not block, and should cost the same for any number of candidates.
    fn pick<C: Candidates>(&self, table: &Self::Table, candidates: &C, turn: &Turn) -> usize;
}

/// The endpoints that a [`Policy`] may pick: in the order of their ids, at least one.
pub trait Candidates {
    /// How many there are.
    fn count(&self) -> usize;

    /// What is known of one.
    fn endpoint(&self, index: usize) -> &Endpoint;

    /// How many requests one has in flight, sent by this balance and its clones.
    fn in_flight(&self, index: usize) -> u32;
}

/// One request's turn to be given an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    step: usize,
}

// === impl Turn ===

impl Turn {
    pub(crate) const fn new(step: usize) -> Self {
        Self { step }
    }

    /// 0 for the first pick of a request, 1 when that one was not ready, and so on.
    #[must_use]
    pub const fn step(&self) -> usize {
        self.step
    }
}

#[cfg(test)]
mod testing {
    use super::*;

    /// Candidates that are nothing but their loads.
    pub(super) struct Loads<'a>(pub(super) &'a [u32]);

    impl Candidates for Loads<'_> {
        fn count(&self) -> usize {
            self.0.len()
        }

        fn endpoint(&self, _: usize) -> &Endpoint {
            unimplemented!("these policies do not look at endpoints")
        }

        fn in_flight(&self, index: usize) -> u32 {
            self.0[index]
        }
    }
}
