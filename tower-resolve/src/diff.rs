//! Applies the updates of a source to the known topology, and reports what changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{Cause, Endpoint, EndpointId, Generation, Topology, Update, chunks::Difference};

/// Applies updates to a topology. Every consumer of updates uses it.
///
/// No clock, no task, no socket. It never goes back inside a source, asks for a snapshot when a delta does not fit, and
/// keeps the last good set while the source is degraded:
///
/// ```text
///   Snapshot, DoesNotExist ── older ──► Stale          Degraded ──► degraded
///                          ── empties the set while degraded ──► Held ── next update of the source ──► applied
///   Delta ── from an unknown generation ──► Gap
///   Progress ──► the same endpoints, one generation on
/// ```
#[derive(Clone, Debug, Default)]
pub struct Fold {
    topology: Option<Topology>,
    held: Option<Topology>,
    cause: Option<Cause>,
}

/// The result of an update.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum Applied {
    /// The set changed, or is known for the first time.
    Changed(Change),
    /// The same endpoints; the generation may have advanced.
    Unchanged,
    /// Ignored: older than the known generation of the same source.
    Stale,
    /// Does not fit the known set: ask the source for a snapshot.
    Gap,
    /// Would have emptied the set right after the source was degraded. Held until the next update of the source.
    Held,
    /// The source is degraded; the known set stays in use.
    Degraded,
}

/// The difference between two topologies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// New.
    pub added: Vec<Arc<Endpoint>>,
    /// Removed.
    pub removed: Vec<Arc<Endpoint>>,
    /// Changed: before, after.
    pub changed: Vec<(Arc<Endpoint>, Arc<Endpoint>)>,
}

// === impl Fold ===

impl Fold {
    /// Knows no set yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            topology: None,
            held: None,
            cause: None,
        }
    }

    /// The known set; `None` before the first answer of the source.
    #[must_use]
    pub fn topology(&self) -> Option<&Topology> {
        self.topology.as_ref()
    }

    /// Why the source is degraded; `None` while it is not.
    #[must_use]
    pub fn degraded(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// Applies one update.
    pub fn apply(&mut self, update: Update) -> Applied {
        match update {
            Update::Snapshot(topology) => self.replace(topology),
            Update::DoesNotExist(generation) => self.replace(Topology::missing(generation)),
            Update::Delta {
                from,
                to,
                put,
                removed,
            } => self.delta(from, to, put, &removed),
            Update::Progress(generation) => self.progress(generation),
            Update::Degraded(cause) => {
                self.cause = Some(cause);
                Applied::Degraded
            }
        }
    }

    fn replace(&mut self, topology: Topology) -> Applied {
        // A held set may belong to another source, and its generation has no order relative to this one.
        let is_newer = |known: &Topology| topology.generation() < known.generation();
        if [&self.held, &self.topology]
            .into_iter()
            .flatten()
            .any(is_newer)
        {
            return Applied::Stale;
        }
        self.settle(topology)
    }

    fn delta(
        &mut self,
        from: Generation,
        to: Generation,
        put: Vec<Arc<Endpoint>>,
        removed: &[EndpointId],
    ) -> Applied {
        let Some(known) = self.latest() else {
            return Applied::Gap;
        };
        let at = known.generation();
        if to <= at {
            return Applied::Stale;
        }
        // Entries are whole, so a delta that starts before the known generation still results in the set of `to`.
        if !(from <= at && to.source == at.source) {
            return Applied::Gap;
        }
        let put: BTreeMap<_, _> = put
            .into_iter()
            .map(|endpoint| (endpoint.id().clone(), endpoint))
            .collect();
        if self.held.is_some() || self.cause.is_some() {
            let next = known.clone().changed(to, put.into_values(), removed);
            return self.settle(next);
        }
        // The source is not degraded, so nothing has to be confirmed: in place, at the cost of the change alone.
        let Some(known) = self.topology.take() else {
            return Applied::Gap;
        };
        let change = Change::of_delta(&known, &put, removed);
        let existed = known.exists();
        let next = known.changed(to, put.into_values(), removed);
        let same = change.is_empty() && existed == next.exists();
        self.topology = Some(next);
        if same {
            Applied::Unchanged
        } else {
            Applied::Changed(change)
        }
    }

    fn progress(&mut self, generation: Generation) -> Applied {
        let Some(known) = self.latest() else {
            self.cause = None;
            return Applied::Unchanged;
        };
        if generation < known.generation() {
            return Applied::Stale;
        }
        if generation.source != known.generation().source {
            return Applied::Gap;
        }
        self.cause = None;
        if let Some(held) = self.held.take() {
            return self.settle(held.at(generation));
        }
        self.topology = self.topology.take().map(|topology| topology.at(generation));
        Applied::Unchanged
    }

    /// The last set of the source, applied or held.
    fn latest(&self) -> Option<&Topology> {
        self.held.as_ref().or(self.topology.as_ref())
    }

    /// The only place that replaces the topology.
    fn settle(&mut self, next: Topology) -> Applied {
        let in_doubt = self.cause.take().is_some();
        let Some(current) = &self.topology else {
            let change = Change {
                added: next.iter().cloned().collect(),
                ..Change::default()
            };
            self.topology = Some(next);
            return Applied::Changed(change);
        };
        if in_doubt && next.is_empty() && !current.is_empty() {
            self.held = Some(next);
            return Applied::Held;
        }
        let change = Change::between(current, &next);
        let next = next.sharing(current, &change);
        let same = change.is_empty() && current.exists() == next.exists();
        self.held = None;
        self.topology = Some(next);
        if same {
            Applied::Unchanged
        } else {
            Applied::Changed(change)
        }
    }
}

