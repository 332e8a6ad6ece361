//! Requests that wait for tokens: a queue for each bucket, in the order in which they came.
//!
//! ```text
//!         now      turn of a    turn of b    turn of c                  end of c: the bucket is full again
//!   ───────┼───────────┼────────────┼────────────┼──────── … ──────────────────┼──────►
//!                                   ╳ b leaves: c and the bucket move up by what b had cost
//! ```
//!
//! A request that queues takes its tokens in advance, so the bucket's number is the end of its queue. A request that does
//! not wait finds the bucket empty as long as other requests wait for it, without a look at the queue; and the turn of
//! one that does
//! is known when it comes. The queue is looked at only by requests that wait or leave, under one lock for each limiter.
//!
//! # When one leaves
//!
//! What it cost goes to those behind it: they move up, and so does the bucket. A waiter is kept as its distance from the one
//! before it, so that this changes one number: leaving costs the same however long the queue is.
//!
//! # Wake-ups
//!
//! Each waiter has a timer for the turn that it knows of, which is that of its arrival or an earlier one.
//! Any look at the queue lets in all those whose turn has come, and wakes the first few of the rest if their timers would be
//! late. Not all of them: a client that opens and drops requests would make each one wake a thousand. And not only the first:
//! it may be a future that is not polled, and then no look would follow when its turn comes. Where more than these few are not
//! polled, those behind them come through at the latest at the turn they were given on arrival.
//!
//! There is no clock in here: `now` comes in, wakers and [`Refund`]s go out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    mem,
    sync::PoisonError,
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    gcra::{Charge, Refund},
    sync::{Mutex, MutexGuard},
};

/// The queues of a limiter's buckets; empty ones are not kept.
#[derive(Debug)]
pub(crate) struct WaitQueues<B>(Mutex<HashMap<B, WaitQueue>>);

/// The waiters of one bucket.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    waiters: BTreeMap<WaiterId, Waiter>,
    /// The turns of waiters that left the queue and were not polled since.
    admitted: BTreeMap<WaiterId, u64>,
    next: WaiterId,
    /// Where the first waiter's tokens end, if there is one.
    first_end: u64,
    /// Where the last waiter's tokens end, if there is one.
    last_end: u64,
    /// Those whose tokens begin before those of the one before them end: a change to a less deep quota had brought the bucket
    /// forward when they came.
    clamped: BTreeSet<WaiterId>,
    /// To be woken when the lock is free.
    wake: Vec<Waker>,
    /// To be dropped when the lock is free: a waker may be the last that holds a task, and so a waiter of this very queue.
    unused: Option<Waker>,
}

/// Where a request stands that may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub enum Turn {
    /// Its turn came at this moment, in nanoseconds of the limiter's clock.
    Came(u64),
    /// It waits; or it was let in and does not know yet.
    Queued(WaiterId),
}

/// In the order of arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct WaiterId(u64);

/// The answer to a waiter that asks for its turn.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It came at this moment.
    Came(u64),
    /// It comes at this moment; or earlier, and then the waker is woken.
    At(u64),
}

#[derive(Debug)]
struct Waiter {
    cost: u64,
    depth: u64,
    /// The turn that was given on arrival. It comes then, or earlier.
    latest: u64,
    /// From where the tokens of the one before it end to where its own do: its cost, or more where requests that did not wait
    /// were let in between. Of no meaning for the first.
    distance: i64,
    /// The turn it knows of, and how to make it ask earlier.
    timer: Option<(u64, Waker)>,
}

// === impl WaitQueues ===

impl<B: Copy + Eq + Hash> WaitQueues<B> {
    /// Takes tokens, which gives the bucket, what was taken, and the debt that it left; and queues if they come later. All
    /// under the lock, so that waiters stand in the order in which they took.
    pub(crate) fn push<T, E>(
        &self,
        charge: &Charge,
        take: impl FnOnce() -> Result<(B, T, u64), E>,
    ) -> Result<(T, Turn), E> {
        let mut queues = self.lock();
        let (bucket, taken, debt) = take()?;
        if charge.turn(debt) == 0 {
            return Ok((taken, Turn::Came(charge.now)));
        }
        let queue = queues.entry(bucket).or_default();
        queue.admit(charge.now);
        let (waiter, wake) = (queue.push(charge, debt), mem::take(&mut queue.wake));
        drop(queues);
        wake.into_iter().for_each(Waker::wake);
        Ok((taken, Turn::Queued(waiter)))
    }

