//! The layers: what a request meets in each state, from readiness to the last frame of its answer.

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use testkit::{Answer, Probe, Script, Step, Wakes, contract};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_lease::{
    BootClock, FencingToken, InFlight, Lease, LeaseGateLayer, LeaseLayer, LeaseLost, LeaseService,
    LeaseStore, MemoryStore, NotHeld, RequestCounts, State, TokenIn, TokioClock, WrongInstance,
};
use tower_outcome::{BoxError, Class, Refusal, Unsent};

use crate::common::{Flaky, Suspending, VALID, Way, builder, held, key, ms, settle, soon, spawn};

fn request() -> Request<String> {
    Request::new(String::new())
}

fn poll_ready<S: Service<Request<String>>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    let (_, waker) = Wakes::new();
    service.poll_ready(&mut Context::from_waker(&waker))
}

async fn not_held() -> (MemoryStore, crate::common::Kept) {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let idle = tokio::spawn(async move {
        std::future::pending::<()>().await;
        keeper.run().await
    });
    (MemoryStore::new(), (lease, idle))
}

/// Asks until ready, then calls.
async fn ask<S, Req>(service: &mut S, request: Req) -> Result<S::Response, S::Error>
where
    S: Service<Req>,
{
    soon(async { service.ready().await?.call(request).await }).await
}

// === the contract ===

#[tokio::test(start_paused = true)]
async fn the_contract_holds_while_it_is_held() {
    let (_store, (lease, _keeper)) = held().await;
    let layer = LeaseLayer::new(&lease);
    contract::check(|probe| layer.layer(probe));
    contract::check(|probe| layer.clone().http().layer(probe));
    contract::check(|probe| layer.clone().respond().layer(probe));
    contract::check(|probe| layer.clone().gate().layer(probe));
    contract::check(|probe| layer.clone().http().gate().layer(probe));
    contract::check(|probe| layer.clone().in_flight(InFlight::Finish).layer(probe));
    contract::check(|probe| {
        layer
            .clone()
            .in_flight(InFlight::FinishWithin(ms(100)))
            .respond()
            .layer(probe)
    });
    contract::check(|probe| {
        layer
            .clone()
            .http()
            .token_in(TokenIn::Both)
            .deadlines(ms(100))
            .layer(probe)
    });
    assert!(lease.is_held());
}

// === refusing ===

