//! The queue beside an oracle that keeps a plain list and counts everything anew each time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Wake,
};

use proptest::prelude::*;

use super::*;
use crate::{Quota, gcra::AtomicTat};

fn quota(interval: u64, burst: u32) -> Quota {
    Quota::every(Duration::from_nanos(interval))
        .unwrap()
        .burst(burst)
}

/// Counts how often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A bucket and its queue.
#[derive(Default)]
struct Bucket {
    tat: AtomicTat,
    queues: WaitQueues<()>,
}

impl Bucket {
    fn take(&self, charge: &Charge) -> Result<Turn, u64> {
        let took = self.queues.push(charge, || {
            let debt = self.tat.take(charge)?;
            Ok(((), (), debt))
        });
        took.map(|((), turn)| turn)
    }

    fn poll(&self, waiter: WaiterId, now: u64, waker: Waker) -> Answer {
        self.queues
            .with((), |queue| queue.poll(waiter, now, waker))
            .0
    }

    fn leave(&self, charge: &Charge, turn: Turn, now: u64) {
        self.queues.with((), |queue| {
            self.tat.refund(queue.leave(charge, turn, now));
        });
    }
}

/// A request that was not refused.
struct Request {
    charge: Charge,
    turn: Turn,
    /// The turn that it was given when it came.
    given: u64,
    /// The turn that it knows of, if it waits and has asked.
    knows: Option<u64>,
    wakes: Arc<Wakes>,
    woken: usize,
    /// It has called, or left.
    is_over: bool,
}

impl Request {
    fn is_woken(&self) -> bool {
        self.wakes.0.load(SeqCst) > self.woken
    }
}

/// A list of all that wait for a bucket of one quota, and what it owes for those that were let in.
#[derive(Default)]
struct Oracle {
    tat: u64,
    waiting: Vec<(usize, u64)>,
    /// The requests that were let in, and when.
    admitted: Vec<(usize, u64)>,
}

impl Oracle {
    /// When the bucket is full again, if no waiter leaves.
    fn end(&self) -> u64 {
        self.tat + self.waiting.iter().map(|(_, cost)| cost).sum::<u64>()
    }

    fn turn(&self, name: usize, depth: u64) -> Option<u64> {
        let mut end = self.tat;
        self.waiting.iter().find_map(|&(waiting, cost)| {
            end += cost;
            (waiting == name).then(|| end.saturating_sub(depth))
        })
    }

    fn advance(&mut self, now: u64, depth: u64) {
        while let Some(&(name, cost)) = self.waiting.first()
            && let turn = (self.tat + cost).saturating_sub(depth)
            && turn <= now
        {
            self.waiting.remove(0);
            self.tat += cost;
            self.admitted.push((name, turn));
        }
    }

    fn take(
        &mut self,
        name: usize,
        now: u64,
        cost: u64,
        depth: u64,
        max_wait: u64,
    ) -> Result<u64, u64> {
        self.advance(now, depth);
        let end = self.end().max(now) + cost;
        let wait = end.saturating_sub(now + depth);
        if wait > max_wait {
            return Err(wait);
        }
        if wait == 0 {
            self.tat = end;
            self.admitted.push((name, now));
        } else {
            self.waiting.push((name, cost));
        }
        Ok(now + wait)
    }

    fn leave(&mut self, name: usize, now: u64, cost: u64, depth: u64) {
        self.advance(now, depth);
        if let Some(at) = self
            .waiting
            .iter()
            .position(|&(waiting, _)| waiting == name)
        {
            self.waiting.remove(at);
        } else if let Some(at) = self
            .admitted
            .iter()
            .position(|&(admitted, _)| admitted == name)
        {
            let (_, turn) = self.admitted.remove(at);
            self.tat -= cost.saturating_sub(now - turn);
        }
        self.advance(now, depth);
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// In tokens.
    Arrive(u32),
    /// Of those that have neither called nor left.
    Leave(usize),
    Poll(usize),
    PollAll,
    Tick(u64),
}

/// Both, side by side.
struct World {
    quota: Quota,
    max_wait: u64,
    now: u64,
    bucket: Bucket,
    oracle: Oracle,
    requests: Vec<Request>,
}

impl World {
    fn new(quota: Quota, max_wait: u64) -> Self {
        Self {
            quota,
            max_wait,
            now: 1_000,
            bucket: Bucket::default(),
            oracle: Oracle::default(),
            requests: Vec::new(),
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Arrive(tokens) => self.arrive(tokens),
            Act::Leave(number) => {
                if let Some(name) = self.present(number) {
                    self.leave(name);
                }
            }
            Act::Poll(number) => {
                if let Some(name) = self.present(number) {
                    self.poll(name);
                }
            }
            Act::PollAll => (0..self.requests.len())
                .filter(|&name| !self.requests[name].is_over)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|name| self.poll(name)),
            Act::Tick(step) => self.now += step,
        }
        self.check();
    }

