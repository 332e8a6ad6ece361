//! Waiting for a token, in paused time.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use proptest::prelude::*;
use testkit::{Answer, Probe, ProbeHandle, Wakes, contract};
use tokio::time::{Instant, advance, sleep_until, timeout_at};
use tower::{Layer, Service, ServiceExt as _};
use tower_bucket::{
    BucketLayer, Exhausted, KeyedLimiter, Limiter, OnMissingKey, PeerIp, Quota, Share,
};

use crate::common::{from, request};

const TEN_A_SECOND: Quota = Quota::per_second(10).burst(2);
const INTERVAL: Duration = Duration::from_millis(100);

fn layered<L: Layer<Probe>>(layer: &L) -> (L::Service, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (layer.layer(probe), handle)
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    let (_, waker) = Wakes::new();
    future.poll(&mut Context::from_waker(&waker))
}

fn is_ready<S: Service<Request<String>>>(service: &mut S) -> bool {
    let (_, waker) = Wakes::new();
    matches!(
        service.poll_ready(&mut Context::from_waker(&waker)),
        Poll::Ready(Ok(()))
    )
}

/// Calls, and returns when the answer came.
async fn timed<S, B>(mut service: S, begin: Instant) -> (u16, u128)
where
    S: Service<Request<String>, Response = Response<B>>,
    S::Error: std::fmt::Debug,
{
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    (response.status().as_u16(), begin.elapsed().as_millis())
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_waits_keeps_the_contract() {
    let plenty = Quota::per_second(1_000_000);
    contract::check(|probe| {
        BucketLayer::new(Limiter::new(plenty))
            .wait(INTERVAL)
            .layer(probe)
    });
    contract::check(|probe| {
        BucketLayer::per_client(plenty)
            .respond()
            .wait(INTERVAL)
            .layer(probe)
    });
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_burst_come_through_in_the_order_they_came_and_at_the_rate() {
    let limiter = Limiter::new(TEN_A_SECOND);
    let layer = BucketLayer::new(limiter.clone())
        .respond()
        .wait(Duration::from_millis(350));
    let (service, probe) = layered(&layer);
    let begin = Instant::now();
    let calls: Vec<_> = (0..8)
        .map(|_| tokio::spawn(timed(service.clone(), begin)))
        .collect();
    tokio::task::yield_now().await;
    assert_eq!((probe.calls(), layer.queue().waiters()), (2, 3));
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    let passed: Vec<_> = answers
        .iter()
        .filter(|(status, _)| *status == 200)
        .map(|(_, at)| at / 10 * 10)
        .collect();
    assert_eq!(
        passed,
        [0, 0, 100, 200, 300],
        "the burst, and then one each tenth of a second"
    );
    assert_eq!(
        answers[5..]
            .iter()
            .map(|(status, at)| (*status, at / 10))
            .collect::<Vec<_>>(),
        [(429, 0); 3],
        "too late"
    );
    let snapshot = limiter.snapshot();
    assert_eq!(
        (
            snapshot.allowed,
            snapshot.waited,
            snapshot.refused,
            snapshot.abandoned
        ),
        (5, 3, 3, 0)
    );
    assert_eq!((probe.calls(), layer.queue().waiters()), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_called_when_the_turn_comes_and_not_before() {
    let (mut service, probe) =
        layered(&BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(INTERVAL));
    for _ in 0..2 {
        service
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
    }
    let mut call = pin!(service.ready().await.unwrap().call(request()));
    assert!(poll(call.as_mut()).is_pending());
    advance(INTERVAL - Duration::from_millis(1)).await;
    assert!(poll(call.as_mut()).is_pending());
    assert_eq!(probe.calls(), 2);
    advance(Duration::from_millis(1)).await;
    assert!(poll(call.as_mut()).is_ready());
    assert_eq!(probe.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_waiters_is_bounded() {
    let limiter = Limiter::new(TEN_A_SECOND);
    let layer = BucketLayer::new(limiter.clone())
        .wait(Duration::from_secs(60))
        .waiters(3);
    let (mut service, _probe) = layered(&layer);
    let mut other = layer.clone().layer(Probe::new().0);
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(Box::pin(service.ready().await.unwrap().call(request())));
    }
    assert_eq!(layer.queue().waiters(), 3);
    let refused = other
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap_err();
    let refused = refused.downcast_ref::<Exhausted>().unwrap();
    assert_eq!(
        refused.retry_after(),
        Some(4 * INTERVAL),
        "behind all who wait"
    );
    assert_eq!(
        (limiter.snapshot().refused, limiter.snapshot().allowed),
        (1, 2)
    );
    drop(calls);
    assert_eq!(layer.queue().waiters(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_in_the_line_gives_its_token_back_when_it_is_dropped() {
    let limiter = Limiter::new(TEN_A_SECOND);
    let layer = BucketLayer::new(limiter.clone()).wait(Duration::from_secs(1));
    let (mut service, probe) = layered(&layer);
    for _ in 0..100 {
        let mut call = Box::pin(service.ready().await.unwrap().call(request()));
        let _ = poll(call.as_mut());
        drop(call);
    }
    assert_eq!(
        probe.calls(),
        2,
        "those two found a token at once and called"
    );
    assert_eq!(
        (limiter.snapshot().abandoned, limiter.snapshot().allowed),
        (98, 2)
    );
    let begin = Instant::now();
    service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    assert_eq!(
        begin.elapsed().as_millis() / 10,
        10,
        "98 that were dropped cost nobody anything"
    );
}

/// In a keyed store a nanosecond of what was given back stayed, and so the next one to leave seemed to have a waiter behind.
#[tokio::test(start_paused = true)]
async fn a_queue_that_goes_from_its_end_gives_all_back_shared_or_keyed() {
    async fn check<L>(layer: L)
    where
        L: Layer<Probe, Service: Service<Request<String>, Error: std::fmt::Debug>>,
    {
        let (mut service, _probe) = layered(&layer);
        for _ in 0..2 {
            service
                .ready()
                .await
                .unwrap()
                .call(from("192.0.2.1"))
                .await
                .unwrap();
        }
        let mut calls = Vec::new();
        for _ in 0..5 {
            calls.push(Box::pin(
                service.ready().await.unwrap().call(from("192.0.2.1")),
            ));
        }
        while calls.pop().is_some() {}
        let begin = Instant::now();
        service
            .ready()
            .await
            .unwrap()
            .call(from("192.0.2.1"))
            .await
            .unwrap();
        assert_eq!(begin.elapsed().as_millis() / 10, 10);
    }
    check(BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(Duration::from_secs(1))).await;
    check(BucketLayer::per_client(TEN_A_SECOND).wait(Duration::from_secs(1))).await;
}

#[tokio::test(start_paused = true)]
async fn when_one_leaves_from_the_middle_those_behind_it_move_up() {
    let layer = BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(Duration::from_secs(1));
    let (mut service, probe) = layered(&layer);
    let mut calls = Vec::new();
    for _ in 0..6 {
        calls.push(Box::pin(service.ready().await.unwrap().call(request())));
    }
    calls.iter_mut().for_each(|call| drop(poll(call.as_mut())));
    let begin = Instant::now();
    let calls: Vec<_> = (calls.into_iter().skip(2))
        .map(|call| {
            tokio::spawn(async move {
                call.await.unwrap();
                begin.elapsed().as_millis() / 10
            })
        })
        .collect();
    tokio::task::yield_now().await;
    calls[1].abort();
    let newcomer = service.ready().await.unwrap().call(request());
    let newcomer = tokio::spawn(async move {
        newcomer.await.unwrap();
        begin.elapsed().as_millis() / 10
    });
    let mut passed = Vec::new();
    for call in calls.into_iter().chain([newcomer]) {
        passed.push(call.await.ok());
    }
    assert_eq!(
        passed,
        [Some(10), None, Some(20), Some(30), Some(40)],
        "the turns are those of the ones that are there"
    );
    assert_eq!(probe.calls(), 6);
}

/// The turns of requests that had left stayed in the line: 21 of 600 passed.
#[tokio::test(start_paused = true)]
async fn under_double_load_callers_that_give_up_leave_the_rate_to_the_rest() {
    async fn passed_in_a_minute<L>(layer: L, patience: Duration) -> usize
    where
        L: Layer<Probe>,
        L::Service: Service<Request<String>, Error: std::fmt::Debug + Send, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let (service, _probe) = layered(&layer);
        let mut calls = Vec::new();
        for _ in 0..1_200 {
            let mut service = service.clone();
            calls.push(tokio::spawn(async move {
                let call = service.ready().await.unwrap().call(from("192.0.2.1"));
                matches!(tokio::time::timeout(patience, call).await, Ok(Ok(_)))
            }));
            tokio::time::sleep(INTERVAL / 2).await;
        }
        let mut passed = 0;
        for call in calls {
            passed += usize::from(call.await.unwrap());
        }
        passed
    }
    let longest = Duration::from_secs(5);
    for patience in [250, 1_000, 4_900, 10_000].map(Duration::from_millis) {
        for passed in [
            passed_in_a_minute(
                BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(longest),
                patience,
            )
            .await,
            passed_in_a_minute(
                BucketLayer::per_client(TEN_A_SECOND).wait(longest),
                patience,
            )
            .await,
            passed_in_a_minute(
                BucketLayer::per_client(TEN_A_SECOND)
                    .and(BucketLayer::new(Limiter::new(TEN_A_SECOND)))
                    .wait(longest),
                patience,
            )
            .await,
        ] {
            // The burst, ten a second, and those that still wait when the last one has come.
            let most = 2 + 600 + patience.min(longest).as_millis() as usize / 100;
            assert!(
                passed >= 590 && passed <= most,
                "{passed} of {most} with a patience of {patience:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_waits_for_present_requests_and_not_for_dropped_ones() {
    let layer = BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(Duration::from_secs(10));
    let (mut service, probe) = layered(&layer);
    let mut calls = Vec::new();
    for _ in 0..52 {
        calls.push(Box::pin(service.ready().await.unwrap().call(request())));
    }
    calls.iter_mut().for_each(|call| drop(poll(call.as_mut())));
    assert_eq!((probe.calls(), layer.queue().waiters()), (2, 50));
    let last = calls.pop().unwrap();
    drop(calls);
    assert_eq!(layer.queue().waiters(), 1);
    let begin = Instant::now();
    let newcomer = service.ready().await.unwrap().call(request());
    let newcomer = tokio::spawn(async move {
        newcomer.await.unwrap();
        begin.elapsed().as_millis()
    });
    last.await.unwrap();
    assert_eq!(begin.elapsed().as_millis(), 100, "the first turn there is");
    assert_eq!(newcomer.await.unwrap(), 200);
}

/// It was let in, and the one behind it is let in as well at the same look; then its caller leaves.
#[tokio::test(start_paused = true)]
async fn one_that_is_dropped_when_its_turn_has_come_gives_back_what_lies_ahead() {
    for late in [0, 40, 100] {
        let limiter = Limiter::new(TEN_A_SECOND);
        let layer = BucketLayer::new(limiter.clone()).wait(Duration::from_secs(1));
        let (mut service, probe) = layered(&layer);
        let mut calls = Vec::new();
        for _ in 0..4 {
            calls.push(Box::pin(service.ready().await.unwrap().call(request())));
        }
        let mut next = calls.pop().unwrap();
        let first = calls.pop().unwrap();
        assert!(poll(next.as_mut()).is_pending());
        advance(INTERVAL + Duration::from_millis(late)).await;
        drop(first);
        let begin = Instant::now();
        next.await.unwrap();
        assert_eq!(
            begin.elapsed().as_millis(),
            0,
            "its turn is the one that the first had missed"
        );
        assert_eq!((limiter.snapshot().abandoned, probe.calls()), (1, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_limits_both_queues_move_up_when_one_leaves() {
    let (per_second, slow) = (
        Limiter::new(TEN_A_SECOND),
        Limiter::new(Quota::per_second(2).burst(2)),
    );
    let layer = BucketLayer::new(per_second.clone())
        .and(BucketLayer::new(slow.clone()))
        .wait(Duration::from_secs(10));
    let (mut service, _probe) = layered(&layer);
    let mut calls = Vec::new();
    for _ in 0..6 {
        calls.push(Box::pin(service.ready().await.unwrap().call(request())));
    }
    calls.iter_mut().for_each(|call| drop(poll(call.as_mut())));
    let begin = Instant::now();
    let last = calls.pop().unwrap();
    drop(calls.split_off(3));
    assert_eq!(layer.queue().waiters(), 2);
    last.await.unwrap();
    assert_eq!(
        begin.elapsed().as_millis(),
        1_000,
        "the slow one's second turn"
    );
    drop(calls);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        (
            per_second.peek().unwrap().remaining(),
            slow.peek().unwrap().remaining()
        ),
        (1, 1)
    );
    assert_eq!(layer.queue().waiters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_keeps_its_limiter_and_its_place_by_itself() {
    let layer = BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(Duration::from_secs(1));
    let waiting = layer.queue().clone();
    let (mut service, probe) = layered(&layer);
    for _ in 0..2 {
        let call = service.ready().await.unwrap().call(request());
        call.await.unwrap();
    }
    let call = service.ready().await.unwrap().call(request());
    drop((service, layer));
    assert_eq!(waiting.waiters(), 1);
    call.await.unwrap();
    assert_eq!((waiting.waiters(), probe.calls()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn when_the_quota_changes_waiting_requests_keep_their_turns_and_move_up_as_before() {
    for (quota, newcomer) in [
        (Quota::per_second(100).burst(2), 490),
        (Quota::per_second(2).burst(1), 500),
    ] {
        let limiter = Limiter::new(TEN_A_SECOND);
        let layer = BucketLayer::new(limiter.clone()).wait(Duration::from_secs(5));
        let (mut service, _probe) = layered(&layer);
        let mut calls = Vec::new();
        for _ in 0..6 {
            calls.push(Box::pin(service.ready().await.unwrap().call(request())));
        }
        calls.iter_mut().for_each(|call| drop(poll(call.as_mut())));
        let begin = Instant::now();
        limiter.set_quota(quota);
        drop(calls.remove(2));
        let mut passed = Vec::new();
        let last = service.ready().await.unwrap().call(request());
        let last = tokio::spawn(async move {
            last.await.unwrap();
            begin.elapsed().as_millis()
        });
        for call in calls.into_iter().skip(2) {
            call.await.unwrap();
            passed.push(begin.elapsed().as_millis());
        }
        assert_eq!(passed, [100, 200, 300], "{quota:?}");
        // The bucket is full at 500 ms, after three of the old cost; behind them, at the cost and depth of the new one.
        assert_eq!(last.await.unwrap(), newcomer, "{quota:?}");
    }
}

/// With 150 requests one client had all of the 100 places, and another's second request was refused.
#[tokio::test(start_paused = true)]
async fn one_client_leaves_places_for_other_clients() {
    let layer = BucketLayer::per_client(Quota::per_second(10).burst(1))
        .respond()
        .wait(Duration::from_secs(60))
        .waiters(100);
    let (mut service, _probe) = layered(&layer);
    let mut calls = Vec::new();
    let mut call = async |peer: &str| {
        let mut call = Box::pin(service.ready().await.unwrap().call(from(peer)));
        match poll(call.as_mut()) {
            Poll::Ready(answer) => answer.unwrap().status().as_u16(),
            Poll::Pending => {
                calls.push(call);
                0
            }
        }
    };
    let mut waiting = 0;
    for _ in 0..150 {
        waiting += usize::from(call("192.0.2.1").await == 0);
    }
    assert_eq!(waiting, 50, "half of the places");
    assert_eq!(call("192.0.2.1").await, 429);
    for other in 2..8 {
        let peer = format!("192.0.2.{other}");
        assert_eq!((call(&peer).await, call(&peer).await), (200, 0), "{peer}");
    }
    assert_eq!(layer.queue().waiters(), 56);
    assert_eq!(layer.limiter().snapshot().refused, 100);
    // A rejected request has moved no waiter.
    assert_eq!(call("192.0.2.2").await, 0);
    drop(calls);
    assert_eq!(layer.queue().waiters(), 0);
}

/// Its own limit lets it through, and it is the site's that it waits for.
#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_a_limit_of_all_has_no_more_than_its_share_of_places() {
    let site = BucketLayer::new(Limiter::new(TEN_A_SECOND));
    let layer = BucketLayer::per_client(Quota::per_second(1_000))
        .and(site)
        .wait(Duration::from_secs(60))
        .waiters(12)
        .waiters_per_key(Share::one_in(3));
    let (mut service, _probe) = layered(&layer);
    let mut calls = Vec::new();
    for turn in 0..20 {
        let peer = if turn < 10 { "192.0.2.1" } else { "192.0.2.2" };
        let call = service.ready().await.unwrap().call(from(peer));
        calls.push(Box::pin(call));
    }
    calls.iter_mut().for_each(|call| drop(poll(call.as_mut())));
    assert_eq!(
        layer.queue().waiters(),
        4 + 3,
        "a third of twelve, and a third of eight"
    );
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_key_and_keys_without_room_are_one_key_for_the_share() {
    let limiter = KeyedLimiter::new(Quota::per_hour(1)).capacity(1);
    let layer = BucketLayer::keyed(limiter, PeerIp)
        .wait(Duration::from_secs(100 * 3600))
        .waiters(16);
    let (mut service, _probe) = layered(&layer);
    let mut calls = Vec::new();
    for _ in 0..12 {
        calls.push(service.ready().await.unwrap().call(request()));
    }
    assert_eq!(layer.queue().waiters(), 8, "half of sixteen");
    for stranger in 0..12 {
        let peer = format!("192.0.2.{stranger}");
        calls.push(service.ready().await.unwrap().call(from(&peer)));
    }
    assert_eq!(layer.queue().waiters(), 8 + 4, "half of eight");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_a_token_allocates_nothing() {
    let layer = BucketLayer::per_client(TEN_A_SECOND)
        .respond()
        .wait(Duration::from_secs(1));
    let bare = tower::service_fn(async |_: Request<()>| {
        Ok::<_, std::convert::Infallible>(Response::new(()))
    });
    let mut service = layer.layer(bare);
    let mut requests = [from("192.0.2.1"), from("192.0.2.1")].map(|it| Some(it.map(drop)));
    let waker = std::task::Waker::noop();
    let counted = allocation_counter::measure(|| {
        for request in &mut requests {
            let mut cx = Context::from_waker(waker);
            assert!(service.poll_ready(&mut cx).is_ready());
            let call = pin!(service.call(request.take().unwrap()));
            assert!(call.poll(&mut cx).is_ready());
        }
    });
    assert_eq!(counted.count_total, 0);
}

/// In milliseconds, on a grid on which no two things happen at the same time but a turn and an arrival.
#[derive(Clone, Copy, Debug)]
struct Caller {
    comes: u64,
    leaves: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed(u64),
    GaveUp,
    Refused,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let caller = (1_u64..8, prop_oneof![0_u64..30, 0_u64..200]);
    prop::collection::vec(caller, 1..80).prop_map(|callers| {
        let mut now = 0;
        let caller = |(step, patience)| {
            now += 10 * step;
            Caller {
                comes: now,
                leaves: now + 10 * patience + 5,
            }
        };
        callers.into_iter().map(caller).collect()
    })
}

/// Ten a second and two at once, in a line that is kept as a list.
fn first_come_first_served(callers: &[Caller], longest: u64) -> Vec<Outcome> {
    const COST: u64 = 100;
    const DEPTH: u64 = 200;
    let mut fates = vec![Outcome::GaveUp; callers.len()];
    let (mut full_at, mut waiting) = (0_u64, Vec::<usize>::new());
    let mut times: Vec<u64> = callers
        .iter()
        .flat_map(|caller| [caller.comes, caller.leaves])
        .collect();
    times.sort_unstable();
    for now in times {
        while let Some(&first) = waiting.first()
            && let turn = full_at + COST - DEPTH
            && turn <= now
        {
            full_at += COST;
            fates[first] = Outcome::Passed(turn);
            waiting.remove(0);
        }
        waiting.retain(|&name| callers[name].leaves > now);
        for (name, caller) in callers.iter().enumerate() {
            if caller.comes != now {
                continue;
            }
            let end = now.max(full_at) + COST * (waiting.len() as u64 + 1);
            if end <= now + DEPTH {
                full_at = end;
                fates[name] = Outcome::Passed(now);
            } else if end <= now + DEPTH + longest {
                waiting.push(name);
            } else {
                fates[name] = Outcome::Refused;
            }
        }
    }
    fates
}

/// What becomes of them in a service.
async fn served<L>(layer: L, callers: &[Caller]) -> Vec<Outcome>
where
    L: Layer<Probe>,
    L::Service: Service<Request<String>, Error: std::fmt::Debug + Send, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let (service, _probe) = layered(&layer);
    let begin = Instant::now();
    let at = |millis| begin + Duration::from_millis(millis);
    let calls: Vec<_> = callers
        .iter()
        .map(|&Caller { comes, leaves }| {
            let (mut service, comes, leaves) = (service.clone(), at(comes), at(leaves));
            tokio::spawn(async move {
                sleep_until(comes).await;
                let call = service.ready().await.unwrap().call(from("192.0.2.1"));
                match timeout_at(leaves, call).await {
                    Ok(Ok(_)) => Outcome::Passed(begin.elapsed().as_millis() as u64),
                    Ok(Err(_)) => Outcome::Refused,
                    Err(_) => Outcome::GaveUp,
                }
            })
        })
        .collect();
    let mut fates = Vec::new();
    for call in calls {
        fates.push(call.await.unwrap());
    }
    fates
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn when_any_give_up_the_rest_pass_in_order_and_at_the_rate(
        callers in callers(),
        longest in prop_oneof![Just(60_000_u64), (1_u64..20).prop_map(|tenths| 100 * tenths)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let expected = first_come_first_served(&callers, longest);
        let longest = Duration::from_millis(longest);
        // Made in there, where the clock is the runtime's.
        let (shared, keyed) = runtime.block_on(async {
            let shared = BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(longest);
            let keyed = BucketLayer::per_client(TEN_A_SECOND).wait(longest);
            (served(shared, &callers).await, served(keyed, &callers).await)
        });
        prop_assert_eq!(&shared, &expected);
        prop_assert_eq!(&keyed, &expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_before_it_is_polled_gives_back_too() {
    let limiter = Limiter::new(TEN_A_SECOND);
    let layer = BucketLayer::new(limiter.clone()).wait(Duration::from_secs(1));
    let (mut service, probe) = layered(&layer);
    for _ in 0..2 {
        service
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
    }
    drop(service.ready().await.unwrap().call(request()));
    assert_eq!((limiter.snapshot().abandoned, probe.in_flight()), (1, 0));
    assert_eq!(limiter.peek().unwrap_err().retry_after(), Some(INTERVAL));
}

#[tokio::test(start_paused = true)]
async fn the_waiting_request_owns_the_service_that_was_ready_and_the_clone_asks_for_itself() {
    let (mut service, probe) =
        layered(&BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(INTERVAL));
    for _ in 0..2 {
        service
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
    }
    assert!(is_ready(&mut service));
    let mut call = Box::pin(service.call(request()));
    probe.be_pending();
    assert!(
        !is_ready(&mut service),
        "what is left behind is a clone, and was not ready"
    );
    advance(INTERVAL).await;
    // The probe panics if it is called without having been ready on that very clone.
    assert!(poll(call.as_mut()).is_ready());
    drop(call);
    assert_eq!(probe.clones(), 1, "the service goes when the call is done");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_inner_service_leaves_the_line_in_order() {
    let layer = BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(INTERVAL);
    let (mut service, probe) = layered(&layer);
    for _ in 0..2 {
        service
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
    }
    probe.answer(Answer::Panic);
    let call = tokio::spawn(service.ready().await.unwrap().call(request()));
    assert!(call.await.unwrap_err().is_panic());
    assert_eq!((layer.queue().waiters(), probe.in_flight()), (0, 0));
    service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_client_has_its_queue() {
    let layer = BucketLayer::per_client(TEN_A_SECOND)
        .on_missing_key(OnMissingKey::Deny)
        .respond()
        .wait(INTERVAL);
    let (mut service, _probe) = layered(&layer);
    let begin = Instant::now();
    for peer in [
        "192.0.2.1",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.2",
        "192.0.2.3",
    ] {
        let response = service
            .ready()
            .await
            .unwrap()
            .call(from(peer))
            .await
            .unwrap();
        assert_eq!(
            (response.status(), begin.elapsed()),
            (StatusCode::OK, Duration::ZERO)
        );
    }
    let (mut one, mut two) = (service.clone(), service.clone());
    let calls = [
        tokio::spawn(async move {
            one.ready()
                .await
                .unwrap()
                .call(from("192.0.2.1"))
                .await
                .unwrap()
                .status()
        }),
        tokio::spawn(async move {
            two.ready()
                .await
                .unwrap()
                .call(from("192.0.2.2"))
                .await
                .unwrap()
                .status()
        }),
    ];
    for call in calls {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(begin.elapsed().as_millis() / 10, 10, "side by side");
    let keyless = service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    assert_eq!(
        keyless.status(),
        StatusCode::TOO_MANY_REQUESTS,
        "no wait helps"
    );
    let snapshot = layer.limiter().snapshot();
    assert_eq!(
        (snapshot.allowed, snapshot.waited, snapshot.refused),
        (7, 2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_wait_cannot_get_ahead_of_waiting_ones() {
    let limiter = Limiter::new(TEN_A_SECOND);
    let (mut patient, _probe) =
        layered(&BucketLayer::new(limiter.clone()).wait(Duration::from_secs(1)));
    let (mut hasty, _probe) = layered(&BucketLayer::new(limiter.clone()));
    let mut calls = Vec::new();
    for _ in 0..4 {
        calls.push(Box::pin(patient.ready().await.unwrap().call(request())));
    }
    for passed in 1..=3 {
        let refused = hasty
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap_err();
        let wait = refused
            .downcast_ref::<Exhausted>()
            .unwrap()
            .retry_after()
            .unwrap();
        assert_eq!(wait, (4 - passed) * INTERVAL);
        advance(INTERVAL).await;
    }
    assert!(hasty.ready().await.unwrap().call(request()).await.is_ok());
}
