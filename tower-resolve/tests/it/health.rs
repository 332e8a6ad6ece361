//! Checks and ejections, in paused time; the probes against real servers on loopback.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Ready, ready},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use tokio::{sync::mpsc, time::sleep};
use tower::Service;
use tower_outcome::{BoxError, EjectionBudget};
use tower_resolve::{
    Balance, Endpoint, NoEndpoints, Phase, Topology, Update,
    balance::BalanceBuilder,
    health::{self, ActiveCheck, Outlier},
    policy::{Maglev, Policy, RoundRobin},
};

use crate::support::{endpoint, generation, request, settle, snapshot, source};

/// Endpoints that fail or are not ready, as the test configures them.
#[derive(Clone, Default)]
struct World(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    bad: BTreeSet<String>,
    calls: BTreeMap<String, usize>,
}

/// One of them.
#[derive(Clone)]
struct Flaky(String, World);

impl Service<Request<String>> for Flaky {
    type Response = ();
    type Error = BoxError;
    type Future = Ready<Result<(), BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        let mut world = self.1.0.lock().unwrap();
        *world.calls.entry(self.0.clone()).or_default() += 1;
        ready(if world.bad.contains(&self.0) {
            Err("broken".into())
        } else {
            Ok(())
        })
    }
}

struct Rig<P: Policy<Request<String>>> {
    balance: Balance<Flaky, Request<String>, P>,
    source: mpsc::UnboundedSender<Update>,
    world: World,
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|id| format!("e{id}")).collect()
}

async fn over<P: Policy<Request<String>>>(builder: BalanceBuilder<P>, count: usize) -> Rig<P> {
    rig_with(builder, snapshot(1, &as_strs(&names(count)))).await
}

/// Over the first snapshot of the source.
async fn rig_with<P: Policy<Request<String>>>(
    builder: BalanceBuilder<P>,
    update: Update,
) -> Rig<P> {
    let ((source, updates), world) = (source(), World::default());
    let all = world.clone();
    let make = move |endpoint: &Endpoint, _: &EjectionBudget| {
        Flaky(endpoint.id().to_string(), all.clone())
    };
    let (balance, driver) = builder.build(updates, make);
    tokio::spawn(driver);
    source.send(update).unwrap();
    settle().await;
    Rig {
        balance,
        source,
        world,
    }
}

impl<P: Policy<Request<String>>> Rig<P> {
    fn be_bad(&self, bad: &[&str]) {
        self.world.0.lock().unwrap().bad = bad.iter().map(|id| (*id).to_owned()).collect();
    }

    fn calls(&self, id: &str) -> usize {
        self.world
            .0
            .lock()
            .unwrap()
            .calls
            .get(id)
            .copied()
            .unwrap_or_default()
    }
}

/// Sends this number of requests, of which those to the `bad` fail. Returns how many failed.
async fn send<P: Policy<Request<String>>>(
    rig: &mut Rig<P>,
    requests: usize,
    bad: &[&str],
) -> usize {
    rig.be_bad(bad);
    let mut failed = 0;
    for _ in 0..requests {
        failed += usize::from(rig.balance.call(request()).await.is_err());
        tokio::task::yield_now().await;
    }
    failed
}

fn out<P: Policy<Request<String>>>(rig: &Rig<P>) -> Vec<String> {
    let now = rig.balance.snapshot();
    now.endpoints
        .iter()
        .filter(|e| e.ejected)
        .map(|e| e.endpoint.id().to_string())
        .collect()
}

// === outliers ===

#[tokio::test(start_paused = true)]
async fn five_consecutive_failures_eject_an_endpoint_for_half_a_minute() {
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        6,
    )
    .await;
    assert_eq!(send(&mut rig, 600, &["e2"]).await, 5);
    assert_eq!(out(&rig), ["e2"]);
    sleep(Duration::from_secs(29)).await;
    assert_eq!(send(&mut rig, 60, &["e2"]).await, 0);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(send(&mut rig, 60, &[]).await, 0);
    assert!(out(&rig).is_empty());
    assert_eq!(rig.balance.snapshot().endpoints[2].picks, 5 + 10);
}

#[tokio::test(start_paused = true)]
async fn a_success_in_between_resets_the_count() {
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        6,
    )
    .await;
    for _ in 0..10 {
        send(&mut rig, 24, &["e2"]).await;
        send(&mut rig, 6, &[]).await;
    }
    assert!(out(&rig).is_empty());
}

