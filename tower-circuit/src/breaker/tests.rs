mod model;

use super::*;
use crate::{
    Ratio,
    fast_path::window::{instant, nanos_at},
};

const SECOND: Duration = Duration::from_secs(1);

/// Trips at the second consecutive failure; open for 10 s; probes have 3 s.
fn settings() -> BreakerSettings {
    let trip = Trip::consecutive(2);
    let probes = ProbeSettings {
        max_concurrent: 1,
        successes: 1,
        deadline: 3 * SECOND,
    };
    let min_calls = 4;
    BreakerSettings {
        trip,
        min_calls,
        cooldown: Cooldown::fixed(10 * SECOND).exact(),
        probes,
        budget: None,
    }
}

fn breaker() -> (Breaker, Instant) {
    (Breaker::new(settings()), Instant::now())
}

/// Several concurrent probes, of which several must succeed.
fn probing(max_concurrent: u32, successes: u32) -> (Breaker, Instant) {
    let probes = ProbeSettings {
        max_concurrent,
        successes,
        deadline: 3 * SECOND,
    };
    let (mut breaker, now) = (
        Breaker::new(BreakerSettings {
            probes,
            ..settings()
        }),
        Instant::now(),
    );
    assert!(fail(&mut breaker, 2, None, now));
    (breaker, now + 10 * SECOND)
}

fn record(
    breaker: &mut Breaker,
    call_id: CallId,
    outcome: CallOutcome,
    consecutive_failures: u32,
) -> bool {
    breaker.record(
        call_id,
        outcome,
        ExternalCounts {
            consecutive_failures,
            succeeded: 0,
            slice: 0,
        },
    )
}

fn outcome(verdict: Verdict, now: Instant) -> CallOutcome {
    CallOutcome {
        verdict,
        slow: false,
        hint: None,
        now,
    }
}

fn open() -> (Breaker, Instant) {
    let (mut breaker, now) = breaker();
    assert!(fail(&mut breaker, 2, None, now));
    (breaker, now)
}

/// Open, and the time of the first probe.
fn cooled_down() -> (Breaker, Instant) {
    let (breaker, now) = open();
    (breaker, now + 10 * SECOND)
}

fn fail(
    breaker: &mut Breaker,
    consecutive_failures: u32,
    hint: Option<Duration>,
    now: Instant,
) -> bool {
    let call_id = breaker.admit(now).unwrap();
    record(
        breaker,
        call_id,
        CallOutcome {
            hint,
            ..outcome(Verdict::Failure, now)
        },
        consecutive_failures,
    )
}

fn fail_probe(breaker: &mut Breaker, call_id: CallId, now: Instant) -> bool {
    record(breaker, call_id, outcome(Verdict::Failure, now), 0)
}

fn succeed(breaker: &mut Breaker, call_id: CallId, now: Instant) -> bool {
    record(breaker, call_id, outcome(Verdict::Success, now), 0)
}

fn snapshot(breaker: &mut Breaker, now: Instant) -> Snapshot {
    breaker.snapshot(now, 0).0
}

fn may_admit(breaker: &mut Breaker, now: Instant) -> bool {
    breaker.may_admit(now).is_ok()
}

fn state(breaker: &mut Breaker, now: Instant) -> State {
    snapshot(breaker, now).state
}

#[test]
fn it_opens_at_the_threshold_and_not_before() {
    let (mut breaker, now) = breaker();
    fail(&mut breaker, 1, None, now);
    assert_eq!(state(&mut breaker, now), State::Closed);
    fail(&mut breaker, 2, None, now);
    assert_eq!(
        state(&mut breaker, now),
        State::Open {
            until: Some(now + 10 * SECOND)
        }
    );
    assert_eq!(
        snapshot(&mut breaker, now).last_reason,
        Some(Reason::ConsecutiveFailures)
    );
}

#[test]
fn it_rejects_until_the_last_nanosecond_and_reports_when() {
    let (mut breaker, now) = open();
    let until = now + 10 * SECOND;
    let rejection = breaker.admit(until - Duration::from_nanos(1)).unwrap_err();
    assert_eq!(
        rejection,
        Rejection {
            next: Some(until),
            reason: Some(Reason::ConsecutiveFailures)
        }
    );
    assert!(breaker.admit(until).unwrap().is_probe());
}

