use tower_layer::Layer;

use crate::{drain::Drain, service::Guarded};

/// Makes the drain wait for each request until its response body ends, and closes HTTP/1 connections gracefully.
///
/// From [`Announcing`](crate::Phase::Announcing) on, an HTTP/1 response carries `Connection: close`, so that a client with
/// a pool closes the connection before anything is cut. HTTP/2 responses are not changed, and neither are `101` and a
/// successful `CONNECT`. The layer rejects no request, and the error type stays that of the inner service.
///
/// When the drain is over, the requests that are still under way are dropped: the call, whose response is then an empty
/// `503` (gRPC: `UNAVAILABLE`), or the body, which ends with an error and never looks complete. The report counts them as
/// leaked. So a handler that ignores its [`Cancellation`](crate::Cancellation) ends at its next `await`, under any server.
///
/// It is for servers with another accept loop (`axum::serve`, tonic, plain hyper). Under
/// [`Drain::serve`](crate::Drain::serve) it is not needed, since the connections are drained there; it does no harm, adds
/// no second header, and adds the requests to the report.
///
/// Each request has a [`Cancellation`](crate::Cancellation) in its extensions.
///
/// Under another server it costs two atomic additions, two clones of an `Arc`, and an allocation for the cancellation in
/// the extensions. Under a server of this crate the cancellation is there already. A request that has to wait registers
/// for the end of the drain, once, with one of sixteen locks; one that completes at once does not.
///
/// # Limitations
///
/// A body that is known to be empty is over when the head is passed to the server, so the last bytes may not be written
/// yet when [`done`](Drain::done) is ready: wait for the server too, with [`around`](Drain::around). And an upgraded
/// connection stays open after its `101`: under another accept loop than this crate's, hold a [`Guard`](crate::Guard) in
/// the task that serves it.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_drain::{Drain, DrainLayer};
///
/// let drain = Drain::new();
/// let app: Router = Router::new().route("/", get(|| async { "hello" })).layer(DrainLayer::new(&drain));
/// ```
#[derive(Clone, Debug)]
pub struct DrainLayer {
    drain: Drain,
}

// === impl DrainLayer ===

impl DrainLayer {
    /// Refers to `drain`.
    #[must_use]
    pub fn new(drain: &Drain) -> Self {
        Self {
            drain: drain.clone(),
        }
    }
}

impl<S> Layer<S> for DrainLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded::new(inner, &self.drain)
    }
}
