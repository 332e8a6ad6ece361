use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tower_outcome::EjectionBudget;

use super::{
    shelf::Shelf,
    slot::{Slot, Stats},
    view::{Builds, View, Views},
};
use crate::{Endpoint, Phase, error::Counts, policy::Policy};

/// The endpoints in order of preference: ready before draining, a low priority before a high one, the own zone before other
/// zones.
///
/// An endpoint is *known* to its tier as long as it is in that phase, *usable* while it is ready and healthy, *eligible*
/// while it is usable, or ready in a tier in panic, and on its shelf while it may be picked: as long as it is eligible, or
/// known if the policy keeps candidates that are not ready.
#[derive(Debug)]
pub(super) struct Tiers<S, T> {
    zone: Option<Arc<str>>,
    /// Boxed, because there is usually one, and a node of the map has room for eleven.
    tiers: BTreeMap<Rank, Box<Tier<S, T>>>,
    /// Of the endpoints in any phase.
    levels: BTreeMap<Level, Budgeted>,
    /// The share of each level that may be out because of its responses.
    max_ejected: u8,
    counts: Counts,
    builds: Builds<Rank, T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    drains: bool,
    level: Level,
}

/// A priority and a zone: endpoints that replace each other before those of another level do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Level {
    pub(super) priority: u16,
    /// In another zone than the own.
    pub(super) is_far: bool,
}

#[derive(Debug)]
struct Budgeted {
    budget: EjectionBudget,
    endpoints: usize,
}

#[derive(Debug)]
struct Tier<S, T> {
    shelf: Shelf<S>,
    /// The number of entries of each weight on the shelf.
    weights: BTreeMap<u32, usize>,
    total_weight: u64,
    known: usize,
    usable: usize,
    eligible: usize,
    /// The known endpoints that are out because of their health.
    out: usize,
    panic: Option<Panic>,
    views: Views<S, T>,
}

/// Health is ignored in this tier.
#[derive(Clone, Copy, Debug)]
struct Panic {
    since: Instant,
    /// Health would be used again, but the panic has not reached its minimum duration.
    is_over: bool,
}

/// A tier that entered or left panic.
#[derive(Debug)]
pub(super) struct Weighed {
    pub(super) level: Level,
    pub(super) panics: bool,
    pub(super) out: usize,
    pub(super) known: usize,
}

/// The share of the requests of a tier: those with a number below this, and not below that of the tier before.
#[derive(Debug)]
pub(super) struct Share<S, T> {
    pub(super) below: u32,
    /// Health is ignored in this tier.
    pub(super) panics: bool,
    pub(super) view: Arc<View<S, T>>,
}

// === impl Tiers ===

