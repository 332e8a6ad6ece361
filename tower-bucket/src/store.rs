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
//! Of a key its 64-bit hash is kept, not the key (`hash.rs` says which). Two keys with the same hash would share a
//! bucket: at 100 000 keys the odds that any two do are 1 in 3 000 million, and without the hash's random seed nobody can
//! look for a pair. In return a key costs 16 bytes however long it is, a newcomer allocates nothing, and no user code
//! (`Eq`) runs in here.

use std::{
    array,
    sync::{
        PoisonError,
        atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use crate::{
    Snapshot,
    gcra::{AtomicTat, Charge, Refund},
    hash::Fingerprint,
    snapshot::{Counters, Decision},
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
    overflow: AtomicTat,
    keyless: AtomicTat,
    full_logged: LogLimit,
    keyless_logged: LogLimit,
}

/// Whose bucket a request draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BucketKey {
    Key(Fingerprint),
    /// All who have no key.
    Keyless,
}

/// A bucket that was drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BucketId {
    Key(Fingerprint),
    Keyless,
    /// That of the keys that found no room.
    Overflow,
}

/// Tokens were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Debit {
    /// How far the bucket is now in debt, in nanoseconds.
    pub(crate) debt: u64,
    /// From the overflow bucket, because a new key found no room.
    overflowed: bool,
}

#[repr(align(64))]
#[derive(Debug, Default)]
struct Set([Slot; WAYS]);

/// One key's bucket.
///
/// `tat` also says who may write the slot. It is [`CLAIMED`] while the slot changes owner, and greater ever after: an
/// owner moves in when the slot is idle and brings it beyond that moment, and what it gives back never leads to before it. So
/// a compare-and-swap on it succeeds only if the owner is still who it was when it was read.
#[derive(Debug, Default)]
struct Slot {
    owner: AtomicU64,
    tat: AtomicU64,
}

/// A slot that may be given a new owner: nobody's, or that of a key whose bucket is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Idle {
    Empty,
    Occupied,
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
    counters: Counters,
    evictions: AtomicU64,
    overflowed: AtomicU64,
    keyless: AtomicU64,
    /// Two threads must not give one new key two slots.
    inserting: Mutex<()>,
}

/// When a warning was logged last, so that it is logged once a minute at most. Zero: never.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(AtomicU64);

// === impl Store ===

