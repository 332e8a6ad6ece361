//! Closes the connection after a request for another protocol, which this gateway never grants.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, header::CONNECTION};
use pin_project::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::head::may_leave_http;

/// Wraps everything that may answer, refusals included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoUpgradeLayer;

#[derive(Clone, Debug)]
pub(crate) struct NoUpgrade<S>(S);

#[pin_project]
pub(crate) struct NoUpgradeFuture<F> {
    #[pin]
    inner: F,
    closes: bool,
}

// === impl NoUpgradeLayer ===

impl<S> Layer<S> for NoUpgradeLayer {
    type Service = NoUpgrade<S>;

    fn layer(&self, inner: S) -> NoUpgrade<S> {
        NoUpgrade(inner)
    }
}

// === impl NoUpgrade ===

impl<S, A, B> Service<Request<A>> for NoUpgrade<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = NoUpgradeFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        NoUpgradeFuture {
            closes: may_leave_http(&request),
            inner: self.0.call(request),
        }
    }
}

// === impl NoUpgradeFuture ===

impl<F, B, E> Future for NoUpgradeFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        if *this.closes
            && let Ok(response) = &mut result
        {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(result)
    }
}