    /// Locks, and wakes when the lock is free again.
    pub(crate) fn with<T>(&self, bucket: B, act: impl FnOnce(&mut WaitQueue) -> T) -> T {
        let mut queues = self.lock();
        let mut nobody = WaitQueue::default();
        let queue = queues.get_mut(&bucket).unwrap_or(&mut nobody);
        let result = act(queue);
        let (wake, unused) = (mem::take(&mut queue.wake), queue.unused.take());
        if queue.is_empty() {
            queues.remove(&bucket);
        }
        drop(queues);
        drop(unused);
        wake.into_iter().for_each(Waker::wake);
        result
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<B, WaitQueue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Default for WaitQueues<B> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

// === impl WaitQueue ===

impl WaitQueue {
    /// Adds one whose tokens were taken from the bucket and left it with `debt`.
    fn push(&mut self, charge: &Charge, debt: u64) -> WaiterId {
        let (id, end) = (self.next, charge.now + debt);
        self.next = WaiterId(id.0 + 1);
        if self.waiters.is_empty() {
            self.first_end = end;
        } else if end < self.last_end + charge.cost() {
            self.clamped.insert(id);
        }
        let waiter = Waiter {
            cost: charge.cost(),
            depth: charge.depth(),
            latest: charge.now + charge.turn(debt),
            distance: signed(end, self.last_end),
            timer: None,
        };
        self.last_end = end;
        self.waiters.insert(id, waiter);
        id
    }

    /// Whether a waiter's turn has come. A waker that is not needed any more comes back, to be dropped without the lock.
    pub(crate) fn poll(&mut self, id: WaiterId, now: u64, waker: Waker) -> (Answer, Option<Waker>) {
        // It need not be woken by its own look.
        let timer = self.waiters.get_mut(&id).and_then(|it| it.timer.take());
        let known = timer.map(|(_, waker)| waker);
        self.admit(now);
        if let Some(turn) = self.admitted.remove(&id) {
            return (Answer::Came(turn), known.or(Some(waker)));
        }
        let exact = self.first_few().find(|(few, ..)| *few == id);
        let exact = exact.map(|(_, turn, _)| turn);
        let Some(waiter) = self.waiters.get_mut(&id) else {
            debug_assert!(false, "a waiter is in the queue or let in");
            return (Answer::Came(now), known.or(Some(waker)));
        };
        let turn = exact.unwrap_or(waiter.latest);
        if turn > now {
            waiter.timer = Some((turn, waker));
            return (Answer::At(turn), known);
        }
        // One before it has a later turn, because it asked for another quota.
        let turn = self.turn(id);
        self.remove(id, 0);
        (Answer::Came(turn), known.or(Some(waker)))
    }

    /// Removes one that will not call, and moves up those behind it. After its turn came, by what still lies ahead.
    pub(crate) fn leave(&mut self, charge: &Charge, turn: Turn, now: u64) -> Refund {
        self.admit(now);
        let came = match turn {
            Turn::Came(turn) => Some(turn),
            Turn::Queued(id) => self.admitted.remove(&id),
        };
        let refund = match (came, turn) {
            (Some(turn), _) => self.move_all_up(charge.ahead(turn, now), now),
            (None, Turn::Queued(id)) => self.take_out(id),
            (None, Turn::Came(_)) => Refund::NOTHING,
        };
        self.wake_first_few();
        refund
    }

    fn is_empty(&self) -> bool {
        self.waiters.is_empty() && self.admitted.is_empty()
    }

    /// Lets in all those whose turn has come.
    fn admit(&mut self, now: u64) {
        while let Some((id, turn)) = self.first()
            && turn <= now
        {
            self.admitted.insert(id, turn);
            let waker = self.remove(id, 0).and_then(Waiter::into_waker);
            self.wake.extend(waker);
        }
        self.wake_first_few();
    }

    /// The first waiter, and its turn.
    fn first(&self) -> Option<(WaiterId, u64)> {
        let (&id, first) = self.waiters.first_key_value()?;
        Some((id, self.first_end.saturating_sub(first.depth)))
    }

    /// The first few waiters, and their turns.
    fn first_few(&mut self) -> impl Iterator<Item = (WaiterId, u64, &mut Waiter)> {
        let mut end = self.first_end;
        let few = self.waiters.iter_mut().take(FEW).enumerate();
        few.map(move |(place, (&id, waiter))| {
            if place > 0 {
                end = end.wrapping_add_signed(waiter.distance);
            }
            (id, end.saturating_sub(waiter.depth), waiter)
        })
    }

    fn wake_first_few(&mut self) {
        let mut wake = mem::take(&mut self.wake);
        for (_, turn, waiter) in self.first_few() {
            let late = waiter.timer.take_if(|(timer, _)| *timer > turn);
            wake.extend(late.map(|(_, waker)| waker));
        }
        self.wake = wake;
    }

    /// The turn of one that need not be the first.
    fn turn(&self, id: WaiterId) -> u64 {
        let (mut end, mut depth) = (self.first_end, 0);
        for (place, (_, waiter)) in self.waiters.range(..=id).enumerate() {
            if place > 0 {
                end = end.wrapping_add_signed(waiter.distance);
            }
            depth = waiter.depth;
        }
        end.saturating_sub(depth)
    }

    /// For what one gives back whose turn had come.
    fn move_all_up(&mut self, amount: u64, now: u64) -> Refund {
        let Some((_, first)) = self.waiters.first_key_value() else {
            return Refund::of(amount);
        };
        if !self.clamped.is_empty() {
            return Refund::NOTHING;
        }
        // One of a deeper quota does not wait where the rest do. It stands behind them, so what it gives back may be more than
        // what is before them.
        let before_first = self.first_end.saturating_sub(first.cost + now);
        let moved = amount.min(before_first);
        self.first_end -= moved;
        self.last_end -= moved;
        Refund::of(amount).not_before(self.last_end)
    }

    /// For what one gives back that waits, and goes.
    fn take_out(&mut self, id: WaiterId) -> Refund {
        // One that was clamped does not stand where those before it end, so it cannot move up by what they cost. All such come
        // through before the longest wait is over; what is given back before them until then is lost.
        if self.clamped.last() > Some(&id) {
            self.unused = self.remove(id, 0).and_then(Waiter::into_waker);
            return Refund::NOTHING;
        }
        let last_end = self.last_end;
        let is_last = self.waiters.last_key_value().map(|(&last, _)| last) == Some(id);
        let Some(cost) = self.waiters.get(&id).map(|waiter| waiter.cost) else {
            return Refund::NOTHING;
        };
        let gone = self.remove(id, if is_last { 0 } else { cost });
        self.unused = gone.and_then(Waiter::into_waker);
        Refund::of(cost).not_before(last_end - cost)
    }

    /// Removes a waiter, and moves up those behind it.
    fn remove(&mut self, id: WaiterId, amount: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&id)?;
        self.clamped.remove(&id);
        let is_first = self.waiters.range(..id).next().is_none();
        let Some((&next, behind)) = self.waiters.range_mut(id..).next() else {
            let distance = waiter.distance.wrapping_neg();
            self.last_end = self.last_end.wrapping_add_signed(distance);
            return Some(waiter);
        };
        self.last_end = self.last_end.wrapping_sub(amount);
        let distance = behind.distance.wrapping_sub_unsigned(amount);
        if is_first {
            self.first_end = self.first_end.wrapping_add_signed(distance);
            self.clamped.remove(&next);
        } else {
            behind.distance = distance.wrapping_add(waiter.distance);
            if behind.distance < behind.cost as i64 {
                self.clamped.insert(next);
            } else {
                self.clamped.remove(&next);
            }
        }
        Some(waiter)
    }
}

// === impl Waiter ===

impl Waiter {
    fn into_waker(self) -> Option<Waker> {
        self.timer.map(|(_, waker)| waker)
    }
}

// === impl Turn ===

impl Turn {
    /// Asks, if it may still wait, `now` by both clocks. `None`: its turn has come.
    pub(crate) fn poll(
        &mut self,
        now: u64,
        instant: Instant,
        charge: impl FnOnce(WaiterId, u64) -> Answer,
    ) -> Option<Instant> {
        let Self::Queued(waiter) = *self else {
            return None;
        };
        match charge(waiter, now) {
            Answer::Came(at) => {
                *self = Self::Came(at);
                None
            }
            Answer::At(at) => Some(instant + Duration::from_nanos(at - now)),
        }
    }
}

/// How many waiters know their exact turn: as many tasks as are woken when one leaves. In a queue that is polled one would
/// do.
const FEW: usize = 4;

/// `a - b`, which are less than half the range apart.
fn signed(a: u64, b: u64) -> i64 {
    a.wrapping_sub(b) as i64
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