impl Store {
    pub(crate) fn new(capacity: usize) -> Self {
        let slots = capacity.saturating_add(capacity / SPARE);
        Self {
            sets: (0..slots.div_ceil(WAYS).max(2))
                .map(|_| Set::default())
                .collect(),
            stripes: array::from_fn(|_| Stripe::default()),
            capacity,
            keys: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
            overflow: AtomicTat::default(),
            keyless: AtomicTat::default(),
            full_logged: LogLimit::default(),
            keyless_logged: LogLimit::default(),
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes from the drawer's bucket, or tells how long it must wait.
    #[inline]
    pub(crate) fn take(&self, bucket_key: BucketKey, charge: &Charge) -> Result<Debit, u64> {
        match bucket_key {
            BucketKey::Key(key) => self.take_key(key, charge),
            BucketKey::Keyless => self.keyless.take(charge).map(Debit::from),
        }
    }

    /// What [`take`](Self::take) would answer. A key that is not known is taken for one that will find room.
    pub(crate) fn peek(&self, bucket_key: BucketKey, charge: &Charge) -> Result<u64, u64> {
        match bucket_key {
            BucketKey::Key(key) => self.peek_key(key, charge),
            BucketKey::Keyless => self.keyless.peek(charge),
        }
    }

    /// How far in debt the drawer's bucket is.
    pub(crate) fn debt(&self, bucket_key: BucketKey, now: u64) -> u64 {
        match bucket_key {
            BucketKey::Keyless => self.keyless.debt(now),
            BucketKey::Key(key) => {
                let tat = self
                    .slots(key)
                    .find_map(|slot| slot.tat(key))
                    .unwrap_or_default();
                tat.saturating_sub(now)
            }
        }
    }

    /// Puts tokens back, at `now`.
    pub(crate) fn refund(&self, bucket: BucketId, refund: Refund, now: u64) {
        match bucket {
            BucketId::Keyless => self.keyless.refund(refund),
            BucketId::Overflow => self.overflow.refund(refund),
            BucketId::Key(key) => {
                let _ = self.slots(key).any(|slot| slot.refund(key, refund, now));
            }
        }
    }

    /// Makes the drawer's bucket full no later than `tat`, which is ahead.
    pub(crate) fn lower(&self, bucket_key: BucketKey, tat: u64) {
        match bucket_key {
            BucketKey::Keyless => self.keyless.lower(tat),
            BucketKey::Key(key) => {
                if !self.slots(key).any(|slot| slot.lower(key, tat)) {
                    self.overflow.lower(tat);
                }
            }
        }
    }

    /// Lets nothing more like `ask` pass for so many nanoseconds from then, if the bucket_key has a bucket of its own.
    pub(crate) fn hold(&self, bucket_key: BucketKey, charge: &Charge, nanos: u64) {
        let tat = charge.refused_for(nanos);
        match bucket_key {
            BucketKey::Keyless => self.keyless.raise(tat),
            BucketKey::Key(key) => {
                let _ = self.slots(key).any(|slot| slot.raise(key, tat));
            }
        }
    }

    #[inline]
    pub(crate) fn count(&self, bucket_key: BucketKey, decision: Decision) {
        match bucket_key {
            BucketKey::Key(key) => self.stripe(key).counters.count(decision),
            BucketKey::Keyless => self.keyless_counters().count(decision),
        }
    }

    /// Notes that a request has no key.
    #[cold]
    pub(crate) fn note_keyless(&self, now: u64) {
        self.stripes[0].keyless.fetch_add(1, Relaxed);
        if self.keyless_logged.is_due(now) {
            tracing::warn!("a request has no rate limit key");
        }
    }

    pub(crate) fn keyless_counters(&self) -> &Counters {
        &self.stripes[0].counters
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            keys: self.keys.load(Relaxed) as u64,
            ..Snapshot::default()
        };
        for stripe in &self.stripes {
            stripe.counters.add_to(&mut snapshot);
            snapshot.evictions += stripe.evictions.load(Relaxed);
            snapshot.overflowed += stripe.overflowed.load(Relaxed);
            snapshot.keyless += stripe.keyless.load(Relaxed);
        }
        snapshot
    }

    #[inline]
    fn take_key(&self, key: Fingerprint, charge: &Charge) -> Result<Debit, u64> {
        match self.take_known(key, charge) {
            Some(decision) => decision,
            None => self.take_new(key, charge),
        }
    }

    #[inline]
    fn take_known(&self, key: Fingerprint, charge: &Charge) -> Option<Result<Debit, u64>> {
        let first = self.first_set(key);
        match self.sets[first].take(key, charge) {
            None => self.sets[self.second_set(key, first)].take(key, charge),
            known => known,
        }
    }

    #[cold]
    fn take_new(&self, key: Fingerprint, charge: &Charge) -> Result<Debit, u64> {
        let stripe = self.stripe(key);
        let alone = stripe
            .inserting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Another thread may have moved the same key in.
        if let Some(decision) = self.take_known(key, charge) {
            return decision;
        }
        match self.find_slot(key, charge.now, stripe) {
            Some(claim) => Ok(claim.insert(key, charge)),
            None => {
                drop(alone);
                self.take_overflow(charge, stripe)
            }
        }
    }

    fn take_overflow(&self, charge: &Charge, stripe: &Stripe) -> Result<Debit, u64> {
        stripe.overflowed.fetch_add(1, Relaxed);
        if self.full_logged.is_due(charge.now) {
            tracing::warn!(
                capacity = self.capacity,
                "rate limiter full of active keys, newcomers share a bucket"
            );
        }
        self.overflow.take(charge).map(|debt| Debit {
            debt,
            overflowed: true,
        })
    }

    fn peek_key(&self, key: Fingerprint, charge: &Charge) -> Result<u64, u64> {
        let tat = self
            .slots(key)
            .find_map(|slot| slot.tat(key))
            .unwrap_or_default();
        charge.try_advance(tat).map(|next| next - charge.now)
    }

    /// A slot in one of the key's homes: an empty one, else that of a key that idles. So nobody who idles is forgotten while
    /// there is room, and need not be found anew.
    fn find_slot(&self, key: Fingerprint, now: u64, stripe: &Stripe) -> Option<Claim<'_>> {
        let mut sets = self.candidate_sets(key);
        sets.sort_by_key(|set| (set.active(now), set.occupied()));
        if let Some(claim) = sets.into_iter().find_map(|set| set.claim(now, Idle::Empty)) {
            if self.reserve_key() {
                return Some(claim);
            }
            claim.give_back();
        }
        let claim = sets.into_iter().find_map(|set| self.replace(set, now))?;
        stripe.evictions.fetch_add(1, Relaxed);
        Some(claim)
    }

