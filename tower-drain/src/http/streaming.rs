use std::task::{Context, Poll};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use crate::cancel::Cancellation;

/// Marks the requests of a service as streams, whose bodies may be silent for any time.
///
/// A client that stops in the middle of a request's body is cut off by [`Http`](crate::Http) after 30 s (see
/// [`RequestBody`](crate::RequestBody)). That is wrong for a gRPC call with a stream of requests, which may send nothing
/// for hours. Only the server knows which of its routes are streams; a client could claim it of any route.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_drain::StreamingLayer;
///
/// # async fn upload() {}
/// # async fn chat() {}
/// let app: Router = Router::new()
///     .route("/chat", post(chat))
///     .route_layer(StreamingLayer::new())
///     .route("/upload", post(upload)); // has its timeout
/// # let _ = app;
/// ```
///
/// A whole tonic server takes one line (features `http2` and `tonic`):
///
/// ```no_run
/// # async fn run(drain: tower_drain::Drain, listener: tokio::net::TcpListener, routes: tonic::service::Routes) -> std::io::Result<()> {
/// use tower_drain::StreamingLayer;
/// use tower_layer::Layer;
///
/// let report = drain.serve(listener, StreamingLayer::new().layer(routes.prepare())).await?;
/// # let _ = report;
/// # Ok(()) }
/// ```
///
/// It holds for HTTP/2 only (feature `http2`), where a connection is pinged, has a window of bounded size for each stream, and may have other
/// streams. A silent HTTP/1 request occupies a connection, and its place in a limit. A call whose response has begun
/// needs no mark, over either protocol: its body may be silent until the response has ended.
///
/// Under another server than this crate's it does nothing. It costs one lookup in the request's extensions.
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamingLayer {
    _private: (),
}

/// A service whose requests are streams. Made by [`StreamingLayer`].
#[derive(Clone, Copy, Debug)]
pub struct StreamingService<S> {
    inner: S,
}

// === impl StreamingLayer ===

impl StreamingLayer {
    /// Marks all requests of the services that it wraps.
    #[must_use]
    pub const fn new() -> Self {
        Self { _private: () }
    }
}

impl<S> Layer<S> for StreamingLayer {
    type Service = StreamingService<S>;

    fn layer(&self, inner: S) -> StreamingService<S> {
        StreamingService { inner }
    }
}

// === impl StreamingService ===

impl<S: Service<Request<B>>, B> Service<Request<B>> for StreamingService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        if let Some(cancellation) = request.extensions().get::<Cancellation>() {
            cancellation.allow_silence();
        }
        self.inner.call(request)
    }
}
