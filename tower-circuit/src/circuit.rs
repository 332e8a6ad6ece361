use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    task::Waker,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tower_outcome::{EjectionBudget, Outcome, Verdict};

use crate::{
    Cooldown, Evidence, Mode, Open, PerEndpoint, Permit, Reason, Snapshot, State, Trip, TripPolicy,
    breaker::{Breaker, Ended, Ending, Rules, Shut},
    core::{Core, News, Seat},
    permit::{Callers, Leave, Reservation},
    probe::ProbeRules,
    stripe::{Count, Lane, StripedArc, Stripes},
    word::{Tag, Ticket},
};

/// One circuit: what its user holds, and what the layers refer to.
///
/// Cheap to clone; all clones are the same circuit, and it lives as long as one of them or a call under way. Everything
/// is synchronous and may be called from any thread, with or without a runtime. Memory: 3.6 KB, whatever the load, half a
/// KB more once somebody [subscribes](Self::subscribe), and a waker for each gate that waits.
///
/// ```
/// use std::{num::NonZeroU32, time::Duration};
/// use tower_circuit::{Circuit, Cooldown, State, Trip};
///
/// let circuit = Circuit::builder()
///     .name("users")
///     .trip(Trip::consecutive(NonZeroU32::new(3).unwrap()))
///     .cooldown(Cooldown::new(Duration::from_secs(2)))
///     .build();
/// assert_eq!(circuit.state(), State::Closed);
/// ```
#[derive(Clone)]
pub struct Circuit {
    shared: StripedArc<Shared>,
}

/// What a [`Circuit`] can be told. Made by [`Circuit::builder`].
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct CircuitBuilder {
    name: Option<String>,
    rules: Rules,
    window: Duration,
    cancelled_after: CancelledAfter,
}

/// From which age a call that its caller dropped, unanswered, is a failure.
#[derive(Clone, Copy, Debug)]
enum CancelledAfter {
    /// From this age, and never where the callers are clients of a server.
    Default(Duration),
    /// As the user says, whoever calls.
    Age(Option<Duration>),
}

/// The circuit itself: the core, with a clock and those who want to know.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Core,
    slow_limit: Option<Duration>,
    cancelled_after: CancelledAfter,
    window: Duration,
    /// The heart wants to know of each success, not only of those that are slow.
    tell_all: bool,
    policy: Policy,
    /// Made for the first who wants to know.
    changes: OnceLock<watch::Sender<State>>,
    name: Option<String>,
}

/// A circuit that may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// As good as new, and no call went through it lately.
    Clean,
    /// Something is on record, but it was not used for so long that it does not matter any more.
    Stale { since: Instant },
}

/// The user's own, if there is one.
struct Policy {
    own: Option<Arc<dyn TripPolicy>>,
    wants_successes: bool,
}

// === impl Circuit ===

impl Circuit {
    /// A closed circuit with the defaults: opens after 5 failures in a row, or when half of at least 20 calls within 10 s
    /// failed, for 10 s (or what the server asks for, up to 60 s); then tries one probe of at most 10 s at a time, and
    /// stays open about twice as long after each that fails.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A circuit with other numbers.
    pub fn builder() -> CircuitBuilder {
        CircuitBuilder::default()
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.get().name.as_deref()
    }

    /// The state now. One load while closed.
    ///
    /// An open circuit becomes half-open by the first call, not by a look. A probe that is past its deadline has failed,
    /// and the look finds out.
    #[must_use]
    pub fn state(&self) -> State {
        if self.is_closed() {
            State::Closed
        } else {
            self.snapshot().state
        }
    }

