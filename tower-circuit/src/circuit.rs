use std::{fmt, task::Waker};

use tokio::{sync::watch, time::Instant};

use crate::{
    Mode, Open, Permit, Snapshot, State,
    breaker::{Breaker, Rejection},
    fast_path::{
        Idle, WaiterId,
        packed::CallId,
        shard::{Count, StripedArc},
    },
    permit::Reservation,
    shared::{Call, Caller, Shared},
};

/// The state of one circuit: a handle that the application owns, and that layers refer to.
///
/// Cheap to clone; all clones are the same circuit, which lives as long as one of them or a call in flight. Everything is
/// synchronous and may be called from any thread, with or without a runtime. Memory: 3.6 KB at any load, half a KB more once
/// it is [subscribed](Self::subscribe) to, and a waker for each gate that waits.
///
/// ```
/// use std::time::Duration;
/// use tower_circuit::{Circuit, Cooldown, State, Trip};
///
/// let circuit = Circuit::builder()
///     .name("users")
///     .trip(Trip::consecutive(3))
///     .cooldown(Cooldown::new(Duration::from_secs(2)))
///     .build();
/// assert_eq!(circuit.state(), State::Closed);
/// ```
#[derive(Clone)]
#[must_use]
pub struct Circuit {
    shared: StripedArc<Shared>,
}

// === impl Circuit ===

impl Circuit {
    pub(crate) fn from_shared(shared: Shared) -> Self {
        Self {
            shared: StripedArc::new(shared, |shared| &shared.core.shards),
        }
    }

    /// The name it was given.
    pub fn name(&self) -> Option<&str> {
        self.shared.get().name.as_deref()
    }

    /// The current state. One load while closed.
    ///
    /// An open circuit becomes half-open at the first call, not when it is observed. A probe that is past its deadline has
    /// failed, and this finds out.
    pub fn state(&self) -> State {
        if self.is_closed() {
            State::Closed
        } else {
            self.snapshot().state
        }
    }

    /// State and counters, for status pages and metrics. Takes the lock for a moment.
    pub fn snapshot(&self) -> Snapshot {
        let (snapshot, effects) = self.shared.get().core.snapshot(Instant::now());
        self.shared.get().apply(effects);
        snapshot
    }

