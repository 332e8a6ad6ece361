use std::sync::Arc;

use super::shared::Shared;
use crate::{Endpoint, Generation, policy::Policy};

/// A [`Balance`](super::Balance) at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BalanceSnapshot {
    /// The generation in use; `None` before the source's first answer.
    pub generation: Option<Generation>,
    /// Whether the source is in trouble and the last set stays in use.
    pub degraded: bool,
    /// How many requests wait for an endpoint.
    pub waiting: usize,
    /// All endpoints, in the order of their ids.
    pub endpoints: Vec<EndpointSnapshot>,
}

/// One endpoint of a [`BalanceSnapshot`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// What its source tells of it.
    pub endpoint: Arc<Endpoint>,
    /// Whether its service said it was ready when it was asked last.
    pub ready: bool,
    /// How many requests it has just now.
    pub in_flight: u32,
    /// How many requests it was given.
    pub picks: u64,
    /// How many of those ended in an error, were handed back unsent, or broke off in the body.
    pub failures: u64,
}

// === impl BalanceSnapshot ===

impl BalanceSnapshot {
    pub(super) fn of<S, P: Policy>(shared: &Shared<S, P>) -> Self {
        let published = shared.current.load();
        let endpoints = published.all.iter().map(|slot| EndpointSnapshot {
            endpoint: slot.endpoint.clone(),
            ready: slot.stats.is_ready(),
            in_flight: slot.stats.in_flight(),
            picks: slot.stats.picks(),
            failures: slot.stats.failures(),
        });
        Self {
            generation: published.generation(),
            degraded: published.degraded,
            waiting: shared.waiting(),
            endpoints: endpoints.collect(),
        }
    }

    /// How many endpoints are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.ready).count()
    }
}