    fn present(&self, number: usize) -> Option<usize> {
        let mut present = (0..self.requests.len()).filter(|&name| !self.requests[name].is_over);
        present.nth(number)
    }

    fn arrive(&mut self, tokens: u32) {
        let Some(charge) = Charge::tokens(self.now, self.quota, tokens) else {
            return;
        };
        let (name, depth) = (self.requests.len(), self.quota.depth());
        let expected = self
            .oracle
            .take(name, self.now, charge.cost(), depth, self.max_wait);
        let charge = charge.with_max_wait(self.max_wait);
        let turn = self.bucket.take(&charge);
        assert_eq!(turn.err(), expected.err(), "the wait that is told");
        let (Ok(turn), Ok(given)) = (turn, expected) else {
            return;
        };
        assert_eq!(turn == Turn::Came(self.now), given == self.now);
        self.requests.push(Request {
            charge,
            turn,
            given,
            knows: None,
            wakes: Arc::default(),
            woken: 0,
            is_over: false,
        });
    }

    fn poll(&mut self, name: usize) {
        let (now, depth, request) = (self.now, self.quota.depth(), &mut self.requests[name]);
        let Turn::Queued(waiter) = request.turn else {
            request.is_over = true;
            return;
        };
        request.woken = request.wakes.0.load(SeqCst);
        let answer = self.bucket.poll(waiter, now, request.wakes.clone().into());
        assert!(!request.is_woken(), "it wakes others, and not itself");
        self.oracle.advance(now, depth);
        match (answer, self.oracle.turn(name, depth)) {
            (Answer::Came(turn), None) => {
                assert!(self.oracle.admitted.contains(&(name, turn)), "at its turn");
                request.is_over = true;
            }
            (Answer::At(at), Some(turn)) => {
                assert!(turn <= at && at <= request.given, "{turn} {at}");
                let few = self.oracle.waiting.iter().take(FEW);
                assert!(
                    at == turn || few.clone().all(|(few, _)| *few != name),
                    "the first few know their turns"
                );
                request.knows = Some(at);
            }
            (answer, turn) => panic!("{answer:?}, and its turn is {turn:?}"),
        }
    }

    fn leave(&mut self, name: usize) {
        let (now, depth, request) = (self.now, self.quota.depth(), &mut self.requests[name]);
        self.oracle.leave(name, now, request.charge.cost(), depth);
        self.bucket.leave(&request.charge, request.turn, now);
        request.is_over = true;
    }

    fn check(&self) {
        let owes = self.oracle.end().saturating_sub(self.now);
        assert_eq!(self.bucket.tat.debt(self.now), owes, "the bucket's end");
        let mut queues = self.bucket.queues.lock();
        let mut queue = queues.get_mut(&());
        // The first few, as far as the queue has seen: they are woken if their timers are late.
        for (id, turn, _) in queue.iter_mut().flat_map(|queue| queue.first_few()) {
            let mut waiting = self.requests.iter().filter(|it| !it.is_over);
            if let Some(request) = waiting.find(|it| it.turn == Turn::Queued(id))
                && let Some(knows) = request.knows
            {
                assert!(
                    turn == knows || request.is_woken(),
                    "{turn} is the turn of one who knows of {knows}"
                );
            }
        }
        let waits = |it: &&Request| !it.is_over && matches!(it.turn, Turn::Queued(_));
        let present = self.requests.iter().filter(waits).count();
        let kept = queue.map_or(0, |queue| queue.waiters.len() + queue.admitted.len());
        assert_eq!(present, kept, "nobody is kept who is gone");
    }

