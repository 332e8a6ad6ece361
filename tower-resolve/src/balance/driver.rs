use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use pin_project::pin_project;
use tokio::{sync::mpsc::UnboundedReceiver, time::Instant};
use tower_outcome::BoxError;
use tower_service::Service;

use super::{
    shared::{Eligible, Life, Look, Published, Shared},
    slot::{Slot, Stats},
    watch::{Seen, Watch},
};
use crate::{
    Endpoint, EndpointId, Phase, Update,
    backoff::Backoff,
    diff::{Applied, Fold},
    policy::Policy,
};

/// Keeps a [`Balance`](super::Balance) alive: follows the topology, makes and drops endpoint services, and watches those
/// that are not ready. Spawn it.
///
/// It works without traffic, by events alone, and ends when the last handle of the balance and the last request is gone.
/// When it is dropped earlier, the balance says so for good. Its `tracing` events are its own, so
/// `driver.instrument(span)` tells several balances apart.
///
/// # Panics
///
/// Where the `make` function or an endpoint's `poll_ready` does; the balance is then stopped. And outside of a Tokio
/// runtime, when an endpoint's service fails and has to rest.
#[pin_project]
#[must_use = "a balance does nothing until its driver is spawned"]
pub struct Driver<S, Req, P: Policy, U, M> {
    #[pin]
    updates: U,
    has_ended: bool,
    pool: Pool<S, Req, P, M>,
}

/// The driver's own view of the endpoints.
struct Pool<S, Req, P: Policy, M> {
    shared: Weak<Shared<S, P>>,
    looks: UnboundedReceiver<Look>,
    make: M,
    fold: Fold,
    entries: BTreeMap<EndpointId, Entry<S>>,
    watches: FuturesUnordered<Abortable<Watch<S, Req>>>,
    all: Arc<[Arc<Slot<S>>]>,
    stale: Stale,
}

struct Entry<S> {
    slot: Arc<Slot<S>>,
    /// While it is watched. Dropping the entry ends the watch.
    watch: Option<AbortOnDrop>,
    failures: u32,
    failed_at: Option<Instant>,
}

struct AbortOnDrop(AbortHandle);

/// How much of what is published is no longer true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    Nothing,
    Readiness,
    Endpoints,
}

// === impl Driver ===

impl<S, Req, P: Policy, U, M> Driver<S, Req, P, U, M> {
    pub(super) fn new(shared: Weak<Shared<S, P>>, looks: UnboundedReceiver<Look>, updates: U, make: M) -> Self {
        let pool = Pool {
            shared,
            looks,
            make,
            fold: Fold::new(),
            entries: BTreeMap::new(),
            watches: FuturesUnordered::new(),
            all: Arc::new([]),
            stale: Stale::Nothing,
        };
        Self { updates, has_ended: false, pool }
    }
}

impl<S, Req, P, U, M> Future for Driver<S, Req, P, U, M>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy,
    U: Stream<Item = Update>,
    M: FnMut(&Endpoint) -> S,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        while let Poll::Ready(look) = this.pool.looks.poll_recv(cx) {
            let Some(look) = look else { return Poll::Ready(()) };
            this.pool.look(&look);
        }
        let mut budget = UPDATES_A_POLL;
        while !*this.has_ended
            && let Poll::Ready(update) = this.updates.as_mut().poll_next(cx)
        {
            match update {
                Some(update) => this.pool.apply(update),
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
                this.pool.seen(&stats, seen);
            }
        }
        this.pool.publish();
        Poll::Pending
    }
}

impl<S, Req, P: Policy, U, M> fmt::Debug for Driver<S, Req, P, U, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("generation", &self.pool.fold.topology().map(crate::Topology::generation))
            .field("endpoints", &self.pool.entries.len())
            .finish_non_exhaustive()
    }
}

// === impl Pool ===