#[test]
fn one_probe_at_a_time() {
    let (mut breaker, now) = cooled_down();
    breaker.admit(now).unwrap();
    assert_eq!(breaker.admit(now).unwrap_err().next, Some(now + 3 * SECOND));
    assert!(!may_admit(&mut breaker, now));
}

#[test]
fn a_probe_that_succeeds_closes_it() {
    let (mut breaker, now) = cooled_down();
    let probe = breaker.admit(now).unwrap();
    assert!(succeed(&mut breaker, probe, now));
    assert_eq!(state(&mut breaker, now), State::Closed);
    assert_eq!(snapshot(&mut breaker, now).open_since, None);
}

#[test]
fn a_probe_that_fails_opens_it_again_and_it_counts_as_open_since_the_first_failure() {
    let (mut breaker, now) = cooled_down();
    let probe = breaker.admit(now).unwrap();
    assert!(fail_probe(&mut breaker, probe, now + SECOND));
    let snapshot = snapshot(&mut breaker, now + SECOND);
    assert_eq!(
        snapshot.state,
        State::Open {
            until: Some(now + 11 * SECOND)
        }
    );
    assert_eq!(
        (snapshot.trips, snapshot.last_reason),
        (2, Some(Reason::ProbeFailed))
    );
    assert_eq!(snapshot.open_since, Some(now - 10 * SECOND));
}

#[test]
fn an_abandoned_probe_lets_the_next_caller_probe() {
    let (mut breaker, now) = cooled_down();
    let probe = breaker.admit(now).unwrap();
    breaker.forget(probe, now);
    assert!(breaker.take_effects().wake_waiters);
    assert!(breaker.admit(now).unwrap().is_probe());
}

#[test]
fn a_probe_past_its_deadline_has_failed_at_its_deadline_whenever_that_is_observed() {
    let (mut breaker, now) = cooled_down();
    let probe = breaker.admit(now).unwrap();
    let (deadline, looked) = (now + 3 * SECOND, now + 7 * SECOND);
    assert!(!succeed(&mut breaker, probe, looked), "too late");
    let snapshot = snapshot(&mut breaker, looked);
    assert_eq!(
        snapshot.state,
        State::Open {
            until: Some(deadline + 10 * SECOND)
        }
    );
    assert_eq!(snapshot.last_reason, Some(Reason::ProbeTimedOut));
}

#[test]
fn a_probe_with_a_good_head_has_succeeded_at_its_deadline_however_its_body_ends() {
    let (mut breaker, now) = cooled_down();
    let probe = breaker.admit(now).unwrap();
    breaker.answered(probe, false, now + 2 * SECOND);
    assert_eq!(
        breaker.admit(now + 2 * SECOND).unwrap_err().next,
        Some(now + 3 * SECOND),
        "not yet"
    );
    assert!(
        !breaker.admit(now + 3 * SECOND).unwrap().is_probe(),
        "closed by the first who looks"
    );
    assert_eq!(snapshot(&mut breaker, now + 3 * SECOND).trips, 1);
    assert!(
        !fail_probe(&mut breaker, probe, now + 4 * SECOND)
            && !breaker.forget(probe, now + 4 * SECOND)
    );
    assert_eq!(state(&mut breaker, now + 4 * SECOND), State::Closed);
}

#[test]
fn callers_with_short_timeouts_do_not_keep_an_unresponsive_circuit_half_open() {
    let (mut breaker, mut now) = cooled_down(); // one probe at a time, of three seconds
    let almost = SECOND - Duration::from_millis(1);
    for waited in [almost, Duration::ZERO, almost, almost] {
        let probe = breaker.admit(now).unwrap();
        assert!(breaker.abandon(probe, now + waited));
        assert_eq!(state(&mut breaker, now + waited), State::HalfOpen);
        now += 2 * waited;
    }
    let probe = breaker.admit(now).unwrap();
    assert!(breaker.abandon(probe, now + Duration::from_millis(3)));
    let snapshot = snapshot(&mut breaker, now + SECOND);
    assert_eq!(snapshot.last_reason, Some(Reason::ProbeTimedOut));
    assert!(
        matches!(snapshot.state, State::Open { until: Some(until) } if until >= now + 10 * SECOND)
    );
}

