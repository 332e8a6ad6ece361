//! A sorted sequence in two levels, whose copies share what they have in common.

use std::{cmp::Ordering, sync::Arc};

use crate::EndpointId;

/// Items in the order of their names. A clone costs two counters; a change copies one chunk of 64 and the list of
/// chunks, where another clone still holds them, and else nothing.
///
/// For 10 000 items that is some 230 pointers. Persistent trees copy less and are read through more levels.
#[derive(Debug)]
pub(crate) struct Chunks<T> {
    chunks: Arc<Vec<Arc<Vec<T>>>>,
    len: usize,
}

/// What has a name to be sorted by.
pub(crate) trait Named: Clone {
    fn name(&self) -> &EndpointId;
}

/// One difference between two sequences.
#[derive(Debug, PartialEq)]
pub(crate) enum Difference<'a, T> {
    Added(&'a T),
    Removed(&'a T),
    /// In both under one name; equal or not.
    Both(&'a T, &'a T),
}

// === impl Chunks ===

impl<T> Chunks<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }
}

impl<T: Named> Chunks<T> {
    /// Of two with the same id the later one is used.
    pub(crate) fn new(items: impl IntoIterator<Item = T>) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        // Stable, so that the last of equals is the latest.
        items.sort_by(|one, other| one.name().cmp(other.name()));
        items.reverse();
        items.dedup_by(|next, kept| next.name() == kept.name());
        items.reverse();
        let chunks = items
            .chunks(FILLED)
            .map(|chunk| Arc::new(chunk.to_vec()))
            .collect();
        Self {
            chunks: Arc::new(chunks),
            len: items.len(),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        let chunk = self.chunks.get(self.home(name))?;
        place(chunk, name).ok().map(|index| &chunk[index])
    }

    /// Puts an item in its place, and returns the one that was there.
    pub(crate) fn insert(&mut self, item: T) -> Option<T> {
        let home = self.home(item.name().as_str());
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(home) else {
            chunks.push(Arc::new(vec![item]));
            self.len += 1;
            return None;
        };
        let index = match place(chunk, item.name().as_str()) {
            Ok(index) => return Some(std::mem::replace(&mut Arc::make_mut(chunk)[index], item)),
            Err(index) => index,
        };
        self.len += 1;
        if chunk.len() < FULL {
            Arc::make_mut(chunk).insert(index, item);
            return None;
        }
        // What comes in order leaves full chunks behind.
        let split = if index == FULL { FULL } else { FULL / 2 };
        let (lower, upper) = (&chunk[..split], &chunk[split..]);
        let (mut lower, mut upper) = (lower.to_vec(), upper.to_vec());
        if index > split || split == FULL {
            upper.insert(index - split, item)
        } else {
            lower.insert(index, item)
        }
        chunks[home] = Arc::new(lower);
        chunks.insert(home + 1, Arc::new(upper));
        None
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<T> {
        let home = self.home(name);
        let index = place(self.chunks.get(home)?, name).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[home]);
        let removed = chunk.remove(index);
        self.len -= 1;
        if chunks[home].is_empty() {
            chunks.remove(home);
        } else if !join(chunks, home) && home > 0 {
            join(chunks, home - 1);
        }
        Some(removed)
    }

    /// The differences, except in chunks that both share. Costs the size of the difference, and a comparison of each chunk.
    pub(crate) fn differences<'a>(
        &'a self,
        after: &'a Self,
        mut tell: impl FnMut(Difference<'a, T>),
    ) {
        if self.is_same(after) {
            return;
        }
        let (mut old, mut new) = (Walk::of(self), Walk::of(after));
        loop {
            while let (Some(one), Some(other)) = (old.fresh(), new.fresh())
                && Arc::ptr_eq(one, other)
            {
                old.skip();
                new.skip();
            }
            match (old.item(), new.item()) {
                (None, None) => return,
                (Some(gone), None) => tell(Difference::Removed(old.step(gone))),
                (None, Some(came)) => tell(Difference::Added(new.step(came))),
                (Some(one), Some(other)) => match one.name().cmp(other.name()) {
                    Ordering::Less => tell(Difference::Removed(old.step(one))),
                    Ordering::Greater => tell(Difference::Added(new.step(other))),
                    Ordering::Equal => tell(Difference::Both(old.step(one), new.step(other))),
                },
            }
        }
    }

    /// The chunk that holds this name, or would.
    fn home(&self, name: &str) -> usize {
        let after = self
            .chunks
            .partition_point(|chunk| chunk[0].name().as_str() <= name);
        after.saturating_sub(1)
    }
}

impl<T> Clone for Chunks<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }
}

fn place<T: Named>(chunk: &[T], name: &str) -> Result<usize, usize> {
    chunk.binary_search_by(|item| item.name().as_str().cmp(name))
}

/// Merges a chunk with the next one, if both together fill at most half of one.
fn join<T: Clone>(chunks: &mut Vec<Arc<Vec<T>>>, index: usize) -> bool {
    let fits = chunks
        .get(index + 1)
        .is_some_and(|next| chunks[index].len() + next.len() <= FULL / 2);
    if fits {
        let next = chunks.remove(index + 1);
        Arc::make_mut(&mut chunks[index]).extend(next.iter().cloned());
    }
    fits
}