#[tokio::test(start_paused = true)]
async fn reject_answers_an_error_without_asking_the_inner_service() {
    let (_store, (lease, _idle)) = not_held().await;
    let (probe, handle) = Probe::new();
    handle.be_pending();
    let mut service = LeaseLayer::new(&lease).layer(probe);
    assert!(matches!(poll_ready(&mut service), Poll::Ready(Ok(()))));
    let error = service.call(request()).await.unwrap_err();
    assert!(error.is::<NotHeld>());
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::Unavailable, "lease-not-held")
    );
    assert_eq!((handle.polls(), handle.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_carries_the_time_of_the_next_attempt() {
    let (store, (_holder, _keeper)) = held().await;
    let (contender, _contender) = spawn(builder(&store));
    sleep(ms(100)).await;
    let (probe, _) = Probe::new();
    let mut service = LeaseLayer::new(&contender).layer(probe);
    let error = ask(&mut service, request()).await.unwrap_err();
    let wait = error.downcast::<NotHeld>().unwrap().retry_after().unwrap();
    assert!(wait > Duration::ZERO && wait <= ms(2_500), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn respond_answers_in_the_requests_protocol_and_keeps_the_error_type() {
    let (_store, (lease, _idle)) = not_held().await;
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let mut service = LeaseLayer::new(&lease).respond().layer(inner);
    let Ok(response) = ask(&mut service, request()).await;
    assert_eq!(response.status(), 503);
    let grpc = Request::builder()
        .method(Method::POST)
        .header("content-type", "application/grpc");
    let Ok(response) = ask(&mut service, grpc.body(String::new()).unwrap()).await;
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["grpc-status"]
        ),
        (200, &"14".parse().unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_ready_to_refuse_refuses_though_the_lease_came_meanwhile() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let (probe, handle) = Probe::new();
    let mut service = LeaseLayer::new(&lease).layer(probe);
    assert!(poll_ready(&mut service).is_ready());
    tokio::spawn(keeper.run());
    soon(lease.held()).await.unwrap();
    // The strict probe would panic if it were called now: it was not polled.
    assert!(service.call(request()).await.unwrap_err().is::<NotHeld>());
    assert_eq!(ask(&mut service, request()).await.unwrap().status(), 200);
    assert_eq!(handle.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn r27_readiness_is_not_believed_in_call() {
    let store = MemoryStore::new();
    let (lease, keeper) = builder(&store).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let (probe, handle) = Probe::new();
    let mut service = LeaseLayer::new(&lease).layer(probe);
    service.ready().await.unwrap();
    advance(VALID).await;
    assert!(service.call(request()).await.unwrap_err().is::<NotHeld>());
    assert_eq!(handle.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn r27_what_is_left_must_be_enough() {
    let store = Flaky::new();
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    store.renewals([], Way::LoseRequest);
    let layer = LeaseLayer::new(&lease).min_remaining(Duration::from_secs(5));
    let (probe, handle) = Probe::new();
    let mut service = layer.clone().layer(probe);
    assert!(ask(&mut service, request()).await.is_ok());
    sleep(VALID - ms(4_999)).await;
    assert!(lease.is_held());
    assert!(
        ask(&mut service, request())
            .await
            .unwrap_err()
            .is::<NotHeld>()
    );
    assert_eq!(handle.calls(), 1);
    // A gate opens again with the next renewal.
    let (probe, _) = Probe::new();
    let mut gate = layer.gate().layer(probe);
    assert!(poll_ready(&mut gate).is_pending());
    store.renewals([], Way::Pass);
    let start = Instant::now();
    assert!(ask(&mut gate, request()).await.is_ok());
    assert!(start.elapsed() > Duration::ZERO && start.elapsed() < Duration::from_secs(2));
}

/// A gate was ready when there was enough time, and hands back a request that comes when there is not.
#[tokio::test(start_paused = true)]
async fn r27_a_gates_readiness_is_not_believed_for_the_time_a_request_needs() {
    let store = Flaky::new();
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    store.renewals([], Way::LoseRequest);
    let (probe, handle) = Probe::new();
    let layer = LeaseLayer::new(&lease).min_remaining(Duration::from_secs(5));
    let mut gate = layer.gate().layer(probe);
    gate.ready().await.unwrap();
    sleep(VALID - ms(4_999)).await;
    assert!(lease.is_held());
    let error = gate.call(request()).await.unwrap_err();
    let (_, cause) = Unsent::<Request<String>>::recover(error).unwrap();
    assert!(cause.is::<NotHeld>());
    // A request's own deadline is known only in `call`.
    let layer = LeaseLayer::new(&lease)
        .http()
        .deadlines(Duration::from_secs(9));
    let mut gate = layer.gate().layer(Probe::new().0);
    let calling = |timeout: &str| {
        Request::post("/")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout)
            .body(String::new())
            .unwrap()
    };
    let error = ask(&mut gate, calling("5S")).await.unwrap_err();
    assert!(Unsent::<Request<String>>::recover(error).is_ok());
    assert!(ask(&mut gate, calling("4S")).await.is_ok());
    assert_eq!(handle.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_waiting_for_the_inner_service_is_rejected_when_the_lease_is_lost() {
    let (store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    handle.be_pending();
    let mut service = LeaseLayer::new(&lease).layer(probe);
    let waiting = tokio::spawn(async move { ask(&mut service, request()).await });
    settle().await;
    assert!(!waiting.is_finished());
    store.revoke(&key(), None).await.unwrap();
    let start = Instant::now();
    assert!(soon(waiting).await.unwrap().unwrap_err().is::<NotHeld>());
    assert!(start.elapsed() < ms(10));
}

#[tokio::test(start_paused = true)]
async fn r6_a_caller_waiting_for_the_inner_service_is_rejected_at_the_end_of_validity_without_a_keeper()
 {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let (probe, handle) = Probe::new();
    handle.be_pending();
    let mut service = LeaseLayer::new(&lease).layer(probe);
    let start = Instant::now();
    assert!(
        soon(ask(&mut service, request()))
            .await
            .unwrap_err()
            .is::<NotHeld>()
    );
    assert!(
        (VALID..VALID + ms(5)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

// === the gate ===

#[tokio::test(start_paused = true)]
async fn a_gate_is_pending_until_the_lease_is_held_and_wakes_then() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let (probe, handle) = Probe::new();
    let mut gate = LeaseLayer::new(&lease).gate().layer(probe);
    let (wakes, waker) = Wakes::new();
    assert!(
        gate.poll_ready(&mut Context::from_waker(&waker))
            .is_pending()
    );
    assert_eq!((handle.polls(), wakes.count()), (0, 0));
    tokio::spawn(keeper.run());
    soon(lease.held()).await.unwrap();
    assert!(wakes.count() > 0);
    assert!(matches!(poll_ready(&mut gate), Poll::Ready(Ok(()))));
}

#[tokio::test(start_paused = true)]
async fn a_gate_waits_through_a_loss_and_fails_only_when_the_keeper_has_gone() {
    let store = MemoryStore::new();
    let (lease, keeper) = spawn(builder(&store).reacquire(true));
    soon(lease.held()).await.unwrap();
    let (probe, _) = Probe::new();
    let mut gate = LeaseLayer::new(&lease).gate().layer(probe);
    assert!(poll_ready(&mut gate).is_ready());
    store.revoke(&key(), None).await.unwrap();
    settle().await;
    assert!(
        poll_ready(&mut gate).is_pending(),
        "a re-poll after readiness takes it back"
    );
    gate.ready().await.unwrap();
    keeper.abort();
    settle().await;
    let error = soon(gate.ready()).await.map(drop).unwrap_err();
    assert!(error.is::<NotHeld>());
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_closes_before_the_call_hands_the_request_back() {
    let (store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    let mut gate = LeaseLayer::new(&lease).gate().layer(probe);
    gate.ready().await.unwrap();
    store.revoke(&key(), None).await.unwrap();
    settle().await;
    let error = gate
        .call(Request::new("hello".to_owned()))
        .await
        .unwrap_err();
    assert_eq!(Refusal::find(&*error).unwrap().code(), "lease-not-held");
    let (request, cause) = Unsent::<Request<String>>::recover(error).unwrap();
    assert_eq!(request.body(), "hello");
    assert!(cause.is::<NotHeld>());
    assert_eq!(handle.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_a_waiting_gate_waits_for_itself() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let (probe, handle) = Probe::new();
    let mut gate = LeaseLayer::new(&lease).gate().layer(probe);
    assert!(poll_ready(&mut gate).is_pending());
    let mut clone = gate.clone();
    drop(gate);
    tokio::spawn(keeper.run());
    assert!(ask(&mut clone, request()).await.is_ok());
    assert_eq!((handle.calls(), handle.clones()), (1, 1));
}

/// Otherwise a balancer would keep an endpoint for ever whose connection never comes and whose keeper has gone.
#[tokio::test(start_paused = true)]
async fn a_gate_whose_inner_service_is_never_ready_reports_that_the_keeper_ended() {
    let (_store, (lease, keeper)) = held().await;
    let (probe, handle) = Probe::new();
    handle.be_pending();
    let mut gate = LeaseLayer::new(&lease).gate().layer(probe);
    let waiting = tokio::spawn(async move {
        ServiceExt::<Request<String>>::ready(&mut gate)
            .await
            .map(drop)
    });
    sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    keeper.abort();
    let start = Instant::now();
    assert!(soon(waiting).await.unwrap().unwrap_err().is::<NotHeld>());
    assert!(start.elapsed() < ms(10));
}

/// Only the gate has a load: what refuses at once looks idle.
#[cfg(feature = "tower")]
#[tokio::test(start_paused = true)]
async fn a_gate_has_the_load_of_its_inner_service() {
    use tower::load::{Constant, Load};
    let (_store, (lease, _keeper)) = held().await;
    let (probe, _) = Probe::<String>::new();
    let gate = LeaseLayer::new(&lease)
        .gate()
        .layer(Constant::new(probe, 7));
    assert_eq!(gate.load(), 7);
}

// === in flight ===

#[tokio::test(start_paused = true)]
async fn r28_a_pending_request_is_cancelled_as_soon_as_the_lease_is_lost() {
    let (store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Hang);
    let mut service = LeaseLayer::new(&lease).layer(probe);
    let call = tokio::spawn(service.ready().await.unwrap().call(request()));
    sleep(Duration::from_secs(60)).await;
    assert!(!call.is_finished(), "renewals keep it alive");
    store.revoke(&key(), None).await.unwrap();
    let start = Instant::now();
    let error = soon(call).await.unwrap().unwrap_err();
    assert_eq!(error.downcast_ref::<LeaseLost>().unwrap().epoch().get(), 1);
    assert_eq!(Refusal::find(&*error).unwrap().code(), "lease-lost");
    assert!(start.elapsed() < ms(10));
    assert_eq!(handle.in_flight(), 0, "the inner future is dropped");
}

#[tokio::test(start_paused = true)]
async fn r28_a_pending_request_is_cancelled_at_the_end_of_validity_though_no_keeper_runs() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Hang);
    let mut service = LeaseLayer::new(&lease).layer(probe);
    let start = Instant::now();
    let error = ask(&mut service, request()).await.unwrap_err();
    assert!(error.is::<LeaseLost>());
    assert!(
        (VALID..VALID + ms(5)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn r28_an_answer_produced_after_the_loss_is_replaced() {
    for in_flight in [InFlight::Cancel, InFlight::Finish] {
        let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
        let mut keeper = pin!(keeper.run());
        tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
        // Its work is what takes the time: it is good at the beginning, and over at the end.
        let inner = service_fn(|fails: bool| {
            let mut working = false;
            std::future::poll_fn(move |cx| {
                if !std::mem::replace(&mut working, true) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(if fails {
                    Err(BoxError::from("it failed"))
                } else {
                    Ok(())
                })
            })
        });
        let mut service = LeaseLayer::new(&lease).in_flight(in_flight).layer(inner);
        let mut call = pin!(service.ready().await.unwrap().call(false));
        let mut failing = pin!(service.ready().await.unwrap().call(true));
        assert!(futures_poll(call.as_mut()).await.is_none());
        assert!(futures_poll(failing.as_mut()).await.is_none());
        advance(VALID).await;
        assert!(
            soon(call).await.unwrap_err().is::<LeaseLost>(),
            "{in_flight:?}"
        );
        assert!(
            failing.await.unwrap_err().is::<LeaseLost>(),
            "{in_flight:?}: an error is an answer too"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn r28_finish_lets_the_work_end_and_replaces_its_answer() {
    let (store, (lease, _keeper)) = held().await;
    let done = Arc::new(Mutex::new(false));
    let inner = service_fn(|_: Request<String>| {
        let done = done.clone();
        async move {
            sleep(Duration::from_secs(5)).await;
            *done.lock().unwrap() = true;
            Ok::<_, BoxError>(Response::new(String::new()))
        }
    });
    let mut service = LeaseLayer::new(&lease)
        .in_flight(InFlight::Finish)
        .layer(inner);
    let mut call = pin!(service.ready().await.unwrap().call(request()));
    assert!(futures_poll(call.as_mut()).await.is_none());
    store.revoke(&key(), None).await.unwrap();
    settle().await;
    assert!(futures_poll(call.as_mut()).await.is_none(), "it runs on");
    assert!(soon(call).await.unwrap_err().is::<LeaseLost>());
    assert!(*done.lock().unwrap());
}

#[tokio::test(start_paused = true)]
async fn r28_in_respond_mode_a_lost_request_is_answered() {
    let (store, (lease, _keeper)) = held().await;
    let inner = service_fn(|_: Request<String>| async {
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let mut service = LeaseLayer::new(&lease).respond().layer(inner);
    let call = service.ready().await.unwrap().call(request());
    let revoke = async {
        sleep(ms(10)).await;
        store.revoke(&key(), None).await.unwrap();
    };
    let (Ok(response), ()) = tokio::join!(call, revoke);
    assert_eq!(response.status(), 503);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "the lease was lost (epoch 1)\n");
}

/// What is left of a lease that is not renewed is the margin; of that the guard may be used, and no more.
#[tokio::test(start_paused = true)]
async fn r28_finish_within_gives_work_its_grace_and_replaces_its_answer() {
    for (work, grace, cut) in [
        // Done in time.
        (ms(100), ms(200), None),
        // Not done in time.
        (ms(60_000), ms(200), Some(ms(200))),
        // More was asked for than there is: the guard is 250 ms.
        (ms(60_000), ms(60_000), Some(ms(250))),
        (ms(249), ms(60_000), None),
    ] {
        let (store, (lease, _keeper)) = held().await;
        let done = Arc::new(Mutex::new(false));
        let inner = service_fn(|_: Request<String>| {
            let done = done.clone();
            async move {
                sleep(ms(1_000) + work).await;
                *done.lock().unwrap() = true;
                Ok::<_, BoxError>(Response::new(String::new()))
            }
        });
        let mut service = LeaseLayer::new(&lease)
            .in_flight(InFlight::FinishWithin(grace))
            .layer(inner);
        let call = tokio::spawn(service.ready().await.unwrap().call(request()));
        sleep(ms(1_000)).await;
        store.revoke(&key(), None).await.unwrap();
        let start = Instant::now();
        assert!(soon(call).await.unwrap().unwrap_err().is::<LeaseLost>());
        let took = cut.unwrap_or(work);
        assert!(
            (took..took + ms(5)).contains(&start.elapsed()),
            "{work:?} in {grace:?}: {:?}",
            start.elapsed()
        );
        assert_eq!(*done.lock().unwrap(), cut.is_none());
        let RequestCounts {
            cancelled,
            replaced,
            ..
        } = lease.requests();
        assert_eq!(
            (cancelled, replaced),
            if cut.is_some() { (1, 0) } else { (0, 1) }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn r28_grace_counts_from_the_end_of_validity_and_follows_the_leases_guard() {
    for (guard, grace) in [(None, ms(250)), (Some(ms(2_000)), ms(2_000))] {
        let mut builder = builder(&MemoryStore::new());
        if let Some(guard) = guard {
            builder = builder.guard(guard);
        }
        let (lease, keeper) = builder.build().unwrap();
        let mut keeper = pin!(keeper.run());
        tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
        let valid = lease.remaining();
        let (probe, handle) = Probe::new();
        handle.answer(Answer::Hang);
        let mut service = LeaseLayer::new(&lease)
            .in_flight(InFlight::FinishWithin(Duration::from_secs(60)))
            .layer(probe);
        let start = Instant::now();
        assert!(
            ask(&mut service, request())
                .await
                .unwrap_err()
                .is::<LeaseLost>()
        );
        let took = start.elapsed();
        assert!(
            (valid + grace..valid + grace + ms(5)).contains(&took),
            "no keeper runs: {took:?}"
        );
    }
}

/// F-08: a process that was stopped past the end of its lease goes on, and what it was about to do is not done.
#[tokio::test(start_paused = true)]
async fn r28_work_that_slept_through_the_end_does_not_go_on() {
    for in_flight in [InFlight::Cancel, InFlight::FinishWithin(ms(200))] {
        let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
        let mut keeper = pin!(keeper.run());
        tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
        let effects = Arc::new(Mutex::new(0));
        let inner = service_fn(|_: Request<String>| {
            let effects = effects.clone();
            async move {
                tokio::task::yield_now().await;
                *effects.lock().unwrap() += 1;
                Ok::<_, BoxError>(Response::new(String::new()))
            }
        });
        let mut service = LeaseLayer::new(&lease).in_flight(in_flight).layer(inner);
        let mut call = pin!(service.ready().await.unwrap().call(request()));
        assert!(futures_poll(call.as_mut()).await.is_none());
        // No task runs, and then all at once.
        advance(VALID + ms(1_000)).await;
        let answer = futures_poll(call.as_mut()).await.expect("it is over");
        assert!(answer.unwrap_err().is::<LeaseLost>());
        assert_eq!(*effects.lock().unwrap(), 0, "{in_flight:?}");
    }
}

/// a future waits in a queue (a `Buffer`, a `join_all`), or its process is stopped, between `call` and its first
/// poll. Work that has not begun by the end of validity is not in flight, under every policy.
#[tokio::test(start_paused = true)]
async fn r6_work_does_not_begin_after_the_end_of_validity_though_no_keeper_runs() {
    for in_flight in [
        InFlight::Cancel,
        InFlight::Finish,
        InFlight::FinishWithin(ms(250)),
    ] {
        for late in [VALID, VALID + ms(100), VALID + Duration::from_secs(60)] {
            let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
            let mut keeper = pin!(keeper.run());
            tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
            let effects = Arc::new(Mutex::new(0));
            let inner = service_fn(|_: Request<String>| {
                let effects = effects.clone();
                async move {
                    *effects.lock().unwrap() += 1;
                    Ok::<_, BoxError>(Response::new(String::new()))
                }
            });
            let layer = LeaseLayer::new(&lease).in_flight(in_flight);
            let (mut service, mut gate) = (layer.layer(inner), layer.clone().gate().layer(inner));
            let call = service.ready().await.unwrap().call(request());
            let gated = gate.ready().await.unwrap().call(request());
            advance(late).await;
            let answers = [
                futures_poll(pin!(call)).await.expect("at once").map(drop),
                futures_poll(pin!(gated)).await.expect("at once").map(drop),
            ];
            for answer in answers {
                assert!(answer.unwrap_err().is::<LeaseLost>());
            }
            assert_eq!(*effects.lock().unwrap(), 0, "{in_flight:?} {late:?}");
            let counts = lease.requests();
            assert_eq!(
                (counts.cancelled, counts.replaced, counts.inside),
                (2, 0, 0)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r29_stepping_down_waits_for_requests_and_a_dropped_one_has_left() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Hang);
    let mut service = LeaseLayer::new(&lease).layer(probe);
    let call = service.ready().await.unwrap().call(request());
    let stepping = tokio::spawn({
        let lease = lease.clone();
        async move { lease.step_down().await }
    });
    sleep(ms(500)).await;
    assert!(!stepping.is_finished());
    assert!(
        ask(&mut service, request())
            .await
            .unwrap_err()
            .is::<NotHeld>(),
        "nobody new"
    );
    let start = Instant::now();
    drop(call);
    assert_eq!(soon(stepping).await.unwrap(), State::Released);
    assert!(start.elapsed() < ms(10));
}

#[tokio::test(start_paused = true)]
async fn r29_a_panic_inside_has_left_too() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Panic);
    let mut service = LeaseLayer::new(&lease).layer(probe);
    let call = tokio::spawn(service.ready().await.unwrap().call(request()));
    assert!(soon(call).await.unwrap_err().is_panic());
    let start = Instant::now();
    assert_eq!(lease.step_down().await, State::Released);
    assert!(start.elapsed() < ms(10));
}

/// Otherwise a successor could start while the destructors of the last request still run.
#[tokio::test(start_paused = true)]
async fn r29_what_is_inside_is_dropped_before_it_is_counted_out() {
    struct Witness(Lease<TokioClock>, Arc<Mutex<Vec<usize>>>);
    impl Drop for Witness {
        fn drop(&mut self) {
            self.1
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(self.0.requests().inside);
        }
    }

    let (store, (lease, _keeper)) = held().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inner = service_fn(|request: Request<String>| {
        let witness = Witness(lease.clone(), seen.clone());
        async move {
            if request.body().is_empty() {
                std::future::pending::<()>().await;
            }
            let body = Script::new([Step::Hang]).map_frame(move |frame| {
                let _witness = &witness;
                frame
            });
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    let mut service = LeaseLayer::new(&lease).http().layer(inner);
    let mut waiting = pin!(service.ready().await.unwrap().call(request()));
    assert!(futures_poll(waiting.as_mut()).await.is_none());
    let mut body = ask(&mut service, Request::new("a body".to_owned()))
        .await
        .unwrap()
        .into_body();
    assert_eq!(lease.requests().inside, 2);
    store.revoke(&key(), None).await.unwrap();
    settle().await;
    assert!(soon(waiting.as_mut()).await.is_err());
    assert_eq!(*seen.lock().unwrap(), [2]);
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(
        (seen.lock().unwrap().as_slice(), lease.requests().inside),
        ([2, 1].as_slice(), 0)
    );
}

/// The successor's first request starts after the predecessor's last has ended, whether that one is waited for or cut
/// off.
#[tokio::test(start_paused = true)]
async fn r29_two_holders_never_serve_at_once() {
    for (work, drain) in [
        (ms(300), Duration::from_secs(10)),
        (Duration::from_secs(60), Duration::from_secs(2)),
    ] {
        let inside = Arc::new(Mutex::new((0, 0)));
        let store = MemoryStore::new();
        let serve = |lease: Lease<TokioClock>| {
            let inside = inside.clone();
            async move {
                let inner = service_fn(move |_: Request<String>| {
                    let inside = inside.clone();
                    async move {
                        let _serving = Serving::new(inside);
                        sleep(work).await;
                        Ok::<_, BoxError>(Response::new(String::new()))
                    }
                });
                let mut service = LeaseLayer::new(&lease).gate().layer(inner);
                while let Ok(ready) = service.ready().await {
                    let _ = ready.call(request()).await;
                }
            }
        };
        for _ in 0..5 {
            let (lease, _keeper) = spawn(builder(&store).drain_within(drain));
            tokio::spawn(serve(lease.clone()));
            soon(lease.held()).await.unwrap();
            sleep(ms(1_000)).await;
            let (next, next_keeper) = spawn(builder(&store));
            tokio::spawn(serve(next.clone()));
            sleep(ms(100)).await;
            lease.step_down().await;
            soon(next.held()).await.unwrap();
            sleep(ms(1_000)).await;
            assert_eq!(next.step_down().await, State::Released);
            soon(next_keeper).await.unwrap();
        }
        assert_eq!(
            inside.lock().unwrap().1,
            1,
            "the most that ever served at once"
        );
    }
}

/// Counts the services that are open now, and the most there ever were.
struct Serving(Arc<Mutex<(u32, u32)>>);

impl Serving {
    fn new(inside: Arc<Mutex<(u32, u32)>>) -> Self {
        let mut counts = inside.lock().unwrap();
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
        drop(counts);
        Self(inside)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.lock().unwrap().0 -= 1;
    }
}

///
#[tokio::test(start_paused = true)]
async fn r33_refused_misdirected_cancelled_replaced_and_broken_off_are_counted() {
    let (store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Hang);
    handle.answer(Answer::Body(
        200,
        Script::new([Step::Data("one"), Step::Hang]),
    ));
    let mut service = LeaseLayer::new(&lease).http().layer(probe);
    let mut hanging = pin!(service.ready().await.unwrap().call(request()));
    assert!(futures_poll(hanging.as_mut()).await.is_none());
    let mut body = ask(&mut service, request()).await.unwrap().into_body();
    let late = service.ready().await.unwrap().call(request());
    let other = Request::builder()
        .header("x-lease-epoch", "9")
        .body(String::new())
        .unwrap();
    assert!(ask(&mut service, other).await.is_err());
    assert_eq!(lease.requests().inside, 3);
    let inner = service_fn(|()| async {
        tokio::task::yield_now().await;
        Ok::<_, BoxError>(())
    });
    let mut finishing = LeaseLayer::new(&lease)
        .in_flight(InFlight::Finish)
        .layer(inner);
    let mut finishing = pin!(finishing.ready().await.unwrap().call(()));
    assert!(futures_poll(finishing.as_mut()).await.is_none());
    store.revoke(&key(), None).await.unwrap();
    settle().await;
    assert!(
        soon(hanging).await.is_err() && soon(late).await.is_err() && soon(finishing).await.is_err()
    );
    assert!(body.frame().await.unwrap().is_err());
    assert!(
        ask(&mut service, request())
            .await
            .unwrap_err()
            .is::<NotHeld>()
    );
    assert!(lease.enter(Duration::ZERO).is_err());
    let counts = lease.requests();
    // `late` was never polled while it was held, so it was cut off; `finishing` was let finish.
    assert_eq!((counts.refused, counts.misdirected), (2, 1));
    assert_eq!(
        (counts.cancelled, counts.replaced, counts.broken_off),
        (2, 1, 1)
    );
    assert_eq!(counts.inside, 0);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_carries_the_state_of_the_lease() {
    let (_store, (idle, _keeper)) = not_held().await;
    assert_eq!(
        idle.enter(Duration::ZERO).unwrap_err().to_string(),
        "the lease is not held (idle)"
    );
    let (store, (lease, keeper)) = held().await;
    let short = lease.enter(Duration::from_secs(60)).unwrap_err();
    assert_eq!(short.to_string(), "the lease is not held for long enough");
    store.revoke(&key(), None).await.unwrap();
    soon(keeper).await.unwrap();
    let fenced = lease.enter(Duration::ZERO).unwrap_err();
    assert_eq!(
        fenced.to_string(),
        "the lease is not held (fenced at epoch 1: gone from the store)"
    );
    assert_eq!(fenced.state().epoch().map(u64::from), Some(1));
}

// === HTTP ===

#[tokio::test(start_paused = true)]
async fn r27_a_grpc_request_wants_its_deadline_covered() {
    let store = Flaky::new();
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    store.renewals([], Way::LoseRequest);
    sleep(VALID - ms(3_000)).await;
    assert!(lease.is_held() && lease.remaining() <= ms(3_000));
    let (probe, _) = Probe::new();
    let layer = LeaseLayer::new(&lease).http().deadlines(ms(5_000));
    let mut service = layer.clone().layer(probe);
    let grpc = |timeout: &str| {
        let request = Request::builder()
            .method(Method::POST)
            .header("content-type", "application/grpc");
        request
            .header("grpc-timeout", timeout)
            .body(String::new())
            .unwrap()
    };
    assert!(ask(&mut service, grpc("2S")).await.is_ok());
    let refused = ask(&mut service, grpc("4S")).await.unwrap_err();
    assert_eq!(refused.to_string(), "the lease is not held for long enough");
    assert!(
        ask(&mut service, grpc("2H")).await.is_err(),
        "counts as five seconds"
    );
    assert!(
        ask(&mut service, request()).await.is_ok(),
        "it has no deadline"
    );
    assert!(
        ask(&mut service, grpc("soon")).await.is_ok(),
        "nonsense is none"
    );
    let (probe, _) = Probe::new();
    let mut patient = LeaseLayer::new(&lease)
        .http()
        .deadlines(ms(1_000))
        .layer(probe);
    assert!(
        ask(&mut patient, grpc("2H")).await.is_ok(),
        "counts as one second"
    );
    let (probe, _) = Probe::new();
    let mut strict = layer.min_remaining(ms(4_000)).layer(probe);
    assert!(
        ask(&mut strict, grpc("1S")).await.is_err(),
        "the greater of the two"
    );
}

#[tokio::test(start_paused = true)]
async fn the_token_rides_where_it_is_wanted() {
    let (_store, (lease, _keeper)) = held().await;
    for (place, in_extensions, in_header) in [
        (TokenIn::Extensions, true, false),
        (TokenIn::Header, false, true),
        (TokenIn::Both, true, true),
        (TokenIn::Nowhere, false, false),
    ] {
        let (probe, handle) = Probe::new();
        let mut service = LeaseLayer::new(&lease).http().token_in(place).layer(probe);
        ask(&mut service, request()).await.unwrap();
        let head = handle.last_head().unwrap();
        assert_eq!(
            head.extensions.get::<FencingToken>().is_some(),
            in_extensions,
            "{place:?}"
        );
        let header = head
            .headers
            .get("x-lease-token")
            .map(|value| value.to_str().unwrap());
        assert_eq!(header, in_header.then_some("svc/echo/0;1"), "{place:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_came_with_a_request_is_not_taken_for_ours() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    let mut service = LeaseLayer::new(&lease)
        .http()
        .token_in(TokenIn::Header)
        .layer(probe);
    let forged = Request::builder()
        .header("x-lease-token", "svc/echo/0;99")
        .header("x-lease-token", "a;1");
    ask(&mut service, forged.body(String::new()).unwrap())
        .await
        .unwrap();
    let head = handle.last_head().unwrap();
    assert_eq!(
        head.headers
            .get_all("x-lease-token")
            .iter()
            .collect::<Vec<_>>(),
        ["svc/echo/0;1"]
    );
}

/// A handler that passes the request's headers on would send what a client made up, in our name.
#[tokio::test(start_paused = true)]
async fn a_token_of_our_key_goes_no_further_and_one_of_another_key_is_its_senders() {
    let (_store, (lease, _keeper)) = held().await;
    for place in [TokenIn::Extensions, TokenIn::Nowhere] {
        for (came, stays) in [
            (&["svc/echo/0;99"][..], &[][..]),
            (&["a;1", " svc/echo/0;99"], &[]),
            (&["svc/echo/0"], &["svc/echo/0"]),
            (&["svc/echo/01;7"], &["svc/echo/01;7"]),
            (&["svc/echo;7"], &["svc/echo;7"]),
        ] {
            let (probe, handle) = Probe::new();
            let mut service = LeaseLayer::new(&lease).http().token_in(place).layer(probe);
            let request = came.iter().fold(Request::builder(), |request, value| {
                request.header("x-lease-token", *value)
            });
            ask(&mut service, request.body(String::new()).unwrap())
                .await
                .unwrap();
            let head = handle.last_head().unwrap();
            assert_eq!(
                head.headers
                    .get_all("x-lease-token")
                    .iter()
                    .collect::<Vec<_>>(),
                stays,
                "{came:?}"
            );
        }
    }
}

/// A proxy that passes the request on would have the next instance refuse it: its epoch is another.
#[tokio::test(start_paused = true)]
async fn the_epoch_that_was_meant_for_us_goes_no_further() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    let mut service = LeaseLayer::new(&lease).http().layer(probe);
    let ours = Request::builder()
        .header("x-lease-epoch", "1")
        .header("x-other", "1")
        .body(String::new())
        .unwrap();
    ask(&mut service, ours).await.unwrap();
    let head = handle.last_head().unwrap();
    assert!(!head.headers.contains_key("x-lease-epoch") && head.headers.contains_key("x-other"));
}

/// Row 22 of the failure matrix: the address was given to another instance, which holds a later epoch.
#[tokio::test(start_paused = true)]
async fn a_request_for_the_instance_that_was_here_before_is_refused() {
    let (store, (first, keeper)) = held().await;
    let meant = first.token().unwrap().epoch().to_string();
    first.step_down().await;
    soon(keeper).await.unwrap();
    let (second, _keeper) = spawn(builder(&store));
    soon(second.held()).await.unwrap();
    let (probe, handle) = Probe::new();
    let mut service = LeaseLayer::new(&second).respond().layer(probe);
    let to = |epoch: &str, kind: &str| {
        let request = Request::builder()
            .method(Method::POST)
            .header("x-lease-epoch", epoch);
        request
            .header("content-type", kind)
            .body(String::new())
            .unwrap()
    };
    let refused = ask(&mut service, to(&meant, "text/plain")).await.unwrap();
    assert_eq!(refused.status(), 421);
    let refused = ask(&mut service, to(&meant, "application/grpc"))
        .await
        .unwrap();
    assert_eq!(refused.headers()["grpc-status"], "14");
    assert_eq!(handle.calls(), 0);
    let own = second.token().unwrap().epoch().to_string();
    assert_eq!(
        ask(&mut service, to(&own, "text/plain"))
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(second.requests().misdirected, 2);
}

/// I3 over 300 random courses: heads and frames come at random times, and so does the loss, by a revocation, by
/// renewals that fail, or by a keeper that stands still. The client gets each part while the lease is held.
#[test]
fn i3_no_head_and_no_frame_leaves_after_the_loss_whenever_it_comes() {
    let is_whole = |seed| {
        // A runtime for each, so that nothing of the last one runs on.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(every_part_of_a_response_comes_in_time(seed))
    };
    let whole = (0..300).filter(|seed| is_whole(*seed)).count();
    assert!(
        (50..250).contains(&whole),
        "{whole} whole, and the others cut: both must be tried"
    );
}

/// Whether the client got all of it.
async fn every_part_of_a_response_comes_in_time(seed: u64) -> bool {
    let mut random = fastrand::Rng::with_seed(seed);
    let store = Flaky::new();
    let (lease, keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    let (head, gap, frames) = (
        random.u64(0..3_000),
        random.u64(1..2_000),
        random.usize(0..8),
    );
    let inner = service_fn(move |_: Request<String>| async move {
        sleep(ms(head)).await;
        Ok::<_, Infallible>(Response::new(Dripping {
            frames,
            gap: ms(gap),
            next: None,
        }))
    });
    let mut service = LeaseLayer::new(&lease).http().layer(inner);
    let call = service.ready().await.unwrap().call(request());
    let (at, way) = (ms(random.u64(0..8_000)), random.u8(0..3));
    tokio::spawn(async move {
        sleep(at).await;
        match way {
            0 => store.revoke(&key(), None).await.unwrap(),
            1 => store.renewals([], Way::LoseRequest),
            _ => keeper.abort(),
        }
    });
    let is_whole = async {
        let response = call.await.map_err(drop)?;
        assert!(lease.is_held(), "seed {seed}: a head after the loss");
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            assert_eq!(
                lease.is_held(),
                frame.is_ok(),
                "seed {seed}: a frame after the loss, or an error before"
            );
            frame.map_err(drop)?;
        }
        assert!(lease.is_held(), "seed {seed}: an end after the loss");
        Ok::<_, ()>(())
    };
    soon(is_whole).await.is_ok()
}

/// A body whose frames come one by one.
struct Dripping {
    frames: usize,
    gap: Duration,
    next: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Dripping {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        if self.frames == 0 {
            return Poll::Ready(None);
        }
        let gap = self.gap;
        std::task::ready!(
            self.next
                .get_or_insert_with(|| Box::pin(sleep(gap)))
                .as_mut()
                .poll(cx)
        );
        (self.next, self.frames) = (None, self.frames - 1);
        Poll::Ready(Some(Ok(http_body::Frame::data(bytes::Bytes::from_static(
            b"x",
        )))))
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_rides_on_the_request() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    let mut service = LeaseLayer::new(&lease).http().layer(probe);
    ask(&mut service, request()).await.unwrap();
    let head = handle.last_head().unwrap();
    assert_eq!(
        head.extensions.get::<FencingToken>(),
        lease.token().as_ref()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_for_another_epoch_is_misdirected_and_does_not_get_in() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    let mut service = LeaseLayer::new(&lease).http().layer(probe);
    let to = |epoch: &str| {
        Request::builder()
            .header("x-lease-epoch", epoch)
            .body(String::new())
            .unwrap()
    };
    assert!(ask(&mut service, to("1")).await.is_ok());
    for other in ["2", "0", "one"] {
        let error = ask(&mut service, to(other)).await.unwrap_err();
        assert_eq!(
            error.downcast_ref::<WrongInstance>().unwrap().epoch().get(),
            1
        );
        let refusal = Refusal::find(&*error).unwrap();
        assert_eq!(
            (refusal.class(), refusal.code()),
            (Class::Misdirected, "wrong-instance")
        );
    }
    assert_eq!(handle.calls(), 1);
    let start = Instant::now();
    lease.step_down().await;
    assert!(start.elapsed() < ms(10), "nobody was left inside");
}

#[tokio::test(start_paused = true)]
async fn a_misdirected_request_is_answered_421_and_handed_back_by_a_gate() {
    let (_store, (lease, _keeper)) = held().await;
    let to = || {
        Request::builder()
            .header("x-lease-epoch", "9")
            .body("body".to_owned())
            .unwrap()
    };
    let (probe, _) = Probe::new();
    let mut service = LeaseLayer::new(&lease).respond().layer(probe);
    assert_eq!(ask(&mut service, to()).await.unwrap().status(), 421);
    let (probe, _) = Probe::new();
    let mut gate = LeaseLayer::new(&lease).http().gate().layer(probe);
    let error = ask(&mut gate, to()).await.unwrap_err();
    let (request, cause) = Unsent::<Request<String>>::recover(error).unwrap();
    assert_eq!(request.body(), "body");
    assert!(cause.is::<WrongInstance>());
}

#[tokio::test(start_paused = true)]
async fn r28_i3_a_body_breaks_off_when_the_lease_is_lost() {
    let (store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Body(
        200,
        Script::new([Step::Data("one"), Step::Data("two"), Step::Data("three")]),
    ));
    handle.answer(Answer::Body(
        200,
        Script::new([Step::Data("one"), Step::Hang]),
    ));
    let mut service = LeaseLayer::new(&lease).http().layer(probe);
    let mut flowing = ask(&mut service, request()).await.unwrap().into_body();
    let mut hanging = ask(&mut service, request()).await.unwrap().into_body();
    assert!(flowing.frame().await.unwrap().is_ok());
    let hanging = tokio::spawn(async move {
        assert!(hanging.frame().await.unwrap().is_ok());
        (
            hanging.frame().await.unwrap(),
            hanging.frame().await.is_none(),
        )
    });
    sleep(Duration::from_secs(30)).await;
    assert!(!hanging.is_finished(), "renewals keep it alive");
    store.revoke(&key(), None).await.unwrap();
    let start = Instant::now();
    let (broken, ended) = soon(hanging).await.unwrap();
    assert!(broken.unwrap_err().is::<LeaseLost>() && ended);
    assert!(start.elapsed() < ms(10));
    assert!(
        flowing
            .frame()
            .await
            .unwrap()
            .unwrap_err()
            .is::<LeaseLost>(),
        "not another byte"
    );
    assert!(flowing.frame().await.is_none() && flowing.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn r6_i3_a_body_that_waits_breaks_off_at_the_end_of_validity_though_no_keeper_runs() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Body(
        200,
        Script::new([Step::Data("one"), Step::Hang]),
    ));
    let mut service = LeaseLayer::new(&lease).http().layer(probe);
    let start = Instant::now();
    let mut body = ask(&mut service, request()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    assert!(
        soon(body.frame())
            .await
            .unwrap()
            .unwrap_err()
            .is::<LeaseLost>()
    );
    assert!(
        (VALID..VALID + ms(5)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

/// Counts how often it is asked, and never has anything.
struct Asked(Arc<AtomicU32>);

impl http_body::Body for Asked {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        self.0.fetch_add(1, Relaxed);
        Poll::Pending
    }
}

/// Counts how often it is asked, and always has a frame.
struct Flowing(Arc<AtomicU32>);

impl http_body::Body for Flowing {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        self.0.fetch_add(1, Relaxed);
        Poll::Ready(Some(Ok(http_body::Frame::data(bytes::Bytes::from_static(
            b"x",
        )))))
    }
}

/// what makes the body may have effects, so it is not asked for another frame to throw away.
#[tokio::test(start_paused = true)]
async fn r28_a_body_whose_lease_is_lost_is_not_asked_any_more() {
    let asked = Arc::new(AtomicU32::new(0));
    let inner = service_fn(|_: Request<String>| {
        let body = Asked(asked.clone());
        async move { Ok::<_, BoxError>(Response::new(body)) }
    });
    // One that was not polled when the lease was taken away.
    let (store, (lease, _keeper)) = held().await;
    let mut body = ask(&mut LeaseLayer::new(&lease).http().layer(inner), request())
        .await
        .unwrap()
        .into_body();
    store.revoke(&key(), None).await.unwrap();
    while lease.is_held() {
        sleep(ms(1)).await;
    }
    assert!(body.frame().await.unwrap().unwrap_err().is::<LeaseLost>());
    assert_eq!(asked.load(Relaxed), 0);
    // One whose first frame is asked for after the end, and no keeper ran.
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let mut body = ask(&mut LeaseLayer::new(&lease).http().layer(inner), request())
        .await
        .unwrap()
        .into_body();
    advance(VALID).await;
    let frame = futures_poll(pin!(body.frame())).await.expect("it is over");
    assert!(frame.unwrap().unwrap_err().is::<LeaseLost>());
    assert_eq!(asked.load(Relaxed), 0);
    // One whose client has not read for long: the second frame is asked for after the end.
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let polls = Arc::new(AtomicU32::new(0));
    let flowing = service_fn(|_: Request<String>| {
        let body = Flowing(polls.clone());
        async move { Ok::<_, BoxError>(Response::new(body)) }
    });
    let mut body = ask(
        &mut LeaseLayer::new(&lease).http().layer(flowing),
        request(),
    )
    .await
    .unwrap()
    .into_body();
    assert!(body.frame().await.unwrap().is_ok());
    advance(VALID).await;
    let frame = futures_poll(pin!(body.frame())).await.expect("it is over");
    assert!(frame.unwrap().unwrap_err().is::<LeaseLost>());
    assert_eq!(polls.load(Relaxed), 1);
    // One that waited, and slept through the end.
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let mut body = ask(&mut LeaseLayer::new(&lease).http().layer(inner), request())
        .await
        .unwrap()
        .into_body();
    assert!(futures_poll(pin!(body.frame())).await.is_none());
    advance(VALID + ms(1_000)).await;
    let frame = futures_poll(pin!(body.frame())).await.expect("it is over");
    assert!(frame.unwrap().unwrap_err().is::<LeaseLost>());
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn i3_no_frame_leaves_after_the_end_of_validity_not_even_the_end() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Body(
        200,
        Script::new([Step::Data("one"), Step::Data("two")]),
    ));
    handle.answer(Answer::Body(200, Script::new([Step::Data("one")])));
    let mut service = LeaseLayer::new(&lease).http().layer(probe);
    let mut body = ask(&mut service, request()).await.unwrap().into_body();
    let mut ending = ask(&mut service, request()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok() && ending.frame().await.unwrap().is_ok());
    advance(VALID).await;
    assert!(body.frame().await.unwrap().unwrap_err().is::<LeaseLost>());
    assert!(
        ending.frame().await.unwrap().unwrap_err().is::<LeaseLost>(),
        "a cut answer must not look whole"
    );
}

/// The work itself may take until after the end, or the process be stopped in the midst of it.
#[tokio::test(start_paused = true)]
async fn i3_what_was_good_at_the_beginning_of_a_poll_is_looked_at_again_at_its_end() {
    let clock = Suspending::new();
    let lease = || async {
        let (lease, keeper) = builder(&MemoryStore::new())
            .clock(clock.clone())
            .build()
            .unwrap();
        let keeper = tokio::spawn(keeper.run());
        soon(lease.held()).await.unwrap();
        (lease, keeper)
    };
    let (ours, _keeper) = lease().await;
    let slow = service_fn(|()| {
        let clock = clock.clone();
        async move {
            clock.suspend(VALID);
            Ok::<_, BoxError>(())
        }
    });
    let answer = ask(&mut LeaseLayer::new(&ours).layer(slow), ()).await;
    assert!(answer.unwrap_err().is::<LeaseLost>());
    // The same of a frame, and of the end.
    for frames in [1, 0] {
        let (ours, _keeper) = lease().await;
        let slow = service_fn(|_: Request<String>| {
            let body = Sleepy(clock.clone(), frames);
            async move { Ok::<_, BoxError>(Response::new(body)) }
        });
        let mut service = LeaseLayer::new(&ours).http().layer(slow);
        let mut body = ask(&mut service, request()).await.unwrap().into_body();
        let frame = soon(body.frame()).await.unwrap();
        assert!(frame.unwrap_err().is::<LeaseLost>(), "{frames}");
    }
}

/// The machine sleeps while it makes a frame, or its end.
struct Sleepy(Suspending, usize);

impl Body for Sleepy {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        self.0.suspend(VALID);
        let left = self.1.checked_sub(1);
        self.1 = left.unwrap_or(0);
        Poll::Ready(left.map(|_| Ok(http_body::Frame::data(bytes::Bytes::from_static(b"x")))))
    }
}

#[tokio::test(start_paused = true)]
async fn r29_a_body_is_inside_until_its_end() {
    let bodies = || {
        [
            Script::new([Step::Data("x")]).telling_end(),
            Script::new([Step::Data("x")]),
            Script::new([Step::Data("x"), Step::Trailer("a", "b")]),
            Script::new([Step::Data("x"), Step::Break]),
            Script::new([]).telling_end(),
        ]
    };
    for (at, script) in bodies().into_iter().enumerate() {
        let (_store, (lease, _keeper)) = held().await;
        let (probe, handle) = Probe::new();
        handle.answer(Answer::Body(200, script));
        let mut service = LeaseLayer::new(&lease).http().layer(probe);
        let mut body = ask(&mut service, request()).await.unwrap().into_body();
        let stepping = tokio::spawn({
            let lease = lease.clone();
            async move { lease.step_down().await }
        });
        sleep(ms(100)).await;
        assert_eq!(stepping.is_finished(), at == 4, "body {at}");
        while body.frame().await.is_some_and(|frame| frame.is_ok()) {}
        let start = Instant::now();
        soon(stepping).await.unwrap();
        assert!(
            start.elapsed() < ms(10),
            "body {at}, and it need not be dropped"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_keeps_its_framing() {
    let (_store, (lease, _keeper)) = held().await;
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new("hello".to_owned()))
    });
    let mut service = LeaseLayer::new(&lease).respond().layer(inner);
    let Ok(response) = ask(&mut service, request()).await;
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );
}

// === other protocols, and bounds ===

#[tokio::test(start_paused = true)]
async fn a_lease_guard_reports_the_end_of_its_epoch() {
    let (store, (lease, _keeper)) = held().await;
    let guard = lease.enter(Duration::ZERO).unwrap();
    let waiting = tokio::spawn(async move {
        guard.lost().await;
        guard.is_valid()
    });
    sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished(), "renewals keep it alive");
    store.revoke(&key(), None).await.unwrap();
    let start = Instant::now();
    assert!(!soon(waiting).await.unwrap());
    assert!(start.elapsed() < ms(10));
    // At the end of validity, though no keeper runs.
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let (guard, start) = (lease.enter(Duration::ZERO).unwrap(), Instant::now());
    soon(guard.lost()).await;
    assert!(
        (VALID..VALID + ms(5)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

/// As an accept loop has it: a connection is a request, and its future the connection's whole life.
#[tokio::test(start_paused = true)]
async fn a_connection_is_gated_like_a_request_and_cut_when_the_lease_is_lost() {
    struct Accepted(#[expect(dead_code, reason = "owned for its life")] tokio::io::DuplexStream);
    let (store, (lease, _keeper)) = held().await;
    let (near, mut far) = tokio::io::duplex(16);
    let inner = service_fn(|accepted: Accepted| async move {
        let _accepted = accepted;
        std::future::pending::<Result<(), std::io::Error>>().await
    });
    let mut service = LeaseLayer::new(&lease).layer(inner);
    let connection = tokio::spawn(service.ready().await.unwrap().call(Accepted(near)));
    settle().await;
    store.revoke(&key(), None).await.unwrap();
    assert!(
        soon(connection)
            .await
            .unwrap()
            .unwrap_err()
            .is::<LeaseLost>()
    );
    let read = tokio::io::AsyncReadExt::read(&mut far, &mut [0])
        .await
        .unwrap();
    assert_eq!(read, 0, "the connection is closed");
}

#[tokio::test]
async fn the_boot_clock_is_the_default_and_works() {
    let store = MemoryStore::new();
    let (lease, keeper) = Lease::builder(store, key(), tower_lease::Holder::new("a"))
        .build()
        .unwrap();
    tokio::spawn(keeper.run());
    soon(lease.held()).await.unwrap();
    let (probe, _) = Probe::new();
    let mut service = LeaseLayer::new(&lease).layer(probe);
    assert!(ask(&mut service, request()).await.is_ok());
    assert!(lease.remaining() > Duration::from_secs(8));
}

/// The bounds of axum's `Router::layer`, of tonic's `Server::layer` and of `BoxCloneSyncService`.
#[test]
fn the_layers_fit_where_they_are_to_be_used() {
    type Inner = tower::util::BoxCloneSyncService<Request<String>, Response<String>, Infallible>;

    fn router_layer<L>(_: &L)
    where
        L: Layer<Inner> + Clone + Send + Sync + 'static,
        L::Service: Service<Request<String>, Error = Infallible> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<String>>>::Future: Send + 'static,
        <L::Service as Service<Request<String>>>::Response: 'static,
    {
    }
    fn balanced<L>(_: &L)
    where
        L: Layer<Inner> + Clone + Send + Sync + 'static,
        L::Service:
            Service<Request<String>, Error = BoxError> + Clone + Send + Sync + Unpin + 'static,
        <L::Service as Service<Request<String>>>::Future: Send + 'static,
    {
    }
    fn handle<T: Clone + Send + Sync + Unpin + 'static>(_: &T) {}
    fn task<T: Future + Send + 'static>(_: T) {}

    let (lease, keeper) = Lease::builder(MemoryStore::new(), key(), tower_lease::Holder::new("a"))
        .build()
        .unwrap();
    handle(&lease);
    router_layer(&LeaseLayer::new(&lease).respond());
    balanced(&LeaseLayer::new(&lease));
    balanced(&LeaseLayer::new(&lease).gate());
    let _: LeaseGateLayer<BootClock> = LeaseLayer::new(&lease).gate();
    let _: fn(&LeaseService<Inner>) -> &Inner = LeaseService::get_ref;
    task(keeper.run());
}

async fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let mut future = Some(future);
    std::future::poll_fn(|cx| {
        Poll::Ready(match future.take().expect("polled once").poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}
