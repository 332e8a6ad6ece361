//! The state machine: the generic cell rate algorithm (ITU-T I.371) as arithmetic on nanoseconds.
//!
//! A bucket is one number, the *theoretical arrival time*: the moment at which it is full again.
//!
//! ```text
//!            now                    tat                 tat + cost
//!   ──────────┼────────────────────────┼─────────────────────────┼─────────►
//!             │◄──────── debt ────────►│◄───────── cost ────────►│
//!             │◄─────────── depth ──────────────►│◄──── wait ────►│
//! ```
//!
//! What would end beyond the bucket's depth must wait for the rest. A request that may wait takes its tokens in advance: the
//! bucket goes into debt beyond its depth, and those that come later stand behind.
//!
//! # Giving back
//!
//! Taking out what was taken is sound only as far as it still lies ahead: what the bucket has forgotten by itself must
//! not be given back as well. A request that passed at `at` gives back its cost less the time since, regardless of what
//! other requests took or
//! gave back meanwhile; one that still waits gives back all of it. Those that wait behind it must move up by the same
//! amount, and `queue.rs` sees to that: if the bucket alone moved, two could pass where one may.
//!
//! # Why not `governor`'s
//!
//! `governor` has the same algorithm, and is the oracle of the tests below. As the engine it does not carry what this
//! crate is for: its `StateStore` does not receive the time, so a store cannot know which of its keys are indistinguishable
//! from new, and cannot evict them by itself; it has no peek and no refund, which several limits at once need; one
//! limiter has one quota, so there is none per key; it reads its clock itself; and very long quotas panic
//! (`every(Duration::MAX)`), where ours are cut. All of that wants the arithmetic in our own hands, and it is this:

use std::sync::atomic::Ordering::Relaxed;

use crate::{Quota, quota::HORIZON, sync::AtomicU64};

/// What is asked of a bucket. All in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) now: u64,
    /// What it takes out; not more than `depth`.
    cost: u64,
    depth: u64,
    /// How long it may wait.
    max_wait: u64,
}

/// Tokens that go back into a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refund {
    nanos: u64,
    /// It is not brought before this moment.
    floor: u64,
}

/// One bucket. Zero is full.
#[derive(Debug, Default)]
pub(crate) struct AtomicTat(AtomicU64);

// === impl Charge ===

impl Charge {
    pub(crate) const NOTHING: Self = Self {
        now: 0,
        cost: 0,
        depth: 0,
        max_wait: 0,
    };

    /// One token, now or not at all.
    #[inline]
    pub(crate) const fn one(now: u64, quota: Quota) -> Self {
        Self {
            now,
            cost: quota.interval_nanos(),
            depth: quota.depth(),
            max_wait: 0,
        }
    }

    /// `tokens`, now or not at all. `None` if the bucket never holds that many, as one with a burst of zero.
    #[inline]
    pub(crate) const fn tokens(now: u64, quota: Quota, tokens: u32) -> Option<Self> {
        if tokens > quota.parts().1 {
            return None;
        }
        Some(Self {
            cost: quota.interval_nanos() * tokens as u64,
            ..Self::one(now, quota)
        })
    }

    pub(crate) const fn cost(&self) -> u64 {
        self.cost
    }

    pub(crate) const fn depth(&self) -> u64 {
        self.depth
    }

    #[inline]
    pub(crate) const fn may_wait(&self) -> bool {
        self.max_wait > 0
    }

    pub(crate) const fn max_wait(&self) -> u64 {
        self.max_wait
    }

    /// When a bucket is full again that is empty now.
    pub(crate) const fn empty_until(&self) -> u64 {
        self.now + self.depth
    }

    /// Lets it wait for at most `nanos`.
    #[inline]
    pub(crate) fn with_max_wait(self, nanos: u64) -> Self {
        Self {
            max_wait: nanos.min(HORIZON / 2),
            ..self
        }
    }

    /// Charges a bucket that will be full at `tat`. Returns the new moment, or how long to wait.
    ///
    /// Nothing overflows: `now`, cost and depth are at most [`HORIZON`], a quarter of `u64`, and max_wait half of that, so
    /// `tat` is at most two quarters and a half, and `next` three and a half.
    #[inline]
    pub(crate) fn try_advance(&self, tat: u64) -> Result<u64, u64> {
        let next = tat.max(self.now) + self.cost;
        let wait = (next - self.now).saturating_sub(self.depth);
        if wait <= self.max_wait {
            Ok(next)
        } else {
            Err(wait)
        }
    }

    /// How long after `now` the turn comes of one that was let in and left the bucket with `debt`.
    #[inline]
    pub(crate) const fn turn(&self, debt: u64) -> u64 {
        debt.saturating_sub(self.depth)
    }

    /// The moment a bucket must be full at, so that an equal charge waits for `nanos`.
    pub(crate) fn refused_for(&self, nanos: u64) -> u64 {
        (self.now + nanos.min(HORIZON / 2) + self.depth).saturating_sub(self.cost)
    }

    /// What of its cost still lies ahead, if it passed at `at`.
    pub(crate) fn ahead(&self, at: u64, now: u64) -> u64 {
        self.cost.saturating_sub(now.saturating_sub(at))
    }
}

// === impl Refund ===

impl Refund {
    pub(crate) const NOTHING: Self = Self::of(0);

    pub(crate) const fn of(nanos: u64) -> Self {
        Self { nanos, floor: 0 }
    }

    pub(crate) fn not_before(self, moment: u64) -> Self {
        Self {
            floor: self.floor.max(moment),
            ..self
        }
    }

    /// When a bucket will be full that would be at `tat`. `None` if that is no other time.
    pub(crate) fn apply(&self, tat: u64) -> Option<u64> {
        let sooner = tat.saturating_sub(self.nanos).max(self.floor);
        (sooner < tat).then_some(sooner)
    }
}

// === impl AtomicTat ===

impl AtomicTat {
    /// Costs one compare-and-swap; a refusal only reads.
    #[inline]
    pub(crate) fn take(&self, charge: &Charge) -> Result<u64, u64> {
        let mut tat = self.0.load(Relaxed);
        loop {
            let next = charge.try_advance(tat)?;
            match self.0.compare_exchange_weak(tat, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(next - charge.now),
                Err(seen) => tat = seen,
            }
        }
    }

    /// What [`take`](Self::take) would answer.
    pub(crate) fn peek(&self, charge: &Charge) -> Result<u64, u64> {
        charge
            .try_advance(self.0.load(Relaxed))
            .map(|next| next - charge.now)
    }

    /// Makes it full no sooner than `tat`.
    pub(crate) fn raise(&self, tat: u64) {
        self.0.fetch_max(tat, Relaxed);
    }

    /// Makes it full no later than `tat`.
    pub(crate) fn lower(&self, tat: u64) {
        self.0.fetch_min(tat, Relaxed);
    }

    pub(crate) fn refund(&self, refund: Refund) {
        let _ = self
            .0
            .fetch_update(Relaxed, Relaxed, |tat| refund.apply(tat));
    }

    /// How far in debt it is.
    pub(crate) fn debt(&self, now: u64) -> u64 {
        self.0.load(Relaxed).saturating_sub(now)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
