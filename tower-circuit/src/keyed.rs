use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroUsize,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use crate::{Circuit, CircuitBuilder, Trip, circuit::Idle, stripe::Stripes};

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
/// Finding a circuit takes a hash and the read side of one of sixteen locks, which writers hold only to take in a new key;
/// from there on a call costs what it costs in any circuit.
///
/// # Memory
///
/// A key takes 1.7 KB and itself, twice: these circuits tell two groups of threads apart, not eight. There are at most
/// [`capacity`](Self::capacity) of them. When a new one comes and there is no room, one that is **idle** makes way: closed
/// and automatic, no failure in a row, no call in its window and none under way, no other handle of it, and no subscriber. So
/// nothing is forgotten but its totals, and a flood of new keys does not push out those in use. If there is none, one makes way that
/// has failures on record or is open, but was not used for longer than its window, the cap of its
/// [`Cooldown`](crate::Cooldown) and the deadline of a probe together: what is on record says nothing about the present by then.
/// The longest unused goes first; one that is forced stays. A new key
/// looks at up to 64 others; if all of these are active, known keys keep their circuits, and what becomes of the new one
/// [`WhenFull`] says.
pub struct KeyedCircuits<K> {
    shared: Arc<Shared<K>>,
}

/// What becomes of a new key while all others are active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// All such keys share one circuit with the same settings. A flood of keys that fail harms other newcomers, but nobody
    /// who is known. The default, because it protects both sides.
    #[default]
    Share,
    /// Their calls pass, and decide nothing.
    Pass,
    /// Their calls are refused.
    Refuse,
}

/// How many keys there are, and what became of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedSnapshot {
    /// Those that have a circuit.
    pub keys: usize,
    /// How often one made way for another.
    pub evicted: u64,
    /// How often a key found no room.
    pub overflowed: u64,
}

struct Shared<K> {
    settings: Settings<K>,
    hasher: RandomState,
    shards: [RwLock<Shard<K>>; SHARDS],
    overflow: Circuit,
    /// Those that are there, and those for which there is room by now.
    keys: AtomicUsize,
    /// Where the next search begins.
    next: AtomicUsize,
    evicted: AtomicU64,
    overflowed: AtomicU64,
}

struct Settings<K> {
    template: CircuitBuilder,
    capacity: usize,
    when_full: WhenFull,
    name: Option<Name<K>>,
}

type Name<K> = Arc<dyn Fn(&K) -> String + Send + Sync>;

struct Shard<K> {
    places: HashMap<K, usize>,
    entries: Vec<Entry<K>>,
    /// Where the search for an idle one goes on.
    hand: usize,
}

/// Room for one key more, given back unless it is used.
struct Room<'a>(&'a AtomicUsize);

struct Entry<K> {
    key: K,
    circuit: Circuit,
    used: AtomicBool,
}

// === impl KeyedCircuits ===

impl<K: Hash + Eq + Clone> KeyedCircuits<K> {
    /// A circuit like `template` for each of up to 1 024 keys.
    #[must_use]
    pub fn new(template: CircuitBuilder) -> Self {
        Self::with(Settings {
            template,
            capacity: CAPACITY,
            when_full: WhenFull::default(),
            name: None,
        })
    }

    /// How many keys have a circuit at most. Default: 1 024, which is 1.8 MB.
    ///
    /// Call this and the other settings first: what they return is new, and shares nothing with earlier clones.
    #[must_use]
    pub fn capacity(self, keys: NonZeroUsize) -> Self {
        Self::with(Settings {
            capacity: keys.get(),
            ..self.shared.settings.clone()
        })
    }

    /// What becomes of a new key while all others are active. Default: [`WhenFull::Share`].
    #[must_use]
    pub fn when_full(self, when_full: WhenFull) -> Self {
        Self::with(Settings {
            when_full,
            ..self.shared.settings.clone()
        })
    }

    /// How `tracing` events name the circuit of a key. Default: by the template's name, all the same.
    #[must_use]
    pub fn named(self, name: impl Fn(&K) -> String + Send + Sync + 'static) -> Self {
        Self::with(Settings {
            name: Some(Arc::new(name)),
            ..self.shared.settings.clone()
        })
    }

