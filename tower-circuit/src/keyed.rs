use std::{
    array,
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use crate::{
    Circuit, CircuitBuilder, Trip,
    fast_path::{Idle, thread::FEW_SHARDS},
};

/// A circuit for each key (a route, a tenant, a host), in bounded memory: a cheap handle, whose clones share it.
///
/// ```
/// use tower_circuit::{Circuit, KeyedCircuits};
///
/// let hosts = KeyedCircuits::<String>::new(Circuit::builder()).named(String::clone);
/// hosts.get(&"a.example".into()).force_open();
/// assert!(hosts.get(&"a.example".into()).admit().is_err());
/// assert!(hosts.get(&"b.example".into()).admit().is_ok());
/// ```
///
/// Finding a circuit takes a hash and the read side of one of sixteen locks, which are written only to insert a new key; from
/// there on a call costs what it costs in any circuit.
///
/// # Memory
///
/// A key takes 1.7 KB and twice its own size: these circuits count in two shards, not in eight. There are at most
/// [`capacity`](Self::capacity) of them. When a new key does not fit, it replaces one that is
///
/// 1. **idle**: closed and automatic, without consecutive failures, without calls in its window or in flight, without another
///    handle or a subscriber. Only its totals are lost, so a flood of new keys does not replace those in use;
/// 2. if there is none, **stale**: it has failures on record, or is open, but was not used for longer than its window, the
///    cap of its [`Cooldown`](crate::Cooldown) and the deadline of a probe together, so that what is on record is no evidence
///    any more. The longest unused is replaced first, and one that is forced never.
///
/// A new key examines up to 64 known ones. If all of these are active, they keep their circuits, and [`OnFull`] decides about the
/// new key.
#[must_use]
pub struct KeyedCircuits<K> {
    shared: Arc<Shared<K>>,
}

/// What happens to a new key while all known keys are active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// All such keys share one circuit with the same settings. A flood of keys that fail affects other new keys, but no known
    /// key. The default, because it protects both sides.
    #[default]
    Share,
    /// Their calls are admitted, and their outcomes have no effect.
    Admit,
    /// Their calls are rejected.
    Reject,
}

/// The number of keys, and of those that were replaced or had no circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedSnapshot {
    /// Keys that have a circuit.
    pub keys: usize,
    /// How often a key was replaced by another.
    pub evicted: u64,
    /// How often there was no room for a key.
    pub overflowed: u64,
}

struct Shared<K> {
    settings: Settings<K>,
    hasher: RandomState,
    segments: [RwLock<Segment<K>>; SEGMENTS],
    overflow: Circuit,
    /// The keys, and those for which capacity is reserved.
    keys: AtomicUsize,
    /// Where the next search starts.
    next: AtomicUsize,
    evicted: AtomicU64,
    overflowed: AtomicU64,
}

#[derive(Clone)]
struct Settings<K> {
    template: CircuitBuilder,
    capacity: usize,
    on_full: OnFull,
    name: Option<Name<K>>,
}

type Name<K> = Arc<dyn Fn(&K) -> String + Send + Sync>;

struct Segment<K> {
    index: HashMap<K, usize>,
    entries: Vec<Entry<K>>,
    /// Where the search for an idle key continues.
    cursor: usize,
}

/// Capacity for one key more, which is given back unless it is used.
struct CapacityPermit<'a>(&'a AtomicUsize);

struct Entry<K> {
    key: K,
    circuit: Circuit,
    used: AtomicBool,
}

// === impl KeyedCircuits ===

impl<K: Hash + Eq + Clone> KeyedCircuits<K> {
    /// A circuit with the settings of `template` for each of up to 1,024 keys.
    pub fn new(template: CircuitBuilder) -> Self {
        Self::with(Settings {
            template,
            capacity: CAPACITY,
            on_full: OnFull::default(),
            name: None,
        })
    }

