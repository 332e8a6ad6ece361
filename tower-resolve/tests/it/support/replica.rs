//! Endpoints that can be slow, broken or dead, and a balance over many of them.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Request;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tower::Service;
use tower_outcome::{BoxError, EjectionBudget, Unsent};
use tower_resolve::{
    Balance, Endpoint, Topology, Update,
    balance::BalanceBuilder,
    policy::{self, Policy},
};

use super::{endpoint, generation, request, settle, source};

/// An endpoint that answers after a time, or fails, or dies; all of that can be changed during use.
#[derive(Clone, Default)]
pub(crate) struct Replica(pub(crate) Arc<Inner>);

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) calls: AtomicUsize,
    pub(crate) millis: AtomicUsize,
    pub(crate) fails: AtomicBool,
    is_dead: AtomicBool,
    waker: std::sync::Mutex<Option<Waker>>,
}

impl Service<Request<String>> for Replica {
    type Response = &'static str;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<&'static str, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The clone of the driver is the last to be polled.
        *self.0.waker.lock().unwrap() = Some(cx.waker().clone());
        if self.0.is_dead.load(SeqCst) {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            // A connection is opened first; that fails for a dead endpoint.
            tokio::task::yield_now().await;
            if inner.is_dead.load(SeqCst) {
                return Err(Unsent::new(request, "connection refused").into());
            }
            inner.calls.fetch_add(1, SeqCst);
            if inner.fails.load(SeqCst) {
                return Err("broken".into());
            }
            sleep(Duration::from_millis(inner.millis.load(SeqCst) as u64)).await;
            Ok("served")
        })
    }
}

/// A balance over replicas.
pub(crate) struct Replicas<P: Policy<Request<String>>> {
    pub(crate) balance: Balance<Replica, Request<String>, P>,
    source: mpsc::UnboundedSender<Update>,
    all: BTreeMap<String, Replica>,
    generation: u64,
}

impl<P: Policy<Request<String>>> Replicas<P>
where
    P: Policy<Request<String>>,
{
    pub(crate) async fn new(builder: BalanceBuilder<P>, endpoints: Vec<Endpoint>) -> Self {
        let (source, updates) = source();
        let all: BTreeMap<_, _> = (0..200).map(|id| (name(id), Replica::default())).collect();
        let replicas = all.clone();
        let (balance, driver) = builder
            .build(updates, move |endpoint: &Endpoint, _: &EjectionBudget| {
                replicas[endpoint.id().as_str()].clone()
            });
        tokio::spawn(driver);
        let mut this = Self {
            balance,
            source,
            all,
            generation: 0,
        };
        this.set(endpoints).await;
        this
    }

    pub(crate) async fn set(&mut self, endpoints: Vec<Endpoint>) {
        self.generation += 1;
        self.source
            .send(Update::Snapshot(Topology::new(
                generation(self.generation),
                endpoints,
            )))
            .unwrap();
        settle().await;
    }

    pub(crate) fn of(&self, id: usize) -> &Inner {
        &self.all[&name(id)].0
    }

    pub(crate) fn die(&self, id: usize) {
        self.of(id).is_dead.store(true, SeqCst);
    }

    pub(crate) fn revive(&self, id: usize) {
        self.of(id).is_dead.store(false, SeqCst);
        let waker = self.of(id).waker.lock().unwrap().take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// The number of requests of each of the first endpoints since the last call.
    pub(crate) fn served(&self, count: usize) -> Vec<u64> {
        (0..count)
            .map(|id| self.of(id).calls.swap(0, SeqCst) as u64)
            .collect()
    }

    pub(crate) async fn send(&self, requests: usize) {
        for _ in 0..requests {
            self.balance.clone().call(request()).await.unwrap();
        }
    }

    /// Runs this number of clients, each with this number of requests in sequence. Returns how many failed.
    pub(crate) async fn load(&self, clients: usize, requests: usize) -> usize {
        let mut all = JoinSet::new();
        for _ in 0..clients {
            let mut balance = self.balance.clone();
            all.spawn(async move {
                let mut failed = 0;
                for _ in 0..requests {
                    failed += usize::from(balance.call(request()).await.is_err());
                }
                failed
            });
        }
        all.join_all().await.into_iter().sum()
    }
}

pub(crate) fn name(id: usize) -> String {
    format!("e{id:03}")
}

pub(crate) fn endpoints(count: usize) -> Vec<Endpoint> {
    (0..count).map(|id| endpoint(&name(id))).collect()
}

pub(crate) fn weighted(weights: &[u32]) -> Vec<Endpoint> {
    let weighted = |(id, weight): (usize, &u32)| {
        endpoint(&name(id)).with_weight(NonZeroU32::new(*weight).unwrap())
    };
    weights.iter().enumerate().map(weighted).collect()
}

pub(crate) fn by_header(request: &Request<String>) -> Option<u64> {
    request
        .headers()
        .get("x-user")
        .map(|user| policy::key(user.as_bytes()))
}

/// Within five standard deviations of a random pick.
pub(crate) fn is_about(picked: u64, share: f64, times: f64) -> bool {
    (picked as f64 - times * share).abs() <= 5.0 * (times * share * (1.0 - share)).sqrt() + 1.0
}
