//! What calls on many threads share: the packed state, the sharded counters, and the breaker behind a lock. No clock and
//! no task: `now` is an argument.
//!
//! # Invariant
//!
//! A call of a closed circuit that succeeds takes no lock: it loads the packed state to be admitted, compares it with its
//! [`CallId`] when it ends, and increments one counter. This is correct because of five rules:
//!
//! 1. **One word decides.** The [packed state](PackedState) holds the state, its generation and the consecutive failures.
//!    The id of a call is that word without failures, so if they are equal, the circuit was closed when the call ended,
//!    in the same generation, and there was no failure to reset.
//! 2. **State and generation change under the lock only**, in [`Core::collect_effects`], after the breaker has made a
//!    transition. Consecutive failures are added under the lock, and reset without it; both compare and swap, and do
//!    nothing if the generation is another. So no result has an effect beyond a transition.
//! 3. **A success is counted once, in its own generation and slice.** A slot of a [`ShardWindow`](window::ShardWindow) holds
//!    count, slice and generation in one word, and changes by compare-and-swap only. When the circuit closes, all slots are
//!    emptied before the packed state gets the new generation. A success that races the end of a slice is counted in either
//!    of the two slices, and one that races a transition in the totals only.
//! 4. **The breaker decides by all counts.** Failures, throttled and slow calls are recorded under the lock, where the
//!    shards are summed for the generation that is then current. A success that races such a sum is before or after it.
//! 5. **A rejection without the lock is never later than the transition that ends it.** `rejects_until` is stored after the
//!    packed state, and before the lock is released: a thread that knows of the transition reads both as they are after it.
//!
//! Loads that decide are `Acquire`, and pair with a `Release` or `AcqRel` write. The loom tests of this crate check rules
//! 2, 3 and 5 in every interleaving of two threads, and `breaker/tests/model.rs` compares all of it with a list of calls.

#[cfg(all(test, loom))]
mod loom_tests;
pub(crate) mod packed;
pub(crate) mod shard;
pub(crate) mod thread;
pub(crate) mod window;

use std::{
    collections::HashMap,
    mem,
    sync::atomic::Ordering::{Acquire, Release},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;
use tower_outcome::Verdict;

use self::{
    packed::{AtomicState, CallId, PackedState},
    shard::{Shard, Shards},
    window::{SliceClock, nanos_at},
};
use crate::{
    Open, Snapshot,
    breaker::{
        Breaker, BreakerEffects, BreakerSettings, CallOutcome, ExternalCounts, NextAdmission,
        Rejection,
    },
    sync::{AtomicU64, Mutex, MutexGuard, PoisonError},
};

/// The state that all handles of one circuit share.
#[derive(Debug)]
pub(crate) struct Core {
    state: AtomicState,
    /// While not closed: the nanoseconds until which calls are rejected, or [`ASK`] or [`FOREVER`].
    rejects_until: AtomicU64,
    clock: SliceClock,
    pub(crate) shards: Shards,
    locked: Mutex<Locked>,
}

/// Identifies a waiting gate. Empty until it waits for the first time.
#[derive(Debug, Default)]
pub(crate) struct WaiterId(Option<u64>);

/// What is to be done once the lock is released, because `tracing` and wakers run code of other crates.
#[derive(Debug)]
#[must_use = "waiting gates must be woken"]
pub(crate) struct Effects {
    pub(crate) breaker: BreakerEffects,
    pub(crate) wakers: Vec<Waker>,
}

/// A circuit that may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// It is no different from a new one.
    Clean,
    /// It has failures on record, or is open, but was not used for so long that this does not matter any more.
    Stale { since: Instant },
}

#[derive(Debug)]
struct Locked {
    breaker: Breaker,
    waiters: Waiters,
    /// The highest total of successes ever reported: those that are being retired are missed for a moment.
    succeeded: u64,
}

/// At most one waker for each gate that is pending.
#[derive(Debug, Default)]
struct Waiters {
    last_id: u64,
    wakers: HashMap<u64, Waker>,
}

