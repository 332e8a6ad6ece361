use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    task::{Context, Poll, Waker},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tower_service::Service;

use super::{
    Stamp,
    slot::{Hub, InFlight, Look, Slot, Stats, UNTIMED},
    tier::{Share, index},
    view::View,
};
use crate::{
    Generation,
    chunks::{Chunks, Named},
    error::{Counts, NoEndpoints},
    policy::{Candidates, PickContext, Policy, mixed},
};

/// State that a balance, its clones, its requests and its driver share. Requests read `current`; only the driver writes it.
pub(super) struct Shared<S, T, P, C> {
    pub(super) current: ArcSwap<Published<S, T>>,
    /// Separate, because a table may be built by another thread.
    pub(super) policy: Arc<P>,
    pub(super) classify: C,
    pub(super) limits: Limits,
    pub(super) hub: Arc<Hub>,
    /// The driver is gone. Beside `current`, because it is read before each request.
    pub(super) is_stopped: AtomicBool,
    pub(super) generations: watch::Sender<Option<Generation>>,
    /// All endpoints, in order of their ids. Written by the driver; snapshots take a copy, which costs two reference counts.
    pub(super) slots: Mutex<Slots<S>>,
}

pub(super) type Slots<S> = Chunks<Arc<Slot<S>>>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_waiting: usize,
    pub(super) max_wait: Duration,
    pub(super) max_endpoints: u32,
    pub(super) max_in_flight: u32,
}

/// What requests pick from. Immutable; replaced on every change.
pub(super) struct Published<S, T> {
    pub(super) life: Life,
    pub(super) degraded: bool,
    pub(super) panics: bool,
    pub(super) counts: Counts,
    /// The tiers that can be picked from, most preferred first. An endpoint that is not ready costs a pick nothing.
    pub(super) shares: Box<[Share<S, T>]>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    /// The source has not answered yet.
    Pending,
    /// Of this generation.
    Known(Generation),
    /// The driver is gone.
    Stopped,
}

/// Why no endpoint can be picked.
#[derive(Debug)]
pub(super) enum Nothing {
    /// An endpoint may become ready.
    Yet,
    /// The set is known to be empty.
    Empty,
    /// The driver is gone.
    Stopped,
}

/// An endpoint that was ready when it was polled.
pub(super) struct Chosen<S> {
    pub(super) service: S,
    pub(super) guard: InFlight,
}

// === impl Shared ===

impl<S, T, P, C> Shared<S, T, P, C> {
    pub(super) fn no_endpoints(&self) -> NoEndpoints {
        let published = self.current.load();
        NoEndpoints::new(published.generation(), published.counts)
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots<S>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an endpoint ineligible and gives it to the driver to watch.
    pub(super) fn set_aside(&self, stats: &Arc<Stats>, is_finished: bool) {
        if stats.be_unready() {
            let look = if is_finished {
                Look::Finished
            } else {
                Look::Pending
            };
            self.hub.look(look(stats.clone()));
        }
    }

    /// Picks an endpoint that is ready now, and takes an in-flight slot for the request.
    ///
    /// The whole pick uses one snapshot, and the service is taken from the entry that was picked, so no index can become
    /// stale in between.
    ///
    /// `freed` is an endpoint that is known to have capacity.
    pub(super) fn choose<Req>(
        &self,
        request: &mut Req,
        freed: Option<&Arc<Stats>>,
    ) -> Result<Chosen<S>, Nothing>
    where
        S: Service<Req> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req>,
    {
        let published = self.current.load();
        let context = PickContext::new(
            self.policy.key(request),
            if P::MEASURES_LATENCY {
                self.hub.nanos()
            } else {
                0
            },
        );
        let Some(first) = published.first(&context) else {
            return Err(published.nothing());
        };
        let picks = Picks {
            shared: self,
            published: &published,
            context,
        };
        freed
            .and_then(|stats| picks.try_freed(stats, request))
            .or_else(|| picks.try_at(first, request))
            .or_else(|| picks.try_elsewhere(first, request))
            .ok_or(Nothing::Yet)
    }
}

impl<S, T, P, C> Drop for Shared<S, T, P, C> {
    /// The last handle and the last request are gone, which ends the driver.
    fn drop(&mut self) {
        self.hub.look(Look::Gone);
    }
}

/// The picks of one request.
struct Picks<'a, S, T, P, C> {
    shared: &'a Shared<S, T, P, C>,
    published: &'a Published<S, T>,
    context: PickContext,
}

// === impl Picks ===

