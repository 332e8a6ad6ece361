//! The heart, the word in front of it, and those who wait for it. No clock and no task: `now` comes in.

use std::{collections::HashMap, task::Waker, time::Duration};

use tokio::time::Instant;

use crate::{
    breaker::{Breaker, Shut, Ticket, Transition},
    sync::{Mutex, MutexGuard, PoisonError},
    trip::Evidence,
    word::{SharedWord, Tag, Word},
};

/// What all handles of one circuit share.
#[derive(Debug)]
pub(crate) struct Core {
    word: SharedWord,
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
    pub(crate) wakers: Vec<Waker>,
}

#[derive(Debug)]
struct Heart {
    breaker: Breaker,
    waiting: Waiting,
}

/// At most one waker for each gate that is pending.
#[derive(Debug, Default)]
struct Waiting {
    seats: u64,
    wakers: HashMap<u64, Waker>,
}

// === impl Core ===

impl Core {
    pub(crate) fn new(breaker: Breaker) -> Self {
        let heart = Heart { breaker, waiting: Waiting::default() };
        Self { word: SharedWord::new(Word::new(Tag::Closed, 0)), heart: Mutex::new(heart) }
    }

    pub(crate) fn word(&self) -> Word {
        self.word.load()
    }

    /// Admits a call if the circuit is closed. One load.
    pub(crate) fn admit_closed(&self) -> Option<Ticket> {
        let word = self.word();
        word.is_closed().then(|| Ticket::call(word.generation()))
    }

    /// A call other than a probe went well: one load, and a store only after a failure. `false`: too late to matter.
    pub(crate) fn succeed_call(&self, ticket: Ticket) -> bool {
        let word = self.word();
        let current = word.generation() == ticket.generation;
        if current && word.failures_in_row() > 0 {
            self.word.forgive(ticket.generation);
        }
        current
    }

    /// A call failed. `false`: too late to matter.
    pub(crate) fn fail(&self, ticket: Ticket, hint: Option<Duration>, now: Instant) -> (bool, News) {
        self.ask(|breaker| {
            // Under the lock, so that the generation that counts the failure is the one that judges it.
            let failures_in_row = if ticket.is_probe() { 0 } else { self.word.add_failure(ticket.generation) };
            breaker.fail(ticket, Evidence { failures_in_row }, hint, now)
        })
    }

    /// Reserves the probe (or finds the circuit closed), or takes a seat among the waiting.
    ///
    /// Both under one lock, so that nothing can change between the answer and the seat.
    pub(crate) fn reserve_or_wait(&self, seat: &mut Seat, waker: Waker, now: Instant) -> (Result<Ticket, Shut>, News) {
        let mut heart = self.lock();
        let answer = heart.breaker.reserve(now);
        let news = self.harvest(&mut heart);
        let unused = if answer.is_err() { heart.waiting.sit(seat, waker) } else { heart.waiting.leave(seat) };
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
            self.word.enter(Word::new(last.to, last.generation));
        }
        let stirred = heart.breaker.take_stirred();
        News { transitions, wakers: if stirred { heart.waiting.rise() } else { Vec::new() } }
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
        self.wakers.drain().map(|(_, waker)| waker).collect()
    }
}

/// Every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p tower-circuit --lib loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use std::{
        num::NonZeroU32,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        task::Wake,
    };

    use loom::sync::Arc;

    use super::*;
    use crate::{Cooldown, Trip};

    /// Opens at the second failure in a row, for no time at all.
    fn core() -> (Arc<Core>, Instant) {
        let trip = Trip::consecutive(NonZeroU32::new(2).unwrap());
        let breaker = Breaker::new(trip, Cooldown::new(Duration::ZERO), Duration::from_secs(1));
        (Arc::new(Core::new(breaker)), Instant::now())
    }

    fn half_open() -> (Arc<Core>, Ticket, Instant) {
        let (core, now) = core();
        for _ in 0..2 {
            let ticket = core.admit_closed().unwrap();
            let _ = core.fail(ticket, None, now);
        }
        let probe = core.ask(|breaker| breaker.admit(now)).0.unwrap();
        assert!(probe.is_probe());
        (core, probe, now)
    }

    #[test]
    fn failures_and_a_success_at_once_are_told_in_some_order() {
        loom::model(|| {
            let (core, now) = core();
            let failing = [(); 2].map(|()| core.admit_closed().unwrap());
            let succeeding = core.admit_closed().unwrap();
            let other = core.clone();
            let success = loom::thread::spawn(move || other.succeed_call(succeeding));
            let failed = failing.map(|ticket| core.fail(ticket, None, now).0);
            let succeeded = success.join().unwrap();
            // The success came first, last or between: each gives another end, and no other ends exist.
            let word = core.word();
            let end = (word.is_closed(), word.failures_in_row(), succeeded);
            assert_eq!(failed, [true, true], "nobody else could have ended this generation");
            assert!([(false, 0, true), (false, 0, false), (true, 1, true)].contains(&end), "{end:?}");
        });
    }

    #[test]
    fn the_word_and_the_heart_agree_after_a_race_of_transitions() {
        loom::model(|| {
            let (core, probe, now) = half_open();
            let other = core.clone();
            let forced = loom::thread::spawn(move || {
                let _ = other.ask(|breaker| breaker.set_mode(crate::Mode::ForcedOpen, now));
            });
            let _ = core.ask(|breaker| breaker.succeed(probe, now));
            forced.join().unwrap();
            let look = core.ask(|breaker| breaker.look(now)).0;
            assert_eq!(look.mode, crate::Mode::ForcedOpen);
            assert!(!core.word().is_closed());
            assert!(core.admit_closed().is_none());
        });
    }

    #[test]
    fn a_probe_given_back_while_a_gate_asks_is_had_or_heard_of() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.store(true, SeqCst);
            }
        }
        loom::model(|| {
            let (core, probe, now) = half_open();
            let other = core.clone();
            let cancelled = loom::thread::spawn(move || {
                let (_, news) = other.ask(|breaker| breaker.forget(probe, now));
                news.wakers.into_iter().for_each(Waker::wake);
            });
            let woken = std::sync::Arc::new(Woken(AtomicBool::new(false)));
            let mut seat = Seat::default();
            let (answer, _) = core.reserve_or_wait(&mut seat, woken.clone().into(), now);
            cancelled.join().unwrap();
            assert!(answer.is_ok() || woken.0.load(SeqCst), "a lost wakeup");
        });
    }
}