impl<S, Req, P, M> Pool<S, Req, P, M>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy,
    M: FnMut(&Endpoint) -> S,
{
    fn apply(&mut self, update: Update) {
        let was_well = self.fold.degraded().is_none();
        let before = self.fold.topology().map(crate::Topology::generation);
        match self.fold.apply(update) {
            Applied::Changed(change) => {
                tracing::info!(
                    generation = self.fold.topology().map(|topology| topology.generation().value),
                    added = change.added.len(),
                    removed = change.removed.len(),
                    changed = change.changed.len(),
                    "topology"
                );
                // New ones first; all of it shows at once, when it is published.
                change.added.into_iter().for_each(|endpoint| self.insert(endpoint));
                change.changed.into_iter().for_each(|(_, endpoint)| self.change(endpoint));
                change.removed.iter().for_each(|endpoint| self.remove(endpoint.id()));
                self.stale = Stale::Endpoints;
            }
            Applied::Unchanged if self.fold.topology().map(crate::Topology::generation) != before => {
                self.stale = self.stale.max(Stale::Readiness);
            }
            Applied::Unchanged => {}
            Applied::Stale => tracing::debug!("an older generation was ignored"),
            Applied::Gap => {
                tracing::warn!("an update does not fit what is known and was ignored; a snapshot is needed")
            }
            Applied::Held => tracing::warn!("an empty set from a source in trouble was held back"),
            Applied::Degraded if was_well => {
                let cause = self.fold.degraded().map(tracing::field::display);
                tracing::warn!(cause, "the source of endpoints is in trouble; the last set stays in use");
            }
            Applied::Degraded => {}
        }
        if was_well != self.fold.degraded().is_none() {
            self.stale = self.stale.max(Stale::Readiness);
        }
    }

    /// A new instance, with a service and a history of its own.
    fn insert(&mut self, endpoint: Arc<Endpoint>) {
        let id = endpoint.id().clone();
        let stats = Arc::new(Stats::new(id.clone()));
        let service = (self.make)(&endpoint);
        let slot = Arc::new(Slot::new(endpoint, stats, service));
        let mut entry = Entry { slot, watch: None, failures: 0, failed_at: None };
        self.watches.extend(entry.ask());
        self.entries.insert(id, entry);
    }

    /// The same id, described anew: the same instance keeps what it has, another one starts afresh.
    fn change(&mut self, endpoint: Arc<Endpoint>) {
        match self.entries.get_mut(endpoint.id()) {
            Some(entry) if entry.slot.endpoint.is_same_instance(&endpoint) => {
                let Slot { stats, service, .. } = &*entry.slot;
                entry.slot = Arc::new(Slot::new(endpoint, stats.clone(), service.clone()));
            }
            _ => {
                let id = endpoint.id().clone();
                let before = self.entries.remove(&id);
                self.insert(endpoint);
                retire(before);
            }
        }
    }

    fn remove(&mut self, id: &EndpointId) {
        retire(self.entries.remove(id));
    }

    /// A request found it not ready.
    fn look(&mut self, look: &Look) {
        self.stale = self.stale.max(Stale::Readiness);
        let Some(entry) = entry(&mut self.entries, &look.stats) else { return };
        if look.failed {
            self.watches.extend(entry.rest());
        } else {
            tracing::debug!(endpoint = %look.stats.id, from = "ready", to = "not ready", "endpoint");
            self.watches.extend(entry.ask());
        }
    }

    fn seen(&mut self, stats: &Arc<Stats>, seen: Seen) {
        // One that was replaced meanwhile is nobody's business.
        let Some(entry) = entry(&mut self.entries, stats) else { return };
        entry.watch = None;
        match seen {
            Seen::Ready => {
                tracing::debug!(endpoint = %stats.id, from = "not ready", to = "ready", "endpoint");
                stats.be_ready();
                self.stale = self.stale.max(Stale::Readiness);
            }
            Seen::Failed(error) => {
                tracing::warn!(endpoint = %stats.id, error = &*error as &dyn std::error::Error, "the service of an endpoint failed");
                self.watches.extend(entry.rest());
            }
            Seen::Rested => {
                let endpoint = entry.slot.endpoint.clone();
                let service = (self.make)(&endpoint);
                entry.slot = Arc::new(Slot::new(endpoint, stats.clone(), service));
                self.watches.extend(entry.ask());
                self.stale = Stale::Endpoints;
            }
        }
    }
}

