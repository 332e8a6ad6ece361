use std::{
    collections::HashMap,
    fmt,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::cached_high_water::CachedHighWater;
use crate::LeaseKey;

/// The highest tokens that fences have seen in this process, kept by the [`HighWaterMark`](super::HighWaterMark) that they ask.
///
/// A mark has one, from [`new`](Self::new), and clones it with itself; the clones share what they know. So two fences over
/// clones of one mark have one floor for each key (I2). It remembers a key for as long as one of its fences does.
#[derive(Clone, Default)]
pub struct HighWaterCache(Arc<Mutex<HashMap<LeaseKey, Weak<Entry>>>>);

/// The floors of the keys that one fence has seen, up to its capacity. Read without a lock; a new key copies the map.
#[derive(Debug)]
pub(super) struct Table {
    entries: ArcSwap<Entries>,
    /// One copies at a time.
    edit: Mutex<()>,
    capacity: NonZeroUsize,
}

type Entries = HashMap<LeaseKey, Arc<Entry>>;

/// What is known of one key. Among the floors of one mark there is never a second one of the same key.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: LeaseKey,
    pub(super) floor: CachedHighWater,
    /// One task asks the mark at a time; the tasks that wait find the answer here.
    pub(super) asking: Semaphore,
    waiting: AtomicUsize,
}

/// Counts one task that waits for the mark. Uncounted in `Drop`.
#[derive(Debug)]
pub(super) struct Waiter<'a>(&'a Entry);

/// How many requests with a token that is new may wait for the mark, for each key.
const MAX_WAITING: usize = 1_024;

// === impl HighWaterCache ===

impl HighWaterCache {
    /// Those of a mark that is new. Nothing is known yet, which is not a floor: the mark will be asked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry of a key: the one that some fence, or a request that passed, still has; a new one without that.
    fn entry(&self, key: &LeaseKey) -> Arc<Entry> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(key).and_then(Weak::upgrade) {
            return entry;
        }
        entries.retain(|_, entry| entry.strong_count() > 0);
        let entry = Arc::new(Entry::new(key.clone()));
        entries.insert(key.clone(), Arc::downgrade(&entry));
        entry
    }
}

impl fmt::Debug for HighWaterCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HighWaterCache").finish_non_exhaustive()
    }
}

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

    pub(super) fn get_or_insert(&self, key: &LeaseKey, cache: &HighWaterCache) -> Arc<Entry> {
        if let Some(entry) = self.get(key.as_str()) {
            return entry;
        }
        let _edit = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.get(key.as_str()) {
            return entry;
        }
        let mut entries = Entries::clone(&self.entries.load());
        self.make_room(&mut entries);
        let entry = cache.entry(key);
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
            entries.remove(&key);
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(key: LeaseKey) -> Self {
        Self {
            key,
            floor: CachedHighWater::new(),
            asking: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
        }
    }

    /// A place to wait at, unless too many do.
    pub(super) fn wait(&self) -> Option<Waiter<'_>> {
        let place = Waiter(self);
        (self.waiting.fetch_add(1, Relaxed) < MAX_WAITING).then_some(place)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn key(name: &str) -> LeaseKey {
        LeaseKey::new(name).unwrap()
    }

    fn table(capacity: usize) -> Table {
        Table::new(NonZeroUsize::new(capacity).unwrap())
    }

    #[test]
    fn a_key_has_one_entry_in_all_tables_over_one_marks_floors() {
        let (cache, one, other) = (HighWaterCache::new(), table(4), table(4));
        assert!(one.get("a").is_none());
        let first = one.get_or_insert(&key("a"), &cache);
        assert!(Arc::ptr_eq(&first, &one.get_or_insert(&key("a"), &cache)));
        assert!(Arc::ptr_eq(&first, &one.get("a").unwrap()));
        assert!(other.get("a").is_none(), "it has not asked");
        let shared = other.get_or_insert(&key("a"), &cache.clone());
        assert!(Arc::ptr_eq(&first, &shared));
        let apart = table(4).get_or_insert(&key("a"), &HighWaterCache::new());
        assert!(!Arc::ptr_eq(&first, &apart));
    }

    #[test]
    fn the_table_keeps_its_capacity_and_forgets_no_entry_in_use() {
        let (cache, table) = (HighWaterCache::new(), table(4));
        let passed: Vec<_> = (0..50)
            .map(|index| table.get_or_insert(&key(&format!("k{index}")), &cache))
            .collect();
        assert_eq!(table.len(), 4);
        // A request that was admitted by one of them shares the entry with the next one.
        for entry in &passed {
            assert!(Arc::ptr_eq(entry, &table.get_or_insert(&entry.key, &cache)));
        }
        drop(passed);
        for index in 50..100 {
            table.get_or_insert(&key(&format!("k{index}")), &cache);
        }
        let kept = cache.0.lock().unwrap().len();
        assert!(kept <= 5, "{kept} with 4 in use");
    }

    #[test]
    fn the_number_of_waiting_tasks_is_bounded() {
        let entry = Entry::new(key("a"));
        let places: Vec<_> = (0..MAX_WAITING).map(|_| entry.wait().unwrap()).collect();
        assert!(entry.wait().is_none());
        drop(places);
        assert_eq!(entry.waiting.load(Relaxed), 0);
        assert!(entry.wait().is_some());
    }
}
