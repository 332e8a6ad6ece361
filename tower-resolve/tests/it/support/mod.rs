//! Shared by the tests of the balance: a scripted source, and endpoints that count.

pub(crate) mod replica;

use std::{
    collections::BTreeMap,
    future::Future,
    num::NonZeroU64,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use testkit::{Broken, Probe, ProbeFuture, ProbeHandle, Script};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::Service;
use tower_outcome::{BoxError, EjectionBudget, Unsent};
use tower_resolve::{
    Balance, Endpoint, Generation, SourceId, Topology, Update,
    balance::{BalanceBuilder, Stamp},
    policy::Policy,
};

pub(crate) type Updates = UnboundedReceiverStream<Update>;
pub(crate) type Handles = Arc<Mutex<BTreeMap<String, Vec<ProbeHandle>>>>;

/// Counts live services by endpoint, and keeps the handle of each.
#[derive(Clone, Default)]
pub(crate) struct Made(Handles);

impl Made {
    pub(crate) fn make(&self, endpoint: &Endpoint) -> Probe {
        let (probe, handle) = Probe::new();
        self.0
            .lock()
            .unwrap()
            .entry(endpoint.id().to_string())
            .or_default()
            .push(handle);
        probe
    }

    /// The latest service created for an endpoint.
    pub(crate) fn of(&self, id: &str) -> ProbeHandle {
        self.0.lock().unwrap()[id].last().unwrap().clone()
    }

    pub(crate) fn count(&self, id: &str) -> usize {
        self.0.lock().unwrap().get(id).map_or(0, Vec::len)
    }

    /// As [`calls`](Self::calls), and zero if none was created.
    pub(crate) fn all_calls(&self, id: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .get(id)
            .map_or(0, |made| made.iter().map(ProbeHandle::calls).sum())
    }

    pub(crate) fn calls(&self, id: &str) -> usize {
        self.0.lock().unwrap()[id]
            .iter()
            .map(ProbeHandle::calls)
            .sum()
    }
}

/// An endpoint that can return requests unsent.
#[derive(Clone)]
pub(crate) struct Returning {
    probe: Probe,
    returns: Arc<AtomicUsize>,
}

impl Returning {
    pub(crate) fn new(probe: Probe, returns: Arc<AtomicUsize>) -> Self {
        Self { probe, returns }
    }
}

impl Service<Request<String>> for Returning {
    type Response = Response<Script>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Script>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::<Request<String>>::poll_ready(&mut self.probe, cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let left = self
            .returns
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if left.is_ok() {
            return Box::pin(async { Err(Unsent::new(request, "connection refused").into()) });
        }
        let answer: ProbeFuture = self.probe.call(request);
        Box::pin(async { answer.await.map_err(|Broken| Broken.into()) })
    }
}

/// A balance over probes, its source and its driver.
pub(crate) struct Rig<P: Policy<Request<String>>, C> {
    pub(crate) balance: Balance<Probe, Request<String>, P, C>,
    pub(crate) source: mpsc::UnboundedSender<Update>,
    pub(crate) made: Made,
    pub(crate) driver: JoinHandle<()>,
}

pub(crate) fn rig<P, C>(builder: BalanceBuilder<P, C>) -> Rig<P, C>
where
    P: Policy<Request<String>>,
    C: Stamp<Request<String>> + Send + Sync + 'static,
{
    let made = Made::default();
    let (source, updates) = source();
    let makes = made.clone();
    let (balance, driver) = builder
        .build(updates, move |endpoint: &Endpoint, _: &EjectionBudget| {
            makes.make(endpoint)
        });
    Rig {
        balance,
        source,
        made,
        driver: tokio::spawn(driver),
    }
}

pub(crate) fn source() -> (mpsc::UnboundedSender<Update>, Updates) {
    let (source, updates) = mpsc::unbounded_channel();
    (source, UnboundedReceiverStream::new(updates))
}

pub(crate) fn generation(value: u64) -> Generation {
    Generation::new(SourceId::new(1), value)
}

pub(crate) fn endpoint(id: &str) -> Endpoint {
    Endpoint::new(id, ([127, 0, 0, 1], 80).into())
}

pub(crate) fn leased(id: &str, epoch: u64) -> Endpoint {
    endpoint(id).with_epoch(NonZeroU64::new(epoch))
}

pub(crate) fn snapshot(value: u64, ids: &[&str]) -> Update {
    Update::Snapshot(Topology::new(
        generation(value),
        ids.iter().map(|id| endpoint(id)),
    ))
}

pub(crate) fn request() -> Request<String> {
    Request::new(String::new())
}

/// Runs all tasks that are ready.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

pub(crate) async fn timed<F: Future>(future: F) -> (F::Output, Duration) {
    let start = Instant::now();
    let output = future.await;
    (output, start.elapsed())
}
