//! Hosts with keepers, gates and requests; and what is seen of them from outside.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::Duration,
};

use fastrand::Rng;
use tokio::time::{sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_lease::{
    Claim, Holder, Lease, LeaseKey, LeaseLayer, LeaseStore, MemoryStore, OnStoreOutage, State,
    testing::SkewedClock,
};

use super::net::{Post, RemoteStore, Weather, serve};

pub(crate) const TTL: Duration = Duration::from_secs(5);
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    /// The greatest error of the nodes' clocks, in parts per million, and what the keepers believe it is.
    pub(crate) drift_ppm: i32,
    pub(crate) believed_ppm: u32,
    pub(crate) guard: Option<Duration>,
    /// Whether the first node watches its own record. (The other nodes always do.)
    pub(crate) first_watches: bool,
    pub(crate) longest_latency: Duration,
    pub(crate) weather: Weather,
    /// How many leases each node has; of one each by name if it is more than one, else one that all want.
    pub(crate) own_leases: usize,
    pub(crate) keep_serving: bool,
    pub(crate) lock_delay: Duration,
    /// Whether I1 is expected to hold: not past the drift that the margin covers, and not when operators revoke.
    pub(crate) exclusive: bool,
}

pub(crate) struct World {
    pub(crate) sim: turmoil::Sim<'static>,
    pub(crate) rng: Rng,
    pub(crate) weather: Arc<Mutex<Weather>>,
    post: Arc<Mutex<Post>>,
    eyes: Arc<Mutex<Eyes>>,
    nodes: Vec<Arc<Node>>,
    orders: Arc<Mutex<Vec<LeaseKey>>>,
    setup: Setup,
}

/// A host, as far as the test can reach into it.
#[derive(Default)]
pub(crate) struct Node {
    leases: Mutex<Vec<(Lease<SkewedClock>, SkewedClock)>>,
    /// To step down, perhaps in favour of another.
    leaving: Mutex<Option<Option<Claim>>>,
    paused: AtomicBool,
    sleepers: Mutex<Vec<Waker>>,
}

/// What is seen, by true time.
#[derive(Default)]
pub(crate) struct Eyes {
    /// Node, when it was last looked at, and whether it was open then.
    last: BTreeMap<usize, (u64, Option<u64>)>,
    /// When a gate was first seen open: time, node, epoch.
    pub(crate) openings: Vec<(Duration, usize, u64)>,
    pub(crate) closings: Vec<(Duration, usize)>,
    /// The greatest token the resource has accepted, and how many it refused.
    mark: u64,
    pub(crate) accepted: u64,
    pub(crate) stale: u64,
    pub(crate) answered: u64,
    pub(crate) refused: u64,
    pub(crate) broken: Vec<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 3,
            drift_ppm: 10_000,
            believed_ppm: 10_000,
            guard: None,
            first_watches: true,
            longest_latency: Duration::from_millis(60),
            weather: Weather::default(),
            own_leases: 0,
            keep_serving: false,
            lock_delay: Duration::ZERO,
            exclusive: true,
        }
    }
}

// === impl World ===