    /// All that still wait come through when they are polled at their turns, in order.
    fn run_out(&mut self) {
        for _ in 0..10_000 {
            self.act(Act::PollAll);
            let next = self.requests.iter().filter(|it| !it.is_over);
            let Some(next) = next.filter_map(|it| it.knows).min() else {
                return assert_eq!(self.oracle.waiting, []);
            };
            self.now = self.now.max(next);
        }
        panic!("they wait for ever");
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1_u32..4).prop_map(Act::Arrive),
        3 => (0_usize..8).prop_map(Act::Leave),
        2 => (0_usize..8).prop_map(Act::Poll),
        1 => Just(Act::PollAll),
        3 => prop_oneof![0_u64..12, 0_u64..120].prop_map(Act::Tick),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn it_is_first_come_first_served_at_the_rate_when_any_leave(
        interval in 1_u64..40,
        burst in 1_u32..5,
        max_wait in 1_u64..1_000,
        acts in acts(),
    ) {
        let mut world = World::new(quota(interval, burst), max_wait);
        for act in acts {
            world.act(act);
        }
        world.run_out();
    }

    #[test]
    fn with_any_that_wait_and_leave_no_interval_sees_more_than_burst_and_rate(
        interval in 1_u64..40,
        burst in 1_u32..5,
        max_wait in 0_u64..1_000,
        acts in acts(),
    ) {
        let mut world = World::new(quota(interval, burst), max_wait);
        for act in acts {
            world.act(act);
        }
        world.run_out();
        let mut served: Vec<_> = world
            .oracle
            .admitted
            .iter()
            .map(|&(name, turn)| (turn, world.requests[name].charge.cost()))
            .collect();
        served.sort_unstable();
        for (first, &(from, _)) in served.iter().enumerate() {
            let mut cost = 0;
            for &(to, more) in &served[first..] {
                cost += more;
                prop_assert!(cost <= world.quota.depth() + (to - from), "{:?}", served);
            }
        }
    }

    /// Requests of several quotas draw from one bucket, and a new quota takes away what the bucket owed beyond it: then
    /// no request is
    /// let in by the order alone.
    #[test]
    fn no_request_is_let_in_later_than_on_arrival_with_any_quotas(
        quotas in prop::collection::vec((1_u64..200, 1_u32..5), 1..4),
        acts in prop::collection::vec((0_usize..5, 0_usize..8, 0_u64..60), 1..150),
    ) {
        let (bucket, mut now) = (Bucket::default(), 1_000);
        let mut waiting: Vec<(Charge, WaiterId, u64)> = Vec::new();
        for (what, number, step) in acts {
            match what {
                0 | 1 => {
                    let (interval, burst) = quotas[number % quotas.len()];
                    let charge = Charge::one(now, quota(interval, burst)).with_max_wait(500);
                    match bucket.take(&charge) {
                        Ok(Turn::Queued(id)) => {
                            let given = bucket.tat.debt(now) + now - charge.depth();
                            prop_assert!(given > now && given <= now + 500);
                            waiting.push((charge, id, given));
                        }
                        Ok(Turn::Came(at)) => prop_assert_eq!(at, now),
                        Err(_) => {
                            // As `QuotaCell::clamp_debt` does.
                            bucket.tat.lower(charge.empty_until() + 500);
                        }
                    }
                }
                2 if !waiting.is_empty() => {
                    let (charge, id, _) = waiting.remove(number % waiting.len());
                    bucket.leave(&charge, Turn::Queued(id), now);
                }
                _ => now += step,
            }
            waiting.retain(|&(_, id, given)| {
                match bucket.poll(id, now, Arc::<Wakes>::default().into()) {
                    Answer::Came(at) => {
                        assert!(at <= given);
                        false
                    }
                    Answer::At(at) => {
                        assert!(now < at && at <= given, "{now} {at} {given}");
                        true
                    }
                }
            });
        }
        // Each that leaves gives back no more than its own.
        let owed = bucket.tat.debt(now);
        let theirs: u64 = waiting.iter().map(|(charge, ..)| charge.cost()).sum();
        for (charge, id, _) in waiting {
            bucket.leave(&charge, Turn::Queued(id), now);
        }
        prop_assert!(bucket.tat.debt(now) + theirs >= owed);
        prop_assert!(bucket.queues.lock().is_empty());
    }
}

