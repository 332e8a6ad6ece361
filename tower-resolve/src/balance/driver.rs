use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering::Release},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use pin_project::pin_project;
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, Sleep, sleep_until},
};
use tower_outcome::{BoxError, EjectionBudget};
use tower_service::Service;

use super::{
    builder::Follows,
    ease::Ease,
    service::Ends,
    shared::{Life, Published, Shared},
    slot::{Hub, Look, Slot, Stats},
    subset::Part,
    tier::{Level, Tiers, Weighed},
    watch::{Seen, Watch},
};
use crate::{
    Endpoint, EndpointId, Generation, Phase, Topology, Update,
    backoff::Backoff,
    diff::{Applied, Change, Fold},
    error::{OLDER_IN_A_ROW, WentBack},
    health::{self, Checkup, Checkups, Outlier, Ward},
    policy::Policy,
};

/// Keeps a [`Balance`](super::Balance) up to date: follows the topology, creates and drops endpoint services, polls those
/// that are not ready, and tracks their health. Spawn it.
///
/// It is driven by events and needs no traffic. It ends when the last handle of the balance and the last request are
/// dropped. If it is dropped earlier, the balance is stopped for good. Its `tracing` events are emitted while it is polled,
/// so `driver.instrument(span)` distinguishes several balances.
///
/// # Panics
///
/// If the `make` function, the `poll_ready` of an endpoint, a probe or the `table` of a policy panics; the balance is then
/// stopped. Also outside of a Tokio runtime, when it needs a timer.
#[pin_project]
#[must_use = "a balance does nothing until its driver is spawned"]
pub struct Driver<S, Req, P: Policy<Req>, U, M, C> {
    #[pin]
    updates: U,
    has_ended: bool,
    pool: Pool<S, Req, P, M, C>,
    alarm: Option<Pin<Box<Sleep>>>,
}

/// The driver's view of the endpoints. The slots themselves are in [`Shared::slots`], which snapshots read.
struct Pool<S, Req, P: Policy<Req>, M, C> {
    shared: Weak<Shared<S, P::Table, P, C>>,
    hub: Arc<Hub>,
    looks: UnboundedReceiver<Look>,
    make: M,
    fold: Fold,
    /// Consecutive updates that contain only state of an older generation.
    older: u32,
    part: Option<Part>,
    tiers: Tiers<S, P::Table>,
    watches: FuturesUnordered<Abortable<Watch<S, Req>>>,
    /// Endpoints that are watched, or that failed recently.
    cares: HashMap<EndpointId, Care>,
    ward: Ward,
    panic_below: u8,
    checkups: Option<Checkups<Arc<Stats>>>,
    ease: Ease,
    /// The published state is out of date.
    is_stale: bool,
}

/// What the driver holds for an endpoint that is not ready.
#[derive(Default)]
struct Care {
    /// Set while the endpoint is watched. Dropping this ends the watch.
    watch: Option<AbortOnDrop>,
    failures: u32,
    failed_at: Option<Instant>,
}

struct AbortOnDrop(AbortHandle);

// === impl Driver ===

impl<S, Req, P: Policy<Req>, U, M, C> Driver<S, Req, P, U, M, C> {
    pub(super) fn new(
        ends: Ends<S, P::Table, P, C>,
        follows: Follows,
        updates: U,
        make: M,
    ) -> Self {
        let max_ejected = follows.outlier.as_ref();
        let max_ejected = max_ejected.map_or(HALF, Outlier::max_ejected_percent);
        let zone = follows.zone.clone();
        let part = follows.subset.map(|subset| Part::new(subset, zone));
        let ease = Ease::new(follows.slow_start, ends.hub.clone());
        let pool = Pool {
            shared: ends.shared,
            hub: ends.hub,
            looks: ends.looks,
            make,
            fold: Fold::new(),
            older: 0,
            part,
            tiers: Tiers::new(follows.zone, max_ejected),
            watches: FuturesUnordered::new(),
            cares: HashMap::new(),
            ward: Ward::new(follows.outlier),
            panic_below: follows.panic_below,
            checkups: follows.check.map(Checkups::new),
            ease,
            is_stale: false,
        };
        Self {
            updates,
            has_ended: false,
            pool,
            alarm: None,
        }
    }
}

