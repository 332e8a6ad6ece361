use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures_core::Stream;
use tower_outcome::{
    EjectionBudget,
    classify::{AnyErr, Auto},
};
use tower_service::Service;

use super::{Balance, Driver, Stamp, Subset, shared::Limits};
use crate::{
    Endpoint, Update,
    backoff::FOR_EVER,
    health::{ActiveCheck, Outlier},
    policy::{LeastRequest, Policy},
};

/// The settings of a [`Balance`]. Created by [`Balance::builder`].
#[derive(Debug)]
pub struct BalanceBuilder<P = LeastRequest, C = AnyErr> {
    policy: P,
    classify: C,
    limits: Limits,
    pub(super) follows: Follows,
}

/// Settings that only the driver needs.
#[derive(Debug)]
pub(super) struct Follows {
    pub(super) zone: Option<Arc<str>>,
    pub(super) subset: Option<Subset>,
    pub(super) slow_start: Duration,
    pub(super) outlier: Option<Outlier>,
    pub(super) check: Option<ActiveCheck>,
    pub(super) panic_below: u8,
}

// === impl BalanceBuilder ===

impl BalanceBuilder {
    pub(super) const fn new() -> Self {
        Self {
            policy: LeastRequest,
            classify: AnyErr,
            limits: DEFAULTS,
            follows: Follows::NOTHING,
        }
    }
}

impl<P, C> BalanceBuilder<P, C> {
    /// The policy that picks an endpoint for each request. Default: [`LeastRequest`], which evens out slow endpoints.
    #[must_use]
    pub fn policy<Q>(self, policy: Q) -> BalanceBuilder<Q, C> {
        let Self {
            classify,
            limits,
            follows,
            ..
        } = self;
        BalanceBuilder {
            policy,
            classify,
            limits,
            follows,
        }
    }

    /// For HTTP and gRPC: [`classify`](Self::classify) with [`Auto`]. A request is then in flight until the **end of the
    /// response body** (default: until the response), 5xx and the gRPC codes that mean a failing server are failures, and
    /// the epoch of the endpoint is sent in the header [`LEASE_EPOCH`](tower_outcome::header::LEASE_EPOCH), so that a
    /// replica can reject requests that are meant for another instance. A value that the client has set is overwritten, or
    /// removed if the endpoint has no epoch.
    #[must_use]
    pub fn http(self) -> BalanceBuilder<P, Auto> {
        self.classify(Auto::new())
    }

    /// How responses are classified. Default: [`AnyErr`], any error that is not a local rejection.
    ///
    /// Failures raise the cost of an endpoint for the policies that compare loads (see [`policy`](crate::policy)), and are
    /// the input of [`outlier`](Self::outlier). The classification also decides which requests get the epoch header: see
    /// [`Stamp`].
    #[must_use]
    pub fn classify<D>(self, classify: D) -> BalanceBuilder<P, D> {
        let Self {
            policy,
            limits,
            follows,
            ..
        } = self;
        BalanceBuilder {
            policy,
            classify,
            limits,
            follows,
        }
    }

    /// The maximum number of requests that wait for an endpoint; further requests are rejected. Default: 1 024, about one
    /// second of a busy server, in a few hundred kilobytes. Waiting requests are served in order of arrival.
    ///
    /// With 0 a request that finds no endpoint is rejected at once. To bound the cost of that with many endpoints, it tries
    /// at most 128 endpoints that are [full](Self::max_in_flight), starting at a random one.
    #[must_use]
    pub fn max_waiting(mut self, requests: usize) -> Self {
        self.limits.max_waiting = requests;
        self
    }

