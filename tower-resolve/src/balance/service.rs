use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering::Acquire},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Request};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tower_outcome::{
    BoxError,
    classify::{
        AnyErr, Auto, Classify, ClassifyResponse, FromFn, Grpc, Http, Judge, Judged, Scope,
    },
    header::LEASE_EPOCH,
};
use tower_service::Service;

use super::{
    BalanceBuilder, BalanceSnapshot, InFlight, ResponseFuture,
    shared::{Life, Limits, Published, Shared},
    slot::{Hub, Look},
};
use crate::{
    Generation,
    chunks::Chunks,
    error::Stopped,
    policy::{LeastRequest, Policy},
    stripe::StripedArc,
};

/// Sends each request to one of a changing set of endpoints. See the [module](super).
///
/// A handle: clones share all state. `Clone + Send + Sync` if the services of the endpoints are, without a `Buffer`.
pub struct Balance<S, Req, P: Policy<Req> = LeastRequest, C = AnyErr> {
    handle: Arc<Handle<S, P::Table, P, C>>,
    request: PhantomData<fn(Req)>,
}

/// State that the clones of a balance share. Requests in flight have their own reference to the shared state.
struct Handle<S, T, P, C> {
    shared: StripedArc<Shared<S, T, P, C>>,
}

/// How the epoch of the picked endpoint is added to a request with this classification: for HTTP, in a header.
///
/// A custom classification that is not about HTTP needs only `impl<Req> Stamp<Req> for Mine {}`.
pub trait Stamp<Req>: Classify<Req> {
    /// Writes the epoch, or takes a foreign one away. Default: nothing.
    fn stamp(&self, request: &mut Req, epoch: Option<&HeaderValue>) {
        let _ = (request, epoch);
    }
}

// === impl Balance ===

impl Balance<(), (), LeastRequest, AnyErr> {
    /// Starts with the defaults: least request, protocol neutral, 1 024 waiting for at most 1 s.
    #[must_use]
    pub const fn builder() -> BalanceBuilder {
        BalanceBuilder::new()
    }
}

impl<S, Req, P: Policy<Req>, C> Balance<S, Req, P, C> {
    pub(super) fn new(
        policy: P,
        classify: C,
        limits: Limits,
        strikes: u16,
    ) -> (Self, Ends<S, P::Table, P, C>) {
        let (looks, looked) = mpsc::unbounded_channel();
        let hub = Hub::new(
            looks,
            limits.max_in_flight,
            strikes,
            policy.counts_total(),
            Instant::now(),
        );
        let shared = Arc::new(Shared {
            current: ArcSwap::from_pointee(Published::empty(Life::Pending)),
            policy: Arc::new(policy),
            classify,
            limits,
            hub: Arc::new(hub),
            is_stopped: AtomicBool::new(false),
            generations: watch::Sender::new(None),
            slots: Mutex::new(Chunks::default()),
        });
        let ends = Ends {
            shared: Arc::downgrade(&shared),
            hub: shared.hub.clone(),
            looks: looked,
        };
        let handle = Handle {
            shared: StripedArc::new(&shared),
        };
        (
            Self {
                handle: Arc::new(handle),
                request: PhantomData,
            },
            ends,
        )
    }

    fn shared(&self) -> &Shared<S, P::Table, P, C> {
        self.handle.shared.get()
    }

    /// The state of the balance and its counters, for an exporter or a status page. Costs a walk over the endpoints, and
    /// blocks no request.
    #[must_use]
    pub fn snapshot(&self) -> BalanceSnapshot {
        BalanceSnapshot::of(self.shared())
    }

    /// Watches the generation in use; `None` before the first answer of the source.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Generation>> {
        self.shared().generations.subscribe()
    }
}

/// What the driver shares with the balance.
pub(super) struct Ends<S, T, P, C> {
    pub(super) shared: Weak<Shared<S, T, P, C>>,
    pub(super) hub: Arc<Hub>,
    pub(super) looks: mpsc::UnboundedReceiver<Look>,
}

impl<S, Req, P, C> Service<Req> for Balance<S, Req, P, C>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy<Req>,
    C: Stamp<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, InFlight>>,
    Req: Send + 'static,
{
    type Response = Judged<C::Classifier, InFlight, S::Response, S::Error>;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req, P, C>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let is_stopped = self.shared().is_stopped.load(Acquire);
        Poll::Ready(if is_stopped {
            Err(Stopped::new().into())
        } else {
            Ok(())
        })
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ResponseFuture::new(self.handle.shared.hold(), request)
    }
}

impl<S, Req, P: Policy<Req>, C> Clone for Balance<S, Req, P, C> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            request: PhantomData,
        }
    }
}

impl<S, Req, P: Policy<Req>, C> fmt::Debug for Balance<S, Req, P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let published = self.shared().current.load();
        f.debug_struct("Balance")
            .field("life", &published.life)
            .field("endpoints", &published.counts.known)
            .finish_non_exhaustive()
    }
}

// === impl Stamp ===

impl<Req> Stamp<Req> for AnyErr {}

impl<Req, F> Stamp<Req> for FromFn<F> where Self: Classify<Req> {}

macro_rules! stamps_http {
    ($($classify:ty),*) => {$(
        impl<B> Stamp<Request<B>> for $classify {
            fn stamp(&self, request: &mut Request<B>, epoch: Option<&HeaderValue>) {
                stamp(request, epoch);
            }
        }
    )*};
}

stamps_http!(Http, Grpc, Auto);

fn stamp<B>(request: &mut Request<B>, epoch: Option<&HeaderValue>) {
    match epoch {
        Some(epoch) => request.headers_mut().insert(LEASE_EPOCH, epoch.clone()),
        None => request.headers_mut().remove(LEASE_EPOCH),
    };
}
