//! Every interleaving: `.ci/loom -p tower-circuit`.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    task::{Wake, Waker},
    time::Duration,
};

use loom::{sync::Arc, thread};
use tokio::time::Instant;
use tower_outcome::Verdict;

use crate::{
    Cooldown, Mode, Trip,
    breaker::{Breaker, Ended, Ending, Rules},
    core::{Core, News, Seat},
    probe::ProbeRules,
    stripe::Stripes,
    window::{Ring, instant},
    word::{SharedWord, Tag, Ticket, Word},
};

/// Opens at the second failure in a row, for no time at all.
fn core() -> (Arc<Core>, Instant) {
    let one = NonZeroU32::MIN;
    let probes = ProbeRules {
        places: one,
        successes: one,
        deadline: Duration::from_secs(1),
    };
    let trip = Trip::consecutive(NonZeroU32::new(2).unwrap());
    let cooldown = Cooldown::fixed(Duration::ZERO);
    let rules = Rules {
        trip,
        at_least: one,
        cooldown,
        probes,
        asks: false,
        budget: None,
    };
    (
        Arc::new(Core::new(rules, Duration::from_secs(10), Stripes::ONE)),
        instant(1),
    )
}

fn half_open() -> (Arc<Core>, Ticket, Instant) {
    let (core, now) = core();
    for _ in 0..2 {
        let ticket = core.admit_closed().unwrap();
        assert!(end(&core, ticket, Verdict::Failure, now));
    }
    let probe = core.ask(|breaker| breaker.admit(now)).0.unwrap();
    assert!(probe.is_probe());
    (core, probe, now)
}

fn end(core: &Core, ticket: Ticket, verdict: Verdict, now: Instant) -> bool {
    let (ended, news) = core.end(
        ticket,
        Ending {
            verdict,
            slow: false,
            hint: None,
            now,
            judged: true,
        },
    );
    news.wakers.into_iter().for_each(Waker::wake);
    !matches!(ended, Ended::Stale)
}

/// As the shell does it.
fn succeed(core: &Core, ticket: Ticket, now: Instant) -> bool {
    let lane = core.lanes().iter().next().unwrap();
    core.succeed(lane, ticket, || now) || core.succeed_late(lane, ticket, now)
}

#[test]
fn failures_and_a_success_at_once_are_told_in_some_order() {
    loom::model(|| {
        let (core, now) = core();
        let failing = [(); 2].map(|()| core.admit_closed().unwrap());
        let succeeding = core.admit_closed().unwrap();
        let other = core.clone();
        let success = thread::spawn(move || succeed(&other, succeeding, now));
        let failed = failing.map(|ticket| end(&core, ticket, Verdict::Failure, now));
        let succeeded = success.join().unwrap();
        // The success came first, last or between: each gives another end, and no other ends exist.
        let word = core.word();
        let end = (word.is_closed(), word.failures_in_row(), succeeded);
        assert_eq!(
            failed,
            [true, true],
            "nobody else could have ended this generation"
        );
        // Of a row that was opened by two failures, the success came before the first or after the last.
        assert!(
            [(false, 0, true), (false, 0, false), (true, 1, true)].contains(&end),
            "{end:?}"
        );
        assert!(!end.0 || core.snapshot(now).0.window.succeeded == 1);
    });
}

#[test]
fn the_word_and_the_heart_agree_after_a_race_of_transitions() {
    loom::model(|| {
        let (core, probe, now) = half_open();
        let other = core.clone();
        let forced = thread::spawn(move || {
            let _ = other.ask(|breaker| breaker.set_mode(Mode::ForcedOpen, now));
        });
        end(&core, probe, Verdict::Success, now);
        forced.join().unwrap();
        assert_eq!(core.snapshot(now).0.mode, Mode::ForcedOpen);
        assert!(!core.word().is_closed());
        assert!(core.admit_closed().is_none() && core.admit_simply().is_none());
        assert_eq!(
            core.shut(now).unwrap().retry_after(),
            None,
            "known without the lock, too"
        );
    });
}

#[test]
fn a_refusal_without_the_lock_is_never_later_than_the_state_that_admits() {
    loom::model(|| {
        let (core, now) = core();
        let _ = core.ask(|breaker| breaker.set_mode(Mode::ForcedOpen, now));
        let done = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let (other, is_done) = (core.clone(), done.clone());
        let freed = thread::spawn(move || {
            let _ = other.ask(|breaker| breaker.set_mode(Mode::Automatic, now));
            is_done.store(true, loom::sync::atomic::Ordering::Release);
        });
        let before = done.load(loom::sync::atomic::Ordering::Acquire);
        let refused = core.shut(now).is_some();
        assert!(
            !(before && refused),
            "a probe is possible, and whoever knows it may rely on it"
        );
        freed.join().unwrap();
        assert!(core.shut(now).is_none());
    });
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// A gate asks while its place is freed: it must not be refused and then not hear of it.
fn asks_while(freed: fn(&Core, Ticket, Instant) -> News) {
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
        let mut seat = Seat::default();
        let (answer, _) = core.reserve_or_wait(&mut seat, woken.clone().into(), now);
        freeing.join().unwrap();
        assert!(answer.is_ok() || woken.0.load(SeqCst), "a lost wakeup");
    });
}

