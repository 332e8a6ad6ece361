use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tower_outcome::{
    BoxError, Unsent,
    refuse::{Fail, Refuse},
};
use tower_service::Service;

use crate::{
    BootClock, Clock, GateFuture, Lease, LeaseGuard, ResponseFuture, WrongInstance,
    change_or_deadline::ChangeOrDeadline,
    future::Rejection,
    protocol::{Opaque, Protocol, Settings},
};

/// Admits requests only while the lease is held, and rejects all other requests in `call`.
///
/// `poll_ready` never fails or waits because of the lease: while it is not held the service is ready, and `call`
/// rejects.
pub struct LeaseService<S, C = BootClock, R = Fail, P = Opaque> {
    inner: S,
    lease: Lease<C>,
    settings: Settings,
    refuse: R,
    /// The inner service was ready.
    is_ready: bool,
    wake: Option<Pin<Box<ChangeOrDeadline>>>,
    protocol: PhantomData<fn() -> P>,
}

/// A service that is ready only while the lease is held.
///
/// A lease lost between readiness and `call` hands the request back as [`Unsent`], because of
/// [`NotHeld`](crate::NotHeld), so that it can go elsewhere. `poll_ready` fails only when the keeper has gone for good.
pub struct LeaseGate<S, C = BootClock, P = Opaque> {
    inner: S,
    lease: Lease<C>,
    settings: Settings,
    wake: Option<Pin<Box<ChangeOrDeadline>>>,
    protocol: PhantomData<fn() -> P>,
}

fn on_request<Req, Res, C, P>(
    request: &mut Req,
    guard: &LeaseGuard<C>,
    settings: &Settings,
) -> Result<(), WrongInstance>
where
    C: Clock,
    P: Protocol<Req, Res, C>,
{
    P::on_request(request, guard, settings).inspect_err(|_| guard.shared().counters.misdirected())
}

// === impl LeaseService ===

impl<S, C: Clock, R, P> LeaseService<S, C, R, P> {
    pub(crate) fn new(inner: S, lease: Lease<C>, settings: Settings, refuse: R) -> Self {
        Self {
            inner,
            lease,
            settings,
            refuse,
            is_ready: false,
            wake: None,
            protocol: PhantomData,
        }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Waits for the inner service, but not past the loss of the lease: then we are ready, to refuse.
    fn poll_loss(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = self.lease.shared();
        let wake = self.wake.get_or_insert_with(ChangeOrDeadline::boxed);
        wake.as_mut().poll(cx, &shared.clock, &shared.lost, || {
            shared.open_until().map(Some)
        })
    }

    fn admit<Req, Res>(&mut self, request: &mut Req) -> Result<LeaseGuard<C>, Rejection>
    where
        P: Protocol<Req, Res, C>,
    {
        // A service that was ready to reject has not polled the inner service, so it must reject.
        if !self.is_ready {
            return Err(Rejection::NotHeld(self.lease.refused()));
        }
        let guard = self
            .lease
            .enter(P::min_validity(request, &self.settings))
            .map_err(Rejection::NotHeld)?;
        on_request::<Req, Res, C, P>(request, &guard, &self.settings)
            .map_err(Rejection::WrongInstance)?;
        Ok(guard)
    }
}

impl<S, C, R, P, Req> Service<Req> for LeaseService<S, C, R, P>
where
    S: Service<Req>,
    C: Clock,
    P: Protocol<Req, S::Response, C>,
    R: Refuse<Req, P::Response, S::Error> + Clone,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = ResponseFuture<S::Future, Req, R::Context, C, R, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        self.is_ready = false;
        if !self.lease.shared().seems_open() {
            return Poll::Ready(Ok(()));
        }
        match self.inner.poll_ready(cx) {
            Poll::Pending => return self.poll_loss(cx).map(Ok),
            Poll::Ready(Ok(())) => self.is_ready = true,
            Poll::Ready(Err(error)) => return Poll::Ready(R::pass(Err(error)).map(drop)),
        }
        self.wake = None;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let (refuse, context) = (self.refuse.clone(), self.refuse.context(&request));
        match self.admit(&mut request) {
            Ok(guard) => {
                self.is_ready = false;
                ResponseFuture::inside(
                    self.inner.call(request),
                    guard,
                    self.settings.in_flight,
                    refuse,
                    context,
                )
            }
            Err(rejection) => ResponseFuture::rejected(rejection, refuse, context),
        }
    }
}

impl<S: Clone, C: Clock, R: Clone, P> Clone for LeaseService<S, C, R, P> {
    /// The clone must be polled for readiness first.
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.lease.clone(),
            self.settings,
            self.refuse.clone(),
        )
    }
}

impl<S: fmt::Debug, C: Clock, R, P> fmt::Debug for LeaseService<S, C, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseService")
            .field("inner", &self.inner)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

// === impl LeaseGate ===

impl<S, C: Clock, P> LeaseGate<S, C, P> {
    pub(crate) fn new(inner: S, lease: Lease<C>, settings: Settings) -> Self {
        Self {
            inner,
            lease,
            settings,
            wake: None,
            protocol: PhantomData,
        }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (lease, min_remaining) = (&self.lease, self.settings.min_remaining);
        let is_decided = || lease.shared().is_open(min_remaining) || lease.has_ended();
        if is_decided() {
            self.wake = None;
            return Poll::Ready(());
        }
        let shared = lease.shared();
        let wake = self.wake.get_or_insert_with(ChangeOrDeadline::boxed);
        // Only the keeper opens it, and it notifies: no timer.
        wake.as_mut().poll(cx, &shared.clock, &shared.opened, || {
            (!is_decided()).then_some(None)
        })
    }

    /// An inner service that never gets ready must not hide that there is nothing to be ready for any more.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (lease, shared) = (&self.lease, self.lease.shared());
        let wake = self.wake.get_or_insert_with(ChangeOrDeadline::boxed);
        wake.as_mut().poll(cx, &shared.clock, &shared.opened, || {
            (!lease.has_ended()).then_some(None)
        })
    }
}

impl<S, C, P, Req> Service<Req> for LeaseGate<S, C, P>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    C: Clock,
    P: Protocol<Req, S::Response, C>,
    Req: Send + 'static,
{
    type Response = P::Response;
    type Error = BoxError;
    type Future = GateFuture<S::Future, Req, C, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(self.poll_open(cx));
        if self.lease.has_ended() {
            return Poll::Ready(Err(self.lease.not_held().into()));
        }
        match self.inner.poll_ready(cx) {
            Poll::Pending => self
                .poll_end(cx)
                .map(|()| Err(self.lease.not_held().into())),
            Poll::Ready(result) => {
                self.wake = None;
                Poll::Ready(result.map_err(Into::into))
            }
        }
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let guard = match self.lease.enter(P::min_validity(&request, &self.settings)) {
            Ok(guard) => guard,
            Err(not_held) => return GateFuture::unsent(Unsent::new(request, not_held).into()),
        };
        match on_request::<Req, S::Response, C, P>(&mut request, &guard, &self.settings) {
            Ok(()) => GateFuture::inside(self.inner.call(request), guard, self.settings.in_flight),
            Err(wrong) => GateFuture::unsent(Unsent::new(request, wrong).into()),
        }
    }
}

impl<S: Clone, C: Clock, P> Clone for LeaseGate<S, C, P> {
    /// The clone must be polled for readiness first.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.lease.clone(), self.settings)
    }
}

impl<S: fmt::Debug, C: Clock, P> fmt::Debug for LeaseGate<S, C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseGate")
            .field("inner", &self.inner)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
