//! The app as a hyper service for HTTP/2.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tower_outcome::BoxError;
use tower_service::Service;

use super::{
    super::{
        app::{HyperAdapter, ResponseFuture},
        body::RequestBody,
    },
    body::Http2Body,
};

/// HTTP/2, whose bodies are [`Http2Body`].
pub(super) enum Http2 {}

// === impl HyperAdapter ===

impl<App, B> hyper::service::Service<Request<Incoming>> for HyperAdapter<App, Http2>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body,
{
    type Response = Response<Http2Body<B>>;
    type Error = BoxError;
    type Future = ResponseFuture<App, Http2>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.begin(request)
    }
}

// === impl ResponseFuture ===

impl<App, B> Future for ResponseFuture<App, Http2>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body,
{
    type Output = Result<Response<Http2Body<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, held) = ready!(self.poll_response(cx))?;
        Poll::Ready(Ok(response.map(|body| Http2Body::new(body, held))))
    }
}
