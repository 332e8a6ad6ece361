//! The state of a balance after requests that are dropped at any moment, and after sets that shrink to nothing and come
//! back.

use std::{
    num::{NonZeroU16, NonZeroU32},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::Service;
use tower_outcome::{BoxError, EjectionBudget};
use tower_resolve::{
    Balance, Endpoint, NoEndpoints, Phase, Topology, Update,
    health::Outlier,
    policy::{LeastRequest, Maglev, PeakEwma, Policy, RingHash, RoundRobin},
};

use crate::support::{
    endpoint, generation,
    replica::{Replicas, endpoints, name},
    request, rig, settle, snapshot, source, timed,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_abandoned_requests_leaves_no_state_behind() {
    async fn check<P: Policy<Request<String>>>(policy: P) {
        let (source, updates) = source();
        let make = |_: &Endpoint, _: &EjectionBudget| {
            tower::service_fn(async |_: Request<String>| {
                sleep(Duration::from_micros(fastrand::u64(..500))).await;
                Ok::<_, BoxError>(())
            })
        };
        let (balance, driver) = Balance::builder()
            .policy(policy)
            .max_in_flight(NonZeroU32::new(2).unwrap())
            .max_wait(Duration::from_secs(30))
            .build(updates, make);
        tokio::spawn(driver);
        let sets = [&["a", "b", "c"][..], &["a"], &["b", "c"], &["d"]];
        source.send(snapshot(1, sets[0])).unwrap();
        let mut tasks = JoinSet::new();
        for _ in 0..64 {
            let mut balance = balance.clone();
            tasks.spawn(async move {
                for _ in 0..200 {
                    let patience = Duration::from_micros(fastrand::u64(..2_000));
                    let _ = timeout(patience, balance.call(request())).await;
                }
            });
        }
        for value in 2..100 {
            let set = sets[value as usize % sets.len()];
            source.send(snapshot(value, set)).unwrap();
            sleep(Duration::from_micros(700)).await;
        }
        tasks.join_all().await;
        let snapshot = balance.snapshot();
        assert_eq!(snapshot.waiting, 0);
        assert!(snapshot.endpoints.iter().all(|end| end.in_flight == 0));
        let all = (0..100).map(|_| {
            let mut balance = balance.clone();
            async move { balance.call(request()).await.map(drop) }
        });
        let all = timeout(Duration::from_secs(20), futures_util::future::join_all(all));
        let answers = all.await.expect("none is stuck");
        assert!(answers.iter().all(Result::is_ok));
    }
    check(LeastRequest).await;
    check(PeakEwma).await;
    check(RoundRobin::new()).await;
    check(RingHash::new(|_: &Request<String>| Some(7))).await;
    check(Maglev::new(|_: &Request<String>| Some(fastrand::u64(..)))).await;
}

fn outlier() -> Outlier {
    Outlier::new().consecutive(NonZeroU16::new(3).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_set_that_shrinks_to_what_is_out_and_to_nothing_serves_to_the_last_and_comes_back() {
    let builder = || {
        Balance::builder()
            .policy(RoundRobin::new())
            .outlier(outlier())
    };
    let mut all = Replicas::new(builder(), endpoints(10)).await;
    (0..10).for_each(|id| all.of(id).fails.store(true, SeqCst));
    all.load(1, 200).await;
    let out = |all: &Replicas<RoundRobin>| -> Vec<String> {
        let ends = all.balance.snapshot().endpoints;
        let out = ends.into_iter().filter(|end| end.ejected);
        out.map(|end| end.endpoint.id().to_string()).collect()
    };
    let ejected = out(&all);
    assert_eq!(ejected.len(), 5);
    (0..10).for_each(|id| all.of(id).fails.store(false, SeqCst));
    let only = |ids: &[String]| ids.iter().map(|id| endpoint(id)).collect::<Vec<_>>();
    all.set(only(&ejected)).await;
    assert_eq!(out(&all).len(), 2, "half of those that are left");
    let left = out(&all);
    all.set(only(&left)).await;
    assert_eq!(out(&all).len(), 1);
    let last = out(&all);
    all.set(only(&last)).await;
    assert_eq!(out(&all).len(), 0, "never the last");
    assert_eq!(all.load(1, 10).await, 0);
    all.set(vec![]).await;
    let (answer, took) = timed(all.balance.clone().call(request())).await;
    assert!(answer.unwrap_err().is::<NoEndpoints>());
    assert_eq!(took, Duration::ZERO);
    all.set(endpoints(10)).await;
    assert_eq!((out(&all).len(), all.load(4, 25).await), (0, 0));
    // And as before: the budget is one of ten.
    (0..10).for_each(|id| all.of(id).fails.store(true, SeqCst));
    all.load(1, 200).await;
    assert_eq!(out(&all).len(), 5);
}

#[tokio::test(start_paused = true)]
async fn ejections_of_all_end_when_their_standby_goes_and_when_it_is_replaced_by_another() {
    let ranked = |id: usize| endpoint(&name(id)).with_priority(u16::from(id >= 8));
    let set = |count: usize| (0..count).map(ranked).collect::<Vec<_>>();
    let builder = Balance::builder()
        .policy(RoundRobin::new())
        .outlier(outlier());
    let mut all = Replicas::new(builder, set(11)).await;
    (0..8).for_each(|id| all.of(id).fails.store(true, SeqCst));
    all.load(1, 200).await;
    let out = |all: &Replicas<RoundRobin>| {
        let ends = all.balance.snapshot().endpoints;
        ends.iter().filter(|end| end.ejected).count()
    };
    assert_eq!(out(&all), 8, "the three can take it all");
    assert_eq!(all.load(1, 50).await, 0);
    all.set(set(8)).await;
    assert_eq!(out(&all), 4);
    (0..8).for_each(|id| all.of(id).fails.store(false, SeqCst));
    assert_eq!(all.load(1, 50).await, 0);
    // The standby fails by itself.
    all.set(set(11)).await;
    (0..8).for_each(|id| all.of(id).fails.store(true, SeqCst));
    all.load(1, 200).await;
    assert_eq!(out(&all), 8);
    (0..8).for_each(|id| all.of(id).fails.store(false, SeqCst));
    (8..11).for_each(|id| all.die(id));
    // One request fails at each.
    all.load(1, 20).await;
    assert!(out(&all) <= 4, "{}", out(&all));
    assert_eq!(all.load(1, 50).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_balance_may_be_dropped_while_its_requests_wait() {
    let mut rig = rig(Balance::builder());
    let waits: Vec<_> = (0..3).map(|_| rig.balance.call(request())).collect();
    let waits: Vec<_> = waits.into_iter().map(tokio::spawn).collect();
    settle().await;
    drop(rig.balance);
    rig.source.send(snapshot(1, &["a"])).unwrap();
    for answer in waits {
        answer.await.unwrap().unwrap();
    }
    timeout(Duration::from_secs(1), rig.driver)
        .await
        .expect("it ends with the last request")
        .unwrap();
}

/// Counts how often it is polled.
struct Counted<F>(Pin<Box<F>>, Arc<AtomicUsize>);

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, SeqCst);
        self.0.as_mut().poll(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_does_not_spin_for_any_source_and_any_endpoints() {
    for case in 0..5 {
        let (source, updates) = source();
        let make = |_: &Endpoint, _: &EjectionBudget| {
            tower::service_fn(async |_: Request<String>| Ok::<_, BoxError>(()))
        };
        let builder = Balance::builder()
            .outlier(outlier())
            .slow_start(Duration::from_secs(5))
            .max_wait(Duration::from_secs(1_000));
        let (balance, driver) = builder.build(updates, make);
        let polls = Arc::new(AtomicUsize::new(0));
        tokio::spawn(Counted(Box::pin(driver), polls.clone()));
        let mut waits = None;
        match case {
            0 => drop(source),
            1 => (0..1_000).for_each(|_| source.send(Update::degraded("busy")).unwrap()),
            2 => {
                waits = Some(tokio::spawn(balance.clone().call(request())));
                source
                    .send(Update::Snapshot(Topology::new(
                        generation(1),
                        [endpoint("a").with_phase(Phase::Fenced)],
                    )))
                    .unwrap();
            }
            3 => {
                source.send(snapshot(1, &["a", "b"])).unwrap();
                source.send(snapshot(2, &[])).unwrap();
            }
            _ => {
                source.send(snapshot(1, &["a", "b"])).unwrap();
                settle().await;
                drop(source);
            }
        }
        sleep(Duration::from_secs(20)).await;
        polls.store(0, SeqCst);
        sleep(Duration::from_secs(100)).await;
        let polls = polls.load(SeqCst);
        // A waiting request is checked every 50 ms.
        let most = if waits.is_some() { 2_010 } else { 20 };
        assert!(polls <= most, "case {case}: {polls}");
        drop(waits);
    }
}