    /// The state and the numbers, for status pages and metrics. Takes the lock for a moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (snapshot, news) = self.shared.get().core.snapshot(Instant::now());
        self.shared.get().tell(news);
        snapshot
    }

    /// Follows the state. A reader that is slow sees the newest state and may miss some between.
    ///
    /// A [borrow](watch::Receiver::borrow) of the state holds up whoever changes it: let it go before you ask the circuit
    /// anything, and before you wait for anything.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        let shared = self.shared.get();
        let changes = shared
            .changes
            .get_or_init(|| watch::Sender::new(State::Closed));
        // Whoever changed the state without seeing that somebody wants to know had the lock before this look.
        let (state, generation) = shared.ask(|breaker| breaker.state(Instant::now()));
        shared.publish(state, generation);
        changes.subscribe()
    }

    /// Refuses every call until told otherwise. Calls under way go on; they decide nothing any more.
    pub fn force_open(&self) {
        self.set_mode(Mode::ForcedOpen);
    }

    /// Admits every call until told otherwise, and still counts them.
    pub fn force_closed(&self) {
        self.set_mode(Mode::ForcedClosed);
    }

    /// Hands the decision back to the circuit. One that was forced open becomes half-open, so that a probe decides; one
    /// that was forced closed is closed with a clean slate. Otherwise nothing changes.
    pub fn automatic(&self) {
        self.set_mode(Mode::Automatic);
    }

    /// Closes it with a clean slate, forced or not. The totals stay: counters that go back confuse their readers.
    pub fn reset(&self) {
        self.shared.get().ask(Breaker::reset);
    }

    /// Asks for one call, for those who have no `Service`. Settle the permit when the answer is known.
    ///
    /// ```
    /// use tower_circuit::Circuit;
    /// use tower_outcome::{Outcome, Settle};
    ///
    /// let circuit = Circuit::new();
    /// let permit = circuit.admit()?;
    /// // ... make the call ...
    /// permit.settle(Outcome::SUCCESS);
    /// # Ok::<_, tower_circuit::Open>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Open`] while calls are refused.
    pub fn admit(&self) -> Result<Permit, Open> {
        let mut leave = self.admit_call()?.of(Callers::ByHand);
        leave.start();
        Ok(leave.into())
    }

    /// As [`admit`](Self::admit), for a call that nobody has waited for yet, and if it is of the simple kind.
    #[inline(always)]
    pub(crate) fn admit_simply(&self) -> Option<Leave> {
        let ticket = self.shared.get().core.admit_simply()?;
        Some(Leave::new(self.shared.hold(), ticket, None))
    }

    /// As [`admit`](Self::admit), for a call that nobody has waited for yet.
    pub(crate) fn admit_call(&self) -> Result<Leave, Open> {
        match self.shared.get().core.admit_closed() {
            // Where the heart wants to know, it may want to know the time.
            Some(ticket) => Ok(Leave::new(
                self.shared.hold(),
                ticket,
                ticket.asks().then(Instant::now),
            )),
            None => self.admit_probe(),
        }
    }

    fn admit_probe(&self) -> Result<Leave, Open> {
        let (shared, now) = (self.shared.get(), Instant::now());
        match shared.core.shut(now) {
            Some(open) => Err(self.count_refused(open)),
            None => self.leave_or_refuse(shared.ask(|breaker| breaker.admit(now)), now),
        }
    }

    /// Whether a call made now would be admitted. Takes nothing, and counts no refusal.
    #[inline]
    pub(crate) fn may_admit(&self) -> Result<(), Open> {
        if self.is_closed() {
            Ok(())
        } else {
            self.may_probe()
        }
    }

    #[cold]
    fn may_probe(&self) -> Result<(), Open> {
        let (shared, now) = (self.shared.get(), Instant::now());
        match shared.core.shut(now) {
            Some(open) => Err(open),
            None => shared
                .ask(|breaker| breaker.may_admit(now))
                .map_err(|shut| open(shut, now)),
        }
    }

    /// Counts a refusal that [`may_admit`](Self::may_admit) has found.
    pub(crate) fn refused(&self) {
        self.shared.get().core.count(Count::Refused);
    }

    /// Admits a call that was promised a probe.
    pub(crate) fn begin(&self, reservation: &Reservation) -> Result<Leave, Open> {
        let now = Instant::now();
        let admitted = self
            .shared
            .get()
            .ask(|breaker| breaker.begin(reservation.ticket(), now));
        self.leave_or_refuse(admitted, now)
    }

    /// Reserves a probe; `None` where none is needed. Or takes a seat, to be woken at the next change; there is
    /// something to look at again at the instant in `Err`, too.
    pub(crate) fn reserve_or_wait(
        &self,
        seat: &mut Seat,
        waker: &Waker,
        now: Instant,
    ) -> Result<Option<Reservation>, Option<Instant>> {
        let shared = self.shared.get();
        let (answer, news) = shared.core.reserve_or_wait(seat, waker.clone(), now);
        shared.tell(news);
        match answer {
            Ok(ticket) if ticket.is_probe() => {
                Ok(Some(Reservation::new(self.shared.hold(), ticket)))
            }
            Ok(_) => Ok(None),
            Err(shut) => Err(shut.next),
        }
    }

    pub(crate) fn leave(&self, seat: &mut Seat) {
        self.shared.get().core.leave(seat);
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.get().core.word().is_closed()
    }

    /// What is lost if it is forgotten. `None`: another has it or follows it, a call is under way, or what is on record
    /// matters.
    pub(crate) fn idle(&self, now: Instant) -> Option<Idle> {
        let shared = self.shared.get();
        let is_followed = || {
            shared
                .changes
                .get()
                .is_some_and(|changes| changes.receiver_count() > 0)
        };
        if !self.shared.is_alone() || is_followed() {
            None
        } else if shared.core.is_unused(now) {
            Some(Idle::Clean)
        } else {
            let stale = shared.core.stale_since(shared.window, now);
            stale.map(|since| Idle::Stale { since })
        }
    }

    fn leave_or_refuse(&self, admitted: Result<Ticket, Shut>, now: Instant) -> Result<Leave, Open> {
        match admitted {
            Ok(ticket) => Ok(Leave::new(self.shared.hold(), ticket, Some(now))),
            Err(shut) => Err(self.count_refused(open(shut, now))),
        }
    }

    fn count_refused(&self, open: Open) -> Open {
        self.refused();
        open
    }

    fn set_mode(&self, mode: Mode) {
        self.shared
            .get()
            .ask(|breaker| breaker.set_mode(mode, Instant::now()));
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> usize {
        self.shared.get().core.waiting()
    }
}