    /// A slot of somebody who idles there; or an empty one, for which a key elsewhere must go, because that would be one too
    /// many.
    fn replace<'a>(&self, set: &'a Set, now: u64) -> Option<Claim<'a>> {
        let claim = set
            .claim(now, Idle::Occupied)
            .or_else(|| set.claim(now, Idle::Empty))?;
        if claim.is_occupied() || self.evict_elsewhere(now) {
            return Some(claim);
        }
        claim.give_back();
        None
    }

    /// Counts one more key, unless that would be too many.
    fn reserve_key(&self) -> bool {
        self.keys
            .fetch_update(Relaxed, Relaxed, |keys| {
                (keys < self.capacity).then(|| keys + 1)
            })
            .is_ok()
    }

    /// Forgets one idle key among the next few sets; its place in the count passes on to the caller.
    fn evict_elsewhere(&self, now: u64) -> bool {
        let from = self.hand.fetch_add(SWEEP, Relaxed);
        (from..from.wrapping_add(SWEEP))
            .flat_map(|at| &self.sets[at % self.sets.len()].0)
            .any(|slot| slot.evict(now))
    }

    fn candidate_sets(&self, key: Fingerprint) -> [&Set; 2] {
        let first = self.first_set(key);
        [&self.sets[first], &self.sets[self.second_set(key, first)]]
    }

    fn slots(&self, key: Fingerprint) -> impl Iterator<Item = &Slot> {
        self.candidate_sets(key).into_iter().flat_map(|set| &set.0)
    }

    fn first_set(&self, key: Fingerprint) -> usize {
        scale(key.0, self.sets.len())
    }

    /// Never the first one, so that a small store is filled to the last slot.
    fn second_set(&self, key: Fingerprint, first: usize) -> usize {
        let second = first + 1 + scale(key.0.wrapping_mul(GOLDEN), self.sets.len() - 1);
        if second < self.sets.len() {
            second
        } else {
            second - self.sets.len()
        }
    }

    fn stripe(&self, key: Fingerprint) -> &Stripe {
        &self.stripes[key.0 as usize % STRIPES]
    }
}

/// `0..bound`, evenly, by the upper bits of `random` (Lemire's multiplication).
fn scale(random: u64, bound: usize) -> usize {
    ((u128::from(random) * bound as u128) >> 64) as usize
}

// === impl Debit ===

impl Debit {
    /// Where it came from, if this bucket_key was asked.
    pub(crate) const fn bucket(self, bucket_key: BucketKey) -> BucketId {
        match bucket_key {
            BucketKey::Keyless => BucketId::Keyless,
            BucketKey::Key(_) if self.overflowed => BucketId::Overflow,
            BucketKey::Key(key) => BucketId::Key(key),
        }
    }
}

impl From<u64> for Debit {
    #[inline]
    fn from(debt: u64) -> Self {
        Self {
            debt,
            overflowed: false,
        }
    }
}

// === impl Set ===

impl Set {
    /// Takes, if one of the slots is `key`'s. A slot that `key` is just losing is passed over: it may have another by
    /// now.
    #[inline]
    fn take(&self, key: Fingerprint, charge: &Charge) -> Option<Result<Debit, u64>> {
        self.0.iter().find_map(|slot| slot.take(key, charge))
    }

    fn claim(&self, now: u64, what: Idle) -> Option<Claim<'_>> {
        self.0.iter().find_map(|slot| slot.claim(now, what))
    }

    fn active(&self, now: u64) -> usize {
        self.0
            .iter()
            .filter(|slot| slot.tat.load(Relaxed) > now)
            .count()
    }

    fn occupied(&self) -> usize {
        self.0
            .iter()
            .filter(|slot| slot.owner.load(Relaxed) != 0)
            .count()
    }
}

// === impl Slot ===

