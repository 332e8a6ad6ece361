//! The bounded store: many buckets in a table that never grows.
//!
//! ```text
//!   hash of the key ──► its two homes, sets of eight slots           slot: (hash, full at)
//!   known in one of them ─────────────────────────────────────────► take from that slot: no lock
//!   else, under the lock of its stripe: ──► a slot that is idle ───► moves in; whoever idled there is forgotten
//!                                      └──► none ──────────────────► the overflow bucket, shared by all such
//! ```
//!
//! A bucket that is full again (`full at` is past) is *idle*: it cannot be told from a new one, so forgetting it changes
//! no decision. Only idle buckets are ever forgotten, and only when a newcomer needs the room; so there is no cleanup
//! task, and known keys keep theirs whatever flood comes.
//!
//! Of a key its 64-bit hash is kept, not the key. Two keys with the same hash would share a bucket: at 100 000 keys the
//! odds that any two do are 1 in 3 000 million, and without the hash's random seed nobody can look for a pair. In return a
//! key costs 16 bytes however long it is, a newcomer allocates nothing, and no user code (`Eq`) runs in here.

use std::{
    array,
    sync::{
        PoisonError,
        atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use crate::{
    Quota, Snapshot,
    gcra::{self, Cell, Decision},
    limiter::Tally,
    sync::{AtomicU64, AtomicUsize, Mutex},
};

#[derive(Debug)]
pub(crate) struct Store {
    sets: Box<[Set]>,
    stripes: [Stripe; STRIPES],
    capacity: usize,
    /// Slots in use, never more than `capacity`.
    keys: AtomicUsize,
    /// Where the next search for an idle key among strangers begins.
    hand: AtomicUsize,
    overflow: Cell,
    keyless: Cell,
    full_told: Told,
    keyless_told: Told,
}

/// A key's hash; never zero, which is the mark of an empty slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

#[repr(align(64))]
#[derive(Debug, Default)]
struct Set([Slot; WAYS]);

/// One key's bucket.
///
/// `full_at` also says who may write the slot. It is [`CLAIMED`] while the slot changes owner, and greater after each
/// change, so a compare-and-swap on it succeeds only if the owner is still who it was when it was read.
#[derive(Debug, Default)]
struct Slot {
    owner: AtomicU64,
    full_at: AtomicU64,
}

/// The right to give an idle slot a new owner. Whoever holds it must give it back by one of its methods.
#[must_use]
struct Claim<'a> {
    slot: &'a Slot,
    was: u64,
}

/// What different threads write is kept apart, by key: counters, and the lock under which newcomers move in.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Stripe {
    tally: Tally,
    evictions: AtomicU64,
    overflowed: AtomicU64,
    keyless: AtomicU64,
    /// Two threads must not give one new key two slots.
    moving_in: Mutex<()>,
}

/// When a warning was given last, so that it is given once a minute at most. Zero: never.
#[derive(Debug, Default)]
struct Told(AtomicU64);

// === impl Store ===

