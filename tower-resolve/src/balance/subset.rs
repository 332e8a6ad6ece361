use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    sync::Arc,
};

use crate::{Endpoint, EndpointId, Phase, Topology, diff::Change, policy::key};

/// Uses only a part of the endpoints, another one for each client, so that many clients of many endpoints do not keep a
/// connection to each.
///
/// Each [priority](Endpoint::priority) has a separate part, and within it the [own zone](super::BalanceBuilder::zone) and
/// the other zones; so a client always has preferred endpoints, and some to fail over to. The part is chosen by rendezvous
/// hashing (highest random weight): when an endpoint is added or removed, only the parts that contain it change, by one
/// endpoint. Parts overlap at random, so the number of clients of an endpoint varies by about the root of its mean (as in
/// gRFC A68).
#[derive(Clone, Debug)]
pub struct Subset {
    client: u64,
    size: NonZeroUsize,
}

/// The part in use, and the order from which it is taken.
#[derive(Debug)]
pub(super) struct Part {
    subset: Subset,
    zone: Option<Arc<str>>,
    /// By priority and whether it is another zone; the most preferred last.
    tiers: BTreeMap<(u16, bool), BTreeSet<(u64, EndpointId)>>,
    chosen: BTreeMap<EndpointId, Arc<Endpoint>>,
}

// === impl Subset ===

impl Subset {
    /// The part for the client of this name, which should be unique and stable: a host name, an instance id. 20 endpoints of
    /// each priority and zone, or all of them if there are fewer than 40.
    #[must_use]
    pub fn new(client: &str) -> Self {
        Self {
            client: key(client.as_bytes()),
            size: const { NonZeroUsize::new(20).unwrap() },
        }
    }

    /// The number of endpoints of each priority, in the own zone and in other zones. Default: 20. If there are fewer than
    /// twice that number, all are used.
    #[must_use]
    pub fn size(self, endpoints: NonZeroUsize) -> Self {
        Self {
            size: endpoints,
            ..self
        }
    }

    fn rank(&self, endpoint: &Endpoint) -> (u64, EndpointId) {
        let name = key(endpoint.id().as_str().as_bytes());
        (
            key(&[self.client.to_le_bytes(), name.to_le_bytes()].concat()),
            endpoint.id().clone(),
        )
    }
}

// === impl Part ===

impl Part {
    /// For a client in this zone.
    pub(super) const fn new(subset: Subset, zone: Option<Arc<str>>) -> Self {
        Self {
            subset,
            zone,
            tiers: BTreeMap::new(),
            chosen: BTreeMap::new(),
        }
    }

    /// Translates a change of all endpoints into a change of the part. Costs the size of the part, and of the change.
    pub(super) fn change(&mut self, change: Change, all: &Topology) -> Change {
        for endpoint in change
            .removed
            .iter()
            .chain(change.changed.iter().map(|(before, _)| before))
        {
            let tier = self.tier(endpoint);
            if let Some(ranks) = self.tiers.get_mut(&tier) {
                ranks.remove(&self.subset.rank(endpoint));
                if ranks.is_empty() {
                    self.tiers.remove(&tier);
                }
            }
        }
        for endpoint in change
            .added
            .iter()
            .chain(change.changed.iter().map(|(_, after)| after))
        {
            if is_wanted(endpoint) {
                let ranks = self.tiers.entry(self.tier(endpoint)).or_default();
                ranks.insert(self.subset.rank(endpoint));
            }
        }
        let size = self.subset.size.get();
        let first = |ranks: &BTreeSet<_>| {
            if ranks.len() < 2 * size {
                ranks.len()
            } else {
                size
            }
        };
        let wanted: BTreeSet<_> = self
            .tiers
            .values()
            .flat_map(|ranks| ranks.iter().rev().take(first(ranks)))
            .map(|(_, id)| id)
            .collect();

        let mut own = Change::default();
        for (_, after) in change.changed {
            if let Some(known) = self.chosen.get_mut(after.id()) {
                own.changed
                    .push((std::mem::replace(known, after.clone()), after));
            }
        }
        // A draining endpoint stays until it is removed.
        self.chosen.retain(|id, endpoint| {
            let stays = wanted.contains(id)
                || all
                    .get(id.as_str())
                    .is_some_and(|endpoint| !is_wanted(endpoint));
            if !stays {
                own.removed.push(endpoint.clone());
            }
            stays
        });
        own.changed
            .retain(|(_, after)| self.chosen.contains_key(after.id()));
        for id in wanted {
            if !self.chosen.contains_key(id)
                && let Some(endpoint) = all.get(id.as_str())
            {
                self.chosen.insert(id.clone(), endpoint.clone());
                own.added.push(endpoint.clone());
            }
        }
        own
    }