#[test]
fn the_longest_deadline_is_not_one_that_callers_have_waited_for() {
    let mut settings = settings();
    settings.probes.deadline = Duration::MAX;
    let (mut breaker, now) = (Breaker::new(settings), Instant::now());
    breaker.set_mode(Mode::ForcedOpen, now);
    breaker.set_mode(Mode::Automatic, now);
    for _ in 0..10 {
        let probe = breaker.admit(now).unwrap();
        assert!(breaker.abandon(probe, now + SECOND));
        assert_eq!(state(&mut breaker, now + SECOND), State::HalfOpen);
    }
}

#[test]
fn a_response_or_an_ignored_outcome_is_not_unresponsiveness() {
    let (mut breaker, now) = probing(1, 2);
    let probe = breaker.admit(now).unwrap();
    assert!(breaker.forget(probe, now + SECOND), "a refusal further in");
    let probe = breaker.admit(now + SECOND).unwrap();
    breaker.answered(probe, false, now + 2 * SECOND);
    assert!(succeed(&mut breaker, probe, now + 2 * SECOND));
    let probe = breaker.admit(now + 3 * SECOND).unwrap();
    assert!(breaker.abandon(probe, now + 4 * SECOND));
    assert_eq!(state(&mut breaker, now + 4 * SECOND), State::HalfOpen);
}

#[test]
fn a_probe_with_a_good_head_fails_if_its_body_does_before_the_deadline() {
    let (mut breaker, now) = cooled_down();
    let probe = breaker.admit(now).unwrap();
    breaker.answered(probe, false, now);
    assert!(fail_probe(&mut breaker, probe, now + 2 * SECOND));
    assert_eq!(
        snapshot(&mut breaker, now + 3 * SECOND).last_reason,
        Some(Reason::ProbeFailed)
    );
}

#[test]
fn a_probe_counts_once_at_its_deadline_or_at_the_end_of_its_body() {
    let (mut breaker, now) = probing(1, 2);
    let probe = breaker.admit(now).unwrap();
    breaker.answered(probe, false, now);
    let now = now + 3 * SECOND;
    assert_eq!(state(&mut breaker, now), State::HalfOpen);
    assert!(!succeed(&mut breaker, probe, now), "it has succeeded once");
    assert_eq!(state(&mut breaker, now), State::HalfOpen);
    let second = breaker.admit(now).unwrap();
    assert!(
        !fail_probe(&mut breaker, probe, now),
        "nor does it fail for another"
    );
    assert!(succeed(&mut breaker, second, now));
    assert_eq!(state(&mut breaker, now), State::Closed);
}

#[test]
fn deadlines_pass_in_order_and_failures_first() {
    for (wait, answered_first, state_then) in [
        (SECOND, true, State::Closed),
        (SECOND, false, State::Open { until: None }),
        (Duration::ZERO, true, State::Open { until: None }),
    ] {
        let (mut breaker, now) = probing(2, 1);
        let (first, second) = (
            breaker.admit(now).unwrap(),
            breaker.admit(now + wait).unwrap(),
        );
        let answered = if answered_first { first } else { second };
        breaker.answered(answered, false, now + wait);
        let ended = state(&mut breaker, now + 60 * SECOND);
        assert_eq!(
            ended == State::Closed,
            state_then == State::Closed,
            "{wait:?} {answered_first}"
        );
    }
}

#[test]
fn a_probe_with_a_slow_head_does_not_close_the_circuit_at_its_deadline() {
    for (slow, reason) in [(true, Some(Reason::ProbeSlow)), (false, None)] {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        breaker.answered(probe, slow, now + SECOND);
        let snapshot = snapshot(&mut breaker, now + 3 * SECOND);
        assert_eq!(
            snapshot
                .last_reason
                .filter(|_| snapshot.state != State::Closed),
            reason
        );
    }
}

#[test]
fn a_response_head_of_another_generation_changes_nothing() {
    let (mut breaker, now) = breaker();
    let early = breaker.admit(now).unwrap();
    fail(&mut breaker, 2, None, now);
    let now = now + 10 * SECOND;
    let probe = breaker.admit(now).unwrap();
    breaker.answered(early, false, now);
    assert_eq!(
        snapshot(&mut breaker, now + 3 * SECOND).last_reason,
        Some(Reason::ProbeTimedOut)
    );
    breaker.answered(probe, false, now + 3 * SECOND);
    assert!(
        matches!(state(&mut breaker, now + 3 * SECOND), State::Open { .. }),
        "too late"
    );
}