impl Store {
    pub(crate) fn new(capacity: usize) -> Self {
        let slots = capacity.saturating_add(capacity / SPARE);
        Self {
            sets: (0..slots.div_ceil(WAYS).max(2)).map(|_| Set::default()).collect(),
            stripes: array::from_fn(|_| Stripe::default()),
            capacity,
            keys: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
            overflow: Cell::default(),
            keyless: Cell::default(),
            full_told: Told::default(),
            keyless_told: Told::default(),
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes one token from `key`'s bucket.
    pub(crate) fn take(&self, key: Fingerprint, now: u64, quota: Quota) -> Decision {
        let decision = match self.take_known(key, now, quota) {
            Some(decision) => decision,
            None => self.take_new(key, now, quota),
        };
        self.stripe(key).tally.count(decision);
        decision
    }

    /// Takes one token from the bucket of all who have no key.
    pub(crate) fn take_keyless(&self, now: u64, quota: Quota) -> Decision {
        let decision = self.keyless.take(now, quota);
        self.stripes[0].tally.count(decision);
        decision
    }

    pub(crate) fn count_keyless(&self, now: u64) {
        self.stripes[0].keyless.fetch_add(1, Relaxed);
        if self.keyless_told.is_due(now) {
            tracing::warn!("a request has no rate limit key");
        }
    }

    pub(crate) fn keyless_tally(&self) -> &Tally {
        &self.stripes[0].tally
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot { keys: self.keys.load(Relaxed) as u64, ..Snapshot::default() };
        for stripe in &self.stripes {
            stripe.tally.add_to(&mut snapshot);
            snapshot.evictions += stripe.evictions.load(Relaxed);
            snapshot.overflowed += stripe.overflowed.load(Relaxed);
            snapshot.keyless += stripe.keyless.load(Relaxed);
        }
        snapshot
    }

    fn take_known(&self, key: Fingerprint, now: u64, quota: Quota) -> Option<Decision> {
        let first = self.first_home(key);
        match self.sets[first].take(key, now, quota) {
            None => self.sets[self.second_home(key, first)].take(key, now, quota),
            known => known,
        }
    }

    #[cold]
    fn take_new(&self, key: Fingerprint, now: u64, quota: Quota) -> Decision {
        let stripe = self.stripe(key);
        let alone = stripe.moving_in.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have moved the same key in.
        if let Some(decision) = self.take_known(key, now, quota) {
            return decision;
        }
        match self.room(key, now, stripe) {
            Some(claim) => claim.move_in(key, now, quota),
            None => {
                drop(alone);
                self.take_overflow(now, quota, stripe)
            }
        }
    }

    fn take_overflow(&self, now: u64, quota: Quota, stripe: &Stripe) -> Decision {
        stripe.overflowed.fetch_add(1, Relaxed);
        if self.full_told.is_due(now) {
            tracing::warn!(capacity = self.capacity, "rate limiter full of active keys, newcomers share a bucket");
        }
        self.overflow.take(now, quota)
    }

    /// An idle slot in one of the key's homes, the one with fewer active neighbours first.
    fn room(&self, key: Fingerprint, now: u64, stripe: &Stripe) -> Option<Claim<'_>> {
        let mut homes = self.homes(key);
        homes.sort_by_key(|set| set.active(now));
        let claims = || homes.into_iter().flat_map(|set| &set.0).filter_map(|slot| slot.claim(now));
        for claim in claims() {
            let evicts = claim.is_occupied();
            if evicts || self.count_in() {
                stripe.evictions.fetch_add(u64::from(evicts), Relaxed);
                return Some(claim);
            }
            claim.give_back();
        }
        // Nobody idles at home. An empty slot there may be used only after a key elsewhere has gone.
        let claim = claims().next()?;
        if claim.is_occupied() || self.evict_a_stranger(now) {
            stripe.evictions.fetch_add(1, Relaxed);
            return Some(claim);
        }
        claim.give_back();
        None
    }

    /// Counts one more key, unless that would be too many.
    fn count_in(&self) -> bool {
        self.keys.fetch_update(Relaxed, Relaxed, |keys| (keys < self.capacity).then(|| keys + 1)).is_ok()
    }

    /// Forgets one idle key among the next few sets; its place in the count passes on to the caller.
    fn evict_a_stranger(&self, now: u64) -> bool {
        let from = self.hand.fetch_add(SWEEP, Relaxed);
        (from..from.wrapping_add(SWEEP)).flat_map(|at| &self.sets[at % self.sets.len()].0).any(|slot| slot.evict(now))
    }

    fn homes(&self, key: Fingerprint) -> [&Set; 2] {
        let first = self.first_home(key);
        [&self.sets[first], &self.sets[self.second_home(key, first)]]
    }

    fn first_home(&self, key: Fingerprint) -> usize {
        scale(key.0, self.sets.len())
    }

    /// Never the first one, so that a small store is filled to the last slot.
    fn second_home(&self, key: Fingerprint, first: usize) -> usize {
        let second = first + 1 + scale(key.0.wrapping_mul(GOLDEN), self.sets.len() - 1);
        if second < self.sets.len() { second } else { second - self.sets.len() }
    }

    fn stripe(&self, key: Fingerprint) -> &Stripe {
        &self.stripes[key.0 as usize % STRIPES]
    }
}

/// `0..bound`, evenly, by the upper bits of `random` (Lemire's multiplication).
fn scale(random: u64, bound: usize) -> usize {
    ((u128::from(random) * bound as u128) >> 64) as usize
}

// === impl Fingerprint ===

impl From<u64> for Fingerprint {
    fn from(hash: u64) -> Self {
        Self(hash.max(1))
    }
}

// === impl Set ===

impl Set {
    /// Takes one token, if one of the slots is `key`'s. A slot that `key` is just losing is passed over: it may have
    /// another by now.
    fn take(&self, key: Fingerprint, now: u64, quota: Quota) -> Option<Decision> {
        self.0.iter().find_map(|slot| slot.take(key, now, quota))
    }

