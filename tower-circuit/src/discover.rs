use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tower::discover::{Change, Discover};
use tower_outcome::classify::AnyErr;

use crate::{CircuitGate, PerEndpoint};

pin_project! {
    /// Endpoints that are inserted and removed, each behind a gate with a circuit. Made by [`PerEndpoint::discover`].
    ///
    /// An endpoint that is inserted again under the same key gets a new circuit.
    #[derive(Debug)]
    pub struct DiscoverCircuits<D, C = AnyErr> {
        #[pin]
        inner: D,
        circuits: PerEndpoint<C>,
    }
}

// === impl PerEndpoint ===

impl<C: Clone> PerEndpoint<C> {
    /// Adds a gate in front of each endpoint that is discovered, with a circuit named after its key. The gate has the load of
    /// the endpoint, so this belongs between the load and the balancer.
    pub fn discover<D>(&self, endpoints: D) -> DiscoverCircuits<D, C>
    where
        D: Discover,
        D::Key: ToString,
    {
        DiscoverCircuits {
            inner: endpoints,
            circuits: self.clone(),
        }
    }
}

// === impl DiscoverCircuits ===

impl<D, C> Stream for DiscoverCircuits<D, C>
where
    D: Discover,
    D::Key: ToString,
    C: Clone,
{
    type Item = Result<Change<D::Key, CircuitGate<D::Service, C>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let change = ready!(this.inner.poll_discover(cx));
        Poll::Ready(change.map(|change| {
            change.map(|change| match change {
                Change::Insert(key, endpoint) => {
                    let gate = this.circuits.gate(key.to_string(), endpoint);
                    Change::Insert(key, gate)
                }
                Change::Remove(key) => Change::Remove(key),
            })
        }))
    }
}