impl Default for Circuit {
    fn default() -> Self {
        Self::new()
    }
}

impl From<&Self> for Circuit {
    fn from(circuit: &Self) -> Self {
        circuit.clone()
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit")
            .field("name", &self.name())
            .field("state", &self.shared.get().core.word().tag().as_str())
            .finish()
    }
}

fn open(shut: Shut, now: Instant) -> Open {
    Open::new(
        shut.next.map(|next| next.saturating_duration_since(now)),
        shut.reason,
    )
}

// === impl CircuitBuilder ===

impl CircuitBuilder {
    /// Names it in `tracing` events. Default: no name.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..self
        }
    }

    /// When it opens. Default: 5 failures in a row, or half of the window's calls, see [`Trip`].
    pub fn trip(mut self, trip: Trip) -> Self {
        self.rules.trip = trip;
        self
    }

    /// The time over which ratios are taken. It is counted exactly, in ten turns: the present one and the nine before it,
    /// so at any moment between nine tenths of it and all. Default: 10 s, which forgets a deployment soon and holds enough
    /// calls to judge by. From one second to one day; what is out of that is taken for the nearest.
    pub fn window(self, window: Duration) -> Self {
        Self { window, ..self }
    }

    /// The calls without which no ratio is judged. Default: 20, so that the first failure after a quiet night is not all of
    /// one call.
    pub fn at_least(mut self, calls: NonZeroU32) -> Self {
        self.rules.at_least = calls;
        self
    }

    /// How long it stays open. Default: 10 s, growing to 60 s, see [`Cooldown`].
    pub fn cooldown(mut self, cooldown: Cooldown) -> Self {
        self.rules.cooldown = cooldown;
        self
    }

    /// How many probes there may be at once. Default: 1, which is all that it takes to learn that the other side is still
    /// down.
    pub fn probes(mut self, at_once: NonZeroU32) -> Self {
        self.rules.probes.places = at_once;
        self
    }

    /// How many probes must succeed before the circuit closes; one that fails opens it again. Default: 1.
    pub fn successes_to_close(mut self, successes: NonZeroU32) -> Self {
        self.rules.probes.successes = successes;
        self
    }

    /// A probe that is not answered by then has failed, and the circuit opens again; the call itself goes on. One whose good
    /// head has come, and whose body is still on its way, has succeeded by then: a stream may last. A gate that is ready but
    /// not called loses its claim to a probe after the same time. Default: 10 s, the cooldown's.
    ///
    /// Choose it above what a good answer takes to come; zero would fail every probe.
    pub fn probe_deadline(mut self, deadline: Duration) -> Self {
        self.rules.probes.deadline = deadline;
        self
    }

    /// A call dropped by its caller (who lost patience, or whose timeout is further out) before it was answered is a failure
    /// if it is at least this old; younger ones say nothing, because callers go away for reasons of their own. Default: the
    /// slow-call limit if there is one, else 1 s; **never in front of a server's own service**
    /// ([`respond`](crate::CircuitLayer::respond)), whose clients hang up as they like and must not open the circuit for the
    /// others. What is set here holds in every mode. `None`: never a failure, and it does not end the half-open state, however
    /// often probes are given up.
    ///
    /// Once a good head has come, the call is a success, whenever and why ever its reader drops the rest: readers of streams
    /// leave. A body that stalls is seen where a timeout further in makes an error of it.
    ///
    /// Choose it a little shorter than the timeouts outside of the circuit, or hanging calls are never seen: the age of a call
    /// counts from the first time that it was waited for. In a proxy, where callers are clients too, set `None` and put a
    /// timeout inside of the circuit.
    pub fn cancelled_after(self, age: impl Into<Option<Duration>>) -> Self {
        Self {
            cancelled_after: CancelledAfter::Age(age.into()),
            ..self
        }
    }

    /// Asks this budget for a place before it opens because of what was answered or not answered in time, and gives the place
    /// back when it closes or is dropped. Default: none, it opens whenever it should.
    ///
    /// For the endpoints of a balancer, which makes one budget for each set: without it one request that every endpoint
    /// answers with `500`, sent a few times by one client, opens all circuits, and no other client is served. While the
    /// budget has no place the circuit stays closed, goes on counting, asks again at the next failure, and reports it once:
    /// by a `warn` event, and in [`Snapshot::kept_closed`]. [`force_open`](Circuit::force_open) does not ask.
    pub fn ejection_budget(mut self, budget: &EjectionBudget) -> Self {
        self.rules.budget = Some(budget.clone());
        self
    }

    /// Makes circuits like this, one for each endpoint of a balancer.
    pub fn per_endpoint(self) -> PerEndpoint {
        PerEndpoint::new(self)
    }

    /// Makes the circuit: closed, and automatic.
    #[must_use]
    pub fn build(self) -> Circuit {
        self.build_striped(Stripes::MANY)
    }

    pub(crate) fn build_striped(self, stripes: Stripes) -> Circuit {
        let trip = &self.rules.trip;
        let (slow_limit, policy) = (trip.slow_limit(), Policy::new(trip.own_policy()));
        let cancelled_after = match (self.cancelled_after, slow_limit) {
            (CancelledAfter::Default(_), Some(limit)) => CancelledAfter::Default(limit),
            (cancelled_after, _) => cancelled_after,
        };
        let tell_all = trip.row().is_some() || policy.wants_successes;
        let rules = Rules {
            asks: tell_all || slow_limit.is_some(),
            ..self.rules
        };
        let shared = Shared {
            slow_limit,
            cancelled_after,
            tell_all,
            policy,
            window: self.window,
            core: Core::new(rules, self.window, stripes),
            changes: OnceLock::new(),
            name: self.name,
        };
        Circuit {
            shared: StripedArc::new(shared, |shared| shared.core.lanes()),
        }
    }
}

