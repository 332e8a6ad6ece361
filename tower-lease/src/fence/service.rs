use std::{
    fmt, mem,
    task::{Context, Poll},
};

use http::{HeaderMap, Request};
use tower_outcome::{
    header::LEASE_TOKEN,
    refuse::{Fail, Refuse},
};
use tower_service::Service;

use super::{Fence, FenceFuture, FencePass, HighWaterMark, fence::Check};

/// A service that takes requests with the highest fencing token only. Made by [`FenceLayer`](super::FenceLayer).
///
/// A request whose token is new waits for the mark inside its future; for that the inner service must be `Clone`.
pub struct FenceService<S, M, R = Fail> {
    inner: S,
    fence: Fence<M>,
    refuse: R,
    missing: Missing,
}

/// What becomes of a request without a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Missing {
    #[default]
    Refuse,
    Allow,
}

// === impl FenceService ===

impl<S, M, R> FenceService<S, M, R> {
    pub(super) const fn new(inner: S, fence: Fence<M>, refuse: R, missing: Missing) -> Self {
        Self {
            inner,
            fence,
            refuse,
            missing,
        }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone, M: HighWaterMark, R> FenceService<S, M, R> {
    /// The service that was asked for readiness, with a fresh one left in its place.
    fn take_ready(&mut self) -> S {
        let fresh = self.inner.clone();
        mem::replace(&mut self.inner, fresh)
    }
}

impl<S, M, R, B> Service<Request<B>> for FenceService<S, M, R>
where
    S: Service<Request<B>> + Clone,
    M: HighWaterMark,
    R: Refuse<Request<B>, S::Response, S::Error> + Clone,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = FenceFuture<S, Request<B>, R, R::Context>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        match self.inner.poll_ready(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(R::pass(Err(error)).map(drop)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (refuse, context) = (self.refuse.clone(), self.refuse.context(&request));
        // From outside it would be a forgery.
        request.extensions_mut().remove::<FencePass>();
        if self.missing == Missing::Allow && !request.headers().contains_key(LEASE_TOKEN) {
            return FenceFuture::passed(self.inner.call(request), refuse, context);
        }
        match self.fence.check_header(sole_token(request.headers())) {
            Check::Passed(pass) => {
                request.extensions_mut().insert(pass);
                FenceFuture::passed(self.inner.call(request), refuse, context)
            }
            Check::Refused(why) => FenceFuture::refused(why, refuse, context),
            Check::Ask(token) => {
                let fence = self.fence.clone();
                let asking = Box::pin(async move { fence.ask(&token).await });
                FenceFuture::asking(asking, self.take_ready(), request, refuse, context)
            }
        }
    }
}

impl<S: Clone, M, R: Clone> Clone for FenceService<S, M, R> {
    /// The clone is as ready as the inner service's clone: it must be polled first.
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.fence.clone(),
            self.refuse.clone(),
            self.missing,
        )
    }
}

impl<S: fmt::Debug, M, R> fmt::Debug for FenceService<S, M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceService")
            .field("inner", &self.inner)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// Two tokens are treated as malformed, because either of them could be meant.
fn sole_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(LEASE_TOKEN).iter();
    let first = values.next()?;
    Some(if values.next().is_some() {
        b""
    } else {
        first.as_bytes()
    })
}
