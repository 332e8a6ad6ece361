use std::task::{Context, Poll, ready};

use tokio::time::Instant;
use tower_outcome::refuse::{Fail, Refuse};
use tower_service::Service;

use crate::{
    Limit, ResponseFuture,
    headers::DecorateResponse,
    limit::{Denial, Terms},
};

/// A service that lets no more requests through than a limiter admits. Made by [`BucketLayer`](crate::BucketLayer).
///
/// Readiness is the inner service's. The token is taken in `call`, so readiness that is asked for and not used costs
/// none. A call that is refused does not reach the inner service, which stays ready: what it reserved for the call it
/// keeps until the next one, or its drop.
///
/// `M` decides about a request that finds no token: with [`Reject`] it is refused, with
/// [`Queue`](crate::Queue) it may wait.
#[derive(Clone, Debug)]
pub struct BucketService<S, L, R = Fail, M = Reject> {
    pub(crate) inner: S,
    pub(crate) limit: L,
    pub(crate) refuse: R,
    pub(crate) mode: M,
}

/// A request that finds no token is rejected at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reject;

// === impl BucketService ===

impl<S, L, R, M> BucketService<S, L, R, M> {
    pub(crate) const fn new(inner: S, limit: L, refuse: R, mode: M) -> Self {
        Self {
            inner,
            limit,
            refuse,
            mode,
        }
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

impl<S, L, R, Req> Service<Req> for BucketService<S, L, R>
where
    S: Service<Req>,
    L: Limit<Req>,
    L::Note: DecorateResponse<R::Response>,
    R: Refuse<Req, S::Response, S::Error>,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = ResponseFuture<S, R, Req, L::Note>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(R::pass(Err(error)).map(drop)),
        }
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let charge = self.limit.charge(&request, Terms::USUAL);
        match self.limit.take(charge, Instant::now(), 0) {
            Ok(taken) => {
                self.limit.count_passed(charge, taken, false);
                ResponseFuture::admitted(
                    self.inner.call(request),
                    self.limit.note(charge, Ok(taken)),
                )
            }
            Err(denial) => {
                let (answer, note) = self.deny(&request, charge, denial);
                ResponseFuture::refused(answer, note)
            }
        }
    }
}

impl<S, L, R, M> BucketService<S, L, R, M> {
    /// Counts a refusal and makes the response.
    #[cold]
    #[inline(never)]
    pub(crate) fn deny<Req>(
        &self,
        request: &Req,
        charge: L::Charge,
        denial: Denial,
    ) -> (Result<R::Response, R::Error>, L::Note)
    where
        S: Service<Req>,
        L: Limit<Req>,
        R: Refuse<Req, S::Response, S::Error>,
    {
        self.limit.count_denied(charge, denial.by());
        let answer = self
            .refuse
            .refuse(self.refuse.context(request), denial.exhausted());
        (answer, self.limit.note(charge, Err(denial)))
    }
}