    /// The circuit of this key, or the [`overflow`](Self::overflow). As long as somebody holds it, it is not forgotten.
    #[must_use]
    pub fn get(&self, key: &K) -> Circuit {
        let shared = &*self.shared;
        let shard = shared.shard(key);
        let find = || read(shard).find(key);
        if let Some(circuit) = find() {
            return circuit;
        }
        if !shared.take_room() {
            // Another thread may have taken it for the same key.
            if let Some(circuit) = find() {
                return circuit;
            }
            if !shared.evict() {
                shared.overflowed.fetch_add(1, Relaxed);
                return shared.overflow.clone();
            }
        }
        let room = Room(&shared.keys);
        // Made before any lock is taken: the name is the user's code, which may panic.
        let new = shared.settings.circuit(key);
        let known = write(shard).take_in(key, &new);
        if known.is_none() {
            std::mem::forget(room);
        }
        // Or another thread was quicker, and the room is given back.
        known.unwrap_or(new)
    }

    /// The circuit of all keys that found no room: an ordinary one, which can be watched and forced.
    #[must_use]
    pub fn overflow(&self) -> &Circuit {
        &self.shared.overflow
    }

    /// All keys that have a circuit, for status pages, in no order.
    #[must_use]
    pub fn circuits(&self) -> Vec<(K, Circuit)> {
        let shards = self.shared.shards.iter().map(read);
        shards
            .flat_map(|shard| shard.entries.iter().map(Entry::pair).collect::<Vec<_>>())
            .collect()
    }

    /// What it has done so far.
    #[must_use]
    pub fn snapshot(&self) -> KeyedSnapshot {
        KeyedSnapshot {
            keys: self
                .shared
                .shards
                .iter()
                .map(|shard| read(shard).entries.len())
                .sum(),
            evicted: self.shared.evicted.load(Relaxed),
            overflowed: self.shared.overflowed.load(Relaxed),
        }
    }

    fn with(settings: Settings<K>) -> Self {
        let overflow = settings.overflow();
        let shards = std::array::from_fn(|_| RwLock::new(Shard::new()));
        let [keys, next] = [(); 2].map(|()| AtomicUsize::new(0));
        let [evicted, overflowed] = [(); 2].map(|()| AtomicU64::new(0));
        let hasher = RandomState::new();
        Self {
            shared: Arc::new(Shared {
                settings,
                hasher,
                shards,
                overflow,
                keys,
                next,
                evicted,
                overflowed,
            }),
        }
    }
}