impl<S, Req, P: Policy, M> Pool<S, Req, P, M> {
    /// The one door to what requests see.
    fn publish(&mut self) {
        if self.stale == Stale::Nothing {
            return;
        }
        let Some(shared) = self.shared.upgrade() else { return };
        if self.stale == Stale::Endpoints {
            self.all = self.entries.values().map(|entry| entry.slot.clone()).collect();
        }
        self.stale = Stale::Nothing;
        let life = self.fold.topology().map_or(Life::Pending, |topology| Life::Known(topology.generation()));
        let indices = eligible(&self.all);
        let eligible = (!indices.is_empty()).then(|| {
            let table = shared.policy.table(&Eligible { all: &self.all, indices: &indices });
            (indices, table)
        });
        let is_final = eligible.is_some() || (matches!(life, Life::Known(_)) && self.all.is_empty());
        let degraded = self.fold.degraded().is_some();
        let published = Published { life, degraded, all: self.all.clone(), eligible };
        let generation = published.generation();
        shared.current.store(Arc::new(published));
        shared.generations.send_if_modified(|known| std::mem::replace(known, generation) != generation);
        if is_final {
            shared.freed.notify_one();
        }
    }
}

impl<S, Req, P: Policy, M> Drop for Pool<S, Req, P, M> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            tracing::warn!("the driver of a balance was dropped; the balance is stopped");
            shared.current.store(Arc::new(Published::empty(Life::Stopped)));
            shared.freed.notify_one();
        }
    }
}

/// The places of those to pick from: ready ones; if there are none, those that drain but still serve.
fn eligible<S>(all: &[Arc<Slot<S>>]) -> Box<[u32]> {
    let ready_in = |phase| {
        let ready = (0_u32..).zip(all).filter(move |(_, slot)| slot.endpoint.phase() == phase && slot.stats.is_ready());
        ready.map(|(index, _)| index).collect::<Box<[u32]>>()
    };
    let ready = ready_in(Phase::Ready);
    if ready.is_empty() { ready_in(Phase::Draining) } else { ready }
}

/// The entry of this very instance.
fn entry<'a, S>(entries: &'a mut BTreeMap<EndpointId, Entry<S>>, stats: &Arc<Stats>) -> Option<&'a mut Entry<S>> {
    entries.get_mut(&stats.id).filter(|entry| Arc::ptr_eq(&entry.slot.stats, stats))
}

/// Requests that still hold the set it was in skip it from now on; those it has, it finishes.
fn retire<S>(entry: Option<Entry<S>>) {
    if let Some(entry) = entry {
        entry.slot.stats.be_unready();
    }
}

// === impl Entry ===

impl<S: Clone> Entry<S> {
    /// Starts to watch it, unless somebody does.
    fn ask<Req>(&mut self) -> Option<Abortable<Watch<S, Req>>> {
        self.watch.is_none().then(|| self.watched(Watch::asking(self.slot.stats.clone(), self.slot.service.clone())))
    }

    /// Lets a finished service rest before it is made anew.
    fn rest<Req>(&mut self) -> Option<Abortable<Watch<S, Req>>> {
        if self.watch.is_some() {
            return None;
        }
        let now = Instant::now();
        let is_old = self.failed_at.is_none_or(|at| now.duration_since(at) > 2 * REBUILD.cap);
        self.failures = if is_old { 1 } else { self.failures.saturating_add(1) };
        self.failed_at = Some(now);
        Some(self.watched(Watch::resting(self.slot.stats.clone(), REBUILD.after(self.failures))))
    }

    fn watched<Req>(&mut self, watch: Watch<S, Req>) -> Abortable<Watch<S, Req>> {
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

/// Between the failure of an endpoint's service and the next one: 100 ms, doubling to 10 s.
const REBUILD: Backoff = Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(10) };

/// How many updates are applied before anybody else gets a turn.
const UPDATES_A_POLL: usize = 64;
