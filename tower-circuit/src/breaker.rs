//! The state machine of a circuit: closed, open, half-open. Time and outcomes are arguments, decisions are results.

mod probes;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{mem, num::NonZeroU32, time::Duration};

use tokio::time::Instant;
use tower_outcome::{Ejected, EjectionBudget, Verdict};

use self::probes::{Expired, Probes, Stage};
use crate::{
    Cooldown, Mode, Reason, Snapshot, State, Totals, Trip,
    cooldown::Backoff,
    fast_path::{
        packed::{CallId, PackedState, Tag},
        window::WindowCounts,
    },
};

pub(crate) use self::probes::ProbeSettings;

/// When to open, for how long, and when to close.
#[derive(Clone, Debug)]
pub(crate) struct BreakerSettings {
    pub(crate) trip: Trip,
    /// The calls without which no ratio is judged.
    pub(crate) min_calls: u32,
    pub(crate) cooldown: Cooldown,
    pub(crate) probes: ProbeSettings,
    /// Asked before the circuit opens because of what was answered.
    pub(crate) budget: Option<EjectionBudget>,
}

/// The state machine of one circuit.
#[derive(Debug)]
pub(crate) struct Breaker {
    settings: BreakerSettings,
    phase: Phase,
    /// An operator decides, not the outcomes.
    forced: bool,
    generation: u32,
    /// The generation of the calls in `counts`: the last one that was closed.
    counted_generation: u32,
    counts: WindowCounts,
    backoff: Backoff,
    last_probe: NonZeroU32,
    trips: u64,
    last_reason: Option<Reason>,
    /// When a call was last admitted or recorded here, which most calls of a closed circuit are not, or an operator decided.
    last_use: Option<Instant>,
    /// Its share of the budget, from when it opens until it closes.
    ejected: Option<Ejected>,
    /// It should be open, and the budget does not allow it.
    kept_closed: bool,
    times_kept_closed: u64,
    effects: BreakerEffects,
}

/// What is to be done after a change, once the lock is released.
#[derive(Debug, Default)]
pub(crate) struct BreakerEffects {
    /// Oldest first.
    pub(crate) transitions: Vec<Transition>,
    /// Why it should have opened, and the budget did not allow it.
    pub(crate) kept_closed: Option<Reason>,
    /// Something has changed that concerns waiting gates.
    pub(crate) wake_waiters: bool,
}

#[derive(Debug)]
enum Phase {
    /// Calls pass. -> `Open` on a failure, or a throttled or slow call, that meets a condition, if the budget allows.
    Closed,
    /// Calls are rejected. -> `HalfOpen` on the first call at or after `until`; `None`: only by an operator.
    Open {
        since: Instant,
        until: Option<Instant>,
    },
    /// Some calls are probes, and all other calls are rejected. -> `Closed` after enough successes, -> `Open` on a failure, on a
    /// probe past its deadline, and when callers have abandoned unanswered probes for as long in all.
    HalfOpen { since: Instant, probes: Probes },
}

/// The outcome of a call, and when it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallOutcome {
    /// Not `Ignore`.
    pub(crate) verdict: Verdict,
    pub(crate) slow: bool,
    pub(crate) hint: Option<Duration>,
    pub(crate) now: Instant,
}

/// What is counted outside of the breaker, including the call in question.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExternalCounts {
    pub(crate) consecutive_failures: u32,
    /// The successes of the window that were not recorded here.
    pub(crate) succeeded: u64,
    pub(crate) slice: u32,
}

/// Why a call is rejected, and when one may be admitted at the latest, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) next: Option<Instant>,
    pub(crate) reason: Option<Reason>,
}

/// When the next call may be admitted, unless something else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextAdmission {
    Now,
    At(Instant),
    /// Not before an operator allows it.
    Manual,
}

/// A transition, to be reported once the lock is released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transition {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) generation: u32,
    /// Why it is not closed.
    pub(crate) reason: Option<Reason>,
}

// === impl Breaker ===

impl Breaker {
    pub(crate) fn new(mut settings: BreakerSettings) -> Self {
        settings.probes.deadline = settings.probes.deadline.min(FAR);
        Self {
            backoff: Backoff::new(settings.cooldown.clone()),
            settings,
            phase: Phase::Closed,
            forced: false,
            generation: 0,
            counted_generation: 0,
            counts: WindowCounts::default(),
            last_probe: NonZeroU32::MIN,
            trips: 0,
            last_reason: None,
            last_use: None,
            ejected: None,
            kept_closed: false,
            times_kept_closed: 0,
            effects: BreakerEffects::default(),
        }
    }

