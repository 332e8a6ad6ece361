//! The heart: closed, open, half-open. Time and verdicts come in, decisions go out.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    Cooldown, Mode, Reason, State, Trip,
    trip::Evidence,
    word::{Tag, Word},
};

/// The state machine of one circuit.
#[derive(Debug)]
pub(crate) struct Breaker {
    trip: Trip,
    cooldown: Cooldown,
    probe_deadline: Duration,
    phase: Phase,
    forced: bool,
    generation: u32,
    last_probe: u32,
    trips: u64,
    last_reason: Option<Reason>,
    news: Vec<Transition>,
    stirred: bool,
}

/// Leave to make one call, valid in the generation it was given in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) generation: u32,
    kind: Kind,
}

/// No ticket: when one may be had at the latest (`None`: nobody knows), and why the circuit opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shut {
    pub(crate) next: Option<Instant>,
    pub(crate) reason: Option<Reason>,
}

/// A transition, to be told once the lock is released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transition {
    pub(crate) from: Tag,
    pub(crate) to: Tag,
    pub(crate) state: State,
    pub(crate) generation: u32,
    pub(crate) reason: Option<Reason>,
}

/// What a look at the heart shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) state: State,
    pub(crate) mode: Mode,
    pub(crate) trips: u64,
    pub(crate) last_reason: Option<Reason>,
    pub(crate) opened_since: Option<Instant>,
    pub(crate) next_probe_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Call,
    Probe(u32),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Calls pass. -> `Open` on a failure that trips it.
    Closed,
    /// Calls are refused. -> `HalfOpen` on the first call at or after `until`; by hand only where that is `None`.
    Open { since: Instant, until: Option<Instant> },
    /// One call at a time may try. -> `Closed` on its success, `Open` on its failure or its deadline.
    HalfOpen { since: Instant, slot: Slot },
}

/// The place of the one probe. It is free, or there is an instant at which it will be.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Free,
    /// Promised to a gate that is ready. -> `Free` when given back, or at `until`.
    Reserved {
        id: u32,
        until: Instant,
    },
    /// Under way. -> `Free` when cancelled; at the deadline it has failed.
    Running {
        id: u32,
        deadline: Instant,
    },
}

// === impl Breaker ===

impl Breaker {
    pub(crate) fn new(trip: Trip, cooldown: Cooldown, probe_deadline: Duration) -> Self {
        Self {
            trip,
            cooldown,
            probe_deadline,
            phase: Phase::Closed,
            forced: false,
            generation: 0,
            last_probe: 0,
            trips: 0,
            last_reason: None,
            news: Vec::new(),
            stirred: false,
        }
    }

    /// Whether a call made now would be admitted. Takes nothing.
    pub(crate) fn may_admit(&mut self, now: Instant) -> bool {
        self.tick(now);
        match self.phase {
            Phase::Closed => true,
            Phase::Open { until, .. } => until.is_some_and(|until| until <= now),
            Phase::HalfOpen { slot, .. } => matches!(slot, Slot::Free),
        }
    }

