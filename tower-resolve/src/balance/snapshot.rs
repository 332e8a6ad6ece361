use std::{sync::Arc, time::Duration};

use super::shared::Shared;
use crate::{Endpoint, Generation, policy::Estimate};

/// The state of a [`Balance`](super::Balance) at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BalanceSnapshot {
    /// The generation in use; `None` before the first answer of the source.
    pub generation: Option<Generation>,
    /// Whether the source is degraded, so that the last set stays in use.
    pub degraded: bool,
    /// Whether a priority and zone is in panic, which means that health is ignored there.
    pub panics: bool,
    /// The number of requests that wait for an endpoint.
    pub waiting: usize,
    /// All endpoints, in order of their ids.
    pub endpoints: Vec<EndpointSnapshot>,
}

/// One endpoint of a [`BalanceSnapshot`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// Its description by the source.
    pub endpoint: Arc<Endpoint>,
    /// Whether its service was ready when it was last polled.
    pub ready: bool,
    /// Whether it is unhealthy: ejected, out because of its circuit, or failing its health checks.
    pub ejected: bool,
    /// The number of requests in flight.
    pub in_flight: u32,
    /// The number of requests that it was given.
    pub picks: u64,
    /// The number of those that ended in an error, were returned unsent, or failed in the body; and of responses that asked
    /// for less traffic (`429`).
    pub failures: u64,
    /// The latency that [`PeakEwma`](crate::policy::PeakEwma) uses; `None` before the first response, and under other
    /// policies.
    pub latency: Option<Duration>,
    /// The progress of its slow start, at most 1.
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

    /// The number of ready endpoints.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.ready)
            .count()
    }
}
