use std::{fmt, hash::Hash, task::Waker};

use tokio::time::Instant;

use super::{Denial, Standing, Taken, Terms, sealed::Decide};
use crate::{
    Key, KeyedLimiter, OnMissingKey,
    queue::Turn,
    snapshot::Decision,
    store::{BucketId, BucketKey},
    waiters::LimiterKey,
};

/// A [`KeyedLimiter`] together with the [`Key`] that selects the bucket of a request.
pub struct Keyed<F, K: ?Sized> {
    limiter: KeyedLimiter<K>,
    key: F,
    missing: OnMissingKey,
}

/// What is asked of a keyed limiter.
#[derive(Clone, Copy, Debug)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct KeyedTerms {
    target: Target,
    terms: Terms,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    BucketKey(BucketKey),
    Allow,
    Deny,
}

// === impl Keyed ===

impl<F, K: ?Sized> Keyed<F, K> {
    pub(crate) fn new(limiter: KeyedLimiter<K>, key: F) -> Self {
        Self {
            limiter,
            key,
            missing: OnMissingKey::default(),
        }
    }

    pub(crate) fn on_missing_key(self, missing: OnMissingKey) -> Self {
        Self { missing, ..self }
    }

    pub(crate) const fn limiter(&self) -> &KeyedLimiter<K> {
        &self.limiter
    }

    #[cold]
    fn keyless(&self) -> Target {
        self.limiter.note_keyless();
        match self.missing {
            OnMissingKey::Shared => Target::BucketKey(BucketKey::Keyless),
            OnMissingKey::Allow => Target::Allow,
            OnMissingKey::Deny => Target::Deny,
        }
    }
}

impl<Req, F, K> Decide<Req> for Keyed<F, K>
where
    F: Key<Req, Key = K>,
    K: Hash,
{
    const LIMITERS: u32 = 1;
    type Charge = KeyedTerms;
    type Taken = Taken;
    type Turn = Turn;
    type Note = ();

    #[inline]
    fn charge(&self, request: &Req, terms: Terms) -> KeyedTerms {
        let target = match self.key.key(request) {
            Some(key) => Target::BucketKey(BucketKey::Key(self.limiter.fingerprint(&key))),
            None => self.keyless(),
        };
        KeyedTerms { target, terms }
    }

    fn peek(&self, charge: KeyedTerms, now: Instant, max_wait: u64) -> Result<(), Denial> {
        let KeyedTerms { target, terms } = charge;
        match target {
            Target::BucketKey(bucket_key) => {
                let quota = terms.quota_or(self.limiter.quota());
                let now = self.limiter.since_start(now);
                terms.peek(now, quota, max_wait, |charge| {
                    self.limiter.peek_at(bucket_key, charge)
                })
            }
            Target::Allow => Ok(()),
            Target::Deny => terms.keyless().map(drop),
        }
    }

    #[inline]
    fn take(&self, charge: KeyedTerms, now: Instant, max_wait: u64) -> Result<Taken, Denial> {
        let KeyedTerms { target, terms } = charge;
        match target {
            Target::BucketKey(bucket_key) => {
                let quota = terms.quota_or(self.limiter.quota());
                let now = self.limiter.since_start(now);
                terms.take(now, quota, max_wait, |charge| {
                    self.limiter.take(bucket_key, charge)
                })
            }
            Target::Allow => Ok(Taken::NOTHING),
            Target::Deny => terms.keyless(),
        }
    }

    fn give_back(&self, charge: KeyedTerms, taken: Taken, now: Instant) {
        Decide::<Req>::leave(self, charge, taken, taken.at_once(), now);
    }

    fn queue(
        &self,
        charge: KeyedTerms,
        now: Instant,
        max_wait: u64,
    ) -> Result<(Taken, Turn), Denial> {
        let KeyedTerms { target, terms } = charge;
        match target {
            Target::BucketKey(bucket_key) => {
                let quota = terms.quota_or(self.limiter.quota());
                let now = self.limiter.since_start(now);
                terms.queue(now, quota, max_wait, |charge| {
                    self.limiter.queue(bucket_key, charge)
                })
            }
            Target::Allow => Ok(Taken::NOTHING.now()),
            Target::Deny => terms.keyless().map(Taken::now),
        }
    }

    fn poll_turn(
        &self,
        charge: KeyedTerms,
        taken: Taken,
        turn: &mut Turn,
        now: Instant,
        waker: &Waker,
    ) -> Option<Instant> {
        let bucket = charge.bucket(taken)?;
        turn.poll(self.limiter.since_start(now), now, |waiter, now| {
            self.limiter.poll_turn(bucket, waiter, now, waker)
        })
    }

    fn leave(&self, charge: KeyedTerms, taken: Taken, turn: Turn, now: Instant) {
        if let Some(bucket) = charge.bucket(taken) {
            let now = self.limiter.since_start(now);
            self.limiter.give_back(bucket, taken.charge(), turn, now);
        }
    }

    fn keyed_buckets(charge: KeyedTerms, taken: Taken, first: u32, buckets: &mut Vec<LimiterKey>) {
        let bucket = charge.bucket(taken);
        buckets.extend(bucket.map(|bucket| LimiterKey::new(first, bucket)));
    }

    #[inline]
    fn count_passed(&self, charge: KeyedTerms, taken: Taken, waited: bool) {
        self.limiter
            .count(charge.target.bucket_key(), taken.decision(waited));
    }

    fn count_abandoned(&self, charge: KeyedTerms) {
        self.limiter
            .count(charge.target.bucket_key(), Decision::Abandoned);
    }

    fn count_denied(&self, charge: KeyedTerms, by: u32) {
        if by & 1 != 0 {
            self.limiter
                .count(charge.target.bucket_key(), Decision::Refused);
        }
    }

    fn standing(&self, charge: KeyedTerms, decision: Result<Taken, Denial>) -> Standing {
        Standing::new(decision, || charge.terms.quota_or(self.limiter.quota()))
    }

    #[inline]
    fn note(&self, _: KeyedTerms, _: Result<Taken, Denial>) {}
}

impl<F: Clone, K: ?Sized> Clone for Keyed<F, K> {
    fn clone(&self) -> Self {
        Self {
            limiter: self.limiter.clone(),
            key: self.key.clone(),
            missing: self.missing,
        }
    }
}

impl<F, K: ?Sized> fmt::Debug for Keyed<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("limiter", &self.limiter)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

// === impl KeyedTerms ===

impl KeyedTerms {
    /// The bucket that was drawn from. `None`: nothing was.
    fn bucket(self, taken: Taken) -> Option<BucketId> {
        match self.target {
            Target::BucketKey(bucket_key) => Some(taken.debit()?.bucket(bucket_key)),
            Target::Allow | Target::Deny => None,
        }
    }
}

// === impl Target ===

impl Target {
    /// Where it is counted.
    #[inline]
    fn bucket_key(self) -> BucketKey {
        match self {
            Self::BucketKey(bucket_key) => bucket_key,
            Self::Allow | Self::Deny => BucketKey::Keyless,
        }
    }
}