impl Slot {
    /// Takes, if the slot is `key`'s.
    #[inline]
    fn take(&self, key: Fingerprint, charge: &Charge) -> Option<Result<Debit, u64>> {
        if self.owner.load(Relaxed) != key.0 {
            return None;
        }
        let mut tat = self.tat.load(Acquire);
        loop {
            // Asked again: only now is it known to be the owner at the time of `tat`.
            if tat == CLAIMED || self.owner.load(Acquire) != key.0 {
                return None;
            }
            let next = match charge.try_advance(tat) {
                Ok(next) => next,
                Err(wait) => return Some(Err(wait)),
            };
            match self.tat.compare_exchange_weak(tat, next, AcqRel, Acquire) {
                Ok(_) => return Some(Ok(Debit::from(next - charge.now))),
                Err(seen) => tat = seen,
            }
        }
    }

    /// When it is full again, if it is `key`'s.
    fn tat(&self, key: Fingerprint) -> Option<u64> {
        let tat = self.tat.load(Acquire);
        (tat != CLAIMED && self.owner.load(Acquire) == key.0).then_some(tat)
    }

    /// Puts tokens back, if the slot is `key`'s. False if it is not.
    fn refund(&self, key: Fingerprint, refund: Refund, now: u64) -> bool {
        // Where nothing is left, a nanosecond stays, so that the time is greater than when this owner moved in.
        let refund = refund.not_before(now + 1);
        self.change(key, |tat| refund.apply(tat).unwrap_or(tat))
    }

    /// Makes it full no sooner than `tat`, if the slot is `key`'s. False if it is not.
    fn raise(&self, key: Fingerprint, tat: u64) -> bool {
        self.change(key, |seen| seen.max(tat))
    }

    /// Makes it full no later than `tat`, if the slot is `key`'s. False if it is not. It must lie ahead, or the time would
    /// not be greater than when this owner moved in.
    fn lower(&self, key: Fingerprint, tat: u64) -> bool {
        self.change(key, |seen| seen.min(tat))
    }

    fn change(&self, key: Fingerprint, to: impl Fn(u64) -> u64) -> bool {
        let mut seen = self.tat.load(Acquire);
        loop {
            if seen == CLAIMED || self.owner.load(Acquire) != key.0 {
                return false;
            }
            match self
                .tat
                .compare_exchange_weak(seen, to(seen), AcqRel, Acquire)
            {
                Ok(_) => return true,
                Err(other) => seen = other,
            }
        }
    }

    fn claim(&self, now: u64, what: Idle) -> Option<Claim<'_>> {
        // In this order, so that if the time is still the same at the claim, it was the owner's of whom we asked.
        let was = self.tat.load(Acquire);
        if was > now || self.kind() != what {
            return None;
        }
        self.tat
            .compare_exchange(was, CLAIMED, AcqRel, Relaxed)
            .ok()
            .map(|_| Claim { slot: self, was })
    }

    fn kind(&self) -> Idle {
        if self.owner.load(Relaxed) == 0 {
            Idle::Empty
        } else {
            Idle::Occupied
        }
    }

    /// Forgets an idle key. False if there is none.
    fn evict(&self, now: u64) -> bool {
        self.claim(now, Idle::Occupied).map(Claim::clear).is_some()
    }
}

// === impl Claim ===

impl Claim<'_> {
    fn is_occupied(&self) -> bool {
        self.slot.kind() == Idle::Occupied
    }

    /// Makes `key` the owner and takes what is asked.
    fn insert(self, key: Fingerprint, charge: &Charge) -> Debit {
        self.slot.owner.store(key.0, Release);
        // `was` is not after now, and no ask is for more than a full bucket: it gives, and the slot's time grows.
        let debt = charge.cost();
        self.slot.tat.store(charge.now + debt, Release);
        Debit::from(debt)
    }

    /// Leaves the slot empty. One more than it was: a thread that read it before must not succeed now.
    fn clear(self) {
        self.slot.owner.store(0, Release);
        self.slot.tat.store(self.was + 1, Release);
    }

    /// Leaves the slot as it was.
    fn give_back(self) {
        self.slot.tat.store(self.was, Release);
    }
}

// === impl LogLimit ===

