use std::{fmt, marker::PhantomData, time::Duration};

use tower_layer::Layer;
use tower_outcome::refuse::{Auto, Fail};

use crate::{
    BootClock, Clock, Lease, LeaseGate, LeaseService,
    protocol::{Http, Opaque},
    settings::{InFlight, Settings, TokenIn},
};

/// Admits requests only while the lease is held; all other requests are rejected at once. Makes [`LeaseService`]s.
///
/// [`new`](Self::new) makes a layer that rejects with an error, for every protocol, connections included;
/// [`respond`](Self::respond) answers in HTTP or gRPC; [`gate`](Self::gate) waits.
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
    /// A layer for this lease; any number of layers and services may share it.
    #[must_use]
    pub fn new(lease: impl Into<Lease<C>>) -> Self {
        Self {
            lease: lease.into(),
            settings: Settings::default(),
            refuse: Fail,
            protocol: PhantomData,
        }
    }
}

impl<C: Clock, P> LeaseLayer<C, Fail, P> {
    /// Waits in `poll_ready` instead of rejecting, so that a balancer picks another endpoint.
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
    /// Admits a request only if the lease lasts for at least this long, such as the request's deadline. Default: zero.
    ///
    /// It must be well below the TTL less the margin; otherwise every request is rejected.
    #[must_use]
    pub fn min_remaining(mut self, min_remaining: Duration) -> Self {
        self.settings.min_remaining = min_remaining;
        self
    }

    /// What happens to in-flight requests when the lease is lost. Default: [`InFlight::Cancel`].
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

    /// For HTTP: adds the [`FencingToken`](crate::FencingToken) to each request (see [`token_in`](Self::token_in)),
    /// rejects requests whose `x-lease-epoch` header names another instance, and ends response bodies with an error
    /// when the lease is lost. Default: off, any protocol.
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

    /// Admits a gRPC request only if the lease also lasts for its `grpc-timeout`. Default: off.
    ///
    /// A timeout above `at_most` counts as `at_most`, because clients may set timeouts that are longer than any lease:
    /// half the TTL is a sensible limit. HTTP/1 requests carry no deadline: see
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
            .field("settings", &self.settings)
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
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
