//! A simulated fleet in paused time: endpoints that answer after a time, or fail at once, and clients that each send their
//! next request after the response of the previous one.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    env, fmt,
    future::ready,
    num::NonZeroU32,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::Service;
use tower_outcome::{BoxError, EjectionBudget};
use tower_resolve::{
    Balance, Endpoint, Topology, Update,
    balance::BalanceBuilder,
    health::{self, ActiveCheck},
    policy::Policy,
};

use crate::support::{endpoint, generation, settle, source};

/// Runs a scenario under each policy, one after the other. It is a function of the kind of policy, of its constructor, and
/// of the arguments given here.
macro_rules! under_every_policy {
    ($scenario:ident($($arg:expr),*)) => {{
        use $crate::scenarios::lab::key;
        $scenario(Kind::RoundRobin, RoundRobin::new, $($arg),*).await;
        $scenario(Kind::Random, Random::new, $($arg),*).await;
        $scenario(Kind::LeastRequest, LeastRequest::new, $($arg),*).await;
        $scenario(Kind::PeakEwma, PeakEwma::new, $($arg),*).await;
        $scenario(Kind::RingHash, || RingHash::new(key), $($arg),*).await;
        $scenario(Kind::Maglev, || Maglev::new(key), $($arg),*).await;
    }};
}
pub(super) use under_every_policy;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    RoundRobin,
    Random,
    LeastRequest,
    PeakEwma,
    RingHash,
    Maglev,
}

// === impl Kind ===

impl Kind {
    /// Whether it depends on the load of endpoints, and not only on their description.
    pub(super) const fn looks_at_load(self) -> bool {
        matches!(self, Self::LeastRequest | Self::PeakEwma)
    }

    pub(super) const fn looks_at_keys(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }

    /// The relative tolerance of a share, besides chance.
    const fn slack(self) -> f64 {
        match self {
            // Whole rounds, cut off somewhere.
            Self::RoundRobin => 0.02,
            Self::Random => 0.0,
            // An endpoint with less than one request in flight on average cannot be loaded exactly by its weight.
            Self::LeastRequest | Self::PeakEwma => 0.10,
            // Three standard deviations of 100 points.
            Self::RingHash => 0.30,
            // One place of 65 537 for each endpoint.
            Self::Maglev => 0.01,
        }
    }
}

pub(super) type Request = u64;

pub(super) const NO_PAUSE: Duration = Duration::ZERO;

/// The key of a request: clients draw their requests at random.
#[expect(clippy::unnecessary_wraps, reason = "not every request has one")]
pub(super) fn key(request: &Request) -> Option<u64> {
    Some(*request)
}

/// One endpoint.
#[derive(Clone, Default)]
pub(super) struct Node(Arc<State>);