    /// How many keys have a circuit at most. Default: 1,024, which is 1.8 MB. Zero: none has, and [`OnFull`] decides about all.
    ///
    /// This and the other setters return a new set without keys, which shares nothing with earlier clones: set them first.
    pub fn capacity(self, keys: usize) -> Self {
        self.change(|settings| settings.capacity = keys)
    }

    /// What happens to a new key while all known keys are active. Default: [`OnFull::Share`].
    pub fn on_full(self, on_full: OnFull) -> Self {
        self.change(|settings| settings.on_full = on_full)
    }

    /// The name of a key's circuit in `tracing` events. Default: the template's name, for all keys.
    pub fn named(self, name: impl Fn(&K) -> String + Send + Sync + 'static) -> Self {
        self.change(|settings| settings.name = Some(Arc::new(name)))
    }

    /// The circuit of this key, or the [`overflow`](Self::overflow). It is not replaced while a handle exists.
    pub fn get(&self, key: &K) -> Circuit {
        let shared = &*self.shared;
        let segment = shared.segment(key);
        let find = || read(segment).find(key);
        if let Some(circuit) = find() {
            return circuit;
        }
        if !shared.reserve_capacity() {
            // Another thread may have used the capacity for the same key.
            if let Some(circuit) = find() {
                return circuit;
            }
            if !shared.evict() {
                shared.overflowed.fetch_add(1, Relaxed);
                return shared.overflow.clone();
            }
        }
        let permit = CapacityPermit(&shared.keys);
        // Made before any lock is taken, because the name function may panic.
        let new = shared.settings.circuit(key);
        let known = write(segment).insert(key, &new);
        if known.is_none() {
            std::mem::forget(permit);
        }
        // If another thread was faster, the capacity is given back.
        known.unwrap_or(new)
    }

    /// The circuit of all keys for which there was no room: an ordinary one, which can be observed and forced.
    pub fn overflow(&self) -> &Circuit {
        &self.shared.overflow
    }

    /// All keys that have a circuit, for status pages, in no order.
    pub fn circuits(&self) -> Vec<(K, Circuit)> {
        let mut circuits = Vec::new();
        for segment in &self.shared.segments {
            let entries = &read(segment).entries;
            circuits.extend(
                entries
                    .iter()
                    .map(|it| (it.key.clone(), it.circuit.clone())),
            );
        }
        circuits
    }

    /// The number of keys, and of those that were replaced or had no circuit.
    pub fn snapshot(&self) -> KeyedSnapshot {
        let segments = self.shared.segments.iter();
        KeyedSnapshot {
            keys: segments.map(|segment| read(segment).entries.len()).sum(),
            evicted: self.shared.evicted.load(Relaxed),
            overflowed: self.shared.overflowed.load(Relaxed),
        }
    }

    fn with(settings: Settings<K>) -> Self {
        Self {
            shared: Arc::new(Shared {
                overflow: settings.overflow(),
                settings,
                hasher: RandomState::new(),
                segments: array::from_fn(|_| {
                    RwLock::new(Segment {
                        index: HashMap::new(),
                        entries: Vec::new(),
                        cursor: 0,
                    })
                }),
                keys: AtomicUsize::new(0),
                next: AtomicUsize::new(0),
                evicted: AtomicU64::new(0),
                overflowed: AtomicU64::new(0),
            }),
        }
    }

    fn change(self, change: impl FnOnce(&mut Settings<K>)) -> Self {
        let mut settings = self.shared.settings.clone();
        change(&mut settings);
        Self::with(settings)
    }
}

impl<K> Clone for KeyedCircuits<K> {
    fn clone(&self) -> Self {
        let shared = self.shared.clone();
        Self { shared }
    }
}

impl<K> From<&Self> for KeyedCircuits<K> {
    fn from(circuits: &Self) -> Self {
        circuits.clone()
    }
}

