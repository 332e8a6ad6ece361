use std::time::Duration;

use tokio::sync::watch;

use crate::{
    BootClock, BuildError, Claim, ClaimId, Clock, Holder, Keeper, Lease, LeaseKey, LeaseStore,
    State, fencing, lease::Core, timing::Timing,
};

/// The settings of a lease. Made by [`Lease::builder`].
///
/// | | default | |
/// |---|---|---|
/// | [`ttl`](Self::ttl) | 10 s | survives a change of the store's leader |
/// | [`renew_every`](Self::renew_every) | a quarter of the TTL | leaves three more attempts before the end of validity |
/// | [`clock_drift_ppm`](Self::clock_drift_ppm) | 10 000 (1 %) | above the error of any crystal oscillator |
/// | [`guard`](Self::guard) | 250 ms, or a twentieth of the TTL if that is more | from a check to its effect |
/// | [`reacquire`](Self::reacquire) | no | a lost listener is replaced, not revived |
/// | [`drain_within`](Self::drain_within) | 10 s | |
/// | [`lock_delay`](Self::lock_delay) | zero | right where the resource checks tokens |
/// | [`membership`](Self::membership) | no: exclusive | losing the store for a TTL closes the gate |
/// | [`clock`](Self::clock) | [`BootClock`] | counts suspend |
#[derive(Clone, Debug)]
#[must_use]
pub struct LeaseBuilder<S, C = BootClock> {
    store: S,
    key: LeaseKey,
    holder: Holder,
    clock: C,
    timing: Timing,
}

/// How a *membership* lease behaves while the store cannot be reached (R-31).
///
/// This is a trade-off. An exclusive lease must end when it cannot be renewed, so an outage of the store that lasts
/// longer than the TTL closes the gates of *every* holder. A lease that only announces a replica, under a key which no
/// other replica uses, needs no such end: for it, that rule turns an outage of the directory into an outage of the
/// service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnStoreOutage {
    /// The gate closes at the end of validity, as an exclusive lease's does.
    #[default]
    Fence,
    /// The gate stays open for as long as the store does not report that the lease is lost ("static stability"): in state
    /// [`Jeopardy`](State::Jeopardy), and without an end of [`remaining`](Lease::remaining). When the store is back and
    /// has forgotten the record, the lease is lost, and with [`reacquire`](LeaseBuilder::reacquire) a new epoch begins
    /// some 100 to 500 ms later.
    ///
    /// Another process may see the key vacant, and acquire it, while this holder serves.
    KeepServing,
}

// === impl Lease ===

impl Lease {
    /// Prepares a lease on `key` in `store` for `holder`. [`LeaseBuilder`] has the settings and their defaults.
    pub fn builder<S: LeaseStore>(store: S, key: LeaseKey, holder: Holder) -> LeaseBuilder<S> {
        LeaseBuilder::new(store, key, holder)
    }
}

// === impl LeaseBuilder ===

impl<S: LeaseStore> LeaseBuilder<S> {
    pub(crate) fn new(store: S, key: LeaseKey, holder: Holder) -> Self {
        Self {
            store,
            key,
            holder,
            clock: BootClock::new(),
            timing: Timing::default(),
        }
    }
}

