//! Every interleaving: `.ci/loom -p tower-circuit`.

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    task::{Wake, Waker},
    time::Duration,
};

use loom::{sync::Arc, thread};
use tokio::time::Instant;
use tower_outcome::Verdict;

use super::{
    Core, Effects, WaiterId,
    packed::{AtomicState, CallId, PackedState, Tag},
    window::{ShardWindow, instant},
};
use crate::{
    Cooldown, Mode, Trip,
    breaker::{Breaker, BreakerSettings, CallOutcome, ProbeSettings},
};

/// Opens at the second failure in a row, for no time at all.
fn core() -> (Arc<Core>, Instant) {
    let probes = ProbeSettings {
        max_concurrent: 1,
        successes: 1,
        deadline: Duration::from_secs(1),
    };
    let trip = Trip::consecutive(2);
    let cooldown = Cooldown::fixed(Duration::ZERO);
    let rules = BreakerSettings {
        trip,
        min_calls: 1,
        cooldown,
        probes,
        budget: None,
    };
    (
        Arc::new(Core::new(rules, Duration::from_secs(10), 1)),
        instant(1),
    )
}

fn half_open() -> (Arc<Core>, CallId, Instant) {
    let (core, now) = core();
    for _ in 0..2 {
        let call_id = core.state().admit().unwrap();
        assert!(record(&core, call_id, Verdict::Failure, now));
    }
    let probe = core.with_breaker(|breaker| breaker.admit(now)).0.unwrap();
    assert!(probe.is_probe());
    (core, probe, now)
}

fn record(core: &Core, call_id: CallId, verdict: Verdict, now: Instant) -> bool {
    let (is_current, effects) = core.record(
        call_id,
        CallOutcome {
            verdict,
            slow: false,
            hint: None,
            now,
        },
    );
    effects.wakers.into_iter().for_each(Waker::wake);
    is_current
}

/// As `Shared` does it.
fn succeed(core: &Core, call_id: CallId, now: Instant) -> bool {
    let shard = core.shards.iter().next().unwrap();
    core.record_success(shard, call_id, || now) || core.record_later_success(shard, call_id, now)
}

#[test]
fn concurrent_failures_and_a_success_are_recorded_in_some_order() {
    loom::model(|| {
        let (core, now) = core();
        let failing = [(); 2].map(|()| core.state().admit().unwrap());
        let succeeding = core.state().admit().unwrap();
        let other = core.clone();
        let success = thread::spawn(move || succeed(&other, succeeding, now));
        let failed = failing.map(|call_id| record(&core, call_id, Verdict::Failure, now));
        let succeeded = success.join().unwrap();
        // The success is recorded first, last or in between; there are no other results.
        let state = core.state();
        let record = (state.is_closed(), state.consecutive_failures(), succeeded);
        assert_eq!(
            failed,
            [true, true],
            "nothing else could have ended this generation"
        );
        // If both failures opened it, two failures, the success came before the first or after the last.
        assert!(
            [(false, 0, true), (false, 0, false), (true, 1, true)].contains(&record),
            "{record:?}"
        );
        assert!(!record.0 || core.snapshot(now).0.window.succeeded == 1);
    });
}

#[test]
fn packed_state_and_breaker_agree_after_a_race_of_transitions() {
    loom::model(|| {
        let (core, probe, now) = half_open();
        let other = core.clone();
        let forced = thread::spawn(move || {
            let _ = other.with_breaker(|breaker| breaker.set_mode(Mode::ForcedOpen, now));
        });
        record(&core, probe, Verdict::Success, now);
        forced.join().unwrap();
        assert_eq!(core.snapshot(now).0.mode, Mode::ForcedOpen);
        assert!(!core.state().is_closed());
        assert!(core.state().admit().is_none() && core.state().admit_fast().is_none());
        assert_eq!(
            core.rejection(now).unwrap().retry_after(),
            None,
            "known without the lock, too"
        );
    });
}