    /// How long a request may wait for an endpoint, the sum of all its waits. Default: 1 s, which is long enough for a
    /// failover between leased replicas, and short enough for the caller to react.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.limits.max_wait = wait.min(FOR_EVER);
        self
    }

    /// The maximum number of endpoints that one request is given to, as long as each returns it unsent. Default: 3; after
    /// three rejections a fourth endpoint rarely helps.
    #[must_use]
    pub fn max_endpoints(mut self, endpoints: NonZeroU32) -> Self {
        self.limits.max_endpoints = endpoints.get();
        self
    }

    /// The maximum number of requests in flight for each endpoint, for HTTP until the end of the body. A full endpoint is
    /// skipped; if all are full, requests wait as usual, and are then rejected with 503. Default: no limit.
    #[must_use]
    pub fn max_in_flight(mut self, requests: NonZeroU32) -> Self {
        self.limits.max_in_flight = requests.get();
        self
    }

    /// The zone of this client: endpoints of the same zone are preferred. Default: unknown, and zones are ignored.
    ///
    /// The zone gets all requests while at least 5 of 7 of its endpoints are usable. Below that its share falls in
    /// proportion and the rest goes to the other zones, so that the remaining endpoints are not overloaded. (This is Envoy's
    /// rule for priorities, with its overprovisioning factor of 1.4; [priorities](Endpoint::with_priority) spill over in the
    /// same way.)
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.follows.zone = Some(zone.into());
        self
    }

    /// Uses only some of the endpoints. Default: all.
    #[must_use]
    pub fn subset(mut self, subset: Subset) -> Self {
        self.follows.subset = Some(subset);
        self
    }

    /// How long a new endpoint takes to reach its full share, starting at a tenth, so that it can fill caches and compile
    /// code. Default: none.
    ///
    /// Slow start is a factor of the weight of the endpoint under every policy; under policies that pick by a key, keys move
    /// to the new endpoint one by one. It begins when the endpoint is eligible for the first time: its phase is
    /// [`Ready`](crate::Phase::Ready), its service is ready, and it is healthy. An endpoint that was restarted under its id
    /// (with another epoch or address) is new, and one that was ejected starts again. Endpoints that become eligible within
    /// a tenth of this time after the very first one get their full share at once, because then all endpoints are new.
    #[must_use]
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.follows.slow_start = window.min(FOR_EVER);
        self
    }

    /// Ejects endpoints by the outcomes of their requests. Default: off.
    #[must_use]
    pub fn outlier(mut self, outlier: Outlier) -> Self {
        self.follows.outlier = Some(outlier);
        self
    }

    /// Checks endpoints periodically. Default: off.
    #[must_use]
    pub fn active_check(mut self, check: ActiveCheck) -> Self {
        self.follows.check = Some(check);
        self
    }

    /// The panic threshold: if fewer than this percentage of the endpoints of a priority and zone are healthy, and the
    /// remaining priorities and zones cannot take the load, health is ignored there; 0 disables it. Not used with fewer than
    /// five endpoints in total. Default: 50, as in Envoy.
    ///
    /// Only endpoints in phase [`Ready`](crate::Phase::Ready) count. Unhealthy are those with failed health checks, those
    /// that are ejected, and those that have a place in the [budget](Self::build). A priority and zone can take the full
    /// load while 5 of 7 of its endpoints are ready and healthy, and proportionally less below that; several add up. The
    /// share of each follows its health in any case. A priority and zone in panic spreads its share over all of its
    /// endpoints that are ready. If no endpoint at all is healthy, those in panic take the full load, the most preferred
    /// first.
    #[must_use]
    pub fn panic_threshold(mut self, percent: u8) -> Self {
        self.follows.panic_below = percent.min(100);
        self
    }

    /// Returns the balance and its driver, which must be spawned.
    ///
    /// `make` creates the service of an endpoint: once for each instance, and again when its `poll_ready` has failed. Add
    /// here the layers that each endpoint has for itself: its circuit, its limit, its pool. `make` should build the service
    /// without connecting; the service connects when the driver polls its readiness.
    ///
    /// The second argument is the endpoint's handle on the ejection budget of its priority and zone, for layers that take
    /// endpoints out of service because of their responses, such as a circuit. Together with [`outlier`](Self::outlier), at
    /// most [a share](Outlier::max_ejected) of the endpoints is out at once, and never the last one, unless the priorities
    /// and zones after it can take the full load. (There are two zones: the [own](Self::zone) zone, and all remaining ones.)
    /// An endpoint that moves to another priority or zone gets a new service with a new handle, because the old one belongs
    /// to another budget.
    ///
    /// Readiness must be a property of the endpoint and not of a single clone: each request polls a fresh clone once. (A
    /// service whose clones each need two polls before they are `Ready` would never be picked.)
    #[expect(
        clippy::type_complexity,
        reason = "the two are a pair, and each is named where it is kept"
    )]
    pub fn build<S, Req, U, M>(
        self,
        updates: U,
        make: M,
    ) -> (Balance<S, Req, P, C>, Driver<S, Req, P, U, M, C>)
    where
        S: Service<Req> + Clone,
        U: Stream<Item = Update>,
        M: FnMut(&Endpoint, &EjectionBudget) -> S,
        P: Policy<Req>,
        C: Stamp<Req>,
    {
        let strikes = self.follows.outlier.as_ref().map_or(0, Outlier::strikes);
        let (balance, ends) = Balance::new(self.policy, self.classify, self.limits, strikes);
        (balance, Driver::new(ends, self.follows, updates, make))
    }
}

// === impl Follows ===

impl Follows {
    const NOTHING: Self = Self {
        zone: None,
        subset: None,
        slow_start: Duration::ZERO,
        outlier: None,
        check: None,
        panic_below: 50,
    };
}

const DEFAULTS: Limits = Limits {
    max_waiting: 1024,
    max_wait: Duration::from_secs(1),
    max_endpoints: 3,
    max_in_flight: u32::MAX,
};
