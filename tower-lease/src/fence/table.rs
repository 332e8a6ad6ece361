use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::floor::Floor;
use crate::LeaseKey;

/// The floors of the keys that were seen, at most so many. Read without a lock; a new key copies the map.
#[derive(Debug)]
pub(super) struct Table {
    entries: ArcSwap<Entries>,
    /// One copies at a time.
    edit: Mutex<()>,
    capacity: NonZeroUsize,
}

type Entries = HashMap<LeaseKey, Arc<Entry>>;

/// What is known of one key.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: LeaseKey,
    pub(super) floor: Floor,
    /// One asks the mark at a time; the others find the answer here.
    pub(super) turn: Semaphore,
    waiting: AtomicUsize,
}

/// A place among those who wait for the mark. Left in `Drop`.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Entry);

/// How many requests with a token that is new may wait for the mark, for each key.
const MAX_WAITING: usize = 1_024;

// === impl Table ===

impl Table {
    pub(super) fn new(capacity: NonZeroUsize) -> Self {
        Self {
            entries: ArcSwap::default(),
            edit: Mutex::new(()),
            capacity,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.entries.load().get(key).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.load().len()
    }

    pub(super) fn get_or_insert(&self, key: &LeaseKey) -> Arc<Entry> {
        if let Some(entry) = self.get(key.as_str()) {
            return entry;
        }
        let _edit = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.get(key.as_str()) {
            return entry;
        }
        let mut entries = Entries::clone(&self.entries.load());
        self.make_room(&mut entries);
        let entry = Arc::new(Entry::new(key.clone()));
        entries.insert(key.clone(), entry.clone());
        self.entries.store(Arc::new(entries));
        entry
    }

    /// Forgets some key: its floor is the mark's, which will be asked again.
    fn make_room(&self, entries: &mut Entries) {
        while entries.len() >= self.capacity.get() {
            let Some(key) = entries.keys().next().cloned() else {
                return;
            };
            if let Some(entry) = entries.remove(&key) {
                entry.floor.retire();
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(key: LeaseKey) -> Self {
        Self {
            key,
            floor: Floor::new(),
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
        }
    }

    /// A place to wait at, unless too many do.
    pub(super) fn wait(&self) -> Option<Place<'_>> {
        let place = Place(self);
        (self.waiting.fetch_add(1, Relaxed) < MAX_WAITING).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::fence::floor::Judgement;

    fn key(name: &str) -> LeaseKey {
        LeaseKey::new(name).unwrap()
    }

    #[test]
    fn a_key_has_one_entry() {
        let table = Table::new(NonZeroUsize::new(4).unwrap());
        assert!(table.get("a").is_none());
        let first = table.get_or_insert(&key("a"));
        assert!(Arc::ptr_eq(&first, &table.get_or_insert(&key("a"))));
        assert!(Arc::ptr_eq(&first, &table.get("a").unwrap()));
    }

    #[test]
    fn no_more_keys_are_kept_than_agreed_and_what_is_forgotten_says_nothing() {
        let table = Table::new(NonZeroUsize::new(4).unwrap());
        let entries: Vec<_> = (0..100)
            .map(|index| table.get_or_insert(&key(&format!("k{index}"))))
            .collect();
        entries.iter().for_each(|entry| {
            entry.floor.raise(7);
        });
        assert_eq!(table.len(), 4);
        let knowing = entries
            .iter()
            .filter(|entry| entry.floor.judge(7) == Judgement::Current);
        assert!(
            knowing
                .clone()
                .all(|entry| table.get(entry.key.as_str()).is_some())
        );
        assert_eq!(knowing.count(), 4);
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let entry = Entry::new(key("a"));
        let places: Vec<_> = (0..MAX_WAITING).map(|_| entry.wait().unwrap()).collect();
        assert!(entry.wait().is_none());
        drop(places);
        assert_eq!(entry.waiting.load(Relaxed), 0);
        assert!(entry.wait().is_some());
    }
}