#[test]
fn a_clock_that_jumps_far_ahead_leaves_no_slot_taken() {
    let (mut breaker, now) = cooled_down();
    breaker.admit(now).unwrap();
    let later = now + 365 * 86_400 * SECOND;
    assert!(may_admit(&mut breaker, later));
    assert!(breaker.admit(later).unwrap().is_probe());
}

#[test]
fn an_outcome_from_before_the_last_transition_has_no_effect() {
    let (mut breaker, now) = breaker();
    let early = breaker.admit(now).unwrap();
    let other = breaker.admit(now).unwrap();
    fail(&mut breaker, 2, None, now);
    let now = now + 10 * SECOND;
    let probe = breaker.admit(now).unwrap();
    assert!(!succeed(&mut breaker, early, now));
    assert!(!fail_probe(&mut breaker, other, now));
    assert_eq!(state(&mut breaker, now), State::HalfOpen);
    assert!(succeed(&mut breaker, probe, now));
}

#[test]
fn a_hint_raises_the_open_time_up_to_the_cap() {
    for (hint, open_for) in [(1, 10), (30, 30), (86_400, 60)] {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, 2, Some(hint * SECOND), now);
        assert_eq!(
            state(&mut breaker, now),
            State::Open {
                until: Some(now + open_for * SECOND)
            }
        );
    }
}

#[test]
fn a_reservation_expires_and_does_not_affect_its_successor() {
    let (mut breaker, now) = cooled_down();
    let reserved = breaker.reserve(now).unwrap();
    assert!(breaker.reserve(now).is_err());
    assert!(breaker.is_reserved(reserved, now + 2 * SECOND));
    let now = now + 3 * SECOND;
    assert!(!breaker.is_reserved(reserved, now));
    assert_eq!(
        state(&mut breaker, now),
        State::HalfOpen,
        "nothing was sent, so nothing failed"
    );
    let other = breaker.reserve(now).unwrap();
    breaker.release(reserved);
    assert!(breaker.is_reserved(other, now));
    assert!(
        breaker.begin(reserved, now).is_err(),
        "another gate has the slot"
    );
}

#[test]
fn a_reservation_that_is_used_has_a_full_deadline_and_is_not_returned() {
    let (mut breaker, now) = cooled_down();
    let reserved = breaker.reserve(now).unwrap();
    let now = now + 2 * SECOND;
    let probe = breaker.begin(reserved, now).unwrap();
    breaker.release(reserved);
    assert_eq!(breaker.admit(now).unwrap_err().next, Some(now + 3 * SECOND));
    assert!(succeed(&mut breaker, probe, now));
}

#[test]
fn a_call_with_an_expired_reservation_takes_a_free_slot() {
    let (mut breaker, now) = cooled_down();
    let reserved = breaker.reserve(now).unwrap();
    assert!(
        breaker
            .begin(reserved, now + 5 * SECOND)
            .unwrap()
            .is_probe()
    );
    let (mut breaker, now) = cooled_down();
    let reserved = breaker.reserve(now).unwrap();
    breaker.set_mode(Mode::ForcedClosed, now);
    assert!(!breaker.begin(reserved, now).unwrap().is_probe());
}

#[test]
fn forced_states_do_not_change_by_outcomes() {
    let (mut breaker, now) = breaker();
    breaker.set_mode(Mode::ForcedClosed, now);
    fail(&mut breaker, u32::MAX, None, now);
    assert_eq!(snapshot(&mut breaker, now).mode, Mode::ForcedClosed);
    assert!(may_admit(&mut breaker, now));
    breaker.set_mode(Mode::ForcedOpen, now);
    let later = now + 3600 * SECOND;
    assert_eq!(
        breaker.admit(later).unwrap_err(),
        Rejection {
            next: None,
            reason: Some(Reason::Forced)
        }
    );
    assert_eq!(snapshot(&mut breaker, later).mode, Mode::ForcedOpen);
}

#[test]
fn after_forced_open_a_probe_decides() {
    let (mut breaker, now) = breaker();
    breaker.set_mode(Mode::ForcedOpen, now);
    breaker.set_mode(Mode::Automatic, now);
    assert_eq!(state(&mut breaker, now), State::HalfOpen);
    assert!(breaker.admit(now).unwrap().is_probe());
    breaker.reset();
    assert_eq!(state(&mut breaker, now), State::Closed);
}

#[test]
fn automatic_changes_nothing_unless_forced() {
    let (mut breaker, now) = cooled_down();
    let probe = breaker.admit(now).unwrap();
    breaker.set_mode(Mode::Automatic, now);
    assert!(succeed(&mut breaker, probe, now));
}

