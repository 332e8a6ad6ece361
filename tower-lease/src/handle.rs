use std::{
    error::Error,
    fmt,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    BootClock, BootInstant, Claim, Clock, FencingToken, LeaseKey, Lost, NotHeld, RequestCounts,
    Snapshot, State,
    counters::Counters,
    lease_cell::LeaseCell,
    snapshot::Counts,
    sync::{
        Notify,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// The handle of a lease. Cheap to clone; its methods read local state and do not call the store.
///
/// Each method compares the clock with the end of validity, so its answer is right even if the keeper does not get to
/// run. Made with its keeper by [`Lease::builder`].
pub struct Lease<C = BootClock> {
    shared: Arc<Shared<C>>,
}

/// What the handles, the layers and the keeper of a lease share.
pub(crate) struct Shared<C> {
    pub(crate) cell: LeaseCell,
    pub(crate) clock: C,
    pub(crate) counters: Counters,
    key: LeaseKey,
    /// The part of the margin that no drift uses up: what is inside may have it after the end.
    guard: Duration,
    /// Notified when an epoch ended, or admits no more requests.
    pub(crate) lost: Arc<Notify>,
    /// Notified when an epoch began or was extended, and when the keeper has ended.
    pub(crate) opened: Arc<Notify>,
    /// Notified when no request is in flight any more.
    pub(crate) drained: Notify,
    pub(crate) stepping_down: Notify,
    /// When the keeper tries next, in nanoseconds; 0 if that is not known.
    pub(crate) next_attempt: AtomicU64,
    pub(crate) ended: AtomicBool,
    handover: Mutex<Handover>,
    /// As last reported by the keeper.
    counts: Mutex<Counts>,
    state: watch::Receiver<State>,
}

/// The two directions of a handover.
#[derive(Debug)]
pub(crate) struct Handover {
    /// The claim to which another holder may hand over.
    pub(crate) claim: Claim,
    /// The claim to which this lease is handed over. The first call decides.
    pub(crate) to: Option<Successor>,
}

#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) claim: Claim,
    /// Its token, once the store has confirmed the transfer.
    pub(crate) token: Option<FencingToken>,
}

/// A lease was not handed over by [`Lease::hand_over`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotHandedOver {
    /// The claim is one to another key. Nothing was done.
    OtherKey,
    /// The claim is this keeper's: no keeper would renew what it acquired. Nothing was done.
    Own,
    /// An earlier call hands it over to another claim, or has, or has tried to. This one did nothing.
    ToAnother,
    /// It was given back, or never held. The successor may have it, if the store did not confirm it in time; otherwise it
    /// acquires the key as any contender does.
    Released,
    /// It was lost before it could be handed over.
    Lost(Lost),
}

/// Admission for work that is not a request, such as a job of a worker loop or a connection.
///
/// [`Lease::step_down`] waits until it is dropped. It does not stop the work when the lease is lost: wait for
/// [`lost`](Self::lost) at the same time, check [`is_valid`](Self::is_valid) before each write, and send the
/// [`token`](Self::token) with it.
pub struct LeaseGuard<C = BootClock> {
    shared: Arc<Shared<C>>,
    epoch: NonZeroU64,
}

// === impl Lease ===