/// All orders of arrivals, departures and polls in six steps.
#[test]
fn in_a_small_world_every_order_of_events_equals_the_oracle() {
    const ACTS: [Act; 8] = [
        Act::Arrive(1),
        Act::Arrive(2),
        Act::Leave(0),
        Act::Leave(1),
        Act::Poll(1),
        Act::PollAll,
        Act::Tick(4),
        Act::Tick(10),
    ];
    fn go(acts: &mut Vec<Act>, steps: usize) {
        let mut world = World::new(quota(10, 2), 45);
        // Two pass, and two wait.
        (0..4).for_each(|_| world.arrive(1));
        world.act(Act::PollAll);
        acts.iter().for_each(|&act| world.act(act));
        world.run_out();
        if steps > 0 {
            for act in ACTS {
                acts.push(act);
                go(acts, steps - 1);
                acts.pop();
            }
        }
    }
    go(&mut Vec::new(), 5);
}

#[test]
fn one_that_leaves_wakes_a_few_tasks_however_many_wait() {
    let (bucket, quota) = (Bucket::default(), quota(10, 1));
    let charge = Charge::one(100, quota).with_max_wait(100_000);
    assert_eq!(bucket.take(&charge), Ok(Turn::Came(100)));
    let waiters: Vec<_> = (0..1_000)
        .map(|_| {
            let Ok(Turn::Queued(id)) = bucket.take(&charge) else {
                panic!("it waits")
            };
            let wakes = Arc::<Wakes>::default();
            bucket.poll(id, 100, wakes.clone().into());
            (id, wakes)
        })
        .collect();
    let woken = || {
        waiters
            .iter()
            .filter(|(_, wakes)| wakes.0.load(SeqCst) > 0)
            .count()
    };
    // From the middle: the first ones' turns are as they were.
    for (id, _) in &waiters[200..700] {
        bucket.leave(&charge, Turn::Queued(*id), 105);
    }
    assert_eq!(woken(), 0);
    // From the front: the next one's turn is the first one's.
    bucket.leave(&charge, Turn::Queued(waiters[0].0), 105);
    assert_eq!(woken(), FEW);
    assert!((1..=FEW).all(|next| waiters[next].1.0.load(SeqCst) == 1));
    assert_eq!(bucket.tat.debt(105), 10 * 500 - 5);
    let waker = Arc::<Wakes>::default().into();
    assert!(matches!(
        bucket.poll(waiters[1].0, 110, waker),
        Answer::Came(110)
    ));
}

#[test]
fn a_few_waiters_that_are_not_polled_delay_none_and_many_no_longer_than_on_arrival() {
    for (unpolled, comes) in [(1, 120), (FEW as u64 - 1, 140), (FEW as u64, 160)] {
        let (bucket, quota) = (Bucket::default(), quota(10, 1));
        let charge = Charge::one(100, quota).with_max_wait(1_000);
        bucket.take(&charge).unwrap();
        let mut waiters: Vec<_> = (0..unpolled + 2)
            .map(|_| bucket.take(&charge).unwrap())
            .collect();
        let Some(Turn::Queued(last)) = waiters.pop() else {
            panic!("it waits")
        };
        let wakes = Arc::<Wakes>::default();
        let poll = |now| bucket.poll(last, now, wakes.clone().into());
        let Answer::At(mut knows) = poll(100) else {
            panic!("its turn has not come")
        };
        // One of those before it leaves, so it moves up.
        bucket.leave(&charge, waiters.remove(0), 100);
        if wakes.0.load(SeqCst) > 0
            && let Answer::At(turn) = poll(100)
        {
            knows = turn;
        }
        assert_eq!(knows, comes, "{unpolled} are not polled");
        assert!(matches!(poll(knows), Answer::Came(turn) if turn == 110 + 10 * unpolled));
        for waiter in waiters {
            bucket.leave(&charge, waiter, 200);
        }
        assert!(bucket.queues.lock().is_empty());
    }
}

