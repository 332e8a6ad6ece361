use std::{fmt, task::Waker, time::Duration};

use tokio::{sync::watch, time::Instant};
use tower_outcome::{Outcome, Verdict};

use crate::{
    Cooldown, Mode, Open, Permit, Snapshot, State, Trip,
    breaker::{Breaker, Shut, Ticket},
    core::{Core, News, Seat},
    permit::Reservation,
    stripe::{Count, Counters, StripedArc},
};

/// One circuit: what its user holds, and what the layers refer to.
///
/// Cheap to clone; all clones are the same circuit, and it lives as long as one of them or a call under way. Everything
/// is synchronous and may be called from any thread, with or without a runtime. Memory: about 2 KiB, whatever the load,
/// and a waker for each gate that waits.
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
    trip: Trip,
    cooldown: Cooldown,
    probe_deadline: Duration,
    cancelled_after: Option<Duration>,
}

/// The circuit itself: the core, with a clock and those who want to know.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Core,
    counters: Counters,
    changes: watch::Sender<State>,
    name: Option<String>,
    cancelled_after: Option<Duration>,
}

// === impl Circuit ===

impl Circuit {
    /// A closed circuit with the defaults: opens after 5 failures in a row for 10 s (or what the server asks for, up to
    /// 60 s), then tries one probe of at most 10 s at a time.
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
        if self.is_closed() { State::Closed } else { self.shared.get().look().state }
    }

    /// The state and the numbers, for status pages and metrics. Takes the lock for a moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let shared = self.shared.get();
        let look = shared.look();
        Snapshot {
            state: look.state,
            mode: look.mode,
            failures_in_row: shared.core.word().failures_in_row(),
            trips: look.trips,
            last_reason: look.last_reason,
            opened_since: look.opened_since,
            next_probe_at: look.next_probe_at,
            totals: shared.counters.totals(),
        }
    }

    /// Follows the state. A reader that is slow sees the newest state and may miss some between.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.shared.get().changes.subscribe()
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
        let now = Instant::now();
        let admitted = match self.shared.get().core.admit_closed() {
            Some(ticket) => Ok(ticket),
            None => self.shared.get().ask(|breaker| breaker.admit(now)),
        };
        self.permit(admitted, now)
    }

    /// Whether a call made now would be admitted. Takes nothing.
    pub(crate) fn may_admit(&self) -> bool {
        self.is_closed() || self.shared.get().ask(|breaker| breaker.may_admit(Instant::now()))
    }

    /// Refuses a call, whatever the state is by now.
    pub(crate) fn refuse(&self) -> Open {
        self.shared.get().refused(self.shared.get().ask(|breaker| breaker.shut()), Instant::now())
    }

    /// Admits a call that was promised the probe.
    pub(crate) fn begin(&self, reservation: &Reservation) -> Result<Permit, Open> {
        let now = Instant::now();
        let admitted = self.shared.get().ask(|breaker| breaker.begin(reservation.ticket(), now));
        self.permit(admitted, now)
    }

    /// Reserves the probe; `None` where none is needed. Or takes a seat, to be woken at the next change; there is
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
            Ok(ticket) if ticket.is_probe() => Ok(Some(Reservation::new(self.shared.hold(), ticket))),
            Ok(_) => Ok(None),
            Err(shut) => Err(shut.next),
        }
    }

    pub(crate) fn leave(&self, seat: &mut Seat) {
        self.shared.get().core.leave(seat);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.get().core.word().is_closed()
    }

    fn permit(&self, admitted: Result<Ticket, Shut>, now: Instant) -> Result<Permit, Open> {
        match admitted {
            Ok(ticket) => Ok(Permit::new(self.shared.hold(), ticket, now)),
            Err(shut) => Err(self.shared.get().refused(shut, now)),
        }
    }

    fn set_mode(&self, mode: Mode) {
        self.shared.get().ask(|breaker| breaker.set_mode(mode, Instant::now()));
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
            .field("state", &*self.shared.get().changes.borrow())
            .finish()
    }
}

// === impl CircuitBuilder ===

impl CircuitBuilder {
    /// Names it in `tracing` events. Default: no name.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// When it opens. Default: 5 failures in a row, see [`Trip`].
    pub fn trip(self, trip: Trip) -> Self {
        Self { trip, ..self }
    }

    /// How long it stays open. Default: 10 s, with hints up to 60 s, see [`Cooldown`].
    pub fn cooldown(self, cooldown: Cooldown) -> Self {
        Self { cooldown, ..self }
    }

    /// A probe that takes longer than this has failed, and the circuit opens again; the call itself goes on. A gate that
    /// is ready but not called loses its claim to the probe after the same time. Default: 10 s, the cooldown's.
    ///
    /// Choose it above what a good answer takes to the end of its body; zero would fail every probe.
    pub fn probe_deadline(self, deadline: Duration) -> Self {
        Self { probe_deadline: deadline, ..self }
    }