    /// Whether a call made now would be admitted. Reserves nothing.
    pub(crate) fn may_admit(&mut self, now: Instant) -> Result<(), Rejection> {
        self.tick(now);
        match self.next_admission() {
            NextAdmission::At(until) if until > now => Err(self.rejection()),
            NextAdmission::Manual => Err(self.rejection()),
            NextAdmission::Now | NextAdmission::At(_) => Ok(()),
        }
    }

    /// Admits a call that starts now.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<CallId, Rejection> {
        self.admit_or_reserve(now, Stage::Running)
    }

    /// Reserves a probe for a call that is to follow. The reservation expires as a probe would.
    pub(crate) fn reserve(&mut self, now: Instant) -> Result<CallId, Rejection> {
        self.admit_or_reserve(now, Stage::Reserved)
    }

    /// Whether a reservation is still valid.
    pub(crate) fn is_reserved(&mut self, call: CallId, now: Instant) -> bool {
        self.tick(now);
        self.reservation(call).is_some()
    }

    /// Admits a call that has a reservation, or as any other call if that has expired.
    pub(crate) fn begin(&mut self, call: CallId, now: Instant) -> Result<CallId, Rejection> {
        self.tick(now);
        let until = after(now, self.settings.probes.deadline);
        match self.reservation(call) {
            Some((probes, number)) => probes.start(number, until),
            None => return self.admit(now),
        }
        Ok(call)
    }

    /// Returns a reservation. One that has expired or was used is left alone.
    pub(crate) fn release(&mut self, call: CallId) {
        if let Some((probes, number)) = self.reservation(call) {
            probes.free(number);
            self.effects.wake_waiters = true;
        }
    }

    /// Records a call whose outcome counts. `false`: stale.
    pub(crate) fn record(
        &mut self,
        call: CallId,
        outcome: CallOutcome,
        external: ExternalCounts,
    ) -> bool {
        self.last_use = Some(outcome.now);
        self.tick(outcome.now);
        if call.generation() != self.generation {
            return false;
        }
        match call.probe_number() {
            None => self.record_call(outcome, external),
            Some(number) if self.free_slot(number.get()) => self.record_probe(outcome),
            Some(_) => return false,
        }
        true
    }

    /// The good response head of a probe has arrived, and its body follows: at its deadline it has succeeded, unless the
    /// head was slow.
    pub(crate) fn answered(&mut self, call: CallId, slow: bool, now: Instant) {
        self.tick(now);
        if let Some((probes, number)) = self.probe(call) {
            probes.answer(number, slow);
        }
    }

    /// A call ended with an outcome that does not count. A probe frees its slot. `false`: stale.
    pub(crate) fn forget(&mut self, call: CallId, now: Instant) -> bool {
        self.tick(now);
        let is_current = call.generation() == self.generation;
        is_current
            && call
                .probe_number()
                .is_none_or(|number| self.free_slot(number.get()))
    }

    /// As [`forget`](Self::forget), for a call that was abandoned before there was a response, by a caller whose timeouts
    /// count. If that happens to one probe after the other, the other side is as unresponsive as if one of them had waited for
    /// the sum of their times.
    pub(crate) fn abandon(&mut self, call: CallId, now: Instant) -> bool {
        self.tick(now);
        let settings = self.settings.probes;
        if let Some((probes, number)) = self.probe(call)
            && probes.abandon(number, &settings, now)
        {
            self.open(Reason::ProbeTimedOut, None, now);
            return true;
        }
        self.forget(call, now)
    }

    /// Opens a circuit that is closed and automatic, as if one of its conditions were met.
    pub(crate) fn trip(&mut self, now: Instant) {
        self.tick(now);
        if matches!(self.phase, Phase::Closed) && !self.forced {
            self.open(Reason::Requested, None, now);
        }
    }

    /// Hands the decision to the operator, or back.
    pub(crate) fn set_mode(&mut self, mode: Mode, now: Instant) {
        if mode == self.mode() {
            return;
        }
        self.last_use = Some(now);
        let since = self.open_since().unwrap_or(now);
        let phase = match mode {
            Mode::ForcedOpen => Phase::Open { since, until: None },
            Mode::ForcedClosed => Phase::Closed,
            // A circuit that was held open is probed first; one that was held closed starts with empty counts.
            Mode::Automatic => match self.phase {
                Phase::Closed => Phase::Closed,
                _ => Phase::HalfOpen {
                    since,
                    probes: Probes::default(),
                },
            },
        };
        self.forced = mode != Mode::Automatic;
        if mode == Mode::ForcedOpen {
            self.trips += 1;
            self.last_reason = Some(Reason::Forced);
        }
        self.transition(phase);
    }

    /// Closed, automatic, with empty counts.
    pub(crate) fn reset(&mut self) {
        self.forced = false;
        self.transition(Phase::Closed);
    }

    pub(crate) fn next_admission(&self) -> NextAdmission {
        match &self.phase {
            Phase::Closed => NextAdmission::Now,
            Phase::Open { until, .. } => until.map_or(NextAdmission::Manual, NextAdmission::At),
            Phase::HalfOpen { probes, .. } => probes
                .next_free(&self.settings.probes)
                .map_or(NextAdmission::Now, NextAdmission::At),
        }
    }

    /// Whether nothing is recorded that a new breaker would not have.
    pub(crate) fn has_no_failures(&self, slice: u32) -> bool {
        let counts = self.counts.sum(slice);
        matches!(self.phase, Phase::Closed) && !self.forced && counts.bad() + counts.slow == 0
    }

    /// Since when no call has come here, if that is longer than anything on record matters: the window, the longest that it
    /// stays open, and a probe. An operator's decision always matters.
    pub(crate) fn stale_since(&self, window: Duration, now: Instant) -> Option<Instant> {
        let rejects = matches!(self.next_admission(), NextAdmission::At(until) if until > now);
        let matters = window
            .saturating_add(self.backoff.cap())
            .saturating_add(self.settings.probes.deadline);
        self.last_use.filter(|&last| {
            !self.forced && !rejects && now.saturating_duration_since(last) > matters
        })
    }

    /// The state now, and its generation.
    pub(crate) fn state(&mut self, now: Instant) -> (State, u32) {
        self.tick(now);
        (self.phase.state(), self.generation)
    }

    /// What is known here, and the generation of the window's calls.
    pub(crate) fn snapshot(&mut self, now: Instant, slice: u32) -> (Snapshot, u32) {
        self.tick(now);
        let snapshot = Snapshot {
            state: self.phase.state(),
            mode: self.mode(),
            consecutive_failures: 0,
            window: self.counts.sum(slice),
            trips: self.trips,
            kept_closed: self.times_kept_closed,
            last_reason: self.last_reason,
            open_since: self.open_since(),
            next_probe_at: self.next_probe_at(),
            totals: Totals::default(),
        };
        (snapshot, self.counted_generation)
    }

    pub(crate) fn tag(&self) -> Tag {
        match self.phase {
            Phase::Closed if self.settings.trip.slow_limit().is_some() => Tag::ClosedTimed,
            Phase::Closed => Tag::Closed,
            Phase::Open { .. } => Tag::Open,
            Phase::HalfOpen { .. } => Tag::HalfOpen,
        }
    }

    /// The effects since the last call of this.
    pub(crate) fn take_effects(&mut self) -> BreakerEffects {
        mem::take(&mut self.effects)
    }

    /// Applies what time alone has decided: reservations expire, and a probe past its deadline has failed, or succeeded if
    /// its response head has arrived.
    fn tick(&mut self, now: Instant) {
        while let Phase::HalfOpen { probes, .. } = &mut self.phase
            && let Some(expired) = probes.take_expired(now)
        {
            match expired {
                Expired::Reserved => self.effects.wake_waiters = true,
                Expired::Running(deadline) => self.open(Reason::ProbeTimedOut, None, deadline),
                Expired::AnsweredSlowly(deadline) => self.open(Reason::ProbeSlow, None, deadline),
                Expired::Answered => self.succeed_probe(),
            }
        }
    }

    fn admit_or_reserve(&mut self, now: Instant, stage: Stage) -> Result<CallId, Rejection> {
        self.last_use = Some(now);
        self.tick(now);
        if let Phase::Open {
            since,
            until: Some(until),
        } = self.phase
            && until <= now
        {
            self.transition(Phase::HalfOpen {
                since,
                probes: Probes::default(),
            });
        }
        let settings = self.settings.probes;
        match &mut self.phase {
            Phase::Closed => {
                let timed = self.settings.trip.slow_limit().is_some();
                Ok(CallId::call(self.generation, timed))
            }
            Phase::HalfOpen { probes, .. } if probes.has_free_slot(&settings) => {
                // From 1, and again from 1 after 2³² - 1.
                self.last_probe = self.last_probe.checked_add(1).unwrap_or(NonZeroU32::MIN);
                let until = after(now, settings.deadline);
                probes.take(self.last_probe.get(), until, stage);
                Ok(CallId::probe(self.generation, self.last_probe))
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => Err(self.rejection()),
        }
    }

    fn rejection(&self) -> Rejection {
        Rejection {
            next: self.next_probe_at(),
            reason: self.last_reason,
        }
    }

    /// The probes, if this call is one of the current generation.
    fn probe(&mut self, call: CallId) -> Option<(&mut Probes, u32)> {
        match (&mut self.phase, call.probe_number()) {
            (Phase::HalfOpen { probes, .. }, Some(number))
                if call.generation() == self.generation =>
            {
                Some((probes, number.get()))
            }
            _ => None,
        }
    }

    /// The probes, if this call has a reservation that is valid.
    fn reservation(&mut self, call: CallId) -> Option<(&mut Probes, u32)> {
        self.probe(call)
            .filter(|(probes, number)| probes.is_reserved(*number))
    }

    /// `false`: the slot was freed at the probe's deadline, which decided.
    fn free_slot(&mut self, number: u32) -> bool {
        let Phase::HalfOpen { probes, .. } = &mut self.phase else {
            return false;
        };
        self.effects.wake_waiters = true;
        probes.free(number)
    }

    fn record_call(&mut self, outcome: CallOutcome, external: ExternalCounts) {
        let CallOutcome { verdict, slow, .. } = outcome;
        self.counts.add(external.slice, verdict, slow);
        if verdict == Verdict::Success && !slow || self.forced {
            return;
        }
        let mut window = self.counts.sum(external.slice);
        window.succeeded += external.succeeded;
        let settings = &self.settings;
        match (settings.trip).reason(external.consecutive_failures, &window, settings.min_calls) {
            Some(reason) => self.open(reason, outcome.hint, outcome.now),
            None => self.kept_closed = false,
        }
    }

    fn record_probe(&mut self, outcome: CallOutcome) {
        let reason = match outcome.verdict {
            Verdict::Success if outcome.slow => Reason::ProbeSlow,
            Verdict::Success => return self.succeed_probe(),
            // A throttled probe is no reason to send more.
            Verdict::Failure | Verdict::Throttled | Verdict::Ignore => Reason::ProbeFailed,
        };
        self.open(reason, outcome.hint, outcome.now);
    }

    fn succeed_probe(&mut self) {
        let Phase::HalfOpen { probes, .. } = &mut self.phase else {
            return;
        };
        self.effects.wake_waiters = true;
        if probes.succeed(&self.settings.probes) {
            self.transition(Phase::Closed);
        }
    }

    /// Opens, if the budget allows it. If not, the circuit stays closed, and asks again at the next failure.
    fn open(&mut self, reason: Reason, hint: Option<Duration>, at: Instant) {
        if !self.may_eject() {
            return self.keep_closed(reason);
        }
        let until = after(at, self.backoff.next(hint));
        self.trips += 1;
        self.last_reason = Some(reason);
        let since = self.open_since().unwrap_or(at);
        self.transition(Phase::Open {
            since,
            until: Some(until),
        });
    }

    fn may_eject(&mut self) -> bool {
        let Some(budget) = &self.settings.budget else {
            return true;
        };
        if self.ejected.is_none() {
            self.ejected = budget.try_eject();
        }
        self.ejected.is_some()
    }

    fn keep_closed(&mut self, reason: Reason) {
        if !matches!(self.phase, Phase::Closed) {
            // A probe failed after the circuit had been forced open, which does not ask the budget.
            self.transition(Phase::Closed);
        }
        if !mem::replace(&mut self.kept_closed, true) {
            self.times_kept_closed += 1;
            self.effects.kept_closed = Some(reason);
        }
    }

    /// The only place where the state changes.
    fn transition(&mut self, phase: Phase) {
        let from = self.phase.state();
        self.phase = phase;
        self.generation = PackedState::next_generation(self.generation);
        self.effects.wake_waiters = true;
        self.kept_closed = false;
        let is_closed = matches!(self.phase, Phase::Closed);
        if is_closed {
            self.counted_generation = self.generation;
            self.counts.clear();
            self.backoff.reset();
            self.ejected = None;
        }
        self.effects.transitions.push(Transition {
            from,
            to: self.phase.state(),
            generation: self.generation,
            reason: self.last_reason.filter(|_| !is_closed),
        });
    }

    fn mode(&self) -> Mode {
        match (self.forced, &self.phase) {
            (false, _) => Mode::Automatic,
            (true, Phase::Closed) => Mode::ForcedClosed,
            (true, _) => Mode::ForcedOpen,
        }
    }

    fn open_since(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            Phase::Open { since, .. } | Phase::HalfOpen { since, .. } => Some(since),
        }
    }

    fn next_probe_at(&self) -> Option<Instant> {
        match self.next_admission() {
            NextAdmission::At(until) => Some(until),
            NextAdmission::Now | NextAdmission::Manual => None,
        }
    }
}

// === impl Phase ===

impl Phase {
    const fn state(&self) -> State {
        match self {
            Self::Closed => State::Closed,
            Self::Open { until, .. } => State::Open { until: *until },
            Self::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

/// At most thirty years, because an instant, or a number of nanoseconds, might not hold more.
fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}

const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