// === impl Change ===

impl Change {
    /// Whether there is no difference.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// The number of endpoints that differ.
    #[must_use]
    pub fn len(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }

    pub(crate) fn between(before: &Topology, after: &Topology) -> Self {
        let mut change = Self::default();
        before.differences(after, |difference| match difference {
            Difference::Added(new) => change.added.push(new.clone()),
            Difference::Removed(old) => change.removed.push(old.clone()),
            Difference::Both(old, new) if Arc::ptr_eq(old, new) || old == new => {}
            Difference::Both(old, new) => change.changed.push((old.clone(), new.clone())),
        });
        change
    }

    fn of_delta(
        before: &Topology,
        put: &BTreeMap<EndpointId, Arc<Endpoint>>,
        removed: &[EndpointId],
    ) -> Self {
        let mut change = Self::default();
        for endpoint in put.values() {
            change.put(before, endpoint);
        }
        let gone: BTreeSet<_> = removed.iter().filter(|id| !put.contains_key(*id)).collect();
        change.removed.extend(
            gone.into_iter()
                .filter_map(|id| before.get(id.as_str()))
                .cloned(),
        );
        change
    }

    fn put(&mut self, before: &Topology, endpoint: &Arc<Endpoint>) {
        match before.get(endpoint.id().as_str()) {
            None => self.added.push(endpoint.clone()),
            Some(known) if Arc::ptr_eq(known, endpoint) || known == endpoint => {}
            Some(known) => self.changed.push((known.clone(), endpoint.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use proptest::prelude::*;

    use super::*;
    use crate::SourceId;

    const SOURCE: SourceId = SourceId::new(1);

    fn generation(value: u64) -> Generation {
        Generation::new(SOURCE, value)
    }

    fn endpoint(id: u16, port: u16) -> Endpoint {
        Endpoint::new(format!("e{id}"), ([127, 0, 0, 1], port).into())
    }

    fn snapshot(value: u64, ids: &[u16]) -> Update {
        Update::Snapshot(Topology::new(
            generation(value),
            ids.iter().map(|id| endpoint(*id, *id)),
        ))
    }

    fn delta(from: u64, to: u64, put: &[u16], removed: &[u16]) -> Update {
        Update::Delta {
            from: generation(from),
            to: generation(to),
            put: put.iter().map(|id| Arc::new(endpoint(*id, *id))).collect(),
            removed: removed.iter().map(|id| format!("e{id}").into()).collect(),
        }
    }

    fn ids(fold: &Fold) -> Vec<String> {
        fold.topology()
            .into_iter()
            .flat_map(Topology::iter)
            .map(|endpoint| endpoint.id().to_string())
            .collect()
    }

    fn fold(updates: impl IntoIterator<Item = Update>) -> Fold {
        let mut fold = Fold::new();
        for update in updates {
            let _ = fold.apply(update);
        }
        fold
    }

    #[test]
    fn a_snapshot_reports_what_was_added_removed_and_changed() {
        let mut fold = fold([snapshot(1, &[1, 2])]);
        let next = Topology::new(generation(2), [endpoint(2, 99), endpoint(3, 3)]);
        let Applied::Changed(change) = fold.apply(Update::Snapshot(next)) else {
            panic!("it changed")
        };
        assert_eq!(change.added, [Arc::new(endpoint(3, 3))]);
        assert_eq!(change.removed, [Arc::new(endpoint(1, 1))]);
        assert_eq!(
            change.changed,
            [(Arc::new(endpoint(2, 2)), Arc::new(endpoint(2, 99)))]
        );
    }

    #[test]
    fn unchanged_endpoints_are_shared_between_generations() {
        let mut fold = fold([snapshot(1, &[1, 2])]);
        let before = fold.topology().unwrap().get("e1").unwrap().clone();
        let _ = fold.apply(snapshot(2, &[1, 3]));
        assert!(Arc::ptr_eq(
            &before,
            fold.topology().unwrap().get("e1").unwrap()
        ));
        let _ = fold.apply(delta(2, 3, &[4], &[]));
        assert!(Arc::ptr_eq(
            &before,
            fold.topology().unwrap().get("e1").unwrap()
        ));
    }

    #[test]
    fn a_first_answer_is_a_change_even_when_it_is_empty() {
        assert_eq!(
            Fold::new().apply(snapshot(1, &[])),
            Applied::Changed(Change::default())
        );
        let missing = Update::DoesNotExist(generation(1));
        assert_eq!(
            Fold::new().apply(missing),
            Applied::Changed(Change::default())
        );
    }

    #[test]
    fn an_older_generation_of_the_same_source_is_refused() {
        let mut fold = fold([snapshot(5, &[1])]);
        assert_eq!(fold.apply(snapshot(4, &[2])), Applied::Stale);
        assert_eq!(fold.apply(delta(3, 4, &[2], &[])), Applied::Stale);
        assert_eq!(fold.apply(delta(3, 5, &[2], &[])), Applied::Stale);
        assert_eq!(fold.apply(Update::Progress(generation(4))), Applied::Stale);
        assert_eq!(
            fold.apply(Update::DoesNotExist(generation(4))),
            Applied::Stale
        );
        assert_eq!(ids(&fold), ["e1"]);
    }

    #[test]
    fn a_new_source_starts_over_with_a_snapshot() {
        let mut fold = fold([snapshot(5, &[1])]);
        let other = Generation::new(SourceId::new(2), 1);
        let to = other.next();
        assert_eq!(
            fold.apply(Update::Delta {
                from: other,
                to,
                put: vec![],
                removed: vec![]
            }),
            Applied::Gap
        );
        assert_eq!(fold.apply(Update::Progress(other)), Applied::Gap);
        let _ = fold.apply(Update::Snapshot(Topology::new(other, [endpoint(2, 2)])));
        assert_eq!(
            (ids(&fold), fold.topology().unwrap().generation()),
            (vec!["e2".to_owned()], other)
        );
    }

    #[test]
    fn a_gap_in_the_deltas_demands_a_snapshot() {
        let mut fold = fold([snapshot(5, &[1])]);
        assert_eq!(fold.apply(delta(6, 7, &[2], &[])), Applied::Gap);
        assert_eq!(ids(&fold), ["e1"], "and changes nothing");
        let Applied::Changed(_) = fold.apply(delta(5, 7, &[2], &[1])) else {
            panic!("it fits")
        };
        assert_eq!(ids(&fold), ["e2"]);
        assert_eq!(
            Fold::new().apply(delta(0, 1, &[2], &[])),
            Applied::Gap,
            "nothing to start from"
        );
    }

    #[test]
    fn a_degraded_source_takes_nothing_away() {
        let mut fold = fold([snapshot(1, &[1]), Update::degraded("down")]);
        assert!(fold.degraded().is_some());
        assert_eq!(ids(&fold), ["e1"]);
        assert_eq!(fold.apply(snapshot(2, &[])), Applied::Held);
        assert_eq!(
            ids(&fold),
            ["e1"],
            "an empty answer right after trouble is not believed at once"
        );
        assert_eq!(
            fold.apply(snapshot(1, &[1])),
            Applied::Stale,
            "what is held counts as the latest word"
        );
        let Applied::Changed(change) = fold.apply(Update::Progress(generation(3))) else {
            panic!("confirmed")
        };
        assert_eq!((change.removed.len(), ids(&fold).len()), (1, 0));
        assert_eq!(fold.topology().unwrap().generation(), generation(3));
    }

    #[test]
    fn a_held_emptiness_is_taken_back_by_a_set_and_confirmed_by_a_second_answer() {
        let trouble = || {
            [
                snapshot(1, &[1]),
                Update::degraded("down"),
                delta(1, 2, &[], &[1]),
            ]
        };
        assert_eq!(ids(&fold(trouble())), ["e1"]);
        assert_eq!(
            ids(&fold(trouble().into_iter().chain([snapshot(3, &[2])]))),
            ["e2"]
        );
        assert_eq!(
            ids(&fold(trouble().into_iter().chain([delta(2, 3, &[3], &[])]))),
            ["e3"]
        );
        assert!(ids(&fold(trouble().into_iter().chain([snapshot(2, &[])]))).is_empty());
        let again = trouble()
            .into_iter()
            .chain([Update::degraded("down"), snapshot(3, &[])]);
        assert_eq!(
            ids(&fold(again)),
            ["e1"],
            "trouble in between: not a confirmation"
        );
    }

    #[test]
    fn a_held_set_of_another_source_does_not_admit_an_older_generation() {
        let elsewhere = Topology::missing(Generation::new(SourceId::new(2), 1));
        let mut fold = fold([
            snapshot(12, &[1]),
            Update::degraded("down"),
            Update::Snapshot(elsewhere),
        ]);
        assert_eq!(fold.apply(snapshot(1, &[2])), Applied::Stale);
        assert_eq!(ids(&fold), ["e1"]);
    }

    #[test]
    fn an_authoritative_emptiness_is_applied_at_once() {
        assert!(ids(&fold([snapshot(1, &[1]), snapshot(2, &[])])).is_empty());
        assert!(
            ids(&fold([
                snapshot(1, &[1]),
                Update::DoesNotExist(generation(2))
            ]))
            .is_empty()
        );
    }

    #[derive(Clone, Debug)]
    enum Word {
        Snapshot(u64, Vec<u16>),
        Delta(u64, u64, Vec<u16>, Vec<u16>),
        Progress(u64),
    }

    fn words() -> impl Strategy<Value = Vec<Word>> {
        let some = || proptest::collection::vec(0_u16..6, 0..5);
        let word =
            prop_oneof![
                (1_u64..20, some()).prop_map(|(at, ids)| Word::Snapshot(at, ids)),
                (0_u64..20, 1_u64..4, some(), some())
                    .prop_map(|(from, by, put, gone)| Word::Delta(from, from + by, put, gone)),
                (1_u64..20).prop_map(Word::Progress),
            ];
        proptest::collection::vec(word, 0..30)
    }

    proptest! {
        /// Against a naive model: the generation never falls, and the reported changes are the actual ones.
        #[test]
        fn a_fold_is_its_updates_and_its_changes_add_up(words in words()) {
            let mut fold = Fold::new();
            let mut model: Option<(u64, Map<String, Arc<Endpoint>>)> = None;
            let mut told: Map<String, Arc<Endpoint>> = Map::new();
            for word in words {
                let entry = |id: &u16| (format!("e{id}"), Arc::new(endpoint(*id, *id)));
                let applied = match word.clone() {
                    Word::Snapshot(at, ids) => {
                        if model.as_ref().is_none_or(|(known, _)| at >= *known) {
                            model = Some((at, ids.iter().map(entry).collect()));
                        }
                        fold.apply(snapshot(at, &ids))
                    }
                    Word::Delta(from, to, put, gone) => {
                        if let Some((known, set)) = &mut model
                            && (from <= *known && *known < to)
                        {
                            set.retain(|id, _| !gone.iter().any(|gone| *id == format!("e{gone}")));
                            set.extend(put.iter().map(entry));
                            *known = to;
                        }
                        fold.apply(delta(from, to, &put, &gone))
                    }
                    Word::Progress(at) => {
                        if let Some((known, _)) = &mut model {
                            *known = at.max(*known);
                        }
                        fold.apply(Update::Progress(generation(at)))
                    }
                };
                if let Applied::Changed(change) = applied {
                    for gone in change.removed {
                        prop_assert!(told.remove(gone.id().as_str()).is_some());
                    }
                    for new in change.added {
                        prop_assert!(told.insert(new.id().to_string(), new).is_none());
                    }
                    for (before, after) in change.changed {
                        prop_assert_eq!(told.insert(after.id().to_string(), after), Some(before));
                    }
                }
                let now = fold.topology();
                prop_assert_eq!(now.map(|now| now.generation().value), model.as_ref().map(|(at, _)| *at));
                let set: Map<_, _> = now.into_iter().flat_map(Topology::iter).map(|e| (e.id().to_string(), e.clone())).collect();
                prop_assert_eq!(&set, &model.as_ref().map(|(_, set)| set.clone()).unwrap_or_default());
                prop_assert_eq!(&set, &told);
            }
        }
    }
}
