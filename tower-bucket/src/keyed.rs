use std::{
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    marker::PhantomData,
    num::NonZeroU32,
    sync::Arc,
};

use crate::{
    Admitted, Exhausted, OnMissingKey, Quota, Snapshot,
    limiter::Start,
    store::{Fingerprint, Store},
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
/// minute.
///
/// The keys themselves are not kept, only their hashes (SipHash with a random seed, as in a `HashMap`).
pub struct KeyedLimiter<K: ?Sized> {
    shared: Arc<Shared>,
    key: PhantomData<fn(&K)>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    hasher: RandomState,
    quota: Quota,
    start: Start,
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
        Self::with(self.shared.quota, keys.get() as usize)
    }

    /// The quota that each key has.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.shared.quota
    }

    /// What it has done so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.store.snapshot()
    }

    /// What becomes of a request without a key.
    pub(crate) fn check_missing(&self, choice: OnMissingKey) -> Result<Option<Admitted>, Exhausted> {
        let Shared { store, quota, start, .. } = &*self.shared;
        let now = start.elapsed();
        store.count_keyless(now);
        match choice {
            OnMissingKey::Shared => Admitted::or_exhausted(store.take_keyless(now, *quota), *quota).map(Some),
            OnMissingKey::Allow => {
                store.keyless_tally().count_allowed();
                Ok(None)
            }
            OnMissingKey::Deny => {
                store.keyless_tally().count_refused();
                Err(Exhausted::keyless())
            }
        }
    }

    fn with(quota: Quota, capacity: usize) -> Self {
        let (store, hasher, start) = (Store::new(capacity), RandomState::new(), Start::now());
        Self { shared: Arc::new(Shared { store, hasher, quota, start }), key: PhantomData }
    }
}

impl<K: Hash + ?Sized> KeyedLimiter<K> {
    /// Takes one token from the bucket of `key`, now.
    ///
    /// # Errors
    ///
    /// The bucket is empty. Nothing was taken.
    pub fn check_key(&self, key: &K) -> Result<Admitted, Exhausted> {
        let Shared { store, hasher, quota, start } = &*self.shared;
        let key = Fingerprint::from(hasher.hash_one(key));
        Admitted::or_exhausted(store.take(key, start.elapsed(), *quota), *quota)
    }
}

impl<K: ?Sized> Clone for KeyedLimiter<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), key: PhantomData }
    }
}

impl<K: ?Sized> fmt::Debug for KeyedLimiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedLimiter")
            .field("quota", &self.shared.quota)
            .field("capacity", &self.shared.store.capacity())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

const DEFAULT_CAPACITY: usize = 100_000;
