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

/// The knobs of a [`Balance`]. Made by [`Balance::builder`].
#[derive(Debug)]
pub struct BalanceBuilder<P = LeastRequest, C = AnyErr> {
    policy: P,
    classify: C,
    limits: Limits,
    pub(super) follows: Follows,
}

/// What only the driver needs.
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
    /// Which of the eligible endpoints gets a request. Default: [`LeastRequest`], which evens out slow endpoints.
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

    /// For HTTP and gRPC: [`classify`](Self::classify) with [`Auto`]. So a request is in flight until the **end of its
    /// response's body** (default: until the response), 5xx and the failing codes of gRPC are failures, and the endpoint's
    /// epoch goes along in the header [`LEASE_EPOCH`](tower_outcome::header::LEASE_EPOCH), by which a replica refuses what
    /// was meant for another instance. A value of the client's own is overwritten, or removed where the endpoint has no
    /// epoch.
    #[must_use]
    pub fn http(self) -> BalanceBuilder<P, Auto> {
        self.classify(Auto::new())
    }

    /// What is an endpoint's failure. Default: [`AnyErr`], any error that is not a refusal of our own.
    ///
    /// It makes a failing endpoint dearer to the policies that look at load (see [`policy`](crate::policy)), and feeds
    /// [`outlier`](Self::outlier). It also says what a request is: see [`Stamp`].
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

    /// How many requests may wait for an endpoint at once; one more is rejected. Default: 1 024, which is what a second
    /// of a busy server holds, in a few hundred kilobytes. Those that wait are served in the order in which they came.
    ///
    /// With 0 a request is rejected at once where it finds no endpoint for it. So that this does not cost more the more
    /// endpoints there are, it then tries at most 128 that are [full](Self::max_in_flight), beginning with a random one.
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

    /// How many requests each endpoint may have in flight, for HTTP until the end of the body. One that is full is passed
    /// over; when all are, requests wait as they do for any other reason, and then are refused with 503. Default: no limit
    /// of ours.
    #[must_use]
    pub fn max_in_flight(mut self, requests: NonZeroU32) -> Self {
        self.limits.max_in_flight = requests.get();
        self
    }

    /// Where this client runs: endpoints of the same zone are preferred. Default: unknown, and all zones are one.
    ///
    /// They get everything while at least 5 of 7 of them are usable, and then less and less, in proportion, the rest going
    /// to the other zones: the remaining ones must not be run over. (Envoy's rule for priorities, with its
    /// overprovisioning factor of 1.4; [priorities](Endpoint::with_priority) spill over in the same way.)
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

    /// How long a new endpoint takes to get its full share, beginning with a tenth of it: for caches to fill, for code to
    /// be compiled. Default: none.
    ///
    /// It is a factor of the endpoint's weight under every policy; where requests are tied to endpoints by a key, keys come
    /// to the new endpoint one by one. The clock starts when the endpoint may be picked for the first time: it is in phase
    /// [`Ready`](crate::Phase::Ready), its service is ready, and its health does not speak against it. One that was
    /// restarted under its id (with another epoch or address) is new, too, and one that was ejected begins anew. Endpoints
    /// that become eligible within a tenth of this time after the very first one get their full share at once, for all
    /// of them are new.
    #[must_use]
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.follows.slow_start = window.min(FOR_EVER);
        self
    }

    /// Ejects endpoints by what becomes of their requests. Default: off.
    #[must_use]
    pub fn outlier(mut self, outlier: Outlier) -> Self {
        self.follows.outlier = Some(outlier);
        self
    }

    /// Checks endpoints now and then. Default: off.
    #[must_use]
    pub fn active_check(mut self, check: ActiveCheck) -> Self {
        self.follows.check = Some(check);
        self
    }

    /// When fewer than so many percent of the endpoints of a priority and zone are well, and the others cannot take the
    /// load, health is ignored there; 0 for never. Off below five endpoints in all. Default: 50 (Envoy's).
    ///
    /// Those are counted that are meant to serve ([`Phase::Ready`](crate::Phase::Ready)): against them count failed checks,
    /// ejections, and what has a place in the [budget](Self::build). A priority and zone can take all of the load while 5 of
    /// 7 of it are ready and well, and less in proportion; several add up. How much each gets follows its health in any
    /// case. One that panics spreads its part over all of its endpoints that are ready. Only when no endpoint at all is
    /// well, those that panic take everything, the most preferred first.
    #[must_use]
    pub fn panic_threshold(mut self, percent: u8) -> Self {
        self.follows.panic_below = percent.min(100);
        self
    }

    /// The balance, and the driver that must be spawned for it to do anything.
    ///
    /// `make` makes the service of an endpoint: once for each instance, and again when its `poll_ready` has failed. This
    /// is the place for what each endpoint has for itself: its circuit, its limit, its pool. It should only build, not
    /// connect; the service connects when the driver asks whether it is ready.
    ///
    /// With the endpoint comes its handle on the budget of its priority and zone, for what takes endpoints out by their
    /// answers, such as a circuit: together with [`outlier`](Self::outlier), no more than
    /// [a share](Outlier::max_ejected) of them is out at once, and never the last one, unless the priorities and zones after
    /// it can take all of the load. (There are two zones: the [own](Self::zone) and the others.) An endpoint that moves to
    /// another priority or zone gets a service made anew, with another handle, as the old one belongs to another budget.
    ///
    /// Readiness must be the endpoint's and not a single clone's: each request asks a fresh clone, once. (A service that
    /// needs two polls before it says `Ready`, on each clone, would never be picked.)
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