#[test]
fn each_transition_is_reported_once_with_its_reason() {
    let (mut breaker, now) = cooled_down();
    breaker.admit(now).unwrap();
    breaker.admit(now + 60 * SECOND).unwrap();
    let reported: Vec<_> = breaker
        .take_effects()
        .transitions
        .iter()
        .map(|it| (it.from.as_str(), it.to.as_str(), it.reason))
        .collect();
    assert_eq!(
        reported,
        [
            ("closed", "open", Some(Reason::ConsecutiveFailures)),
            ("open", "half-open", Some(Reason::ConsecutiveFailures)),
            ("half-open", "open", Some(Reason::ProbeTimedOut)),
            ("open", "half-open", Some(Reason::ProbeTimedOut)),
        ]
    );
    assert!(breaker.take_effects().transitions.is_empty());
}

#[test]
fn the_longest_durations_do_not_overflow() {
    let cooldown = Cooldown::new(Duration::MAX).cap(Duration::MAX).exact();
    let probes = ProbeSettings {
        deadline: Duration::MAX,
        ..settings().probes
    };
    let mut breaker = Breaker::new(BreakerSettings {
        cooldown,
        probes,
        ..settings()
    });
    let now = Instant::now();
    fail(&mut breaker, 2, Some(Duration::MAX), now);
    assert!(!may_admit(&mut breaker, now + 365 * 86_400 * SECOND));
    // This would be a second in 64 bits of nanoseconds.
    let (cooldown, now) = (
        Cooldown::fixed(Duration::from_nanos(u64::MAX) + SECOND),
        instant(0),
    );
    let mut breaker = Breaker::new(BreakerSettings {
        cooldown,
        ..settings()
    });
    fail(&mut breaker, 2, None, now);
    let NextAdmission::At(until) = breaker.next_admission() else {
        panic!("open for a time")
    };
    assert_eq!(instant(nanos_at(until)), until);
}

#[test]
fn each_slot_admits_a_probe_with_its_own_deadline() {
    let (mut breaker, now) = probing(2, 2);
    let first = breaker.admit(now).unwrap();
    let second = breaker.admit(now + SECOND).unwrap();
    assert_ne!(first, second);
    assert_eq!(
        breaker.admit(now + SECOND).unwrap_err().next,
        Some(now + 3 * SECOND),
        "the first's"
    );
    assert!(succeed(&mut breaker, first, now + 2 * SECOND));
    assert!(
        breaker.admit(now + 2 * SECOND).unwrap().is_probe(),
        "its place is free again"
    );
    assert!(
        !succeed(&mut breaker, second, now + 4 * SECOND),
        "it had failed a nanosecond before"
    );
    let snapshot = snapshot(&mut breaker, now + 4 * SECOND);
    assert_eq!(
        snapshot.state,
        State::Open {
            until: Some(now + 14 * SECOND)
        }
    );
    assert_eq!(snapshot.last_reason, Some(Reason::ProbeTimedOut));
}

#[test]
fn it_closes_after_the_required_successes_and_not_before() {
    let (mut breaker, now) = probing(1, 3);
    for left in [2, 1, 0] {
        let probe = breaker.admit(now).unwrap();
        breaker.take_effects();
        assert!(succeed(&mut breaker, probe, now));
        assert!(
            breaker.take_effects().wake_waiters,
            "those who wait may take the free place"
        );
        assert_eq!(state(&mut breaker, now) == State::Closed, left == 0);
    }
}

#[test]
fn one_failure_among_the_probes_opens_it_and_the_rest_are_stale() {
    let (mut breaker, now) = probing(3, 1);
    let [first, second, third] = [(); 3].map(|()| breaker.admit(now).unwrap());
    assert!(fail_probe(&mut breaker, second, now));
    assert!(!succeed(&mut breaker, first, now) && !fail_probe(&mut breaker, third, now));
    assert_eq!(snapshot(&mut breaker, now).trips, 2);
}

#[test]
fn a_throttled_or_slow_probe_does_not_close_the_circuit() {
    for (outcome, reason) in [
        (
            outcome(Verdict::Throttled, Instant::now()),
            Reason::ProbeFailed,
        ),
        (
            CallOutcome {
                slow: true,
                ..outcome(Verdict::Success, Instant::now())
            },
            Reason::ProbeSlow,
        ),
    ] {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        assert!(record(
            &mut breaker,
            probe,
            CallOutcome { now, ..outcome },
            0
        ));
        assert_eq!(snapshot(&mut breaker, now).last_reason, Some(reason));
    }
}