impl World {
    pub(crate) fn new(seed: u64, setup: Setup) -> Self {
        // The keepers' jitter.
        fastrand::seed(seed);
        let mut sim = turmoil::Builder::new()
            .simulation_duration(Duration::from_secs(1_000))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(setup.longest_latency)
            .udp_capacity(4096)
            .rng_seed(seed)
            .build();
        let store = MemoryStore::new();
        let (post, weather) = (
            Arc::<Mutex<Post>>::default(),
            Arc::new(Mutex::new(setup.weather)),
        );
        {
            let (store, post, weather) = (store.clone(), post.clone(), weather.clone());
            sim.host("store", move || {
                serve(store.clone(), post.clone(), weather.clone(), seed)
            });
        }
        let eyes = Arc::<Mutex<Eyes>>::default();
        let nodes: Vec<Arc<Node>> = (0..setup.nodes).map(|_| Arc::default()).collect();
        for (number, node) in nodes.iter().enumerate() {
            let (node, post, eyes) = (node.clone(), post.clone(), eyes.clone());
            sim.host(name(number), move || {
                run(number, setup, node.clone(), post.clone(), eyes.clone())
            });
        }
        let orders = Arc::<Mutex<Vec<LeaseKey>>>::default();
        {
            let (store, orders) = (RemoteStore::new(post.clone(), true), orders.clone());
            sim.host("operator", move || operate(store.clone(), orders.clone()));
        }
        Self {
            sim,
            rng: Rng::with_seed(seed),
            weather,
            post,
            eyes,
            nodes,
            orders,
            setup,
        }
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.sim.elapsed() + duration;
        while self.sim.elapsed() < end {
            self.sim.step().unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// Runs until it comes true; returns when.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        mut come: impl FnMut(&Self) -> bool,
    ) -> Duration {
        let end = self.sim.elapsed() + limit;
        while !come(self) {
            assert!(self.sim.elapsed() < end, "{what}: not within {limit:?}");
            self.sim.step().unwrap_or_else(|error| panic!("{error}"));
        }
        self.sim.elapsed()
    }

    /// The node whose gate is open, once one is.
    pub(crate) fn holder(&mut self) -> usize {
        self.run_until(TTL * 3, "somebody holds it", |world| world.open().is_some());
        self.open().expect("just seen")
    }

    pub(crate) fn open(&self) -> Option<usize> {
        self.eyes()
            .last
            .iter()
            .find_map(|(node, (_, epoch))| epoch.map(|_| *node))
    }

    /// Runs until a node other than this one is open; returns when.
    pub(crate) fn successor_of(&mut self, node: usize, limit: Duration) -> Duration {
        self.run_until(limit, "I7: a successor", |world| {
            world.open().is_some_and(|open| open != node)
        })
    }

    pub(crate) fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    pub(crate) fn eyes(&self) -> std::sync::MutexGuard<'_, Eyes> {
        self.eyes.lock().unwrap()
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    pub(crate) fn acquires(&self) -> u64 {
        self.post.lock().unwrap().acquires()
    }

    /// The operator takes the key away.
    pub(crate) fn revoke(&self) {
        self.orders.lock().unwrap().push(key());
    }

    /// The end: nothing that must hold was broken.
    pub(crate) fn check(&self) {
        let eyes = self.eyes();
        assert!(
            eyes.broken.is_empty(),
            "{:?}: {:#?}",
            self.setup,
            eyes.broken
        );
        assert!(
            eyes.openings.windows(2).all(|pair| pair[0].2 < pair[1].2) || self.setup.own_leases > 0,
            "I4"
        );
    }
}

pub(crate) fn name(node: usize) -> String {
    format!("node-{node}")
}

fn key() -> LeaseKey {
    LeaseKey::new("leader").expect("a key")
}

// === impl Node ===

impl Node {
    pub(crate) fn leases(&self) -> Vec<Lease<SkewedClock>> {
        self.leases
            .lock()
            .unwrap()
            .iter()
            .map(|(lease, _)| lease.clone())
            .collect()
    }

    /// The machine sleeps: its boot clock counts that, its timers do not.
    pub(crate) fn suspend(&self, slept: Duration) {
        self.leases
            .lock()
            .unwrap()
            .iter()
            .for_each(|(_, clock)| clock.suspend(slept));
    }

    pub(crate) fn step_down(&self, to: Option<Claim>) {
        *self.leaving.lock().unwrap() = Some(to);
    }

    /// Stops every task of the node, as a stopped process.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Relaxed);
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Relaxed);
        self.sleepers
            .lock()
            .unwrap()
            .drain(..)
            .for_each(Waker::wake);
    }

    async fn pausable<F: Future>(self: Arc<Self>, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if self.paused.load(Relaxed) {
                self.sleepers.lock().unwrap().push(cx.waker().clone());
                return Poll::Pending;
            }
            future.as_mut().poll(cx)
        })
        .await
    }

    fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(self.clone().pausable(future));
    }
}

/// The life of a host, from one start to the next.
async fn run(
    number: usize,
    setup: Setup,
    node: Arc<Node>,
    post: Arc<Mutex<Post>>,
    eyes: Arc<Mutex<Eyes>>,
) -> turmoil::Result {
    node.leases.lock().unwrap().clear();
    let store = RemoteStore::new(post, number > 0 || setup.first_watches);
    let ppm = fastrand::i32(-setup.drift_ppm..=setup.drift_ppm);
    let clock = SkewedClock::new(ppm, Duration::from_secs(fastrand::u64(0..1_000)));
    for own in 0..setup.own_leases.max(1) {
        let key = if setup.own_leases == 0 {
            key()
        } else {
            LeaseKey::new(&format!("own/{number}/{own}"))?
        };
        let mut builder = Lease::builder(store.clone(), key, Holder::new(&name(number)))
            .clock(clock.clone())
            .ttl(TTL)
            .clock_drift_ppm(setup.believed_ppm)
            .lock_delay(setup.lock_delay)
            .reacquire(true);
        if let Some(guard) = setup.guard {
            builder = builder.guard(guard);
        }
        if setup.keep_serving {
            builder = builder.membership(OnStoreOutage::KeepServing);
        }
        let (lease, keeper) = builder.build()?;
        node.spawn(async move {
            keeper.run().await;
        });
        node.leases.lock().unwrap().push((lease, clock.clone()));
    }
    let lease = node.leases()[0].clone();
    node.spawn(offer(lease.clone(), eyes.clone()));
    node.spawn(obey(lease.clone(), node.clone()));
    watch_over(number, lease, setup, eyes).await
}

