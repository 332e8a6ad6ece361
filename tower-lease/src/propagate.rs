use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Request};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_outcome::{BoxError, header::LEASE_TOKEN};
use tower_service::Service;

use crate::{BootClock, Clock, FencingToken, Lease, LeaseLost};

/// Adds the fencing token of a lease to outgoing requests: for clients of a resource that checks tokens. Makes
/// [`PropagateService`]s.
///
/// The token is the `x-lease-token` header, in gRPC the metadata of that name. It is the one in the request's own
/// extensions, where the handler puts the [`FencingToken`] it was called with; without that, the lease's current one.
/// Prefer the former: **work that began in an epoch that is over must not get the token of the next** (R-26), which is
/// what a long job would get that outlived a loss and a new acquisition.
///
/// While the lease is not held, or when the epoch of the token is over, nothing is sent: ready, and `call` answers
/// [`NotHeld`](crate::NotHeld) or [`LeaseLost`]. That spares the resource; what fences is the resource's own check, also of
/// a request whose future is polled long after `call`.
pub struct PropagateLayer<C = BootClock> {
    lease: Lease<C>,
}

/// A client whose requests carry the token of a lease. Made by [`PropagateLayer`].
pub struct PropagateService<S, C = BootClock> {
    inner: S,
    lease: Lease<C>,
}

pin_project! {
    /// The future of a [`PropagateService`] service.
    pub struct PropagateFuture<F> {
        #[pin]
        step: Step<F>,
    }
}

pin_project! {
    #[project = StepProj]
    enum Step<F> {
        Sent { #[pin] inner: F },
        Rejected { error: Option<BoxError> },
    }
}

// === impl PropagateLayer ===

impl<C: Clock> PropagateLayer<C> {
    /// A layer for the lease under which the requests are sent.
    #[must_use]
    pub fn new(lease: impl Into<Lease<C>>) -> Self {
        Self {
            lease: lease.into(),
        }
    }
}

impl<S, C: Clock> Layer<S> for PropagateLayer<C> {
    type Service = PropagateService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        PropagateService {
            inner,
            lease: self.lease.clone(),
        }
    }
}

impl<C> Clone for PropagateLayer<C> {
    fn clone(&self) -> Self {
        Self {
            lease: self.lease.clone(),
        }
    }
}

impl<C: Clock> fmt::Debug for PropagateLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PropagateLayer")
            .field("lease", &self.lease)
            .finish()
    }
}

// === impl PropagateService ===

impl<S, C: Clock> PropagateService<S, C> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The token to send `request` with.
    fn token<B>(&self, request: &Request<B>) -> Result<FencingToken, BoxError> {
        let own = request
            .extensions()
            .get::<FencingToken>()
            .filter(|own| own.key() == self.lease.key());
        let current = self.lease.token();
        match own {
            Some(own) if current.as_ref() != Some(own) => Err(LeaseLost::new(own.epoch()).into()),
            _ => current.ok_or_else(|| self.lease.not_held().into()),
        }
    }
}

impl<S, C, B> Service<Request<B>> for PropagateService<S, C>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
    C: Clock,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = PropagateFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let step = match self.token(&request) {
            Ok(token) => {
                request
                    .headers_mut()
                    .insert(LEASE_TOKEN, HeaderValue::from(&token));
                Step::Sent {
                    inner: self.inner.call(request),
                }
            }
            Err(error) => Step::Rejected { error: Some(error) },
        };
        PropagateFuture { step }
    }
}

impl<S: Clone, C> Clone for PropagateService<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            lease: self.lease.clone(),
        }
    }
}

impl<S: fmt::Debug, C: Clock> fmt::Debug for PropagateService<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PropagateService")
            .field("inner", &self.inner)
            .field("lease", &self.lease)
            .finish()
    }
}

// === impl PropagateFuture ===

impl<F, Res, E> Future for PropagateFuture<F>
where
    F: Future<Output = Result<Res, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Res, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().step.project() {
            StepProj::Sent { inner } => inner.poll(cx).map_err(Into::into),
            StepProj::Rejected { error } => {
                Poll::Ready(Err(error.take().expect("polled after it was ready")))
            }
        }
    }
}

impl<F> fmt::Debug for PropagateFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Sent { .. } => "sent",
            Step::Rejected { .. } => "rejected",
        };
        f.debug_tuple("PropagateFuture").field(&step).finish()
    }
}