impl<S, Req, P, U, M, C> Future for Driver<S, Req, P, U, M, C>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy<Req>,
    U: Stream<Item = Update>,
    M: FnMut(&Endpoint, &EjectionBudget) -> S,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            while let Poll::Ready(look) = this.pool.looks.poll_recv(cx) {
                // Without a balance there is no reader.
                let Some(shared) = this.pool.shared.upgrade() else {
                    return Poll::Ready(());
                };
                match look {
                    Some(Look::Gone) | None => return Poll::Ready(()),
                    Some(look) => this.pool.look(&shared, look),
                }
            }
            let Some(shared) = this.pool.shared.upgrade() else {
                return Poll::Ready(());
            };
            let mut budget = UPDATES_A_POLL;
            while !*this.has_ended
                && let Poll::Ready(update) = this.updates.as_mut().poll_next(cx)
            {
                match update {
                    Some(update) => this.pool.apply(&shared, update),
                    None => {
                        *this.has_ended = true;
                        tracing::warn!("the source of endpoints ended; the last set stays in use");
                    }
                }
                budget -= 1;
                if budget == 0 {
                    cx.waker().wake_by_ref();
                    break;
                }
            }
            while let Poll::Ready(Some(seen)) = Pin::new(&mut this.pool.watches).poll_next(cx) {
                if let Ok((stats, seen)) = seen {
                    this.pool.seen(&shared, &stats, seen);
                }
            }
            this.pool.pass(&shared, cx);
            this.pool.publish(&shared, cx);
            // The balance may be dropped while it is upgraded here; then the event arrives again.
            drop(shared);
            match this.pool.next() {
                None => return Poll::Pending,
                Some(next) => {
                    let alarm = this
                        .alarm
                        .get_or_insert_with(|| Box::pin(sleep_until(next)));
                    if alarm.deadline() != next {
                        alarm.as_mut().reset(next);
                    }
                    if alarm.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl<S, Req, P: Policy<Req>, U, M, C> fmt::Debug for Driver<S, Req, P, U, M, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field(
                "generation",
                &self.pool.fold.topology().map(Topology::generation),
            )
            .field("endpoints", &self.pool.tiers.counts().known)
            .finish_non_exhaustive()
    }
}

// === impl Pool ===

