use std::{mem, sync::OnceLock, task::Waker, time::Duration};

use tokio::{sync::watch, time::Instant};
use tower_outcome::{Outcome, Verdict};

use crate::{
    Reason, State,
    breaker::{Breaker, CallOutcome},
    fast_path::{
        Core, Effects,
        packed::CallId,
        shard::{Count, Shard},
    },
};

/// What handles, services and permits of one circuit refer to: the core, with a clock and observers.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Core,
    pub(crate) name: Option<String>,
    pub(crate) window: Duration,
    pub(crate) slow_limit: Option<Duration>,
    /// The age from which an abandoned call of the application is a failure.
    pub(crate) abandoned_age: Option<Duration>,
    pub(crate) abandoned_age_of_clients: Option<Duration>,
    /// Made for the first subscriber.
    pub(crate) changes: OnceLock<watch::Sender<State>>,
}

/// The origin of calls, which decides what it means that one is dropped without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The application, which gives up when something takes too long: a failure from some age on.
    Application,
    /// The clients of a server, which may disconnect at any time: no failure, unless the user has set an age.
    Client,
    /// The application, without a service: a permit is dropped by a panic of the call, or because the call is given up.
    Manual,
}

/// An admitted call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) id: CallId,
    /// Unknown until the call is first pending, because most of its cost would be the clock.
    pub(crate) started: Option<Instant>,
    pub(crate) caller: Caller,
}

// === impl Shared ===

impl Shared {
    /// Records how a call ended. This table is all that can happen:
    ///
    /// | the call | total | consecutive failures | window | if it is a probe |
    /// |---|---|---|---|---|
    /// | succeeded | `succeeded` | reset | succeeded | it succeeds |
    /// | succeeded, slower than the limit | `succeeded` | reset | succeeded and slow, judged | opens |
    /// | failed | `failed` | one more | failed, judged | opens |
    /// | was throttled | `throttled` | | throttled, judged | opens |
    /// | is to be ignored | `ignored` | | | its slot is free |
    /// | was dropped after a good head, or has a body without an error | as a success | | | at its deadline at the latest |
    /// | panicked | as a failure | | | |
    /// | was dropped, unanswered, at an age | as a failure | | | |
    /// | was dropped, unanswered, before it | `abandoned` | | | its slot is free; opens if callers have waited for a deadline in all |
    /// | was dropped, unanswered, without such an age | `abandoned` | | | its slot is free |
    /// | ended after a transition | `stale` | | | |
    ///
    /// The first row, for a call that is no probe, is [`Core::record_success`] and takes no lock.
    #[inline(always)]
    pub(crate) fn record(&self, shard: &Shard, call: &Call, outcome: Outcome) {
        let success = outcome.verdict() == Verdict::Success;
        if !success || !(self.core).record_success(shard, call.id, Instant::now) {
            self.record_slowly(shard, call, outcome.verdict(), outcome.retry_after());
        }
    }

    #[cold]
    fn record_slowly(&self, shard: &Shard, call: &Call, verdict: Verdict, hint: Option<Duration>) {
        let outcome = self.outcome(call, verdict, hint);
        shard.count(match verdict {
            Verdict::Success if !outcome.slow && !call.id.is_probe() => {
                if self.core.record_later_success(shard, call.id, outcome.now) {
                    return;
                }
                Count::Stale
            }
            Verdict::Success => self.record_in_breaker(call, outcome, Count::Succeeded),
            Verdict::Failure => self.record_in_breaker(call, outcome, Count::Failed),
            Verdict::Throttled => self.record_in_breaker(call, outcome, Count::Throttled),
            Verdict::Ignore => self.release(call, outcome.now, Count::Ignored, Breaker::forget),
        });
    }

    /// Records that a call was dropped before there was a response.
    #[cold]
    pub(crate) fn record_abandoned(&self, shard: &Shard, call: &Call) {
        let outcome = self.outcome(call, Verdict::Failure, None);
        let limit = match call.caller {
            Caller::Client => self.abandoned_age_of_clients,
            Caller::Application | Caller::Manual => self.abandoned_age,
        };
        shard.count(match limit {
            Some(limit) if call.is_older(limit, outcome.now) => {
                self.record_in_breaker(call, outcome, Count::Failed)
            }
            Some(_) => self.release(call, outcome.now, Count::Abandoned, Breaker::abandon),
            // Where a client may disconnect, it does not open a half-open circuit by that, however often.
            None => self.release(call, outcome.now, Count::Abandoned, Breaker::forget),
        });
    }