    /// A call dropped by its caller (who lost patience, or whose timeout is further out) is a failure if it is at least
    /// this old; younger ones say nothing, because callers go away for reasons of their own. Default: 1 s. `None`: never
    /// a failure.
    ///
    /// Choose it no longer than the timeouts outside of the circuit, or hanging calls are never seen.
    pub fn cancelled_after(self, age: impl Into<Option<Duration>>) -> Self {
        Self { cancelled_after: age.into(), ..self }
    }

    /// Makes the circuit: closed, and automatic.
    #[must_use]
    pub fn build(self) -> Circuit {
        let breaker = Breaker::new(self.trip, self.cooldown, self.probe_deadline);
        let shared = Shared {
            core: Core::new(breaker),
            counters: Counters::new(),
            changes: watch::Sender::new(State::Closed),
            name: self.name,
            cancelled_after: self.cancelled_after,
        };
        Circuit { shared: StripedArc::new(shared) }
    }
}

impl Default for CircuitBuilder {
    fn default() -> Self {
        Self {
            name: None,
            trip: Trip::default(),
            cooldown: Cooldown::default(),
            probe_deadline: PROBE_DEADLINE,
            cancelled_after: Some(CANCELLED_AFTER),
        }
    }
}

const PROBE_DEADLINE: Duration = Duration::from_secs(10);
const CANCELLED_AFTER: Duration = Duration::from_secs(1);

// === impl Shared ===

impl Shared {
    pub(crate) fn settle(&self, ticket: Ticket, outcome: Outcome) {
        let (current, count) = match outcome.verdict() {
            Verdict::Success => (self.succeed(ticket), Count::Succeeded),
            Verdict::Failure => (self.fail(ticket, outcome.hint()), Count::Failed),
            // Who asks for less is not well enough to close for.
            Verdict::Soft if ticket.is_probe() => (self.fail(ticket, outcome.hint()), Count::Soft),
            Verdict::Soft => (self.is_current(ticket), Count::Soft),
            Verdict::Ignore => (self.forget(ticket), Count::Ignored),
        };
        self.counters.add(if current { count } else { Count::Stale });
    }

    pub(crate) fn cancel(&self, ticket: Ticket, started: Instant) {
        let failed = self.cancelled_after.is_some_and(|age| started.elapsed() >= age);
        let (current, count) = match failed {
            true => (self.fail(ticket, None), Count::Failed),
            false => (self.forget(ticket), Count::Cancelled),
        };
        self.counters.add(if current { count } else { Count::Stale });
    }

    pub(crate) fn ask<T>(&self, question: impl FnOnce(&mut Breaker) -> T) -> T {
        let (answer, news) = self.core.ask(question);
        self.tell(news);
        answer
    }

    fn succeed(&self, ticket: Ticket) -> bool {
        match ticket.is_probe() {
            true => self.ask(|breaker| breaker.succeed(ticket, Instant::now())),
            false => self.core.succeed_call(ticket),
        }
    }

    fn fail(&self, ticket: Ticket, hint: Option<Duration>) -> bool {
        // After a trip many calls fail late; they need not queue for the lock to be told so.
        if !self.is_current(ticket) {
            return false;
        }
        let (current, news) = self.core.fail(ticket, hint, Instant::now());
        self.tell(news);
        current
    }

    fn forget(&self, ticket: Ticket) -> bool {
        match ticket.is_probe() {
            true => self.ask(|breaker| breaker.forget(ticket, Instant::now())),
            false => self.is_current(ticket),
        }
    }

    fn is_current(&self, ticket: Ticket) -> bool {
        self.core.word().generation() == ticket.generation
    }

    fn look(&self) -> crate::breaker::Look {
        self.ask(|breaker| breaker.look(Instant::now()))
    }

    fn refused(&self, shut: Shut, now: Instant) -> Open {
        self.counters.add(Count::Refused);
        Open::new(shut.next.map(|next| next.saturating_duration_since(now)), shut.reason)
    }

    /// Outside of the lock: subscribers and wakers are other people's code.
    fn tell(&self, news: News) {
        if let Some(last) = news.transitions.last() {
            self.changes.send_if_modified(|state| {
                // Another thread may have told a later transition already.
                let newest = self.core.word().generation() == last.generation;
                newest && std::mem::replace(state, last.state) != last.state
            });
        }
        news.wakers.into_iter().for_each(Waker::wake);
        for told in &news.transitions {
            tracing::info!(
                name = self.name.as_deref(),
                from = told.from.as_str(),
                to = told.to.as_str(),
                reason = told.reason.map(crate::Reason::as_str),
                generation = told.generation,
                "circuit"
            );
        }
    }
}
