use std::{fmt, hash::Hash, marker::PhantomData, sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::{
    Admitted, Exhausted, Quota, Snapshot,
    clock::Start,
    error::Reason,
    gcra::Charge,
    hash::{Fingerprint, Seed},
    queue::{Answer, Turn, WaitQueues, WaiterId},
    quota_cell::QuotaCell,
    snapshot::Decision,
    store::{BucketId, BucketKey, Debit, Store},
};

/// A bucket for each key, in bounded memory: a cheap handle, whose clones share it.
///
/// ```
/// use tower_bucket::{KeyedLimiter, Quota};
///
/// let limiter = KeyedLimiter::<str>::new(Quota::per_minute(1));
/// assert!(limiter.check_key("alice").is_ok());
/// assert!(limiter.check_key("alice").is_err());
/// assert!(limiter.check_key("bob").is_ok());
/// ```
///
/// A check of a known key costs a clock reading, a hash, a look at up to sixteen slots, one compare-and-swap and one
/// addition; no lock, no allocation. A new key takes a short lock besides, and does not allocate either.
///
/// # Memory
///
/// It is taken at the start and never grows: 21 bytes for each key of the [`capacity`](Self::capacity), 2.1 MB for the
/// default of 100 000. A key is forgotten only when its bucket is full again, so that it equals a new one,
/// and only when another needs the room; nothing has to be cleaned up. When the store is full of active keys, these keep
/// their buckets, and new ones share one overflow bucket of the same quota, until a bucket is full again: a flood of
/// made-up keys harms other new keys, but not the known ones. [`Snapshot::overflowed`] counts them, and a warning is logged once a
/// minute. A key that finds room after it shared the overflow bucket begins like any other, with a full one.
///
/// The keys themselves are not kept, only their hashes (`foldhash`, seeded by the operating system).
pub struct KeyedLimiter<K: ?Sized> {
    shared: Arc<Shared>,
    key: PhantomData<fn(&K)>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    seed: Seed,
    quota_cell: QuotaCell,
    start: Start,
    queues: WaitQueues<BucketId>,
}

// === impl KeyedLimiter ===

impl<K: ?Sized> KeyedLimiter<K> {
    /// The same quota for each of up to 100 000 keys.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self::with(quota, DEFAULT_CAPACITY)
    }

    /// How many keys are remembered at most. Zero: none, and all share the overflow bucket. Default: 100,000, which is 2.1 MB.
    ///
    /// Call it first: what it returns is a fresh limiter, which shares nothing with earlier clones.
    #[must_use]
    pub fn capacity(self, keys: u32) -> Self {
        Self::with(self.quota(), keys as usize)
    }

    /// The quota that each key has.
    #[must_use]
    #[inline]
    pub fn quota(&self) -> Quota {
        self.shared.quota_cell.read()
    }

    /// Keeps another quota for each key from now on, without forgetting what was taken: one atomic change, for all clones.
    ///
    /// What is owed stays what it is in *time*, as for a [`Limiter`](crate::Limiter::set_quota), but no more than an empty bucket
    /// owes under the new quota.
    pub fn set_quota(&self, quota: Quota) {
        self.shared
            .quota_cell
            .set(quota, self.since_start(Instant::now()));
    }

    /// What it has done so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.store.snapshot()
    }

    #[inline]
    pub(crate) fn since_start(&self, now: Instant) -> u64 {
        self.shared.start.until(now)
    }

    #[inline]
    pub(crate) fn take(&self, bucket_key: BucketKey, charge: &Charge) -> Result<Debit, u64> {
        self.shared.quota_cell.note_max_wait(charge);
        self.shared.store.take(bucket_key, charge).map_err(|wait| {
            let (wait, latest) = self.shared.quota_cell.clamp_debt(charge, wait);
            if let Some(tat) = latest {
                self.shared.store.lower(bucket_key, tat);
            }
            wait
        })
    }

    pub(crate) fn peek_at(&self, bucket_key: BucketKey, charge: &Charge) -> Result<u64, u64> {
        self.shared
            .store
            .peek(bucket_key, charge)
            .map_err(|wait| self.shared.quota_cell.clamp_debt(charge, wait).0)
    }

    /// Takes, behind all that wait for the same bucket.
    pub(crate) fn queue(
        &self,
        bucket_key: BucketKey,
        charge: &Charge,
    ) -> Result<(Debit, Turn), u64> {
        self.shared.queues.push(charge, || {
            let debit = self.take(bucket_key, charge)?;
            Ok((debit.bucket(bucket_key), debit, debit.debt))
        })
    }

    pub(crate) fn poll_turn(
        &self,
        bucket: BucketId,
        waiter: WaiterId,
        now: u64,
        waker: &Waker,
    ) -> Answer {
        let (queues, waker) = (&self.shared.queues, waker.clone());
        let (answer, _unused) = queues.with(bucket, |queue| queue.poll(waiter, now, waker));
        answer
    }

    /// For one that took and will not call.
    pub(crate) fn give_back(&self, bucket: BucketId, charge: &Charge, turn: Turn, now: u64) {
        self.shared.queues.with(bucket, |queue| {
            let refund = queue.leave(charge, turn, now);
            self.shared.store.refund(bucket, refund, now);
        });
    }

    /// Rejects equal charges for `nanos`.
    pub(crate) fn hold(&self, bucket_key: BucketKey, charge: &Charge, nanos: u64) {
        self.shared.store.hold(bucket_key, charge, nanos);
    }

    #[inline]
    pub(crate) fn count(&self, bucket_key: BucketKey, decision: Decision) {
        self.shared.store.count(bucket_key, decision);
    }

    /// Notes that a request has no key.
    #[cold]
    pub(crate) fn note_keyless(&self) {
        self.shared
            .store
            .note_keyless(self.since_start(Instant::now()));
    }

    fn with(quota: Quota, capacity: usize) -> Self {
        let (store, seed, quota_cell, start) = (
            Store::new(capacity),
            Seed::random(),
            QuotaCell::new(quota),
            Start::now(),
        );
        Self {
            shared: Arc::new(Shared {
                store,
                seed,
                quota_cell,
                start,
                queues: WaitQueues::default(),
            }),
            key: PhantomData,
        }
    }
}

