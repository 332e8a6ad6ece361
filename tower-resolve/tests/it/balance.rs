//! The balance against a scripted source and strict endpoints, in paused time.

use std::{
    future::{Future, poll_fn},
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use http::{HeaderValue, Request};
use http_body_util::BodyExt;
use testkit::{Answer, Script, Step};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tower::Service;
use tower_outcome::{BoxError, Class, EjectionBudget, Refusal, header::LEASE_EPOCH};
use tower_resolve::{
    Balance, Endpoint, NoEndpoints, Phase, Stopped, Topology, Unreachable, Update,
    policy::{Candidates, PickContext, Policy, RoundRobin},
};

use crate::support::{
    Made, Returning, endpoint, generation, leased, request, rig, settle, snapshot, source, timed,
};

fn no_endpoints(error: &BoxError) -> &NoEndpoints {
    let refusal = Refusal::find(&**error).expect("a refusal");
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::Unavailable, "no-endpoints")
    );
    error.downcast_ref().expect("no endpoints")
}

/// Calls in a separate task, so that it waits if necessary.
fn spawn_call<S, P, K>(
    balance: &Balance<S, Request<String>, P, K>,
) -> JoinHandle<Result<(), BoxError>>
where
    P: Policy<Request<String>>,
    Balance<S, Request<String>, P, K>:
        Service<Request<String>, Error = BoxError, Future: Send + 'static>,
{
    let mut balance = balance.clone();
    let call = balance.call(request());
    tokio::spawn(async move { call.await.map(drop) })
}

// === following the topology ===

#[tokio::test(start_paused = true)]
async fn the_driver_follows_the_topology_without_any_traffic() {
    // The fault of tower's balance and tonic's channel (grpc-rust 1581): discovery is read only while the balance is polled.
    let rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    assert_eq!(rig.balance.snapshot().ready(), 2);
    rig.source.send(snapshot(2, &["b", "c"])).unwrap();
    settle().await;
    let now = rig.balance.snapshot();
    assert_eq!(now.generation, Some(generation(2)));
    assert_eq!(
        now.endpoints
            .iter()
            .map(|e| e.endpoint.id().as_str())
            .collect::<Vec<_>>(),
        ["b", "c"]
    );
    assert_eq!(
        rig.made.of("a").clones(),
        0,
        "removed endpoints are dropped"
    );
    assert_eq!(rig.made.count("b"), 1, "remaining endpoints are kept");
}

#[tokio::test(start_paused = true)]
async fn subscribers_see_each_generation() {
    let rig = rig(Balance::builder());
    let mut generations = rig.balance.subscribe();
    assert_eq!(*generations.borrow_and_update(), None);
    for update in [snapshot(1, &["a"]), Update::Progress(generation(4))] {
        rig.source.send(update).unwrap();
        generations.changed().await.unwrap();
    }
    assert_eq!(*generations.borrow_and_update(), Some(generation(4)));
}

#[tokio::test(start_paused = true)]
async fn an_older_generation_changes_nothing() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(5, &["new"])).unwrap();
    rig.source.send(snapshot(4, &["old"])).unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
    assert_eq!((rig.made.count("old"), rig.made.calls("new")), (0, 1));
    assert_eq!(rig.balance.snapshot().generation, Some(generation(5)));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_repeats_older_generations_is_degraded_until_it_has_a_newer_one() {
    let rig = rig(Balance::builder());
    rig.source.send(snapshot(5, &["new"])).unwrap();
    for (times, is_degraded) in [(1, false), (2, false), (3, true), (4, true)] {
        rig.source.send(snapshot(4, &["old"])).unwrap();
        settle().await;
        assert_eq!(rig.balance.snapshot().degraded, is_degraded, "{times}");
    }
    rig.source.send(snapshot(5, &["new"])).unwrap();
    settle().await;
    assert!(!rig.balance.snapshot().degraded);
    // A replay of known changes does not degrade it.
    let (put, removed) = (Vec::new(), Vec::new());
    for to in 2..6 {
        let (from, to) = (generation(to - 1), generation(to));
        let (put, removed) = (put.clone(), removed.clone());
        let delta = Update::Delta {
            from,
            to,
            put,
            removed,
        };
        rig.source.send(delta).unwrap();
    }
    settle().await;
    assert!(!rig.balance.snapshot().degraded);
}

