use tower_layer::Layer;

use crate::{drain::Drain, service::Guarded};

/// Makes the drain wait for each request until its body's end, and tells HTTP/1 clients to go.
///
/// From [`Announcing`](crate::Phase::Announcing) on, an HTTP/1 answer carries `Connection: close`, so that a client
/// with a pool leaves of its own will before anything is cut. HTTP/2 answers stay as they are, and so do `101` and a
/// successful `CONNECT`. Nothing is ever refused, and the error stays the inner service's.
///
/// When the drain is over, what is left of the requests that it has waited for is dropped: the call, which is then
/// answered with an empty `503` (gRPC: `UNAVAILABLE`), or the body, which ends with an error and never looks whole. The
/// report counts them as leaked. So a handler that does not heed its [`Cancellation`](crate::Cancellation) ends at its
/// next `await`, whatever server it runs under.
///
/// It is for servers with an accept loop of their own (`axum::serve`, tonic, plain hyper). Under
/// [`Drain::serve`](crate::Drain::serve) it is not needed, since the connections are waited for and told there; it does
/// no harm, says nothing twice, and adds the requests to the report.
///
/// Each request has a [`Cancellation`](crate::Cancellation) in its extensions.
///
/// Under a server of somebody else's it costs two atomic additions, two clones of an `Arc`, and an allocation for the
/// cancellation in the extensions. Under one of this crate the cancellation is there already. A request that has to wait
/// registers for the end of the drain, once, with one of sixteen locks; one that is answered at once does not.
///
/// # What it cannot see
///
/// A body that is known to be at its end is over when the head is handed to the server, so the last bytes may still be
/// on their way when [`done`](Drain::done) is ready: wait for the server too, by [`around`](Drain::around). And an upgraded connection lives
/// on after its `101`: under another's accept loop, hold a [`Guard`](crate::Guard) in the task that serves it.
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