impl<K> fmt::Debug for KeyedCircuits<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCircuits")
            .field("capacity", &self.shared.settings.capacity)
            .field("on_full", &self.shared.settings.on_full)
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl<K: Hash + Eq> Shared<K> {
    fn segment(&self, key: &K) -> &RwLock<Segment<K>> {
        &self.segments[self.hasher.hash_one(key) as usize % SEGMENTS]
    }

    /// Reserves capacity for one key more, if there is any.
    fn reserve_capacity(&self) -> bool {
        let one_more = |keys| (keys < self.settings.capacity).then_some(keys + 1);
        self.keys.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// Removes an idle or stale key. Each search starts at the next segment, so that all are searched equally.
    fn evict(&self) -> bool {
        let (now, first) = (Instant::now(), self.next.fetch_add(1, Relaxed));
        let mut left = SEARCH;
        let evicted = (0..SEGMENTS).find_map(|next| {
            // A search that is over does not lock the other segments.
            let segment = (left > 0).then(|| &self.segments[(first + next) % SEGMENTS])?;
            write(segment).evict(now, &mut left)
        });
        self.evicted.fetch_add(evicted.is_some().into(), Relaxed);
        // Its circuit is dropped here, where no lock is held.
        evicted.is_some()
    }
}

// === impl Settings ===

impl<K> Settings<K> {
    fn circuit(&self, key: &K) -> Circuit {
        let template = self.template.clone();
        let named = match &self.name {
            Some(name) => template.name(name(key)),
            None => template,
        };
        named.build_sharded(FEW_SHARDS)
    }

    fn overflow(&self) -> Circuit {
        let template = self.template.clone();
        match self.on_full {
            OnFull::Share => template.build(),
            OnFull::Admit => template.trip(Trip::never()).build(),
            OnFull::Reject => {
                let circuit = template.build();
                circuit.force_open();
                circuit
            }
        }
    }
}

// === impl CapacityPermit ===

impl Drop for CapacityPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

// === impl Segment ===

impl<K: Hash + Eq> Segment<K> {
    fn find(&self, key: &K) -> Option<Circuit> {
        let entry = &self.entries[*self.index.get(key)?];
        // Usually it is set, and then the cache line is not written.
        if !entry.used.load(Relaxed) {
            entry.used.store(true, Relaxed);
        }
        Some(entry.circuit.clone())
    }

    /// Inserts a key for which there is capacity, unless it was inserted meanwhile.
    fn insert(&mut self, key: &K, new: &Circuit) -> Option<Circuit>
    where
        K: Clone,
    {
        let known = self.find(key);
        if known.is_none() {
            // `clone` may panic, so it comes first: nothing panics between the two insertions.
            let (key, own) = (key.clone(), key.clone());
            self.index.insert(key, self.entries.len());
            self.entries.push(Entry {
                key: own,
                circuit: new.clone(),
                used: AtomicBool::new(true),
            });
        }
        known
    }

    fn evict(&mut self, now: Instant, left: &mut usize) -> Option<Entry<K>> {
        let position = self.idle(now, left)?;
        let entry = self.entries.swap_remove(position);
        self.index.remove(&entry.key);
        if let Some(moved) = self.entries.get(position) {
            *self.index.get_mut(&moved.key)? = position;
        }
        Some(entry)
    }

    /// The position of an idle key, preferably a clean one that was not used since the cursor was last there. Examines at most
    /// `left` keys.
    fn idle(&mut self, now: Instant, left: &mut usize) -> Option<usize> {
        // Otherwise a clean one that was used lately, otherwise the one that has been stale for longest.
        let (mut used_lately, mut stalest) = (None, None::<(Instant, usize)>);
        for _ in 0..self.entries.len().min(*left) {
            *left -= 1;
            let position = self.cursor % self.entries.len();
            self.cursor = position + 1;
            let entry = &self.entries[position];
            let used = entry.used.swap(false, Relaxed);
            match entry.circuit.idle(now) {
                Some(Idle::Clean) if !used => return Some(position),
                Some(Idle::Clean) => used_lately = used_lately.or(Some(position)),
                Some(Idle::Stale { since }) if stalest.is_none_or(|(other, _)| since < other) => {
                    stalest = Some((since, position));
                }
                Some(Idle::Stale { .. }) | None => {}
            }
        }
        used_lately.or(stalest.map(|(_, position)| position))
    }
}

// Nothing panics halfway through a change under these locks, unless a key's `Eq` does; then that key is lost.

fn read<K>(segment: &RwLock<Segment<K>>) -> std::sync::RwLockReadGuard<'_, Segment<K>> {
    segment.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<K>(segment: &RwLock<Segment<K>>) -> std::sync::RwLockWriteGuard<'_, Segment<K>> {
    segment.write().unwrap_or_else(PoisonError::into_inner)
}

