use std::{fmt, hash::Hash, task::Waker};

use tokio::time::Instant;

use super::{Denial, Standing, Taken, Terms, sealed::Decide};
use crate::{
    Key, KeyedLimiter, OnMissingKey,
    places::LimiterKey,
    queue::Turn,
    snapshot::Fate,
    store::{BucketId, Drawer},
};

/// A [`KeyedLimiter`] together with the [`Key`] that tells whose bucket a request draws from.
pub struct Keyed<F, K: ?Sized> {
    limiter: KeyedLimiter<K>,
    key: F,
    missing: OnMissingKey,
}

/// What is asked of a keyed limiter.
#[derive(Clone, Copy, Debug)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct KeyedTerms {
    who: Who,
    terms: Terms,
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Drawer(Drawer),
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
    fn keyless(&self) -> Who {
        self.limiter.note_keyless();
        match self.missing {
            OnMissingKey::Shared => Who::Drawer(Drawer::Keyless),
            OnMissingKey::Allow => Who::Allow,
            OnMissingKey::Deny => Who::Deny,
        }
    }
}

impl<Req, F, K> Decide<Req> for Keyed<F, K>
where
    F: Key<Req, Key = K>,
    K: Hash,
{
    const LIMITERS: u32 = 1;
    type Ask = KeyedTerms;
    type Taken = Taken;
    type Turn = Turn;
    type Note = ();

    #[inline]
    fn ask(&self, request: &Req, terms: Terms) -> KeyedTerms {
        let who = match self.key.key(request) {
            Some(key) => Who::Drawer(Drawer::Key(self.limiter.fingerprint(&key))),
            None => self.keyless(),
        };
        KeyedTerms { who, terms }
    }

    fn peek(&self, ask: KeyedTerms, now: Instant, patience: u64) -> Result<(), Denial> {
        let KeyedTerms { who, terms } = ask;
        match who {
            Who::Drawer(drawer) => {
                let quota = terms.quota_or(self.limiter.quota());
                let now = self.limiter.since_start(now);
                terms.peek(now, quota, patience, |ask| {
                    self.limiter.peek_at(drawer, ask)
                })
            }
            Who::Allow => Ok(()),
            Who::Deny => terms.keyless().map(drop),
        }
    }

    #[inline]
    fn take(&self, ask: KeyedTerms, now: Instant, patience: u64) -> Result<Taken, Denial> {
        let KeyedTerms { who, terms } = ask;
        match who {
            Who::Drawer(drawer) => {
                let quota = terms.quota_or(self.limiter.quota());
                let now = self.limiter.since_start(now);
                terms.take(now, quota, patience, |ask| self.limiter.take(drawer, ask))
            }
            Who::Allow => Ok(Taken::NOTHING),
            Who::Deny => terms.keyless(),
        }
    }

    fn give_back(&self, ask: KeyedTerms, taken: Taken, now: Instant) {
        Decide::<Req>::leave(self, ask, taken, taken.at_once(), now);
    }

    fn queue(&self, ask: KeyedTerms, now: Instant, patience: u64) -> Result<(Taken, Turn), Denial> {
        let KeyedTerms { who, terms } = ask;
        match who {
            Who::Drawer(drawer) => {
                let quota = terms.quota_or(self.limiter.quota());
                let now = self.limiter.since_start(now);
                terms.queue(now, quota, patience, |ask| self.limiter.queue(drawer, ask))
            }
            Who::Allow => Ok(Taken::NOTHING.now()),
            Who::Deny => terms.keyless().map(Taken::now),
        }
    }

    fn poll_turn(
        &self,
        ask: KeyedTerms,
        taken: Taken,
        turn: &mut Turn,
        now: Instant,
        waker: &Waker,
    ) -> Option<Instant> {
        let bucket = ask.bucket(taken)?;
        turn.poll(self.limiter.since_start(now), now, |waiter, now| {
            self.limiter.poll_turn(bucket, waiter, now, waker)
        })
    }

    fn leave(&self, ask: KeyedTerms, taken: Taken, turn: Turn, now: Instant) {
        if let Some(bucket) = ask.bucket(taken) {
            let now = self.limiter.since_start(now);
            self.limiter.give_back(bucket, taken.ask(), turn, now);
        }
    }

    fn keyed_buckets(ask: KeyedTerms, taken: Taken, first: u32, buckets: &mut Vec<LimiterKey>) {
        let bucket = ask.bucket(taken);
        buckets.extend(bucket.map(|bucket| LimiterKey::new(first, bucket)));
    }

    #[inline]
    fn count_passed(&self, ask: KeyedTerms, taken: Taken, waited: bool) {
        self.limiter.count(ask.who.drawer(), taken.fate(waited));
    }

    fn count_abandoned(&self, ask: KeyedTerms) {
        self.limiter.count(ask.who.drawer(), Fate::Abandoned);
    }

    fn count_denied(&self, ask: KeyedTerms, by: u32) {
        if by & 1 != 0 {
            self.limiter.count(ask.who.drawer(), Fate::Refused);
        }
    }

    fn standing(&self, ask: KeyedTerms, decision: Result<Taken, Denial>) -> Standing {
        Standing::new(decision, || ask.terms.quota_or(self.limiter.quota()))
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
        match self.who {
            Who::Drawer(drawer) => Some(taken.drawn()?.bucket(drawer)),
            Who::Allow | Who::Deny => None,
        }
    }
}

// === impl Who ===

impl Who {
    /// Where it is counted.
    #[inline]
    fn drawer(self) -> Drawer {
        match self {
            Self::Drawer(drawer) => drawer,
            Self::Allow | Self::Deny => Drawer::Keyless,
        }
    }
}
