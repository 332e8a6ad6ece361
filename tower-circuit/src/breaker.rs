//! The heart: closed, open, half-open. Time and verdicts come in, decisions go out.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;
use tower_outcome::{Ejected, EjectionBudget, Verdict};

use crate::{
    Cooldown, Counts, Evidence, LastCalls, Mode, Reason, State, Trip,
    cooldown::Backoff,
    probe::{Late, ProbeRules, Probes},
    window::{Row, Told},
    word::{Tag, Ticket, Word},
};

/// What a circuit goes by.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) trip: Trip,
    /// The calls without which no ratio is judged.
    pub(crate) at_least: NonZeroU32,
    pub(crate) cooldown: Cooldown,
    pub(crate) probes: ProbeRules,
    /// Whether each call is to be judged by the heart, and not only those that fail.
    pub(crate) asks: bool,
    /// Whom to ask before it opens because of what was answered.
    pub(crate) budget: Option<EjectionBudget>,
}

/// The state machine of one circuit.
#[derive(Debug)]
pub(crate) struct Breaker {
    trip: Trip,
    at_least: NonZeroU32,
    rules: ProbeRules,
    asks: bool,
    budget: Option<EjectionBudget>,
    /// Its place in the budget, from when it opens until it closes.
    ejected: Option<Ejected>,
    /// It should be open, and the budget does not allow it.
    kept_closed: bool,
    times_kept_closed: u64,
    backoff: Backoff,
    told: Told,
    row: Option<Row>,
    phase: Phase,
    forced: bool,
    generation: u32,
    /// The generation whose calls have been counted: the last one that was closed.
    counted: u32,
    last_probe: NonZeroU32,
    trips: u64,
    last_reason: Option<Reason>,
    /// When a call was last admitted or ended here, or an operator decided. Calls that go well while it is closed need not
    /// come here.
    last_use: Option<Instant>,
    news: Vec<Transition>,
    kept_closed_news: Option<Reason>,
    stirred: bool,
}

/// How a call ended, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Not `Ignore`.
    pub(crate) verdict: Verdict,
    pub(crate) slow: bool,
    pub(crate) hint: Option<Duration>,
    pub(crate) now: Instant,
    /// Whether to look at all the counts. Those that end badly are judged, and those that a policy wants to see.
    pub(crate) judged: bool,
}

/// What became of an [`Ending`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// Too late to matter.
    Stale,
    Counted,
    /// By the circuit's own conditions, which may have opened it.
    Judged {
        evidence: Evidence,
        /// It was kept closed, and they would not open it now. The user's policy may.
        relents: bool,
    },
}

/// What is counted outside of the heart, with the call in question in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside {
    pub(crate) failures_in_row: u32,
    /// Those of the window that went well, as far as the heart was not told.
    pub(crate) succeeded: u64,
    pub(crate) turn: u32,
}

/// No ticket: when one may be had at the latest (`None`: nobody knows), and why the circuit opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shut {
    pub(crate) next: Option<Instant>,
    pub(crate) reason: Option<Reason>,
}

/// Until when no call will be admitted, unless something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Now,
    Then(Instant),
    ForGood,
}

/// A transition, to be told once the lock is released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transition {
    pub(crate) from: Tag,
    pub(crate) to: Tag,
    pub(crate) state: State,
    pub(crate) generation: u32,
    /// Why it is not closed.
    pub(crate) reason: Option<Reason>,
}

/// What a look at the heart shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) state: State,
    pub(crate) mode: Mode,
    pub(crate) trips: u64,
    pub(crate) times_kept_closed: u64,
    pub(crate) last_reason: Option<Reason>,
    pub(crate) opened_since: Option<Instant>,
    pub(crate) next_probe_at: Option<Instant>,
    pub(crate) told: Counts,
    pub(crate) last_calls: Option<LastCalls>,
    pub(crate) counted: u32,
}

#[derive(Debug)]
enum Phase {
    /// Calls pass. -> `Open` on a bad one that trips it, if the ejection budget allows.
    Closed,
    /// Calls are refused. -> `HalfOpen` on the first call at or after `until`; by hand only where that is `None`.
    Open {
        since: Instant,
        until: Option<Instant>,
    },
    /// As many calls as there are places may try. -> `Closed` on enough successes, `Open` on a failure, at the deadline of
    /// one that was not answered, or when callers whose patience counts have given up and waited for as long in all.
    HalfOpen { since: Instant, probes: Probes },
}

// === impl Breaker ===

