use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project::pin_project;
use tower::discover::Change;

use crate::{Endpoint, EndpointId, Phase, Topology, Update, diff::Fold};

/// The updates of a name as a [`tower::discover::Discover`], for Tower's own p2c `Balance`.
///
/// Creates a service for each endpoint that may be used: those in phase [`Ready`](Phase::Ready); if there is none, those
/// that are [`Draining`](Phase::Draining) but still serve. The usual rules of this crate apply: the set never goes back, a
/// degraded source removes nothing, an instance that did not change keeps its service (so its load is not forgotten),
/// another one under the same id replaces it, and insertions come before removals.
///
/// **It never yields an error**, because an error would end the balance.
///
/// Tower's balance lacks two properties of [`Balance`](crate::Balance): it follows changes only while it is polled for
/// requests, and with an empty set it stays not ready without a limit, so put a timeout around it.
///
/// ```
/// use tower::{balance::p2c::Balance, load::Constant, service_fn};
/// use tower_resolve::{DiscoverEndpoints, Endpoint, Resolve, StaticResolver};
///
/// # use tower::ServiceExt;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower::BoxError> {
/// let names = StaticResolver::new().with("echo", [Endpoint::new("echo-1", "127.0.0.1:8081".parse()?)]);
/// let discover = DiscoverEndpoints::new(names.resolve("echo"), |endpoint: &Endpoint| {
///     let id = endpoint.id().to_string();
///     Constant::new(service_fn(move |_: ()| std::future::ready(Ok::<_, std::io::Error>(id.clone()))), 1)
/// });
/// let answer = Balance::new(discover).oneshot(()).await?;
/// assert_eq!(answer, "echo-1");
/// # Ok(())
/// # }
/// ```
#[pin_project]
pub struct DiscoverEndpoints<U, M> {
    #[pin]
    updates: U,
    make: M,
    fold: Fold,
    /// The endpoints that have a service.
    told: BTreeMap<EndpointId, Arc<Endpoint>>,
    queue: VecDeque<Told>,
}

enum Told {
    Insert(Arc<Endpoint>),
    Remove(EndpointId),
}

// === impl DiscoverEndpoints ===

impl<U, S, M> DiscoverEndpoints<U, M>
where
    U: Stream<Item = Update>,
    M: FnMut(&Endpoint) -> S,
{
    /// Follows `updates`, with a service that `make` creates for each endpoint: add the layers for a single endpoint there.
    pub fn new(updates: U, make: M) -> Self {
        Self {
            updates,
            make,
            fold: Fold::new(),
            told: BTreeMap::new(),
            queue: VecDeque::new(),
        }
    }
}

impl<U, S, M> Stream for DiscoverEndpoints<U, M>
where
    U: Stream<Item = Update>,
    M: FnMut(&Endpoint) -> S,
{
    type Item = Result<Change<EndpointId, S>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        loop {
            if let Some(told) = this.queue.pop_front() {
                return Poll::Ready(Some(Ok(match told {
                    Told::Insert(endpoint) => {
                        Change::Insert(endpoint.id().clone(), (this.make)(&endpoint))
                    }
                    Told::Remove(id) => Change::Remove(id),
                })));
            }
            let Some(update) = ready!(this.updates.as_mut().poll_next(cx)) else {
                return Poll::Ready(None);
            };
            let _ = this.fold.apply(update);
            if let Some(topology) = this.fold.topology() {
                tell(this.told, topology, this.queue);
            }
        }
    }
}

impl<U, M> fmt::Debug for DiscoverEndpoints<U, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoverEndpoints")
            .field("endpoints", &self.told.len())
            .finish_non_exhaustive()
    }
}

/// Queues the changes from `told` to the endpoints of `topology` that may be used.
fn tell(
    told: &mut BTreeMap<EndpointId, Arc<Endpoint>>,
    topology: &Topology,
    queue: &mut VecDeque<Told>,
) {
    let usable = usable(topology);
    for (id, endpoint) in &usable {
        if told
            .get(id)
            .is_none_or(|known| !known.is_same_instance(endpoint))
        {
            queue.push_back(Told::Insert(endpoint.clone()));
        }
    }
    let gone = told.keys().filter(|id| !usable.contains_key(*id)).cloned();
    queue.extend(gone.map(Told::Remove));
    *told = usable;
}

fn usable(topology: &Topology) -> BTreeMap<EndpointId, Arc<Endpoint>> {
    let in_phase = |phase| {
        let those = topology
            .iter()
            .filter(move |endpoint| endpoint.phase() == phase);
        those
            .map(|endpoint| (endpoint.id().clone(), endpoint.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let ready = in_phase(Phase::Ready);
    if ready.is_empty() {
        in_phase(Phase::Draining)
    } else {
        ready
    }
}
