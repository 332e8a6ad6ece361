use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_outcome::refuse::Protocol;
use tower_service::Service;

use crate::{body::DrainBody, close::Closable, count::Kind, drain::Drain, future::ResponseFuture};

/// A service whose requests the drain waits for. Made by [`DrainLayer`](crate::DrainLayer).
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    drain: Drain,
}

// === impl Guarded ===

impl<S> Guarded<S> {
    /// Wraps `inner`, as [`DrainLayer`](crate::DrainLayer) does.
    pub fn new(inner: S, drain: &Drain) -> Self {
        Self {
            inner,
            drain: drain.clone(),
        }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, A, B> Service<Request<A>> for Guarded<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<DrainBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let (closable, protocol) = (Closable::of(&request), Protocol::of(&request));
        self.drain
            .cancellation()
            .insert_into(request.extensions_mut());
        let guard = self.drain.guard_of(Kind::Request);
        ResponseFuture::new(self.inner.call(request), guard, closable, protocol)
    }
}
