use std::task::{Context, Poll, ready};

use tower_outcome::refuse::{Fail, Refuse};
use tower_service::Service;

use crate::{Limit, ResponseFuture};

/// A service that lets no more requests through than a limiter admits. Made by [`BucketLayer`](crate::BucketLayer).
///
/// Readiness is the inner service's. The token is taken in `call`, so readiness that is asked for and not used costs
/// none. A call that is refused does not reach the inner service, which stays ready: what it reserved for the call it
/// keeps until the next one, or its drop.
#[derive(Clone, Debug)]
pub struct Bucket<S, L, R = Fail> {
    inner: S,
    limit: L,
    refuse: R,
}

// === impl Bucket ===

impl<S, L, R> Bucket<S, L, R> {
    pub(crate) const fn new(inner: S, limit: L, refuse: R) -> Self {
        Self { inner, limit, refuse }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, to change.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Takes the limit off.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, L, R, Req> Service<Req> for Bucket<S, L, R>
where
    S: Service<Req>,
    L: Limit<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = ResponseFuture<S, R, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(R::pass(Err(error)).map(drop)),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        match self.limit.admit(&request) {
            Ok(_) => ResponseFuture::admitted(self.inner.call(request)),
            Err(exhausted) => ResponseFuture::refused(self.refuse.refuse(self.refuse.see(&request), exhausted)),
        }
    }
}