    fn active(&self, now: u64) -> usize {
        self.0.iter().filter(|slot| slot.full_at.load(Relaxed) > now).count()
    }
}

// === impl Slot ===

impl Slot {
    /// Takes one token, if the slot is `key`'s.
    fn take(&self, key: Fingerprint, now: u64, quota: Quota) -> Option<Decision> {
        if self.owner.load(Relaxed) != key.0 {
            return None;
        }
        let mut full_at = self.full_at.load(Acquire);
        loop {
            // Asked again: only now is it known to be the owner at the time of `full_at`.
            if full_at == CLAIMED || self.owner.load(Acquire) != key.0 {
                return None;
            }
            let next = match gcra::take(full_at, now, quota) {
                Ok(next) => next,
                Err(wait) => return Some(Err(wait)),
            };
            match self.full_at.compare_exchange_weak(full_at, next, AcqRel, Acquire) {
                Ok(_) => return Some(Ok(next - now)),
                Err(seen) => full_at = seen,
            }
        }
    }

    fn claim(&self, now: u64) -> Option<Claim<'_>> {
        let was = self.full_at.load(Acquire);
        if was > now {
            return None;
        }
        self.full_at.compare_exchange(was, CLAIMED, AcqRel, Relaxed).ok()?;
        Some(Claim { slot: self, was })
    }

    /// Forgets an idle key. False if there is none.
    fn evict(&self, now: u64) -> bool {
        if self.owner.load(Relaxed) == 0 {
            return false;
        }
        let Some(claim) = self.claim(now) else { return false };
        let occupied = claim.is_occupied();
        if occupied {
            claim.clear()
        } else {
            claim.give_back()
        }
        occupied
    }
}

// === impl Claim ===

impl Claim<'_> {
    fn is_occupied(&self) -> bool {
        self.slot.owner.load(Relaxed) != 0
    }

    /// Makes `key` the owner and takes its first token.
    fn move_in(self, key: Fingerprint, now: u64, quota: Quota) -> Decision {
        self.slot.owner.store(key.0, Release);
        // `was` is not after `now`: the bucket is full and gives one, and the slot's time grows.
        self.slot.full_at.store(now + quota.interval_nanos(), Release);
        Ok(quota.interval_nanos())
    }

    /// Leaves the slot empty. One more than it was: a thread that read it before must not succeed now.
    fn clear(self) {
        self.slot.owner.store(0, Release);
        self.slot.full_at.store(self.was + 1, Release);
    }

    /// Leaves the slot as it was.
    fn give_back(self) {
        self.slot.full_at.store(self.was, Release);
    }
}

// === impl Told ===

impl Told {
    fn is_due(&self, now: u64) -> bool {
        let last = self.0.load(Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= ONE_MINUTE;
        due && self.0.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok()
    }
}

/// Slots in a set: two cache lines. One under loom, so that everybody wants the same.
const WAYS: usize = if cfg!(all(test, loom)) { 1 } else { 8 };

/// One slot to spare for so many keys: 21 bytes a key. With two homes of eight slots, a store then finds room for all but
/// two or three in 100 000 of the active keys it was made for.
const SPARE: usize = 3;

/// As many as threads are likely to meet; 2 KiB in all.
const STRIPES: usize = 16;

/// Sets looked at for one idle stranger, when the store is at its capacity.
const SWEEP: usize = 4;

/// 2^64 divided by the golden ratio: makes a second number out of the first one's bits.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const ONE_MINUTE: u64 = 60_000_000_000;

/// The slot is changing its owner.
const CLAIMED: u64 = u64::MAX;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use governor::{RateLimiter, clock::FakeRelativeClock};
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn quota(interval: u64, burst: u32) -> Quota {
        let quota = Quota::every(Duration::from_nanos(interval)).unwrap();
        quota.burst(NonZeroU32::new(burst).unwrap())
    }

    /// A good hash of a small number (SplitMix64), the same in each run.
    fn key(number: u64) -> Fingerprint {
        let mixed = number.wrapping_add(1).wrapping_mul(GOLDEN);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Fingerprint::from(mixed ^ (mixed >> 31))
    }

    #[test]
    fn each_key_has_a_bucket_of_its_own() {
        let (store, quota) = (Store::new(100), quota(10, 2));
        for number in 0..100 {
            let decisions = [(); 3].map(|()| store.take(key(number), 5, quota));
            assert_eq!(decisions, [Ok(10), Ok(20), Err(10)], "{number}");
        }
        let snapshot = store.snapshot();
        assert_eq!((snapshot.allowed, snapshot.refused, snapshot.keys), (200, 100, 100));
        assert_eq!((snapshot.evictions, snapshot.overflowed), (0, 0));
    }