const CAPACITY: usize = 1_024;
const SEGMENTS: usize = 16;
/// How many keys a new key examines to find an idle one, which takes some ten microseconds.
const SEARCH: usize = 64;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::OnceLock, time::Duration};

    use tower_outcome::{Outcome, Settle};

    use super::*;
    use crate::State;

    /// Room for this many; opens at the first failure.
    fn keyed(capacity: usize) -> KeyedCircuits<u32> {
        let template = Circuit::builder().trip(Trip::consecutive(1));
        KeyedCircuits::new(template).capacity(capacity)
    }

    fn call(keyed: &KeyedCircuits<u32>, key: u32, outcome: Outcome) {
        keyed.get(&key).admit().unwrap().settle(outcome);
    }

    fn knows(keyed: &KeyedCircuits<u32>, key: u32) -> bool {
        keyed.circuits().iter().any(|(known, _)| *known == key)
    }

    #[test]
    fn each_key_has_its_own_circuit_and_keeps_it() {
        let keyed = keyed(10);
        call(&keyed, 1, Outcome::FAILURE);
        assert!(matches!(keyed.get(&1).state(), State::Open { .. }));
        assert_eq!(keyed.get(&2).state(), State::Closed);
        assert!(
            matches!(keyed.clone().get(&1).state(), State::Open { .. }),
            "a clone is the same"
        );
        assert_eq!(
            keyed.snapshot(),
            KeyedSnapshot {
                keys: 2,
                evicted: 0,
                overflowed: 0
            }
        );
    }

    #[test]
    fn an_idle_key_is_replaced_and_active_ones_stay() {
        let keyed = keyed(4);
        call(&keyed, 0, Outcome::FAILURE);
        let refs = keyed.get(&1);
        let under_way = keyed.get(&2).admit().unwrap();
        call(&keyed, 3, Outcome::IGNORE);
        for key in 10..20 {
            call(&keyed, key, Outcome::IGNORE);
            assert!(
                [0, 1, 2, key].iter().all(|&key| knows(&keyed, key)),
                "{key}"
            );
        }
        assert_eq!(
            keyed.snapshot(),
            KeyedSnapshot {
                keys: 4,
                evicted: 10,
                overflowed: 0
            }
        );
        let followed = refs.subscribe();
        drop((refs, under_way));
        for key in 20..30 {
            call(&keyed, key, Outcome::IGNORE);
        }
        assert!(knows(&keyed, 1) && !knows(&keyed, 2), "it has a subscriber");
        drop(followed);
        for key in 30..40 {
            call(&keyed, key, Outcome::IGNORE);
        }
        assert!(!knows(&keyed, 1));
        assert!(knows(&keyed, 0), "it is open");
    }

    #[test]
    fn a_key_that_was_not_used_lately_is_replaced_first() {
        let keyed = keyed(4);
        let (mut segment, now) = (write(&keyed.shared.segments[0]), Instant::now());
        for key in [1, 2, 3] {
            assert!(segment.insert(&key, &Circuit::new()).is_none());
        }
        assert_eq!(
            segment.idle(now, &mut 64),
            Some(0),
            "all were used, so any may be replaced"
        );
        drop(segment.find(&1));
        assert_eq!(segment.evict(now, &mut 64).map(|entry| entry.key), Some(2));
        assert_eq!(
            segment.index,
            HashMap::from([(1, 0), (3, 1)]),
            "the last one took its position"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_in_the_window_keeps_its_key_until_it_has_left_the_window() {
        let trip = Trip::consecutive(2);
        let keyed = KeyedCircuits::new(Circuit::builder().trip(trip)).capacity(1);
        call(&keyed, 1, Outcome::FAILURE);
        call(&keyed, 1, Outcome::SUCCESS);
        tokio::time::advance(Duration::from_millis(8_999)).await;
        call(&keyed, 2, Outcome::SUCCESS);
        assert!(knows(&keyed, 1));
        tokio::time::advance(Duration::from_millis(1_001)).await;
        call(&keyed, 2, Outcome::SUCCESS);
        assert!(knows(&keyed, 2) && !knows(&keyed, 1));
    }

    #[test]
    fn when_all_are_active_new_keys_share_or_are_admitted_or_rejected() {
        for (on_full, opens) in [
            (OnFull::Share, true),
            (OnFull::Admit, false),
            (OnFull::Reject, true),
        ] {
            let keyed = keyed(1).on_full(on_full);
            call(&keyed, 1, Outcome::FAILURE);
            if on_full != OnFull::Reject {
                call(&keyed, 2, Outcome::FAILURE);
            }
            assert_eq!(keyed.get(&3).admit().is_err(), opens, "{on_full:?}");
            assert_eq!(
                matches!(keyed.overflow().state(), State::Open { .. }),
                opens
            );
            assert!(!knows(&keyed, 2) && knows(&keyed, 1));
            assert!(keyed.snapshot().overflowed >= 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_failed_once_are_replaced_by_age_the_oldest_first() {
        let failing = KeyedCircuits::<u32>::new(Circuit::builder()).capacity(64);
        let opening = keyed(64);
        for keyed in [failing, opening] {
            for key in 0..64 {
                call(&keyed, key, Outcome::FAILURE);
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            keyed.get(&7).force_open();
            let refs = keyed.get(&8);
            let followed = keyed.get(&9).subscribe();
            // The window, the cap of the cooldown and a probe: 10 + 60 + 10 s.
            tokio::time::advance(Duration::from_secs(79)).await;
            drop(keyed.get(&1000));
            assert_eq!(keyed.snapshot().overflowed, 1, "recent failures matter");

            tokio::time::advance(Duration::from_secs(30 * 86_400)).await;
            for new in 1000..1061 {
                call(&keyed, new, Outcome::SUCCESS);
                assert!(knows(&keyed, new), "{new} finds permit");
            }
            assert_eq!(keyed.snapshot().overflowed, 1);
            for kept in [7, 8, 9] {
                assert!(knows(&keyed, kept), "{kept} is forced, refs or followed");
            }
            drop((refs, followed));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_new_keys_that_fail_does_not_affect_known_keys() {
        let keyed = KeyedCircuits::<u32>::new(Circuit::builder()).capacity(32);
        for key in 0..32 {
            call(&keyed, key, Outcome::FAILURE);
        }
        for second in 0..600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            for key in 0..32 {
                // In use, with failures from time to time.
                let outcome = if (second + key) % 40 == 0 {
                    Outcome::FAILURE
                } else {
                    Outcome::SUCCESS
                };
                keyed.get(&key).admit().unwrap().settle(outcome);
            }
            for made_up in 0..20 {
                let permit = keyed.get(&(1_000_000 + second * 20 + made_up)).admit();
                permit
                    .into_iter()
                    .for_each(|it| it.settle(Outcome::FAILURE));
            }
        }
        let failing: Vec<_> = (0..32).filter(|&key| !knows(&keyed, key)).collect();
        assert_eq!(
            failing, [0; 0],
            "replaced although it has failures on record"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_in_use_that_failed_long_ago_is_not_replaced() {
        let keyed = KeyedCircuits::<u32>::new(Circuit::builder()).capacity(4);
        for key in 0..4 {
            call(&keyed, key, Outcome::FAILURE);
        }
        for second in 0..200 {
            for key in 0..4 {
                call(&keyed, key, Outcome::SUCCESS);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            let made_up = keyed.get(&(1_000 + second)).admit();
            made_up
                .into_iter()
                .for_each(|it| it.settle(Outcome::FAILURE));
            assert!((0..4).all(|key| knows(&keyed, key)), "after {second} s");
        }
        tokio::time::advance(Duration::from_secs(11)).await;
        drop(keyed.get(&2_000));
        assert!(knows(&keyed, 2_000), "no longer in use");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_automatic_again_and_is_not_called_is_replaced() {
        let keyed = keyed(1);
        keyed.get(&1).force_open();
        keyed.get(&1).automatic();
        drop(keyed.get(&2));
        assert!(knows(&keyed, 1), "it is half-open");
        tokio::time::advance(Duration::from_secs(81)).await;
        drop(keyed.get(&2));
        assert!(knows(&keyed, 2));
    }

    #[test]
    fn there_are_never_more_keys_than_the_capacity() {
        for capacity in [1, 7, 999, 1_000, 1_100] {
            let keyed = keyed(capacity);
            for key in 0..3_000 {
                // Keys without capacity soon get the open overflow circuit.
                keyed
                    .get(&key)
                    .admit()
                    .into_iter()
                    .for_each(|permit| permit.settle(Outcome::FAILURE));
            }
            let snapshot = keyed.snapshot();
            assert_eq!(snapshot.keys, capacity);
            assert_eq!(snapshot.evicted, 0, "all are open");
        }
    }

    #[test]
    fn many_threads_get_the_same_circuit_for_a_key() {
        let keyed = keyed(128);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..10_000).for_each(|index| call(&keyed, index % 64, Outcome::SUCCESS))
                });
            }
        });
        assert_eq!(
            keyed.snapshot(),
            KeyedSnapshot {
                keys: 64,
                evicted: 0,
                overflowed: 0
            }
        );
        let calls: u64 = keyed
            .circuits()
            .iter()
            .map(|(_, circuit)| circuit.snapshot().totals.succeeded)
            .sum();
        assert_eq!(calls, 40_000);
    }

    #[test]
    fn a_name_function_that_panics_takes_no_capacity() {
        let keyed = keyed(1).named(|key| {
            if *key == 1 {
                panic!("no name")
            } else {
                String::new()
            }
        });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| keyed.get(&1)));
        assert!(panicked.is_err());
        drop(keyed.get(&2));
        assert_eq!((keyed.snapshot().keys, keyed.snapshot().overflowed), (1, 0));
    }

    #[test]
    fn the_second_thread_with_a_new_key_gives_its_capacity_back() {
        let (first, other) = (
            AtomicBool::new(true),
            Arc::new(OnceLock::<KeyedCircuits<u32>>::new()),
        );
        let of_other = other.clone();
        let keyed = keyed(2).named(move |key| {
            // As another thread would, between the search and the insertion.
            if first.swap(false, Relaxed) {
                drop(of_other.get().unwrap().get(key));
            }
            String::new()
        });
        other.set(keyed.clone()).unwrap();
        drop(keyed.get(&1));
        assert_eq!(
            (keyed.snapshot().keys, keyed.shared.keys.load(Relaxed)),
            (1, 1)
        );
    }

    #[test]
    fn without_capacity_every_key_overflows() {
        let keyed = keyed(0);
        call(&keyed, 1, Outcome::FAILURE);
        assert!(keyed.get(&2).admit().is_err(), "both share a circuit");
        assert_eq!((keyed.snapshot().keys, keyed.snapshot().overflowed), (0, 2));
    }

    #[test]
    fn a_circuit_is_named_after_its_key() {
        let keyed = keyed(2).named(|key| format!("tenant {key}"));
        assert_eq!(keyed.get(&7).name(), Some("tenant 7"));
    }
}
