use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, Weak, atomic::AtomicUsize},
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Request};
use tokio::sync::{Notify, mpsc, watch};
use tower_outcome::{
    BoxError,
    classify::{AtEnd, AtHead, Scope},
    header::LEASE_EPOCH,
};
use tower_service::Service;

use super::{
    BalanceBuilder, BalanceSnapshot, InFlight, ResponseFuture,
    shared::{Life, Limits, Look, Published, Shared},
};
use crate::{
    Generation,
    error::Stopped,
    policy::{LeastRequest, Policy},
};

/// Sends each request to one of a living set of endpoints. See the [module](super).
///
/// A handle: clones share everything. `Clone + Send + Sync` where the endpoints' services are, without a `Buffer`.
pub struct Balance<S, Req, P: Policy = LeastRequest, K = AtHead> {
    shared: Arc<Shared<S, P>>,
    kind: PhantomData<fn(Req) -> K>,
}

/// How the chosen endpoint's epoch goes along with a request: not at all for [`AtHead`], in a header for [`AtEnd`].
pub trait Stamp<Req>: sealed::Sealed {
    /// Writes the epoch, or takes a foreign one away.
    fn stamp(request: &mut Req, epoch: Option<&HeaderValue>);
}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for super::AtHead {}
    impl Sealed for super::AtEnd {}
}

// === impl Balance ===

impl Balance<(), (), LeastRequest, AtHead> {
    /// Starts with the defaults: least request, protocol neutral, 1 024 waiting for at most 1 s.
    #[must_use]
    pub const fn builder() -> BalanceBuilder {
        BalanceBuilder::new()
    }
}

impl<S, Req, P: Policy, K> Balance<S, Req, P, K> {
    pub(super) fn new(policy: P, limits: Limits) -> (Self, Weak<Shared<S, P>>, mpsc::UnboundedReceiver<Look>) {
        // As many at most as there are endpoints: each is told once, until the driver has looked.
        let (looks, looked) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            current: ArcSwap::from_pointee(Published::empty(Life::Pending)),
            policy,
            limits,
            freed: Arc::new(Notify::new()),
            waiting: Arc::new(AtomicUsize::new(0)),
            generations: watch::Sender::new(None),
            looks,
        });
        let driver = Arc::downgrade(&shared);
        (Self { shared, kind: PhantomData }, driver, looked)
    }

    /// What is known and what it did so far: numbers for an exporter or a status page. Costs a walk over the endpoints.
    #[must_use]
    pub fn snapshot(&self) -> BalanceSnapshot {
        BalanceSnapshot::of(&self.shared)
    }

    /// Follows the generation that is in use; `None` before the source's first answer.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Generation>> {
        self.shared.generations.subscribe()
    }
}

impl<S, Req, P, K> Service<Req> for Balance<S, Req, P, K>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy,
    K: Stamp<Req> + Scope<S::Response, InFlight>,
    Req: Send + 'static,
{
    type Response = <K as Scope<S::Response, InFlight>>::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req, P, K>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(match self.shared.current.load().life {
            Life::Stopped => Err(Stopped::new().into()),
            Life::Pending | Life::Known(_) => Ok(()),
        })
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ResponseFuture::new(self.shared.clone(), request)
    }
}

impl<S, Req, P: Policy, K> Clone for Balance<S, Req, P, K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), kind: PhantomData }
    }
}

impl<S, Req, P: Policy, K> fmt::Debug for Balance<S, Req, P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let published = self.shared.current.load();
        f.debug_struct("Balance")
            .field("life", &published.life)
            .field("endpoints", &published.all.len())
            .finish_non_exhaustive()
    }
}

// === impl Stamp ===

impl<Req> Stamp<Req> for AtHead {
    fn stamp(_: &mut Req, _: Option<&HeaderValue>) {}
}

impl<B> Stamp<Request<B>> for AtEnd {
    fn stamp(request: &mut Request<B>, epoch: Option<&HeaderValue>) {
        match epoch {
            Some(epoch) => request.headers_mut().insert(LEASE_EPOCH, epoch.clone()),
            None => request.headers_mut().remove(LEASE_EPOCH),
        };
    }
}