impl<K> Clone for KeyedCircuits<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
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
            .field("when_full", &self.shared.settings.when_full)
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl<K: Hash + Eq> Shared<K> {
    fn shard(&self, key: &K) -> &RwLock<Shard<K>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Reserves room for one key more, if there is some.
    fn take_room(&self) -> bool {
        let one_more = |keys| (keys < self.settings.capacity).then_some(keys + 1);
        self.keys.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// Lets an idle one make way. Each search begins at the next shard, so that all have their turn.
    fn evict(&self) -> bool {
        let (now, first) = (Instant::now(), self.next.fetch_add(1, Relaxed));
        let mut left = SEARCH;
        let evicted = (0..SHARDS).find_map(|next| {
            // Nobody's readers wait for a search that is over.
            let shard = (left > 0).then(|| &self.shards[(first + next) % SHARDS])?;
            write(shard).evict(now, &mut left)
        });
        self.evicted.fetch_add(evicted.is_some().into(), Relaxed);
        // Here its circuit is dropped, and no lock is held.
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
        named.build_striped(Stripes::FEW)
    }

    fn overflow(&self) -> Circuit {
        let template = self.template.clone();
        match self.when_full {
            WhenFull::Share => template.build(),
            WhenFull::Pass => template.trip(Trip::never()).build(),
            WhenFull::Refuse => {
                let circuit = template.build();
                circuit.force_open();
                circuit
            }
        }
    }
}

impl<K> Clone for Settings<K> {
    fn clone(&self) -> Self {
        let Self {
            template,
            capacity,
            when_full,
            name,
        } = self;
        Self {
            template: template.clone(),
            capacity: *capacity,
            when_full: *when_full,
            name: name.clone(),
        }
    }
}

// === impl Room ===

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

// === impl Shard ===

impl<K: Hash + Eq> Shard<K> {
    fn new() -> Self {
        Self {
            places: HashMap::new(),
            entries: Vec::new(),
            hand: 0,
        }
    }

    fn find(&self, key: &K) -> Option<Circuit> {
        let entry = &self.entries[*self.places.get(key)?];
        // Most of the time it is set, and then the line stays where it is.
        if !entry.used.load(Relaxed) {
            entry.used.store(true, Relaxed);
        }
        Some(entry.circuit.clone())
    }

    /// Takes in a key for which there is room, unless it is there by now.
    fn take_in(&mut self, key: &K, new: &Circuit) -> Option<Circuit>
    where
        K: Clone,
    {
        let known = self.find(key);
        if known.is_none() {
            // The user's code first: between the two insertions nothing can panic.
            let (key, own) = (key.clone(), key.clone());
            self.places.insert(key, self.entries.len());
            self.entries.push(Entry {
                key: own,
                circuit: new.clone(),
                used: AtomicBool::new(true),
            });
        }
        known
    }

    fn evict(&mut self, now: Instant, left: &mut usize) -> Option<Entry<K>> {
        let place = self.idle(now, left)?;
        let entry = self.entries.swap_remove(place);
        self.places.remove(&entry.key);
        if let Some(moved) = self.entries.get(place) {
            *self.places.get_mut(&moved.key)? = place;
        }
        Some(entry)
    }

    /// An idle one, rather one that is clean and was not used since the hand last came by. Looks at as many as are `left` to look at.
    fn idle(&mut self, now: Instant, left: &mut usize) -> Option<usize> {
        // A clean one that was used lately, otherwise the one that has been stale for longest.
        let (mut used_lately, mut stalest) = (None, None::<(Instant, usize)>);
        for _ in 0..self.entries.len().min(*left) {
            *left -= 1;
            let place = self.hand % self.entries.len();
            self.hand = place + 1;
            let entry = &self.entries[place];
            let used = entry.used.swap(false, Relaxed);
            match entry.circuit.idle(now) {
                Some(Idle::Clean) if !used => return Some(place),
                Some(Idle::Clean) => used_lately = used_lately.or(Some(place)),
                Some(Idle::Stale { since }) if stalest.is_none_or(|(other, _)| since < other) => {
                    stalest = Some((since, place));
                }
                Some(Idle::Stale { .. }) | None => {}
            }
        }
        used_lately.or(stalest.map(|(_, place)| place))
    }
}

// === impl Entry ===

impl<K: Clone> Entry<K> {
    fn pair(&self) -> (K, Circuit) {
        (self.key.clone(), self.circuit.clone())
    }
}

// Nothing under these locks panics halfway through a change, unless a key's own `Eq` or `Clone` does; then it is lost.

fn read<K>(shard: &RwLock<Shard<K>>) -> std::sync::RwLockReadGuard<'_, Shard<K>> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<K>(shard: &RwLock<Shard<K>>) -> std::sync::RwLockWriteGuard<'_, Shard<K>> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}