impl<S, Req, P, M, C> Pool<S, Req, P, M, C>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy<Req>,
    M: FnMut(&Endpoint, &EjectionBudget) -> S,
{
    fn apply(&mut self, shared: &Shared<S, P::Table, P, C>, update: Update) {
        let was_well = self.fold.degraded().is_none();
        let before = self.fold.topology().map(Topology::generation);
        let all_as_of = match &update {
            Update::Snapshot(all) => Some(all.generation()),
            Update::DoesNotExist(generation) => Some(*generation),
            _ => None,
        };
        let applied = self.fold.apply(update);
        if matches!(
            applied,
            Applied::Changed(_) | Applied::Unchanged | Applied::Held
        ) {
            self.older = 0;
        }
        match applied {
            Applied::Changed(change) => {
                tracing::info!(
                    generation = self
                        .fold
                        .topology()
                        .map(|topology| topology.generation().value),
                    added = change.added.len(),
                    removed = change.removed.len(),
                    changed = change.changed.len(),
                    "topology"
                );
                self.change(shared, change);
            }
            Applied::Unchanged => {}
            Applied::Stale => {
                tracing::debug!("an older generation was ignored");
                self.went_back(all_as_of);
            }
            Applied::Gap => {
                tracing::warn!(
                    "an update does not fit what is known and was ignored; a snapshot is needed"
                )
            }
            Applied::Held => tracing::warn!("an empty set from a source in trouble was held back"),
            Applied::Degraded if was_well => {
                let cause = self.fold.degraded().map(tracing::field::display);
                tracing::warn!(
                    cause,
                    "the source of endpoints is in trouble; the last set stays in use"
                );
            }
            Applied::Degraded => {}
        }
        let is_well = self.fold.degraded().is_none();
        self.is_stale |=
            was_well != is_well || self.fold.topology().map(Topology::generation) != before;
    }

    /// A source that repeatedly answers with an older generation than the known one is degraded until it answers with a
    /// newer one. (Deltas may be older: a replay.)
    fn went_back(&mut self, all_as_of: Option<Generation>) {
        let known = self.fold.topology().map(Topology::generation);
        let (Some(seen), Some(known)) = (all_as_of, known) else {
            return;
        };
        self.older += 1;
        if self.older == OLDER_IN_A_ROW {
            let cause = WentBack::new(known, seen);
            tracing::warn!(
                cause = %cause,
                "the source of endpoints answers with older generations; the last set stays in use"
            );
            let _ = self.fold.apply(Update::degraded(cause));
        }
    }

    /// Inserts new endpoints first; the changes become visible together, when they are published.
    fn change(&mut self, shared: &Shared<S, P::Table, P, C>, change: Change) {
        self.is_stale = true;
        let change = match (&mut self.part, self.fold.topology()) {
            (Some(part), Some(all)) => part.change(change, all),
            _ => change,
        };
        for endpoint in change.added {
            self.insert(shared, endpoint);
        }
        for (_, endpoint) in &change.changed {
            self.describe(shared, endpoint.clone());
        }
        change
            .removed
            .iter()
            .for_each(|endpoint| self.remove(shared, endpoint.id()));
        // The size of each budget has to be known first.
        for (before, after) in &change.changed {
            if self.tiers.level(before) != self.tiers.level(after) {
                self.transfer(shared, after.id());
            }
        }
    }

    /// A new instance, with a new service and no history.
    fn insert(&mut self, shared: &Shared<S, P::Table, P, C>, endpoint: Arc<Endpoint>) {
        let stats = Arc::new(Stats::new(endpoint.clone(), self.hub.clone()));
        self.ease.add(&stats);
        self.tiers.know(&endpoint);
        let budget = self.tiers.budget(&endpoint);
        let service = (self.make)(&endpoint, &budget);
        if let Some(checkups) = &mut self.checkups {
            checkups.add(stats.clone(), Instant::now());
        }
        let slot = Arc::new(Slot::new(endpoint, stats, service, budget));
        self.put(&slot);
        shared.slots().insert(slot.clone());
        self.ask(&slot);
    }

    /// The same id with another description: another instance starts afresh, and the same instance keeps its state. Its
    /// service is replaced if its priority or zone changed, because it has a handle on the budget of the old one.
    fn describe(&mut self, shared: &Shared<S, P::Table, P, C>, endpoint: Arc<Endpoint>) {
        let Some(before) = shared.slots().get(endpoint.id().as_str()).cloned() else {
            self.insert(shared, endpoint);
            return;
        };
        if !before.endpoint.is_same_instance(&endpoint) {
            // The map holds one entry for each id. For requests the change is atomic, when it is published.
            self.remove(shared, endpoint.id());
            self.insert(shared, endpoint);
            return;
        }
        if self.tiers.level(&before.endpoint) != self.tiers.level(&endpoint) {
            // The watch is for the old service.
            self.cares.remove(endpoint.id());
            before.stats.be_unready();
            return self.remake(shared, &before, endpoint);
        }
        let after = Arc::new(Slot::new(
            endpoint,
            before.stats.clone(),
            before.service.clone(),
            before.budget.clone(),
        ));
        self.exchange(shared, &before, after);
    }

    /// Its service has another handle on a budget now, so an ejection needs a place in that budget.
    fn transfer(&mut self, shared: &Shared<S, P::Table, P, C>, id: &EndpointId) {
        let slot = shared.slots().get(id.as_str()).cloned();
        if let Some(slot) = slot
            && self.ward.transfer(id, &slot.budget)
        {
            self.judge(&slot, false, "too many are out");
        }
    }

    /// A new service for the same instance. What the old service has taken from the budget is returned, even if requests in
    /// flight keep it alive. [`transfer`](Self::transfer) follows.
    fn remake(
        &mut self,
        shared: &Shared<S, P::Table, P, C>,
        before: &Arc<Slot<S>>,
        endpoint: Arc<Endpoint>,
    ) {
        let budget = self.tiers.budget(&endpoint);
        before.budget.set_serving(false);
        let service = (self.make)(&endpoint, &budget);
        let after = Arc::new(Slot::new(endpoint, before.stats.clone(), service, budget));
        self.exchange(shared, before, after.clone());
        self.ask(&after);
    }

    fn exchange(
        &mut self,
        shared: &Shared<S, P::Table, P, C>,
        before: &Slot<S>,
        after: Arc<Slot<S>>,
    ) {
        if !self.tiers.describe(before, &after) {
            self.tiers.forget(before);
            self.tiers.know(&after.endpoint);
            if !self.tiers.may_serve(&after.endpoint) {
                before.withdraw();
            }
        }
        self.put(&after);
        // These values belong to the user, so they are dropped after the lock is released.
        let replaced = shared.slots().insert(after);
        drop(replaced);
        self.is_stale = true;
    }

    /// Requests that hold an older set skip the endpoint from now on. Its requests in flight continue.
    fn remove(&mut self, shared: &Shared<S, P::Table, P, C>, id: &EndpointId) {
        let removed = shared.slots().remove(id.as_str());
        let Some(slot) = removed else { return };
        self.tiers.forget(&slot);
        slot.stats.retire();
        slot.budget.set_serving(false);
        self.cares.remove(id);
        self.ward.forget(id);
    }

    fn look(&mut self, shared: &Shared<S, P::Table, P, C>, look: Look) {
        let now = Instant::now();
        match look {
            Look::Pending(stats) => {
                let Some(slot) = slot(shared, &stats) else {
                    return;
                };
                tracing::debug!(endpoint = %stats.id(), from = "ready", to = "not ready", "endpoint");
                self.put(&slot);
                self.ask(&slot);
            }
            Look::Finished(stats) => {
                let Some(slot) = slot(shared, &stats) else {
                    return;
                };
                self.put(&slot);
                self.rest(&stats);
            }
            Look::Failing(stats) => self.ease.failing(stats, now),
            Look::Asked(stats, time) => self.ease.held(stats, time, now),
            Look::Struck(stats, term) => {
                stats.heard_strike();
                if stats.term() != term {
                    return;
                }
                let Some(slot) = slot(shared, &stats) else {
                    return;
                };
                if self.ward.strike(stats.id(), &slot.budget, now) {
                    self.judge(&slot, true, "consecutive failures");
                }
            }
            Look::Waiting => self.ease.waiting(now),
            Look::Gone => {}
        }
    }

    fn seen(&mut self, shared: &Shared<S, P::Table, P, C>, stats: &Arc<Stats>, seen: Seen) {
        // An endpoint that was replaced meanwhile is ignored.
        let Some(slot) = slot(shared, stats) else {
            return;
        };
        if let Some(care) = self.cares.get_mut(stats.id()) {
            care.watch = None;
        }
        match seen {
            Seen::Ready => {
                tracing::debug!(endpoint = %stats.id(), from = "not ready", to = "ready", "endpoint");
                // An endpoint that never failed needs no state.
                if self
                    .cares
                    .get(stats.id())
                    .is_some_and(|care| care.failures == 0)
                {
                    self.cares.remove(stats.id());
                    self.forget_cares();
                }
                stats.be_ready();
                self.put(&slot);
            }
            Seen::Failed(error) => {
                tracing::warn!(endpoint = %stats.id(), error = &*error as &dyn std::error::Error, "the service of an endpoint failed");
                self.rest(stats);
            }
            Seen::Rested => {
                self.remake(shared, &slot, slot.endpoint.clone());
                self.transfer(shared, stats.id());
            }
        }
    }

    /// All endpoints are watched at first, and few later.
    fn forget_cares(&mut self) {
        if self.cares.capacity() > 4 * self.cares.len() + 4 {
            self.cares.shrink_to(2 * self.cares.len());
        }
    }

    /// Starts to watch the endpoint, unless it is watched already.
    fn ask(&mut self, slot: &Slot<S>) {
        let care = self.cares.entry(slot.stats.id().clone()).or_default();
        if care.watch.is_none() {
            let watch = Watch::asking(slot.stats.clone(), slot.service.clone());
            self.watches.push(care.watched(watch));
        }
    }

    /// Waits for the backoff before a finished service is created again.
    fn rest(&mut self, stats: &Arc<Stats>) {
        let care = self.cares.entry(stats.id().clone()).or_default();
        if care.watch.is_none() {
            let rest = REBUILD.after(care.fail(Instant::now()));
            self.watches
                .push(care.watched(Watch::resting(stats.clone(), rest)));
        }
    }

    /// Runs the timers that have expired.
    fn pass(&mut self, shared: &Shared<S, P::Table, P, C>, cx: &mut Context<'_>) {
        let now = Instant::now();
        self.ease.pass(now);
        for id in self.ward.readmit(now) {
            self.verdict(shared, &id, false, "its time is over");
        }
        if self.tiers.counts().known == 0 {
            self.ward.pause_sweeps();
        } else if self.ward.is_sweep_due(now) {
            self.sweep(shared, now);
        }
        // The panic state is evaluated again after its minimum duration.
        self.is_stale |= self.tiers.next().is_some_and(|at| at <= now);
        while let Some(checkups) = &mut self.checkups
            && let Poll::Ready(Checkup { whose, is_well }) = checkups.poll(cx, now, |stats| {
                slot(shared, stats).map(|slot| slot.endpoint.clone())
            })
        {
            if let Some(is_out) = self.ward.checked(whose.id(), is_well) {
                self.verdict(shared, whose.id(), is_out, "checks");
            }
        }
    }

    /// Compares the success rates of the endpoints.
    fn sweep(&mut self, shared: &Shared<S, P::Table, P, C>, now: Instant) {
        let all = shared.slots().clone();
        let serving = all
            .iter()
            .filter(|slot| slot.endpoint.phase() == Phase::Ready);
        let seen = serving.map(|slot| {
            let (ended, failed) = slot.stats.ended();
            let id = slot.stats.id().clone();
            health::Seen { id, ended, failed }
        });
        for id in self.ward.sweep(seen.collect(), now) {
            if let Some(slot) = all.get(id.as_str())
                && self.ward.strike(&id, &slot.budget, now)
            {
                self.judge(slot, true, "success rate");
            }
        }
    }

    fn verdict(
        &mut self,
        shared: &Shared<S, P::Table, P, C>,
        id: &EndpointId,
        is_out: bool,
        why: &'static str,
    ) {
        let slot = shared.slots().get(id.as_str()).cloned();
        if let Some(slot) = slot {
            self.judge(&slot, is_out, why);
        }
    }
}

