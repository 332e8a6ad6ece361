//! A balance over endpoints that do nothing, with its source and its driver in hand: nothing happens but what is measured.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::stream;
use tower_resolve::{Balance, Endpoint, Generation, SourceId, Topology, Update, policy::Policy};

use crate::drive::Bare;

/// A balance, its source, and its driver.
pub struct Balanced<P: Policy<u32>> {
    /// To be called.
    pub balance: Balance<Bare, u32, P>,
    source: Rc<RefCell<VecDeque<Update>>>,
    driver: Pin<Box<dyn Future<Output = ()>>>,
    generation: Generation,
}

// === impl Balanced ===

impl<P: Policy<u32>> Balanced<P> {
    /// Over this number of endpoints, all of them ready.
    ///
    /// # Panics
    ///
    /// If they are not.
    pub fn new(endpoints: u32, policy: P) -> Self {
        let source = Rc::new(RefCell::new(VecDeque::new()));
        let updates = source.clone();
        let updates = stream::poll_fn(move |_| match updates.borrow_mut().pop_front() {
            Some(update) => Poll::Ready(Some(update)),
            None => Poll::Pending,
        });
        let (balance, driver) = Balance::builder()
            .policy(policy)
            .build(updates, |_, _| Bare);
        let generation = Generation::new(SourceId::unique(), 1);
        let mut this = Self {
            balance,
            source,
            driver: Box::pin(driver),
            generation,
        };
        this.tell(Update::Snapshot(Topology::new(
            generation,
            (0..endpoints).map(endpoint),
        )));
        assert_eq!(this.balance.snapshot().ready(), endpoints as usize);
        this
    }

    /// One endpoint out, and in again: two deltas, each applied and published.
    pub fn change(&mut self, index: u32) {
        self.delta(vec![], vec![endpoint(index).id().clone()]);
        self.delta(vec![Arc::new(endpoint(index))], vec![]);
    }

    fn delta(&mut self, put: Vec<Arc<Endpoint>>, removed: Vec<tower_resolve::EndpointId>) {
        let from = self.generation;
        self.generation = from.next();
        self.tell(Update::Delta {
            from,
            to: self.generation,
            put,
            removed,
        });
    }

    fn tell(&mut self, update: Update) {
        self.source.borrow_mut().push_back(update);
        let _ = self
            .driver
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl<P: Policy<u32>> fmt::Debug for Balanced<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balanced")
            .field("balance", &self.balance)
            .finish_non_exhaustive()
    }
}

fn endpoint(index: u32) -> Endpoint {
    let [_, high, middle, low] = index.to_be_bytes();
    Endpoint::new(
        format!("endpoint-{index}"),
        SocketAddr::from((Ipv4Addr::new(127, high + 1, middle, low), 80)),
    )
}
