//! Requests that wait for an endpoint, in paused time: their order, and requests that do not take their turn.

use std::{
    future::poll_fn,
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use http::Request;
use testkit::Answer;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::{Service, limit::ConcurrencyLimit};
use tower_outcome::{BoxError, EjectionBudget};
use tower_resolve::{
    Balance, Endpoint, NoEndpoints,
    policy::{Candidates, LeastRequest, Maglev, PeakEwma, PickContext, Policy, RoundRobin},
};

use crate::support::{
    replica::{Replicas, endpoints},
    request, rig, settle, snapshot, source, timed,
};

fn limit(requests: u32) -> NonZeroU32 {
    NonZeroU32::new(requests).unwrap()
}

/// The number of requests that each of these clients has answered in this time, each sent after the response of the previous
/// one; and the number of rejections.
async fn closed_loop<S>(balance: &S, clients: usize, time: Duration) -> (Vec<usize>, usize)
where
    S: Service<Request<String>, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    let end = Instant::now() + time;
    let mut all = JoinSet::new();
    for client in 0..clients {
        let mut balance = balance.clone();
        all.spawn(async move {
            let (mut answered, mut refused) = (0, 0);
            while Instant::now() < end {
                match balance.call(request()).await {
                    Ok(_) => answered += 1,
                    Err(_) => refused += 1,
                }
            }
            (client, answered, refused)
        });
    }
    let mut answered = vec![0; clients];
    let mut refused = 0;
    for (client, count, failed) in all.join_all().await {
        answered[client] = count;
        refused += failed;
    }
    (answered, refused)
}

/// Each has its fair share of the slots, within one.
fn are_even(answered: &[usize]) -> bool {
    answered.iter().max().unwrap() - answered.iter().min().unwrap() <= 2
}

// === order of the queue ===

#[tokio::test(start_paused = true)]
async fn no_client_starves_with_more_clients_than_slots() {
    async fn check<P: Policy<Request<String>>>(policy: impl Fn() -> P) {
        for (clients, endpoints_, places) in [(2, 1, 1), (8, 1, 4), (20, 5, 2), (50, 3, 1)] {
            let builder = Balance::builder()
                .policy(policy())
                .max_in_flight(limit(places))
                .max_wait(Duration::from_secs(60));
            let all = Replicas::new(builder, endpoints(endpoints_)).await;
            (0..endpoints_).for_each(|id| all.of(id).millis.store(10, SeqCst));
            let (answered, refused) =
                closed_loop(&all.balance, clients, Duration::from_secs(4)).await;
            assert_eq!(refused, 0);
            assert!(are_even(&answered), "{clients}: {answered:?}");
            let each = 400 * endpoints_ * places as usize / clients;
            assert!(
                answered[0].abs_diff(each) <= 2,
                "places stay free: {answered:?}"
            );
        }
    }
    check(|| LeastRequest).await;
    check(|| PeakEwma).await;
    check(RoundRobin::new).await;
    check(|| Maglev::new(|_: &Request<String>| Some(7))).await;
}

