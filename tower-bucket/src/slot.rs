//! One key's bucket in the store, and the sets that slots are in.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::{
    gcra::{Charge, Refund},
    hash::Fingerprint,
    sync::AtomicU64,
};

#[repr(align(64))]
#[derive(Debug, Default)]
pub(crate) struct Set(pub(crate) [Slot; WAYS]);

/// One key's bucket.
///
/// `tat` also decides which thread may write the slot. It is [`CLAIMED`] while the slot changes owner, and greater ever after: an
/// owner is stored when the slot is idle and brings it beyond that moment, and what it gives back never leads to before it. So
/// a compare-and-swap on it succeeds only if the owner has not changed since it was read.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) owner: AtomicU64,
    pub(crate) tat: AtomicU64,
}

/// A slot that may be given a new owner: an empty one, or that of a key whose bucket is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    Empty,
    Occupied,
}

/// The right to give an idle slot a new owner. It must be given back by one of its methods.
#[must_use]
pub(crate) struct Claim<'a> {
    slot: &'a Slot,
    was: u64,
}

// === impl Set ===

impl Set {
    /// Takes, if one of the slots is `key`'s. A slot that `key` is just losing is passed over: it may have another by
    /// now.
    #[inline]
    pub(crate) fn take(&self, key: Fingerprint, charge: &Charge) -> Option<Result<u64, u64>> {
        self.0.iter().find_map(|slot| slot.take(key, charge))
    }

    pub(crate) fn claim(&self, now: u64, what: Idle) -> Option<Claim<'_>> {
        self.0.iter().find_map(|slot| slot.claim(now, what))
    }

    pub(crate) fn active(&self, now: u64) -> usize {
        self.0
            .iter()
            .filter(|slot| slot.tat.load(Relaxed) > now)
            .count()
    }

    pub(crate) fn occupied(&self) -> usize {
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
    pub(crate) fn take(&self, key: Fingerprint, charge: &Charge) -> Option<Result<u64, u64>> {
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
                Ok(_) => return Some(Ok(next - charge.now)),
                Err(seen) => tat = seen,
            }
        }
    }

    /// When it is full again, if it is `key`'s.
    pub(crate) fn tat(&self, key: Fingerprint) -> Option<u64> {
        let tat = self.tat.load(Acquire);
        (tat != CLAIMED && self.owner.load(Acquire) == key.0).then_some(tat)
    }

    /// Puts tokens back, if the slot is `key`'s. False if it is not.
    pub(crate) fn refund(&self, key: Fingerprint, refund: Refund, now: u64) -> bool {
        // Where nothing is left, a nanosecond stays, so that the time is greater than when this owner moved in.
        let refund = refund.not_before(now + 1);
        self.change(key, |tat| refund.apply(tat).unwrap_or(tat))
    }

    /// Makes it full no sooner than `tat`, if the slot is `key`'s. False if it is not.
    pub(crate) fn raise(&self, key: Fingerprint, tat: u64) -> bool {
        self.change(key, |seen| seen.max(tat))
    }

    /// Makes it full no later than `tat`, if the slot is `key`'s. False if it is not. It must lie ahead, or the time would
    /// not be greater than when this owner moved in.
    pub(crate) fn lower(&self, key: Fingerprint, tat: u64) -> bool {
        self.change(key, |seen| seen.min(tat))
    }

    pub(crate) fn change(&self, key: Fingerprint, to: impl Fn(u64) -> u64) -> bool {
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

    pub(crate) fn claim(&self, now: u64, what: Idle) -> Option<Claim<'_>> {
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

    pub(crate) fn kind(&self) -> Idle {
        if self.owner.load(Relaxed) == 0 {
            Idle::Empty
        } else {
            Idle::Occupied
        }
    }

    /// Forgets an idle key. False if there is none.
    pub(crate) fn evict(&self, now: u64) -> bool {
        self.claim(now, Idle::Occupied).map(Claim::clear).is_some()
    }
}

// === impl Claim ===

impl Claim<'_> {
    pub(crate) fn is_occupied(&self) -> bool {
        self.slot.kind() == Idle::Occupied
    }

    /// Makes `key` the owner and takes what is asked.
    pub(crate) fn insert(self, key: Fingerprint, charge: &Charge) -> u64 {
        self.slot.owner.store(key.0, Release);
        // `was` is not after now, and no ask is for more than a full bucket: it gives, and the slot's time grows.
        let debt = charge.cost();
        self.slot.tat.store(charge.now + debt, Release);
        debt
    }

    /// Leaves the slot empty. One more than it was: a thread that read it before must not succeed now.
    pub(crate) fn clear(self) {
        self.slot.owner.store(0, Release);
        self.slot.tat.store(self.was + 1, Release);
    }

    /// Leaves the slot as it was.
    pub(crate) fn give_back(self) {
        self.slot.tat.store(self.was, Release);
    }
}

/// Slots in a set: two cache lines. One under loom, so that all keys compete for it.
pub(crate) const WAYS: usize = if cfg!(all(test, loom)) { 1 } else { 8 };

/// The slot is changing its owner.
pub(crate) const CLAIMED: u64 = u64::MAX;