// === impl Core ===

impl Core {
    /// A closed circuit.
    pub(crate) fn new(settings: BreakerSettings, window: Duration, shards: usize) -> Self {
        let breaker = Breaker::new(settings);
        Self {
            state: AtomicState::new(PackedState::new(breaker.tag(), 0, None)),
            rejects_until: AtomicU64::new(ASK),
            clock: SliceClock::new(window),
            shards: Shards::new(shards),
            locked: Mutex::new(Locked {
                breaker,
                waiters: Waiters::default(),
                succeeded: 0,
            }),
        }
    }

    #[inline]
    pub(crate) fn state(&self) -> PackedState {
        self.state.load()
    }

    pub(crate) fn is_current(&self, call: CallId) -> bool {
        self.state().generation() == call.generation()
    }

    /// The rejection of a call made now, where that is known without the lock.
    pub(crate) fn rejection(&self, now: Instant) -> Option<Open> {
        let reason = Some(self.state().reason()?);
        match self.rejects_until.load(Acquire) {
            FOREVER => Some(Open::new(None, reason)),
            until => {
                let left = until.checked_sub(nanos_at(now)).filter(|&left| left > 0)?;
                Some(Open::new(Some(Duration::from_nanos(left)), reason))
            }
        }
    }

    /// Records a success that changes nothing but a counter: two loads and a compare-and-swap. `false`: it may change more.
    #[inline]
    pub(crate) fn record_success(
        &self,
        shard: &Shard,
        call: CallId,
        now: impl FnOnce() -> Instant,
    ) -> bool {
        let unchanged = self.state().is_unchanged_since(call);
        if unchanged {
            shard.window.add(call, self.clock.at(now()), &self.state);
        }
        unchanged
    }

    /// As [`record_success`](Self::record_success), after failures, or of a call whose duration was measured. `false`: stale.
    pub(crate) fn record_later_success(&self, shard: &Shard, call: CallId, now: Instant) -> bool {
        let current = self.is_current(call);
        if current {
            self.state.reset_failures(call.generation());
            let slice = self.clock.at(now);
            shard.window.add(call.plain(), slice, &self.state);
        }
        current
    }

    /// Resets consecutive failures, because a good response head has arrived. One load while there are none.
    #[inline]
    pub(crate) fn reset_failures(&self, call: CallId) {
        if self.state().consecutive_failures() > 0 {
            self.state.reset_failures(call.generation());
        }
    }

    /// Records the outcome of a call in the breaker. `false`: stale.
    pub(crate) fn record(&self, call: CallId, outcome: CallOutcome) -> (bool, Effects) {
        let (slice, generation) = (self.clock.at(outcome.now), call.generation());
        self.with_breaker(|breaker| {
            // Under the lock, so that the generation that counts the call is the one that is judged.
            let external = match call.is_probe() {
                true => ExternalCounts::default(),
                false => ExternalCounts {
                    consecutive_failures: match outcome.verdict {
                        Verdict::Success => self.state.reset_failures(generation),
                        Verdict::Failure => self.state.add_failure(generation),
                        Verdict::Throttled | Verdict::Ignore => self.state().consecutive_failures(),
                    },
                    succeeded: self.succeeded(generation, slice),
                    slice,
                },
            };
            breaker.record(call, outcome, external)
        })
    }

    pub(crate) fn snapshot(&self, now: Instant) -> (Snapshot, Effects) {
        let slice = self.clock.at(now);
        let mut locked = self.lock();
        let (mut snapshot, generation) = locked.breaker.snapshot(now, slice);
        let mut totals = self.shards.totals();
        totals.succeeded = totals.succeeded.max(locked.succeeded);
        locked.succeeded = totals.succeeded;
        let effects = self.collect_effects(&mut locked);
        drop(locked);
        snapshot.consecutive_failures = self.state().consecutive_failures();
        snapshot.window.succeeded += self.succeeded(generation, slice);
        snapshot.totals = totals;
        (snapshot, effects)
    }