#[tokio::test(start_paused = true)]
async fn with_all_of_them_failing_half_of_them_stay() {
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        10,
    )
    .await;
    let all = names(10);
    send(
        &mut rig,
        500,
        &all.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    assert_eq!(out(&rig).len(), 5);
    assert!(!rig.balance.snapshot().panics);
    let mut few = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        3,
    )
    .await;
    send(&mut few, 100, &["e0", "e1", "e2"]).await;
    assert_eq!(out(&few).len(), 1, "half of three");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_far_below_the_mean_is_ejected_without_five_consecutive_failures() {
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        8,
    )
    .await;
    for _ in 0..150 {
        send(&mut rig, 8, &["e5"]).await;
        send(&mut rig, 8, &[]).await;
    }
    assert!(out(&rig).is_empty());
    sleep(Duration::from_secs(11)).await;
    assert_eq!(out(&rig), ["e5"]);
}

#[tokio::test(start_paused = true)]
async fn abandoned_requests_are_not_counted() {
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        8,
    )
    .await;
    // Most of them are abandoned, at all endpoints; of those with a response, every other one of e5 fails.
    for _ in 0..150 {
        for _ in 0..80 {
            drop(rig.balance.call(request()));
        }
        send(&mut rig, 8, &["e5"]).await;
        send(&mut rig, 8, &[]).await;
    }
    sleep(Duration::from_secs(11)).await;
    assert_eq!(out(&rig), ["e5"]);
    let mut idle = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        8,
    )
    .await;
    for _ in 0..10 {
        for _ in 0..80 {
            drop(idle.balance.call(request()));
        }
        send(&mut idle, 8, &["e5"]).await;
        send(&mut idle, 8, &[]).await;
    }
    sleep(Duration::from_secs(11)).await;
    assert!(
        out(&idle).is_empty(),
        "twenty answers are too few to judge by"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_began_before_an_ejection_does_not_count_after_it() {
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(Outlier::new()),
        2,
    )
    .await;
    // Nine requests hang at e0 and will fail later; five fail now.
    let mut hung = Vec::new();
    rig.be_bad(&["e0"]);
    for _ in 0..18 {
        hung.push(rig.balance.call(request()));
    }
    send(&mut rig, 20, &["e0"]).await;
    assert_eq!(out(&rig), ["e0"]);
    sleep(Duration::from_secs(40)).await;
    assert!(out(&rig).is_empty());
    let mut failed = 0;
    for late in hung {
        failed += usize::from(late.await.is_err());
    }
    settle().await;
    assert_eq!(failed, 9);
    assert!(out(&rig).is_empty(), "they are of the previous term");
}

