//! When a circuit opens, seen from outside: each kind of condition, and the edges of its window.

use std::{
    num::{NonZeroU16, NonZeroU32},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use testkit::{Answer, Probe, Script, Step};
use tower::{Layer, Service, ServiceExt};
use tower_circuit::{
    Circuit, CircuitLayer, Cooldown, Evidence, Ratio, Reason, State, Trip, TripPolicy,
};
use tower_outcome::{Outcome, Settle, Verdict};

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
        "what opened it can still be seen"
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
async fn what_is_as_old_as_the_window_has_left_it() {
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
async fn good_calls_leave_the_window_as_bad_ones_do() {
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

/// Long calls that all end at once, the bad ones last: nobody has looked at the clock since they began.
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

/// A counter knows its generation by four bits, which come round after sixteen.
#[tokio::test(start_paused = true)]
async fn nothing_comes_back_from_sixteen_generations_ago() {
    let circuit = Circuit::new();
    calls(&circuit, 7, Outcome::SUCCESS);
    for _ in 0..16 {
        circuit.reset();
        assert_eq!(circuit.snapshot().window.calls(), 0);
    }
    assert_eq!(circuit.snapshot().totals.succeeded, 7);
}

#[tokio::test(start_paused = true)]
async fn time_that_jumps_far_ahead_empties_the_window_and_opens_no_trap() {
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
async fn a_window_may_be_longer_and_want_more_or_fewer_calls() {
    let at_least = NonZeroU32::new(3).unwrap();
    let trip = Trip::failure_ratio(Ratio::new(2, 3).unwrap());
    let circuit = Circuit::builder()
        .trip(trip)
        .window(60 * SECOND)
        .at_least(at_least)
        .build();
    call(&circuit, Outcome::SUCCESS);
    call(&circuit, Outcome::FAILURE);
    tokio::time::advance(50 * SECOND).await;
    assert_eq!(circuit.state(), State::Closed);
    call(&circuit, Outcome::FAILURE);
    assert!(is_open(&circuit));
}

#[tokio::test(start_paused = true)]
async fn soft_answers_lower_the_ratio_and_are_no_row() {
    let circuit = Circuit::new();
    calls(&circuit, 10, Outcome::SUCCESS);
    calls(&circuit, 9, Outcome::THROTTLED);
    assert_eq!(
        (circuit.state(), circuit.snapshot().failures_in_row),
        (State::Closed, 0)
    );
    call(
        &circuit,
        Outcome::THROTTLED.with_retry_after(Some(20 * SECOND)),
    );
    assert_eq!(reason(&circuit), Some(Reason::FailureRatio));
    let open_for = until(&circuit).duration_since(tokio::time::Instant::now());
    assert!(
        is_spread(open_for, 20 * SECOND),
        "and it said when to come back"
    );
}

#[tokio::test(start_paused = true)]
async fn ignored_and_cancelled_calls_are_in_no_window() {
    let circuit = Circuit::new();
    calls(&circuit, 30, Outcome::IGNORE);
    (0..30).for_each(|_| drop(circuit.admit().unwrap()));
    assert_eq!(circuit.snapshot().window.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_calls_are_judged_however_long_ago_they_were() {
    let last_ten = Trip::failure_ratio_of_last(NonZeroU16::new(10).unwrap(), Ratio::HALF);
    let circuit = Circuit::builder().trip(last_ten).build();
    for _ in 0..9 {
        call(&circuit, Outcome::FAILURE);
        tokio::time::advance(3600 * SECOND).await;
    }
    assert_eq!(circuit.state(), State::Closed, "nine are not ten");
    calls(&circuit, 100, Outcome::SUCCESS);
    calls(&circuit, 4, Outcome::FAILURE);
    assert_eq!(
        circuit.snapshot().last_calls.unwrap().failed,
        4,
        "the others have been pushed out"
    );
    call(&circuit, Outcome::FAILURE);
    assert_eq!(reason(&circuit), Some(Reason::FailureRatioOfLast));
}

fn slow_circuit() -> Circuit {
    let trip = Trip::slow_ratio(100 * MILLISECOND, Ratio::HALF);
    let at_least = NonZeroU32::new(4).unwrap();
    Circuit::builder()
        .trip(trip)
        .at_least(at_least)
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
async fn slowness_counts_to_the_head_of_the_response_and_not_what_its_reader_takes() {
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
async fn slowness_counts_from_the_call_even_if_nobody_waited_for_the_answer() {
    let circuit = slow_circuit();
    let (probe, _handle) = Probe::<String>::new();
    let mut service = CircuitLayer::new(&circuit).layer(probe);
    let call = service.ready().await.unwrap().call(request());
    tokio::time::advance(SECOND).await;
    finish(call).unwrap();
    assert_eq!(circuit.snapshot().window.slow, 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_probe_closes_nothing() {
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
async fn the_slow_call_limit_is_also_the_age_from_which_a_dropped_call_has_failed() {
    for (age, failed) in [(99 * MILLISECOND, 0), (100 * MILLISECOND, 1)] {
        let circuit = slow_circuit();
        let permit = circuit.admit().unwrap();
        tokio::time::advance(age).await;
        drop(permit);
        let window = circuit.snapshot().window;
        assert_eq!((window.failed, window.slow), (failed, failed));
    }
}

/// Counts what it is asked, and asks the circuit in turn: what would go wrong is a deadlock.
#[derive(Default)]
struct Nosy {
    circuit: OnceLock<Circuit>,
    seen: Mutex<Vec<(Verdict, u64)>>,
    all: bool,
}

impl TripPolicy for Nosy {
    fn judge(&self, evidence: &Evidence) -> Option<&'static str> {
        let snapshot = self.circuit.get().unwrap().snapshot();
        assert_eq!(snapshot.window, evidence.window);
        self.seen
            .lock()
            .unwrap()
            .push((evidence.verdict, evidence.window.calls()));
        (evidence.window.failed == 3).then_some("third-time")
    }

    fn wants_successes(&self) -> bool {
        self.all
    }
}

fn nosy(all: bool) -> (Circuit, Arc<Nosy>) {
    let nosy = Arc::new(Nosy {
        all,
        ..Nosy::default()
    });
    let circuit = Circuit::builder().trip(Trip::policy(nosy.clone())).build();
    nosy.circuit.set(circuit.clone()).unwrap();
    (circuit, nosy)
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_ones_own_opens_it_and_is_asked_outside_of_the_lock_about_bad_calls_only() {
    let (circuit, nosy) = nosy(false);
    for outcome in [
        Outcome::SUCCESS,
        Outcome::FAILURE,
        Outcome::THROTTLED,
        Outcome::SUCCESS,
        Outcome::FAILURE,
    ] {
        call(&circuit, outcome);
    }
    assert_eq!(circuit.state(), State::Closed);
    call(
        &circuit,
        Outcome::FAILURE.with_retry_after(Some(30 * SECOND)),
    );
    assert_eq!(reason(&circuit), Some(Reason::Policy("third-time")));
    let open = circuit.admit().unwrap_err();
    assert_eq!(open.reason(), Some(Reason::Policy("third-time")));
    assert!(is_spread(open.retry_after().unwrap(), 30 * SECOND));
    let seen = nosy.seen.lock().unwrap().clone();
    let expected = [
        (Verdict::Failure, 2),
        (Verdict::Throttled, 3),
        (Verdict::Failure, 5),
        (Verdict::Failure, 6),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_wants_successes_is_asked_about_them_too() {
    let (circuit, nosy) = nosy(true);
    calls(&circuit, 3, Outcome::SUCCESS);
    calls(&circuit, 2, Outcome::FAILURE);
    let seen: Vec<_> = nosy
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|(_, calls)| *calls)
        .collect();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    assert_eq!(circuit.snapshot().totals.succeeded, 3);
}

#[tokio::test(start_paused = true)]
async fn a_policy_neither_sees_probes_nor_opens_what_is_held_closed() {
    struct Always(Arc<AtomicU64>);
    impl TripPolicy for Always {
        fn judge(&self, _: &Evidence) -> Option<&'static str> {
            self.0.fetch_add(1, Relaxed);
            Some("always")
        }
    }
    let asked = Arc::new(AtomicU64::new(0));
    let circuit = Circuit::builder()
        .trip(Trip::policy(Always(asked.clone())))
        .build();
    circuit.force_closed();
    call(&circuit, Outcome::FAILURE);
    assert_eq!(circuit.state(), State::Closed);
    circuit.force_open();
    circuit.automatic();
    call(&circuit, Outcome::FAILURE);
    assert_eq!(
        (asked.load(Relaxed), reason(&circuit)),
        (1, Some(Reason::ProbeFailed))
    );
}

/// It must not, but no lock is held then: the panic is its caller's, and the circuit goes on.
#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_harms_its_caller_alone() {
    struct Panics;
    impl TripPolicy for Panics {
        fn judge(&self, _: &Evidence) -> Option<&'static str> {
            panic!("the user's")
        }
    }
    let trip = Trip::policy(Panics).or(Trip::consecutive(NonZeroU32::new(2).unwrap()));
    let circuit = Circuit::builder().trip(trip).build();
    let failing = std::panic::AssertUnwindSafe(|| call(&circuit, Outcome::FAILURE));
    std::panic::catch_unwind(failing).unwrap_err();
    assert_eq!(
        (circuit.state(), circuit.snapshot().window.failed),
        (State::Closed, 1)
    );
    call(&circuit, Outcome::FAILURE);
    assert_eq!(
        reason(&circuit),
        Some(Reason::ConsecutiveFailures),
        "both were counted, and it was not asked again"
    );
}

/// A policy that opens the circuit by hand is as good as another thread that does.
#[tokio::test(start_paused = true)]
async fn a_policy_may_force_the_circuit_it_judges() {
    struct Forces(OnceLock<Circuit>);
    impl TripPolicy for Forces {
        fn judge(&self, _: &Evidence) -> Option<&'static str> {
            self.0.get().unwrap().force_open();
            Some("too-late")
        }
    }
    let forces = Arc::new(Forces(OnceLock::new()));
    let circuit = Circuit::builder()
        .trip(Trip::policy(forces.clone()))
        .build();
    forces.0.set(circuit.clone()).unwrap();
    call(&circuit, Outcome::FAILURE);
    assert_eq!(
        (circuit.state(), reason(&circuit)),
        (State::Open { until: None }, Some(Reason::Forced))
    );
}

#[tokio::test(start_paused = true)]
async fn the_circuits_own_conditions_come_before_a_policy() {
    let (_, nosy) = nosy(false);
    let trip = Trip::policy(nosy.clone()).or(Trip::consecutive(NonZeroU32::MIN));
    let circuit = Circuit::builder().trip(trip).build();
    call(&circuit, Outcome::FAILURE);
    assert_eq!(reason(&circuit), Some(Reason::ConsecutiveFailures));
    assert!(nosy.seen.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_never_trips_is_opened_by_hand_alone() {
    let circuit = Circuit::builder().trip(Trip::never()).build();
    calls(&circuit, 1_000, Outcome::FAILURE);
    assert_eq!(circuit.state(), State::Closed);
    circuit.force_open();
    assert!(is_open(&circuit));
}

#[tokio::test(start_paused = true)]
async fn it_stays_open_longer_while_probes_fail_and_as_long_as_before_once_it_has_closed() {
    let circuit = Circuit::builder()
        .trip(Trip::consecutive(NonZeroU32::MIN))
        .cooldown(Cooldown::default().seed(1))
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