/// A walk over the items that can pass over a chunk.
struct Walk<'a, T> {
    chunks: &'a [Arc<Vec<T>>],
    index: usize,
}

// === impl Walk ===

impl<'a, T> Walk<'a, T> {
    fn of(chunks: &'a Chunks<T>) -> Self {
        Self {
            chunks: &chunks.chunks,
            index: 0,
        }
    }

    fn item(&self) -> Option<&'a T> {
        self.chunks.first().map(|chunk| &chunk[self.index])
    }

    /// The chunk that is about to begin.
    fn fresh(&self) -> Option<&'a Arc<Vec<T>>> {
        self.chunks.first().filter(|_| self.index == 0)
    }

    fn step(&mut self, item: &'a T) -> &'a T {
        self.index += 1;
        if self
            .chunks
            .first()
            .is_some_and(|chunk| self.index == chunk.len())
        {
            self.skip();
        }
        item
    }

    fn skip(&mut self) {
        self.chunks = &self.chunks[1..];
        self.index = 0;
    }
}

/// A chunk that grows beyond this is split in two.
const FULL: usize = 64;

/// The size of the chunks of a sequence made at once: leaves room for insertions.
const FILLED: usize = 48;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Item(EndpointId, u32);

    impl Named for Item {
        fn name(&self) -> &EndpointId {
            &self.0
        }
    }

    fn item(id: u16, value: u32) -> Item {
        Item(format!("e{id:05}").into(), value)
    }

    fn items(chunks: &Chunks<Item>) -> Vec<Item> {
        chunks.iter().cloned().collect()
    }

    #[test]
    fn of_two_with_one_name_the_later_one_counts() {
        assert_eq!(
            items(&Chunks::new([item(2, 1), item(1, 1), item(2, 2)])),
            [item(1, 1), item(2, 2)]
        );
    }

    #[test]
    fn a_change_copies_one_chunk_and_shares_the_rest() {
        let before = Chunks::new((0..10_000).map(|id| item(id, 0)));
        let mut after = before.clone();
        after.insert(item(5_000, 1));
        let shared = before
            .chunks
            .iter()
            .zip(after.chunks.iter())
            .filter(|(one, other)| Arc::ptr_eq(one, other));
        assert_eq!(shared.count(), before.chunks.len() - 1);
        let mut seen = 0;
        before.differences(&after, |_| seen += 1);
        assert!(
            seen <= FULL,
            "only the chunk that changed is looked into: {seen}"
        );
    }

    #[test]
    fn chunks_stay_neither_long_nor_many() {
        let mut chunks = Chunks::default();
        (0..5_000).for_each(|id| drop(chunks.insert(item(id, 0))));
        assert!(chunks.chunks.iter().all(|chunk| chunk.len() <= FULL));
        for id in (0..5_000).filter(|id| id % 50 != 0) {
            chunks.remove(item(id, 0).0.as_str());
        }
        assert_eq!(chunks.len(), 100);
        assert!(chunks.chunks.len() <= 20, "{}", chunks.chunks.len());
    }

    proptest! {
        /// Against the standard library's map, with a copy held back at times, so that both kinds of change are tried.
        #[test]
        fn it_is_a_map(edits in proptest::collection::vec((0_u16..200, 0_u32..3, any::<bool>()), 0..600)) {
            let mut chunks = Chunks::new((0..100).map(|id| item(id, 9)));
            let mut model: BTreeMap<EndpointId, Item> = (0..100).map(|id| (item(id, 9).0, item(id, 9))).collect();
            let (first, first_model) = (chunks.clone(), model.clone());
            let mut held = None;
            for (id, value, holds) in edits {
                let new = item(id, value);
                if value == 0 {
                    prop_assert_eq!(chunks.remove(new.0.as_str()), model.remove(&new.0));
                } else {
                    prop_assert_eq!(chunks.insert(new.clone()), model.insert(new.0.clone(), new));
                }
                if holds {
                    held = Some(chunks.clone());
                }
            }
            drop(held);
            prop_assert_eq!(items(&chunks), model.values().cloned().collect::<Vec<_>>());
            prop_assert_eq!(chunks.len(), model.len());
            for id in 0..200 {
                prop_assert_eq!(chunks.get(item(id, 0).0.as_str()), model.get(&item(id, 0).0));
            }
            // And the differences, applied to the first, make the last.
            let mut again = first_model;
            first.differences(&chunks, |difference| match difference {
                Difference::Added(new) => assert!(again.insert(new.0.clone(), new.clone()).is_none()),
                Difference::Removed(old) => assert!(again.remove(&old.0).is_some()),
                Difference::Both(old, new) => assert_eq!(again.insert(new.0.clone(), new.clone()).as_ref(), Some(old)),
            });
            prop_assert_eq!(again, model);
        }
    }
}