#[tokio::test(start_paused = true)]
async fn a_driver_over_an_empty_set_is_not_woken() {
    let checks = Sick::default();
    for missing in [snapshot(2, &[]), Update::DoesNotExist(generation(2))] {
        let (source, updates) = source();
        let builder = Balance::builder()
            .outlier(Outlier::new())
            .active_check(checks.check());
        let all = World::default();
        let make = move |endpoint: &Endpoint, _: &EjectionBudget| {
            Flaky(endpoint.id().to_string(), all.clone())
        };
        let (_balance, driver) = builder.build::<_, Request<String>, _, _>(updates, make);
        let mut driver = tokio_test::task::spawn(driver);
        source.send(snapshot(1, &["e0", "e1"])).unwrap();
        assert!(driver.poll().is_pending());
        source.send(missing).unwrap();
        assert!(driver.poll().is_pending());
        // Past every sweep and every check that was due when the endpoints were removed.
        for _ in 0..4 {
            sleep(Duration::from_secs(11)).await;
            assert!(driver.poll().is_pending());
            assert!(!driver.is_woken(), "it has nothing to wait for");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_could_not_be_ejected_is_evaluated_again() {
    let outlier = Outlier::new().max_ejected(10);
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(outlier),
        10,
    )
    .await;
    send(&mut rig, 60, &["e0"]).await;
    assert_eq!(out(&rig), ["e0"]);
    // The budget allows one of ten.
    send(&mut rig, 100, &["e1"]).await;
    assert_eq!(out(&rig), ["e0"]);
    sleep(Duration::from_secs(40)).await;
    assert_eq!(out(&rig), [""; 0]);
    let failed = send(&mut rig, 3_000, &["e1"]).await;
    assert_eq!(out(&rig), ["e1"]);
    assert!(failed <= 5, "{failed} of 3,000 failed");
}

// === priorities and zones ===

/// Endpoints `p0…` of the first priority, or of the own zone, and `s0…` of the second, or of another zone.
fn levels(first: usize, second: usize, by_zone: bool) -> Update {
    let place = |name: String, is_first: bool| match by_zone {
        true => endpoint(&name).with_zone(if is_first { "own" } else { "other" }),
        false => endpoint(&name).with_priority(u16::from(!is_first)),
    };
    let first = (0..first).map(|id| place(format!("p{id}"), true));
    let second = (0..second).map(|id| place(format!("s{id}"), false));
    Update::Snapshot(Topology::new(generation(1), first.chain(second)))
}

fn named(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|id| format!("{prefix}{id}")).collect()
}

fn as_strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// The number of requests to endpoints with this prefix.
fn calls_to<P: Policy<Request<String>>>(rig: &Rig<P>, prefix: &str) -> usize {
    let world = rig.world.0.lock().unwrap();
    let calls = world.calls.iter();
    calls
        .filter(|(id, _)| id.starts_with(prefix))
        .map(|(_, calls)| calls)
        .sum()
}

fn forget_calls<P: Policy<Request<String>>>(rig: &Rig<P>) {
    rig.world.0.lock().unwrap().calls.clear();
}

const SIZES: [(usize, usize, bool); 6] = [
    (8, 8, false),
    (8, 4, false),
    (20, 10, false),
    (6, 2, false),
    (8, 4, true),
    (200, 1, false),
];

#[tokio::test(start_paused = true)]
async fn a_smaller_standby_takes_all_of_the_load_of_endpoints_that_fail_their_checks() {
    for (first, second, by_zone) in SIZES {
        let sick = Sick::default();
        let ids = named("p", first);
        sick.be(&as_strs(&ids));
        let builder = Balance::builder()
            .policy(RoundRobin::new())
            .zone("own")
            .active_check(sick.check());
        let mut rig = rig_with(builder, levels(first, second, by_zone)).await;
        sleep(Duration::from_secs(10)).await;
        assert_eq!(out(&rig).len(), first);
        forget_calls(&rig);
        assert_eq!(
            send(&mut rig, 1_000, &as_strs(&ids)).await,
            0,
            "{first} + {second}"
        );
        assert_eq!((calls_to(&rig, "p"), calls_to(&rig, "s")), (0, 1_000));
        assert!(!rig.balance.snapshot().panics);
        // And back, when they are healthy.
        sick.be(&[]);
        sleep(Duration::from_secs(20)).await;
        forget_calls(&rig);
        send(&mut rig, 1_000, &[]).await;
        assert_eq!(calls_to(&rig, "s"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_smaller_standby_takes_all_of_the_load_of_endpoints_that_fail_their_requests() {
    for (first, second, by_zone) in SIZES {
        let ids = named("p", first);
        let builder = Balance::builder()
            .policy(RoundRobin::new())
            .zone("own")
            .outlier(Outlier::new());
        let mut rig = rig_with(builder, levels(first, second, by_zone)).await;
        let failed = send(&mut rig, 3_000, &as_strs(&ids)).await;
        assert_eq!(
            (out(&rig).len(), failed),
            (first, 5 * first),
            "{first} + {second}"
        );
        forget_calls(&rig);
        assert_eq!(send(&mut rig, 1_000, &as_strs(&ids)).await, 0);
        // The standby fails too: half of it stays, and half of the first comes back, as there is no other.
        let all: Vec<_> = ids.into_iter().chain(named("s", second)).collect();
        send(&mut rig, 30 * (first + second), &as_strs(&all)).await;
        let out = out(&rig);
        let out_of = |prefix: &str| out.iter().filter(|id| id.starts_with(prefix)).count();
        assert_eq!(out_of("s"), if second == 1 { 0 } else { second / 2 });
        assert!(out_of("p") <= first, "{out:?}");
        if second > 1 {
            assert_eq!(out_of("p"), first / 2, "{first} + {second}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_priority_panics_when_the_next_cannot_take_the_load() {
    let sick = Sick::default();
    let builder = Balance::builder()
        .policy(RoundRobin::new())
        .active_check(sick.check());
    let mut rig = rig_with(builder, levels(10, 10, false)).await;
    let mut ill = [named("p", 6), named("s", 2)].concat();
    sick.be(&as_strs(&ill));
    sleep(Duration::from_secs(20)).await;
    forget_calls(&rig);
    send(&mut rig, 4_000, &[]).await;
    let ill_calls = ill.iter().map(|id| rig.calls(id)).sum::<usize>();
    assert!(!rig.balance.snapshot().panics, "the second has room");
    assert_eq!(ill_calls, 0);
    let to_first = calls_to(&rig, "p");
    assert!(
        (2_080..2_400).contains(&to_first),
        "what 4 of 10 can take: {to_first}"
    );

    // Together they can take less than the full load: the first panics, and the second, where half are healthy, does not.
    ill = [named("p", 8), named("s", 5)].concat();
    sick.be(&as_strs(&ill));
    sleep(Duration::from_secs(20)).await;
    forget_calls(&rig);
    send(&mut rig, 4_000, &[]).await;
    assert!(rig.balance.snapshot().panics);
    let of = |prefix: &str| {
        let ids = ill.iter().filter(|id| id.starts_with(prefix));
        ids.map(|id| rig.calls(id)).sum::<usize>()
    };
    assert_eq!(of("s"), 0, "health is used there");
    let to_first = calls_to(&rig, "p");
    assert!(
        (1_000..1_290).contains(&to_first),
        "0.28 to 0.7: {to_first}"
    );
    let ill_part = of("p") as f64 / to_first as f64;
    assert!(
        (0.74..0.86).contains(&ill_part),
        "spread over all ten: {ill_part}"
    );

    // No endpoint is healthy, so the checks are at fault.
    let all = [named("p", 10), named("s", 10)].concat();
    sick.be(&as_strs(&all));
    sleep(Duration::from_secs(20)).await;
    forget_calls(&rig);
    assert_eq!(send(&mut rig, 100, &[]).await, 0);
    assert_eq!(calls_to(&rig, "p"), 100, "the first, as if all were well");

    sick.be(&[]);
    sleep(Duration::from_secs(20)).await;
    assert!(!rig.balance.snapshot().panics);
    assert!(out(&rig).is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_endpoints_that_may_serve_count_for_a_panic() {
    for phase in [Phase::Fenced, Phase::Starting, Phase::Draining] {
        let sick = Sick::default();
        let ids = [named("e", 1), named("o", 7)].concat();
        sick.be(&as_strs(&ids));
        let builder = Balance::builder()
            .policy(RoundRobin::new())
            .active_check(sick.check());
        let ready = (0..7).map(|id| endpoint(&format!("e{id}")));
        let others = (0..7).map(|id| endpoint(&format!("o{id}")).with_phase(phase));
        let topology = Topology::new(generation(1), ready.chain(others));
        let mut rig = rig_with(builder, Update::Snapshot(topology)).await;
        sleep(Duration::from_secs(20)).await;
        forget_calls(&rig);
        send(&mut rig, 700, &[]).await;
        assert!(!rig.balance.snapshot().panics, "{phase:?}");
        assert_eq!((rig.calls("e0"), calls_to(&rig, "o")), (0, 0));

        // The health of an endpoint counts as soon as it is meant to serve.
        let ready = (0..7).map(|id| endpoint(&format!("e{id}")));
        let others = (0..7).map(|id| endpoint(&format!("o{id}")));
        let topology = Topology::new(generation(2), ready.chain(others));
        rig.source.send(Update::Snapshot(topology)).unwrap();
        settle().await;
        assert!(rig.balance.snapshot().panics, "8 of 14 are ill");
        sleep(Duration::from_secs(2)).await;
        let ready = (0..7).map(|id| endpoint(&format!("e{id}")));
        let others = (0..7).map(|id| endpoint(&format!("o{id}")).with_phase(phase));
        let topology = Topology::new(generation(3), ready.chain(others));
        rig.source.send(Update::Snapshot(topology)).unwrap();
        settle().await;
        assert!(!rig.balance.snapshot().panics);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_has_begun_lasts_a_second() {
    let sick = Sick::default();
    let ids = named("p", 8);
    sick.be(&as_strs(&ids));
    let builder = Balance::builder()
        .policy(RoundRobin::new())
        .active_check(sick.check());
    let rig = rig_with(builder, levels(8, 0, false)).await;
    sleep(Duration::from_secs(20)).await;
    assert!(rig.balance.snapshot().panics);
    // The standby comes and goes: the tier of eight is not rebuilt each time.
    let all = |value: u64, standby: usize| {
        let Update::Snapshot(all) = levels(8, standby, false) else {
            unreachable!()
        };
        let generation = generation(value);
        Update::Snapshot(Topology::new(generation, all.iter().cloned()))
    };
    rig.source.send(all(2, 4)).unwrap();
    settle().await;
    assert!(!rig.balance.snapshot().panics, "it began long ago");
    rig.source.send(all(3, 0)).unwrap();
    settle().await;
    assert!(rig.balance.snapshot().panics);
    rig.source.send(all(4, 4)).unwrap();
    settle().await;
    assert!(rig.balance.snapshot().panics, "it has just begun");
    sleep(Duration::from_secs(1)).await;
    assert!(!rig.balance.snapshot().panics, "and ends by itself");
}

// === checks ===

/// A probe whose failing endpoints can be changed, and which counts concurrent checks.
#[derive(Clone, Default)]
struct Sick {
    ids: Arc<Mutex<BTreeSet<String>>>,
    asked: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    takes: Duration,
}

impl Sick {
    fn check(&self) -> ActiveCheck {
        let sick = self.clone();
        ActiveCheck::new(health::from_fn(move |endpoint: &Endpoint| {
            let sick = sick.clone();
            let id = endpoint.id().to_string();
            async move {
                sick.asked.fetch_add(1, SeqCst);
                sick.most
                    .fetch_max(sick.running.fetch_add(1, SeqCst) + 1, SeqCst);
                sleep(sick.takes).await;
                sick.running.fetch_sub(1, SeqCst);
                if sick.ids.lock().unwrap().contains(&id) {
                    Err(BoxError::from("sick"))
                } else {
                    Ok(())
                }
            }
        }))
    }

    fn be(&self, ids: &[&str]) {
        *self.ids.lock().unwrap() = ids.iter().map(|id| (*id).to_owned()).collect();
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_out_after_three_failed_checks_and_back_after_two_good_ones() {
    let sick = Sick::default();
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .active_check(sick.check()),
        6,
    )
    .await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(sick.asked.load(SeqCst), 6, "each once, soon");
    sick.be(&["e4"]);
    sleep(Duration::from_secs(8)).await;
    assert!(out(&rig).is_empty(), "two at most");
    sleep(Duration::from_secs(9)).await;
    assert_eq!(out(&rig), ["e4"]);
    let before = rig.calls("e4");
    send(&mut rig, 60, &[]).await;
    assert_eq!(rig.calls("e4"), before);
    sick.be(&[]);
    sleep(Duration::from_secs(12)).await;
    assert!(out(&rig).is_empty());
    send(&mut rig, 60, &[]).await;
    assert_eq!(rig.calls("e4"), before + 10);
}

#[tokio::test(start_paused = true)]
async fn the_first_check_decides_alone_also_for_a_policy_with_keys() {
    let sick = Sick::default();
    sick.be(&["e1"]);
    let keyed = Balance::builder().policy(Maglev::new(|_: &Request<String>| None));
    let mut rig = over(keyed.active_check(sick.check()), 6).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(out(&rig), ["e1"]);
    let before = rig.calls("e1");
    send(&mut rig, 100, &[]).await;
    assert_eq!(rig.calls("e1"), before);
}

#[tokio::test(start_paused = true)]
async fn health_is_ignored_when_most_are_out_except_below_five_endpoints() {
    let sick = Sick::default();
    sick.be(&["e0", "e1", "e2", "e3"]);
    let mut rig = over(
        Balance::builder()
            .policy(RoundRobin::new())
            .active_check(sick.check()),
        6,
    )
    .await;
    sleep(Duration::from_secs(2)).await;
    let now = rig.balance.snapshot();
    assert_eq!((now.panics, out(&rig).len()), (true, 4));
    send(&mut rig, 60, &[]).await;
    assert!(names(6).iter().all(|id| rig.calls(id) == 10));
    sick.be(&["e0"]);
    sleep(Duration::from_secs(12)).await;
    assert_eq!(
        (rig.balance.snapshot().panics, out(&rig)),
        (false, vec!["e0".to_owned()])
    );

    let sick = Sick::default();
    sick.be(&["e0", "e1", "e2", "e3"]);
    let mut few = over(Balance::builder().active_check(sick.check()), 4).await;
    sleep(Duration::from_secs(2)).await;
    let error = few.balance.call(request()).await.unwrap_err();
    let error: &NoEndpoints = error.downcast_ref().unwrap();
    assert_eq!((error.known(), error.ready(), error.ejected()), (4, 0, 4));
}

/// The address or service to check may be in the metadata, which changes while the instance stays.
#[tokio::test(start_paused = true)]
async fn a_check_sees_the_current_description_of_the_endpoint() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = seen.clone();
    let check = ActiveCheck::new(health::from_fn(move |endpoint: &Endpoint| {
        let version = endpoint.metadata().get("version").cloned();
        sees.lock().unwrap().push(version.unwrap());
        std::future::ready(Ok::<_, BoxError>(()))
    }));
    let described = |version: u64| {
        let endpoint = endpoint("a").with_metadata("version", version.to_string());
        Update::Snapshot(Topology::new(generation(version), [endpoint]))
    };
    let rig = rig_with(Balance::builder().active_check(check), described(1)).await;
    sleep(Duration::from_secs(20)).await;
    rig.source.send(described(2)).unwrap();
    settle().await;
    let before = std::mem::take(&mut *seen.lock().unwrap());
    assert!(before.iter().all(|version| version == "1"), "{before:?}");
    sleep(Duration::from_secs(20)).await;
    let after = seen.lock().unwrap();
    assert!(
        after.len() > 2 && after.iter().all(|version| version == "2"),
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_is_a_failure() {
    let sick = Sick {
        takes: Duration::from_secs(60),
        ..Sick::default()
    };
    let rig = over(Balance::builder().active_check(sick.check()), 4).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(out(&rig).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn at_most_the_limit_of_checks_runs_at_once() {
    let sick = Sick {
        takes: Duration::from_millis(400),
        ..Sick::default()
    };
    let check = sick.check().max_concurrent(NonZeroUsize::new(3).unwrap());
    let _rig = over(Balance::builder().active_check(check), 30).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(sick.most.load(SeqCst), 3);
    assert!(
        sick.asked.load(SeqCst) >= 90,
        "and never fewer, while some are due"
    );
}

#[tokio::test(start_paused = true)]
async fn a_removed_endpoint_is_not_checked_any_more() {
    let sick = Sick::default();
    let rig = over(Balance::builder().active_check(sick.check()), 6).await;
    sleep(Duration::from_secs(2)).await;
    rig.source.send(snapshot(2, &["e0"])).unwrap();
    settle().await;
    let before = sick.asked.load(SeqCst);
    sleep(Duration::from_secs(50)).await;
    let asked = sick.asked.load(SeqCst) - before;
    assert!(
        (9..=12).contains(&asked),
        "one endpoint, every five seconds: {asked}"
    );
}

#[cfg(feature = "hyper")]
mod probes {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tower_resolve::health::{HttpProbe, Probe, TcpProbe};

    use super::*;

    fn at(addr: SocketAddr) -> Endpoint {
        Endpoint::new("a", addr)
    }

    async fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
    }

    /// Answers each connection with these bytes, for any request.
    async fn answers(bytes: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(bytes.as_bytes()).await;
            }
        });
        addr
    }

    #[tokio::test]
    async fn tcp_checks_that_a_connection_is_accepted() {
        TcpProbe.probe(&at(answers("").await)).await.unwrap();
        TcpProbe.probe(&at(nobody().await)).await.unwrap_err();
    }

    #[tokio::test]
    async fn http_checks_for_a_good_status() {
        let probe = HttpProbe::new("/ready?x".parse().unwrap());
        probe
            .probe(&at(answers("HTTP/1.1 204 No Content\r\n\r\n").await))
            .await
            .unwrap();
        let error = probe
            .probe(&at(answers(
                "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            )
            .await))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
        probe.probe(&at(answers("").await)).await.unwrap_err();
        probe
            .probe(&at(answers("SSH-2.0\r\n").await))
            .await
            .unwrap_err();
        probe.probe(&at(nobody().await)).await.unwrap_err();
    }

    #[cfg(feature = "http2")]
    #[tokio::test]
    async fn grpc_queries_the_health_service_of_a_real_server() {
        use tonic_health::ServingStatus;
        use tower_resolve::health::GrpcProbe;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("echo", ServingStatus::Serving)
            .await;
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        GrpcProbe::new("").probe(&at(addr)).await.unwrap();
        GrpcProbe::new("echo").probe(&at(addr)).await.unwrap();
        let error = GrpcProbe::new("other").probe(&at(addr)).await.unwrap_err();
        assert!(error.to_string().contains("status 5"), "NOT_FOUND: {error}");
        reporter
            .set_service_status("echo", ServingStatus::NotServing)
            .await;
        assert_eq!(
            GrpcProbe::new("echo")
                .probe(&at(addr))
                .await
                .unwrap_err()
                .to_string(),
            "not serving"
        );
        server.abort();
        let _ = server.await;
        GrpcProbe::new("").probe(&at(addr)).await.unwrap_err();
    }
}
