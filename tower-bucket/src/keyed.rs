use std::{fmt, hash::Hash, marker::PhantomData, num::NonZeroU32, sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::{
    Admitted, Exhausted, Quota, Snapshot,
    clock::Start,
    dial::Dial,
    error::Reason,
    gcra::Ask,
    hash::{Fingerprint, Seed},
    queue::{Answer, Turn, WaitQueues, WaiterId},
    snapshot::Fate,
    store::{BucketId, Drawer, Drawn, Store},
};

/// A bucket for each key, in bounded memory: a cheap handle, whose clones share it.
///
/// ```
/// use std::num::NonZeroU32;
/// use tower_bucket::{KeyedLimiter, Quota};
///
/// let limiter = KeyedLimiter::<str>::new(Quota::per_minute(NonZeroU32::MIN));
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
/// default of 100 000. A key is forgotten only when its bucket is full again, so that it cannot be told from a new one,
/// and only when another needs the room; nothing has to be cleaned up. When the store is full of active keys, these keep
/// their buckets, and new ones share one overflow bucket of the same quota, until somebody's is full again: a flood of
/// made-up keys harms other newcomers, but nobody who is known. [`Snapshot::overflowed`] tells, and a warning once a
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
    dial: Dial,
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

    /// How many keys are remembered at most. Default: 100 000, which is 2.1 MB.
    ///
    /// Call it first: what it returns is a fresh limiter, which shares nothing with earlier clones.
    #[must_use]
    pub fn capacity(self, keys: NonZeroU32) -> Self {
        Self::with(self.quota(), keys.get() as usize)
    }

    /// The quota that each key has.
    #[must_use]
    #[inline]
    pub fn quota(&self) -> Quota {
        self.shared.dial.read()
    }

    /// Keeps another quota for each key from now on, without forgetting what was taken: one atomic change, for all clones.
    ///
    /// What is owed stays what it is in *time*, as for a [`Limiter`](crate::Limiter::set_quota), but no more than an empty bucket
    /// owes under the new quota.
    pub fn set_quota(&self, quota: Quota) {
        self.shared
            .dial
            .turn(quota, self.since_start(Instant::now()));
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
    pub(crate) fn take(&self, drawer: Drawer, ask: &Ask) -> Result<Drawn, u64> {
        self.shared.dial.note_patience(ask);
        self.shared.store.take(drawer, ask).map_err(|wait| {
            let (wait, latest) = self.shared.dial.relieve(ask, wait);
            if let Some(full_at) = latest {
                self.shared.store.lower(drawer, full_at);
            }
            wait
        })
    }

    pub(crate) fn peek_at(&self, drawer: Drawer, ask: &Ask) -> Result<u64, u64> {
        self.shared
            .store
            .peek(drawer, ask)
            .map_err(|wait| self.shared.dial.relieve(ask, wait).0)
    }

    /// Takes, behind all that wait for the same bucket.
    pub(crate) fn queue(&self, drawer: Drawer, ask: &Ask) -> Result<(Drawn, Turn), u64> {
        self.shared.queues.push(ask, || {
            let drawn = self.take(drawer, ask)?;
            Ok((drawn.bucket(drawer), drawn, drawn.debt))
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
    pub(crate) fn give_back(&self, bucket: BucketId, ask: &Ask, turn: Turn, now: u64) {
        self.shared.queues.with(bucket, |queue| {
            let refund = queue.leave(ask, turn, now);
            self.shared.store.refund(bucket, refund, now);
        });
    }

    /// Lets nothing more like `ask` pass for so many nanoseconds.
    pub(crate) fn hold(&self, drawer: Drawer, ask: &Ask, nanos: u64) {
        self.shared.store.hold(drawer, ask, nanos);
    }

    #[inline]
    pub(crate) fn count(&self, drawer: Drawer, fate: Fate) {
        self.shared.store.count(drawer, fate);
    }

    /// Notes that a request has no key.
    #[cold]
    pub(crate) fn note_keyless(&self) {
        self.shared
            .store
            .note_keyless(self.since_start(Instant::now()));
    }

    fn with(quota: Quota, capacity: usize) -> Self {
        let (store, seed, dial, start) = (
            Store::new(capacity),
            Seed::random(),
            Dial::new(quota),
            Start::now(),
        );
        Self {
            shared: Arc::new(Shared {
                store,
                seed,
                dial,
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

    /// Takes so many tokens from the bucket of `key`, now. What costs none always passes.
    ///
    /// # Errors
    ///
    /// The bucket has not so many now, or never holds so many. Nothing was taken.
    pub fn check_key_cost(&self, key: &K, tokens: u32) -> Result<Admitted, Exhausted> {
        let (drawer, quota, now) = (
            Drawer::Key(self.fingerprint(key)),
            self.quota(),
            self.since_start(Instant::now()),
        );
        if tokens == 0 {
            self.count(drawer, Fate::Allowed);
            return Ok(Admitted::new(self.shared.store.debt(drawer, now), quota));
        }
        let ask = Ask::tokens(now, quota, tokens).ok_or(Reason::Cost);
        let decision = ask.and_then(|ask| self.take(drawer, &ask).map_err(Reason::Wait));
        self.count(
            drawer,
            if decision.is_ok() {
                Fate::Allowed
            } else {
                Fate::Refused
            },
        );
        decision
            .map(|drawn| Admitted::new(drawn.debt, quota))
            .map_err(Exhausted::new)
    }

    /// What [`check_key`](Self::check_key) would answer; nothing is taken, counted or remembered.
    ///
    /// # Errors
    ///
    /// The bucket is empty.
    pub fn peek_key(&self, key: &K) -> Result<Admitted, Exhausted> {
        let (drawer, quota) = (Drawer::Key(self.fingerprint(key)), self.quota());
        let decision = self.peek_at(drawer, &Ask::one(self.since_start(Instant::now()), quota));
        decision
            .map(|debt| Admitted::new(debt, quota))
            .map_err(|wait| Exhausted::new(Reason::Wait(wait)))
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