impl<C: Clock> Lease<C> {
    pub(crate) fn new(
        claim: Claim,
        clock: C,
        guard: Duration,
        state: watch::Receiver<State>,
    ) -> Self {
        let shared = Shared {
            cell: LeaseCell::new(),
            clock,
            counters: Counters::default(),
            key: claim.key().clone(),
            guard,
            lost: Arc::default(),
            opened: Arc::default(),
            drained: Notify::new(),
            stepping_down: Notify::new(),
            next_attempt: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            handover: Mutex::new(Handover { claim, to: None }),
            counts: Mutex::default(),
            state,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What is leased.
    #[must_use]
    pub fn key(&self) -> &LeaseKey {
        &self.shared.key
    }

    /// The state that the keeper last reported, but never `Held` past the end of validity.
    #[must_use]
    pub fn state(&self) -> State {
        let last = *self.shared.state.borrow();
        match last.epoch() {
            Some(epoch) if last.lasts() && !self.shared.lasts(epoch) => {
                // The watch holds the cause, if the keeper has reported it since.
                let now = *self.shared.state.borrow();
                if now == last {
                    State::Fenced {
                        epoch,
                        cause: Lost::Expired,
                    }
                } else {
                    now
                }
            }
            _ => last,
        }
    }

    /// Whether it is held, and new work may begin.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.shared.is_open(Duration::ZERO)
    }

    /// The token, while it is held; also while it is being given back, for the work that goes on.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        let reading = self.shared.cell.read();
        let epoch =
            NonZeroU64::new(reading.epoch).filter(|_| reading.lasts(self.shared.clock.now()))?;
        Some(FencingToken::new(self.shared.key.clone(), epoch))
    }

    /// For how long it is still held if no renewal succeeds; zero when it is not.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.shared.cell.read().until.since(self.shared.clock.now())
    }

    /// Follows the states. Ends (`changed()` fails) when the keeper has.
    ///
    /// The states are those that the keeper reports; only [`is_held`](Self::is_held) and similar methods also compare
    /// the clock.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.shared.state.clone()
    }

    /// Waits until it is held.
    ///
    /// # Errors
    ///
    /// The keeper has ended, so the lease will not be held again.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn held(&self) -> Result<FencingToken, NotHeld> {
        loop {
            let opened = self.shared.opened.clone().notified_owned();
            if let Some(token) = self.token().filter(|_| self.is_held()) {
                return Ok(token);
            }
            if self.has_ended() {
                return Err(self.not_held());
            }
            opened.await;
        }
    }

    /// Gives the lease back in order: rejects new requests, waits for those in flight (at most
    /// [`drain_within`](crate::LeaseBuilder::drain_within), then they are cancelled), and releases it in the store. Returns the
    /// last state: `Released`, or `Fenced` if it was lost meanwhile.
    ///
    /// It waits for the keeper's end, so the keeper must be running.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on though this future is dropped.
    pub async fn step_down(&self) -> State {
        self.shared.stepping_down.notify_one();
        let mut states = self.subscribe();
        while states.changed().await.is_ok() {}
        self.state()
    }

    /// Steps down in favour of `to`, a claim to the same key: a planned cutover. The gate closes, requests in
    /// flight end as for [`step_down`](Self::step_down), and then the store hands the key over in one step: no
    /// vacancy, no contender in between, no [`lock_delay`](crate::LeaseBuilder::lock_delay). Answers with the
    /// successor's token.
    ///
    /// `to` is the [`handover_claim`](Self::handover_claim) of a successor whose keeper is waiting for the key. Where the
    /// store cannot transfer, or does not answer in time, the key is released instead.
    ///
    /// # Errors
    ///
    /// It is not known to be handed over: see [`NotHandedOver`].
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on though this future is dropped, and the target stays: a call with another claim is
    /// refused, and one with the same claim waits for the same end.
    pub async fn hand_over(&self, to: &Claim) -> Result<FencingToken, NotHandedOver> {
        if to.key() != self.key() {
            return Err(NotHandedOver::OtherKey);
        }
        // One that was used too: the store would take the transfer for done, and no keeper would renew it.
        if to.id().is_of_the_keeper_of(self.handover_claim().id()) {
            return Err(NotHandedOver::Own);
        }
        if !self.shared.handover().goes_to(to) {
            return Err(NotHandedOver::ToAnother);
        }
        let last = self.step_down().await;
        let token = self
            .shared
            .handover()
            .to
            .as_ref()
            .and_then(|to| to.token.clone());
        token.ok_or(match last {
            State::Fenced { cause, .. } => NotHandedOver::Lost(cause),
            _ => NotHandedOver::Released,
        })
    }

    /// The claim by which this one takes over when a holder [hands over](Self::hand_over) to it. Send it to that process, as
    /// text if you like: [`Claim`] implements `Display` and `FromStr`. It is valid while this keeper waits for the key, and
    /// for one handover.
    #[must_use]
    pub fn handover_claim(&self) -> Claim {
        self.shared.handover().claim.clone()
    }

    /// Its state, counters and histograms.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counts = *self.shared.counts();
        Snapshot {
            state: self.state(),
            remaining: self.remaining(),
            acquisitions: counts.acquisitions,
            renewals: counts.renewals,
            validity: counts.validity,
            failures: counts.failures,
            losses: counts.losses,
            requests: self.requests(),
        }
    }

    /// Counts of rejected, cancelled and replaced requests.
    #[must_use]
    pub fn requests(&self) -> RequestCounts {
        self.shared.counters.read(self.shared.cell.in_flight())
    }

    /// Whether the keeper has ended: the state will not change any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<C>> {
        &self.shared
    }

    /// Admits a piece of work if the lease is held for at least `min_remaining`, as the layers do for each
    /// request.
    ///
    /// # Errors
    ///
    /// It is not held, or its remaining validity is too short.
    pub fn enter(&self, min_remaining: Duration) -> Result<LeaseGuard<C>, NotHeld> {
        // Before anything is counted: callers that ask again and again while it drains must not hold up the drain.
        let may_be_open = self.shared.seems_open();
        let guard = may_be_open.then(|| self.try_enter(min_remaining)).flatten();
        guard.ok_or_else(|| self.refused())
    }

    fn try_enter(&self, min_remaining: Duration) -> Option<LeaseGuard<C>> {
        // Counted before the check that decides: see `LeaseCell::in_flight`. Counted out again before a refusal is made.
        self.shared.cell.enter();
        let mut guard = LeaseGuard {
            shared: self.shared.clone(),
            epoch: NonZeroU64::MIN,
        };
        guard.epoch = self.shared.open_epoch(min_remaining)?;
        Some(guard)
    }

    /// Refuses a request, and counts it.
    pub(crate) fn refused(&self) -> NotHeld {
        self.shared.counters.refused();
        self.not_held()
    }

    pub(crate) fn not_held(&self) -> NotHeld {
        let at = match self.shared.next_attempt.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(BootInstant::from_nanos(nanos)),
        };
        NotHeld::new(self.state(), at.map(|at| at.since(self.shared.clock.now())))
    }
}