    #[test]
    fn a_store_finds_room_for_nearly_all_the_keys_it_was_made_for() {
        for (capacity, homeless) in [(1, 0), (8, 0), (12, 0), (100, 0), (1_000, 1), (100_000, 10)] {
            let store = Store::new(capacity);
            for number in 0..capacity as u64 {
                let _ = store.take(key(number), 0, quota(SECOND, 1));
            }
            let snapshot = store.snapshot();
            assert!(snapshot.overflowed <= homeless, "{capacity}: {snapshot:?}");
            assert_eq!(snapshot.keys + snapshot.overflowed, capacity as u64);
            let slots = store.sets.len() * WAYS;
            assert!(capacity < 100 || slots * size_of::<Slot>() < capacity * 24, "{slots} slots for {capacity}");
        }
    }

    #[test]
    fn a_flood_of_keys_takes_no_memory_and_nobodys_bucket() {
        let (store, quota) = (Store::new(1_000), quota(SECOND, 2));
        let known: Vec<_> = (0..500).map(key).collect();
        let mut now = 0;
        for &key in &known {
            assert!(store.take(key, now, quota).is_ok());
            assert!(store.take(key, now, quota).is_ok());
        }
        for stranger in 0..300_000 {
            now += 1;
            let _ = store.take(key(1_000_000 + stranger), now, quota);
            assert!(store.keys.load(Relaxed) <= 1_000);
        }
        assert!(store.snapshot().overflowed > 290_000);
        for &key in &known {
            assert_eq!(store.take(key, now, quota), Err(SECOND - now));
            assert!(store.take(key, SECOND, quota).is_ok(), "and gets what is due, though the store is full");
        }
    }

    #[test]
    fn newcomers_share_one_bucket_when_all_keys_are_active() {
        let (store, quota) = (Store::new(8), quota(SECOND, 2));
        for number in 0..8 {
            assert!(store.take(key(number), 0, quota).is_ok());
        }
        assert_eq!(store.take(key(8), 0, quota), Ok(SECOND));
        assert_eq!(store.take(key(9), 0, quota), Ok(2 * SECOND));
        assert_eq!(store.take(key(10), 0, quota), Err(SECOND));
        assert_eq!(store.take(key(0), 0, quota), Ok(2 * SECOND), "a known key has its own");
        let snapshot = store.snapshot();
        assert_eq!((snapshot.keys, snapshot.overflowed, snapshot.evictions), (8, 3, 0));
    }

    #[test]
    fn the_idle_make_room_and_the_active_stay() {
        let (store, quota) = (Store::new(1_000), quota(SECOND, 1));
        for number in 0..1_000 {
            let _ = store.take(key(number), number, quota);
        }
        let half_are_idle = SECOND + 500;
        for number in 2_000..2_400 {
            assert!(store.take(key(number), half_are_idle, quota).is_ok());
        }
        for number in 501..1_000 {
            assert!(store.take(key(number), half_are_idle, quota).is_err(), "{number} was forgotten");
        }
        let snapshot = store.snapshot();
        assert_eq!((snapshot.evictions, snapshot.overflowed), (400, 0));
        assert!(snapshot.keys <= 1_000);
    }

    #[test]
    fn a_stranger_who_idles_makes_room_where_the_homes_are_empty() {
        let (store, quota) = (Store { capacity: 1, ..Store::new(16) }, quota(SECOND, 1));
        let lives_in = |key, set: &Set| store.homes(key).iter().any(|home| std::ptr::eq(*home, set));
        assert_eq!(store.take(key(0), 0, quota), Ok(SECOND));
        let set = store.sets.iter().find(|set| set.active(0) == 1).unwrap();
        let newcomer = (1..).map(key).find(|&key| !lives_in(key, set)).unwrap();
        assert_eq!(store.take(newcomer, 0, quota), Ok(SECOND));
        assert_eq!(store.snapshot().overflowed, 1, "one key is all it may hold, and that one is active");
        assert_eq!(store.take(newcomer, SECOND, quota), Ok(SECOND));
        assert_eq!(store.take(newcomer, SECOND, quota), Err(SECOND));
        let snapshot = store.snapshot();
        assert_eq!((snapshot.keys, snapshot.evictions, snapshot.overflowed), (1, 1, 1));
        assert!(store.take(key(0), 2 * SECOND - 1, quota).is_ok());
        assert_eq!(store.snapshot().overflowed, 2, "the first one was forgotten, and is a newcomer again");
    }