    /// Records that a good response head has arrived, whose body follows. Returns whether it was slow.
    #[inline]
    pub(crate) fn record_head(&self, call: &Call) -> bool {
        self.core.reset_failures(call.id);
        call.id.is_timed() && self.record_timed_head(call)
    }

    #[cold]
    fn record_timed_head(&self, call: &Call) -> bool {
        let now = Instant::now();
        let slow = self.is_slow(call, now);
        if call.id.is_probe() {
            self.with_breaker(|breaker| breaker.answered(call.id, slow, now));
        }
        slow
    }

    fn record_in_breaker(&self, call: &Call, outcome: CallOutcome, count: Count) -> Count {
        // After a trip many calls end late. They need not contend for the lock to learn that.
        if !self.core.is_current(call.id) {
            return Count::Stale;
        }
        let (is_current, effects) = self.core.record(call.id, outcome);
        self.apply(effects);
        if is_current { count } else { Count::Stale }
    }

    /// A call without an outcome that counts. `free` frees the slot of a probe.
    fn release(
        &self,
        call: &Call,
        now: Instant,
        count: Count,
        free: fn(&mut Breaker, CallId, Instant) -> bool,
    ) -> Count {
        let is_current = match call.id.is_probe() {
            true => self.with_breaker(|breaker| free(breaker, call.id, now)),
            false => self.core.is_current(call.id),
        };
        if is_current { count } else { Count::Stale }
    }

    /// An outcome of now.
    fn outcome(&self, call: &Call, verdict: Verdict, hint: Option<Duration>) -> CallOutcome {
        let now = Instant::now();
        CallOutcome {
            verdict,
            slow: self.is_slow(call, now),
            hint,
            now,
        }
    }

    fn is_slow(&self, call: &Call, now: Instant) -> bool {
        self.slow_limit
            .is_some_and(|limit| call.is_older(limit, now))
    }

    pub(crate) fn with_breaker<T>(&self, f: impl FnOnce(&mut Breaker) -> T) -> T {
        let (result, effects) = self.core.with_breaker(f);
        self.apply(effects);
        result
    }

    /// Notifies subscribers, waiting gates and `tracing`. Never under the lock, because all of them run other code.
    pub(crate) fn apply(&self, effects: Effects) {
        if let Some(last) = effects.breaker.transitions.last() {
            self.publish(last.to, last.generation);
        }
        effects.wakers.into_iter().for_each(Waker::wake);
        let name = self.name.as_deref();
        if let Some(reason) = effects.breaker.kept_closed {
            tracing::warn!(
                name,
                reason = reason.as_str(),
                "circuit kept closed: too many endpoints of its set are ejected"
            );
        }
        for transition in &effects.breaker.transitions {
            let message = match transition.to {
                State::Open { .. } => "circuit opened",
                State::HalfOpen => "circuit half-open",
                State::Closed => "circuit closed",
            };
            let opened = matches!(transition.to, State::Open { .. });
            let reason = transition.reason.filter(|_| opened);
            tracing::info!(
                name,
                from = transition.from.as_str(),
                to = transition.to.as_str(),
                reason = reason.map(Reason::as_str),
                generation = transition.generation,
                "{message}"
            );
        }
    }

    /// Notifies subscribers, unless the state has changed since: then another thread notifies them.
    pub(crate) fn publish(&self, state: State, generation: u32) {
        if let Some(changes) = self.changes.get() {
            changes.send_if_modified(|last| {
                let newest = self.core.state().generation() == generation;
                newest && mem::replace(last, state) != state
            });
        }
    }
}

// === impl Call ===

impl Call {
    fn is_older(&self, limit: Duration, now: Instant) -> bool {
        let is_older = |started| now.saturating_duration_since(started) >= limit;
        self.started.is_some_and(is_older)
    }
}