    fn tier(&self, endpoint: &Endpoint) -> (u16, bool) {
        let own = self.zone.as_deref();
        let is_far = own.is_some_and(|own| endpoint.zone() != Some(own));
        (endpoint.priority(), is_far)
    }
}

fn is_wanted(endpoint: &Endpoint) -> bool {
    matches!(endpoint.phase(), Phase::Ready | Phase::Starting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Generation, SourceId};

    fn endpoint(id: usize) -> Endpoint {
        Endpoint::new(format!("e{id}"), ([127, 0, 0, 1], 80).into())
    }

    struct Rig {
        part: Part,
        all: Topology,
        own: BTreeSet<String>,
    }

    impl Rig {
        fn new(client: &str) -> Self {
            let subset = Subset::new(client).size(NonZeroUsize::new(5).unwrap());
            let all = Topology::new(Generation::new(SourceId::new(1), 1), [] as [Endpoint; 0]);
            Self {
                part: Part::new(subset, Some("here".into())),
                all,
                own: BTreeSet::new(),
            }
        }

        fn set(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> usize {
            let next = Topology::new(self.all.generation().next(), endpoints);
            let own = self.part.change(Change::between(&self.all, &next), &next);
            self.all = next;
            for gone in &own.removed {
                assert!(self.own.remove(gone.id().as_str()));
            }
            for new in &own.added {
                assert!(self.own.insert(new.id().to_string()));
            }
            assert!(
                own.changed.iter().all(
                    |(before, after)| before != after && self.own.contains(after.id().as_str())
                )
            );
            own.len()
        }
    }

    #[test]
    fn few_endpoints_are_all_used_and_of_many_only_a_part() {
        let mut rig = Rig::new("me");
        rig.set((0..9).map(endpoint));
        assert_eq!(rig.own.len(), 9);
        rig.set((0..10).map(endpoint));
        assert_eq!(rig.own.len(), 5);
        rig.set((0..9).map(endpoint));
        assert_eq!(rig.own.len(), 9);
    }

    #[test]
    fn each_priority_and_the_own_zone_have_separate_parts() {
        let placed = |id: usize| {
            let (priority, zone) = (u16::from(id >= 100), ["here", "there"][id / 50 % 2]);
            endpoint(id).with_priority(priority).with_zone(zone)
        };
        for client in 0..50 {
            let mut rig = Rig::new(&client.to_string());
            rig.set((0..200).map(placed));
            let mut parts = [0; 4];
            for id in &rig.own {
                parts[id[1..].parse::<usize>().unwrap() / 50] += 1;
            }
            assert_eq!(parts, [5; 4]);
            // An endpoint that moves to another tier is replaced in the old one.
            let first: usize = rig.own.first().unwrap()[1..].parse().unwrap();
            let moved = |id| placed(id).with_priority(u16::from(id >= 100 || id == first));
            rig.set((0..200).map(moved));
            assert_eq!(rig.own.len(), 20);
        }
    }

    #[test]
    fn adding_or_removing_an_endpoint_changes_a_part_by_at_most_one() {
        let mut rig = Rig::new("me");
        rig.set((0..100).map(endpoint));
        for gone in 0..80 {
            assert!(
                rig.set((gone + 1..100).map(endpoint)) <= 2,
                "one out, one in"
            );
            assert_eq!(rig.own.len(), 5);
        }
    }

    #[test]
    fn clients_have_different_parts_that_are_stable() {
        let own = |client: &str| {
            let mut rig = Rig::new(client);
            rig.set((0..100).map(endpoint));
            rig.own
        };
        assert_eq!(own("one"), own("one"));
        let used: BTreeSet<_> = (0..200)
            .flat_map(|client| own(&client.to_string()))
            .collect();
        assert_eq!(used.len(), 100, "all are used by somebody");
    }

    #[test]
    fn a_draining_endpoint_is_replaced_and_stays_until_it_is_removed() {
        let mut rig = Rig::new("me");
        rig.set((0..100).map(endpoint));
        let first: usize = rig.own.first().unwrap()[1..].parse().unwrap();
        let draining = |id| {
            if id == first {
                endpoint(id).with_phase(Phase::Draining)
            } else {
                endpoint(id)
            }
        };
        rig.set((0..100).map(draining));
        assert_eq!(rig.own.len(), 6);
        rig.set((0..100).filter(|id| *id != first).map(endpoint));
        assert_eq!(rig.own.len(), 5);
    }
}
