//! The rejecting services: an error for clients, a response for servers.

use std::{convert::Infallible, pin::pin, time::Duration};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use testkit::{Answer, Probe, ProbeHandle, Script, Step};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_circuit::{
    Circuit, CircuitLayer, CircuitService, Open, Ratio, Reason, State, Trip, classify, refuse,
};
use tower_outcome::{BoxError, Class, Refusal, Verdict};

use crate::common::*;

fn reject(circuit: &Circuit) -> (CircuitService<Probe>, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (CircuitLayer::new(circuit).layer(probe), handle)
}

type Responding<S> = CircuitService<S, classify::Auto, refuse::Auto>;

fn respond(circuit: &Circuit) -> (Responding<Probe>, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (CircuitLayer::new(circuit).respond().layer(probe), handle)
}

#[test]
fn a_rejecting_layer_keeps_the_contract() {
    testkit::contract::check(|probe| CircuitLayer::new(Circuit::new()).layer(probe));
}

#[test]
fn a_rejecting_layer_that_waits_for_the_body_keeps_the_contract() {
    let layer = || CircuitLayer::new(Circuit::new()).classify(classify::Auto::new());
    testkit::contract::check(|probe| layer().layer(probe));
}

#[test]
fn a_responding_layer_keeps_the_contract() {
    testkit::contract::check(|probe| CircuitLayer::new(Circuit::new()).respond().layer(probe));
}

#[tokio::test(start_paused = true)]
async fn after_five_consecutive_failures_it_is_open_and_the_inner_service_is_not_called() {
    let circuit = Circuit::new();
    let (mut service, probe) = reject(&circuit);
    for _ in 0..5 {
        assert_eq!(circuit.state(), State::Closed);
        probe.answer(Answer::Fail);
        finish(service.ready().await.unwrap().call(request())).unwrap_err();
    }
    let (polls, calls) = (probe.polls(), probe.calls());
    probe.be_pending();
    assert!(
        is_ready(&mut service),
        "a call that will be rejected does not wait"
    );
    let error = finish(service.call(request())).unwrap_err();
    assert_eq!((probe.polls(), probe.calls()), (polls, calls));
    let open = error.downcast_ref::<Open>().unwrap();
    assert_eq!(open.reason(), Some(Reason::ConsecutiveFailures));
    assert!(is_spread(open.retry_after().unwrap(), COOLDOWN));
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::Unavailable, "circuit-open")
    );
}

