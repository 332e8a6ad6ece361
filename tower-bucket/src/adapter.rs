//! For crates that keep the buckets elsewhere, such as `tower-bucket-redis`; an application does not need it.
//!
//! Such an adapter has a [`LocalLimiter`] in this process: it rejects what the local requests alone have used up, without a
//! round trip, decides while the other place does not reply, and counts.
//!
//! ```
//! use std::time::Duration;
//! use tower_bucket::{Quota, adapter::{Decision, LocalLimiter}};
//!
//! let quota = Quota::per_hour(1);
//! let local = LocalLimiter::<str>::new(quota);
//! let bucket = local.bucket("alice");
//! let withdrawal = local.take(bucket, 1, quota).expect("the local bucket is full");
//!
//! // The other place rejects the request for a minute: the tokens go back, and the next request needs no round trip.
//! local.refund(&withdrawal);
//! local.reject_for(&withdrawal, Duration::from_secs(60));
//! local.count(bucket, Decision::Refused);
//! assert!(local.take(bucket, 1, quota).is_err());
//! assert_eq!(local.limiter().snapshot().refused, 1);
//! ```

use std::{fmt, hash::Hash, time::Duration};

use tokio::time::Instant;

pub use crate::snapshot::Decision;
use crate::{
    Admitted, Exhausted, KeyedLimiter, Quota,
    error::Reason,
    gcra::Charge,
    queue::Turn,
    store::{BucketKey, Debit},
};

/// The buckets of an adapter in this process: a cheap handle, whose clones share them.
pub struct LocalLimiter<K: ?Sized>(KeyedLimiter<K>);

/// The bucket of one key, or that of all requests without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalBucket(BucketKey);

/// Tokens that were taken from a local bucket.
#[derive(Clone, Copy, Debug)]
pub struct Withdrawal {
    bucket_key: BucketKey,
    debit: Debit,
    charge: Charge,
    quota: Quota,
}

// === impl LocalLimiter ===

impl<K: ?Sized> LocalLimiter<K> {
    /// The same quota for each of up to 100 000 keys.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self(KeyedLimiter::new(quota))
    }

    /// Fresh buckets for `keys` keys; see [`KeyedLimiter::capacity`].
    #[must_use]
    pub fn capacity(self, keys: u32) -> Self {
        Self(self.0.capacity(keys))
    }

    /// The limiter, for its quota and its snapshot.
    pub const fn limiter(&self) -> &KeyedLimiter<K> {
        &self.0
    }

    /// The bucket of requests without a key. Counts one such request, and logs a warning once a minute at most.
    #[must_use]
    pub fn missing_key(&self) -> LocalBucket {
        self.0.note_keyless();
        LocalBucket(BucketKey::Keyless)
    }

    /// Takes tokens, or nothing. Does not [count](Self::count).
    ///
    /// # Errors
    ///
    /// The bucket does not hold that many now, or never does.
    pub fn take(
        &self,
        bucket: LocalBucket,
        tokens: u32,
        quota: Quota,
    ) -> Result<Withdrawal, Exhausted> {
        let now = self.0.since_start(Instant::now());
        let charge = Charge::tokens(now, quota, tokens).ok_or(Exhausted::new(Reason::Cost))?;
        let debit = self
            .0
            .take(bucket.0, &charge)
            .map_err(|wait| Exhausted::new(Reason::Wait(wait)))?;
        Ok(Withdrawal {
            bucket_key: bucket.0,
            debit,
            charge,
            quota,
        })
    }

    /// Puts back what was taken, less what the bucket has regained since.
    pub fn refund(&self, withdrawal: &Withdrawal) {
        let Withdrawal {
            bucket_key,
            debit,
            charge,
            ..
        } = withdrawal;
        let now = self.0.since_start(Instant::now());
        self.0.give_back(
            debit.bucket(*bucket_key),
            charge,
            Turn::Came(charge.now),
            now,
        );
    }

    /// Rejects further requests of this cost until `wait` after the withdrawal. No effect on a key whose bucket was replaced.
    pub fn reject_for(&self, withdrawal: &Withdrawal, wait: Duration) {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.0
            .hold(withdrawal.bucket_key, &withdrawal.charge, nanos);
    }

    /// Counts a request in the [`Snapshot`](crate::Snapshot).
    pub fn count(&self, bucket: LocalBucket, decision: Decision) {
        self.0.count(bucket.0, decision);
    }
}

impl<K: Hash + ?Sized> LocalLimiter<K> {
    /// The bucket of `key`.
    #[must_use]
    pub fn bucket(&self, key: &K) -> LocalBucket {
        LocalBucket(BucketKey::Key(self.0.fingerprint(key)))
    }
}

impl<K: ?Sized> Clone for LocalLimiter<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: ?Sized> fmt::Debug for LocalLimiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Withdrawal ===

impl Withdrawal {
    /// The state of the local bucket after the withdrawal.
    #[must_use]
    pub const fn admitted(&self) -> Admitted {
        Admitted::new(self.debit.debt, self.quota)
    }
}

// === impl Exhausted ===

impl Exhausted {
    /// For adapters: the bucket is empty, and a request passes after `wait`.
    #[must_use]
    pub fn wait(wait: Duration) -> Self {
        Self::new(Reason::Wait(
            u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX),
        ))
    }

    /// For adapters: the request has no key and must have one.
    #[must_use]
    pub fn key_missing() -> Self {
        Self::new(Reason::Keyless)
    }

    /// For adapters: the place that decides does not reply.
    #[must_use]
    pub fn unavailable() -> Self {
        Self::new(Reason::Unavailable)
    }
}

// === impl Admitted ===

impl Admitted {
    /// For adapters: a bucket that is full again after `reset_after`.
    #[must_use]
    pub fn from_reset_after(reset_after: Duration, quota: Quota) -> Self {
        Self::new(
            u64::try_from(reset_after.as_nanos()).unwrap_or(u64::MAX),
            quota,
        )
    }
}