impl Default for CircuitBuilder {
    fn default() -> Self {
        let probes = ProbeRules {
            places: NonZeroU32::MIN,
            successes: NonZeroU32::MIN,
            deadline: PROBE_DEADLINE,
        };
        let rules = Rules {
            trip: Trip::default(),
            at_least: AT_LEAST,
            cooldown: Cooldown::default(),
            probes,
            asks: false,
            budget: None,
        };
        Self {
            name: None,
            rules,
            window: WINDOW,
            cancelled_after: CancelledAfter::Default(CANCELLED_AFTER),
        }
    }
}

const WINDOW: Duration = Duration::from_secs(10);
const AT_LEAST: NonZeroU32 = NonZeroU32::new(20).unwrap();
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
const CANCELLED_AFTER: Duration = Duration::from_secs(1);

// === impl CancelledAfter ===

impl CancelledAfter {
    fn of(self, callers: Callers) -> Option<Duration> {
        match self {
            Self::Default(_) if callers == Callers::Clients => None,
            Self::Default(age) => Some(age),
            Self::Age(age) => age,
        }
    }
}

// === impl Shared ===

impl Shared {
    /// A call ended.
    #[inline(always)]
    pub(crate) fn settle(
        &self,
        lane: &Lane,
        ticket: Ticket,
        started: Option<Instant>,
        outcome: Outcome,
    ) {
        if outcome.verdict() != Verdict::Success || !self.core.succeed(lane, ticket, Instant::now) {
            self.settle_slowly(
                lane,
                ticket,
                started,
                outcome.verdict(),
                outcome.retry_after(),
            );
        }
    }