impl<S, Req, P: Policy<Req>, M, C> Pool<S, Req, P, M, C> {
    /// Moves an endpoint to the tier that its readiness and health require.
    fn put(&mut self, slot: &Arc<Slot<S>>) {
        if self.tiers.put(slot, P::KEEPS_UNREADY) {
            self.ease.eligible(&slot.stats, Instant::now());
        }
        self.is_stale = true;
    }

    /// All health transitions of an endpoint.
    fn judge(&mut self, slot: &Arc<Slot<S>>, is_out: bool, why: &'static str) {
        let name = |is_out| if is_out { "out" } else { "in" };
        tracing::info!(endpoint = %slot.stats.id(), from = name(!is_out), to = name(is_out), why, "health");
        slot.stats.be_out(is_out);
        if !is_out {
            self.ease.warm(&slot.stats, Instant::now());
        }
        self.put(slot);
    }

    /// Evaluates the panic state, and ends ejections above the limit for the current number of endpoints.
    fn weigh(&mut self, shared: &Shared<S, P::Table, P, C>, now: Instant) {
        self.believe(shared, now);
        let overdrawn = self.tiers.overdrawn();
        if overdrawn.is_empty() {
            return;
        }
        for id in self.ward.ejected() {
            let Some(slot) = shared.slots().get(id.as_str()).cloned() else {
                continue;
            };
            let level = self.tiers.level(&slot.endpoint);
            if overdrawn.contains(&level) && self.tiers.is_overdrawn(level) && self.ward.pardon(&id)
            {
                self.judge(&slot, false, "too many are out");
            }
        }
        self.believe(shared, now);
    }

