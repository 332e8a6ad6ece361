//! The budget of what may be out at once: shared by the endpoints' own circuits and by outlier detection.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use http::Request;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tower::Service;
use tower_outcome::{BoxError, Ejected, EjectionBudget};
use tower_resolve::{
    Balance, Endpoint, Phase, Topology, Update,
    balance::BalanceBuilder,
    health::Outlier,
    policy::{Policy, RoundRobin},
};

use crate::support::{endpoint, generation, request, settle, source};

/// An endpoint with a separate circuit, which opens after three consecutive failures if the budget allows it.
#[derive(Clone)]
struct Circuit {
    id: String,
    world: World,
    state: Arc<State>,
}

struct State {
    budget: EjectionBudget,
    ejected: Mutex<Option<Ejected>>,
    failures: AtomicUsize,
    wakers: Mutex<Vec<Waker>>,
}

#[derive(Clone, Default)]
struct World {
    bad: Arc<Mutex<BTreeSet<String>>>,
    /// The created services, by the id of the endpoint.
    made: Arc<Mutex<BTreeMap<String, Vec<Arc<State>>>>>,
}

struct Rig<P: Policy<Request<String>>> {
    balance: Balance<Circuit, Request<String>, P>,
    source: mpsc::UnboundedSender<Update>,
    world: World,
    driver: JoinHandle<()>,
    generation: u64,
}

// === impl Circuit ===

impl Service<Request<String>> for Circuit {
    type Response = ();
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<(), BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.state.is_open() {
            self.state.wakers.lock().unwrap().push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        let state = self.state.clone();
        let is_bad = self.world.bad.lock().unwrap().contains(&self.id);
        async move {
            if !is_bad {
                state.failures.store(0, SeqCst);
                return Ok(());
            }
            if state.failures.fetch_add(1, SeqCst) + 1 >= 3 && !state.is_open() {
                *state.ejected.lock().unwrap() = state.budget.try_eject();
            }
            Err("broken".into())
        }
        .boxed()
    }
}

// === impl State ===

impl State {
    fn is_open(&self) -> bool {
        self.ejected.lock().unwrap().is_some()
    }

    fn close(&self) {
        self.failures.store(0, SeqCst);
        drop(self.ejected.lock().unwrap().take());
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap());
        wakers.into_iter().for_each(Waker::wake);
    }
}

// === impl World ===

impl World {
    fn be_bad(&self, ids: &[&str]) {
        *self.bad.lock().unwrap() = ids.iter().map(|id| (*id).to_owned()).collect();
    }

    /// The latest created service.
    fn of(&self, id: &str) -> Arc<State> {
        self.made.lock().unwrap()[id].last().unwrap().clone()
    }

    fn made(&self, id: &str) -> usize {
        self.made.lock().unwrap()[id].len()
    }

    fn open(&self) -> Vec<String> {
        let made = self.made.lock().unwrap();
        let open = made
            .iter()
            .filter(|(_, made)| made.last().unwrap().is_open());
        open.map(|(id, _)| id.clone()).collect()
    }
}

// === impl Rig ===

async fn over(
    builder: BalanceBuilder<RoundRobin>,
    endpoints: impl IntoIterator<Item = Endpoint>,
) -> Rig<RoundRobin> {
    let ((source, updates), world) = (source(), World::default());
    let makes = world.clone();
    let make = move |endpoint: &Endpoint, budget: &EjectionBudget| {
        let state = Arc::new(State {
            budget: budget.clone(),
            ejected: Mutex::new(None),
            failures: AtomicUsize::new(0),
            wakers: Mutex::default(),
        });
        let id = endpoint.id().to_string();
        let mut made = makes.made.lock().unwrap();
        made.entry(id.clone()).or_default().push(state.clone());
        Circuit {
            id,
            world: makes.clone(),
            state,
        }
    };
    let (balance, driver) = builder.build(updates, make);
    let driver = tokio::spawn(driver);
    let mut rig = Rig {
        balance,
        source,
        world,
        driver,
        generation: 0,
    };
    rig.set(endpoints).await;
    rig
}