    #[cold]
    fn settle_slowly(
        &self,
        lane: &Lane,
        ticket: Ticket,
        started: Option<Instant>,
        verdict: Verdict,
        hint: Option<Duration>,
    ) {
        let (now, outcome) = (Instant::now(), Outcome::new(verdict).with_retry_after(hint));
        lane.count(match outcome.verdict() {
            Verdict::Success if self.is_simple(ticket, started, now) => {
                return self.succeed(lane, ticket, now);
            }
            Verdict::Success => self.end(ticket, started, outcome, now, Count::Succeeded),
            Verdict::Failure => self.end(ticket, started, outcome, now, Count::Failed),
            Verdict::Throttled => self.end(ticket, started, outcome, now, Count::Soft),
            Verdict::Ignore => self.without_verdict(ticket, Count::Ignored, Breaker::forget),
        });
    }

    /// A success of which the heart need not know, after all. It counts itself.
    fn succeed(&self, lane: &Lane, ticket: Ticket, now: Instant) {
        if !self.core.succeed_late(lane, ticket, now) {
            lane.count(Count::Stale);
        }
    }

    fn is_simple(&self, ticket: Ticket, started: Option<Instant>, now: Instant) -> bool {
        !self.tell_all && !ticket.is_probe() && !self.is_slow(started, now)
    }

    /// A call has a good head, and its body is on its way. Says whether it was slow.
    #[inline]
    pub(crate) fn answered(&self, ticket: Ticket, started: Option<Instant>) -> bool {
        self.core.forgive(ticket);
        (ticket.asks() || self.slow_limit.is_some()) && self.answered_slowly(ticket, started)
    }

    #[cold]
    fn answered_slowly(&self, ticket: Ticket, started: Option<Instant>) -> bool {
        let now = Instant::now();
        let slow = self.is_slow(started, now);
        if ticket.is_probe() {
            self.ask(|breaker| breaker.answered(ticket, slow, now));
        }
        slow
    }

    #[cold]
    pub(crate) fn cancel(
        &self,
        lane: &Lane,
        ticket: Ticket,
        started: Option<Instant>,
        callers: Callers,
    ) {
        let now = Instant::now();
        let old =
            |age| started.is_some_and(|started| now.saturating_duration_since(started) >= age);
        let count = match self.cancelled_after.of(callers) {
            Some(age) if old(age) => {
                self.end(ticket, started, Outcome::FAILURE, now, Count::Failed)
            }
            Some(_) => self.without_verdict(ticket, Count::Cancelled, Breaker::abandon),
            // Nor does it open a half-open circuit, however often it is done.
            None => self.without_verdict(ticket, Count::Cancelled, Breaker::forget),
        };
        lane.count(count);
    }

    pub(crate) fn ask<T>(&self, question: impl FnOnce(&mut Breaker) -> T) -> T {
        let (answer, news) = self.core.ask(question);
        self.tell(news);
        answer
    }

    fn is_slow(&self, started: Option<Instant>, now: Instant) -> bool {
        self.slow_limit.is_some_and(|limit| {
            started.is_some_and(|started| now.saturating_duration_since(started) >= limit)
        })
    }

    fn end(
        &self,
        ticket: Ticket,
        started: Option<Instant>,
        outcome: Outcome,
        now: Instant,
        count: Count,
    ) -> Count {
        // After a trip many calls end late; they need not queue for the lock to be told so.
        if !self.core.is_current(ticket) {
            return Count::Stale;
        }
        let slow = self.is_slow(started, now);
        let judged = slow || outcome.verdict() != Verdict::Success || self.policy.wants_successes;
        let ending = Ending {
            verdict: outcome.verdict(),
            slow,
            hint: outcome.retry_after(),
            now,
            judged,
        };
        let (ended, news) = self.core.end(ticket, ending);
        self.tell(news);
        match ended {
            Ended::Stale => return Count::Stale,
            Ended::Counted => {}
            Ended::Judged { evidence, relents } => {
                self.ask_policy(ticket, &evidence, outcome.retry_after(), relents);
            }
        }
        count
    }