impl<K: Hash + ?Sized> KeyedLimiter<K> {
    /// Takes one token from the bucket of `key`, now.
    ///
    /// # Errors
    ///
    /// The bucket is empty. Nothing was taken.
    pub fn check_key(&self, key: &K) -> Result<Admitted, Exhausted> {
        self.check_key_cost(key, 1)
    }

    /// Takes `tokens` from the bucket of `key`. Zero tokens always pass.
    ///
    /// # Errors
    ///
    /// The bucket does not hold that many now, or never does. Nothing was taken.
    pub fn check_key_cost(&self, key: &K, tokens: u32) -> Result<Admitted, Exhausted> {
        let (bucket_key, quota, now) = (
            BucketKey::Key(self.fingerprint(key)),
            self.quota(),
            self.since_start(Instant::now()),
        );
        if tokens == 0 {
            self.count(bucket_key, Decision::Allowed);
            return Ok(Admitted::new(
                self.shared.store.debt(bucket_key, now),
                quota,
            ));
        }
        let charge = Charge::tokens(now, quota, tokens).ok_or(Reason::Cost);
        let decision =
            charge.and_then(|charge| self.take(bucket_key, &charge).map_err(Reason::Wait));
        self.count(
            bucket_key,
            if decision.is_ok() {
                Decision::Allowed
            } else {
                Decision::Refused
            },
        );
        decision
            .map(|debit| Admitted::new(debit.debt, quota))
            .map_err(Exhausted::new)
    }

    /// What [`check_key`](Self::check_key) would answer; nothing is taken, counted or remembered.
    ///
    /// # Errors
    ///
    /// The bucket is empty.
    pub fn peek_key(&self, key: &K) -> Result<Admitted, Exhausted> {
        let (bucket_key, quota) = (BucketKey::Key(self.fingerprint(key)), self.quota());
        let charge = Charge::tokens(self.since_start(Instant::now()), quota, 1).ok_or(Reason::Cost);
        charge
            .and_then(|charge| self.peek_at(bucket_key, &charge).map_err(Reason::Wait))
            .map(|debt| Admitted::new(debt, quota))
            .map_err(Exhausted::new)
    }

    #[inline]
    pub(crate) fn fingerprint(&self, key: &K) -> Fingerprint {
        self.shared.seed.fingerprint(key)
    }
}

impl<K: ?Sized> Clone for KeyedLimiter<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            key: PhantomData,
        }
    }
}

impl<K: ?Sized> From<&Self> for KeyedLimiter<K> {
    fn from(limiter: &Self) -> Self {
        limiter.clone()
    }
}

impl<K: ?Sized> fmt::Debug for KeyedLimiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedLimiter")
            .field("quota", &self.quota())
            .field("capacity", &self.shared.store.capacity())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

const DEFAULT_CAPACITY: usize = 100_000;