impl<S, T, P, C> Picks<'_, S, T, P, C> {
    #[inline]
    fn try_at<Req>(&self, tier: usize, request: &mut Req) -> Option<Chosen<S>>
    where
        S: Service<Req> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req>,
    {
        let Share { panics, view, .. } = &self.published.shares[tier];
        let View { shown, table } = &**view;
        let most = if P::KEEPS_UNREADY { KEYED_PICKS } else { PICKS };
        for step in 0..most {
            let index = within(
                self.shared
                    .policy
                    .pick(table, shown, &self.context.at(step)),
                shown.count(),
            );
            let slot = shown.slot(index);
            if let Some(chosen) = self.ask(slot, *panics, request) {
                return Some(chosen);
            }
        }
        None
    }

    /// Tries the endpoint that has free capacity, without asking the policy.
    #[cold]
    fn try_freed<Req>(&self, freed: &Arc<Stats>, request: &mut Req) -> Option<Chosen<S>>
    where
        S: Service<Req> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req>,
    {
        let index = index(freed)?;
        let mut slots = self.published.shares.iter().filter_map(|share| {
            let shown = &share.view.shown;
            (index < shown.count()).then(|| (share.panics, shown.slot(index)))
        });
        let (panics, slot) = slots.find(|(_, slot)| Arc::ptr_eq(&slot.stats, freed))?;
        self.ask(slot, panics, request)
    }

    /// Few endpoints are ready, and the driver has not caught up yet: tries them in order, one flag each; then the other
    /// tiers.
    #[cold]
    fn try_elsewhere<Req>(&self, first: usize, request: &mut Req) -> Option<Chosen<S>>
    where
        S: Service<Req> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req>,
    {
        let shares = &self.published.shares;
        let tiers = std::iter::once(first).chain((0..shares.len()).filter(|tier| *tier != first));
        // While requests wait, new ones try no endpoint. If none may wait, each request would try all full endpoints.
        let mut looks = if self.shared.limits.max_waiting == 0 {
            LOOKS
        } else {
            usize::MAX
        };
        for Share { panics, view, .. } in tiers.map(|tier| &shares[tier]) {
            let shown = &view.shown;
            let count = shown.count();
            let start = fastrand::usize(..count);
            for index in (start..count).chain(0..start) {
                let slot = shown.slot(index);
                if !is_eligible(slot, *panics) {
                    continue;
                }
                if let Some(chosen) = self.ask(slot, *panics, request) {
                    return Some(chosen);
                }
                looks -= 1;
                if looks == 0 {
                    return None;
                }
            }
        }
        None
    }

    /// Polls one endpoint once. If it is not ready, the driver watches it from now on, and other requests do not poll it.
    #[inline]
    fn ask<Req>(&self, slot: &Slot<S>, panics: bool, request: &mut Req) -> Option<Chosen<S>>
    where
        S: Service<Req> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req>,
    {
        if !is_eligible(slot, panics) {
            return None;
        }
        let began = if P::MEASURES_LATENCY {
            self.context.nanos()
        } else {
            UNTIMED
        };
        let guard = InFlight::begin(&slot.stats, began)?;
        let mut service = slot.service.clone();
        // The waker is not used: the driver registers the one of its clone.
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                self.shared.classify.stamp(request, slot.epoch.as_deref());
                Some(Chosen { service, guard })
            }
            Poll::Ready(Err(_)) => self.refused(guard, true),
            Poll::Pending => self.refused(guard, false),
        }
    }

    #[cold]
    fn refused(&self, guard: InFlight, is_finished: bool) -> Option<Chosen<S>> {
        self.shared.set_aside(guard.stats(), is_finished);
        guard.undo();
        None
    }
}

fn is_eligible<S>(slot: &Slot<S>, panics: bool) -> bool {
    (slot.stats.is_usable() || panics && slot.stats.is_ready()) && !slot.is_withdrawn()
}

/// Maps a key to a position among the tiers. It is hashed, because it may be a small number, and in another way than in the
/// policies, so that a tier does not get a contiguous part of its ring.
fn tier_of(key: u64) -> u32 {
    (mixed(!key) >> 32) as u32
}

fn within(index: usize, count: usize) -> usize {
    if index < count { index } else { index % count }
}

// === impl Published ===

impl<S, T> Published<S, T> {
    /// Without endpoints.
    pub(super) fn empty(life: Life) -> Self {
        Self {
            life,
            degraded: false,
            panics: false,
            counts: Counts::default(),
            shares: Box::new([]),
        }
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        match self.life {
            Life::Known(generation) => Some(generation),
            Life::Pending | Life::Stopped => None,
        }
    }

    /// The tier for this request. A request with a key always gets the same tier.
    fn first(&self, context: &PickContext) -> Option<usize> {
        match &*self.shares {
            [] => None,
            [_] => Some(0),
            shares => {
                let number = context.key().map_or_else(|| fastrand::u32(..), tier_of);
                Some(
                    shares
                        .iter()
                        .position(|share| number <= share.below)
                        .unwrap_or(0),
                )
            }
        }
    }

    fn nothing(&self) -> Nothing {
        match self.life {
            Life::Stopped => Nothing::Stopped,
            Life::Known(_) if self.counts.known == 0 => Nothing::Empty,
            Life::Pending | Life::Known(_) => Nothing::Yet,
        }
    }
}

// === impl Slot ===

impl<S> Named for Arc<Slot<S>> {
    fn name(&self) -> &crate::EndpointId {
        self.endpoint.id()
    }
}

/// How often the policy is called before the remaining candidates are tried in order.
const PICKS: usize = 3;

/// The same for policies whose candidates include endpoints that are not ready.
const KEYED_PICKS: usize = 8;

/// How many further endpoints a request tries if it must not wait.
const LOOKS: usize = 128;