/// The bucket was brought to what the new quota can owe: what the old waiters had cost is no longer in it.
#[test]
fn after_a_change_to_a_smaller_quota_no_waiter_moves_up_by_what_the_bucket_does_not_owe() {
    let (bucket, old) = (Bucket::default(), quota(100, 10));
    let waits = |now, quota| {
        let charge = Charge::one(now, quota).with_max_wait(500);
        (charge, bucket.take(&charge).unwrap())
    };
    for _ in 0..10 {
        assert_eq!(waits(1_000, old).1, Turn::Came(1_000));
    }
    let [first, second, third, fourth] = [(); 4].map(|()| waits(1_000, old));
    let small = Charge::one(1_010, quota(10, 1));
    bucket.tat.lower(small.empty_until() + 500);
    let (_, newcomer) = waits(1_020, quota(10, 1));
    let behind = waits(1_030, quota(10, 1));
    let turn_of = |turn: Turn, now| match turn {
        Turn::Queued(id) => match bucket.poll(id, now, Arc::<Wakes>::default().into()) {
            Answer::Came(at) | Answer::At(at) => at,
        },
        Turn::Came(at) => at,
    };
    let end = 1_040 + bucket.tat.debt(1_040);
    for (charge, turn) in [second, first] {
        bucket.leave(&charge, turn, 1_040);
        assert_eq!(1_040 + bucket.tat.debt(1_040), end);
    }
    // The waiters behind it are at the times of the new quota, and move up by it.
    assert_eq!(turn_of(behind.1, 1_040), 1_530);
    bucket.leave(&behind.0, behind.1, 1_040);
    assert_eq!(1_040 + bucket.tat.debt(1_040), end - 10);
    assert_eq!(turn_of(newcomer, 1_525), 1_520);
    for (_, turn) in [third, fourth] {
        assert!(turn_of(turn, 1_525) <= 1_400);
    }
    assert!(bucket.queues.lock().is_empty());
}

/// One of a deeper quota passes although other requests wait, so it stands behind them. What it gives back is not theirs.
#[test]
fn what_one_gives_back_that_stands_behind_the_waiters_moves_none_of_them_before_now() {
    let (bucket, waits_for) = (Bucket::default(), quota(10, 1));
    let charge = Charge::one(0, waits_for).with_max_wait(500);
    assert_eq!(bucket.take(&charge), Ok(Turn::Came(0)));
    let Ok(Turn::Queued(first)) = bucket.take(&charge) else {
        panic!("it waits")
    };
    let Ok(Turn::Queued(second)) = bucket.take(&charge) else {
        panic!("it waits")
    };
    let deep = Charge::one(0, quota(3_600, 100)).with_max_wait(500);
    assert_eq!(bucket.take(&deep), Ok(Turn::Came(0)));
    bucket.leave(&deep, Turn::Came(0), 0);
    assert_eq!(bucket.tat.debt(0), 30, "and the bucket has it back");
    let poll = |id, now| bucket.poll(id, now, Arc::<Wakes>::default().into());
    assert!(matches!(poll(first, 10), Answer::Came(at) if at <= 10));
    assert!(matches!(poll(second, 20), Answer::Came(at) if at <= 20));
    assert!(bucket.queues.lock().is_empty());
}

/// A task that is gone with its last waker, and what waits in it for this very queue.
#[test]
fn the_waker_of_one_that_leaves_is_dropped_without_the_lock() {
    struct Last {
        bucket: Arc<Bucket>,
        was_free: Arc<AtomicUsize>,
    }
    impl Wake for Last {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Last {
        fn drop(&mut self) {
            let is_free = self.bucket.queues.0.try_lock().is_ok();
            self.was_free.fetch_add(is_free.into(), SeqCst);
        }
    }
    let (bucket, was_free) = (Arc::new(Bucket::default()), Arc::new(AtomicUsize::new(0)));
    let charge = Charge::one(100, quota(10, 1)).with_max_wait(1_000);
    bucket.take(&charge).unwrap();
    let waiters = [(); 3].map(|()| bucket.take(&charge).unwrap());
    for waiter in waiters {
        let Turn::Queued(id) = waiter else {
            panic!("it waits")
        };
        let last = Last {
            bucket: bucket.clone(),
            was_free: was_free.clone(),
        };
        bucket.poll(id, 100, Arc::new(last).into());
    }
    let [first, middle, last] = waiters;
    for waiter in [middle, last, first] {
        bucket.leave(&charge, waiter, 100);
    }
    assert_eq!(was_free.load(SeqCst), 3);
}