#[tokio::test(start_paused = true)]
async fn a_removed_endpoint_gets_no_more_requests_and_finishes_what_it_has() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Hang);
    let had = spawn_call(&rig.balance);
    settle().await;
    rig.source.send(snapshot(2, &["b"])).unwrap();
    settle().await;
    for _ in 0..20 {
        rig.balance.call(request()).await.unwrap();
    }
    assert_eq!((rig.made.calls("a"), rig.made.calls("b")), (1, 20));
    assert_eq!(
        (rig.made.of("a").in_flight(), had.is_finished()),
        (1, false)
    );
    had.abort();
}

#[tokio::test(start_paused = true)]
async fn no_request_under_load_goes_to_an_endpoint_after_its_removal_was_applied() {
    let rig = rig(Balance::builder());
    let names: Vec<String> = (0..8).map(|index| format!("e{index}")).collect();
    let set = |from: usize| names[from..].iter().map(String::as_str).collect::<Vec<_>>();
    rig.source.send(snapshot(1, &set(0))).unwrap();
    settle().await;
    let load: Vec<_> = (0..16)
        .map(|_| {
            let mut balance = rig.balance.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    balance.call(request()).await?;
                    tokio::task::yield_now().await;
                }
                Ok::<_, BoxError>(())
            })
        })
        .collect();
    let mut generations = rig.balance.subscribe();
    for removed in 1..8 {
        rig.source
            .send(snapshot(1 + removed as u64, &set(removed)))
            .unwrap();
        generations
            .wait_for(|now| *now == Some(generation(1 + removed as u64)))
            .await
            .unwrap();
        let before = rig.made.calls(&names[removed - 1]);
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.made.calls(&names[removed - 1]), before);
    }
    for task in load {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_id_with_a_new_epoch_is_another_instance() {
    let mut rig = rig(Balance::builder());
    rig.source
        .send(Update::Snapshot(Topology::new(
            generation(1),
            [leased("a", 1)],
        )))
        .unwrap();
    settle().await;
    let old = rig.made.of("a");
    rig.balance.call(request()).await.unwrap();
    rig.source
        .send(Update::Snapshot(Topology::new(
            generation(2),
            [leased("a", 2)],
        )))
        .unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
    assert_eq!(
        (rig.made.count("a"), old.calls(), rig.made.of("a").calls()),
        (2, 1, 1)
    );
    assert_eq!(old.clones(), 0);
    assert_eq!(
        rig.balance.snapshot().endpoints[0].picks,
        1,
        "with a new history"
    );
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_a_new_description_keeps_its_service_and_its_history() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
    let described = endpoint("a")
        .with_zone("eu")
        .with_weight(NonZeroU32::new(3).unwrap());
    rig.source
        .send(Update::Snapshot(Topology::new(generation(2), [described])))
        .unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
    let now = &rig.balance.snapshot().endpoints[0];
    assert_eq!(
        (rig.made.count("a"), now.picks, now.endpoint.zone()),
        (1, 2, Some("eu"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_degraded_source_removes_nothing() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    rig.source.send(Update::degraded("down")).unwrap();
    rig.source.send(snapshot(2, &[])).unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
    rig.source.send(snapshot(3, &[])).unwrap();
    settle().await;
    no_endpoints(&rig.balance.call(request()).await.unwrap_err());
}

#[tokio::test(start_paused = true)]
async fn the_last_set_stays_in_use_when_the_source_ends() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    drop(rig.source);
    settle().await;
    rig.made.of("a").be_pending();
    let call = spawn_call(&rig.balance);
    settle().await;
    rig.made.of("a").be_ready();
    call.await.unwrap().unwrap();
    rig.balance.call(request()).await.unwrap();
}

// === picking ===

#[tokio::test(start_paused = true)]
async fn round_robin_is_even_over_all_clones() {
    let rig = rig(Balance::builder().policy(RoundRobin::new()));
    rig.source.send(snapshot(1, &["a", "b", "c"])).unwrap();
    settle().await;
    let mut clones = [rig.balance.clone(), rig.balance.clone()];
    for turn in 0..30 {
        clones[turn % 2].call(request()).await.unwrap();
    }
    assert_eq!(["a", "b", "c"].map(|id| rig.made.calls(id)), [10; 3]);
}

#[tokio::test(start_paused = true)]
async fn least_request_prefers_the_idle_one() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Hang);
    rig.made.of("b").answer(Answer::Hang);
    // One at each, for any first pick: the second goes to the idle endpoint.
    let held = [spawn_call(&rig.balance), spawn_call(&rig.balance)];
    settle().await;
    assert_eq!((rig.made.calls("a"), rig.made.calls("b")), (1, 1));
    held[0].abort();
    settle().await;
    let (free, taken) = if rig.made.of("b").in_flight() == 0 {
        ("b", "a")
    } else {
        ("a", "b")
    };
    for _ in 0..50 {
        rig.balance.call(request()).await.unwrap();
    }
    assert_eq!((rig.made.calls(free), rig.made.calls(taken)), (51, 1));
    held[1].abort();
}

/// Always the same index, to test what follows a bad pick.
struct Always(usize);

impl<Req> Policy<Req> for Always {
    type Table = usize;

    fn table<C: Candidates>(&self, candidates: &C) -> usize {
        candidates.count()
    }

    fn pick<C: Candidates>(&self, table: &usize, candidates: &C, _: &PickContext) -> usize {
        assert_eq!(
            *table,
            candidates.count(),
            "a table is for the candidates it was made of"
        );
        self.0
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_found_not_ready_is_skipped_and_polled_once() {
    let mut rig = rig(Balance::builder().policy(Always(0)));
    rig.source.send(snapshot(1, &["a", "b", "c"])).unwrap();
    settle().await;
    rig.made.of("a").be_pending();
    rig.made.of("b").be_pending();
    let before = rig.made.of("a").polls();
    for _ in 0..10 {
        rig.balance.call(request()).await.unwrap();
    }
    assert_eq!(rig.made.calls("c"), 10);
    assert!(
        rig.made.of("a").polls() <= before + 2,
        "by one request and by the driver"
    );
    settle().await;
    assert_eq!(rig.balance.snapshot().ready(), 1);
    rig.made.of("a").be_ready();
    settle().await;
    rig.made.of("c").be_pending();
    rig.balance.call(request()).await.unwrap();
    assert_eq!(
        rig.made.calls("a"),
        1,
        "and used again, without a poll by a request"
    );
}

#[tokio::test(start_paused = true)]
async fn the_one_ready_endpoint_among_many_is_found() {
    let mut rig = rig(Balance::builder().policy(RoundRobin::new()));
    let names: Vec<String> = (0..200).map(|index| format!("e{index:03}")).collect();
    rig.source
        .send(snapshot(
            1,
            &names.iter().map(String::as_str).collect::<Vec<_>>(),
        ))
        .unwrap();
    settle().await;
    for name in &names {
        rig.made.of(name).be_pending();
    }
    rig.made.of("e123").be_ready();
    // The driver has not run in between: the request finds it.
    rig.balance.call(request()).await.unwrap();
    assert_eq!(rig.made.calls("e123"), 1);
    settle().await;
    while rig.balance.snapshot().ready() > 1 {
        rig.balance.call(request()).await.unwrap();
        settle().await;
    }
    let polls: usize = names.iter().map(|name| rig.made.of(name).polls()).sum();
    rig.balance.call(request()).await.unwrap();
    let after: usize = names.iter().map(|name| rig.made.of(name).polls()).sum();
    assert_eq!(
        after - polls,
        1,
        "the endpoints that are not ready cost a pick nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_removal_between_two_picks_does_not_shift_the_next_one() {
    // tower 856: a ready index survives a removal, and the request goes to an endpoint that was not picked.
    let mut rig = rig(Balance::builder().policy(Always(1)));
    rig.source.send(snapshot(1, &["a", "b", "c"])).unwrap();
    settle().await;
    assert!(poll_fn(|cx| rig.balance.poll_ready(cx)).await.is_ok());
    rig.source.send(snapshot(2, &["a", "c"])).unwrap();
    settle().await;
    // The readiness is from before the removal; the pick is of the current set.
    rig.balance.call(request()).await.unwrap();
    assert_eq!(
        (
            rig.made.calls("a"),
            rig.made.of("b").calls(),
            rig.made.calls("c")
        ),
        (0, 0, 1)
    );
    rig.source.send(snapshot(3, &["c"])).unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
    assert_eq!(rig.made.calls("c"), 2, "an index out of range wraps");
}

#[tokio::test(start_paused = true)]
async fn phases_are_respected_and_draining_endpoints_serve_if_no_other_does() {
    let mut rig = rig(Balance::builder());
    let set = |value, phases: [Phase; 3]| {
        let endpoints = ["a", "b", "c"].into_iter().zip(phases);
        Update::Snapshot(Topology::new(
            generation(value),
            endpoints.map(|(id, phase)| endpoint(id).with_phase(phase)),
        ))
    };
    rig.source
        .send(set(1, [Phase::Ready, Phase::Draining, Phase::Starting]))
        .unwrap();
    settle().await;
    for _ in 0..10 {
        rig.balance.call(request()).await.unwrap();
    }
    assert_eq!(["a", "b", "c"].map(|id| rig.made.calls(id)), [10, 0, 0]);
    rig.source
        .send(set(2, [Phase::Fenced, Phase::Draining, Phase::Starting]))
        .unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
    assert_eq!(["a", "b", "c"].map(|id| rig.made.calls(id)), [10, 1, 0]);
    rig.source
        .send(set(3, [Phase::Fenced, Phase::Fenced, Phase::Starting]))
        .unwrap();
    settle().await;
    let (answer, took) = timed(rig.balance.call(request())).await;
    let error = answer.unwrap_err();
    let numbers = no_endpoints(&error);
    assert_eq!(
        (
            numbers.known(),
            numbers.ready(),
            numbers.starting(),
            numbers.draining(),
            numbers.fenced()
        ),
        (3, 0, 1, 0, 2)
    );
    assert_eq!(took, Duration::from_secs(1));
}

// === waiting ===

#[tokio::test(start_paused = true)]
async fn with_an_empty_set_requests_are_rejected_at_once() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(7, &[])).unwrap();
    settle().await;
    let (answer, took) = timed(rig.balance.call(request())).await;
    let error = answer.unwrap_err();
    assert_eq!(
        (no_endpoints(&error).generation(), took),
        (Some(generation(7)), Duration::ZERO)
    );
    assert!(
        error.to_string().starts_with("no healthy replica"),
        "{error}"
    );
    rig.source
        .send(Update::DoesNotExist(generation(8)))
        .unwrap();
    settle().await;
    let (answer, took) = timed(rig.balance.call(request())).await;
    assert_eq!(
        (no_endpoints(&answer.unwrap_err()).generation(), took),
        (Some(generation(8)), Duration::ZERO)
    );
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_the_sources_first_answer_and_no_longer_than_that() {
    let rig = rig(Balance::builder());
    let calls: Vec<_> = (0..5).map(|_| spawn_call(&rig.balance)).collect();
    settle().await;
    assert_eq!(rig.balance.snapshot().waiting, 5);
    rig.source.send(snapshot(1, &[])).unwrap();
    let (_, took) = timed(async {
        for call in calls {
            no_endpoints(&call.await.unwrap().unwrap_err());
        }
    })
    .await;
    assert_eq!((took, rig.balance.snapshot().waiting), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn with_no_answer_at_all_the_wait_is_bounded() {
    let mut rig = rig(Balance::builder().max_wait(Duration::from_millis(300)));
    let (answer, took) = timed(rig.balance.call(request())).await;
    let error = answer.unwrap_err();
    assert_eq!(
        (
            no_endpoints(&error).generation(),
            no_endpoints(&error).known()
        ),
        (None, 0)
    );
    assert_eq!(took, Duration::from_millis(300));
}

#[tokio::test(start_paused = true)]
async fn with_all_endpoints_not_ready_the_wait_is_bounded() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    rig.made.of("a").be_pending();
    rig.made.of("b").be_pending();
    let (answer, took) = timed(rig.balance.call(request())).await;
    let error = answer.unwrap_err();
    assert_eq!(
        (no_endpoints(&error).known(), no_endpoints(&error).ready()),
        (2, 0)
    );
    assert_eq!(took, Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_becomes_ready_wakes_all_waiting_requests() {
    let rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.made.of("a").be_pending();
    let calls: Vec<_> = (0..50).map(|_| spawn_call(&rig.balance)).collect();
    settle().await;
    assert_eq!(rig.balance.snapshot().waiting, 50);
    let start = Instant::now();
    rig.made.of("a").be_ready();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!((rig.made.calls("a"), start.elapsed()), (50, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn at_most_the_limit_may_wait_and_a_dropped_request_makes_room() {
    let mut rig = rig(Balance::builder().max_waiting(2));
    let calls = [spawn_call(&rig.balance), spawn_call(&rig.balance)];
    settle().await;
    let (answer, took) = timed(rig.balance.call(request())).await;
    no_endpoints(&answer.unwrap_err());
    assert_eq!((took, rig.balance.snapshot().waiting), (Duration::ZERO, 2));
    calls[0].abort();
    settle().await;
    assert_eq!(rig.balance.snapshot().waiting, 1);
    let late = spawn_call(&rig.balance);
    settle().await;
    rig.source.send(snapshot(1, &["a"])).unwrap();
    late.await.unwrap().unwrap();
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn the_wake_up_of_a_dropped_request_goes_to_the_next() {
    let rig = rig(Balance::builder());
    let mut first = rig.balance.clone();
    let mut first = Box::pin(first.call(request()));
    assert!(poll_once(first.as_mut()).await.is_pending());
    let second = spawn_call(&rig.balance);
    settle().await;
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle_without_polling(&rig.made).await;
    drop(first);
    let start = Instant::now();
    second.await.unwrap().unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// Lets the driver publish, while the test holds the woken request.
async fn settle_without_polling(made: &Made) {
    while made.count("a") == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_several_threads_no_wake_up_is_lost_and_no_limit_is_passed() {
    // Two endpoints that take one request each, and 64 clients: nearly every request waits, and the readiness of each
    // endpoint changes with each request.
    let (source, updates) = source();
    source.send(snapshot(1, &["a", "b"])).unwrap();
    let busiest = Arc::new(AtomicUsize::new(0));
    let seen = busiest.clone();
    let make = move |_: &Endpoint, _: &EjectionBudget| {
        let (now, busiest) = (Arc::new(AtomicUsize::new(0)), seen.clone());
        let service = tower::service_fn(move |_: Request<String>| {
            let (now, busiest) = (now.clone(), busiest.clone());
            async move {
                busiest.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, SeqCst);
                Ok::<_, BoxError>(())
            }
        });
        tower::limit::ConcurrencyLimit::new(service, 1)
    };
    let (balance, driver) = Balance::builder()
        .max_wait(Duration::from_secs(60))
        .build(updates, make);
    tokio::spawn(driver);
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let mut balance = balance.clone();
            tokio::spawn(async move {
                for _ in 0..100 {
                    balance.call(request()).await?;
                }
                Ok::<_, BoxError>(())
            })
        })
        .collect();
    let all = async {
        for client in clients {
            client.await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all)
        .await
        .expect("no request is left waiting");
    let now = balance.snapshot();
    assert_eq!((busiest.load(SeqCst), now.waiting), (1, 0));
    assert_eq!(
        now.endpoints
            .iter()
            .map(|endpoint| endpoint.picks)
            .sum::<u64>(),
        6_400
    );
    assert!(now.endpoints.iter().all(|endpoint| endpoint.in_flight == 0));
}

// === failing over ===

/// A balance over endpoints that return the first `left` requests unsent.
struct Handing<P: Policy<Request<String>>> {
    balance: Balance<Returning, Request<String>, P>,
    made: Made,
    left: Arc<AtomicUsize>,
    _source: mpsc::UnboundedSender<Update>,
}

async fn handing<P: Policy<Request<String>>>(policy: P, left: usize, ids: &[&str]) -> Handing<P> {
    let (made, left) = (Made::default(), Arc::new(AtomicUsize::new(left)));
    let (source, updates) = source();
    source.send(snapshot(1, ids)).unwrap();
    let (makes, returns) = (made.clone(), left.clone());
    let make = move |endpoint: &Endpoint, _: &EjectionBudget| {
        Returning::new(makes.make(endpoint), returns.clone())
    };
    let (balance, driver) = Balance::builder().policy(policy).build(updates, make);
    tokio::spawn(driver);
    settle().await;
    Handing {
        balance,
        made,
        left,
        _source: source,
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_returned_unsent_goes_to_another_endpoint_intact() {
    let Handing { balance, made, .. } = &mut handing(RoundRobin::new(), 2, &["a", "b", "c"]).await;
    let request = Request::post("/path")
        .header("x-mark", "1")
        .body("body".to_owned())
        .unwrap();
    balance.call(request).await.unwrap();
    let served: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .filter(|id| made.calls(id) == 1)
        .collect();
    let head = made.of(served[0]).last_head().unwrap();
    assert_eq!(
        (served.len(), head.uri.path(), &head.headers["x-mark"]),
        (1, "/path", &HeaderValue::from_static("1"))
    );
    let now = balance.snapshot();
    assert_eq!(
        now.endpoints
            .iter()
            .map(|e| (e.picks, e.failures))
            .fold((0, 0), |(p, f), (x, y)| (p + x, f + y)),
        (3, 2)
    );
    assert!(
        now.endpoints
            .iter()
            .all(|e| e.in_flight == 0 && e.picks == 1),
        "each endpoint was tried once"
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_returned_a_request_is_polled_before_it_gets_another() {
    let Handing { balance, made, .. } = &mut handing(Always(0), 1, &["a", "b"]).await;
    balance.call(request()).await.unwrap();
    let (served, other) = if made.calls("a") == 1 {
        ("a", "b")
    } else {
        ("b", "a")
    };
    assert_eq!(
        (made.calls(served), made.calls(other)),
        (1, 0),
        "not the same one again, for any policy"
    );
    settle().await;
    made.of(served).be_pending();
    balance.call(request()).await.unwrap();
    assert_eq!(made.calls(other), 1, "the driver found it ready");
}

#[tokio::test(start_paused = true)]
async fn after_three_endpoints_the_request_is_rejected_with_the_last_cause() {
    let Handing { balance, left, .. } =
        &mut handing(RoundRobin::new(), 100, &["a", "b", "c", "d"]).await;
    let (answer, took) = timed(balance.call(request())).await;
    let error = answer.unwrap_err();
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.class(), refusal.code(), took),
        (Class::Unavailable, "no-endpoint-reachable", Duration::ZERO)
    );
    let error: &Unreachable = error.downcast_ref().unwrap();
    assert_eq!(
        (error.tried().get(), error.cause().to_string().as_str()),
        (3, "connection refused")
    );
    assert_eq!(left.load(SeqCst), 97);
}

#[tokio::test(start_paused = true)]
async fn the_only_endpoint_is_tried_again_when_it_is_ready() {
    let Handing { balance, made, .. } = &mut handing(RoundRobin::new(), 1, &["a"]).await;
    made.of("a").answer(Answer::Status(201));
    balance.call(request()).await.unwrap();
    assert_eq!(made.calls("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_after_the_request_was_sent_is_not_tried_elsewhere() {
    let mut rig = rig(Balance::builder().policy(Always(0)));
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Fail);
    let error = rig.balance.call(request()).await.unwrap_err();
    assert!(error.is::<testkit::Broken>(), "{error}");
    assert_eq!(rig.made.calls("b"), 0);
    let now = rig.balance.snapshot();
    assert_eq!(
        (now.endpoints[0].failures, now.endpoints[0].ready),
        (1, true)
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_is_created_again_and_never_ends_the_balance() {
    // tower's balance drops such an endpoint until discovery inserts it again.
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.made.of("a").be_failed();
    let (answer, took) = timed(rig.balance.call(request())).await;
    answer.unwrap();
    assert_eq!(rig.made.count("a"), 2);
    assert!(
        took >= Duration::from_millis(50) && took <= Duration::from_millis(102),
        "after a rest: {took:?}"
    );
    assert!(poll_fn(|cx| rig.balance.poll_ready(cx)).await.is_ok());
    assert_eq!(rig.balance.snapshot().endpoints[0].picks, 1);
}

#[tokio::test(start_paused = true)]
async fn a_removed_endpoint_is_no_longer_watched() {
    let rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    rig.made.of("a").be_pending();
    let calls: Vec<_> = (0..20).map(|_| spawn_call(&rig.balance)).collect();
    settle().await;
    rig.source.send(snapshot(2, &["b"])).unwrap();
    settle().await;
    let (a, polls) = (rig.made.of("a"), rig.made.of("a").polls());
    assert_eq!(a.clones(), 0);
    a.be_ready();
    settle().await;
    assert_eq!(a.polls(), polls);
    drop(calls);
}

// === ending ===

#[tokio::test(start_paused = true)]
async fn a_balance_without_its_driver_is_stopped() {
    let mut rig = rig(Balance::builder());
    let waits = spawn_call(&rig.balance);
    settle().await;
    rig.driver.abort();
    let (answer, took) = timed(waits).await;
    assert!(answer.unwrap().unwrap_err().is::<Stopped>());
    assert_eq!(took, Duration::ZERO);
    assert!(
        poll_fn(|cx| rig.balance.poll_ready(cx))
            .await
            .unwrap_err()
            .is::<Stopped>()
    );
    assert!(
        rig.balance
            .call(request())
            .await
            .unwrap_err()
            .is::<Stopped>()
    );
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_the_last_handle() {
    let rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    let clone = rig.balance.clone();
    drop(rig.balance);
    settle().await;
    assert!(!rig.driver.is_finished());
    drop(clone);
    settle().await;
    assert!(rig.driver.is_finished());
    assert_eq!(rig.made.of("a").clones(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_make_stops_the_balance_and_blocks_no_request() {
    let (source, updates) = source();
    let make = |_: &Endpoint, _: &EjectionBudget| -> testkit::Probe { panic!("made by the test") };
    let (mut balance, driver) = Balance::builder().build::<_, Request<String>, _, _>(updates, make);
    let driver = tokio::spawn(driver);
    source.send(snapshot(1, &["a"])).unwrap();
    assert!(driver.await.is_err());
    assert!(balance.call(request()).await.unwrap_err().is::<Stopped>());
}

#[tokio::test(start_paused = true)]
async fn a_panic_or_a_dropped_call_frees_its_slot() {
    let mut rig = rig(Balance::builder());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    drop(rig.balance.call(request()));
    rig.made.of("a").answer(Answer::Panic);
    assert!(spawn_call(&rig.balance).await.is_err());
    rig.made.of("a").answer(Answer::Hang);
    {
        let call = pin!(rig.balance.call(request()));
        assert!(poll_once(call).await.is_pending());
        assert_eq!(rig.balance.snapshot().endpoints[0].in_flight, 1);
    }
    let now = &rig.balance.snapshot().endpoints[0];
    assert_eq!(
        (now.in_flight, now.picks, rig.made.of("a").in_flight()),
        (0, 3, 0)
    );
}

async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

// === HTTP ===

#[tokio::test(start_paused = true)]
async fn an_http_request_is_in_flight_until_the_end_of_its_body() {
    let mut rig = rig(Balance::builder().http());
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Body(
        200,
        Script::new([Step::Data("x"), Step::Data("y")]),
    ));
    let response = rig.balance.call(request()).await.unwrap();
    let in_flight = |rig: &crate::support::Rig<_, _>| rig.balance.snapshot().endpoints[0].in_flight;
    assert_eq!(in_flight(&rig), 1);
    response.into_body().collect().await.unwrap();
    assert_eq!(
        (
            in_flight(&rig),
            rig.balance.snapshot().endpoints[0].failures
        ),
        (0, 0)
    );
    for (last, failures) in [(Step::Break, 1), (Step::Hang, 1)] {
        rig.made
            .of("a")
            .answer(Answer::Body(200, Script::new([Step::Data("x"), last])));
        let mut body = rig.balance.call(request()).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(in_flight(&rig), 1);
        let _ = poll_once(pin!(body.frame())).await;
        drop(body);
        assert_eq!(
            (
                in_flight(&rig),
                rig.balance.snapshot().endpoints[0].failures
            ),
            (0, failures)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_epoch_of_the_endpoint_replaces_one_that_the_client_set() {
    let mut rig = rig(Balance::builder().http());
    rig.source
        .send(Update::Snapshot(Topology::new(
            generation(1),
            [leased("a", 42)],
        )))
        .unwrap();
    settle().await;
    let forged = || {
        Request::builder()
            .header(LEASE_EPOCH, "7")
            .header(LEASE_EPOCH, "8")
            .body(String::new())
            .unwrap()
    };
    rig.balance.call(forged()).await.unwrap();
    let head = rig.made.of("a").last_head().unwrap();
    assert_eq!(
        head.headers.get_all(LEASE_EPOCH).iter().collect::<Vec<_>>(),
        ["42"]
    );
    rig.source
        .send(Update::Snapshot(Topology::new(
            generation(2),
            [endpoint("a")],
        )))
        .unwrap();
    settle().await;
    rig.balance.call(forged()).await.unwrap();
    assert!(
        !rig.made
            .of("a")
            .last_head()
            .unwrap()
            .headers
            .contains_key(LEASE_EPOCH)
    );
}

#[test]
fn a_balance_is_shareable_and_its_future_can_be_sent() {
    fn service<S: Service<Request<String>, Future: Send> + Clone + Send + Sync + 'static>(_: &S) {}
    fn sendable<T: Send + 'static>(_: &T) {}
    let (_source, updates) = source();
    let (balance, driver) = Balance::builder()
        .http()
        .build(updates, |endpoint, _| Made::default().make(endpoint));
    service(&balance);
    sendable(&driver);
}
