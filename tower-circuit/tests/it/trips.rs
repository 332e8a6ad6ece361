//! When a circuit opens: each kind of condition, and the limits of its window.

use std::time::Duration;

use testkit::{Answer, Probe, Script, Step};
use tower::{Layer, Service, ServiceExt};
use tower_circuit::{Circuit, CircuitLayer, Cooldown, Ratio, Reason, State, Trip};
use tower_outcome::{Outcome, Settle};

use crate::common::*;

const MILLISECOND: Duration = Duration::from_millis(1);

fn call(circuit: &Circuit, outcome: Outcome) {
    circuit.admit().unwrap().settle(outcome);
}

fn calls(circuit: &Circuit, count: u32, outcome: Outcome) {
    (0..count).for_each(|_| call(circuit, outcome));
}

fn reason(circuit: &Circuit) -> Option<Reason> {
    circuit.snapshot().last_reason
}

#[tokio::test(start_paused = true)]
async fn by_default_half_of_twenty_calls_open_it() {
    let circuit = Circuit::new();
    for _ in 0..9 {
        call(&circuit, Outcome::FAILURE);
        call(&circuit, Outcome::SUCCESS);
    }
    call(&circuit, Outcome::SUCCESS);
    call(&circuit, Outcome::FAILURE);
    assert_eq!(reason(&circuit), Some(Reason::FailureRatio));
    let window = circuit.snapshot().window;
    assert_eq!(
        (window.calls(), window.failure_ratio()),
        (20, Some(0.5)),
        "the window still has the calls that opened it"
    );
}