#[test]
fn a_probe_given_back_while_a_gate_asks_is_had_or_heard_of() {
    asks_while(|core, probe, now| core.ask(|breaker| breaker.forget(probe, now)).1);
}

#[test]
fn a_probe_that_succeeds_while_a_gate_asks_is_heard_of() {
    asks_while(|core, probe, now| {
        core.end(
            probe,
            Ending {
                verdict: Verdict::Success,
                slow: false,
                hint: None,
                now,
                judged: true,
            },
        )
        .1
    });
}

#[test]
fn a_circuit_that_is_closed_by_hand_while_a_gate_asks_is_heard_of() {
    asks_while(|core, _, _| core.ask(Breaker::reset).1);
}

#[test]
fn a_gate_that_goes_away_while_a_place_is_freed_takes_no_other_gates_turn() {
    loom::model(|| {
        let (core, probe, now) = half_open();
        let [gone, waits] = [(); 2].map(|()| std::sync::Arc::new(Woken(AtomicBool::new(false))));
        let [mut of_gone, mut of_waits] = [(); 2].map(|()| Seat::default());
        let (first, _) = core.reserve_or_wait(&mut of_gone, gone.into(), now);
        let (second, _) = core.reserve_or_wait(&mut of_waits, waits.clone().into(), now);
        assert!(first.is_err() && second.is_err());
        let other = core.clone();
        let leaving = thread::spawn(move || other.leave(&mut of_gone));
        let (_, news) = core.ask(|breaker| breaker.forget(probe, now));
        news.wakers.into_iter().for_each(Waker::wake);
        leaving.join().unwrap();
        assert!(waits.0.load(SeqCst), "a lost wakeup");
    });
}

#[test]
fn a_success_that_races_a_transition_is_in_the_totals_or_stale_and_not_in_the_next_window() {
    loom::model(|| {
        let (core, now) = core();
        let ticket = core.admit_simply().unwrap();
        let other = core.clone();
        let success = thread::spawn(move || succeed(&other, ticket, now));
        let _ = core.ask(Breaker::reset);
        let next = core.admit_simply().unwrap();
        assert!(succeed(&core, next, now));
        let counted = success.join().unwrap();
        let snapshot = core.snapshot(now).0;
        assert_eq!(
            (snapshot.window.succeeded, snapshot.totals.succeeded),
            (1, 1 + u64::from(counted))
        );
    });
}

#[test]
fn a_success_of_the_next_generation_is_in_its_window_however_early_it_comes() {
    loom::model(|| {
        let (core, now) = core();
        let other = core.clone();
        let early = thread::spawn(move || {
            let ticket = other.admit_simply().unwrap();
            (ticket.generation(), succeed(&other, ticket, now))
        });
        let _ = core.ask(Breaker::reset);
        let (generation, counted) = early.join().unwrap();
        let window = core.snapshot(now).0.window;
        assert_eq!(window.succeeded, u64::from(counted && generation == 1));
    });
}

/// A ring, and the word of the generation that counts in it.
fn ring(generation: u32) -> Arc<(Ring, SharedWord)> {
    Arc::new((
        Ring::new(),
        SharedWord::new(Word::new(Tag::Closed, generation, None)),
    ))
}

fn add(ring: &(Ring, SharedWord), generation: u32, turn: u32) {
    ring.0.add(Ticket::call(generation, false), turn, &ring.1);
}

#[test]
fn a_call_that_races_a_turn_lands_in_either_neighbour_and_never_nowhere() {
    loom::model(|| {
        let ring = ring(1);
        // The same slot, a lap apart: the hardest turn there is.
        add(&ring, 1, 4);
        let other = ring.clone();
        let late = thread::spawn(move || add(&other, 1, 4));
        add(&ring, 1, 20);
        late.join().unwrap();
        let within = ring.0.sum(1, 20);
        assert!(within == 1 || within == 2, "{within}");
        assert_eq!(ring.0.total(), 3, "and all that there ever were are known");
    });
}

#[test]
fn a_total_that_is_read_while_a_turn_begins_counts_nothing_twice() {
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
fn two_calls_in_one_turn_are_two() {
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
fn a_late_call_of_an_earlier_generation_neither_counts_nor_takes_away() {
    loom::model(|| {
        let ring = ring(1);
        add(&ring, 1, 4);
        let other = ring.clone();
        let late = thread::spawn(move || add(&other, 1, 4));
        // As `Core::harvest` does it.
        ring.0.sweep();
        ring.1.enter(Word::new(Tag::Closed, 2, None));
        add(&ring, 2, 4);
        late.join().unwrap();
        assert_eq!(ring.0.sum(2, 4), 1);
        assert_eq!(ring.0.total(), 3);
    });
}
