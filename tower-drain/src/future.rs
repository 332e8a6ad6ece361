use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project::pin_project;
use tower_outcome::body::GuardedBody;

use crate::{close::Closable, guard::Guard};

/// The answer of a [`Guarded`](crate::Guarded) service.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct ResponseFuture<F> {
    #[pin]
    inner: F,
    guard: Option<Guard>,
    closable: Closable,
}

// === impl ResponseFuture ===

impl<F> ResponseFuture<F> {
    pub(crate) const fn new(inner: F, guard: Guard, closable: Closable) -> Self {
        Self {
            inner,
            guard: Some(guard),
            closable,
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<GuardedBody<B, Guard>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let guard = this.guard.take().expect("polled after it was ready");
        Poll::Ready(result.map(|mut response| {
            if !guard.shared().is_serving() {
                this.closable.close(&mut response);
            }
            response.map(|body| GuardedBody::new(body, guard))
        }))
    }
}