impl<C> From<&Self> for Lease<C> {
    /// Another handle of the same lease, for the constructors of layers.
    fn from(lease: &Self) -> Self {
        lease.clone()
    }
}

impl<C> Clone for Lease<C> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<C: Clock> fmt::Debug for Lease<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key().as_str())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl<C> Shared<C> {
    /// Whether new ones are let in, without looking at the clock: for questions that are asked again.
    pub(crate) fn seems_open(&self) -> bool {
        self.cell.read().seems_open()
    }

    pub(crate) fn handover(&self) -> MutexGuard<'_, Handover> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no request is in flight. Final once the gate is closed to new ones.
    pub(crate) async fn drained(&self) {
        loop {
            let drained = self.drained.notified();
            if self.cell.in_flight() == 0 {
                return;
            }
            drained.await;
        }
    }
}

impl<C: Clock> Shared<C> {
    /// Whether new ones are let in.
    pub(crate) fn is_open(&self, min_remaining: Duration) -> bool {
        self.open_epoch(min_remaining).is_some()
    }

    /// Until when new ones are let in, if they are.
    pub(crate) fn open_until(&self) -> Option<BootInstant> {
        let reading = self.cell.read();
        Some(reading.until).filter(|until| !reading.draining && self.clock.now() < *until)
    }

    fn open_epoch(&self, min_remaining: Duration) -> Option<NonZeroU64> {
        self.open(min_remaining).map(|(epoch, _)| epoch)
    }

