use std::{fmt, marker::PhantomData, time::Duration};

use tower_layer::Layer;
use tower_outcome::refuse::{Auto, Fail};

use crate::{
    BootClock, Clock, Lease, LeaseGate, LeaseService,
    protocol::{Http, Opaque},
    settings::{InFlight, Settings, TokenIn},
};

/// Lets requests in only while the lease is held, and answers the others at once. Makes [`LeaseService`] services.
///
/// As made by [`new`](Self::new) it refuses with an error (*reject*) and works for every protocol, connections
/// included; [`respond`](Self::respond) answers in HTTP or gRPC; [`gate`](Self::gate) waits.
pub struct LeaseLayer<C = BootClock, R = Fail, P = Opaque> {
    lease: Lease<C>,
    settings: Settings,
    refuse: R,
    protocol: PhantomData<fn() -> P>,
}

/// Is ready only while the lease is held: for endpoints inside a balancer, and worker loops. Makes [`LeaseGate`]
/// services. Made by [`LeaseLayer::gate`].
pub struct LeaseGateLayer<C = BootClock, P = Opaque> {
    lease: Lease<C>,
    settings: Settings,
    protocol: PhantomData<fn() -> P>,
}

// === impl LeaseLayer ===

impl<C: Clock> LeaseLayer<C> {
    /// Refers to a lease; any number of layers and services may.
    #[must_use]
    pub fn new(lease: &Lease<C>) -> Self {
        Self {
            lease: lease.clone(),
            settings: Settings::default(),
            refuse: Fail,
            protocol: PhantomData,
        }
    }
}

impl<C: Clock, P> LeaseLayer<C, Fail, P> {
    /// Waits in `poll_ready` instead of refusing, so that a balancer looks elsewhere.
    #[must_use]
    pub fn gate(self) -> LeaseGateLayer<C, P> {
        LeaseGateLayer {
            lease: self.lease,
            settings: self.settings,
            protocol: PhantomData,
        }
    }
}

impl<C: Clock, R, P> LeaseLayer<C, R, P> {
    /// Lets in only what has this much validity before it: a request's own deadline, say. Default: zero.
    ///
    /// It must be well below the TTL less its margin, or there is never enough.
    #[must_use]
    pub fn min_remaining(mut self, min_remaining: Duration) -> Self {
        self.settings.min_remaining = min_remaining;
        self
    }

    /// What becomes of requests that are inside when the lease is lost. Default: [`InFlight::Cancel`].
    #[must_use]
    pub fn in_flight(mut self, in_flight: InFlight) -> Self {
        self.settings.in_flight = in_flight;
        self
    }

    /// Answers in the request's own protocol, HTTP or gRPC, so that the error type stays as it was (axum, tonic).
    /// Implies [`http`](Self::http).
    #[must_use]
    pub fn respond(self) -> LeaseLayer<C, Auto, Http> {
        self.http().respond_with(Auto::new())
    }

    /// Answers with `refuse`. For HTTP services call [`http`](Self::http) too.
    #[must_use]
    pub fn respond_with<Q>(self, refuse: Q) -> LeaseLayer<C, Q, P> {
        LeaseLayer {
            lease: self.lease,
            settings: self.settings,
            refuse,
            protocol: self.protocol,
        }
    }

    /// For HTTP: gives each request the [`FencingToken`](crate::FencingToken) (see [`token_in`](Self::token_in)), refuses
    /// those whose `x-lease-epoch` header names another instance, and breaks bodies off at a loss. Default: no, any
    /// protocol.
    #[must_use]
    pub fn http(self) -> LeaseLayer<C, R, Http> {
        LeaseLayer {
            lease: self.lease,
            settings: self.settings,
            refuse: self.refuse,
            protocol: PhantomData,
        }
    }
}

impl<C: Clock, R> LeaseLayer<C, R, Http> {
    /// Where the inner service finds the token. Default: [`TokenIn::Extensions`].
    #[must_use]
    pub fn token_in(mut self, place: TokenIn) -> Self {
        self.settings.token_in = place;
        self
    }

    /// Lets a gRPC request in only if the lease lasts for the time that its `grpc-timeout` gives it, too.
    /// Default: no.
    ///
    /// A longer timeout than `at_most` counts as `at_most`, because a client may well be patient for longer than any
    /// lease lasts: half the TTL is a sensible limit. HTTP/1 has no deadline to look at: see
    /// [`min_remaining`](Self::min_remaining).
    #[must_use]
    pub fn deadlines(mut self, at_most: Duration) -> Self {
        self.settings.deadlines = Some(at_most);
        self
    }
}

impl<S, C: Clock, R: Clone, P> Layer<S> for LeaseLayer<C, R, P> {
    type Service = LeaseService<S, C, R, P>;

    fn layer(&self, inner: S) -> Self::Service {
        LeaseService::new(
            inner,
            self.lease.clone(),
            self.settings,
            self.refuse.clone(),
        )
    }
}

impl<C, R: Clone, P> Clone for LeaseLayer<C, R, P> {
    fn clone(&self) -> Self {
        let Self {
            lease,
            settings,
            refuse,
            protocol,
        } = self;
        Self {
            lease: lease.clone(),
            settings: *settings,
            refuse: refuse.clone(),
            protocol: *protocol,
        }
    }
}

impl<C: Clock, R, P> fmt::Debug for LeaseLayer<C, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseLayer")
            .field("lease", &self.lease)
            .field("knobs", &self.settings)
            .finish_non_exhaustive()
    }
}

// === impl LeaseGateLayer ===

impl<S, C: Clock, P> Layer<S> for LeaseGateLayer<C, P> {
    type Service = LeaseGate<S, C, P>;

    fn layer(&self, inner: S) -> Self::Service {
        LeaseGate::new(inner, self.lease.clone(), self.settings)
    }
}

impl<C, P> Clone for LeaseGateLayer<C, P> {
    fn clone(&self) -> Self {
        Self {
            lease: self.lease.clone(),
            settings: self.settings,
            protocol: self.protocol,
        }
    }
}

impl<C: Clock, P> fmt::Debug for LeaseGateLayer<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseGateLayer")
            .field("lease", &self.lease)
            .field("knobs", &self.settings)
            .finish_non_exhaustive()
    }
}
