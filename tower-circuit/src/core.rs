//! The heart, the word in front of it, the counters beside it, and those who wait for it. No clock and no task: `now` comes
//! in.

use std::{
    collections::HashMap,
    mem,
    sync::atomic::Ordering::{Acquire, Release},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;
use tower_outcome::Verdict;

use crate::{
    Counts, Open, Reason, Snapshot,
    breaker::{Breaker, Ended, Ending, Outside, Rules, Shut, Transition, Until},
    stripe::{Count, Lane, Lanes, Stripes},
    sync::{AtomicU64, Mutex, MutexGuard, PoisonError},
    window::{Turns, nanos_at},
    word::{SharedWord, Tag, Ticket, Word},
};

/// What all handles of one circuit share.
#[derive(Debug)]
pub(crate) struct Core {
    word: SharedWord,
    /// While not closed: nanoseconds until which a call need not ask. Zero to ask, all ones for good.
    shut_until: AtomicU64,
    turns: Turns,
    lanes: Lanes,
    heart: Mutex<Heart>,
}

/// A waiting gate's place among those who wait. Empty until it waits for the first time.
#[derive(Debug, Default)]
pub(crate) struct Seat(Option<u64>);

/// What is to be told once the lock is released: `tracing` and wakers are other people's code.
#[derive(Debug)]
#[must_use = "those who wait must be woken"]
pub(crate) struct News {
    pub(crate) transitions: Vec<Transition>,
    pub(crate) kept_closed: Option<Reason>,
    pub(crate) wakers: Vec<Waker>,
}

#[derive(Debug)]
struct Heart {
    breaker: Breaker,
    waiting: Waiting,
    /// The most that were ever told to have succeeded: what is being moved from one turn to the next is missed for a moment.
    succeeded: u64,
}

/// At most one waker for each gate that is pending.
#[derive(Debug, Default)]
struct Waiting {
    seats: u64,
    wakers: HashMap<u64, Waker>,
}

// === impl Core ===

impl Core {
    /// Closed.
    pub(crate) fn new(rules: Rules, window: Duration, stripes: Stripes) -> Self {
        let tag = if rules.asks { Tag::Asking } else { Tag::Closed };
        Self {
            word: SharedWord::new(Word::new(tag, 0, None)),
            shut_until: AtomicU64::new(ASK),
            turns: Turns::new(window),
            lanes: Lanes::new(stripes),
            heart: Mutex::new(Heart {
                breaker: Breaker::new(rules),
                waiting: Waiting::default(),
                succeeded: 0,
            }),
        }
    }

    #[inline]
    pub(crate) fn word(&self) -> Word {
        self.word.load()
    }

    /// Admits a call of the simple kind, if the circuit is closed. One load.
    #[inline]
    pub(crate) fn admit_simply(&self) -> Option<Ticket> {
        self.word().ticket()
    }

    /// Admits a call if the circuit is closed.
    pub(crate) fn admit_closed(&self) -> Option<Ticket> {
        self.word().closer_ticket()
    }

    /// Why a call made now is refused, and for how long, where that is known without the lock.
    pub(crate) fn shut(&self, now: Instant) -> Option<Open> {
        // Without a reason the circuit is closed, or the reason has no code.
        let reason = Some(self.word().reason()?);
        match self.shut_until.load(Acquire) {
            FOR_GOOD => Some(Open::new(None, reason)),
            until => {
                let left = until.checked_sub(nanos_at(now)).filter(|&left| left > 0)?;
                Some(Open::new(Some(Duration::from_nanos(left)), reason))
            }
        }
    }

    /// A call went well of which the heart need not know: two loads and a compare-and-swap. `false`: not so simple.
    #[inline]
    pub(crate) fn succeed(
        &self,
        lane: &Lane,
        ticket: Ticket,
        now: impl FnOnce() -> Instant,
    ) -> bool {
        let simple = self.word().is_as_on(ticket);
        if simple {
            let now = now();
            lane.ring.add(ticket, self.turns.at(now), &self.word);
        }
        simple
    }

    /// As [`succeed`](Self::succeed), where there were failures, or not all were to be told. `false`: too late to matter.
    pub(crate) fn succeed_late(&self, lane: &Lane, ticket: Ticket, now: Instant) -> bool {
        let current = self.is_current(ticket);
        if current {
            self.word.forgive(ticket.generation());
            lane.ring
                .add(ticket.plain(), self.turns.at(now), &self.word);
        }
        current
    }

    /// A good head has come: failures in a row are over. One load while there are none.
    #[inline]
    pub(crate) fn forgive(&self, ticket: Ticket) {
        if self.word().failures_in_row() > 0 {
            self.word.forgive(ticket.generation());
        }
    }

    /// A call ended, and the heart must know.
    pub(crate) fn end(&self, ticket: Ticket, ending: Ending) -> (Ended, News) {
        let (turn, generation) = (self.turns.at(ending.now), ticket.generation());
        self.ask(|breaker| {
            // Under the lock, so that the generation that counts the call is the one that judges it.
            let failures_in_row = match ending.verdict {
                _ if ticket.is_probe() => 0,
                Verdict::Success => self.word.forgive(generation),
                Verdict::Failure => self.word.add_failure(generation),
                Verdict::Throttled | Verdict::Ignore => self.word().failures_in_row(),
            };
            let succeeded = if ending.judged {
                self.succeeded(generation, turn)
            } else {
                0
            };
            breaker.end(
                ticket,
                ending,
                Outside {
                    failures_in_row,
                    succeeded,
                    turn,
                },
            )
        })
    }

    pub(crate) fn is_current(&self, ticket: Ticket) -> bool {
        self.word().generation() == ticket.generation()
    }

    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Counts what no call is there to count for.
    pub(crate) fn count(&self, count: Count) {
        self.lanes.mine().count(count);
    }

    pub(crate) fn snapshot(&self, now: Instant) -> (Snapshot, News) {
        let turn = self.turns.at(now);
        let mut heart = self.lock();
        let look = heart.breaker.look(now, turn);
        let mut totals = self.lanes.totals();
        totals.succeeded = totals.succeeded.max(heart.succeeded);
        heart.succeeded = totals.succeeded;
        let news = self.harvest(&mut heart);
        drop(heart);
        let succeeded = self.succeeded(look.counted, turn);
        let snapshot = Snapshot {
            state: look.state,
            mode: look.mode,
            failures_in_row: self.word().failures_in_row(),
            window: look.told.plus(Counts {
                succeeded,
                ..Counts::default()
            }),
            last_calls: look.last_calls,
            trips: look.trips,
            kept_closed: look.times_kept_closed,
            last_reason: look.last_reason,
            opened_since: look.opened_since,
            next_probe_at: look.next_probe_at,
            totals,
        };
        (snapshot, news)
    }

    /// Closed, automatic, and with nothing in its window: forgetting it loses nothing, and it is not in use.
    pub(crate) fn is_unused(&self, now: Instant) -> bool {
        let (word, turn) = (self.word(), self.turns.at(now));
        word.is_closed()
            && word.failures_in_row() == 0
            && self.succeeded(word.generation(), turn) == 0
            && self.lock().breaker.is_unblemished(turn)
    }

    /// Since when it has been of no use to anybody, whatever is on record. Calls that go well do not come to the heart.
    pub(crate) fn stale_since(&self, window: Duration, now: Instant) -> Option<Instant> {
        let (generation, turn) = (self.word().generation(), self.turns.at(now));
        if self.succeeded(generation, turn) > 0 {
            return None;
        }
        self.lock().breaker.stale_since(window, now)
    }

    /// Reserves a probe (or finds the circuit closed), or takes a seat among the waiting.
    ///
    /// Both under one lock, so that nothing can change between the answer and the seat.
    pub(crate) fn reserve_or_wait(
        &self,
        seat: &mut Seat,
        waker: Waker,
        now: Instant,
    ) -> (Result<Ticket, Shut>, News) {
        let mut heart = self.lock();
        let answer = heart.breaker.reserve(now);
        let news = self.harvest(&mut heart);
        let unused = if answer.is_err() {
            heart.waiting.sit(seat, waker)
        } else {
            heart.waiting.leave(seat)
        };
        drop(heart);
        // A waker may be the last that holds its task, and so a gate of this very circuit.
        drop(unused);
        (answer, news)
    }

    /// Gives up a seat.
    pub(crate) fn leave(&self, seat: &mut Seat) {
        let unused = self.lock().waiting.leave(seat);
        drop(unused);
    }

    /// Asks the heart under the lock, and collects what is to be told.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&mut Breaker) -> T) -> (T, News) {
        let mut heart = self.lock();
        let answer = question(&mut heart.breaker);
        let news = self.harvest(&mut heart);
        (answer, news)
    }

    fn harvest(&self, heart: &mut Heart) -> News {
        let transitions = heart.breaker.take_news();
        if let Some(last) = transitions.last() {
            if last.to.is_closed() {
                self.lanes.iter().for_each(|lane| lane.ring.sweep());
            }
            self.word
                .enter(Word::new(last.to, last.generation, last.reason));
        }
        self.shut_until
            .store(encode(heart.breaker.until()), Release);
        let stirred = heart.breaker.take_stirred();
        News {
            transitions,
            kept_closed: heart.breaker.take_kept_closed(),
            wakers: if stirred {
                heart.waiting.rise()
            } else {
                Vec::new()
            },
        }
    }

    /// The good calls that the heart was not told of.
    fn succeeded(&self, generation: u32, turn: u32) -> u64 {
        self.lanes
            .iter()
            .map(|lane| lane.ring.sum(generation, turn))
            .sum()
    }

    fn lock(&self) -> MutexGuard<'_, Heart> {
        // Nothing under the lock panics halfway through a change.
        self.heart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.wakers.len()
    }
}

fn encode(until: Until) -> u64 {
    match until {
        Until::Now => ASK,
        Until::Then(until) => nanos_at(until),
        Until::ForGood => FOR_GOOD,
    }
}

const ASK: u64 = 0;
const FOR_GOOD: u64 = u64::MAX;

// === impl Waiting ===

impl Waiting {
    /// Gives back the waker that sat there before.
    fn sit(&mut self, seat: &mut Seat, waker: Waker) -> Option<Waker> {
        let seat = *seat.0.get_or_insert_with(|| {
            self.seats += 1;
            self.seats
        });
        self.wakers.insert(seat, waker)
    }

    fn leave(&mut self, seat: &mut Seat) -> Option<Waker> {
        seat.0.take().and_then(|seat| self.wakers.remove(&seat))
    }

    fn rise(&mut self) -> Vec<Waker> {
        // The room of all who waited goes with them.
        mem::take(&mut self.wakers).into_values().collect()
    }
}