    /// For which epoch new ones are let in, and until when.
    pub(crate) fn open(&self, min_remaining: Duration) -> Option<(NonZeroU64, BootInstant)> {
        let reading = self.cell.read();
        if reading.draining {
            return None;
        }
        let now = self.clock.now();
        let enough = reading.lasts(now) && reading.until.since(now) >= min_remaining;
        let epoch = NonZeroU64::new(reading.epoch).filter(|_| enough)?;
        Some((epoch, reading.until))
    }

    fn lasts(&self, epoch: NonZeroU64) -> bool {
        self.end_of(epoch)
            .is_some_and(|until| self.clock.now() < until)
    }

    /// Until when this epoch is good; `None` when it is over, as far as the keeper knows.
    fn end_of(&self, epoch: NonZeroU64) -> Option<BootInstant> {
        let reading = self.cell.read();
        Some(reading.until).filter(|until| reading.epoch == epoch.get() && until.as_nanos() > 0)
    }
}

impl<C> fmt::Debug for Shared<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("key", &self.key)
            .field("cell", &self.cell)
            .finish_non_exhaustive()
    }
}

// === impl Handover ===

impl Handover {
    /// Whether it goes to this claim: because it does already, or because no other one was named before.
    fn goes_to(&mut self, claim: &Claim) -> bool {
        let to = self.to.get_or_insert_with(|| Successor {
            claim: claim.clone(),
            token: None,
        });
        to.claim.id() == claim.id()
    }
}

// === impl NotHandedOver ===

impl fmt::Display for NotHandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherKey => f.write_str("a lease is handed over to a claim to the same key"),
            Self::Own => f.write_str("a lease is handed over to the claim of another keeper"),
            Self::ToAnother => f.write_str("an earlier call hands the lease over to another claim"),
            Self::Released => {
                f.write_str("the lease was given back, and is not known to be handed over")
            }
            Self::Lost(cause) => write!(
                f,
                "the lease was lost before it could be handed over: {cause}"
            ),
        }
    }
}

impl Error for NotHandedOver {}

// === impl LeaseGuard ===

impl<C: Clock> LeaseGuard<C> {
    /// The token of the epoch in which it was admitted.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        FencingToken::new(self.shared.key.clone(), self.epoch)
    }

    /// Whether that epoch lasts, so that effects may still leave (I3).
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.shared.lasts(self.epoch)
    }

    /// Waits until that epoch is over: lost, expired, or given back because its time to drain was over.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn lost(&self) {
        loop {
            let lost = self.shared.lost.notified();
            let Some(until) = self.valid_until().filter(|_| self.is_valid()) else {
                return;
            };
            tokio::select! {
                () = lost => {}
                () = self.shared.clock.sleep_until(until) => {}
            }
        }
    }

    pub(crate) fn key(&self) -> &LeaseKey {
        &self.shared.key
    }

    pub(crate) const fn epoch(&self) -> NonZeroU64 {
        self.epoch
    }

    pub(crate) const fn shared(&self) -> &Arc<Shared<C>> {
        &self.shared
    }

    /// Until when it is good, unless it is over already.
    pub(crate) fn valid_until(&self) -> Option<BootInstant> {
        self.shared.end_of(self.epoch)
    }

    /// Until when its work may go on after a loss: `grace` after the end, but at most the guard.
    ///
    /// The end is when the keeper closed, now at the latest, and never past the end of validity: a request that
    /// learns of it late has that much less time. When another epoch has begun, this one has been over for a while.
    pub(crate) fn grace_until(&self, grace: Duration) -> BootInstant {
        let now = self.shared.clock.now();
        let end = self
            .shared
            .cell
            .ended_by(self.epoch.get())
            .map_or(BootInstant::from_nanos(0), |end| end.min(now));
        end.after(grace.min(self.shared.guard))
    }
}

impl<C> Drop for LeaseGuard<C> {
    fn drop(&mut self) {
        // Only a keeper that is closing waits. It drained before it counted, so each request that it counted sees that here.
        if self.shared.cell.leave() && !self.shared.seems_open() {
            self.shared.drained.notify_waiters();
        }
    }
}

impl<C> fmt::Debug for LeaseGuard<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseGuard")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