impl Rig<RoundRobin> {
    async fn set(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) {
        self.generation += 1;
        let topology = Topology::new(generation(self.generation), endpoints);
        self.source.send(Update::Snapshot(topology)).unwrap();
        settle().await;
    }

    /// Sends this number of requests, of which those to the `bad` fail. Returns how many failed.
    async fn send(&mut self, requests: usize, bad: &[&str]) -> usize {
        self.world.be_bad(bad);
        let mut failed = 0;
        for _ in 0..requests {
            failed += usize::from(self.balance.call(request()).await.is_err());
            tokio::task::yield_now().await;
        }
        failed
    }

    fn out(&self) -> Vec<String> {
        let endpoints = self.balance.snapshot().endpoints;
        let out = endpoints.iter().filter(|endpoint| endpoint.ejected);
        out.map(|out| out.endpoint.id().to_string()).collect()
    }
}

fn builder() -> BalanceBuilder<RoundRobin> {
    Balance::builder()
        .policy(RoundRobin::new())
        .max_wait(Duration::from_millis(10))
}

fn some(count: usize) -> Vec<Endpoint> {
    (0..count).map(|id| endpoint(&format!("e{id}"))).collect()
}

#[tokio::test(start_paused = true)]
async fn circuits_and_outlier_detection_together_take_out_half() {
    let all: Vec<_> = (0..10).map(|id| format!("e{id}")).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    for outlier in [Outlier::new(), Outlier::new().consecutive(NonZeroU16::MIN)] {
        let mut rig = over(builder().outlier(outlier), some(10)).await;
        let budget = rig.world.of("e0").budget.clone();
        assert_eq!((budget.members(), budget.max_out()), (10, 5));
        assert_eq!(
            rig.send(500, &all).await,
            500,
            "they fail at those that stay"
        );
        assert_eq!((budget.out(), rig.out().len()), (5, 5));
        assert!(!rig.balance.snapshot().panics);
        // A single endpoint is never out.
        rig.set(some(1)).await;
        rig.world.of("e0").close();
        sleep(Duration::from_secs(60)).await;
        rig.send(100, &all).await;
        assert_eq!((budget.members(), budget.out(), rig.out().len()), (1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_and_an_ejection_of_one_endpoint_take_one_place() {
    let mut rig = over(builder().outlier(Outlier::new()), some(4)).await;
    // Five consecutive failures at once: the circuit opens at the third, the rest began before that.
    rig.world.be_bad(&["e0"]);
    let sent: Vec<_> = (0..20).map(|_| rig.balance.call(request())).collect();
    for request in sent {
        let _ = request.await;
    }
    settle().await;
    let budget = rig.world.of("e1").budget.clone();
    assert_eq!(
        (rig.world.open(), rig.out(), budget.out()),
        (vec!["e0".to_owned()], vec!["e0".to_owned()], 1)
    );
    rig.world.of("e0").close();
    settle().await;
    assert_eq!(
        (rig.out(), budget.out()),
        (vec!["e0".to_owned()], 1),
        "ejected still"
    );
    sleep(Duration::from_secs(40)).await;
    assert_eq!((rig.out().len(), budget.out()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn each_priority_and_zone_has_a_separate_budget() {
    let at = |id: &str, priority, zone: &'static str| {
        endpoint(id).with_priority(priority).with_zone(zone)
    };
    let all = ["own", "far", "farther"].map(|zone| {
        let ids = (0..4).map(move |id| format!("{zone}{id}"));
        ids.map(|id| at(&id, 0, zone)).collect::<Vec<_>>()
    });
    let second = (0..2).map(|id| at(&format!("second{id}"), 1, "own"));
    let rig = over(
        builder().zone("own"),
        all.concat().into_iter().chain(second),
    )
    .await;
    let members = |id: &str| rig.world.of(id).budget.members();
    // All zones but the own are one, as they are for requests.
    assert_eq!(
        ["own0", "far0", "farther0", "second0"].map(members),
        [4, 8, 8, 2]
    );
    let out: Vec<_> = std::iter::from_fn(|| rig.world.of("second0").budget.try_eject())
        .take(1)
        .collect();
    let is_out = |id: &str| rig.world.of(id).budget.out();
    assert_eq!(["own0", "far0", "second1"].map(is_out), [0, 0, 1]);
    drop(out);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_moves_gets_a_new_service_on_its_new_budget() {
    let mut rig = over(builder().outlier(Outlier::new()), some(6)).await;
    rig.send(60, &["e0"]).await;
    assert_eq!(rig.world.open(), ["e0"]);
    let (old, new) = (rig.world.of("e1"), rig.world.of("e0"));
    assert_eq!((old.budget.members(), old.budget.out()), (6, 1));
    let moved = || {
        some(6).into_iter().map(|e| match e.id().as_str() {
            "e0" | "e2" => e.with_priority(1),
            _ => e,
        })
    };
    rig.set(moved()).await;
    assert_eq!(["e0", "e1", "e2"].map(|id| rig.world.made(id)), [2, 1, 2]);
    assert_eq!(
        (old.budget.members(), old.budget.out()),
        (4, 0),
        "given back"
    );
    assert!(
        new.is_open() && new.budget.try_eject().is_none(),
        "it has no effect any more"
    );
    let state = rig.world.of("e0");
    assert_eq!((state.budget.members(), state.budget.out()), (2, 0));
    assert_eq!(rig.balance.snapshot().ready(), 6);
    // Other changes of the description do not change the service.
    rig.set(moved().map(|endpoint| endpoint.with_metadata("version", "2")))
        .await;
    assert_eq!(rig.world.made("e0"), 2);
    assert_eq!(
        rig.balance.snapshot().endpoints[0].picks,
        3,
        "its history is its own"
    );
}

#[tokio::test(start_paused = true)]
async fn an_ejection_moves_with_its_endpoint_if_there_is_room() {
    let strikes = Outlier::new().consecutive(NonZeroU16::MIN);
    let mut rig = over(builder().outlier(strikes), some(6)).await;
    rig.send(60, &["e0", "e1"]).await;
    assert_eq!(rig.out(), ["e0", "e1"]);
    let moved = some(6).into_iter().map(|e| match e.id().as_str() {
        "e0" | "e1" => e.with_priority(1),
        _ => e,
    });
    rig.set(moved).await;
    assert_eq!(rig.out().len(), 1, "one of two may be out");
    let [old, new] = ["e2", "e0"].map(|id| rig.world.of(id).budget.clone());
    assert_eq!((old.out(), new.out()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_keeps_no_place_of_an_endpoint_that_was_removed() {
    let mut rig = over(builder(), some(4)).await;
    rig.send(40, &["e0", "e1"]).await;
    assert_eq!(rig.world.open(), ["e0", "e1"]);
    let budget = rig.world.of("e2").budget.clone();
    assert_eq!((budget.out(), budget.max_out()), (2, 2));
    // The handles that the test keeps are those of requests that never end.
    let held = [rig.world.of("e0"), rig.world.of("e1")];
    rig.set(some(8).into_iter().skip(2)).await;
    assert!(held.iter().all(|state| state.is_open()));
    assert_eq!(
        (budget.members(), budget.out(), budget.max_out()),
        (6, 0, 3)
    );
    rig.send(100, &["e2", "e3", "e4"]).await;
    assert_eq!(budget.out(), 3);
    held.iter().for_each(|state| state.close());
    assert_eq!(budget.out(), 3);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_are_not_meant_to_serve_have_no_place_in_the_budget() {
    let mut rig = over(builder().outlier(Outlier::new()), some(6)).await;
    rig.send(100, &["e0", "e1", "e2"]).await;
    let budget = rig.world.of("e3").budget.clone();
    assert_eq!((budget.members(), budget.out()), (6, 3));
    let in_phase = |phase| {
        some(6).into_iter().map(move |e| match e.id().as_str() {
            "e0" | "e1" => e.with_phase(phase),
            _ => e,
        })
    };
    for phase in [Phase::Draining, Phase::Fenced, Phase::Starting] {
        rig.set(in_phase(phase)).await;
        assert_eq!((budget.members(), budget.out()), (4, 1), "{phase:?}");
        rig.set(in_phase(Phase::Ready)).await;
        assert_eq!((budget.members(), budget.out()), (6, 3), "{phase:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ejections_end_when_the_set_shrinks_below_them() {
    let strikes = Outlier::new().consecutive(NonZeroU16::MIN);
    let mut rig = over(builder().outlier(strikes), some(8)).await;
    let bad = ["e0", "e1", "e2", "e3"];
    rig.send(100, &bad).await;
    assert_eq!(rig.out(), bad);
    rig.set(some(4)).await;
    assert_eq!(rig.out().len(), 2, "of those that are left, half");
    rig.set(some(1)).await;
    assert_eq!(rig.out().len(), 0, "and never the last one");
}

#[tokio::test(start_paused = true)]
async fn open_circuits_and_failed_checks_count_together_for_a_panic() {
    let sick = ["e0", "e1", "e2"];
    let check = tower_resolve::health::ActiveCheck::new(tower_resolve::health::from_fn(
        move |endpoint: &Endpoint| {
            let is_sick = sick.contains(&endpoint.id().as_str());
            async move {
                if is_sick {
                    Err(BoxError::from("sick"))
                } else {
                    Ok(())
                }
            }
        },
    ));
    let mut rig = over(builder().active_check(check), some(10)).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.out(), sick);
    rig.send(100, &["e3", "e4"]).await;
    assert_eq!(rig.out().len(), 5);
    assert!(!rig.balance.snapshot().panics, "just half");
    rig.send(100, &["e3", "e4", "e5"]).await;
    assert_eq!(rig.out().len(), 6);
    assert!(rig.balance.snapshot().panics);
    rig.world.of("e5").close();
    sleep(Duration::from_millis(1_100)).await;
    assert!(!rig.balance.snapshot().panics);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_driver_returns_all_places() {
    let strikes = Outlier::new().consecutive(NonZeroU16::MIN);
    let mut rig = over(builder().outlier(strikes), some(8)).await;
    rig.send(100, &["e0", "e1"]).await;
    let budget = rig.world.of("e2").budget.clone();
    assert_eq!(budget.out(), 2);
    rig.driver.abort();
    settle().await;
    assert_eq!(budget.out(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_created_again_after_a_failure_returns_its_place() {
    #[derive(Clone)]
    struct Fails(Arc<AtomicBool>);
    impl Service<Request<String>> for Fails {
        type Response = ();
        type Error = BoxError;
        type Future = std::future::Ready<Result<(), BoxError>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            if self.0.load(SeqCst) {
                return Poll::Ready(Err("finished".into()));
            }
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Request<String>) -> Self::Future {
            std::future::ready(Ok(()))
        }
    }
    let ((source, updates), made) = (source(), Arc::new(Mutex::new(Vec::new())));
    let makes = made.clone();
    let (mut balance, driver) = builder().build(updates, move |_, budget: &EjectionBudget| {
        let fails = Arc::new(AtomicBool::new(false));
        let place = budget.try_eject();
        makes
            .lock()
            .unwrap()
            .push((fails.clone(), budget.clone(), place));
        Fails(fails)
    });
    let _driver = tokio::spawn(driver);
    let topology = Topology::new(generation(1), some(2));
    source.send(Update::Snapshot(topology)).unwrap();
    settle().await;
    let first = made.lock().unwrap()[0].0.clone();
    {
        // The first was the only member when it was created, so the second has the place.
        let mut made = made.lock().unwrap();
        assert!(made[0].2.is_none() && made[1].2.take().is_some());
    }
    let held = made.lock().unwrap()[0].1.try_eject().unwrap();
    first.store(true, SeqCst);
    for _ in 0..4 {
        let _ = balance.call(request()).await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(made.lock().unwrap().len(), 3);
    let (_, budget, place) = made.lock().unwrap().pop().unwrap();
    assert!(place.is_some(), "the place of the one before is free");
    assert_eq!(budget.out(), 1);
    drop(held);
    assert_eq!(budget.out(), 1);
}