    #[test]
    fn threads_that_bring_the_same_new_key_agree_on_its_slot() {
        const KEYS: u64 = 5_000;
        let (store, quota) = (Store::new(2 * KEYS as usize), quota(SECOND, 1));
        let at = [const { AtomicU64::new(0) }; 2];
        let bring_all = |me: usize| {
            let bring = |number| {
                // In step with the other thread, so that both find the key missing.
                at[me].store(number, Relaxed);
                for spins in 0.. {
                    match at[1 - me].load(Relaxed) < number {
                        true if spins % 1_000 == 999 => std::thread::yield_now(),
                        true => std::hint::spin_loop(),
                        false => break,
                    }
                }
                store.take(key(number), 0, quota).is_ok()
            };
            (1..=KEYS).filter(|&number| bring(number)).count() as u64
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| bring_all(1));
            bring_all(0) + other.join().unwrap()
        });
        assert_eq!((both, store.snapshot().allowed, store.snapshot().keys), (KEYS, KEYS, KEYS));
    }

    #[test]
    fn an_active_key_keeps_its_bucket_while_slots_change_owners_around_it() {
        let (store, once_a_second, often) = (Store::new(32), quota(SECOND, 1), quota(1, 1));
        std::thread::scope(|scope| {
            // Each stranger is idle again at the next turn, so every turn evicts.
            scope.spawn(|| (0..200_000).all(|turn| store.take(key(100 + turn), 10 + turn, often).is_ok()));
            let admitted = (0..200_000).filter(|turn| store.take(key(0), 10 + turn, once_a_second).is_ok()).count();
            assert!(admitted <= 1, "{admitted} in less than a second");
        });
        assert!(store.snapshot().evictions > 100_000);
        assert!(store.snapshot().keys <= 32);
    }

    proptest! {
        #[test]
        fn governor_decides_the_same_for_many_keys(
            interval in 1_u64..1_000,
            burst in 1_u32..5,
            capacity in 1_usize..20,
            requests in prop::collection::vec((0_u64..40, prop_oneof![Just(0), 0_u64..50, 0_u64..2_000]), 1..300),
        ) {
            let (store, ours) = (Store::new(capacity), quota(interval, burst));
            let theirs = governor::Quota::with_period(ours.interval()).unwrap().allow_burst(ours.burst_size());
            let clock = FakeRelativeClock::default();
            let oracle = RateLimiter::hashmap_with_clock(theirs, clock.clone());
            let mut now = 0;
            for (number, step) in requests {
                now += step;
                clock.advance(Duration::from_nanos(step));
                let overflowed = store.snapshot().overflowed;
                let decision = store.take(key(number), now, ours).is_ok();
                // Who found no room is in one bucket, here and there.
                let number = if store.snapshot().overflowed > overflowed { u64::MAX } else { number };
                prop_assert_eq!(decision, oracle.check_key(&number).is_ok());
                prop_assert!(store.keys.load(Relaxed) <= capacity);
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::{num::NonZeroU32, time::Duration};

    use loom::{model::Builder, sync::Arc, thread};

    use super::*;

    const FIVE: u64 = 5;

    fn quota(burst: u32) -> Quota {
        Quota::every(Duration::from_nanos(FIVE)).unwrap().burst(NonZeroU32::new(burst).unwrap())
    }

    fn check(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    #[test]
    fn two_threads_that_bring_the_same_new_key_get_one_burst() {
        check(|| {
            let store = Arc::new(Store::new(1));
            let other = thread::spawn({
                let store = store.clone();
                move || store.take(Fingerprint(7), 10, quota(1)).is_ok()
            });
            let mine = store.take(Fingerprint(7), 10, quota(1)).is_ok();
            assert!(mine != other.join().unwrap());
        });
    }

    #[test]
    fn a_known_key_takes_from_its_own_bucket_while_a_newcomer_wants_the_slot() {
        check(|| {
            let store = Arc::new(Store::new(1));
            assert_eq!(store.take(Fingerprint(7), 10, quota(2)), Ok(FIVE));
            // It idles by now. Either it is forgotten and comes as new, or it stays and the newcomer overflows.
            let known = thread::spawn({
                let store = store.clone();
                move || store.take(Fingerprint(7), 20, quota(2))
            });
            let newcomer = [(); 2].map(|()| store.take(Fingerprint(9), 20, quota(2)));
            assert_eq!(newcomer, [Ok(FIVE), Ok(2 * FIVE)]);
            assert_eq!(known.join().unwrap(), Ok(FIVE));
            assert_eq!(store.keys.load(Relaxed), 1);
        });
    }
}