#[tokio::test(start_paused = true)]
async fn by_default_nineteen_calls_are_too_few() {
    let circuit = Circuit::new();
    for _ in 0..9 {
        call(&circuit, Outcome::FAILURE);
        call(&circuit, Outcome::SUCCESS);
    }
    call(&circuit, Outcome::FAILURE);
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_call_as_old_as_the_window_is_not_in_it() {
    for (age, within) in [(8_999 * MILLISECOND, true), (10_000 * MILLISECOND, false)] {
        let circuit = Circuit::builder()
            .trip(Trip::failure_ratio(Ratio::HALF))
            .build();
        calls(&circuit, 15, Outcome::FAILURE);
        tokio::time::advance(age).await;
        calls(&circuit, 4, Outcome::SUCCESS);
        call(&circuit, Outcome::FAILURE);
        assert_eq!(is_open(&circuit), within, "{age:?}");
        assert_eq!(
            circuit.snapshot().window.calls(),
            if within { 20 } else { 5 }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn successes_leave_the_window_as_failures_do() {
    let circuit = Circuit::builder()
        .trip(Trip::failure_ratio(Ratio::HALF))
        .build();
    calls(&circuit, 1_000, Outcome::SUCCESS);
    tokio::time::advance(5 * SECOND).await;
    calls(&circuit, 19, Outcome::FAILURE);
    assert_eq!(circuit.state(), State::Closed);
    tokio::time::advance(5 * SECOND).await;
    call(&circuit, Outcome::FAILURE);
    assert_eq!(reason(&circuit), Some(Reason::FailureRatio));
}

/// Long calls that all end at the same instant, failures last: the clock was not read since they began.
#[tokio::test(start_paused = true)]
async fn a_success_counts_when_it_ends_and_not_when_it_began() {
    let circuit = Circuit::builder()
        .trip(Trip::failure_ratio(Ratio::HALF))
        .build();
    let permits: Vec<_> = (0..100).map(|_| circuit.admit().unwrap()).collect();
    tokio::time::advance(30 * SECOND).await;
    let mut permits = permits.into_iter();
    permits
        .by_ref()
        .take(80)
        .for_each(|permit| permit.settle(Outcome::SUCCESS));
    permits.for_each(|permit| permit.settle(Outcome::FAILURE));
    assert_eq!(
        (circuit.state(), circuit.snapshot().window.calls()),
        (State::Closed, 100)
    );
}

#[tokio::test(start_paused = true)]
async fn the_window_is_empty_once_it_has_closed() {
    let circuit = trips_at(5).build();
    calls(&circuit, 5, Outcome::FAILURE);
    tokio::time::advance(COOLDOWN).await;
    call(&circuit, Outcome::SUCCESS);
    assert_eq!(
        (circuit.state(), circuit.snapshot().window.calls()),
        (State::Closed, 0),
        "nor is the probe in it"
    );
    call(&circuit, Outcome::SUCCESS);
    assert_eq!(circuit.snapshot().window.succeeded, 1);
}

/// A counter has four bits of its generation, which repeat after sixteen.
#[tokio::test(start_paused = true)]
async fn no_call_of_sixteen_generations_ago_is_in_the_window() {
    let circuit = Circuit::new();
    calls(&circuit, 7, Outcome::SUCCESS);
    for _ in 0..16 {
        circuit.reset();
        assert_eq!(circuit.snapshot().window.calls(), 0);
    }
    assert_eq!(circuit.snapshot().totals.succeeded, 7);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_far_ahead_empties_the_window() {
    let circuit = Circuit::new();
    for days in [1, 400, 4_000] {
        calls(&circuit, 4, Outcome::FAILURE);
        call(&circuit, Outcome::SUCCESS);
        tokio::time::advance(days * 86_400 * SECOND).await;
        assert_eq!(circuit.snapshot().window.calls(), 0);
        calls(&circuit, 5, Outcome::FAILURE);
        assert!(is_open(&circuit));
        tokio::time::advance(days * 86_400 * SECOND).await;
        let probe = circuit.admit().unwrap();
        tokio::time::advance(days * 86_400 * SECOND).await;
        drop(probe);
        call(&circuit, Outcome::SUCCESS);
        assert_eq!(circuit.state(), State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn window_and_minimum_of_calls_can_be_set() {
    let min_calls = 3;
    let trip = Trip::failure_ratio(Ratio::new(2, 3));
    let circuit = Circuit::builder()
        .trip(trip)
        .window(60 * SECOND)
        .min_calls(min_calls)
        .build();
    call(&circuit, Outcome::SUCCESS);
    call(&circuit, Outcome::FAILURE);
    tokio::time::advance(50 * SECOND).await;
    assert_eq!(circuit.state(), State::Closed);
    call(&circuit, Outcome::FAILURE);
    assert!(is_open(&circuit));
}

#[tokio::test(start_paused = true)]
async fn throttled_calls_count_in_the_ratio_and_not_as_consecutive_failures() {
    let circuit = Circuit::new();
    calls(&circuit, 10, Outcome::SUCCESS);
    calls(&circuit, 9, Outcome::THROTTLED);
    assert_eq!(
        (circuit.state(), circuit.snapshot().consecutive_failures),
        (State::Closed, 0)
    );
    call(
        &circuit,
        Outcome::THROTTLED.with_retry_after(Some(20 * SECOND)),
    );
    assert_eq!(reason(&circuit), Some(Reason::FailureRatio));
    let open_for = until(&circuit).duration_since(tokio::time::Instant::now());
    assert!(is_spread(open_for, 20 * SECOND), "with its retry-after");
}

#[tokio::test(start_paused = true)]
async fn ignored_and_abandoned_calls_are_not_in_the_window() {
    let circuit = Circuit::new();
    calls(&circuit, 30, Outcome::IGNORE);
    (0..30).for_each(|_| drop(circuit.admit().unwrap()));
    assert_eq!(circuit.snapshot().window.calls(), 0);
}

fn slow_circuit() -> Circuit {
    let trip = Trip::slow_ratio(100 * MILLISECOND, Ratio::HALF);
    let min_calls = 4;
    Circuit::builder()
        .trip(trip)
        .min_calls(min_calls)
        .cooldown(Cooldown::fixed(COOLDOWN))
        .build()
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_it_though_they_succeed() {
    let circuit = slow_circuit();
    for (took, opens) in [(0, false), (99, false), (100, false), (5_000, true)] {
        let permit = circuit.admit().unwrap();
        tokio::time::advance(took * MILLISECOND).await;
        permit.settle(Outcome::SUCCESS);
        assert_eq!(is_open(&circuit), opens, "{took}");
    }
    assert_eq!(reason(&circuit), Some(Reason::SlowRatio));
    let snapshot = circuit.snapshot();
    assert_eq!(
        (
            snapshot.window.slow,
            snapshot.window.succeeded,
            snapshot.totals.succeeded
        ),
        (2, 4, 4)
    );
}

#[tokio::test(start_paused = true)]
async fn slowness_is_measured_to_the_head_of_the_response() {
    let circuit = slow_circuit();
    let (probe, handle) = Probe::<String>::new();
    let mut service = CircuitLayer::new(&circuit).respond().layer(probe);
    handle.answer(Answer::Body(200, Script::new([Step::Data("x")])));
    let response = finish(service.ready().await.unwrap().call(request())).unwrap();
    tokio::time::advance(SECOND).await;
    http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    let window = circuit.snapshot().window;
    assert_eq!((window.slow, window.succeeded), (0, 1));

    for read in [true, false] {
        handle.answer(Answer::Body(200, Script::new([Step::Data("x")])));
        let call = service.ready().await.unwrap().call(request());
        tokio::time::advance(SECOND).await;
        let response = finish(call).unwrap();
        if read {
            http_body_util::BodyExt::collect(response.into_body())
                .await
                .unwrap();
        }
    }
    assert_eq!(circuit.snapshot().window.slow, 2, "read or not");
}

#[tokio::test(start_paused = true)]
async fn slowness_is_measured_from_the_call_even_without_a_poll() {
    let circuit = slow_circuit();
    let (probe, _handle) = Probe::<String>::new();
    let mut service = CircuitLayer::new(&circuit).layer(probe);
    let call = service.ready().await.unwrap().call(request());
    tokio::time::advance(SECOND).await;
    finish(call).unwrap();
    assert_eq!(circuit.snapshot().window.slow, 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_probe_does_not_close_the_circuit() {
    let circuit = slow_circuit();
    circuit.force_open();
    circuit.automatic();
    let probe = circuit.admit().unwrap();
    tokio::time::advance(100 * MILLISECOND).await;
    probe.settle(Outcome::SUCCESS);
    assert_eq!(
        (is_open(&circuit), reason(&circuit)),
        (true, Some(Reason::ProbeSlow))
    );
    tokio::time::advance(COOLDOWN).await;
    call(&circuit, Outcome::SUCCESS);
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_slow_call_limit_is_also_the_age_from_which_an_abandoned_call_is_a_failure() {
    for (age, failed) in [(99 * MILLISECOND, 0), (100 * MILLISECOND, 1)] {
        let circuit = slow_circuit();
        let permit = circuit.admit().unwrap();
        tokio::time::advance(age).await;
        drop(permit);
        let window = circuit.snapshot().window;
        assert_eq!((window.failed, window.slow), (failed, failed));
    }
}

/// Such as a health check.
#[tokio::test(start_paused = true)]
async fn the_application_may_open_a_circuit_which_then_recovers_by_itself() {
    let circuit = Circuit::builder()
        .trip(Trip::never())
        .cooldown(Cooldown::fixed(COOLDOWN))
        .build();
    calls(&circuit, 100, Outcome::FAILURE);
    assert_eq!(circuit.state(), State::Closed);
    circuit.trip();
    let open = circuit.admit().unwrap_err();
    assert_eq!(open.reason(), Some(Reason::Requested));
    assert_eq!(open.retry_after(), Some(COOLDOWN));
    tokio::time::advance(COOLDOWN).await;
    call(&circuit, Outcome::SUCCESS);
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_application_opens_no_circuit_that_is_forced_closed() {
    let circuit = Circuit::new();
    circuit.force_closed();
    circuit.trip();
    assert_eq!(circuit.state(), State::Closed);
}

/// Less than a second was once the same as a second.
#[tokio::test(start_paused = true)]
async fn a_short_window_is_as_short_as_it_was_set() {
    let circuit = Circuit::builder()
        .trip(Trip::failure_ratio(Ratio::ALL))
        .min_calls(2)
        .window(100 * MILLISECOND)
        .build();
    call(&circuit, Outcome::FAILURE);
    tokio::time::advance(110 * MILLISECOND).await;
    call(&circuit, Outcome::FAILURE);
    assert_eq!(circuit.state(), State::Closed);
    call(&circuit, Outcome::FAILURE);
    assert!(is_open(&circuit));
}

#[tokio::test(start_paused = true)]
async fn zero_is_the_same_as_one() {
    let circuit = Circuit::builder()
        .trip(Trip::consecutive(0))
        .min_calls(0)
        .max_concurrent_probes(0)
        .successes_to_close(0)
        .cooldown(Cooldown::fixed(COOLDOWN))
        .build();
    call(&circuit, Outcome::SUCCESS);
    call(&circuit, Outcome::FAILURE);
    assert_eq!(reason(&circuit), Some(Reason::ConsecutiveFailures));
    tokio::time::advance(COOLDOWN).await;
    let probe = circuit.admit().unwrap();
    assert!(circuit.admit().is_err(), "one probe at a time");
    probe.success();
    assert_eq!(circuit.state(), State::Closed, "after one success");
}

/// The condition that is not set again stays only if it is joined.
#[tokio::test(start_paused = true)]
async fn setting_a_trip_replaces_the_default_and_joining_keeps_it() {
    for (trip, opens) in [
        (Trip::consecutive(50), false),
        (Trip::default().or(Trip::consecutive(50)), true),
    ] {
        let circuit = Circuit::builder().trip(trip).build();
        calls(&circuit, 20, Outcome::FAILURE);
        assert_eq!(is_open(&circuit), opens);
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_never_trips_is_opened_by_the_operator_only() {
    let circuit = Circuit::builder().trip(Trip::never()).build();
    calls(&circuit, 1_000, Outcome::FAILURE);
    assert_eq!(circuit.state(), State::Closed);
    circuit.force_open();
    assert!(is_open(&circuit));
}

#[tokio::test(start_paused = true)]
async fn it_stays_open_longer_while_probes_fail_and_starts_again_once_it_has_closed() {
    let circuit = Circuit::builder()
        .trip(Trip::consecutive(1))
        .cooldown(Cooldown::default())
        .build();
    let open_for = |circuit: &Circuit| until(circuit).duration_since(tokio::time::Instant::now());
    trip(&circuit);
    let mut times = vec![open_for(&circuit)];
    for _ in 0..4 {
        tokio::time::advance(*times.last().unwrap()).await;
        call(&circuit, Outcome::FAILURE);
        times.push(open_for(&circuit));
    }
    assert!(is_spread(times[0], 10 * SECOND) && is_spread(times[4], 60 * SECOND));
    assert!(
        (16 * SECOND..27 * SECOND).contains(&times[1]) && times[..3].is_sorted(),
        "{times:?}"
    );
    tokio::time::advance(times[4]).await;
    call(&circuit, Outcome::SUCCESS);
    trip(&circuit);
    assert!(is_spread(open_for(&circuit), 10 * SECOND));
}