impl<S: LeaseStore, C: Clock> LeaseBuilder<S, C> {
    /// How long the store keeps it without a renewal: how long a successor waits after a silent death. Default: 10 s.
    ///
    /// Below 5 s an etcd that changes its leader may take too long.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.timing.ttl = ttl;
        self
    }

    /// How often it is renewed; each period is shortened by up to a fifth at random. Default: a quarter of the TTL.
    pub fn renew_every(mut self, every: Duration) -> Self {
        self.timing.renew_every = Some(every);
        self
    }

    /// The greatest error of the clocks' rates, in parts per million (R-5). Default: 10 000.
    pub fn clock_drift_ppm(mut self, ppm: u32) -> Self {
        self.timing.drift_ppm = ppm;
        self
    }

    /// The longest time between a check of the gate and its effect (R-5). Default: 250 ms, or a twentieth of the TTL if
    /// that is more.
    pub fn guard(mut self, guard: Duration) -> Self {
        self.timing.guard = Some(guard);
        self
    }

    /// Whether the keeper acquires a new epoch after a loss. Default: no; the keeper ends.
    pub fn reacquire(mut self, reacquire: bool) -> Self {
        self.timing.reacquire = reacquire;
        self
    }

    /// How long [`step_down`](Lease::step_down) waits for requests in flight. Default: 10 s.
    pub fn drain_within(mut self, limit: Duration) -> Self {
        self.timing.drain_within = limit;
        self
    }

    /// For how long the gate of a new holder stays closed if the epoch before did not end cleanly: it expired, or was
    /// revoked (R-18). It has its epoch at once ([`State::LockDelay`]), and renews meanwhile. Default: zero.
    ///
    /// Zero is right where the resource checks tokens. Where nothing does, take the margin plus the longest time that a
    /// request of the last holder may go on for. All holders of a key should have the same.
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.timing.lock_delay = delay;
        self
    }

    /// Declares the lease a *membership*: no other process uses its key, and it is held only for discovery. It may
    /// then outlive an outage of the store (R-31). Default: exclusive, which never does.
    pub fn membership(mut self, on_outage: OnStoreOutage) -> Self {
        self.timing.keeps_serving = on_outage == OnStoreOutage::KeepServing;
        self
    }

    /// Compiles only with a store whose tokens fence (R-32). For leases whose holders write: with other stores nothing
    /// keeps a holder that was replaced, and does not know it yet, from writing over its successor.
    ///
    /// ```
    /// # use tower_lease::{Holder, Lease, LeaseBuilder, LeaseKey, LeaseStore, fencing};
    /// fn lead<S: LeaseStore<Fencing = fencing::Monotonic>>(store: S, key: LeaseKey) -> LeaseBuilder<S> {
    ///     Lease::builder(store, key, Holder::new("node-1")).require_fencing()
    /// }
    /// ```
    ///
    /// ```compile_fail,E0271
    /// # use tower_lease::{Holder, Lease, LeaseBuilder, LeaseKey, LeaseStore, fencing};
    /// fn lead<S: LeaseStore<Fencing = fencing::NoFencing>>(store: S, key: LeaseKey) -> LeaseBuilder<S> {
    ///     Lease::builder(store, key, Holder::new("node-1")).require_fencing()
    /// }
    /// ```
    pub fn require_fencing(self) -> Self
    where
        S: LeaseStore<Fencing = fencing::Monotonic>,
    {
        self
    }

    /// Another clock, for paused tests and simulations. Default: [`BootClock`].
    pub fn clock<D: Clock>(self, clock: D) -> LeaseBuilder<S, D> {
        let Self {
            store,
            key,
            holder,
            clock: _,
            timing,
        } = self;
        LeaseBuilder {
            store,
            key,
            holder,
            clock,
            timing,
        }
    }

    /// Builds the handle and the keeper. Spawn the future of [`Keeper::run`].
    ///
    /// # Errors
    ///
    /// The durations do not fit together (R-5), or the store does not grant so short a TTL.
    pub fn build(self) -> Result<(Lease<C>, Keeper<S, C>), BuildError> {
        let Self {
            store,
            key,
            holder,
            clock,
            timing,
        } = self;
        let capabilities = store.capabilities();
        timing.check(&capabilities)?;
        // A holder may be cloned by mistake, so the claims' ids are drawn for this keeper alone.
        let claim = Claim::new(key.clone(), holder, ClaimId::random(), timing.ttl);
        let terms_guard = timing.guard();
        let core = Core::new(timing, claim.id(), capabilities.watch(), fastrand::u64(..));
        let (told, state) = watch::channel(State::Idle);
        let lease = Lease::new(claim.clone(), clock, terms_guard, state);
        Ok((lease.clone(), Keeper::new(store, claim, core, lease, told)))
    }
}
