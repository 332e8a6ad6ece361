use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, watch};
use tower_service::Service;

use super::{
    Stamp,
    slot::{InFlight, Slot, Stats},
};
use crate::{
    Endpoint, Generation, Phase,
    error::{Counts, NoEndpoints},
    policy::{Candidates, Policy, Turn},
};

/// What a balance, its clones, its requests and its driver share. Requests read `current`; only the driver writes it.
pub(super) struct Shared<S, P: Policy> {
    pub(super) current: ArcSwap<Published<S, P::Table>>,
    pub(super) policy: P,
    pub(super) limits: Limits,
    /// Wakes one waiting request; each that gets an endpoint, or its last word, wakes the next.
    pub(super) freed: Arc<Notify>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) generations: watch::Sender<Option<Generation>>,
    /// Closed when the last handle is dropped: that ends the driver.
    pub(super) looks: mpsc::UnboundedSender<Look>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_waiting: usize,
    pub(super) max_wait: Duration,
    pub(super) max_endpoints: u32,
}

/// What requests pick from. Immutable; another one takes its place when anything changes.
pub(super) struct Published<S, T> {
    pub(super) life: Life,
    pub(super) degraded: bool,
    /// All endpoints, in the order of their ids.
    pub(super) all: Arc<[Arc<Slot<S>>]>,
    /// The indices in `all` of those to pick from, and the policy's table for them; `None` when there are none. So an
    /// endpoint that is not ready costs a pick nothing.
    pub(super) eligible: Option<(Box<[u32]>, T)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    /// The source has not answered yet.
    Pending,
    /// As of this generation.
    Known(Generation),
    /// The driver is gone.
    Stopped,
}

/// Asks the driver to look at an endpoint that was found not ready.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) stats: Arc<Stats>,
    /// Its service is finished and must be made anew.
    pub(super) failed: bool,
}

/// Why there is nothing to pick.
#[derive(Debug)]
pub(super) enum Nothing {
    /// Something may become ready.
    Yet,
    /// The set is known to be empty.
    Empty,
    /// The driver is gone.
    Stopped,
}

pub(super) struct Eligible<'a, S> {
    pub(super) all: &'a [Arc<Slot<S>>],
    pub(super) indices: &'a [u32],
}

// === impl Shared ===

impl<S, P: Policy> Shared<S, P> {
    /// Picks an endpoint that is ready right now, and marks the request for it.
    ///
    /// One snapshot serves the whole pick, and the service is taken from the place that was picked, so no index can go
    /// stale in between.
    pub(super) fn choose<Req, K>(&self, request: &mut Req) -> Result<(S, InFlight), Nothing>
    where
        S: Service<Req> + Clone,
        K: Stamp<Req>,
    {
        let published = self.current.load();
        let Some((indices, table)) = &published.eligible else { return Err(published.nothing()) };
        let eligible = Eligible { all: &published.all, indices };
        let mut last = 0;
        for step in 0..PICKS {
            last = self.policy.pick(table, &eligible, &Turn::new(step)) % indices.len();
            if let Some(chosen) = self.ask::<Req, K>(eligible.slot(last), request) {
                return Ok(chosen);
            }
        }
        // Few of them are left, and the driver has not caught up yet: one after the other, a flag each.
        for index in (last + 1..indices.len()).chain(0..last) {
            if let Some(chosen) = self.ask::<Req, K>(eligible.slot(index), request) {
                return Ok(chosen);
            }
        }
        Err(Nothing::Yet)
    }

    /// Asks one endpoint, once. If it is not ready, the driver watches it from now on, and nobody else asks.
    fn ask<Req, K>(&self, slot: &Slot<S>, request: &mut Req) -> Option<(S, InFlight)>
    where
        S: Service<Req> + Clone,
        K: Stamp<Req>,
    {
        if !slot.stats.is_ready() {
            return None;
        }
        let mut service = slot.service.clone();
        // Nobody waits here: the driver's own clone is the one that gets woken.
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                K::stamp(request, slot.epoch.as_ref());
                Some((service, InFlight::new(slot.stats.clone())))
            }
            Poll::Ready(Err(_)) => {
                self.set_aside(&slot.stats, true);
                None
            }
            Poll::Pending => {
                self.set_aside(&slot.stats, false);
                None
            }
        }
    }

    /// Takes an endpoint out of the picks and gives it to the driver to watch.
    pub(super) fn set_aside(&self, stats: &Arc<Stats>, failed: bool) {
        if stats.be_unready() {
            // A driver that is gone has told so already.
            let _ = self.looks.send(Look { stats: stats.clone(), failed });
        }
    }

    pub(super) fn no_endpoints(&self) -> NoEndpoints {
        let published = self.current.load();
        NoEndpoints::new(published.generation(), published.counts())
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

// === impl Published ===

impl<S, T> Published<S, T> {
    /// Without endpoints.
    pub(super) fn empty(life: Life) -> Self {
        Self { life, degraded: false, all: Arc::new([]), eligible: None }
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        match self.life {
            Life::Known(generation) => Some(generation),
            Life::Pending | Life::Stopped => None,
        }
    }

    fn nothing(&self) -> Nothing {
        match self.life {
            Life::Stopped => Nothing::Stopped,
            Life::Known(_) if self.all.is_empty() => Nothing::Empty,
            Life::Pending | Life::Known(_) => Nothing::Yet,
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts { known: self.all.len(), ..Counts::default() };
        for slot in self.all.iter() {
            match slot.endpoint.phase() {
                Phase::Starting => counts.starting += 1,
                Phase::Ready => counts.ready += usize::from(slot.stats.is_ready()),
                Phase::Draining => counts.draining += 1,
                Phase::Fenced => counts.fenced += 1,
            }
        }
        counts
    }
}

// === impl Eligible ===

impl<'a, S> Eligible<'a, S> {
    fn slot(&self, index: usize) -> &'a Slot<S> {
        &self.all[self.indices[index] as usize]
    }
}

impl<S> Candidates for Eligible<'_, S> {
    fn count(&self) -> usize {
        self.indices.len()
    }

    fn endpoint(&self, index: usize) -> &Endpoint {
        &self.slot(index).endpoint
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.slot(index).stats.in_flight()
    }
}

/// How often the policy is asked before the rest is tried in order.
const PICKS: usize = 3;
