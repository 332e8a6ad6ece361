//! The bounded store: many buckets in a table that never grows.
//!
//! ```text
//!   hash of the key ──► two sets of eight slots                      slot: (hash, TAT)
//!   known in one of them ─────────────────────────────────────────► take from that slot: no lock
//!   else, under the lock of its stripe: ──► a slot that is idle ───► takes it; the idle key there is forgotten
//!                                      └──► none ──────────────────► the overflow bucket, shared by all such
//! ```
//!
//! A bucket that is full again (its TAT is past) is *idle*: it equals a new one, so forgetting it changes
//! no decision. Only idle buckets are ever forgotten, and only when a new key needs the slot; so there is no cleanup
//! task, and known keys keep theirs in any flood.
//!
//! Of a key its 64-bit hash is kept, not the key (see `hash.rs`). Two keys with the same hash would share a
//! bucket: at 100 000 keys the odds that any two do are 1 in 3 000 million, and without the hash's random seed no client can
//! look for a pair. In return a key costs 16 bytes however long it is, a newcomer allocates nothing, and no user code
//! (`Eq`) runs in here.

use std::{
    array,
    sync::{PoisonError, atomic::Ordering::Relaxed},
};

use crate::{
    Snapshot,
    gcra::{AtomicTat, Charge, Refund},
    hash::Fingerprint,
    slot::{Claim, Idle, Set, Slot, WAYS},
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
    /// Where the next search for an idle key in other sets begins.
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
    /// All requests without a key.
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

    /// Takes from the bucket, or returns how long to wait.
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

    /// How far in debt the bucket is.
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

    /// Makes the bucket full no later than `tat`, which is ahead.
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

    /// Rejects equal charges for `nanos` from then, if the key has a slot.
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
            Some(decision) => decision.map(Debit::from),
            None => self.take_new(key, charge),
        }
    }

    #[inline]
    fn take_known(&self, key: Fingerprint, charge: &Charge) -> Option<Result<u64, u64>> {
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
            return decision.map(Debit::from);
        }
        match self.find_slot(key, charge.now, stripe) {
            Some(claim) => Ok(claim.insert(key, charge).into()),
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

    /// A slot in one of the key's sets: an empty one, else that of an idle key. So no idle key is forgotten while
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

    /// A slot of an idle key there; or an empty one, for which a key elsewhere must go, because that would be one too
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
    /// Where it came from, if this key was charged.
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

/// One spare slot for this many keys: 21 bytes a key. With two sets of eight slots, a store then finds room for all but
/// two or three in 100 000 of the active keys it was made for.
const SPARE: usize = 3;

/// As many as threads are likely to meet; 2 KiB in all.
const STRIPES: usize = 16;

/// Sets looked at for one idle key, when the store is at its capacity.
const SWEEP: usize = 4;

/// 2^64 divided by the golden ratio: makes a second number out of the first one's bits.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const ONE_MINUTE: u64 = 60_000_000_000;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