    fn believe(&mut self, shared: &Shared<S, P::Table, P, C>, now: Instant) {
        let weighed = self.tiers.weigh(self.panic_below, now);
        for Weighed {
            level: Level { priority, is_far },
            panics,
            out,
            known,
        } in &weighed
        {
            if *panics {
                tracing::warn!(
                    priority,
                    is_far,
                    out,
                    known,
                    "too many endpoints are out for their health; it is ignored"
                );
            } else {
                tracing::info!(priority, is_far, out, known, "health is believed again");
            }
        }
        if !weighed.is_empty() {
            let all = shared.slots().clone();
            all.iter()
                .filter(|slot| slot.stats.is_out())
                .for_each(|slot| self.put(slot));
        }
    }

    fn next(&self) -> Option<Instant> {
        let checkups = self.checkups.as_ref().and_then(Checkups::next);
        let panic = self.tiers.next();
        [self.ease.next(), self.ward.next(), checkups, panic]
            .into_iter()
            .flatten()
            .min()
    }

    /// Publishes what changed. Repeated when a table that is needed has been built.
    fn publish(&mut self, shared: &Shared<S, P::Table, P, C>, cx: &mut Context<'_>) {
        loop {
            if self.is_stale {
                self.publish_now(shared);
            }
            if !self.tiers.poll_builds(cx) {
                return;
            }
            self.is_stale = true;
        }
    }