    /// What is lost if the circuit is forgotten. `None`: calls in the window, or what is on record matters.
    pub(crate) fn idle(&self, window: Duration, now: Instant) -> Option<Idle> {
        let (state, slice) = (self.state(), self.clock.at(now));
        if self.succeeded(state.generation(), slice) > 0 {
            return None;
        }
        let breaker = &self.lock().breaker;
        if state.consecutive_failures() == 0 && breaker.has_no_failures(slice) {
            return Some(Idle::Clean);
        }
        let since = breaker.stale_since(window, now)?;
        Some(Idle::Stale { since })
    }

    /// Reserves a probe (or finds the circuit closed), or registers a waker for the next change.
    ///
    /// Both under one lock, so that nothing changes between the answer and the registration.
    pub(crate) fn reserve_or_wait(
        &self,
        waiter: &mut WaiterId,
        waker: Waker,
        now: Instant,
    ) -> (Result<CallId, Rejection>, Effects) {
        let mut locked = self.lock();
        let answer = locked.breaker.reserve(now);
        let effects = self.collect_effects(&mut locked);
        let unused = if answer.is_err() {
            locked.waiters.register(waiter, waker)
        } else {
            locked.waiters.deregister(waiter)
        };
        drop(locked);
        // A waker may own the last handle of its task, and with it a gate of this very circuit.
        drop(unused);
        (answer, effects)
    }

    pub(crate) fn deregister(&self, waiter: &mut WaiterId) {
        let unused = self.lock().waiters.deregister(waiter);
        drop(unused);
    }

    /// Calls the breaker under the lock, and collects the effects.
    pub(crate) fn with_breaker<T>(&self, f: impl FnOnce(&mut Breaker) -> T) -> (T, Effects) {
        let mut locked = self.lock();
        let result = f(&mut locked.breaker);
        let effects = self.collect_effects(&mut locked);
        (result, effects)
    }

    fn collect_effects(&self, locked: &mut Locked) -> Effects {
        let effects = locked.breaker.take_effects();
        if let Some(last) = effects.transitions.last() {
            let tag = locked.breaker.tag();
            if tag.is_closed() {
                self.shards.iter().for_each(|shard| shard.window.clear());
            }
            self.state
                .enter(PackedState::new(tag, last.generation, last.reason));
        }
        let until = match locked.breaker.next_admission() {
            NextAdmission::Now => ASK,
            NextAdmission::At(until) => nanos_at(until),
            NextAdmission::Manual => FOREVER,
        };
        self.rejects_until.store(until, Release);
        let wakers = match effects.wake_waiters {
            true => locked.waiters.take_all(),
            false => Vec::new(),
        };
        Effects {
            breaker: effects,
            wakers,
        }
    }

    /// The successes of the window that the breaker has not recorded.
    fn succeeded(&self, generation: u32, slice: u32) -> u64 {
        let windows = self.shards.iter().map(|shard| &shard.window);
        windows.map(|window| window.sum(generation, slice)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // Nothing panics halfway through a change under this lock.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiters.wakers.len()
    }
}

const ASK: u64 = 0;
const FOREVER: u64 = u64::MAX;

// === impl Waiters ===

impl Waiters {
    /// Returns the waker that was registered before.
    fn register(&mut self, waiter: &mut WaiterId, waker: Waker) -> Option<Waker> {
        let id = *waiter.0.get_or_insert_with(|| {
            self.last_id += 1;
            self.last_id
        });
        self.wakers.insert(id, waker)
    }

    fn deregister(&mut self, waiter: &mut WaiterId) -> Option<Waker> {
        waiter.0.take().and_then(|id| self.wakers.remove(&id))
    }

    /// Removes all, and frees their memory.
    fn take_all(&mut self) -> Vec<Waker> {
        mem::take(&mut self.wakers).into_values().collect()
    }
}