    /// Admits a call that starts now.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<Ticket, Shut> {
        let deadline = after(now, self.probe_deadline);
        self.take(now, |id| Slot::Running { id, deadline })
    }

    /// Promises the probe to a call that is to follow. The promise lapses as a probe would.
    pub(crate) fn reserve(&mut self, now: Instant) -> Result<Ticket, Shut> {
        let until = after(now, self.probe_deadline);
        self.take(now, |id| Slot::Reserved { id, until })
    }

    /// Whether a promise still holds.
    pub(crate) fn holds(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.tick(now);
        self.reserved_by(ticket).is_some()
    }

    /// Admits a call that was promised the probe, or any other way that is open to it now.
    pub(crate) fn begin(&mut self, ticket: Ticket, now: Instant) -> Result<Ticket, Shut> {
        self.tick(now);
        let deadline = after(now, self.probe_deadline);
        match self.reserved_by(ticket) {
            Some((slot, id)) => *slot = Slot::Running { id, deadline },
            None => return self.admit(now),
        }
        Ok(ticket)
    }

    /// Takes a promise back. One that lapsed or was redeemed is left alone.
    pub(crate) fn release(&mut self, ticket: Ticket) {
        if let Some((slot, _)) = self.reserved_by(ticket) {
            *slot = Slot::Free;
            self.stirred = true;
        }
    }

    /// A call went well. `false`: too late to matter.
    pub(crate) fn succeed(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.tick(now);
        if ticket.generation != self.generation {
            return false;
        }
        if ticket.is_probe() {
            self.enter(Phase::Closed);
        }
        true
    }

    /// A call failed. `false`: too late to matter.
    pub(crate) fn fail(&mut self, ticket: Ticket, evidence: Evidence, hint: Option<Duration>, now: Instant) -> bool {
        self.tick(now);
        if ticket.generation != self.generation {
            return false;
        }
        let reason = match ticket.kind {
            Kind::Probe(_) => Some(Reason::ProbeFailed),
            Kind::Call if self.forced => None,
            Kind::Call => self.trip.judge(&evidence),
        };
        if let Some(reason) = reason {
            self.open(reason, hint, now);
        }
        true
    }

    /// A call ended without saying anything. A probe gives its place to the next. `false`: too late to matter.
    pub(crate) fn forget(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.tick(now);
        if ticket.generation != self.generation {
            return false;
        }
        if let Phase::HalfOpen { slot, .. } = &mut self.phase {
            *slot = Slot::Free;
            self.stirred = true;
        }
        true
    }

    /// Hands the circuit to the operator, or back.
    pub(crate) fn set_mode(&mut self, mode: Mode, now: Instant) {
        if mode == self.mode() {
            return;
        }
        let since = self.opened_since().unwrap_or(now);
        let phase = match mode {
            Mode::ForcedOpen => Phase::Open { since, until: None },
            Mode::ForcedClosed => Phase::Closed,
            // What was held open is tried first; what was held closed starts afresh.
            Mode::Automatic => match self.phase {
                Phase::Closed => Phase::Closed,
                _ => Phase::HalfOpen { since, slot: Slot::Free },
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

    /// Why a call made now would be refused, and until when.
    pub(crate) fn shut(&self) -> Shut {
        Shut { next: self.next_probe_at(), reason: self.last_reason.filter(|_| !matches!(self.phase, Phase::Closed)) }
    }

    pub(crate) fn look(&mut self, now: Instant) -> Look {
        self.tick(now);
        Look {
            state: self.phase.state(),
            mode: self.mode(),
            trips: self.trips,
            last_reason: self.last_reason,
            opened_since: self.opened_since(),
            next_probe_at: self.next_probe_at(),
        }
    }

    /// The transitions since this was last asked, oldest first.
    pub(crate) fn take_news(&mut self) -> Vec<Transition> {
        std::mem::take(&mut self.news)
    }

    /// Whether something changed that a waiting gate should look at again.
    pub(crate) fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    /// Makes true what time alone has decided: a promise lapses, a probe past its deadline has failed.
    fn tick(&mut self, now: Instant) {
        let Phase::HalfOpen { slot, .. } = &mut self.phase else { return };
        match *slot {
            Slot::Reserved { until, .. } if until <= now => {
                *slot = Slot::Free;
                self.stirred = true;
            }
            // It failed then, not when somebody looked.
            Slot::Running { deadline, .. } if deadline <= now => self.open(Reason::ProbeTimedOut, None, deadline),
            _ => {}
        }
    }

    fn take(&mut self, now: Instant, slot_for: impl FnOnce(u32) -> Slot) -> Result<Ticket, Shut> {
        self.tick(now);
        if let Phase::Open { since, until: Some(until) } = self.phase
            && until <= now
        {
            self.enter(Phase::HalfOpen { since, slot: Slot::Free });
        }
        let kind = match &mut self.phase {
            Phase::Closed => Kind::Call,
            Phase::HalfOpen { slot: slot @ Slot::Free, .. } => {
                self.last_probe = self.last_probe.wrapping_add(1);
                *slot = slot_for(self.last_probe);
                Kind::Probe(self.last_probe)
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => return Err(self.shut()),
        };
        Ok(Ticket { generation: self.generation, kind })
    }

    fn reserved_by(&mut self, ticket: Ticket) -> Option<(&mut Slot, u32)> {
        match (&mut self.phase, ticket.kind) {
            (Phase::HalfOpen { slot: slot @ Slot::Reserved { .. }, .. }, Kind::Probe(id))
                if ticket.generation == self.generation && slot.id() == Some(id) =>
            {
                Some((slot, id))
            }
            _ => None,
        }
    }

    fn open(&mut self, reason: Reason, hint: Option<Duration>, at: Instant) {
        self.trips += 1;
        self.last_reason = Some(reason);
        let since = self.opened_since().unwrap_or(at);
        self.enter(Phase::Open { since, until: Some(after(at, self.cooldown.open_for(hint))) });
    }

    /// The only door between states.
    fn enter(&mut self, phase: Phase) {
        let from = self.phase.tag();
        self.phase = phase;
        self.generation = Word::next_generation(self.generation);
        self.stirred = true;
        self.news.push(Transition {
            from,
            to: phase.tag(),
            state: phase.state(),
            generation: self.generation,
            reason: self.last_reason.filter(|_| matches!(phase, Phase::Open { .. })),
        });
    }

    fn mode(&self) -> Mode {
        match (self.forced, self.phase) {
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
        match self.phase {
            Phase::Closed => None,
            Phase::Open { until, .. } => until,
            Phase::HalfOpen { slot, .. } => match slot {
                Slot::Free => None,
                Slot::Reserved { until: at, .. } | Slot::Running { deadline: at, .. } => Some(at),
            },
        }
    }
}

// === impl Ticket ===

impl Ticket {
    pub(crate) const fn call(generation: u32) -> Self {
        Self { generation, kind: Kind::Call }
    }

    pub(crate) const fn is_probe(self) -> bool {
        matches!(self.kind, Kind::Probe(_))
    }
}

// === impl Phase ===

impl Phase {
    const fn tag(self) -> Tag {
        match self {
            Self::Closed => Tag::Closed,
            Self::Open { .. } => Tag::Open,
            Self::HalfOpen { .. } => Tag::HalfOpen,
        }
    }

    const fn state(self) -> State {
        match self {
            Self::Closed => State::Closed,
            Self::Open { until, .. } => State::Open { until },
            Self::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

// === impl Slot ===

impl Slot {
    const fn id(self) -> Option<u32> {
        match self {
            Self::Free => None,
            Self::Reserved { id, .. } | Self::Running { id, .. } => Some(id),
        }
    }
}

/// Thirty years stand for what an instant cannot hold.
fn after(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration).unwrap_or_else(|| now + FAR)
}

const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

#[cfg(all(test, not(loom)))]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Trips at the second failure in a row; open for 10 s; probes have 3 s.
    fn breaker() -> (Breaker, Instant) {
        let trip = Trip::consecutive(NonZeroU32::new(2).unwrap());
        (Breaker::new(trip, Cooldown::default(), 3 * SECOND), Instant::now())
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

    fn fail(breaker: &mut Breaker, failures_in_row: u32, hint: Option<Duration>, now: Instant) -> bool {
        let ticket = breaker.admit(now).unwrap();
        breaker.fail(ticket, Evidence { failures_in_row }, hint, now)
    }

    fn fail_probe(breaker: &mut Breaker, ticket: Ticket, now: Instant) -> bool {
        breaker.fail(ticket, Evidence { failures_in_row: 0 }, None, now)
    }

    fn state(breaker: &mut Breaker, now: Instant) -> State {
        breaker.look(now).state
    }

    #[test]
    fn it_opens_at_the_threshold_and_not_before() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, 1, None, now);
        assert_eq!(state(&mut breaker, now), State::Closed);
        fail(&mut breaker, 2, None, now);
        assert_eq!(state(&mut breaker, now), State::Open { until: Some(now + 10 * SECOND) });
        assert_eq!(breaker.look(now).last_reason, Some(Reason::ConsecutiveFailures));
    }

    #[test]
    fn it_refuses_until_the_last_nanosecond_and_says_when() {
        let (mut breaker, now) = open();
        let until = now + 10 * SECOND;
        let shut = breaker.admit(until - Duration::from_nanos(1)).unwrap_err();
        assert_eq!(shut, Shut { next: Some(until), reason: Some(Reason::ConsecutiveFailures) });
        assert!(breaker.admit(until).unwrap().is_probe());
    }

    #[test]
    fn one_probe_at_a_time() {
        let (mut breaker, now) = cooled_down();
        breaker.admit(now).unwrap();
        assert_eq!(breaker.admit(now).unwrap_err().next, Some(now + 3 * SECOND));
        assert!(!breaker.may_admit(now));
    }

    #[test]
    fn a_probe_that_succeeds_closes_it() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        assert!(breaker.succeed(probe, now));
        assert_eq!(state(&mut breaker, now), State::Closed);
        assert_eq!(breaker.look(now).opened_since, None);
    }

    #[test]
    fn a_probe_that_fails_opens_it_again_and_it_has_been_open_all_along() {
        let (mut breaker, now) = cooled_down();
        let probe = breaker.admit(now).unwrap();
        assert!(fail_probe(&mut breaker, probe, now + SECOND));
        let look = breaker.look(now + SECOND);
        assert_eq!(look.state, State::Open { until: Some(now + 11 * SECOND) });
        assert_eq!((look.trips, look.last_reason), (2, Some(Reason::ProbeFailed)));
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
        assert!(!breaker.succeed(probe, looked), "too late");
        let look = breaker.look(looked);
        assert_eq!(look.state, State::Open { until: Some(deadline + 10 * SECOND) });
        assert_eq!(look.last_reason, Some(Reason::ProbeTimedOut));
    }

    #[test]
    fn time_that_jumps_far_ahead_leaves_no_wedge() {
        let (mut breaker, now) = cooled_down();
        breaker.admit(now).unwrap();
        let later = now + 365 * 86_400 * SECOND;
        assert!(breaker.may_admit(later));
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
        assert!(!breaker.succeed(early, now));
        assert!(!fail_probe(&mut breaker, other, now));
        assert_eq!(state(&mut breaker, now), State::HalfOpen);
        assert!(breaker.succeed(probe, now));
    }

    #[test]
    fn a_hint_raises_the_open_time_up_to_the_cap() {
        for (hint, open_for) in [(1, 10), (30, 30), (86_400, 60)] {
            let (mut breaker, now) = breaker();
            fail(&mut breaker, 2, Some(hint * SECOND), now);
            assert_eq!(state(&mut breaker, now), State::Open { until: Some(now + open_for * SECOND) });
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
        assert_eq!(state(&mut breaker, now), State::HalfOpen, "nothing was sent, so nothing failed");
        let other = breaker.reserve(now).unwrap();
        breaker.release(promised);
        assert!(breaker.holds(other, now));
        assert!(breaker.begin(promised, now).is_err(), "the place is another's now");
    }

    #[test]
    fn a_reservation_begun_has_its_whole_deadline_and_is_not_given_back() {
        let (mut breaker, now) = cooled_down();
        let promised = breaker.reserve(now).unwrap();
        let now = now + 2 * SECOND;
        let probe = breaker.begin(promised, now).unwrap();
        breaker.release(promised);
        assert_eq!(breaker.admit(now).unwrap_err().next, Some(now + 3 * SECOND));
        assert!(breaker.succeed(probe, now));
    }

    #[test]
    fn a_late_call_of_a_lapsed_reservation_takes_what_is_free() {
        let (mut breaker, now) = cooled_down();
        let promised = breaker.reserve(now).unwrap();
        assert!(breaker.begin(promised, now + 5 * SECOND).unwrap().is_probe());
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
        assert_eq!(breaker.look(now).mode, Mode::ForcedClosed);
        assert!(breaker.may_admit(now));
        breaker.set_mode(Mode::ForcedOpen, now);
        let later = now + 3600 * SECOND;
        assert_eq!(breaker.admit(later).unwrap_err(), Shut { next: None, reason: Some(Reason::Forced) });
        assert_eq!(breaker.look(later).mode, Mode::ForcedOpen);
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
        assert!(breaker.succeed(probe, now));
    }

    #[test]
    fn each_transition_is_told_once_with_its_reason() {
        let (mut breaker, now) = cooled_down();
        breaker.admit(now).unwrap();
        breaker.admit(now + 60 * SECOND).unwrap();
        let told: Vec<_> = breaker.take_news().iter().map(|news| (news.from, news.to, news.reason)).collect();
        assert_eq!(
            told,
            [
                (Tag::Closed, Tag::Open, Some(Reason::ConsecutiveFailures)),
                (Tag::Open, Tag::HalfOpen, None),
                (Tag::HalfOpen, Tag::Open, Some(Reason::ProbeTimedOut)),
                (Tag::Open, Tag::HalfOpen, None),
            ]
        );
        assert!(breaker.take_news().is_empty());
    }

    #[test]
    fn durations_without_measure_do_not_overflow() {
        let trip = Trip::consecutive(NonZeroU32::MIN);
        let mut breaker = Breaker::new(trip, Cooldown::new(Duration::MAX).cap(Duration::MAX), Duration::MAX);
        let now = Instant::now();
        fail(&mut breaker, 1, Some(Duration::MAX), now);
        assert!(!breaker.may_admit(now + 365 * 86_400 * SECOND));
    }
}