/// Looks at the gate at each tick, as nothing inside may do for it.
async fn watch_over(
    number: usize,
    lease: Lease<SkewedClock>,
    setup: Setup,
    eyes: Arc<Mutex<Eyes>>,
) -> turmoil::Result {
    loop {
        let open = lease
            .token()
            .filter(|_| lease.is_held())
            .map(|token| token.epoch().get());
        let now = turmoil::sim_elapsed().unwrap_or_default();
        eyes.lock()
            .unwrap()
            .see(number, open, now, setup.exclusive && setup.own_leases == 0);
        sleep(TICK).await;
    }
}

/// Requests come in all the time; each works for a while, and has an effect on a resource that checks tokens.
async fn offer(lease: Lease<SkewedClock>, eyes: Arc<Mutex<Eyes>>) {
    let work = service_fn({
        let (lease, eyes) = (lease.clone(), eyes.clone());
        move |millis: u64| {
            let (token, eyes) = (lease.token(), eyes.clone());
            async move {
                sleep(Duration::from_millis(millis)).await;
                let Some(token) = token else {
                    return Err("let in without a token");
                };
                let epoch = token.epoch().get();
                tokio::task::spawn_local(async move {
                    sleep(Duration::from_millis(fastrand::u64(0..400))).await;
                    eyes.lock().unwrap().effect(epoch);
                });
                Ok(epoch)
            }
        }
    });
    let service = LeaseLayer::new(&lease).layer(work);
    loop {
        sleep(Duration::from_millis(fastrand::u64(20..120))).await;
        let (lease, eyes, call) = (
            lease.clone(),
            eyes.clone(),
            service.clone().oneshot(fastrand::u64(0..300)),
        );
        tokio::task::spawn_local(async move {
            // The one look that is asked for: at the very moment of the answer.
            let answer = timeout(Duration::from_secs(60), call).await;
            let good = lease.token().map(|token| token.epoch().get());
            eyes.lock().unwrap().outcome(answer, good);
        });
    }
}

/// Steps down on request.
async fn obey(lease: Lease<SkewedClock>, node: Arc<Node>) {
    loop {
        sleep(TICK).await;
        let told = node.leaving.lock().unwrap().take();
        match told {
            Some(Some(to)) => drop(lease.hand_over(&to).await),
            Some(None) => drop(lease.step_down().await),
            None => {}
        }
    }
}

async fn operate(store: RemoteStore, orders: Arc<Mutex<Vec<LeaseKey>>>) -> turmoil::Result {
    loop {
        sleep(TICK).await;
        let order = orders.lock().unwrap().pop();
        if let Some(key) = order {
            _ = timeout(Duration::from_secs(2), store.revoke(&key, None)).await;
        }
    }
}

// === impl Eyes ===

impl Eyes {
    fn see(&mut self, node: usize, open: Option<u64>, now: Duration, exclusive: bool) {
        let tick = u64::try_from(now.as_nanos() / TICK.as_nanos()).unwrap_or(0);
        let before = self
            .last
            .insert(node, (tick, open))
            .and_then(|(_, open)| open);
        match (before, open) {
            (before, Some(epoch)) if before != open => self.openings.push((now, node, epoch)),
            (Some(_), None) => self.closings.push((now, node)),
            _ => {}
        }
        let at_once: Vec<_> = self
            .last
            .iter()
            .filter(|(_, (at, open))| *at == tick && open.is_some())
            .collect();
        if exclusive && open.is_some() && at_once.len() > 1 {
            self.broken.push(format!("I1: at {now:?} {at_once:?}"));
        }
    }

    /// I2: the resource refuses what is older than what it has accepted.
    fn effect(&mut self, epoch: u64) {
        if epoch < self.mark {
            self.stale += 1;
            return;
        }
        self.mark = epoch;
        self.accepted += 1;
    }

    fn outcome<E>(
        &mut self,
        answer: Result<Result<u64, E>, tokio::time::error::Elapsed>,
        good: Option<u64>,
    ) {
        match answer {
            Ok(Ok(epoch)) if good != Some(epoch) => {
                self.broken.push(format!(
                    "I3: an answer of epoch {epoch} left while {good:?} was held"
                ));
            }
            Ok(Ok(_)) => self.answered += 1,
            Ok(Err(_)) => self.refused += 1,
            Err(_) => self
                .broken
                .push("I9: a request had no outcome within a minute".into()),
        }
    }

    /// A host that crashed looks at nothing any more.
    pub(crate) fn forget(&mut self, node: usize) {
        self.last.remove(&node);
    }

    /// When a node's gate was last seen to close.
    pub(crate) fn closed(&self, node: usize) -> Option<Duration> {
        self.closings
            .iter()
            .rev()
            .find(|(_, which)| *which == node)
            .map(|(at, _)| *at)
    }
}

/// Whether a state is one of those.
pub(crate) const fn is_jeopardy(state: State) -> bool {
    matches!(state, State::Jeopardy { .. })
}