#[test]
fn the_open_time_grows_while_probes_fail_and_starts_again_after_closing() {
    let cooldown = Cooldown::from_fn(|| (1..).map(Duration::from_secs));
    let (mut breaker, mut now) = (
        Breaker::new(BreakerSettings {
            cooldown,
            ..settings()
        }),
        Instant::now(),
    );
    fail(&mut breaker, 2, None, now);
    for seconds in 1..5 {
        now += seconds * SECOND;
        assert!(!may_admit(&mut breaker, now - Duration::from_nanos(1)));
        let probe = breaker.admit(now).unwrap();
        fail_probe(&mut breaker, probe, now);
    }
    now += 5 * SECOND;
    let probe = breaker.admit(now).unwrap();
    assert!(succeed(&mut breaker, probe, now));
    fail(&mut breaker, 2, None, now);
    assert_eq!(
        state(&mut breaker, now),
        State::Open {
            until: Some(now + SECOND)
        }
    );
}

#[test]
fn a_ratio_includes_calls_that_the_breaker_has_not_recorded() {
    let trip = Trip::failure_ratio(Ratio::HALF);
    let (mut breaker, now) = (
        Breaker::new(BreakerSettings { trip, ..settings() }),
        Instant::now(),
    );
    let mut judged = |verdict, succeeded| {
        let call_id = breaker.admit(now).unwrap();
        let external = ExternalCounts {
            consecutive_failures: 0,
            succeeded,
            slice: 0,
        };
        breaker.record(call_id, outcome(verdict, now), external);
        snapshot(&mut breaker, now).last_reason
    };
    assert_eq!(judged(Verdict::Failure, 2), None, "three calls are too few");
    assert_eq!(judged(Verdict::Throttled, 3), None, "two of five");
    assert_eq!(judged(Verdict::Failure, 3), Some(Reason::FailureRatio));
}

#[test]
fn a_success_does_not_open_the_circuit_even_if_it_is_the_last_of_enough_calls() {
    let trip = Trip::failure_ratio(Ratio::HALF);
    let (mut breaker, now) = (
        Breaker::new(BreakerSettings { trip, ..settings() }),
        Instant::now(),
    );
    for (verdict, succeeded) in [
        (Verdict::Failure, 0),
        (Verdict::Failure, 0),
        (Verdict::Success, 1),
    ] {
        let call_id = breaker.admit(now).unwrap();
        breaker.record(
            call_id,
            outcome(verdict, now),
            ExternalCounts {
                consecutive_failures: 0,
                succeeded,
                slice: 0,
            },
        );
    }
    assert_eq!(state(&mut breaker, now), State::Closed);
}

#[test]
fn a_requested_trip_opens_a_closed_and_automatic_circuit_only() {
    let (mut breaker, now) = breaker();
    breaker.trip(now);
    let until = Some(now + 10 * SECOND);
    assert_eq!(state(&mut breaker, now), State::Open { until });
    assert_eq!(
        snapshot(&mut breaker, now).last_reason,
        Some(Reason::Requested)
    );
    breaker.trip(now + SECOND);
    assert_eq!(state(&mut breaker, now + SECOND), State::Open { until });
    breaker.set_mode(Mode::ForcedClosed, now);
    breaker.trip(now);
    assert_eq!(state(&mut breaker, now), State::Closed);
    assert_eq!(snapshot(&mut breaker, now).trips, 1);
}

#[test]
fn an_iterator_that_panics_has_ended() {
    let cooldown = Cooldown::from_fn(|| {
        [3 * SECOND]
            .into_iter()
            .chain(std::iter::from_fn(|| panic!("the user's")))
    });
    let (mut breaker, now) = (
        Breaker::new(BreakerSettings {
            cooldown,
            ..settings()
        }),
        Instant::now(),
    );
    assert!(fail(&mut breaker, 2, None, now));
    let now = now + 3 * SECOND;
    let probe = breaker.admit(now).unwrap();
    assert!(fail_probe(&mut breaker, probe, now));
    assert_eq!(
        state(&mut breaker, now),
        State::Open {
            until: Some(now + 3 * SECOND)
        }
    );
    assert_eq!(breaker.take_effects().transitions.len(), 3);
}
