//! Every order in which threads can meet at a queue and its bucket.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::Wake,
};

use loom::{model::Builder, sync::Arc, thread};

use super::*;
use crate::{Quota, gcra::AtomicTat};

/// Counts how often it was woken. Not loom's, because nothing depends on when that is seen.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[derive(Default)]
struct Bucket {
    tat: AtomicTat,
    queues: WaitQueues<()>,
}

/// One token a decade, one at a time.
fn charge(now: u64) -> Charge {
    let quota = Quota::every(Duration::from_nanos(10)).unwrap();
    Charge::one(now, quota.burst(1))
}

impl Bucket {
    /// Empty until 110, and `waiters` requests wait.
    fn with_waiters<const N: usize>() -> (Arc<Self>, [Turn; N]) {
        let bucket = Self::default();
        assert_eq!(bucket.take(100), Ok(Turn::Came(100)));
        let waiters = [(); N].map(|()| bucket.take(100).unwrap());
        (Arc::new(bucket), waiters)
    }

    fn take(&self, now: u64) -> Result<Turn, u64> {
        let charge = charge(now).with_max_wait(1_000);
        let took = self.queues.push(&charge, || {
            let debt = self.tat.take(&charge)?;
            Ok(((), (), debt))
        });
        took.map(|((), turn)| turn)
    }

    /// When its turn came, or comes.
    fn poll(&self, turn: Turn, now: u64, wakes: &std::sync::Arc<Wakes>) -> Answer {
        let Turn::Queued(id) = turn else {
            panic!("it waits")
        };
        let waker = wakes.clone().into();
        self.queues.with((), |queue| queue.poll(id, now, waker)).0
    }

    fn leave(&self, turn: Turn, now: u64) {
        self.queues.with((), |queue| {
            self.tat.refund(queue.leave(&charge(100), turn, now));
        });
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn one_that_leaves_while_the_next_asks_for_its_turn_makes_it_ask_again() {
    check(|| {
        let (bucket, [first, second]) = Bucket::with_waiters();
        let other = thread::spawn({
            let bucket = bucket.clone();
            move || bucket.leave(first, 105)
        });
        let wakes = std::sync::Arc::<Wakes>::default();
        let Answer::At(known) = bucket.poll(second, 105, &wakes) else {
            panic!("its turn has not come")
        };
        other.join().unwrap();
        assert!(known == 110 || wakes.0.load(SeqCst) == 1, "{known}");
        assert!(matches!(
            bucket.poll(second, 110, &wakes),
            Answer::Came(110)
        ));
        assert_eq!(bucket.tat.debt(110), 10);
    });
}

#[test]
fn a_newcomer_queues_behind_the_present_waiters_and_not_behind_one_that_leaves() {
    check(|| {
        let (bucket, [first, second]) = Bucket::with_waiters();
        let other = thread::spawn({
            let bucket = bucket.clone();
            move || bucket.leave(first, 105)
        });
        let newcomer = bucket.take(105).unwrap();
        other.join().unwrap();
        let wakes = std::sync::Arc::<Wakes>::default();
        assert!(matches!(
            bucket.poll(second, 110, &wakes),
            Answer::Came(110)
        ));
        assert!(matches!(
            bucket.poll(newcomer, 110, &wakes),
            Answer::At(120)
        ));
        assert_eq!(bucket.tat.debt(110), 20);
    });
}

#[test]
fn neighbours_that_leave_together_give_back_what_both_cost() {
    check(|| {
        let (bucket, [first, second, third]) = Bucket::with_waiters();
        let wakes = std::sync::Arc::<Wakes>::default();
        assert!(matches!(bucket.poll(third, 105, &wakes), Answer::At(130)));
        let other = thread::spawn({
            let bucket = bucket.clone();
            move || bucket.leave(first, 105)
        });
        bucket.leave(second, 105);
        other.join().unwrap();
        assert_eq!(wakes.0.load(SeqCst), 1);
        assert!(matches!(bucket.poll(third, 110, &wakes), Answer::Came(110)));
        assert_eq!(bucket.tat.debt(110), 10);
    });
}

#[test]
fn what_one_that_waits_gives_back_passes_one_that_does_not_wait_once() {
    check(|| {
        let (bucket, [only]) = Bucket::with_waiters();
        let other = thread::spawn({
            let bucket = bucket.clone();
            move || bucket.tat.take(&charge(110)).is_ok()
        });
        // By a clock that is a little behind.
        bucket.leave(only, 109);
        let passed = other.join().unwrap();
        assert_eq!(bucket.tat.debt(110), if passed { 10 } else { 0 });
        assert_eq!(bucket.tat.take(&charge(110)).is_ok(), !passed);
    });
}
