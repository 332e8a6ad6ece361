use std::{sync::Arc, time::Duration};

use super::shared::Shared;
use crate::{Endpoint, Generation, policy::Estimate};

/// A [`Balance`](super::Balance) at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BalanceSnapshot {
    /// The generation in use; `None` before the source's first answer.
    pub generation: Option<Generation>,
    /// Whether the source is in trouble and the last set stays in use.
    pub degraded: bool,
    /// Whether so many endpoints of a priority and zone are thought ill that it is not believed there.
    pub panics: bool,
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
    /// Whether its health speaks against it: ejected, out for its circuit, or failing its checks.
    pub ejected: bool,
    /// How many requests it has just now.
    pub in_flight: u32,
    /// How many requests it was given.
    pub picks: u64,
    /// How many of those ended in an error, were handed back unsent, or broke off in the body; also answers that asked for
    /// less (`429`).
    pub failures: u64,
    /// Its latency as [`PeakEwma`](crate::policy::PeakEwma) sees it; `None` before the first answer, and with another
    /// policy.
    pub latency: Option<Duration>,
    /// How far it has come in its slow start, of 1.
    pub warmth: f32,
}

// === impl BalanceSnapshot ===

impl BalanceSnapshot {
    pub(super) fn of<S, T, P, C>(shared: &Shared<S, T, P, C>) -> Self {
        let (published, slots) = (shared.current.load(), shared.slots().clone());
        let now = shared.hub.nanos();
        let endpoints = slots.iter().map(|slot| EndpointSnapshot {
            endpoint: slot.endpoint.clone(),
            ready: slot.stats.is_ready(),
            ejected: slot.stats.is_out() || slot.budget.is_out(),
            in_flight: slot.stats.in_flight(),
            picks: slot.stats.picks(),
            failures: slot.stats.failures(),
            latency: match slot.stats.latency(now) {
                Estimate::Known(micros) => Some(Duration::from_secs_f32(micros / 1e6)),
                Estimate::AtLeast(_) => None,
            },
            warmth: slot.stats.warmth(),
        });
        Self {
            generation: published.generation(),
            degraded: published.degraded,
            panics: published.panics,
            waiting: shared.hub.queue.len(),
            endpoints: endpoints.collect(),
        }
    }

    /// How many endpoints are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.ready)
            .count()
    }
}