    /// The only place that changes what requests read.
    fn publish_now(&mut self, shared: &Shared<S, P::Table, P, C>) {
        self.weigh(shared, Instant::now());
        self.is_stale = false;
        let life = self
            .fold
            .topology()
            .map_or(Life::Pending, |topology| Life::Known(topology.generation()));
        let counts = self.tiers.counts();
        let shares = self.tiers.shares(&shared.policy);
        let has_any = !shares.is_empty();
        let is_empty = matches!(life, Life::Known(_)) && counts.known == 0;
        let degraded = self.fold.degraded().is_some();
        let published = Published {
            life,
            degraded,
            panics: self.tiers.panics(),
            counts,
            shares,
        };
        let generation = published.generation();
        shared.current.store(Arc::new(published));
        shared
            .generations
            .send_if_modified(|known| std::mem::replace(known, generation) != generation);
        if is_empty {
            shared.hub.queue.close();
        } else if has_any {
            shared.hub.queue.open();
        }
    }
}

impl<S, Req, P: Policy<Req>, M, C> Drop for Pool<S, Req, P, M, C> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            tracing::warn!("the driver of a balance was dropped; the balance is stopped");
            shared.is_stopped.store(true, Release);
            shared
                .current
                .store(Arc::new(Published::empty(Life::Stopped)));
            let slots = std::mem::take(&mut *shared.slots());
            drop(slots);
            shared.hub.queue.close();
        }
    }
}

/// The slot of exactly this instance.
fn slot<S, T, P, C>(shared: &Shared<S, T, P, C>, stats: &Arc<Stats>) -> Option<Arc<Slot<S>>> {
    shared
        .slots()
        .get(stats.id().as_str())
        .filter(|slot| Arc::ptr_eq(&slot.stats, stats))
        .cloned()
}

// === impl Care ===

impl Care {
    /// Counts a failure. Old failures are forgotten.
    fn fail(&mut self, now: Instant) -> u32 {
        let is_old = self
            .failed_at
            .is_none_or(|at| now.duration_since(at) > 2 * REBUILD.cap);
        self.failures = if is_old {
            1
        } else {
            self.failures.saturating_add(1)
        };
        self.failed_at = Some(now);
        self.failures
    }

    fn watched<S, Req>(&mut self, watch: Watch<S, Req>) -> Abortable<Watch<S, Req>> {
        let (handle, registration) = AbortHandle::new_pair();
        self.watch = Some(AbortOnDrop(handle));
        Abortable::new(watch, registration)
    }
}

// === impl AbortOnDrop ===

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The backoff after failures of an endpoint's service: 100 ms, doubling to 10 s.
const REBUILD: Backoff = Backoff {
    first: Duration::from_millis(100),
    cap: Duration::from_secs(10),
};

/// The default share of the endpoints of a priority and zone, in percent, that may be out at once because of their
/// responses.
const HALF: u8 = 50;

/// The number of updates that are applied before the task yields.
const UPDATES_A_POLL: usize = 64;