#[derive(Default)]
struct State {
    served: AtomicU64,
    in_flight: AtomicU64,
    most: AtomicU64,
    micros: AtomicU64,
    fails: AtomicBool,
    is_dead: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

struct Busy(Arc<State>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Service<Request> for Node {
    type Response = ();
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<(), BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if !self.0.is_dead.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        // The clone of the driver is the last to be polled.
        *self.0.waker.lock().unwrap() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn call(&mut self, _: Request) -> Self::Future {
        let state = self.0.clone();
        state.served.fetch_add(1, Relaxed);
        let now = state.in_flight.fetch_add(1, Relaxed) + 1;
        state.most.fetch_max(now, Relaxed);
        let busy = Busy(state);
        Box::pin(async move {
            if busy.0.fails.load(Relaxed) {
                tokio::task::yield_now().await;
                return Err("broken".into());
            }
            // Up to a third more or less, so that clients are not in step.
            let micros = busy.0.micros.load(Relaxed);
            sleep(Duration::from_micros(micros * fastrand::u64(67..134) / 100)).await;
            Ok(())
        })
    }
}

/// The failing endpoints that active checks find.
#[derive(Clone, Default)]
pub(super) struct Ill(Arc<Mutex<BTreeSet<usize>>>);

// === impl Ill ===

impl Ill {
    /// A check once a second, with a fall of three and a rise of two.
    pub(super) fn check(&self) -> ActiveCheck {
        let ill = self.0.clone();
        let check = ActiveCheck::new(health::from_fn(move |endpoint: &Endpoint| {
            let id = endpoint.id().as_str()[1..].parse().expect("a number");
            let is_ill = ill.lock().unwrap().contains(&id);
            ready(if is_ill { Err("ill".into()) } else { Ok(()) })
        }));
        check.interval(Duration::from_secs(1))
    }

    pub(super) fn set(&self, ids: impl IntoIterator<Item = usize>) {
        *self.0.lock().unwrap() = ids.into_iter().collect();
    }
}

/// A balance over nodes, and its clients.
pub(super) struct Lab<P: Policy<Request>> {
    kind: Kind,
    pub(super) balance: Balance<Node, Request, P>,
    source: mpsc::UnboundedSender<Update>,
    nodes: Rc<RefCell<BTreeMap<String, Node>>>,
    generation: u64,
    clients: JoinSet<()>,
    /// The number of responses of each client.
    answered: Vec<Arc<AtomicU64>>,
    failed: Arc<AtomicU64>,
    _seed: Seed,
}

/// Prints how to repeat a scenario that fails.
struct Seed(u64);

// === impl Seed ===

impl Seed {
    fn new() -> Self {
        let seed = env::var("SCENARIO_SEED").map_or(1, |seed| seed.parse().expect("a number"));
        // Everything runs on this thread.
        fastrand::seed(seed);
        Self(seed)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("to repeat this: SCENARIO_SEED={}", self.0);
        }
    }
}

// === impl Lab ===

impl<P: Policy<Request>> Lab<P> {
    /// Over these endpoints, which answer in 10 ms.
    pub(super) async fn new(
        kind: Kind,
        builder: BalanceBuilder<P>,
        endpoints: Vec<Endpoint>,
    ) -> Self {
        let seed = Seed::new();
        let (source, updates) = source();
        let nodes = Rc::new(RefCell::new(BTreeMap::<String, Node>::new()));
        let all: BTreeMap<String, Node> = (0..32)
            .map(|id| {
                let node = Node::default();
                node.0.micros.store(10_000, Relaxed);
                (name(id), node)
            })
            .collect();
        nodes.borrow_mut().clone_from(&all);
        let (balance, driver) = builder
            .build(updates, move |endpoint: &Endpoint, _: &EjectionBudget| {
                all[endpoint.id().as_str()].clone()
            });
        tokio::spawn(driver);
        let mut lab = Self {
            kind,
            balance,
            source,
            nodes,
            generation: 0,
            clients: JoinSet::new(),
            answered: Vec::new(),
            failed: Arc::default(),
            _seed: seed,
        };
        lab.set(endpoints).await;
        lab
    }

    pub(super) async fn set(&mut self, endpoints: Vec<Endpoint>) {
        self.generation += 1;
        let topology = Topology::new(generation(self.generation), endpoints);
        self.source.send(Update::Snapshot(topology)).unwrap();
        settle().await;
    }

    /// Adds this number of clients, each of which waits for this time between a response and its next request.
    pub(super) fn clients(&mut self, clients: usize, pause: Duration) {
        for _ in 0..clients {
            let answered = Arc::new(AtomicU64::new(0));
            self.answered.push(answered.clone());
            let (mut balance, failed) = (self.balance.clone(), self.failed.clone());
            self.clients.spawn(async move {
                loop {
                    let pause = match balance.call(fastrand::u64(..)).await {
                        Ok(()) => {
                            answered.fetch_add(1, Relaxed);
                            pause
                        }
                        // A client does not retry at once after an immediate error: otherwise there would be nothing but
                        // errors.
                        Err(_) => {
                            failed.fetch_add(1, Relaxed);
                            pause.max(Duration::from_millis(1))
                        }
                    };
                    if !pause.is_zero() {
                        sleep(pause).await;
                    }
                }
            });
        }
    }

    /// Lets time pass without any request, which costs nothing. The same clients come again after it.
    pub(super) async fn rest(&mut self, time: Duration) {
        let clients = self.answered.len();
        self.clients.shutdown().await;
        sleep(time).await;
        self.answered.clear();
        self.clients(clients, NO_PAUSE);
    }

    fn node(&self, id: usize) -> Arc<State> {
        self.nodes.borrow()[&name(id)].0.clone()
    }