    /// Follows the state. A slow receiver sees the newest state and may miss some in between.
    ///
    /// A [borrow](watch::Receiver::borrow) of the state blocks the thread that changes it: drop it before calling the
    /// circuit, and before waiting for anything.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        let shared = self.shared.get();
        let sender = || watch::Sender::new(State::Closed);
        let changes = shared.changes.get_or_init(sender);
        // A thread that changed the state without seeing the sender had the lock before this.
        let (state, generation) = shared.with_breaker(|breaker| breaker.state(Instant::now()));
        shared.publish(state, generation);
        changes.subscribe()
    }

    /// Opens a closed circuit as if a condition of its [`Trip`](crate::Trip) were met, for conditions of other kinds, such as
    /// a health check that fails. It stays open for the cooldown, and then probes. Nothing happens while it is open,
    /// half-open or forced.
    ///
    /// ```
    /// use tower_circuit::{Circuit, Reason};
    ///
    /// let circuit = Circuit::new();
    /// let window = circuit.snapshot().window;
    /// if window.failed > 100 || window.succeeded == 0 {
    ///     circuit.trip();
    /// }
    /// assert_eq!(circuit.admit().unwrap_err().reason(), Some(Reason::Requested));
    /// ```
    pub fn trip(&self) {
        let trip = |breaker: &mut Breaker| breaker.trip(Instant::now());
        self.shared.get().with_breaker(trip);
    }

    /// Rejects every call until further notice. Calls in flight go on, and their outcomes have no effect.
    pub fn force_open(&self) {
        self.set_mode(Mode::ForcedOpen);
    }

    /// Admits every call until further notice, and still counts them.
    pub fn force_closed(&self) {
        self.set_mode(Mode::ForcedClosed);
    }

    /// Ends [`force_open`](Self::force_open) and [`force_closed`](Self::force_closed). A circuit that was forced open becomes
    /// half-open, so that a probe decides; one that was forced closed is closed with empty counts. Otherwise nothing changes.
    pub fn automatic(&self) {
        self.set_mode(Mode::Automatic);
    }

    /// Closes it with empty counts, forced or not. The totals stay, because counters must not go back.
    pub fn reset(&self) {
        self.shared.get().with_breaker(Breaker::reset);
    }

    /// Admits one call, for code without a `Service`. The permit records the outcome.
    ///
    /// ```
    /// use tower_circuit::Circuit;
    ///
    /// let circuit = Circuit::new();
    /// let permit = circuit.admit()?;
    /// match "42".parse::<u8>() {
    ///     Ok(_) => permit.success(),
    ///     Err(_) => permit.failure(),
    /// }
    /// # Ok::<_, tower_circuit::Open>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Open`] while calls are rejected.
    ///
    /// # Cancel safety
    ///
    /// A permit that is dropped records an abandoned call: nothing, or a failure
    /// [from some age on](crate::CircuitBuilder::abandoned_is_failure_after), or a failure if a panic drops it.
    pub fn admit(&self) -> Result<Permit, Open> {
        let mut permit = self.admit_call(Caller::Manual)?;
        permit.start();
        Ok(permit)
    }

    /// As [`admit`](Self::admit), for a call that is not pending yet, if the circuit is closed and without failures.
    #[inline(always)]
    pub(crate) fn admit_fast(&self, caller: Caller) -> Option<Permit> {
        let id = self.shared.get().core.state().admit_fast()?;
        Some(self.permit(id, None, caller))
    }

    /// As [`admit`](Self::admit), for a call that is not pending yet.
    pub(crate) fn admit_call(&self, caller: Caller) -> Result<Permit, Open> {
        match self.shared.get().core.state().admit() {
            Some(id) => Ok(self.permit(id, id.is_timed().then(Instant::now), caller)),
            None => self.admit_probe(caller),
        }
    }

    fn admit_probe(&self, caller: Caller) -> Result<Permit, Open> {
        let (shared, now) = (self.shared.get(), Instant::now());
        match shared.core.rejection(now) {
            Some(open) => Err(self.count_rejected(open)),
            None => {
                let admitted = shared.with_breaker(|breaker| breaker.admit(now));
                self.permit_or_reject(admitted, now, caller)
            }
        }
    }

    /// Whether a call made now would be admitted. Reserves and counts nothing.
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
        match shared.core.rejection(now) {
            Some(open) => Err(open),
            None => shared
                .with_breaker(|breaker| breaker.may_admit(now))
                .map_err(|rejection| open(rejection, now)),
        }
    }

    /// Admits a call that has a reservation.
    pub(crate) fn begin(&self, reservation: &Reservation) -> Result<Permit, Open> {
        let (shared, now) = (self.shared.get(), Instant::now());
        let admitted = shared.with_breaker(|breaker| breaker.begin(reservation.call, now));
        self.permit_or_reject(admitted, now, Caller::Application)
    }

    /// Reserves a probe; `None` if the circuit is closed. Or registers the waker for the next change; the instant in `Err`
    /// is when time alone may change something.
    pub(crate) fn reserve_or_wait(
        &self,
        waiter: &mut WaiterId,
        waker: &Waker,
        now: Instant,
    ) -> Result<Option<Reservation>, Option<Instant>> {
        let shared = self.shared.get();
        let (answer, effects) = shared.core.reserve_or_wait(waiter, waker.clone(), now);
        shared.apply(effects);
        match answer {
            Ok(call) if call.is_probe() => {
                let circuit = self.shared.hold();
                Ok(Some(Reservation { circuit, call }))
            }
            Ok(_) => Ok(None),
            Err(rejection) => Err(rejection.next),
        }
    }

    pub(crate) fn deregister(&self, waiter: &mut WaiterId) {
        self.shared.get().core.deregister(waiter);
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.get().core.state().is_closed()
    }

    /// What is lost if it is forgotten. `None`: another handle or a subscriber exists, a call is in flight, or what is on
    /// record matters.
    pub(crate) fn idle(&self, now: Instant) -> Option<Idle> {
        let shared = self.shared.get();
        let is_followed = |changes: &watch::Sender<State>| changes.receiver_count() > 0;
        if !self.shared.is_unique() || shared.changes.get().is_some_and(is_followed) {
            None
        } else {
            shared.core.idle(shared.window, now)
        }
    }

    /// Counts a rejection that [`may_admit`](Self::may_admit) has found.
    pub(crate) fn count_rejected(&self, open: Open) -> Open {
        self.shared.get().core.shards.mine().count(Count::Rejected);
        open
    }

    #[inline(always)]
    fn permit(&self, id: CallId, started: Option<Instant>, caller: Caller) -> Permit {
        let call = Call {
            id,
            started,
            caller,
        };
        Permit::new(self.shared.hold(), call)
    }

    fn permit_or_reject(
        &self,
        admitted: Result<CallId, Rejection>,
        now: Instant,
        caller: Caller,
    ) -> Result<Permit, Open> {
        match admitted {
            Ok(id) => Ok(self.permit(id, Some(now), caller)),
            Err(rejection) => Err(self.count_rejected(open(rejection, now))),
        }
    }

    fn set_mode(&self, mode: Mode) {
        let set_mode = |breaker: &mut Breaker| breaker.set_mode(mode, Instant::now());
        self.shared.get().with_breaker(set_mode);
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> usize {
        self.shared.get().core.waiting()
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
            .field("closed", &self.is_closed())
            .finish()
    }
}

fn open(rejection: Rejection, now: Instant) -> Open {
    let left = |next: Instant| next.saturating_duration_since(now);
    Open::new(rejection.next.map(left), rejection.reason)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Cooldown, Reason};

    #[test]
    fn a_rejection_is_known_without_the_lock_for_every_reason() {
        let circuit = Circuit::builder()
            .cooldown(Cooldown::fixed(Duration::ZERO))
            .build();
        let core = &circuit.shared.get().core;
        let known = || {
            core.rejection(Instant::now())
                .map(|open| (open.retry_after().is_some(), open.reason()))
        };
        assert_eq!(known(), None);
        circuit.force_open();
        assert_eq!(known(), Some((false, Some(Reason::Forced))));
        circuit.automatic();
        assert_eq!(
            known(),
            None,
            "a probe may be possible, which the lock decides"
        );
        let _probe = circuit.admit().unwrap();
        assert_eq!(known(), Some((true, Some(Reason::Forced))));
    }

    /// The thread that opened it is slow to notify, and meanwhile another has closed it and notified.
    #[test]
    fn a_subscriber_never_sees_a_state_that_is_over() {
        let circuit = Circuit::new();
        let changes = circuit.subscribe();
        let shared = circuit.shared.get();
        let ((), opened) = shared
            .core
            .with_breaker(|breaker| breaker.set_mode(Mode::ForcedOpen, Instant::now()));
        let ((), closed) = shared.core.with_breaker(Breaker::reset);
        shared.apply(closed);
        shared.apply(opened);
        assert_eq!(*changes.borrow(), State::Closed);
    }
}