#[tokio::test(start_paused = true)]
async fn no_client_starves_if_the_endpoint_itself_is_not_ready_when_full() {
    let (source, updates) = source();
    let make = |_: &Endpoint, _: &EjectionBudget| {
        let service = tower::service_fn(async |_: Request<String>| {
            sleep(Duration::from_millis(10)).await;
            Ok::<_, BoxError>(())
        });
        ConcurrencyLimit::new(service, 2)
    };
    let builder = Balance::builder().max_wait(Duration::from_secs(60));
    let (balance, driver) = builder.build(updates, make);
    tokio::spawn(driver);
    source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    let (answered, refused) = closed_loop(&balance, 10, Duration::from_secs(4)).await;
    assert_eq!(refused, 0);
    assert!(
        answered.iter().max().unwrap() - answered.iter().min().unwrap() <= 4,
        "{answered:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn slots_go_to_requests_in_order_of_arrival() {
    let builder = Balance::builder()
        .max_in_flight(limit(1))
        .max_wait(Duration::from_secs(60));
    let all = Replicas::new(builder, endpoints(2)).await;
    (0..2).for_each(|id| all.of(id).millis.store(10, SeqCst));
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut calls = JoinSet::new();
    for number in 0..40 {
        let call = all.balance.clone().call(request());
        let order = order.clone();
        calls.spawn(async move {
            call.await.unwrap();
            order.lock().unwrap().push(number);
        });
        // Some arrive while slots are freed.
        if number % 3 == 0 {
            sleep(Duration::from_millis(7)).await;
        }
    }
    calls.join_all().await;
    let order = order.lock().unwrap();
    let late = order
        .iter()
        .enumerate()
        .map(|(place, number)| place.abs_diff(*number));
    assert!(late.max() <= Some(1), "two are served at a time: {order:?}");
}

/// Picks in order, and counts its calls.
struct Counted(Arc<AtomicUsize>);

impl<Req> Policy<Req> for Counted {
    type Table = ();

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), _: &C, context: &PickContext) -> usize {
        self.0.fetch_add(1, SeqCst);
        context.step()
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_while_requests_wait_tries_no_endpoint() {
    let picks = Arc::new(AtomicUsize::new(0));
    let builder = Balance::builder()
        .policy(Counted(picks.clone()))
        .max_in_flight(limit(1))
        .max_waiting(3);
    let all = Replicas::new(builder, endpoints(100)).await;
    (0..100).for_each(|id| all.of(id).millis.store(500, SeqCst));
    let (mut calls, mut balance) = (JoinSet::new(), all.balance.clone());
    (0..103).for_each(|_| drop(calls.spawn(balance.call(request()))));
    settle().await;
    let before = picks.load(SeqCst);
    for _ in 0..1_000 {
        let (answer, took) = timed(balance.call(request())).await;
        assert!(answer.unwrap_err().is::<NoEndpoints>());
        assert_eq!(took, Duration::ZERO);
    }
    assert_eq!(
        picks.load(SeqCst),
        before,
        "a rejection costs the same for any number of endpoints"
    );
    calls
        .join_all()
        .await
        .into_iter()
        .for_each(|answer| assert!(answer.is_ok()));
}

/// How many of 400 requests find the only endpoint with a free slot.
async fn found(endpoints: usize, max_waiting: usize) -> usize {
    let (source, updates) = source();
    let builder = Balance::builder()
        .policy(Counted(Arc::default()))
        .max_in_flight(limit(1))
        .max_wait(Duration::ZERO)
        .max_waiting(max_waiting);
    let make = |_: &Endpoint, _: &EjectionBudget| {
        tower::service_fn(async |request: Request<String>| {
            if request.body() == "stays" {
                std::future::pending::<()>().await;
            }
            Ok::<_, BoxError>(())
        })
    };
    let (mut balance, driver) = builder.build(updates, make);
    tokio::spawn(driver);
    let ids: Vec<String> = (0..endpoints).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    source.send(snapshot(1, &ids)).unwrap();
    settle().await;
    let mut held = Vec::new();
    while held.len() < endpoints - 1 {
        let mut call = Box::pin(balance.call(Request::new("stays".into())));
        if poll_once(call.as_mut()).await.is_pending() {
            held.push(call);
        }
    }
    let mut found = 0;
    for _ in 0..400 {
        found += usize::from(balance.call(request()).await.is_ok());
    }
    found
}

#[tokio::test(start_paused = true)]
async fn if_none_may_wait_a_rejection_costs_the_same_for_any_number_of_endpoints() {
    let part = found(1_000, 0).await;
    assert!((20..120).contains(&part), "128 of 1,000 are tried: {part}");
    assert_eq!(found(100, 0).await, 400, "few are tried all");
    assert_eq!(found(1_000, 1).await, 400, "one that may wait tries all");
}

#[tokio::test(start_paused = true)]
async fn all_waiting_requests_continue_at_once_when_there_is_room_for_all() {
    let rig = rig(Balance::builder());
    let waiting: Vec<_> = (0..1_000)
        .map(|_| tokio::spawn(rig.balance.clone().call(request())))
        .collect();
    settle().await;
    assert_eq!(rig.balance.snapshot().waiting, 1_000);
    rig.source.send(snapshot(1, &["a"])).unwrap();
    let start = Instant::now();
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    rig.balance.clone().call(request()).await.unwrap();
    assert_eq!(rig.balance.snapshot().waiting, 0);
}

// === those that are not there ===

async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// One endpoint with one slot, which is taken until it is dropped.
struct Full {
    all: Replicas<LeastRequest>,
    place: tokio::task::JoinHandle<()>,
}

impl Full {
    async fn new() -> Self {
        let builder = Balance::builder()
            .max_in_flight(limit(1))
            .max_wait(Duration::from_secs(10));
        let all = Replicas::new(builder, endpoints(1)).await;
        all.of(0).millis.store(1_000_000, SeqCst);
        let call = all.balance.clone().call(request());
        let place = tokio::spawn(async move { drop(call.await) });
        settle().await;
        all.of(0).millis.store(0, SeqCst);
        Self { all, place }
    }
}

#[tokio::test(start_paused = true)]
async fn the_turn_of_a_request_that_is_dropped_goes_to_the_next() {
    let full = Full::new().await;
    let mut first = Box::pin(full.all.balance.clone().call(request()));
    assert!(poll_once(first.as_mut()).await.is_pending());
    let second = tokio::spawn(full.all.balance.clone().call(request()));
    settle().await;
    full.place.abort();
    // It has the turn now, and does not take it.
    tokio::task::yield_now().await;
    drop(first);
    let (answer, took) = timed(second).await;
    answer.unwrap().unwrap();
    assert_eq!(took, Duration::ZERO);
    assert_eq!(full.all.balance.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_polled_does_not_block_those_behind_it() {
    let full = Full::new().await;
    let mut first = Box::pin(full.all.balance.clone().call(request()));
    assert!(poll_once(first.as_mut()).await.is_pending());
    // A request that is neither polled nor dropped is the worst case.
    let mut forgotten = Box::pin(full.all.balance.clone().call(request()));
    assert!(poll_once(forgotten.as_mut()).await.is_pending());
    std::mem::forget(forgotten);
    // And one that was never polled.
    let never = full.all.balance.clone().call(request());
    let fourth = tokio::spawn(full.all.balance.clone().call(request()));
    settle().await;
    full.place.abort();
    let (answer, took) = timed(fourth).await;
    answer.unwrap().unwrap();
    assert!(took <= Duration::from_millis(400), "{took:?}");
    for request in [first, Box::pin(never)] {
        let (answer, took) = timed(request).await;
        answer.unwrap();
        assert_eq!(took, Duration::ZERO, "it kept its place");
    }
    let (answer, took) = timed(full.all.balance.clone().call(request())).await;
    answer.unwrap();
    assert_eq!(took, Duration::ZERO, "none is in the way");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_one_that_had_the_turn_gives_it_to_the_next() {
    let mut rig = rig(Balance::builder().max_in_flight(limit(1)));
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Hang);
    let held = rig.balance.call(request());
    rig.made.of("a").answer(Answer::Panic);
    let calls = [(); 2].map(|()| tokio::spawn(rig.balance.clone().call(request())));
    settle().await;
    drop(held);
    let [panics, next] = calls;
    assert!(panics.await.unwrap_err().is_panic());
    let (answer, took) = timed(next).await;
    answer.unwrap().unwrap();
    assert_eq!((took, rig.balance.snapshot().waiting), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_in_a_turn_gives_it_to_the_next() {
    struct Once(AtomicUsize);
    impl<Req> Policy<Req> for Once {
        type Table = ();

        fn table<C: Candidates>(&self, _: &C) {}

        fn pick<C: Candidates>(&self, (): &(), _: &C, _: &PickContext) -> usize {
            assert_ne!(self.0.fetch_add(1, SeqCst), 0, "made by the test");
            0
        }
    }
    let rig = rig(Balance::builder().policy(Once(AtomicUsize::new(0))));
    let calls = [(); 2].map(|()| tokio::spawn(rig.balance.clone().call(request())));
    settle().await;
    rig.source.send(snapshot(1, &["a"])).unwrap();
    let [panics, next] = calls;
    assert!(panics.await.unwrap_err().is_panic());
    let (answer, took) = timed(next).await;
    answer.unwrap().unwrap();
    assert_eq!((took, rig.balance.snapshot().waiting), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_removed_endpoint_get_another_or_are_rejected() {
    let mut rig = rig(Balance::builder().max_in_flight(limit(1)));
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Hang);
    let held = tokio::spawn(rig.balance.call(request()));
    settle().await;
    let waits = [(); 3].map(|()| tokio::spawn(rig.balance.clone().call(request())));
    settle().await;
    rig.source.send(snapshot(2, &["b"])).unwrap();
    let start = Instant::now();
    for answer in waits {
        answer.await.unwrap().unwrap();
    }
    assert_eq!((start.elapsed(), rig.made.calls("b")), (Duration::ZERO, 3));

    rig.made.of("b").answer(Answer::Hang);
    let also_held = tokio::spawn(rig.balance.call(request()));
    settle().await;
    let waits = [(); 3].map(|()| tokio::spawn(rig.balance.clone().call(request())));
    settle().await;
    rig.source.send(snapshot(3, &[])).unwrap();
    let start = Instant::now();
    for answer in waits {
        assert!(answer.await.unwrap().unwrap_err().is::<NoEndpoints>());
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    held.abort();
    also_held.abort();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_joins_while_the_queue_is_rejected_is_rejected_too() {
    let rig = rig(Balance::builder());
    let mut first = Box::pin(rig.balance.clone().call(request()));
    assert!(poll_once(first.as_mut()).await.is_pending());
    rig.source.send(snapshot(1, &[])).unwrap();
    settle().await;
    // The first has its turn and has not taken it, so these queue behind it.
    let start = Instant::now();
    for _ in 0..3 {
        let answer = rig.balance.clone().call(request()).await;
        assert!(answer.unwrap_err().is::<NoEndpoints>());
    }
    assert_eq!(rig.balance.snapshot().waiting, 1);
    assert!(first.await.unwrap_err().is::<NoEndpoints>());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_polled_delays_no_rejection_of_another() {
    let rig = rig(Balance::builder().max_wait(Duration::from_secs(60)));
    let mut idle = Box::pin(rig.balance.clone().call(request()));
    assert!(poll_once(idle.as_mut()).await.is_pending());
    let waits = [(); 3].map(|()| tokio::spawn(rig.balance.clone().call(request())));
    settle().await;
    rig.driver.abort();
    let start = Instant::now();
    for answer in waits {
        assert!(answer.await.unwrap().is_err());
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(poll_once(pin!(idle)).await.is_ready());
}
