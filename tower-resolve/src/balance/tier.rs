use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    shelf::{Shelf, Shown},
    slot::Slot,
};
use crate::{Endpoint, Phase, error::Counts, policy::Policy};

/// The endpoints by how much they are wanted: the ready before the draining, a low priority before a high one, the own
/// zone before others.
///
/// An endpoint is *known* to its tier as long as it is in that phase, *usable* while it is ready and well, and on its shelf
/// while it may be picked: as long as it is usable, or where the policy keeps those that are not, known.
#[derive(Debug)]
pub(super) struct Tiers<S, T> {
    zone: Option<Arc<str>>,
    /// Boxed, because there is usually one, and a node of the map has room for eleven.
    tiers: BTreeMap<Rank, Box<Tier<S, T>>>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    drains: bool,
    priority: u16,
    is_far: bool,
}

#[derive(Debug)]
struct Tier<S, T> {
    shelf: Shelf<S>,
    /// How many of each weight are on the shelf.
    weights: BTreeMap<u32, usize>,
    total_weight: u64,
    known: usize,
    usable: usize,
    /// As it was published, if that is still true.
    view: Option<Arc<View<S, T>>>,
}

/// A tier as requests see it.
#[derive(Debug)]
pub(super) struct View<S, T> {
    pub(super) shown: Shown<S>,
    pub(super) table: T,
}

/// A tier's part of the requests: those whose number is below this, and not below the one before's.
#[derive(Debug)]
pub(super) struct Share<S, T> {
    pub(super) below: u32,
    pub(super) view: Arc<View<S, T>>,
}

// === impl Tiers ===

impl<S, T> Tiers<S, T> {
    pub(super) fn new(zone: Option<Arc<str>>) -> Self {
        Self {
            zone,
            tiers: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let usable = |drains| {
            self.tiers
                .iter()
                .filter(move |(rank, _)| rank.drains == drains)
                .map(|(_, tier)| tier.usable)
        };
        Counts {
            ready: usable(false).sum(),
            ..self.counts
        }
    }

    /// How many are meant to serve, ready or not.
    pub(super) fn serving(&self) -> usize {
        self.counts.known - self.counts.starting - self.counts.draining - self.counts.fenced
    }

    pub(super) fn know(&mut self, endpoint: &Endpoint) {
        self.counts.known += 1;
        *self.phase(endpoint.phase()) += 1;
        if let Some(rank) = self.rank(endpoint) {
            self.tiers.entry(rank).or_default().known += 1;
        }
    }

    pub(super) fn forget(&mut self, slot: &Slot<S>) {
        self.take(slot);
        self.counts.known -= 1;
        *self.phase(slot.endpoint.phase()) -= 1;
        if let Some(rank) = self.rank(&slot.endpoint)
            && let Some(tier) = self.tiers.get_mut(&rank)
        {
            tier.known -= 1;
            if tier.known == 0 {
                self.tiers.remove(&rank);
            }
        }
    }

    /// Puts it where it belongs now: the cost of one change.
    pub(super) fn put(&mut self, slot: &Arc<Slot<S>>, is_usable: bool, keeps_unready: bool) {
        let place = Place::of(slot);
        let Some(rank) = self.rank(&slot.endpoint) else {
            return;
        };
        if !is_usable && !keeps_unready {
            return self.take(slot);
        }
        let Some(tier) = self.tiers.get_mut(&rank) else {
            return;
        };
        let index = match place {
            Some(place) => {
                tier.usable -= usize::from(place.is_usable);
                place.index
            }
            None => tier.add(slot.clone()),
        };
        tier.usable += usize::from(is_usable);
        Place::set(slot, Some(Place { index, is_usable }));
    }

    /// Another description of what is on the shelf, in the same tier. Returns whether it is; if not, nothing was done.
    pub(super) fn describe(&mut self, before: &Slot<S>, after: &Arc<Slot<S>>) -> bool {
        let (rank, phase) = (self.rank(&before.endpoint), before.endpoint.phase());
        if rank != self.rank(&after.endpoint) || phase != after.endpoint.phase() {
            return false;
        }
        if let (Some(place), Some(rank)) = (Place::of(after), rank)
            && let Some(tier) = self.tiers.get_mut(&rank)
        {
            tier.uncount(before.endpoint.weight().get());
            tier.count(after.endpoint.weight().get());
            tier.shelf.replace(place.index, after.clone());
        }
        true
    }

    fn take(&mut self, slot: &Slot<S>) {
        let Some(place) = Place::of(slot) else { return };
        Place::set(slot, None);
        if let Some(rank) = self.rank(&slot.endpoint)
            && let Some(tier) = self.tiers.get_mut(&rank)
        {
            tier.usable -= usize::from(place.is_usable);
            tier.uncount(slot.endpoint.weight().get());
            if let Some(moved) = tier.shelf.remove(place.index) {
                let is_usable = Place::of(&moved).is_some_and(|place| place.is_usable);
                Place::set(
                    &moved,
                    Some(Place {
                        index: place.index,
                        is_usable,
                    }),
                );
            }
        }
    }

    /// What requests pick from. Tiers that did not change are shared with what was published before.
    pub(super) fn shares<Req, P: Policy<Req, Table = T>>(
        &mut self,
        policy: &P,
    ) -> Box<[Share<S, T>]> {
        let serves = self
            .tiers
            .iter()
            .any(|(rank, tier)| !rank.drains && tier.usable > 0);
        let health = self.tiers.iter().map(|(rank, tier)| {
            if serves && rank.drains {
                0.0
            } else {
                tier.health()
            }
        });
        let health: Vec<f64> = health.collect();
        let mut parts = spread(health.into_iter());
        let mut below = 0.0;
        let mut shares = Vec::with_capacity(1);
        for tier in self.tiers.values_mut() {
            below += parts.next().unwrap_or_default();
            if tier.usable > 0 {
                // Rounded to the full range at the end, so that the last one with a part takes what is left of it.
                let below = (below * f64::from(u32::MAX)).round() as u32;
                shares.push(Share {
                    below,
                    view: tier.view(policy),
                });
            }
        }
        shares.into()
    }

    fn rank(&self, endpoint: &Endpoint) -> Option<Rank> {
        let drains = match endpoint.phase() {
            Phase::Ready => false,
            Phase::Draining => true,
            Phase::Starting | Phase::Fenced => return None,
        };
        let is_far = self
            .zone
            .as_deref()
            .is_some_and(|own| endpoint.zone() != Some(own));
        Some(Rank {
            drains,
            priority: endpoint.priority(),
            is_far,
        })
    }

    fn phase(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::Starting => &mut self.counts.starting,
            Phase::Ready => &mut self.counts.ready,
            Phase::Draining => &mut self.counts.draining,
            Phase::Fenced => &mut self.counts.fenced,
        }
    }
}