#[test]
fn a_rejection_without_the_lock_is_never_later_than_the_transition_that_ends_it() {
    loom::model(|| {
        let (core, now) = core();
        let _ = core.with_breaker(|breaker| breaker.set_mode(Mode::ForcedOpen, now));
        let done = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let (other, is_done) = (core.clone(), done.clone());
        let freed = thread::spawn(move || {
            let _ = other.with_breaker(|breaker| breaker.set_mode(Mode::Automatic, now));
            is_done.store(true, loom::sync::atomic::Ordering::Release);
        });
        let before = done.load(loom::sync::atomic::Ordering::Acquire);
        let refused = core.rejection(now).is_some();
        assert!(
            !(before && refused),
            "a thread that knows of the transition is not rejected"
        );
        freed.join().unwrap();
        assert!(core.rejection(now).is_none());
    });
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// A gate polls while a slot is freed: it must get the slot or be woken.
fn polls_while(freed: fn(&Core, CallId, Instant) -> Effects) {
    loom::model(move || {
        let (core, probe, now) = half_open();
        let other = core.clone();
        let freeing = thread::spawn(move || {
            freed(&other, probe, now)
                .wakers
                .into_iter()
                .for_each(Waker::wake)
        });
        let woken = std::sync::Arc::new(Woken(AtomicBool::new(false)));
        let mut waiter = WaiterId::default();
        let (answer, _) = core.reserve_or_wait(&mut waiter, woken.clone().into(), now);
        freeing.join().unwrap();
        assert!(answer.is_ok() || woken.0.load(SeqCst), "a lost wakeup");
    });
}

#[test]
fn a_probe_that_is_returned_while_a_gate_polls_is_reserved_or_wakes_it() {
    polls_while(|core, probe, now| core.with_breaker(|breaker| breaker.forget(probe, now)).1);
}

#[test]
fn a_probe_that_succeeds_while_a_gate_polls_wakes_it() {
    polls_while(|core, probe, now| {
        core.record(
            probe,
            CallOutcome {
                verdict: Verdict::Success,
                slow: false,
                hint: None,
                now,
            },
        )
        .1
    });
}

#[test]
fn a_reset_while_a_gate_polls_wakes_it() {
    polls_while(|core, _, _| core.with_breaker(Breaker::reset).1);
}

#[test]
fn a_gate_that_is_dropped_while_a_slot_is_freed_takes_no_wakeup_from_another() {
    loom::model(|| {
        let (core, probe, now) = half_open();
        let [gone, waits] = [(); 2].map(|()| std::sync::Arc::new(Woken(AtomicBool::new(false))));
        let [mut of_gone, mut of_waits] = [(); 2].map(|()| WaiterId::default());
        let (first, _) = core.reserve_or_wait(&mut of_gone, gone.into(), now);
        let (second, _) = core.reserve_or_wait(&mut of_waits, waits.clone().into(), now);
        assert!(first.is_err() && second.is_err());
        let other = core.clone();
        let leaving = thread::spawn(move || other.deregister(&mut of_gone));
        let (_, effects) = core.with_breaker(|breaker| breaker.forget(probe, now));
        effects.wakers.into_iter().for_each(Waker::wake);
        leaving.join().unwrap();
        assert!(waits.0.load(SeqCst), "a lost wakeup");
    });
}

#[test]
fn a_success_that_races_a_transition_is_in_the_totals_or_stale_and_not_in_the_next_window() {
    loom::model(|| {
        let (core, now) = core();
        let call_id = core.state().admit_fast().unwrap();
        let other = core.clone();
        let success = thread::spawn(move || succeed(&other, call_id, now));
        let _ = core.with_breaker(Breaker::reset);
        let next = core.state().admit_fast().unwrap();
        assert!(succeed(&core, next, now));
        let counted_generation = success.join().unwrap();
        let snapshot = core.snapshot(now).0;
        assert_eq!(
            (snapshot.window.succeeded, snapshot.totals.succeeded),
            (1, 1 + u64::from(counted_generation))
        );
    });
}

#[test]
fn a_success_of_the_next_generation_is_in_its_window_however_early_it_comes() {
    loom::model(|| {
        let (core, now) = core();
        let other = core.clone();
        let early = thread::spawn(move || {
            let call_id = other.state().admit_fast().unwrap();
            (call_id.generation(), succeed(&other, call_id, now))
        });
        let _ = core.with_breaker(Breaker::reset);
        let (generation, counted_generation) = early.join().unwrap();
        let window = core.snapshot(now).0.window;
        assert_eq!(
            window.succeeded,
            u64::from(counted_generation && generation == 1)
        );
    });
}

/// A ring, and the packed state with the generation that counts in it.
fn ring(generation: u32) -> Arc<(ShardWindow, AtomicState)> {
    Arc::new((
        ShardWindow::new(),
        AtomicState::new(PackedState::new(Tag::Closed, generation, None)),
    ))
}

fn add(ring: &(ShardWindow, AtomicState), generation: u32, slice: u32) {
    ring.0.add(CallId::call(generation, false), slice, &ring.1);
}

#[test]
fn a_call_that_races_the_end_of_a_slice_is_counted_in_either_slice() {
    loom::model(|| {
        let ring = ring(1);
        // The same slot, a whole ring apart.
        add(&ring, 1, 4);
        let other = ring.clone();
        let late = thread::spawn(move || add(&other, 1, 4));
        add(&ring, 1, 20);
        late.join().unwrap();
        let within = ring.0.sum(1, 20);
        assert!(within == 1 || within == 2, "{within}");
        assert_eq!(ring.0.total(), 3, "the total includes all");
    });
}

#[test]
fn a_total_that_is_read_while_a_slice_begins_counts_nothing_twice() {
    loom::model(|| {
        let ring = ring(1);
        add(&ring, 1, 4);
        add(&ring, 1, 4);
        let other = ring.clone();
        let next = thread::spawn(move || add(&other, 1, 20));
        let total = ring.0.total();
        assert!(total <= 3, "{total}");
        next.join().unwrap();
        assert_eq!(ring.0.total(), 3);
    });
}

#[test]
fn two_calls_in_one_slice_are_two() {
    loom::model(|| {
        let ring = ring(1);
        let other = ring.clone();
        let second = thread::spawn(move || add(&other, 1, 4));
        add(&ring, 1, 4);
        second.join().unwrap();
        assert_eq!((ring.0.sum(1, 4), ring.0.total()), (2, 2));
    });
}

#[test]
fn a_late_call_of_an_earlier_generation_counts_and_removes_nothing() {
    loom::model(|| {
        let ring = ring(1);
        add(&ring, 1, 4);
        let other = ring.clone();
        let late = thread::spawn(move || add(&other, 1, 4));
        // As `Core::collect_effects` does it.
        ring.0.clear();
        ring.1.enter(PackedState::new(Tag::Closed, 2, None));
        add(&ring, 2, 4);
        late.join().unwrap();
        assert_eq!(ring.0.sum(2, 4), 1);
        assert_eq!(ring.0.total(), 3);
    });
}