    /// Outside of the lock: a policy is other people's code. Not if the circuit has opened for a reason of its own.
    fn ask_policy(
        &self,
        ticket: Ticket,
        evidence: &Evidence,
        hint: Option<Duration>,
        relents: bool,
    ) {
        if !self.core.is_current(ticket) {
            return;
        }
        let generation = ticket.generation();
        match self.policy.judge(evidence) {
            Some(why) => self.ask(|breaker| {
                breaker.trip(generation, Reason::Policy(why), hint, evidence.now);
            }),
            None if relents => self.ask(|breaker| breaker.relent(generation)),
            None => {}
        }
    }

    fn without_verdict(
        &self,
        ticket: Ticket,
        count: Count,
        leave: impl FnOnce(&mut Breaker, Ticket, Instant) -> bool,
    ) -> Count {
        let current = match ticket.is_probe() {
            true => self.ask(|breaker| leave(breaker, ticket, Instant::now())),
            false => self.core.is_current(ticket),
        };
        if current { count } else { Count::Stale }
    }

    /// Tells those who have subscribed, unless the state is over: then another thread tells a later one.
    fn publish(&self, state: State, generation: u32) {
        if let Some(changes) = self.changes.get() {
            changes.send_if_modified(|told| {
                let newest = self.core.word().generation() == generation;
                newest && std::mem::replace(told, state) != state
            });
        }
    }

    /// Outside of the lock: subscribers and wakers are other people's code.
    fn tell(&self, news: News) {
        if let Some(last) = news.transitions.last() {
            self.publish(last.state, last.generation);
        }
        news.wakers.into_iter().for_each(Waker::wake);
        if let Some(reason) = news.kept_closed {
            tracing::warn!(
                name = self.name.as_deref(),
                reason = reason.as_str(),
                "circuit kept closed: too many endpoints of its set are out"
            );
        }
        for told in &news.transitions {
            tracing::info!(
                name = self.name.as_deref(),
                from = told.from.as_str(),
                to = told.to.as_str(),
                reason = told
                    .reason
                    .filter(|_| told.to == Tag::Open)
                    .map(Reason::as_str),
                generation = told.generation,
                "circuit"
            );
        }
    }
}

// === impl Policy ===

impl Policy {
    fn new(own: Option<Arc<dyn TripPolicy>>) -> Self {
        let wants_successes = own.as_ref().is_some_and(|policy| policy.wants_successes());
        Self {
            own,
            wants_successes,
        }
    }

    fn judge(&self, evidence: &Evidence) -> Option<&'static str> {
        self.own.as_ref().and_then(|policy| policy.judge(evidence))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.own.is_some() { "own" } else { "none" })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_without_the_lock_whyever_it_is() {
        let circuit = Circuit::builder()
            .cooldown(Cooldown::fixed(Duration::ZERO))
            .build();
        let core = &circuit.shared.get().core;
        let known = || {
            core.shut(Instant::now())
                .map(|open| (open.retry_after().is_some(), open.reason()))
        };
        assert_eq!(known(), None);
        circuit.force_open();
        assert_eq!(known(), Some((false, Some(Reason::Forced))));
        circuit.automatic();
        assert_eq!(known(), None, "a probe may be had, and has to be asked for");
        let _probe = circuit.admit().unwrap();
        assert_eq!(known(), Some((true, Some(Reason::Forced))));
    }

    /// Who opened it is slow to tell, and meanwhile another has closed it and told.
    #[test]
    fn a_subscriber_is_not_told_what_is_over() {
        let circuit = Circuit::new();
        let changes = circuit.subscribe();
        let shared = circuit.shared.get();
        let ((), opened) = shared
            .core
            .ask(|breaker| breaker.set_mode(Mode::ForcedOpen, Instant::now()));
        let ((), closed) = shared.core.ask(Breaker::reset);
        shared.tell(closed);
        shared.tell(opened);
        assert_eq!(*changes.borrow(), State::Closed);
    }
}