// === impl Tier ===

impl<S, T> Tier<S, T> {
    fn add(&mut self, slot: Arc<Slot<S>>) -> usize {
        self.count(slot.endpoint.weight().get());
        self.shelf.push(slot)
    }

    fn count(&mut self, weight: u32) {
        *self.weights.entry(weight).or_default() += 1;
        self.total_weight += u64::from(weight);
        self.view = None;
    }

    fn uncount(&mut self, weight: u32) {
        self.total_weight -= u64::from(weight);
        if let Some(count) = self.weights.get_mut(&weight) {
            *count -= 1;
            if *count == 0 {
                self.weights.remove(&weight);
            }
        }
        self.view = None;
    }

    /// The part of all requests that it can take: all of them, as long as more than 5 of 7 are usable.
    fn health(&self) -> f64 {
        (OVERPROVISIONED * self.usable as f64 / self.known.max(1) as f64).min(1.0)
    }

    fn view<Req, P: Policy<Req, Table = T>>(&mut self, policy: &P) -> Arc<View<S, T>> {
        let show = || {
            let heaviest = self.weights.keys().next_back().copied().unwrap_or(1);
            let shown = self.shelf.show(heaviest, self.total_weight);
            let table = policy.table(&shown);
            Arc::new(View { shown, table })
        };
        self.view.get_or_insert_with(show).clone()
    }
}

impl<S, T> Default for Tier<S, T> {
    fn default() -> Self {
        Self {
            shelf: Shelf::new(),
            weights: BTreeMap::new(),
            total_weight: 0,
            known: 0,
            usable: 0,
            view: None,
        }
    }
}

/// Where a slot is on its shelf, and whether it was usable when it was put there. Only the driver asks.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    is_usable: bool,
}

// === impl Place ===

impl Place {
    fn of<S>(slot: &Slot<S>) -> Option<Self> {
        match slot.stats.place.load(Relaxed) {
            NOWHERE => None,
            place => Some(Self {
                index: (place / 2) as usize,
                is_usable: place % 2 == 1,
            }),
        }
    }

    fn set<S>(slot: &Slot<S>, place: Option<Self>) {
        let place = place.map_or(NOWHERE, |place| {
            place.index as u32 * 2 + u32::from(place.is_usable)
        });
        slot.stats.place.store(place, Relaxed);
    }
}

/// Each tier in turn takes what it can of what is left; where all together cannot take everything, in proportion.
fn spread(health: impl Iterator<Item = f64> + Clone) -> impl Iterator<Item = f64> {
    let all: f64 = health.clone().sum();
    let scale = if all > 0.0 && all < 1.0 {
        1.0 / all
    } else {
        1.0
    };
    health.scan(1.0, move |left: &mut f64, health| {
        let part = (health * scale).min(*left);
        *left -= part;
        Some(part)
    })
}

const NOWHERE: u32 = u32::MAX;

/// Envoy's overprovisioning factor.
const OVERPROVISIONED: f64 = 1.4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_spills_over_as_the_first_tier_loses_endpoints() {
        let parts = |health: &[f64]| {
            spread(health.iter().map(|well| (1.4 * well).min(1.0))).collect::<Vec<_>>()
        };
        assert_eq!(parts(&[1.0, 1.0]), [1.0, 0.0]);
        assert_eq!(parts(&[0.72, 1.0]), [1.0, 0.0], "5 of 7 are enough");
        let half = parts(&[0.5, 1.0]);
        assert!(
            (half[0] - 0.7).abs() < 1e-9 && (half[1] - 0.3).abs() < 1e-9,
            "{half:?}"
        );
        assert_eq!(parts(&[0.0, 1.0]), [0.0, 1.0]);
        let poor = parts(&[0.25, 0.25]);
        assert!(
            (poor[0] - 0.5).abs() < 1e-9 && (poor[1] - 0.5).abs() < 1e-9,
            "in proportion: {poor:?}"
        );
        assert_eq!(parts(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
