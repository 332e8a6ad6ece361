//! Waiting for a token, in paused time.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use testkit::{Answer, Probe, ProbeHandle, Wakes, contract};
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt as _};
use tower_bucket::{BucketLayer, Exhausted, Limiter, OnMissingKey, Quota};

use crate::common::{from, n, request};

const TEN_A_SECOND: Quota = Quota::per_second(n(10)).burst(n(2));
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

/// Calls, and tells when the answer came.
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
    let plenty = Quota::per_second(n(1_000_000));
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
    assert_eq!((probe.calls(), layer.waiting().waiters()), (2, 3));
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
    assert_eq!((probe.calls(), layer.waiting().waiters()), (5, 0));
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
async fn so_many_wait_and_no_more() {
    let limiter = Limiter::new(TEN_A_SECOND);
    let layer = BucketLayer::new(limiter.clone())
        .wait(Duration::from_secs(60))
        .waiters(n(3));
    let (mut service, _probe) = layered(&layer);
    let mut other = layer.clone().layer(Probe::new().0);
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(Box::pin(service.ready().await.unwrap().call(request())));
    }
    assert_eq!(layer.waiting().waiters(), 3);
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
    assert_eq!(layer.waiting().waiters(), 0);
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

/// In a keyed store a nanosecond of what was given back stayed, and so the next one to leave seemed to have somebody behind.
#[tokio::test(start_paused = true)]
async fn a_line_that_goes_from_its_end_gives_all_back_shared_or_keyed() {
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
async fn one_that_others_stand_behind_takes_its_turn_with_it() {
    let layer = BucketLayer::new(Limiter::new(TEN_A_SECOND)).wait(Duration::from_secs(1));
    let (mut service, probe) = layered(&layer);
    let mut calls = Vec::new();
    for _ in 0..4 {
        calls.push(Box::pin(service.ready().await.unwrap().call(request())));
    }
    calls.iter_mut().for_each(|call| drop(poll(call.as_mut())));
    let last = calls.pop().unwrap();
    drop(calls.pop());
    let begin = Instant::now();
    last.await.unwrap();
    assert_eq!(
        begin.elapsed().as_millis() / 10,
        20,
        "its own turn, neither sooner nor later"
    );
    service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    assert_eq!(
        begin.elapsed().as_millis() / 10,
        30,
        "and the next one stands behind it"
    );
    assert_eq!(probe.calls(), 4);
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
    assert_eq!((layer.waiting().waiters(), probe.in_flight()), (0, 0));
    service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_client_stands_in_a_line_of_its_own() {
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
async fn one_who_does_not_wait_cannot_get_ahead_of_those_who_do() {
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
