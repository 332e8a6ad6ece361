use std::{marker::PhantomData, num::NonZeroU32, time::Duration};

use futures_core::Stream;
use tower_outcome::classify::{AtEnd, AtHead};
use tower_service::Service;

use super::{Balance, Driver, shared::Limits};
use crate::{
    Endpoint, Update,
    backoff::FOR_EVER,
    policy::{LeastRequest, Policy},
};

/// The knobs of a [`Balance`]. Made by [`Balance::builder`].
#[derive(Clone, Debug)]
pub struct BalanceBuilder<P = LeastRequest, K = AtHead> {
    policy: P,
    limits: Limits,
    scope: PhantomData<fn() -> K>,
}

// === impl BalanceBuilder ===

impl BalanceBuilder {
    pub(super) const fn new() -> Self {
        Self { policy: LeastRequest, limits: DEFAULTS, scope: PhantomData }
    }
}

impl<P, K> BalanceBuilder<P, K> {
    /// Which of the eligible endpoints gets a request. Default: [`LeastRequest`], which evens out slow endpoints.
    #[must_use]
    pub fn policy<Q: Policy>(self, policy: Q) -> BalanceBuilder<Q, K> {
        BalanceBuilder { policy, limits: self.limits, scope: PhantomData }
    }

    /// For HTTP: a request is in flight until the **end of its response's body** (default: until the response), and the
    /// endpoint's epoch goes along in the header [`LEASE_EPOCH`](tower_outcome::header::LEASE_EPOCH), by which a replica
    /// refuses what was meant for another instance. A value of the client's own is overwritten, or removed where the
    /// endpoint has no epoch.
    #[must_use]
    pub fn http(self) -> BalanceBuilder<P, AtEnd> {
        BalanceBuilder { policy: self.policy, limits: self.limits, scope: PhantomData }
    }

    /// How many requests may wait for an endpoint at once; one more is refused. Default: 1 024, which is what a second
    /// of a busy server holds, in a few hundred kilobytes.
    #[must_use]
    pub fn max_waiting(mut self, requests: usize) -> Self {
        self.limits.max_waiting = requests;
        self
    }

    /// How long a request may wait for an endpoint, all its waits together. Default: 1 s: long enough for a failover
    /// between leased replicas, short enough for the caller to do something else.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.limits.max_wait = wait.min(FOR_EVER);
        self
    }

    /// How many endpoints one request may be given to, as long as each hands it back unsent. Default: 3; where three
    /// refuse, the fourth hardly helps.
    #[must_use]
    pub fn max_endpoints(mut self, endpoints: NonZeroU32) -> Self {
        self.limits.max_endpoints = endpoints.get();
        self
    }

    /// The balance, and the driver that must be spawned for it to do anything.
    ///
    /// `make` makes the service of an endpoint: once for each instance, and again when its `poll_ready` has failed. This
    /// is the place for what each endpoint has for itself: its circuit, its limit, its pool. It should only build, not
    /// connect; the service connects when the driver asks whether it is ready.
    ///
    /// Readiness must be the endpoint's and not a single clone's: each request asks a fresh clone, once. (A service that
    /// needs two polls before it says `Ready`, on each clone, would never be picked.)
    #[expect(clippy::type_complexity, reason = "the two are a pair, and each is named where it is kept")]
    pub fn build<S, Req, U, M>(self, updates: U, make: M) -> (Balance<S, Req, P, K>, Driver<S, Req, P, U, M>)
    where
        S: Service<Req> + Clone,
        U: Stream<Item = Update>,
        M: FnMut(&Endpoint) -> S,
        P: Policy,
    {
        let (balance, shared, looks) = Balance::new(self.policy, self.limits);
        (balance, Driver::new(shared, looks, updates, make))
    }
}

const DEFAULTS: Limits = Limits { max_waiting: 1024, max_wait: Duration::from_secs(1), max_endpoints: 3 };