impl<S, T> Tiers<S, T> {
    pub(super) fn new(zone: Option<Arc<str>>, max_ejected: u8) -> Self {
        Self {
            zone,
            tiers: BTreeMap::new(),
            levels: BTreeMap::new(),
            max_ejected,
            counts: Counts::default(),
            builds: Builds::new(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let serving = || self.tiers.iter().filter(|(rank, _)| !rank.drains);
        Counts {
            ready: serving().map(|(_, tier)| tier.usable).sum(),
            ejected: serving().map(|(_, tier)| tier.out).sum(),
            ..self.counts
        }
    }

    pub(super) fn panics(&self) -> bool {
        self.tiers.values().any(|tier| tier.panic.is_some())
    }

    /// The handle of an endpoint on the budget of its level.
    pub(super) fn budget(&mut self, endpoint: &Endpoint) -> EjectionBudget {
        let (level, max_ejected) = (self.level(endpoint), self.max_ejected);
        let budgeted = self.levels.entry(level);
        let budget = &budgeted
            .or_insert_with(|| Budgeted::new(max_ejected))
            .budget;
        let budget = budget.for_member();
        budget.set_serving(endpoint.phase() == Phase::Ready);
        budget
    }

    /// [`put`](Self::put) follows.
    pub(super) fn know(&mut self, endpoint: &Endpoint) {
        self.counts.known += 1;
        *self.phase(endpoint.phase()) += 1;
        let (level, max_ejected) = (self.level(endpoint), self.max_ejected);
        let budgeted = self.levels.entry(level);
        budgeted
            .or_insert_with(|| Budgeted::new(max_ejected))
            .endpoints += 1;
        if let Some(rank) = self.rank(endpoint) {
            let tier = self.tiers.entry(rank).or_default();
            tier.known += 1;
            self.count_members(rank);
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
            tier.out -= usize::from(slot.stats.counts_as_out.swap(false, Relaxed));
            if tier.known == 0 {
                self.tiers.remove(&rank);
            }
            self.count_members(rank);
        }
        let level = self.level(&slot.endpoint);
        if let Some(budgeted) = self.levels.get_mut(&level) {
            budgeted.endpoints -= 1;
            if budgeted.endpoints == 0 {
                self.levels.remove(&level);
            }
        }
    }

    /// Moves it to where it belongs now: the cost of one change. Returns whether it may be picked.
    pub(super) fn put(&mut self, slot: &Arc<Slot<S>>, keeps_unready: bool) -> bool {
        let place = Place::of(slot);
        let Some(tier) = self
            .rank(&slot.endpoint)
            .and_then(|rank| self.tiers.get_mut(&rank))
        else {
            return false;
        };
        let is_out = slot.stats.is_out() || slot.budget.is_out();
        tier.out += usize::from(is_out);
        tier.out -= usize::from(slot.stats.counts_as_out.swap(is_out, Relaxed));
        let is_usable = slot.stats.is_usable();
        let is_eligible = is_usable || tier.panic.is_some() && slot.stats.is_ready();
        if !is_eligible && !keeps_unready {
            self.take(slot);
            return false;
        }
        let index = match place {
            Some(place) => {
                tier.uncount_place(place);
                place.index
            }
            None => tier.add(slot.clone()),
        };
        let place = Place {
            index,
            is_usable,
            is_eligible,
        };
        tier.usable += usize::from(is_usable);
        tier.eligible += usize::from(is_eligible);
        Place::set(slot, Some(place));
        is_eligible
    }

    /// Evaluates the panic state of each tier, and whether all of it may be ejected. Returns what changed; endpoints that
    /// are out there are to be [put](Self::put) again.
    ///
    /// As in Envoy, a tier panics when fewer than this percentage of it are healthy, but only while all tiers together
    /// cannot take the full load. Only endpoints that are meant to serve count; unhealthy are those with failed health
    /// checks, and those out of the budget. Refused connections and vacant leases are not ignored by a panic, so they do
    /// not count.
    pub(super) fn weigh(&mut self, panic_below: u8, now: Instant) -> Vec<Weighed> {
        let health = self.health();
        let is_enough = health.iter().sum::<f64>() >= ENOUGH;
        let serving = || self.tiers.iter().filter(|(rank, _)| !rank.drains);
        let is_few = serving().map(|(_, tier)| tier.known).sum::<usize>() < FEW;
        let mut rest: f64 = serving().zip(&health).map(|(_, health)| health).sum();
        let mut weighed = Vec::new();
        // The tiers that serve come first.
        for ((rank, tier), health) in self.tiers.iter_mut().zip(health) {
            if rank.drains {
                break;
            }
            rest -= health;
            if let Some(Budgeted { budget, .. }) = self.levels.get(&rank.level) {
                budget.set_standby(rest >= ENOUGH);
            }
            let well = tier.known - tier.out;
            let is_ill = tier.out > 0 && well * 100 < tier.known * usize::from(panic_below);
            let panics = is_ill && !is_enough && !is_few;
            if tier.panic(panics, now) {
                weighed.push(Weighed {
                    level: rank.level,
                    panics,
                    out: tier.out,
                    known: tier.known,
                });
            }
        }
        weighed
    }

    /// When a panic that is no longer needed ends.
    pub(super) fn next(&self) -> Option<Instant> {
        let panics = self.tiers.values().filter_map(|tier| tier.panic);
        panics
            .filter(|panic| panic.is_over)
            .map(|panic| panic.since + PANIC_LASTS)
            .min()
    }

    /// Whether more of a level are out than allowed: the set has shrunk, or its standby is gone.
    pub(super) fn is_overdrawn(&self, level: Level) -> bool {
        let budgeted = self.levels.get(&level);
        budgeted.is_some_and(|level| level.budget.out() > level.budget.max_out())
    }

    pub(super) fn overdrawn(&self) -> Vec<Level> {
        let levels = self.levels.keys().copied();
        levels.filter(|level| self.is_overdrawn(*level)).collect()
    }

    /// Replaces the description of an entry on the shelf, in the same tier. Returns whether it was found; if not, nothing
    /// changed.
    pub(super) fn describe(&mut self, before: &Slot<S>, after: &Arc<Slot<S>>) -> bool {
        let (rank, phase) = (self.rank(&before.endpoint), before.endpoint.phase());
        if self.level(&before.endpoint) != self.level(&after.endpoint)
            || phase != after.endpoint.phase()
        {
            return false;
        }
        if let Some(tier) = rank.and_then(|rank| self.tiers.get_mut(&rank)) {
            if let Some(place) = Place::of(after) {
                let [before, now] = [&before.endpoint, &after.endpoint].map(|of| of.weight().get());
                if before != now {
                    tier.uncount(before);
                    tier.count(now);
                }
                tier.shelf.replace(place.index, after.clone());
            }
            tier.views.replaced(after);
        }
        true
    }

    fn take(&mut self, slot: &Slot<S>) {
        let Some(place) = Place::of(slot) else { return };
        Place::set(slot, None);
        if let Some(rank) = self.rank(&slot.endpoint)
            && let Some(tier) = self.tiers.get_mut(&rank)
        {
            tier.uncount_place(place);
            tier.uncount(slot.endpoint.weight().get());
            if let Some(moved) = tier.shelf.remove(place.index) {
                let index = place.index;
                Place::set(
                    &moved,
                    Place::of(&moved).map(|place| Place { index, ..place }),
                );
            }
        }
    }

    /// What requests pick from. Tiers that did not change are shared with the previous version.
    pub(super) fn shares<Req, P: Policy<Req, Table = T>>(
        &mut self,
        policy: &Arc<P>,
    ) -> Box<[Share<S, T>]>
    where
        T: Send + 'static,
    {
        let mut health = self.health();
        if health.iter().all(|health| *health == 0.0) {
            // No endpoint is healthy: the tiers in panic take the full load with what is ready.
            health = self
                .tiers
                .values()
                .map(|tier| tier.part(tier.eligible))
                .collect();
        }
        let mut parts = spread(health.into_iter());
        let mut below = 0.0;
        let mut shares = Vec::with_capacity(1);
        for (rank, tier) in &mut self.tiers {
            below += parts.next().unwrap_or_default();
            // A tier whose first table is being built cannot be picked from yet.
            if tier.eligible > 0
                && let Some(view) = tier.view(policy, (*rank, &mut self.builds))
            {
                // Rounded to the full range at the end, so that the last tier with a share takes the rest.
                let below = (below * f64::from(u32::MAX)).round() as u32;
                shares.push(Share {
                    below,
                    panics: tier.panic.is_some(),
                    view,
                });
            }
        }
        shares.into()
    }

    /// The share of all requests that each tier can take. Draining ones take none, as long as there is another.
    fn health(&self) -> Vec<f64> {
        let mut tiers = self.tiers.iter();
        let serves = tiers.any(|(rank, tier)| !rank.drains && tier.usable > 0);
        let health = self.tiers.iter().map(|(rank, tier)| {
            if serves && rank.drains {
                0.0
            } else {
                tier.part(tier.usable)
            }
        });
        health.collect()
    }

    fn count_members(&self, rank: Rank) {
        if let Some(Budgeted { budget, .. }) = self.levels.get(&rank.level).filter(|_| !rank.drains)
        {
            budget.set_members(self.tiers.get(&rank).map_or(0, |tier| tier.known));
        }
    }

    /// Whether a table from another thread is complete, so that what requests pick from changed.
    pub(super) fn poll_builds(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready((rank, table)) = self.builds.poll(cx) else {
            return false;
        };
        if let Some(tier) = self.tiers.get_mut(&rank) {
            tier.views.built(table);
        }
        true
    }

    /// Whether an endpoint in its phase may be picked at all.
    pub(super) fn may_serve(&self, endpoint: &Endpoint) -> bool {
        self.rank(endpoint).is_some()
    }

    fn rank(&self, endpoint: &Endpoint) -> Option<Rank> {
        let drains = match endpoint.phase() {
            Phase::Ready => false,
            Phase::Draining => true,
            Phase::Starting | Phase::Fenced => return None,
        };
        let level = self.level(endpoint);
        Some(Rank { drains, level })
    }

    pub(super) fn level(&self, endpoint: &Endpoint) -> Level {
        let own = self.zone.as_deref();
        Level {
            priority: endpoint.priority(),
            is_far: own.is_some_and(|own| endpoint.zone() != Some(own)),
        }
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

// === impl Budgeted ===

impl Budgeted {
    fn new(max_ejected: u8) -> Self {
        Self {
            budget: EjectionBudget::with_max_percent(max_ejected),
            endpoints: 0,
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
        self.views.changed();
    }

    fn uncount(&mut self, weight: u32) {
        self.total_weight -= u64::from(weight);
        if let Some(count) = self.weights.get_mut(&weight) {
            *count -= 1;
            if *count == 0 {
                self.weights.remove(&weight);
            }
        }
        self.views.changed();
    }

    fn uncount_place(&mut self, place: Place) {
        self.usable -= usize::from(place.is_usable);
        self.eligible -= usize::from(place.is_eligible);
    }

    /// The share of all requests that this part of it can take: all of them down to 5 of 7.
    fn part(&self, usable: usize) -> f64 {
        (OVERPROVISIONED * usable as f64 / self.known.max(1) as f64).min(1.0)
    }

    /// Returns whether that is a change.
    fn panic(&mut self, panics: bool, now: Instant) -> bool {
        match &mut self.panic {
            None if panics => {
                self.panic = Some(Panic {
                    since: now,
                    is_over: false,
                });
                true
            }
            None => false,
            Some(panic) if panics || now < panic.since + PANIC_LASTS => {
                panic.is_over = !panics;
                false
            }
            Some(_) => {
                self.panic = None;
                true
            }
        }
    }

    fn view<Req, P: Policy<Req, Table = T>>(
        &mut self,
        policy: &Arc<P>,
        builds: (Rank, &mut Builds<Rank, T>),
    ) -> Option<Arc<View<S, T>>>
    where
        T: Send + 'static,
    {
        let show = || {
            let heaviest = self.weights.keys().next_back().copied().unwrap_or(1);
            self.shelf.show(heaviest, self.total_weight)
        };
        self.views.latest(show, policy, builds)
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
            eligible: 0,
            out: 0,
            panic: None,
            views: Views::new(),
        }
    }
}

/// The position of a slot on its shelf, and its state when it was put there. Only the driver reads it.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    is_usable: bool,
    is_eligible: bool,
}

// === impl Place ===

impl Place {
    fn of<S>(slot: &Slot<S>) -> Option<Self> {
        match slot.stats.place.load(Relaxed) {
            NOWHERE => None,
            place => Some(Self {
                index: (place / 4) as usize,
                is_usable: place & 1 != 0,
                is_eligible: place & 2 != 0,
            }),
        }
    }

    fn set<S>(slot: &Slot<S>, place: Option<Self>) {
        let place = place.map_or(NOWHERE, |place| {
            place.index as u32 * 4 + u32::from(place.is_eligible) * 2 + u32::from(place.is_usable)
        });
        slot.stats.place.store(place, Relaxed);
    }
}

/// The position of an endpoint on the shelf of its tier, as the driver put it there last.
pub(super) fn index(stats: &Stats) -> Option<usize> {
    match stats.place.load(Relaxed) {
        NOWHERE => None,
        place => Some((place / 4) as usize),
    }
}

/// Each tier in order takes what it can of the rest; if all together cannot take everything, in proportion.
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

/// The full load, as a sum of floating point numbers.
const ENOUGH: f64 = 1.0 - 1e-9;

/// With fewer endpoints than this, percentages are meaningless: no tier panics.
const FEW: usize = 5;

/// The minimum duration of a panic. Readiness changes with each request, and each change would rebuild a tier; the share of
/// each tier does not depend on it.
const PANIC_LASTS: Duration = Duration::from_secs(1);

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