    pub(super) fn takes(&self, id: usize, time: Duration) {
        self.node(id).micros.store(time.as_micros() as u64, Relaxed);
    }

    pub(super) fn fails(&self, id: usize, fails: bool) {
        self.node(id).fails.store(fails, Relaxed);
    }

    /// Whether its connections are refused: it is not ready then.
    pub(super) fn is_dead(&self, id: usize, is_dead: bool) {
        let node = self.node(id);
        node.is_dead.store(is_dead, Relaxed);
        let waker = node.waker.lock().unwrap().take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// Changes the state of the first endpoints during this time.
    pub(super) async fn watch(&self, endpoints: usize, time: Duration) -> Seen {
        for id in 0..endpoints {
            let node = self.node(id);
            node.served.store(0, Relaxed);
            node.most.store(node.in_flight.load(Relaxed), Relaxed);
        }
        self.answered
            .iter()
            .for_each(|count| count.store(0, Relaxed));
        self.failed.store(0, Relaxed);
        sleep(time).await;
        let load = |count: &Arc<AtomicU64>| count.load(Relaxed);
        let served: Vec<u64> = (0..endpoints)
            .map(|id| self.node(id).served.load(Relaxed))
            .collect();
        Seen {
            kind: self.kind,
            most: (0..endpoints)
                .map(|id| self.node(id).most.load(Relaxed))
                .collect(),
            answered: self.answered.iter().map(load).collect(),
            failed: load(&self.failed),
            served,
        }
    }

    /// Measures approximately this number of requests, at the rate at which they arrive.
    pub(super) async fn watch_requests(&self, endpoints: usize, requests: u64) -> Seen {
        let start = Instant::now();
        let sample = self.watch(endpoints, Duration::from_millis(200)).await;
        let each = start.elapsed().as_secs_f64() / sample.total().max(1) as f64;
        self.watch(endpoints, Duration::from_secs_f64(each * requests as f64))
            .await
    }
}

/// The activity of a [`Lab`] in some time.
pub(super) struct Seen {
    kind: Kind,
    pub(super) served: Vec<u64>,
    /// The most requests that each had in flight.
    pub(super) most: Vec<u64>,
    pub(super) answered: Vec<u64>,
    pub(super) failed: u64,
}

// === impl Seen ===

impl Seen {
    pub(super) fn total(&self) -> u64 {
        self.served.iter().sum()
    }

    pub(super) fn share(&self, id: usize) -> f64 {
        self.served[id] as f64 / self.total() as f64
    }

    /// Each share is that of its weight, within the tolerance of the policy and four standard deviations of the same number
    /// of random picks.
    #[track_caller]
    pub(super) fn has_shares(&self, weights: &[f64], of: impl fmt::Display) {
        self.has_shares_within(weights, 0.0, of);
    }

    /// With more tolerance, and for a round whose shares are random, too.
    #[track_caller]
    pub(super) fn has_shares_within(&self, weights: &[f64], more: f64, of: impl fmt::Display) {
        let (sum, total): (f64, _) = (weights.iter().sum(), self.total() as f64);
        assert!(total > 0.0, "{self}: {of}: no requests");
        for (id, weight) in weights.iter().enumerate() {
            let share = weight / sum;
            let chance = match self.kind {
                Kind::RoundRobin if more == 0.0 => 2.0 / total,
                _ => 4.0 * (share * (1.0 - share) / total).sqrt(),
            };
            // The error of one endpoint is an error of the rest as well.
            let slack = (self.kind.slack() + more) * share.min(1.0 - share).max(share / 10.0);
            let off = (self.share(id) - share).abs();
            assert!(
                off <= slack + chance,
                "{self}: {of}: endpoint {id} has {:.4}, not {share:.4} +- {:.4}",
                self.share(id),
                slack + chance
            );
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.kind, self.served)
    }
}

pub(super) fn name(id: usize) -> String {
    format!("e{id:02}")
}

pub(super) fn endpoints(count: usize) -> Vec<Endpoint> {
    weighted(&vec![1; count])
}

pub(super) fn weighted(weights: &[u32]) -> Vec<Endpoint> {
    let weighted = |(id, weight): (usize, &u32)| {
        endpoint(&name(id)).with_weight(NonZeroU32::new(*weight).unwrap())
    };
    weights.iter().enumerate().map(weighted).collect()
}
