//! Every order in which in-flight guards may be dropped while the drain closes, and in which connections may contend for
//! their limit. The counters themselves, with loom's atomics in place of the standard library's; loom needs no `--cfg` for
//! that, with which tokio would have no sockets.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the counters' rooms are compiled here without their neighbours"
)]

#[path = "../src/count.rs"]
mod count;
#[path = "../src/report.rs"]
mod report;
#[path = "../src/slots.rs"]
mod slots;
mod sync {
    pub(crate) use loom::sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    };
}

/// What `report.rs` looks for in the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {}

use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};

use loom::{model::Builder, sync::Arc, thread};

use self::{
    count::{Count, Kind},
    slots::Slots,
};

/// Every order with at most three preemptions, which is enough for most bugs, according to loom's documentation.
fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// Guards of `kinds` are dropped in separate threads while this one closes and counts; returns how many of them observed
/// the end.
fn race(kinds: &'static [Kind]) {
    model(move || {
        let count = Arc::new(Count::default());
        kinds.iter().for_each(|kind| count.enter(*kind));
        let leaving: Vec<_> = kinds
            .iter()
            .map(|kind| {
                let count = count.clone();
                thread::spawn(move || count.leave(*kind, true))
            })
            .collect();
        count.close();
        let empty = count.census().is_empty();
        let lasts = leaving
            .into_iter()
            .map(|thread| usize::from(thread.join().unwrap()))
            .sum::<usize>();
        assert!(lasts <= 1, "only one is the last");
        assert!(empty || lasts == 1, "one of them must observe the end");
        assert!(count.census().is_empty());
    });
}

#[test]
fn the_end_is_never_missed_when_two_guards_are_dropped_while_it_closes() {
    race(&[Kind::Guest, Kind::Guest]);
}

#[test]
fn nor_when_those_of_a_request_and_its_accept_loop_are() {
    race(&[Kind::Request, Kind::Loop]);
}

#[test]
fn a_guard_created_while_it_closes_is_waited_for() {
    model(|| {
        let count = Arc::new(Count::default());
        count.enter(Kind::Loop);
        let accepting = thread::spawn({
            let count = count.clone();
            move || {
                count.enter(Kind::Guest);
                let loop_was_last = count.leave(Kind::Loop, false);
                assert!(!loop_was_last, "a guard is left");
                count.leave(Kind::Guest, true)
            }
        });
        count.close();
        let empty = count.census().is_empty();
        let last = accepting.join().unwrap();
        assert!(empty || last);
    });
}

#[test]
fn a_limit_is_never_exceeded_and_each_place_comes_back() {
    model(|| {
        let (slots, inside) = (
            Slots::new(1),
            Arc::new(loom::sync::atomic::AtomicUsize::new(0)),
        );
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (slots, inside) = (slots.clone(), inside.clone());
                thread::spawn(move || {
                    let Some(place) = slots.take() else {
                        return false;
                    };
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "one more than there may be");
                    inside.fetch_sub(1, SeqCst);
                    drop(place);
                    true
                })
            })
            .collect();
        let served = threads
            .into_iter()
            .map(|thread| usize::from(thread.join().unwrap()))
            .sum::<usize>();
        assert!(served >= 1, "at least one gets a permit");
        assert_eq!(slots.taken(), 0);
        assert!(slots.take().is_some(), "and so does a later caller");
    });
}

#[test]
fn a_place_that_is_given_back_is_available_to_the_next_caller() {
    model(|| {
        let slots = Slots::new(1);
        let place = slots.take().unwrap();
        let released = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let giver = thread::spawn({
            let released = released.clone();
            move || {
                drop(place);
                released.store(true, Release);
            }
        });
        if released.load(Acquire) {
            assert!(
                slots.take().is_some(),
                "a caller that has seen the release gets it"
            );
        }
        giver.join().unwrap();
    });
}