const CAPACITY: usize = 1_024;
const SHARDS: usize = 16;
/// How many a new key looks at for one that is idle: some ten microseconds' worth.
const SEARCH: usize = 64;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{num::NonZeroU32, sync::OnceLock, time::Duration};

    use tower_outcome::{Outcome, Settle};

    use super::*;
    use crate::State;

    /// Room for this many; opens at the first failure.
    fn keyed(capacity: usize) -> KeyedCircuits<u32> {
        let template = Circuit::builder().trip(Trip::consecutive(NonZeroU32::MIN));
        KeyedCircuits::new(template).capacity(NonZeroUsize::new(capacity).unwrap())
    }

    fn call(keyed: &KeyedCircuits<u32>, key: u32, outcome: Outcome) {
        keyed.get(&key).admit().unwrap().settle(outcome);
    }

    fn knows(keyed: &KeyedCircuits<u32>, key: u32) -> bool {
        keyed.circuits().iter().any(|(known, _)| *known == key)
    }

    #[test]
    fn each_key_has_a_circuit_of_its_own_and_keeps_it() {
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
    fn an_idle_one_makes_way_and_those_that_are_not_stay() {
        let keyed = keyed(4);
        call(&keyed, 0, Outcome::FAILURE);
        let held = keyed.get(&1);
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
        let followed = held.subscribe();
        drop((held, under_way));
        for key in 20..30 {
            call(&keyed, key, Outcome::IGNORE);
        }
        assert!(
            knows(&keyed, 1) && !knows(&keyed, 2),
            "somebody follows its state"
        );
        drop(followed);
        for key in 30..40 {
            call(&keyed, key, Outcome::IGNORE);
        }
        assert!(!knows(&keyed, 1));
        assert!(knows(&keyed, 0), "it is open");
    }

    #[test]
    fn what_was_not_used_lately_goes_first() {
        let (mut shard, now) = (Shard::new(), Instant::now());
        for key in [1, 2, 3] {
            assert!(shard.take_in(&key, &Circuit::new()).is_none());
        }
        assert_eq!(
            shard.idle(now, &mut 64),
            Some(0),
            "all were used, so any may go, and all have to be used again"
        );
        drop(shard.find(&1));
        assert_eq!(shard.evict(now, &mut 64).map(|entry| entry.key), Some(2));
        assert_eq!(
            shard.places,
            HashMap::from([(1, 0), (3, 1)]),
            "the last one took its place"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_in_the_window_keeps_its_key_until_it_has_left_the_window() {
        let trip = Trip::consecutive(NonZeroU32::new(2).unwrap());
        let keyed = KeyedCircuits::new(Circuit::builder().trip(trip)).capacity(NonZeroUsize::MIN);
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
    fn when_all_are_active_newcomers_share_pass_or_are_refused() {
        for (when_full, opens) in [
            (WhenFull::Share, true),
            (WhenFull::Pass, false),
            (WhenFull::Refuse, true),
        ] {
            let keyed = keyed(1).when_full(when_full);
            call(&keyed, 1, Outcome::FAILURE);
            if when_full != WhenFull::Refuse {
                call(&keyed, 2, Outcome::FAILURE);
            }
            assert_eq!(keyed.get(&3).admit().is_err(), opens, "{when_full:?}");
            assert_eq!(
                matches!(keyed.overflow().state(), State::Open { .. }),
                opens
            );
            assert!(!knows(&keyed, 2) && knows(&keyed, 1));
            assert!(keyed.snapshot().overflowed >= 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_failed_once_are_forgotten_by_age_the_oldest_first() {
        let failing =
            KeyedCircuits::<u32>::new(Circuit::builder()).capacity(NonZeroUsize::new(64).unwrap());
        let opening = keyed(64);
        for keyed in [failing, opening] {
            for key in 0..64 {
                call(&keyed, key, Outcome::FAILURE);
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            keyed.get(&7).force_open();
            let held = keyed.get(&8);
            let followed = keyed.get(&9).subscribe();
            // The window, the cap of the cooldown and a probe: 10 + 60 + 10 s.
            tokio::time::advance(Duration::from_secs(79)).await;
            drop(keyed.get(&1000));
            assert_eq!(keyed.snapshot().overflowed, 1, "what failed lately matters");

            tokio::time::advance(Duration::from_secs(30 * 86_400)).await;
            for new in 1000..1061 {
                call(&keyed, new, Outcome::SUCCESS);
                assert!(knows(&keyed, new), "{new} finds room");
            }
            assert_eq!(keyed.snapshot().overflowed, 1);
            for kept in [7, 8, 9] {
                assert!(knows(&keyed, kept), "{kept} is forced, held or followed");
            }
            drop((held, followed));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_new_keys_that_fail_leaves_the_known_ones_alone() {
        let keyed =
            KeyedCircuits::<u32>::new(Circuit::builder()).capacity(NonZeroUsize::new(32).unwrap());
        for key in 0..32 {
            call(&keyed, key, Outcome::FAILURE);
        }
        for second in 0..600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            for key in 0..32 {
                // In use, and failing now and then.
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
            "forgotten though it has failures on record"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_in_use_that_failed_long_ago_is_not_pushed_out() {
        let keyed =
            KeyedCircuits::<u32>::new(Circuit::builder()).capacity(NonZeroUsize::new(4).unwrap());
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
    async fn a_key_that_was_handed_back_by_an_operator_and_is_not_called_is_forgotten() {
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
    fn there_are_never_more_keys_than_asked_for() {
        for capacity in [1, 7, 999, 1_000, 1_100] {
            let keyed = keyed(capacity);
            for key in 0..3_000 {
                // Those that find no room soon find the overflow open.
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
    fn many_threads_and_many_keys_agree_on_each_keys_circuit() {
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
    fn a_name_that_panics_keeps_no_room() {
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
    fn who_comes_second_with_a_key_gives_the_room_back() {
        let (first, other) = (
            AtomicBool::new(true),
            Arc::new(OnceLock::<KeyedCircuits<u32>>::new()),
        );
        let of_other = other.clone();
        let keyed = keyed(2).named(move |key| {
            // As another thread would, between the look and the taking in.
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
    fn a_circuit_is_named_after_its_key() {
        let keyed = keyed(2).named(|key| format!("tenant {key}"));
        assert_eq!(keyed.get(&7).name(), Some("tenant 7"));
    }
}