impl Breaker {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            row: rules.trip.row().map(|calls| Row::new(calls.get())),
            trip: rules.trip,
            at_least: rules.at_least,
            rules: ProbeRules {
                deadline: rules.probes.deadline.min(FAR),
                ..rules.probes
            },
            asks: rules.asks,
            budget: rules.budget,
            ejected: None,
            kept_closed: false,
            times_kept_closed: 0,
            backoff: Backoff::new(rules.cooldown),
            told: Told::default(),
            phase: Phase::Closed,
            forced: false,
            generation: 0,
            counted: 0,
            last_probe: NonZeroU32::MIN,
            trips: 0,
            last_reason: None,
            last_use: None,
            news: Vec::new(),
            kept_closed_news: None,
            stirred: false,
        }
    }

    /// Whether a call made now would be admitted. Takes nothing.
    pub(crate) fn may_admit(&mut self, now: Instant) -> Result<(), Shut> {
        self.tick(now);
        match self.until() {
            Until::Then(until) if until > now => Err(self.shut()),
            Until::ForGood => Err(self.shut()),
            Until::Now | Until::Then(_) => Ok(()),
        }
    }

    /// Admits a call that starts now.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<Ticket, Shut> {
        self.take(now, true)
    }

    /// Promises a probe to a call that is to follow. The promise lapses as a probe would.
    pub(crate) fn reserve(&mut self, now: Instant) -> Result<Ticket, Shut> {
        self.take(now, false)
    }

    /// Whether a promise still holds.
    pub(crate) fn holds(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.tick(now);
        self.promised_to(ticket).is_some()
    }

    /// Admits a call that was promised a probe, or any other way that is open to it now.
    pub(crate) fn begin(&mut self, ticket: Ticket, now: Instant) -> Result<Ticket, Shut> {
        self.tick(now);
        let until = after(now, self.rules.deadline);
        match self.promised_to(ticket) {
            Some((probes, id)) => probes.start(id, until),
            None => return self.admit(now),
        }
        Ok(ticket)
    }

    /// Takes a promise back. One that lapsed or was redeemed is left alone.
    pub(crate) fn release(&mut self, ticket: Ticket) {
        if let Some((probes, id)) = self.promised_to(ticket) {
            probes.free(id);
            self.stirred = true;
        }
    }

    /// A call ended, and said something.
    pub(crate) fn end(&mut self, ticket: Ticket, ending: Ending, outside: Outside) -> Ended {
        self.last_use = Some(ending.now);
        self.tick(ending.now);
        if ticket.generation() != self.generation {
            return Ended::Stale;
        }
        let Some(id) = ticket.id() else {
            return self.end_call(ending, outside);
        };
        if !self.free_place(id.get()) {
            return Ended::Stale;
        }
        if let Some(reason) = self.judge_probe(ending) {
            self.open(reason, ending.hint, ending.now);
        }
        Ended::Counted
    }

    /// A probe has a good head, and its body is on its way: at its deadline it has succeeded, unless the head was slow.
    pub(crate) fn answered(&mut self, ticket: Ticket, slow: bool, now: Instant) {
        self.tick(now);
        if let (Phase::HalfOpen { probes, .. }, Some(id)) = (&mut self.phase, ticket.id())
            && ticket.generation() == self.generation
        {
            probes.answer(id.get(), slow);
        }
    }

    fn end_call(&mut self, ending: Ending, outside: Outside) -> Ended {
        self.told.add(outside.turn, ending.verdict, ending.slow);
        if let Some(row) = &mut self.row {
            row.push(ending.verdict != Verdict::Success);
        }
        if !ending.judged {
            return Ended::Counted;
        }
        let evidence = self.evidence(ending, outside);
        let mut relents = false;
        match self.judge(&evidence) {
            Some(reason) => self.open(reason, ending.hint, ending.now),
            // A success is not judged, and so does not say that it need not open.
            None => relents = self.kept_closed && evidence.is_bad(),
        }
        Ended::Judged { evidence, relents }
    }

    /// Nobody wants it open any more. The next time that it is kept closed is another one.
    pub(crate) fn relent(&mut self, generation: u32) {
        if generation == self.generation {
            self.kept_closed = false;
        }
    }

    /// Somebody else judged this generation, and found that it should open.
    pub(crate) fn trip(
        &mut self,
        generation: u32,
        reason: Reason,
        hint: Option<Duration>,
        now: Instant,
    ) {
        if generation == self.generation && matches!(self.phase, Phase::Closed) && !self.forced {
            self.open(reason, hint, now);
        }
    }

    /// A call ended without saying anything. A probe gives its place to the next. `false`: too late to matter.
    pub(crate) fn forget(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.tick(now);
        if ticket.generation() != self.generation {
            return false;
        }
        ticket.id().is_none_or(|id| self.free_place(id.get()))
    }

    /// As [`forget`](Self::forget), for a call that was given up, unanswered, by a caller whose patience counts. Where each
    /// probe is given up before its deadline, and none is answered, the other side is as silent as if one of them had waited
    /// for all of that time.
    pub(crate) fn abandon(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.tick(now);
        if let (Phase::HalfOpen { probes, .. }, Some(id)) = (&mut self.phase, ticket.id())
            && ticket.generation() == self.generation
            && probes.give_up(id.get(), &self.rules, now)
        {
            self.open(Reason::ProbeTimedOut, None, now);
            return true;
        }
        self.forget(ticket, now)
    }

    /// Hands the circuit to the operator, or back.
    pub(crate) fn set_mode(&mut self, mode: Mode, now: Instant) {
        if mode == self.mode() {
            return;
        }
        self.last_use = Some(now);
        let since = self.opened_since().unwrap_or(now);
        let phase = match mode {
            Mode::ForcedOpen => Phase::Open { since, until: None },
            Mode::ForcedClosed => Phase::Closed,
            // What was held open is tried first; what was held closed starts afresh.
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
        self.enter(phase);
    }

    /// Closed, automatic, with a clean slate.
    pub(crate) fn reset(&mut self) {
        self.forced = false;
        self.enter(Phase::Closed);
    }

    /// Until when a call would be refused, as far as is known now.
    pub(crate) fn until(&self) -> Until {
        match &self.phase {
            Phase::Closed => Until::Now,
            Phase::Open { until, .. } => until.map_or(Until::ForGood, Until::Then),
            Phase::HalfOpen { probes, .. } => probes
                .next_free(&self.rules)
                .map_or(Until::Now, Until::Then),
        }
    }

    /// Whether it can be told from a new one, apart from the calls that went well.
    pub(crate) fn is_unblemished(&mut self, turn: u32) -> bool {
        let bad = self.told.sum(turn);
        let last = self.row.as_ref().map_or(0, |row| row.look().failed);
        matches!(self.phase, Phase::Closed)
            && !self.forced
            && bad.bad() + bad.slow + u64::from(last) == 0
    }

    /// Since when nothing has come here, if that is longer than anything on record matters: the window, the longest that it
    /// stays open, and a probe. An operator's decision always matters.
    pub(crate) fn stale_since(&self, window: Duration, now: Instant) -> Option<Instant> {
        let is_over = match self.phase {
            Phase::Closed | Phase::HalfOpen { .. } => true,
            Phase::Open { until, .. } => until.is_some_and(|until| until <= now),
        };
        let matters = window
            .saturating_add(self.backoff.cap())
            .saturating_add(self.rules.deadline);
        self.last_use.filter(|&last| {
            !self.forced && is_over && now.saturating_duration_since(last) > matters
        })
    }

    /// The state now, and its generation.
    pub(crate) fn state(&mut self, now: Instant) -> (State, u32) {
        self.tick(now);
        (self.phase.state(), self.generation)
    }

    pub(crate) fn look(&mut self, now: Instant, turn: u32) -> Look {
        self.tick(now);
        Look {
            state: self.phase.state(),
            mode: self.mode(),
            trips: self.trips,
            times_kept_closed: self.times_kept_closed,
            last_reason: self.last_reason,
            opened_since: self.opened_since(),
            next_probe_at: self.next_probe_at(),
            told: self.told.sum(turn),
            last_calls: self.row.as_ref().map(Row::look),
            counted: self.counted,
        }
    }

    /// The transitions since this was last asked, oldest first.
    pub(crate) fn take_news(&mut self) -> Vec<Transition> {
        std::mem::take(&mut self.news)
    }

    /// Why it should have opened since this was last asked, if the budget did not allow it.
    pub(crate) fn take_kept_closed(&mut self) -> Option<Reason> {
        self.kept_closed_news.take()
    }

    /// Whether something changed that a waiting gate should look at again.
    pub(crate) fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    /// Makes true what time alone has decided: a promise lapses, a probe past its deadline has failed, or has succeeded if
    /// it was answered.
    fn tick(&mut self, now: Instant) {
        while let Phase::HalfOpen { probes, .. } = &mut self.phase
            && let Some(late) = probes.take_late(now)
        {
            match late {
                Late::Promised => self.stirred = true,
                Late::Running(deadline) => self.open(Reason::ProbeTimedOut, None, deadline),
                Late::AnsweredSlowly(deadline) => self.open(Reason::ProbeSlow, None, deadline),
                Late::Answered => self.succeed_probe(),
            }
        }
    }

    /// `false`: the probe has decided what it could, at its deadline.
    fn free_place(&mut self, id: u32) -> bool {
        let Phase::HalfOpen { probes, .. } = &mut self.phase else {
            return false;
        };
        self.stirred = true;
        probes.free(id)
    }

    fn take(&mut self, now: Instant, running: bool) -> Result<Ticket, Shut> {
        self.last_use = Some(now);
        self.tick(now);
        if let Phase::Open {
            since,
            until: Some(until),
        } = self.phase
            && until <= now
        {
            self.enter(Phase::HalfOpen {
                since,
                probes: Probes::default(),
            });
        }
        match &mut self.phase {
            Phase::Closed => Ok(Ticket::call(self.generation, self.asks)),
            Phase::HalfOpen { probes, .. } if probes.is_free(&self.rules) => {
                // From 1, and again from 1 after four thousand million.
                self.last_probe = self.last_probe.checked_add(1).unwrap_or(NonZeroU32::MIN);
                probes.take(
                    self.last_probe.get(),
                    after(now, self.rules.deadline),
                    running,
                );
                Ok(Ticket::probe(self.generation, self.last_probe))
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => Err(self.shut()),
        }
    }

    /// Why a call is refused, and until when.
    fn shut(&self) -> Shut {
        Shut {
            next: self.next_probe_at(),
            reason: self.last_reason,
        }
    }

    fn promised_to(&mut self, ticket: Ticket) -> Option<(&mut Probes, u32)> {
        match (&mut self.phase, ticket.id()) {
            (Phase::HalfOpen { probes, .. }, Some(id))
                if ticket.generation() == self.generation && probes.is_promised(id.get()) =>
            {
                Some((probes, id.get()))
            }
            _ => None,
        }
    }

    fn evidence(&self, ending: Ending, outside: Outside) -> Evidence {
        let Ending {
            verdict, slow, now, ..
        } = ending;
        let mut window = self.told.sum(outside.turn);
        window.succeeded += outside.succeeded;
        let last_calls = self.row.as_ref().map(Row::look);
        let (generation, failures_in_row) = (self.generation, outside.failures_in_row);
        Evidence {
            verdict,
            slow,
            now,
            generation,
            failures_in_row,
            window,
            last_calls,
        }
    }

    fn judge(&self, evidence: &Evidence) -> Option<Reason> {
        if evidence.is_bad() && !self.forced {
            self.trip.judge(evidence, self.at_least)
        } else {
            None
        }
    }

    /// Why to open again; or closes after enough successes.
    fn judge_probe(&mut self, ending: Ending) -> Option<Reason> {
        match ending.verdict {
            Verdict::Success if ending.slow => return Some(Reason::ProbeSlow),
            Verdict::Success => self.succeed_probe(),
            // Who asks for less is not well enough to close for.
            _ => return Some(Reason::ProbeFailed),
        }
        None
    }

    fn succeed_probe(&mut self) {
        let Phase::HalfOpen { probes, .. } = &mut self.phase else {
            return;
        };
        self.stirred = true;
        if probes.succeed(&self.rules) {
            self.enter(Phase::Closed);
        }
    }

    /// Opens, unless too many others are out: then it goes on closed, and asks again at the next failure.
    fn open(&mut self, reason: Reason, hint: Option<Duration>, at: Instant) {
        if !self.may_be_out() {
            return self.keep_closed(reason);
        }
        let until = after(at, self.backoff.next(hint));
        self.trips += 1;
        self.last_reason = Some(reason);
        let since = self.opened_since().unwrap_or(at);
        self.enter(Phase::Open {
            since,
            until: Some(until),
        });
    }

    fn may_be_out(&mut self) -> bool {
        let Some(budget) = &self.budget else {
            return true;
        };
        if self.ejected.is_none() {
            self.ejected = budget.try_eject();
        }
        self.ejected.is_some()
    }

    fn keep_closed(&mut self, reason: Reason) {
        if !matches!(self.phase, Phase::Closed) {
            // Its probe failed after it had been forced open, which asks for no place.
            self.enter(Phase::Closed);
        }
        if !std::mem::replace(&mut self.kept_closed, true) {
            self.times_kept_closed += 1;
            self.kept_closed_news = Some(reason);
        }
    }

    /// The only door between states.
    fn enter(&mut self, phase: Phase) {
        let from = self.tag();
        self.phase = phase;
        self.generation = Word::next_generation(self.generation);
        self.stirred = true;
        self.kept_closed = false;
        if matches!(self.phase, Phase::Closed) {
            self.begin_afresh();
            self.ejected = None;
        }
        self.news.push(Transition {
            from,
            to: self.tag(),
            state: self.phase.state(),
            generation: self.generation,
            reason: self
                .last_reason
                .filter(|_| !matches!(self.phase, Phase::Closed)),
        });
    }

    fn begin_afresh(&mut self) {
        self.counted = self.generation;
        self.backoff.reset();
        self.told.clear();
        if let Some(row) = &mut self.row {
            row.clear();
        }
    }

    const fn tag(&self) -> Tag {
        match self.phase {
            Phase::Closed if self.asks => Tag::Asking,
            Phase::Closed => Tag::Closed,
            Phase::Open { .. } => Tag::Open,
            Phase::HalfOpen { .. } => Tag::HalfOpen,
        }
    }

    fn mode(&self) -> Mode {
        match (self.forced, &self.phase) {
            (false, _) => Mode::Automatic,
            (true, Phase::Closed) => Mode::ForcedClosed,
            (true, _) => Mode::ForcedOpen,
        }
    }

    fn opened_since(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            Phase::Open { since, .. } | Phase::HalfOpen { since, .. } => Some(since),
        }
    }

    fn next_probe_at(&self) -> Option<Instant> {
        match self.until() {
            Until::Then(until) => Some(until),
            Until::Now | Until::ForGood => None,
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

/// Thirty years stand for more, which an instant, or a number of nanoseconds, might not hold.
fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}

const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

#[cfg(all(test, not(loom)))]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::window::{instant, nanos_at};

    const SECOND: Duration = Duration::from_secs(1);

    /// Trips at the second failure in a row; open for 10 s; probes have 3 s.
    fn rules() -> Rules {
        let trip = Trip::consecutive(NonZeroU32::new(2).unwrap());
        let probes = ProbeRules {
            places: NonZeroU32::MIN,
            successes: NonZeroU32::MIN,
            deadline: 3 * SECOND,
        };
        let at_least = NonZeroU32::new(4).unwrap();
        Rules {
            trip,
            at_least,
            cooldown: Cooldown::fixed(10 * SECOND).exact(),
            probes,
            asks: false,
            budget: None,
        }
    }

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(rules()), Instant::now())
    }

    /// Several probes at once, of which several must succeed.
    fn probing(places: u32, successes: u32) -> (Breaker, Instant) {
        let [places, successes] = [places, successes].map(|count| NonZeroU32::new(count).unwrap());
        let probes = ProbeRules {
            places,
            successes,
            deadline: 3 * SECOND,
        };
        let (mut breaker, now) = (Breaker::new(Rules { probes, ..rules() }), Instant::now());
        assert!(fail(&mut breaker, 2, None, now));
        (breaker, now + 10 * SECOND)
    }

    fn end(breaker: &mut Breaker, ticket: Ticket, ending: Ending, failures_in_row: u32) -> bool {
        let ended = breaker.end(
            ticket,
            ending,
            Outside {
                failures_in_row,
                succeeded: 0,
                turn: 0,
            },
        );
        !matches!(ended, Ended::Stale)
    }

    fn ending(verdict: Verdict, now: Instant) -> Ending {
        Ending {
            verdict,
            slow: false,
            hint: None,
            now,
            judged: true,
        }
    }

    fn open() -> (Breaker, Instant) {
        let (mut breaker, now) = breaker();
        assert!(fail(&mut breaker, 2, None, now));
        (breaker, now)
    }

    /// Open, and the time of the first probe.
    fn cooled_down() -> (Breaker, Instant) {
        let (breaker, now) = open();
        (breaker, now + 10 * SECOND)
    }

    fn fail(
        breaker: &mut Breaker,
        failures_in_row: u32,
        hint: Option<Duration>,
        now: Instant,
    ) -> bool {
        let ticket = breaker.admit(now).unwrap();
        end(
            breaker,
            ticket,
            Ending {
                hint,
                ..ending(Verdict::Failure, now)
            },
            failures_in_row,
        )
    }

    fn fail_probe(breaker: &mut Breaker, ticket: Ticket, now: Instant) -> bool {
        end(breaker, ticket, ending(Verdict::Failure, now), 0)
    }

    fn succeed(breaker: &mut Breaker, ticket: Ticket, now: Instant) -> bool {
        end(breaker, ticket, ending(Verdict::Success, now), 0)
    }

    fn look(breaker: &mut Breaker, now: Instant) -> Look {
        breaker.look(now, 0)
    }

    fn may_admit(breaker: &mut Breaker, now: Instant) -> bool {
        breaker.may_admit(now).is_ok()
    }

    fn state(breaker: &mut Breaker, now: Instant) -> State {
        look(breaker, now).state
    }

    #[test]
    fn it_opens_at_the_threshold_and_not_before() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, 1, None, now);
        assert_eq!(state(&mut breaker, now), State::Closed);
        fail(&mut breaker, 2, None, now);
        assert_eq!(
            state(&mut breaker, now),
            State::Open {
                until: Some(now + 10 * SECOND)
            }
        );
        assert_eq!(
            look(&mut breaker, now).last_reason,
            Some(Reason::ConsecutiveFailures)
        );
    }

    #[test]
    fn it_refuses_until_the_last_nanosecond_and_says_when() {
        let (mut breaker, now) = open();
        let until = now + 10 * SECOND;
        let shut = breaker.admit(until - Duration::from_nanos(1)).unwrap_err();
        assert_eq!(
            shut,
            Shut {
                next: Some(until),
                reason: Some(Reason::ConsecutiveFailures)
            }
        );
        assert!(breaker.admit(until).unwrap().is_probe());
    }

    #[test]
    fn one_probe_at_a_time() {
        let (mut breaker, now) = cooled_down();
        breaker.admit(now).unwrap();
        assert_eq!(breaker.admit(now).unwrap_err().next, Some(now + 3 * SECOND));
        assert!(!may_admit(&mut breaker, now));
    }

    #[test]
    fn a_probe_that_succeeds_closes_it() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        assert!(succeed(&mut breaker, probe, now));
        assert_eq!(state(&mut breaker, now), State::Closed);
        assert_eq!(look(&mut breaker, now).opened_since, None);
    }

    #[test]
    fn a_probe_that_fails_opens_it_again_and_it_has_been_open_all_along() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        assert!(fail_probe(&mut breaker, probe, now + SECOND));
        let look = look(&mut breaker, now + SECOND);
        assert_eq!(
            look.state,
            State::Open {
                until: Some(now + 11 * SECOND)
            }
        );
        assert_eq!(
            (look.trips, look.last_reason),
            (2, Some(Reason::ProbeFailed))
        );
        assert_eq!(look.opened_since, Some(now - 10 * SECOND));
    }

    #[test]
    fn a_cancelled_probe_lets_the_next_caller_probe() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        breaker.forget(probe, now);
        assert!(breaker.take_stirred());
        assert!(breaker.admit(now).unwrap().is_probe());
    }

    #[test]
    fn a_probe_past_its_deadline_has_failed_at_its_deadline_whenever_somebody_looks() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        let (deadline, looked) = (now + 3 * SECOND, now + 7 * SECOND);
        assert!(!succeed(&mut breaker, probe, looked), "too late");
        let look = look(&mut breaker, looked);
        assert_eq!(
            look.state,
            State::Open {
                until: Some(deadline + 10 * SECOND)
            }
        );
        assert_eq!(look.last_reason, Some(Reason::ProbeTimedOut));
    }

    #[test]
    fn a_probe_that_was_answered_in_time_has_succeeded_at_its_deadline_whatever_becomes_of_its_body()
     {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        breaker.answered(probe, false, now + 2 * SECOND);
        assert_eq!(
            breaker.admit(now + 2 * SECOND).unwrap_err().next,
            Some(now + 3 * SECOND),
            "not yet"
        );
        assert!(
            !breaker.admit(now + 3 * SECOND).unwrap().is_probe(),
            "closed by the first who looks"
        );
        assert_eq!(look(&mut breaker, now + 3 * SECOND).trips, 1);
        assert!(
            !fail_probe(&mut breaker, probe, now + 4 * SECOND)
                && !breaker.forget(probe, now + 4 * SECOND)
        );
        assert_eq!(state(&mut breaker, now + 4 * SECOND), State::Closed);
    }

    #[test]
    fn impatient_callers_do_not_keep_it_half_open_before_one_that_is_silent() {
        let (mut breaker, mut now) = cooled_down(); // one probe at a time, of three seconds
        let almost = SECOND - Duration::from_millis(1);
        for waited in [almost, Duration::ZERO, almost, almost] {
            let probe = breaker.admit(now).unwrap();
            assert!(breaker.abandon(probe, now + waited));
            assert_eq!(state(&mut breaker, now + waited), State::HalfOpen);
            now += 2 * waited;
        }
        let probe = breaker.admit(now).unwrap();
        assert!(breaker.abandon(probe, now + Duration::from_millis(3)));
        let look = look(&mut breaker, now + SECOND);
        assert_eq!(look.last_reason, Some(Reason::ProbeTimedOut));
        assert!(
            matches!(look.state, State::Open { until: Some(until) } if until >= now + 10 * SECOND)
        );
    }

    #[test]
    fn a_deadline_without_measure_is_not_taken_for_one_that_callers_have_waited_for() {
        let mut rules = rules();
        rules.probes.deadline = Duration::MAX;
        let (mut breaker, now) = (Breaker::new(rules), Instant::now());
        breaker.set_mode(Mode::ForcedOpen, now);
        breaker.set_mode(Mode::Automatic, now);
        for _ in 0..10 {
            let probe = breaker.admit(now).unwrap();
            assert!(breaker.abandon(probe, now + SECOND));
            assert_eq!(state(&mut breaker, now + SECOND), State::HalfOpen);
        }
    }

    #[test]
    fn an_answer_or_a_refusal_further_in_does_not_make_it_silent() {
        let (mut breaker, now) = probing(1, 2);
        let probe = breaker.admit(now).unwrap();
        assert!(breaker.forget(probe, now + SECOND), "a refusal further in");
        let probe = breaker.admit(now + SECOND).unwrap();
        breaker.answered(probe, false, now + 2 * SECOND);
        assert!(succeed(&mut breaker, probe, now + 2 * SECOND));
        let probe = breaker.admit(now + 3 * SECOND).unwrap();
        assert!(breaker.abandon(probe, now + 4 * SECOND));
        assert_eq!(state(&mut breaker, now + 4 * SECOND), State::HalfOpen);
    }

    #[test]
    fn a_probe_that_was_answered_fails_if_its_body_does_before_the_deadline() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        breaker.answered(probe, false, now);
        assert!(fail_probe(&mut breaker, probe, now + 2 * SECOND));
        assert_eq!(
            look(&mut breaker, now + 3 * SECOND).last_reason,
            Some(Reason::ProbeFailed)
        );
    }

    #[test]
    fn a_probe_counts_once_be_it_at_its_deadline_or_at_the_end_of_its_body() {
        let (mut breaker, now) = probing(1, 2);
        let probe = breaker.admit(now).unwrap();
        breaker.answered(probe, false, now);
        let now = now + 3 * SECOND;
        assert_eq!(state(&mut breaker, now), State::HalfOpen);
        assert!(!succeed(&mut breaker, probe, now), "it has succeeded once");
        assert_eq!(state(&mut breaker, now), State::HalfOpen);
        let second = breaker.admit(now).unwrap();
        assert!(
            !fail_probe(&mut breaker, probe, now),
            "nor does it fail for another"
        );
        assert!(succeed(&mut breaker, second, now));
        assert_eq!(state(&mut breaker, now), State::Closed);
    }

    #[test]
    fn deadlines_pass_in_their_order_and_failures_first() {
        for (wait, answered_first, state_then) in [
            (SECOND, true, State::Closed),
            (SECOND, false, State::Open { until: None }),
            (Duration::ZERO, true, State::Open { until: None }),
        ] {
            let (mut breaker, now) = probing(2, 1);
            let (first, second) = (
                breaker.admit(now).unwrap(),
                breaker.admit(now + wait).unwrap(),
            );
            let answered = if answered_first { first } else { second };
            breaker.answered(answered, false, now + wait);
            let ended = state(&mut breaker, now + 60 * SECOND);
            assert_eq!(
                ended == State::Closed,
                state_then == State::Closed,
                "{wait:?} {answered_first}"
            );
        }
    }

    #[test]
    fn an_answered_probe_whose_head_was_slow_closes_nothing_at_its_deadline() {
        for (slow, reason) in [(true, Some(Reason::ProbeSlow)), (false, None)] {
            let (mut breaker, now) = cooled_down();
            let probe = breaker.admit(now).unwrap();
            breaker.answered(probe, slow, now + SECOND);
            let look = look(&mut breaker, now + 3 * SECOND);
            assert_eq!(
                look.last_reason.filter(|_| look.state != State::Closed),
                reason
            );
        }
    }

    #[test]
    fn an_answer_to_a_call_of_another_time_changes_nothing() {
        let (mut breaker, now) = breaker();
        let early = breaker.admit(now).unwrap();
        fail(&mut breaker, 2, None, now);
        let now = now + 10 * SECOND;
        let probe = breaker.admit(now).unwrap();
        breaker.answered(early, false, now);
        assert_eq!(
            look(&mut breaker, now + 3 * SECOND).last_reason,
            Some(Reason::ProbeTimedOut)
        );
        breaker.answered(probe, false, now + 3 * SECOND);
        assert!(
            matches!(state(&mut breaker, now + 3 * SECOND), State::Open { .. }),
            "too late"
        );
    }

    #[test]
    fn time_that_jumps_far_ahead_leaves_no_wedge() {
        let (mut breaker, now) = cooled_down();
        breaker.admit(now).unwrap();
        let later = now + 365 * 86_400 * SECOND;
        assert!(may_admit(&mut breaker, later));
        assert!(breaker.admit(later).unwrap().is_probe());
    }

    #[test]
    fn a_result_from_before_the_last_transition_decides_nothing() {
        let (mut breaker, now) = breaker();
        let early = breaker.admit(now).unwrap();
        let other = breaker.admit(now).unwrap();
        fail(&mut breaker, 2, None, now);
        let now = now + 10 * SECOND;
        let probe = breaker.admit(now).unwrap();
        assert!(!succeed(&mut breaker, early, now));
        assert!(!fail_probe(&mut breaker, other, now));
        assert_eq!(state(&mut breaker, now), State::HalfOpen);
        assert!(succeed(&mut breaker, probe, now));
    }

    #[test]
    fn a_hint_raises_the_open_time_up_to_the_cap() {
        for (hint, open_for) in [(1, 10), (30, 30), (86_400, 60)] {
            let (mut breaker, now) = breaker();
            fail(&mut breaker, 2, Some(hint * SECOND), now);
            assert_eq!(
                state(&mut breaker, now),
                State::Open {
                    until: Some(now + open_for * SECOND)
                }
            );
        }
    }

    #[test]
    fn a_reservation_lapses_and_what_comes_after_it_is_left_alone() {
        let (mut breaker, now) = cooled_down();
        let promised = breaker.reserve(now).unwrap();
        assert!(breaker.reserve(now).is_err());
        assert!(breaker.holds(promised, now + 2 * SECOND));
        let now = now + 3 * SECOND;
        assert!(!breaker.holds(promised, now));
        assert_eq!(
            state(&mut breaker, now),
            State::HalfOpen,
            "nothing was sent, so nothing failed"
        );
        let other = breaker.reserve(now).unwrap();
        breaker.release(promised);
        assert!(breaker.holds(other, now));
        assert!(
            breaker.begin(promised, now).is_err(),
            "the place is another's now"
        );
    }

    #[test]
    fn a_reservation_begun_has_its_whole_deadline_and_is_not_given_back() {
        let (mut breaker, now) = cooled_down();
        let promised = breaker.reserve(now).unwrap();
        let now = now + 2 * SECOND;
        let probe = breaker.begin(promised, now).unwrap();
        breaker.release(promised);
        assert_eq!(breaker.admit(now).unwrap_err().next, Some(now + 3 * SECOND));
        assert!(succeed(&mut breaker, probe, now));
    }

    #[test]
    fn a_late_call_of_a_lapsed_reservation_takes_what_is_free() {
        let (mut breaker, now) = cooled_down();
        let promised = breaker.reserve(now).unwrap();
        assert!(
            breaker
                .begin(promised, now + 5 * SECOND)
                .unwrap()
                .is_probe()
        );
        let (mut breaker, now) = cooled_down();
        let promised = breaker.reserve(now).unwrap();
        breaker.set_mode(Mode::ForcedClosed, now);
        assert!(!breaker.begin(promised, now).unwrap().is_probe());
    }

    #[test]
    fn forced_states_hold_whatever_happens() {
        let (mut breaker, now) = breaker();
        breaker.set_mode(Mode::ForcedClosed, now);
        fail(&mut breaker, u32::MAX, None, now);
        assert_eq!(look(&mut breaker, now).mode, Mode::ForcedClosed);
        assert!(may_admit(&mut breaker, now));
        breaker.set_mode(Mode::ForcedOpen, now);
        let later = now + 3600 * SECOND;
        assert_eq!(
            breaker.admit(later).unwrap_err(),
            Shut {
                next: None,
                reason: Some(Reason::Forced)
            }
        );
        assert_eq!(look(&mut breaker, later).mode, Mode::ForcedOpen);
    }

    #[test]
    fn handed_back_from_forced_open_a_probe_decides() {
        let (mut breaker, now) = breaker();
        breaker.set_mode(Mode::ForcedOpen, now);
        breaker.set_mode(Mode::Automatic, now);
        assert_eq!(state(&mut breaker, now), State::HalfOpen);
        assert!(breaker.admit(now).unwrap().is_probe());
        breaker.reset();
        assert_eq!(state(&mut breaker, now), State::Closed);
    }

    #[test]
    fn handed_back_without_having_been_forced_nothing_changes() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        breaker.set_mode(Mode::Automatic, now);
        assert!(succeed(&mut breaker, probe, now));
    }

    #[test]
    fn each_transition_is_told_once_with_its_reason() {
        let (mut breaker, now) = cooled_down();
        breaker.admit(now).unwrap();
        breaker.admit(now + 60 * SECOND).unwrap();
        let told: Vec<_> = breaker
            .take_news()
            .iter()
            .map(|news| (news.from, news.to, news.reason))
            .collect();
        assert_eq!(
            told,
            [
                (Tag::Closed, Tag::Open, Some(Reason::ConsecutiveFailures)),
                (Tag::Open, Tag::HalfOpen, Some(Reason::ConsecutiveFailures)),
                (Tag::HalfOpen, Tag::Open, Some(Reason::ProbeTimedOut)),
                (Tag::Open, Tag::HalfOpen, Some(Reason::ProbeTimedOut)),
            ]
        );
        assert!(breaker.take_news().is_empty());
    }

    #[test]
    fn durations_without_measure_do_not_overflow() {
        let cooldown = Cooldown::new(Duration::MAX).cap(Duration::MAX).exact();
        let probes = ProbeRules {
            deadline: Duration::MAX,
            ..rules().probes
        };
        let mut breaker = Breaker::new(Rules {
            cooldown,
            probes,
            ..rules()
        });
        let now = Instant::now();
        fail(&mut breaker, 2, Some(Duration::MAX), now);
        assert!(!may_admit(&mut breaker, now + 365 * 86_400 * SECOND));
        // What would be a second, counted in 64 bits of nanoseconds.
        let (cooldown, now) = (
            Cooldown::fixed(Duration::from_nanos(u64::MAX) + SECOND),
            instant(0),
        );
        let mut breaker = Breaker::new(Rules {
            cooldown,
            ..rules()
        });
        fail(&mut breaker, 2, None, now);
        let Until::Then(until) = breaker.until() else {
            panic!("open for a time")
        };
        assert_eq!(instant(nanos_at(until)), until);
    }

    #[test]
    fn as_many_probes_as_there_are_places_and_each_has_its_own_deadline() {
        let (mut breaker, now) = probing(2, 2);
        let first = breaker.admit(now).unwrap();
        let second = breaker.admit(now + SECOND).unwrap();
        assert_ne!(first, second);
        assert_eq!(
            breaker.admit(now + SECOND).unwrap_err().next,
            Some(now + 3 * SECOND),
            "the first's"
        );
        assert!(succeed(&mut breaker, first, now + 2 * SECOND));
        assert!(
            breaker.admit(now + 2 * SECOND).unwrap().is_probe(),
            "its place is free again"
        );
        assert!(
            !succeed(&mut breaker, second, now + 4 * SECOND),
            "it had failed a nanosecond before"
        );
        let look = look(&mut breaker, now + 4 * SECOND);
        assert_eq!(
            look.state,
            State::Open {
                until: Some(now + 14 * SECOND)
            }
        );
        assert_eq!(look.last_reason, Some(Reason::ProbeTimedOut));
    }

    #[test]
    fn it_closes_after_as_many_successes_as_asked_for_and_not_before() {
        let (mut breaker, now) = probing(1, 3);
        for left in [2, 1, 0] {
            let probe = breaker.admit(now).unwrap();
            breaker.take_stirred();
            assert!(succeed(&mut breaker, probe, now));
            assert!(
                breaker.take_stirred(),
                "those who wait may take the free place"
            );
            assert_eq!(state(&mut breaker, now) == State::Closed, left == 0);
        }
    }

    #[test]
    fn one_failure_among_the_probes_opens_it_and_the_others_are_too_late() {
        let (mut breaker, now) = probing(3, 1);
        let [first, second, third] = [(); 3].map(|()| breaker.admit(now).unwrap());
        assert!(fail_probe(&mut breaker, second, now));
        assert!(!succeed(&mut breaker, first, now) && !fail_probe(&mut breaker, third, now));
        assert_eq!(look(&mut breaker, now).trips, 2);
    }

    #[test]
    fn a_soft_or_slow_probe_closes_nothing() {
        for (ending, reason) in [
            (
                ending(Verdict::Throttled, Instant::now()),
                Reason::ProbeFailed,
            ),
            (
                Ending {
                    slow: true,
                    ..ending(Verdict::Success, Instant::now())
                },
                Reason::ProbeSlow,
            ),
        ] {
            let (mut breaker, now) = cooled_down();
            let probe = breaker.admit(now).unwrap();
            assert!(end(&mut breaker, probe, Ending { now, ..ending }, 0));
            assert_eq!(look(&mut breaker, now).last_reason, Some(reason));
        }
    }

    #[test]
    fn the_open_time_grows_while_probes_fail_and_begins_anew_after_closing() {
        let cooldown = Cooldown::from_fn(|| (1..).map(Duration::from_secs));
        let (mut breaker, mut now) = (
            Breaker::new(Rules {
                cooldown,
                ..rules()
            }),
            Instant::now(),
        );
        fail(&mut breaker, 2, None, now);
        for seconds in 1..5 {
            now += seconds * SECOND;
            assert!(!may_admit(&mut breaker, now - Duration::from_nanos(1)));
            let probe = breaker.admit(now).unwrap();
            fail_probe(&mut breaker, probe, now);
        }
        now += 5 * SECOND;
        let probe = breaker.admit(now).unwrap();
        assert!(succeed(&mut breaker, probe, now));
        fail(&mut breaker, 2, None, now);
        assert_eq!(
            state(&mut breaker, now),
            State::Open {
                until: Some(now + SECOND)
            }
        );
    }

    #[test]
    fn a_ratio_counts_what_the_heart_was_told_and_what_it_was_not() {
        let trip = Trip::failure_ratio(crate::Ratio::HALF);
        let (mut breaker, now) = (Breaker::new(Rules { trip, ..rules() }), Instant::now());
        let mut judged = |verdict, succeeded| {
            let ticket = breaker.admit(now).unwrap();
            let outside = Outside {
                failures_in_row: 0,
                succeeded,
                turn: 0,
            };
            breaker.end(ticket, ending(verdict, now), outside);
            breaker.look(now, 0).last_reason
        };
        assert_eq!(judged(Verdict::Failure, 2), None, "three calls are too few");
        assert_eq!(judged(Verdict::Throttled, 3), None, "two of five");
        assert_eq!(judged(Verdict::Failure, 3), Some(Reason::FailureRatio));
    }

    #[test]
    fn a_success_opens_nothing_even_if_it_makes_the_calls_enough() {
        let trip = Trip::failure_ratio(crate::Ratio::HALF);
        let (mut breaker, now) = (Breaker::new(Rules { trip, ..rules() }), Instant::now());
        for (verdict, succeeded) in [
            (Verdict::Failure, 0),
            (Verdict::Failure, 0),
            (Verdict::Success, 1),
        ] {
            let ticket = breaker.admit(now).unwrap();
            breaker.end(
                ticket,
                ending(verdict, now),
                Outside {
                    failures_in_row: 0,
                    succeeded,
                    turn: 0,
                },
            );
        }
        assert_eq!(state(&mut breaker, now), State::Closed);
    }

    #[test]
    fn what_somebody_else_found_counts_only_in_the_generation_it_was_found_in() {
        let (mut breaker, now) = breaker();
        let early = breaker.admit(now).unwrap().generation();
        breaker.reset();
        breaker.trip(early, Reason::Policy("mine"), None, now);
        assert_eq!(state(&mut breaker, now), State::Closed);
        let current = breaker.admit(now).unwrap().generation();
        breaker.trip(current, Reason::Policy("mine"), None, now);
        assert_eq!(
            look(&mut breaker, now).last_reason,
            Some(Reason::Policy("mine"))
        );
    }

    #[test]
    fn an_iterator_that_panics_has_ended() {
        let cooldown = Cooldown::from_fn(|| {
            [3 * SECOND]
                .into_iter()
                .chain(std::iter::from_fn(|| panic!("the user's")))
        });
        let (mut breaker, now) = (
            Breaker::new(Rules {
                cooldown,
                ..rules()
            }),
            Instant::now(),
        );
        assert!(fail(&mut breaker, 2, None, now));
        let now = now + 3 * SECOND;
        let probe = breaker.admit(now).unwrap();
        assert!(fail_probe(&mut breaker, probe, now));
        assert_eq!(
            state(&mut breaker, now),
            State::Open {
                until: Some(now + 3 * SECOND)
            }
        );
        assert_eq!(breaker.take_news().len(), 3);
    }
}
