use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use http::HeaderValue;
use tower_outcome::body::{End, OnEnd};

use crate::{Endpoint, EndpointId};

/// One endpoint's place in a published set: what is known of it, what it did, and its service.
#[derive(Debug)]
pub(super) struct Slot<S> {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) epoch: Option<HeaderValue>,
    pub(super) stats: Arc<Stats>,
    pub(super) service: S,
}

/// What one instance did so far. Outlives changes of weight or phase, and rebuilt services.
#[derive(Debug)]
pub(super) struct Stats {
    pub(super) id: EndpointId,
    ready: AtomicBool,
    in_flight: AtomicU32,
    picks: AtomicU64,
    failures: AtomicU64,
}

/// One request's place among those in flight to an endpoint, given up by being dropped.
///
/// Rides in the response body where the balance was built with [`http`](super::BalanceBuilder::http).
#[derive(Debug)]
pub struct InFlight(Arc<Stats>);

// === impl Slot ===

impl<S> Slot<S> {
    pub(super) fn new(endpoint: Arc<Endpoint>, stats: Arc<Stats>, service: S) -> Self {
        let epoch = endpoint.epoch().map(|epoch| HeaderValue::from(epoch.get()));
        Self { endpoint, epoch, stats, service }
    }
}

// === impl Stats ===

impl Stats {
    /// Of an instance that has not been found ready yet.
    pub(super) fn new(id: EndpointId) -> Self {
        Self {
            id,
            ready: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            picks: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Acquire)
    }

    pub(super) fn be_ready(&self) {
        self.ready.store(true, Release);
    }

    /// Returns whether it was ready until now: of many who notice, one is the first.
    pub(super) fn be_unready(&self) -> bool {
        self.ready.swap(false, AcqRel)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    pub(super) fn picks(&self) -> u64 {
        self.picks.load(Relaxed)
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}

// === impl InFlight ===

impl InFlight {
    pub(super) fn new(stats: Arc<Stats>) -> Self {
        stats.in_flight.fetch_add(1, Relaxed);
        stats.picks.fetch_add(1, Relaxed);
        Self(stats)
    }

    pub(super) fn stats(&self) -> &Arc<Stats> {
        &self.0
    }

    /// Counts a failure and gives the place up.
    pub(super) fn failed(self) {
        self.0.failures.fetch_add(1, Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl OnEnd for InFlight {
    fn on_end(self, end: End<'_>) {
        if matches!(end, End::Broken(_)) {
            self.failed();
        }
    }
}