impl LogLimit {
    pub(crate) fn is_due(&self, now: u64) -> bool {
        let last = self.0.load(Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= ONE_MINUTE;
        due && self
            .0
            .compare_exchange(last, now.max(1), Relaxed, Relaxed)
            .is_ok()
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
    use std::num::NonZeroU32;

    use std::{sync::atomic::AtomicBool, time::Duration};

    use governor::{RateLimiter, clock::FakeRelativeClock};
    use proptest::prelude::*;

    use super::*;
    use crate::Quota;

    const SECOND: u64 = 1_000_000_000;

    fn quota(interval: u64, burst: u32) -> Quota {
        let quota = Quota::every(Duration::from_nanos(interval)).unwrap();
        quota.burst(burst)
    }

    /// One token, counted as the limiter does it.
    fn take(store: &Store, key: Fingerprint, now: u64, quota: Quota) -> Result<u64, u64> {
        let decision = store
            .take(BucketKey::Key(key), &Charge::one(now, quota))
            .map(|debit| debit.debt);
        store.count(
            BucketKey::Key(key),
            if decision.is_ok() {
                Decision::Allowed
            } else {
                Decision::Refused
            },
        );
        decision
    }

    /// For one that took at once.
    fn give_back(store: &Store, bucket_key: BucketKey, charge: &Charge, debit: Debit, now: u64) {
        let refund = Refund::of(charge.ahead(charge.now, now));
        store.refund(debit.bucket(bucket_key), refund, now);
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
            let decisions = [(); 3].map(|()| take(&store, key(number), 5, quota));
            assert_eq!(decisions, [Ok(10), Ok(20), Err(10)], "{number}");
        }
        let snapshot = store.snapshot();
        assert_eq!(
            (snapshot.allowed, snapshot.refused, snapshot.keys),
            (200, 100, 100)
        );
        assert_eq!((snapshot.evictions, snapshot.overflowed), (0, 0));
    }

    #[test]
    fn a_store_finds_room_for_nearly_all_the_keys_it_was_made_for() {
        for (capacity, homeless) in [(1, 0), (8, 0), (12, 0), (100, 0), (1_000, 1), (100_000, 10)] {
            let store = Store::new(capacity);
            for number in 0..capacity as u64 {
                let _ = take(&store, key(number), 0, quota(SECOND, 1));
            }
            let snapshot = store.snapshot();
            assert!(snapshot.overflowed <= homeless, "{capacity}: {snapshot:?}");
            assert_eq!(snapshot.keys + snapshot.overflowed, capacity as u64);
            let slots = store.sets.len() * WAYS;
            assert!(
                capacity < 100 || slots * size_of::<Slot>() < capacity * 24,
                "{slots} slots for {capacity}"
            );
        }
    }

    #[test]
    fn a_flood_of_keys_takes_no_memory_and_nobodys_bucket() {
        let (store, quota) = (Store::new(1_000), quota(SECOND, 2));
        let known: Vec<_> = (0..500).map(key).collect();
        let mut now = 0;
        for &key in &known {
            assert!(take(&store, key, now, quota).is_ok());
            assert!(take(&store, key, now, quota).is_ok());
        }
        for stranger in 0..300_000 {
            now += 1;
            let _ = take(&store, key(1_000_000 + stranger), now, quota);
            assert!(store.keys.load(Relaxed) <= 1_000);
        }
        assert!(store.snapshot().overflowed > 290_000);
        for &key in &known {
            assert_eq!(take(&store, key, now, quota), Err(SECOND - now));
            assert!(
                take(&store, key, SECOND, quota).is_ok(),
                "and gets what is due, though the store is full"
            );
        }
    }

    /// Half of the new keys are IPv4 addresses and half are IPv6 networks; the store has places for one in a hundred. Without
    /// optimization ten million of them take half a minute, so there are fewer then; `.ci/long flood` is the whole of it.
    #[test]
    #[ignore = "takes some seconds"]
    fn a_flood_of_new_keys_leaves_memory_bounded_and_known_keys_unchanged() {
        use crate::{ClientIp, hash::Seed};

        const FLOOD: u32 = if cfg!(debug_assertions) {
            1_000_000
        } else {
            10_000_000
        };

        let (store, quota, seed) = (Store::new(100_000), quota(60 * SECOND, 2), Seed::random());
        let memory = store.sets.len() * size_of::<Set>() + size_of::<Store>();
        assert!(memory < 22 * 100_000, "{memory} bytes");
        let address = |number: u32| match number % 2 {
            0 => ClientIp::from(std::net::IpAddr::from(
                (0x0A00_0000 + number / 2).to_be_bytes(),
            )),
            _ => {
                let net = (0x2001_0DB8 << 96) | (u128::from(number / 2) << 64);
                ClientIp::from(std::net::IpAddr::from(net.to_be_bytes()))
            }
        };
        let known: Vec<_> = (0..50_000)
            .map(|number| seed.fingerprint(&address(number)))
            .collect();
        for &key in &known {
            assert!(take(&store, key, 0, quota).is_ok() && take(&store, key, 0, quota).is_ok());
        }
        let counted = allocation_counter::measure(|| {
            for number in 0..FLOOD {
                let _ = take(
                    &store,
                    seed.fingerprint(&address(50_000 + number)),
                    number.into(),
                    quota,
                );
            }
        });
        assert_eq!(
            (counted.count_total, store.keys.load(Relaxed)),
            (0, 100_000)
        );
        for &key in &known {
            assert!(
                take(&store, key, FLOOD.into(), quota).is_err(),
                "a known client got more because of the flood"
            );
        }
        for &key in &known {
            assert!(
                take(&store, key, 60 * SECOND, quota).is_ok(),
                "a known client got less because of the flood"
            );
        }
        let snapshot = store.snapshot();
        assert_eq!((snapshot.keys, snapshot.evictions), (100_000, 0));
        assert!(
            snapshot.overflowed > u64::from(FLOOD - 100_000),
            "{snapshot:?}"
        );
    }

    #[test]
    fn what_is_given_back_goes_to_the_bucket_it_came_from() {
        let (store, quota) = (Store::new(8), quota(SECOND, 1));
        let charge = Charge::one(5, quota);
        for number in 0..8 {
            assert!(take(&store, key(number), 5, quota).is_ok());
        }
        for bucket_key in [BucketKey::Key(key(100)), BucketKey::Keyless] {
            let debit = store.take(bucket_key, &charge).unwrap();
            give_back(&store, bucket_key, &charge, debit, 5);
            assert_eq!(store.debt(bucket_key, 5), 0);
            assert!(
                store.take(bucket_key, &charge).is_ok() && store.take(bucket_key, &charge).is_err()
            );
        }
        assert_eq!(
            take(&store, key(3), 5, quota),
            Err(SECOND),
            "a neighbour's is not touched"
        );
        give_back(
            &store,
            BucketKey::Key(key(3)),
            &charge,
            Debit::from(SECOND),
            5,
        );
        assert_eq!(
            store.debt(BucketKey::Key(key(3)), 5),
            1,
            "all but the nanosecond that marks the slot"
        );
        give_back(
            &store,
            BucketKey::Key(key(3)),
            &charge,
            Debit::from(SECOND),
            6 + SECOND,
        );
        assert_eq!(take(&store, key(3), 6 + SECOND, quota), Ok(SECOND));
    }

    #[test]
    fn newcomers_share_one_bucket_when_all_keys_are_active() {
        let (store, quota) = (Store::new(8), quota(SECOND, 2));
        for number in 0..8 {
            assert!(take(&store, key(number), 0, quota).is_ok());
        }
        assert_eq!(take(&store, key(8), 0, quota), Ok(SECOND));
        assert_eq!(take(&store, key(9), 0, quota), Ok(2 * SECOND));
        assert_eq!(take(&store, key(10), 0, quota), Err(SECOND));
        assert_eq!(
            take(&store, key(0), 0, quota),
            Ok(2 * SECOND),
            "a known key has its own"
        );
        let snapshot = store.snapshot();
        assert_eq!(
            (snapshot.keys, snapshot.overflowed, snapshot.evictions),
            (8, 3, 0)
        );
    }

    #[test]
    fn the_idle_make_room_and_the_active_stay() {
        let (store, quota) = (Store::new(1_000), quota(SECOND, 1));
        for number in 0..1_000 {
            let _ = take(&store, key(number), number, quota);
        }
        let half_are_idle = SECOND + 500;
        for number in 2_000..2_400 {
            assert!(take(&store, key(number), half_are_idle, quota).is_ok());
        }
        for number in 501..1_000 {
            assert!(
                take(&store, key(number), half_are_idle, quota).is_err(),
                "{number} was forgotten"
            );
        }
        let snapshot = store.snapshot();
        assert_eq!((snapshot.evictions, snapshot.overflowed), (400, 0));
        assert!(snapshot.keys <= 1_000);
    }

    #[test]
    fn who_idles_is_not_forgotten_while_there_is_room() {
        let (store, quota) = (Store::new(10_000), quota(1, 1));
        for round in 0..3 {
            for number in 0..9_000 {
                assert!(
                    take(
                        &store,
                        key(number),
                        10 * (1 + number + 10_000 * round),
                        quota
                    )
                    .is_ok()
                );
            }
        }
        let snapshot = store.snapshot();
        assert_eq!(
            (snapshot.keys, snapshot.evictions, snapshot.overflowed),
            (9_000, 0, 0)
        );
    }

    /// A slot seems empty. Then a key moves in, and idles at once by the clock of the one who looked. If the slot were claimed all
    /// the same, and given back, the key would not be found for a moment, and would move in elsewhere as well. Loom does not
    /// try that order.
    #[test]
    fn a_slot_is_claimed_for_what_it_is_or_left_alone() {
        let (slot, quota, is_over) = (Slot::default(), quota(1, 1), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    if let Some(claim) = slot.claim(CLAIMED - 1, Idle::Empty) {
                        assert!(!claim.is_occupied());
                        claim.give_back();
                    }
                }
            });
            let lost = (1..3_000_000).map(|turn| 10 * turn).filter(|&now| {
                let Some(claim) = slot.claim(now, Idle::Empty) else {
                    return false;
                };
                let (key, charge) = (key(now), Charge::one(now, quota));
                claim.insert(key, &charge);
                let is_lost = slot.take(key, &charge) != Some(Err(1));
                is_lost || !slot.evict(now + 1)
            });
            let lost = lost.count();
            is_over.store(true, Relaxed);
            assert_eq!(lost, 0);
        });
    }

    #[test]
    fn a_stranger_who_idles_makes_room_where_the_homes_are_empty() {
        let (store, quota) = (
            Store {
                capacity: 1,
                ..Store::new(16)
            },
            quota(SECOND, 1),
        );
        let lives_in = |key, set: &Set| {
            store
                .candidate_sets(key)
                .iter()
                .any(|candidate| std::ptr::eq(*candidate, set))
        };
        assert_eq!(take(&store, key(0), 0, quota), Ok(SECOND));
        let set = store.sets.iter().find(|set| set.occupied() == 1).unwrap();
        let newcomer = (1..).map(key).find(|&key| !lives_in(key, set)).unwrap();
        assert_eq!(take(&store, newcomer, 0, quota), Ok(SECOND));
        assert_eq!(
            store.snapshot().overflowed,
            1,
            "one key is all it may hold, and that one is active"
        );
        assert_eq!(take(&store, newcomer, SECOND, quota), Ok(SECOND));
        assert_eq!(take(&store, newcomer, SECOND, quota), Err(SECOND));
        let snapshot = store.snapshot();
        assert_eq!(
            (snapshot.keys, snapshot.evictions, snapshot.overflowed),
            (1, 1, 1)
        );
        assert!(take(&store, key(0), 2 * SECOND - 1, quota).is_ok());
        assert_eq!(
            store.snapshot().overflowed,
            2,
            "the first one was forgotten, and is a newcomer again"
        );
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
                take(&store, key(number), 0, quota).is_ok()
            };
            (1..=KEYS).filter(|&number| bring(number)).count() as u64
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| bring_all(1));
            bring_all(0) + other.join().unwrap()
        });
        assert_eq!(
            (both, store.snapshot().allowed, store.snapshot().keys),
            (KEYS, KEYS, KEYS)
        );
    }

    #[test]
    fn an_active_key_keeps_its_bucket_while_slots_change_owners_around_it() {
        let (store, once_a_second, often) = (Store::new(32), quota(SECOND, 1), quota(1, 1));
        assert!(take(&store, key(0), 10, once_a_second).is_ok());
        std::thread::scope(|scope| {
            // Each stranger is idle again at the next turn, so every turn evicts.
            scope.spawn(|| {
                (0..200_000).all(|turn| take(&store, key(100 + turn), 10 + turn, often).is_ok())
            });
            let admitted = (0..200_000)
                .filter(|turn| take(&store, key(0), 10 + turn, once_a_second).is_ok())
                .count();
            assert_eq!(admitted, 0, "more than one in less than a second");
        });
        assert!(store.snapshot().evictions > 100_000);
        assert!(store.snapshot().keys <= 32);
    }

    proptest! {
        /// Of each bucket: that of a key, whatever the others do and however small the store is, and the overflow bucket.
        #[test]
        fn no_bucket_gives_more_than_burst_and_rate(
            interval in 1_u64..500,
            burst in 1_u32..5,
            capacity in 1_usize..20,
            requests in prop::collection::vec((0_u64..40, 1_u32..4, any::<bool>(), prop_oneof![Just(0), 0_u64..50, 0_u64..2_000]), 1..300),
        ) {
            let (store, quota) = (Store::new(capacity), quota(interval, burst));
            let (mut now, mut served) = (0, vec![Vec::new(); 41]);
            for (number, tokens, gives_back, step) in requests {
                now += step;
                let Some(charge) = Charge::tokens(now, quota, tokens) else { continue };
                let bucket_key = BucketKey::Key(key(number));
                match store.take(bucket_key, &charge) {
                    Ok(debit) if gives_back => give_back(&store, bucket_key, &charge, debit, now),
                    Ok(debit) => served[if debit.overflowed { 40 } else { number as usize }].push((now, charge.cost())),
                    Err(_) => {}
                }
                prop_assert!(store.keys.load(Relaxed) <= capacity);
            }
            for served in served {
                for (first, &(from, _)) in served.iter().enumerate() {
                    let mut cost = 0;
                    for &(to, more) in &served[first..] {
                        cost += more;
                        prop_assert!(cost <= quota.depth() + (to - from));
                    }
                }
            }
        }

        #[test]
        fn governor_decides_the_same_for_many_keys(
            interval in 1_u64..1_000,
            burst in 1_u32..5,
            capacity in 1_usize..20,
            requests in prop::collection::vec((0_u64..40, prop_oneof![Just(0), 0_u64..50, 0_u64..2_000]), 1..300),
        ) {
            let (store, ours) = (Store::new(capacity), quota(interval, burst));
            let theirs = governor::Quota::with_period(ours.interval()).unwrap().allow_burst(NonZeroU32::new(ours.burst_size()).unwrap());
            let clock = FakeRelativeClock::default();
            let oracle = RateLimiter::hashmap_with_clock(theirs, clock.clone());
            let mut now = 0;
            for (number, step) in requests {
                now += step;
                clock.advance(Duration::from_nanos(step));
                let overflowed = store.snapshot().overflowed;
                let decision = take(&store, key(number), now, ours).is_ok();
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
    use std::time::Duration;

    use loom::{model::Builder, sync::Arc, thread};

    use super::*;
    use crate::Quota;

    const FIVE: u64 = 5;

    fn quota(burst: u32) -> Quota {
        Quota::every(Duration::from_nanos(FIVE))
            .unwrap()
            .burst(burst)
    }

    fn take(store: &Store, number: u64, now: u64, quota: Quota) -> Result<u64, u64> {
        store
            .take(
                BucketKey::Key(Fingerprint::from(number)),
                &Charge::one(now, quota),
            )
            .map(|debit| debit.debt)
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
                move || take(&store, 7, 10, quota(1)).is_ok()
            });
            let mine = take(&store, 7, 10, quota(1)).is_ok();
            assert!(mine != other.join().unwrap());
        });
    }

    #[test]
    fn a_known_key_takes_from_its_own_bucket_while_a_newcomer_wants_the_slot() {
        check(|| {
            let store = Arc::new(Store::new(1));
            assert_eq!(take(&store, 7, 10, quota(2)), Ok(FIVE));
            // It idles by now. Either it is forgotten and comes as new, or it stays and the newcomer overflows.
            let known = thread::spawn({
                let store = store.clone();
                move || take(&store, 7, 20, quota(2))
            });
            let newcomer = [(); 2].map(|()| take(&store, 9, 20, quota(2)));
            assert_eq!(newcomer, [Ok(FIVE), Ok(2 * FIVE)]);
            assert_eq!(known.join().unwrap(), Ok(FIVE));
            assert_eq!(store.keys.load(Relaxed), 1);
        });
    }
}