#[tokio::test(start_paused = true)]
async fn a_success_resets_consecutive_failures() {
    let circuit = trips_at(2).build();
    let (mut service, probe) = reject(&circuit);
    for _ in 0..10 {
        probe.answer(Answer::Fail);
        finish(service.ready().await.unwrap().call(request())).unwrap_err();
        assert_eq!(circuit.snapshot().consecutive_failures, 1);
        finish(service.ready().await.unwrap().call(request())).unwrap();
        assert_eq!(circuit.snapshot().consecutive_failures, 0);
    }
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn after_the_cooldown_one_probe_closes_it() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = reject(&circuit);
    let mut other = service.clone();
    cool_down(&circuit).await;
    assert!(
        is_ready(&mut service) && is_ready(&mut other),
        "either may become the probe"
    );
    probe.answer(Answer::Hang);
    let mut hanging = Box::pin(service.call(request()));
    assert!(poll_once(hanging.as_mut()).is_pending());
    assert_eq!(circuit.state(), State::HalfOpen);
    assert!(finish(other.call(request())).unwrap_err().is::<Open>());
    drop(hanging);
    finish(other.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(circuit.state(), State::Closed);
    assert_eq!(probe.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn readiness_for_a_rejection_is_used_up_by_a_rejection() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = reject(&circuit);
    trip(&circuit);
    assert!(is_ready(&mut service));
    circuit.reset();
    // The probe would panic, because it was not polled.
    let error = finish(service.call(request())).unwrap_err();
    assert!(error.is::<Open>());
    assert_eq!((probe.polls(), probe.calls()), (0, 0));
    finish(service.ready().await.unwrap().call(request())).unwrap();
}

#[tokio::test(start_paused = true)]
async fn readiness_from_before_the_trip_does_not_admit_a_call() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = reject(&circuit);
    assert!(is_ready(&mut service));
    trip(&circuit);
    assert!(finish(service.call(request())).unwrap_err().is::<Open>());
    assert_eq!(probe.calls(), 0);
    assert_eq!(circuit.snapshot().totals.rejected, 1);
}

#[test]
#[should_panic(expected = "without a successful `poll_ready`")]
fn a_call_without_readiness_panics() {
    let (mut service, _probe) = reject(&Circuit::new());
    drop(service.call(request()));
}

#[tokio::test(start_paused = true)]
async fn retry_after_raises_the_open_time_up_to_a_minute() {
    for (hint, seconds) in [("3", 10), ("30", 30), ("86400", 60)] {
        let circuit = trips_at(1).build();
        let (mut service, probe) = respond(&circuit);
        let response = Response::builder()
            .status(503)
            .header("retry-after", hint)
            .body(Script::default())
            .unwrap();
        probe.answer(Answer::Response(response));
        finish(service.ready().await.unwrap().call(request())).unwrap();
        let open_for = until(&circuit).duration_since(tokio::time::Instant::now());
        assert!(is_spread(open_for, seconds * SECOND), "{hint} {open_for:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_pushback_raises_the_open_time_up_to_a_minute() {
    for (pushback, seconds) in [("3000", 10), ("30000", 30), ("86400000", 60), ("-1", 10)] {
        let circuit = trips_at(1).build();
        let (mut service, probe) = respond(&circuit);
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14");
        probe.answer(Answer::Response(
            head.header("grpc-retry-pushback-ms", pushback)
                .body(Script::default())
                .unwrap(),
        ));
        let response = finish(service.ready().await.unwrap().call(grpc_request())).unwrap();
        response.into_body().collect().await.unwrap();
        let open_for = until(&circuit).duration_since(tokio::time::Instant::now());
        assert!(
            is_spread(open_for, seconds * SECOND),
            "{pushback} {open_for:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_request_gets_503_and_retry_after() {
    let circuit = trips_at(1).build();
    let (mut service, _probe) = respond(&circuit);
    trip(&circuit);
    tokio::time::advance(Duration::from_millis(500)).await;
    let response = finish(service.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "10", "9.5 s, rounded up");
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "the circuit is open\n"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rejected_grpc_request_gets_a_status() {
    let circuit = trips_at(1).build();
    let (mut service, _probe) = respond(&circuit);
    trip(&circuit);
    let response = finish(service.ready().await.unwrap().call(grpc_request())).unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "10000");
}

#[tokio::test(start_paused = true)]
async fn an_infallible_service_stays_infallible_and_its_5xx_are_failures() {
    let circuit = trips_at(2).build();
    let handler = service_fn(async |_: Request<String>| {
        let mut response = Response::new(String::from("oops"));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        Ok::<_, Infallible>(response)
    });
    let service = CircuitLayer::new(&circuit).respond().layer(handler);
    // As axum does: cloned for each request, boxed, Send and Sync.
    let service = BoxCloneSyncService::<Request<String>, _, Infallible>::new(service);
    for expected in [500, 500, 503] {
        let response = service
            .clone()
            .oneshot(request())
            .await
            .unwrap_or_else(|never| match never {});
        assert_eq!(response.status(), expected);
    }
    assert_eq!(circuit.snapshot().trips, 1);
}

#[tokio::test(start_paused = true)]
async fn all_services_of_a_layer_share_the_circuit() {
    let circuit = trips_at(1).build();
    let layer = CircuitLayer::new(circuit.clone());
    let (a, b) = (Probe::new(), Probe::new());
    let (mut first, mut second) = (layer.layer(a.0), layer.clone().layer(b.0));
    a.1.answer(Answer::Fail);
    finish(first.ready().await.unwrap().call(request())).unwrap_err();
    assert!(
        finish(second.ready().await.unwrap().call(request()))
            .unwrap_err()
            .is::<Open>()
    );
}

#[tokio::test(start_paused = true)]
async fn grpc_trailers_decide_and_a_stream_without_a_status_has_failed() {
    for (steps, state) in [
        (vec![Step::Data("x"), Step::grpc_status("0")], State::Closed),
        (vec![Step::Data("x"), Step::grpc_status("5")], State::Closed),
        (
            vec![Step::Data("x"), Step::grpc_status("14")],
            State::Open { until: None },
        ),
        (vec![Step::Data("x")], State::Open { until: None }),
    ] {
        let circuit = trips_at(1).build();
        let (mut service, probe) = respond(&circuit);
        let response = Response::builder()
            .header("content-type", "application/grpc")
            .body(Script::new(steps))
            .unwrap();
        probe.answer(Answer::Response(response));
        let response = finish(service.ready().await.unwrap().call(grpc_request())).unwrap();
        assert_eq!(circuit.state(), State::Closed, "not known before the end");
        response.into_body().collect().await.unwrap();
        assert_eq!(is_open(&circuit), state != State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_probes_success_is_known_at_the_end_of_its_body() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = respond(&circuit);
    cool_down(&circuit).await;
    probe.answer(Answer::Body(200, Script::new([Step::Data("x")])));
    let response = finish(service.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(circuit.state(), State::HalfOpen);
    response.into_body().collect().await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_response_is_dropped_mid_body_closes_the_circuit() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = respond(&circuit);
    cool_down(&circuit).await;
    probe.answer(Answer::Body(
        200,
        Script::new([Step::Data("x"), Step::Hang]),
    ));
    let mut body = finish(service.ready().await.unwrap().call(request()))
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(circuit.state(), State::HalfOpen);
    drop(body);
    assert_eq!(circuit.snapshot().totals.succeeded, 1);
    assert_eq!(circuit.state(), State::Closed);
}

/// As `error_for_status` does in many HTTP clients.
#[tokio::test(start_paused = true)]
async fn callers_that_read_the_status_only_do_not_open_the_circuit_by_one_failure_in_a_thousand() {
    let circuit = Circuit::new();
    let (mut service, probe) = respond(&circuit);
    for call in 0..10_000 {
        let status = if call % 1000 == 999 { 500 } else { 200 };
        probe.answer(Answer::Body(status, Script::new([Step::Data("x")])));
        drop(finish(service.ready().await.unwrap().call(request())).unwrap());
    }
    let snapshot = circuit.snapshot();
    assert_eq!(snapshot.state, State::Closed);
    assert_eq!(
        (
            snapshot.totals.succeeded,
            snapshot.totals.failed,
            snapshot.totals.abandoned
        ),
        (9_990, 10, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_good_head_resets_consecutive_failures_before_its_body_ends() {
    let circuit = Circuit::new();
    let (mut service, probe) = respond(&circuit);
    for _ in 0..4 {
        probe.answer(Answer::Body(500, Script::new([])));
        finish(service.ready().await.unwrap().call(request())).unwrap();
    }
    assert_eq!(circuit.snapshot().consecutive_failures, 4);
    probe.answer(Answer::Body(
        200,
        Script::new([Step::Data("x"), Step::Break]),
    ));
    let response = finish(service.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(circuit.snapshot().consecutive_failures, 0);
    response.into_body().collect().await.unwrap_err();
    assert_eq!(
        circuit.snapshot().consecutive_failures,
        1,
        "a body that breaks off is still a failure"
    );
}

/// A reader that leaves a stream after an hour is no evidence about its sender.
#[tokio::test(start_paused = true)]
async fn a_response_dropped_mid_body_is_a_success_however_long_it_was_read() {
    for trip in [Trip::never(), Trip::slow_ratio(SECOND, Ratio::ALL)] {
        let trip = trip.or(Trip::consecutive(1));
        let circuit = Circuit::builder()
            .trip(trip)
            .abandoned_is_failure_after(SECOND)
            .build();
        let (mut service, probe) = respond(&circuit);
        probe.answer(Answer::Body(
            200,
            Script::new([Step::Data("x"), Step::Hang]),
        ));
        let mut body = finish(service.ready().await.unwrap().call(request()))
            .unwrap()
            .into_body();
        body.frame().await.unwrap().unwrap();
        tokio::time::advance(3600 * SECOND).await;
        drop(body);
        assert_eq!(
            (circuit.state(), circuit.snapshot().totals.succeeded),
            (State::Closed, 1)
        );
        assert_eq!(circuit.snapshot().window.slow, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_stream_goes_on_has_succeeded_at_its_deadline() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = respond(&circuit);
    cool_down(&circuit).await;
    tokio::time::advance(SECOND).await;
    probe.answer(Answer::Body(
        200,
        Script::new([Step::Data("x"), Step::Hang]),
    ));
    let mut body = finish(service.ready().await.unwrap().call(request()))
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    tokio::time::advance(10 * SECOND - Duration::from_millis(1)).await;
    assert!(
        finish(service.ready().await.unwrap().call(request()))
            .unwrap()
            .status()
            == 503,
        "not before"
    );
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(
        finish(service.ready().await.unwrap().call(request()))
            .unwrap()
            .status(),
        200
    );
    assert_eq!(
        (circuit.state(), circuit.snapshot().trips),
        (State::Closed, 1)
    );
    drop(body);
    assert_eq!(
        (circuit.state(), circuit.snapshot().totals.stale),
        (State::Closed, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_head_is_bad_has_failed_at_once_and_one_whose_body_breaks_off_too() {
    for answer in [
        Answer::Status(503),
        Answer::Body(200, Script::new([Step::Data("x"), Step::Break])),
    ] {
        let circuit = trips_at(1).build();
        let (mut service, probe) = respond(&circuit);
        cool_down(&circuit).await;
        probe.answer(answer);
        let _ = finish(service.ready().await.unwrap().call(request()))
            .unwrap()
            .into_body()
            .collect()
            .await;
        assert!(is_open(&circuit));
        assert_eq!(circuit.snapshot().last_reason, Some(Reason::ProbeFailed));
    }
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_call_is_a_failure_from_the_age_that_is_set() {
    for (limit, age, opens) in [
        (Some(SECOND), Duration::from_millis(999), false),
        (Some(SECOND), SECOND, true),
        (Some(Duration::ZERO), Duration::ZERO, true),
        (None, 3600 * SECOND, false),
    ] {
        let circuit = trips_at(1).abandoned_is_failure_after(limit).build();
        let (mut service, probe) = reject(&circuit);
        probe.answer(Answer::Hang);
        let mut call = Box::pin(service.ready().await.unwrap().call(request()));
        assert!(poll_once(call.as_mut()).is_pending());
        tokio::time::advance(age).await;
        drop(call);
        assert_eq!(is_open(&circuit), opens, "{limit:?} {age:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_has_failed_and_frees_its_slot() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = reject(&circuit);
    cool_down(&circuit).await;
    probe.answer(Answer::Panic);
    let call = tokio::spawn(service.ready().await.unwrap().call(request()));
    assert!(call.await.unwrap_err().is_panic());
    assert!(is_open(&circuit));
    tokio::time::advance(COOLDOWN).await;
    finish(service.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_in_call_itself_has_failed_and_frees_its_slot() {
    let circuit = trips_at(1).build();
    let inner = service_fn(|fine: bool| {
        assert!(fine, "panics in `call`");
        std::future::ready(Ok::<_, Infallible>(()))
    });
    let mut service = CircuitLayer::new(&circuit).layer(inner);
    cool_down(&circuit).await;
    service.ready().await.unwrap();
    let call = std::panic::AssertUnwindSafe(|| drop(service.call(false)));
    std::panic::catch_unwind(call).unwrap_err();
    assert!(is_open(&circuit));
    tokio::time::advance(COOLDOWN).await;
    service.ready().await.unwrap().call(true).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_further_in_is_no_outcome_of_a_probe() {
    let circuit = trips_at(1).build();
    let refused = Refusal::new(Class::Limited, "rate");
    let inner = service_fn(move |_: ()| std::future::ready(Err::<(), _>(refused)));
    let mut service = CircuitLayer::new(&circuit).layer(inner);
    cool_down(&circuit).await;
    for _ in 0..3 {
        service.ready().await.unwrap().call(()).await.unwrap_err();
        assert_eq!(circuit.state(), State::HalfOpen);
    }
    assert_eq!(circuit.snapshot().totals.ignored, 3);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_call_is_no_consecutive_failure_and_does_not_close_the_circuit() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = respond(&circuit);
    probe.answer(Answer::Status(429));
    finish(service.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(circuit.state(), State::Closed);
    cool_down(&circuit).await;
    probe.answer(Answer::Status(429));
    finish(service.ready().await.unwrap().call(request())).unwrap();
    assert!(is_open(&circuit));
    assert_eq!(circuit.snapshot().last_reason, Some(Reason::ProbeFailed));
}

#[tokio::test(start_paused = true)]
async fn forced_states_hold_under_traffic_until_automatic() {
    let circuit = trips_at(1).build();
    let (mut service, probe) = reject(&circuit);
    probe.answer(Answer::Hang);
    let mut before = pin!(service.ready().await.unwrap().call(request()));
    assert!(poll_once(before.as_mut()).is_pending());

    circuit.force_open();
    tokio::time::advance(3600 * SECOND).await;
    let error = finish(service.ready().await.unwrap().call(request())).unwrap_err();
    let open = error.downcast_ref::<Open>().unwrap();
    assert_eq!(
        (open.retry_after(), open.reason()),
        (None, Some(Reason::Forced))
    );

    circuit.force_closed();
    for _ in 0..20 {
        probe.answer(Answer::Fail);
        finish(service.ready().await.unwrap().call(request())).unwrap_err();
    }
    assert_eq!(circuit.state(), State::Closed);

    circuit.automatic();
    probe.answer(Answer::Fail);
    finish(service.ready().await.unwrap().call(request())).unwrap_err();
    assert!(is_open(&circuit));
}

#[tokio::test(start_paused = true)]
async fn every_call_is_counted_once_when_it_ends() {
    let circuit = trips_at(3).build();
    let (mut service, probe) = respond(&circuit);
    for status in [200, 200, 500, 429, 200] {
        probe.answer(Answer::Status(status));
        finish(service.ready().await.unwrap().call(request())).unwrap();
    }
    probe.answer(Answer::Hang);
    drop(service.ready().await.unwrap().call(request()));
    probe.answer(Answer::Hang);
    let late = service.ready().await.unwrap().call(request());
    for _ in 0..3 {
        probe.answer(Answer::Status(500));
        finish(service.ready().await.unwrap().call(request())).unwrap();
    }
    finish(service.ready().await.unwrap().call(request())).unwrap();
    drop(late);
    let totals = circuit.snapshot().totals;
    assert_eq!(
        (
            totals.succeeded,
            totals.failed,
            totals.throttled,
            totals.ignored
        ),
        (3, 4, 1, 0)
    );
    assert_eq!((totals.abandoned, totals.stale, totals.rejected), (1, 1, 1));
    assert_eq!(totals.ended(), 10);
}

#[tokio::test(start_paused = true)]
async fn the_state_can_be_followed() {
    let circuit = trips_at(1).build();
    let mut changes = circuit.subscribe();
    assert_eq!(*changes.borrow_and_update(), State::Closed);
    trip(&circuit);
    assert_eq!(
        *changes.borrow_and_update(),
        State::Open {
            until: Some(until(&circuit))
        }
    );
    tokio::time::advance(COOLDOWN).await;
    assert!(
        !changes.has_changed().unwrap(),
        "the first call makes it half-open"
    );
    let permit = circuit.admit().unwrap();
    assert_eq!(*changes.borrow_and_update(), State::HalfOpen);
    tower_outcome::Settle::settle(permit, tower_outcome::Outcome::SUCCESS);
    assert_eq!(*changes.borrow_and_update(), State::Closed);
    circuit.reset();
    assert!(!changes.has_changed().unwrap(), "it was closed");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_state_reason_and_counters() {
    let circuit = trips_at(1).name("users").build();
    trip(&circuit);
    let opened = tokio::time::Instant::now();
    let snapshot = circuit.snapshot();
    assert_eq!(
        (snapshot.trips, snapshot.last_reason),
        (1, Some(Reason::ConsecutiveFailures))
    );
    assert_eq!(
        (snapshot.open_since, snapshot.next_probe_at),
        (Some(opened), Some(opened + COOLDOWN))
    );
    tokio::time::advance(COOLDOWN).await;
    let probe = circuit.admit().unwrap();
    tokio::time::advance(11 * SECOND).await;
    let snapshot = circuit.snapshot();
    assert_eq!(
        (snapshot.trips, snapshot.last_reason),
        (2, Some(Reason::ProbeTimedOut))
    );
    assert_eq!(snapshot.open_since, Some(opened));
    drop(probe);
    assert_eq!(circuit.snapshot().totals.stale, 1);
    assert_eq!(
        format!("{circuit:?}").split(',').next(),
        Some("Circuit { name: Some(\"users\")")
    );
}

#[test]
fn it_works_without_a_runtime() {
    let circuit = trips_at(1).build();
    let (mut service, _probe) = reject(&circuit);
    assert!(is_ready(&mut service));
    finish(service.call(request())).unwrap();
    trip(&circuit);
    assert!(is_ready(&mut service));
    finish(service.call(request())).unwrap_err();
}

/// Panics in `call`, or in the future that it returns.
#[derive(Clone)]
struct Panics {
    at_once: bool,
}

impl tower_service::Service<Request<String>> for Panics {
    type Response = Response<Script>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Script>, Infallible>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        assert!(!self.at_once, "of the service");
        Box::pin(async {
            tokio::task::yield_now().await;
            panic!("of the handler")
        })
    }
}

#[tokio::test(start_paused = true)]
async fn panics_of_the_inner_service_open_the_circuit() {
    for at_once in [true, false] {
        let circuit = Circuit::new();
        for _ in 0..5 {
            let mut service = CircuitLayer::new(&circuit)
                .respond()
                .layer(Panics { at_once });
            let call = tokio::spawn(async move {
                service
                    .ready()
                    .await
                    .unwrap()
                    .call(request())
                    .await
                    .map(drop)
            });
            assert!(call.await.unwrap_err().is_panic());
        }
        assert!(matches!(circuit.state(), State::Open { .. }), "{at_once}");
        assert_eq!(circuit.snapshot().totals.failed, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_caller_is_no_failure_of_the_inner_service() {
    let circuit = Circuit::new();
    for _ in 0..5 {
        let (mut service, probe) = respond(&circuit);
        probe.answer(Answer::Hang);
        let call = tokio::spawn(async move {
            let call = service.ready().await.unwrap().call(request());
            let mut call = pin!(call);
            assert!(poll_once(call.as_mut()).is_pending());
            panic!("of the caller")
        });
        let panicked: Result<(), _> = call.await;
        assert!(panicked.unwrap_err().is_panic());
    }
    assert_eq!(circuit.snapshot().totals.abandoned, 5);
}

#[test]
fn a_panic_that_drops_a_permit_is_a_failure() {
    let circuit = Circuit::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _permit = circuit.admit().unwrap();
        panic!("of the call")
    }));
    assert!(panicked.is_err());
    assert_eq!(circuit.snapshot().totals.failed, 1);
}

/// Any client can disconnect five times.
#[tokio::test(start_paused = true)]
async fn clients_that_disconnect_do_not_open_the_circuit_of_a_server() {
    let hang_up = async |circuit: &Circuit, clients: bool| {
        for _ in 0..20 {
            let (probe, handle) = Probe::new();
            handle.answer(Answer::Hang);
            let layer = CircuitLayer::new(circuit);
            if clients {
                let mut service = layer.respond().layer(probe);
                let mut call = pin!(service.ready().await.unwrap().call(request()));
                let _ = poll_once(call.as_mut());
                tokio::time::advance(3 * SECOND).await;
            } else {
                let mut service = layer.layer(probe);
                let mut call = pin!(service.ready().await.unwrap().call(request()));
                let _ = poll_once(call.as_mut());
                tokio::time::advance(3 * SECOND).await;
            }
        }
    };
    let served = Circuit::new();
    hang_up(&served, true).await;
    assert_eq!(
        (served.state(), served.snapshot().totals.abandoned),
        (State::Closed, 20)
    );
    let called = Circuit::new();
    hang_up(&called, false).await;
    assert!(
        called.snapshot().trips > 0,
        "the application's timeouts count"
    );
    let set = Circuit::builder()
        .abandoned_is_failure_after(SECOND)
        .build();
    hang_up(&set, true).await;
    assert!(set.snapshot().trips > 0, "an age that is set is used");
}

/// Otherwise one client could keep the circuit open for every other one.
#[tokio::test(start_paused = true)]
async fn clients_that_abandon_probes_do_not_open_a_half_open_circuit() {
    let hang_up = async |circuit: &Circuit| {
        cool_down(circuit).await;
        for _ in 0..30 {
            let (mut service, probe) = respond(circuit);
            probe.answer(Answer::Hang);
            let mut call = pin!(service.ready().await.unwrap().call(request()));
            if poll_once(call.as_mut()).is_ready() {
                break;
            }
            tokio::time::advance(SECOND - Duration::from_millis(1)).await;
        }
        circuit.snapshot()
    };
    let served = trips_at(1).build();
    let snapshot = hang_up(&served).await;
    assert_eq!((snapshot.state, snapshot.trips), (State::HalfOpen, 1));
    assert_eq!(snapshot.totals.abandoned, 30);
    let (mut service, _probe) = respond(&served);
    finish(service.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(served.state(), State::Closed);
    let set = trips_at(1).abandoned_is_failure_after(SECOND).build();
    assert!(hang_up(&set).await.trips > 1, "with an age that is set");
}

#[tokio::test(start_paused = true)]
async fn a_custom_classification_is_kept_in_any_order() {
    let teapot = || {
        classify::Http::new().status(|status| match status.as_u16() {
            404 => Verdict::Failure,
            _ => Verdict::Success,
        })
    };
    let failed =
        async |layer: &dyn Fn(Probe) -> CircuitService<Probe, classify::Http, refuse::Auto>| {
            let (probe, handle) = Probe::new();
            let mut service = layer(probe);
            handle.answer(Answer::Body(404, Script::new([])));
            finish(service.ready().await.unwrap().call(request())).unwrap();
            service.circuit().snapshot().totals.failed
        };

    let layer = || CircuitLayer::new(Circuit::new());
    assert_eq!(
        failed(&|probe| layer().classify(teapot()).respond().layer(probe)).await,
        1
    );
    assert_eq!(
        failed(&|probe| layer().respond().classify(teapot()).layer(probe)).await,
        1
    );
    assert_eq!(
        failed(&|probe| layer().respond().classify(teapot()).respond().layer(probe)).await,
        1
    );
}

/// A standby whose own layer responds with 503 has not failed: the circuit further out must not be open when it takes
/// over.
#[tokio::test(start_paused = true)]
async fn a_rejection_that_a_layer_further_in_renders_as_a_response_is_no_failure() {
    let (outer, inner) = (Circuit::new(), Circuit::new());
    inner.force_open();
    let (probe, _handle) = Probe::new();
    let layer = |circuit| CircuitLayer::new(circuit).respond();
    let mut service = layer(&outer).layer(layer(&inner).layer(probe));
    for _ in 0..50 {
        let response = finish(service.ready().await.unwrap().call(request())).unwrap();
        assert_eq!(response.status(), 503);
    }
    let totals = outer.snapshot().totals;
    assert_eq!((outer.state(), totals.ignored), (State::Closed, 50));
    inner.reset();
    let response = finish(service.ready().await.unwrap().call(request())).unwrap();
    assert_eq!(response.status(), 200);
}

/// The error of an application, which contains the rejection of a layer further in.
#[derive(Debug)]
struct ApiError(Refusal);

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("api error")
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// As documented: the chain of a type that the layer does not know is not searched.
#[tokio::test(start_paused = true)]
async fn a_rejection_inside_a_typed_error_is_ignored_once_the_error_is_boxed() {
    let limited = async |_: ()| Err::<(), _>(ApiError(Refusal::new(Class::Limited, "rate")));
    let (typed, boxed) = (trips_at(1).build(), trips_at(1).build());
    let mut service = CircuitLayer::new(&typed).layer(service_fn(limited));
    finish(service.ready().await.unwrap().call(())).unwrap_err();
    assert!(is_open(&typed));
    let inner = service_fn(limited).map_err(BoxError::from);
    let mut service = CircuitLayer::new(&boxed).layer(inner);
    finish(service.ready().await.unwrap().call(())).unwrap_err();
    assert_eq!(
        (boxed.state(), boxed.snapshot().totals.ignored),
        (State::Closed, 1)
    );
}
