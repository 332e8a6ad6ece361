//! How many requests may wait at a time, and how many of them for one key.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use crate::store::BucketId;

/// Bounded places to wait in, shared by all clones.
#[derive(Clone, Debug)]
pub(crate) struct WaiterLimit {
    most: u32,
    share: Share,
    taken: Arc<Taken>,
}

/// How many of the waiting places one key may have: one in `n` of those that the other keys leave. Default: one in two.
///
/// It is a share of what is left and not of all, so that it adapts: with the default a key that is alone takes at most half
/// of the waiters; two that want all of them come to a third each as places become free, nine to a tenth each, and as much stays
/// free for the next one. As long as a place is free, a key of which no request waits gets it.
///
/// ```
/// use tower_bucket::Share;
///
/// let tenth = Share::one_in(10);
/// assert_ne!(tenth, Share::default());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

/// One permit, given back on drop.
#[derive(Debug)]
pub(crate) struct WaiterPermit {
    waiters: WaiterLimit,
    keys: Vec<LimiterKey>,
}

/// The places in use.
#[derive(Debug, Default)]
struct Taken {
    all: AtomicU32,
    by_key: Mutex<HashMap<LimiterKey, u32>>,
}

/// A key's bucket, and which of several limiters it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct LimiterKey(u32, BucketId);

// === impl WaiterLimit ===

impl WaiterLimit {
    pub(crate) fn new(most: u32) -> Self {
        Self {
            most,
            share: Share::default(),
            taken: Arc::default(),
        }
    }

    pub(crate) const fn at_most(&mut self, most: u32) {
        self.most = most;
    }

    pub(crate) const fn per_key(&mut self, share: Share) {
        self.share = share;
    }

    /// How many are in use.
    pub(crate) fn taken(&self) -> u32 {
        self.taken.all.load(Relaxed)
    }

    /// `None` if none is free.
    pub(crate) fn take(&self) -> Option<WaiterPermit> {
        let more = |taken| (taken < self.most).then_some(taken + 1);
        self.taken
            .all
            .fetch_update(Relaxed, Relaxed, more)
            .ok()
            .map(|_| WaiterPermit {
                waiters: self.clone(),
                keys: Vec::new(),
            })
    }
}

// === impl Share ===

impl Share {
    /// One key may take all waiters. For keys that clients do not choose, such as the hosts that a client calls.
    pub const ALL: Self = Self(1);

    /// One in `divisor` of the places that the other keys leave, rounded up. Zero is taken for one: all of them.
    #[must_use]
    pub const fn one_in(divisor: u32) -> Self {
        Self(if divisor == 0 { 1 } else { divisor })
    }

    fn of(self, waiters: u64) -> u64 {
        waiters.div_ceil(self.0.into())
    }
}

impl Default for Share {
    fn default() -> Self {
        Self(2)
    }
}

// === impl LimiterKey ===

impl LimiterKey {
    pub(crate) const fn new(limiter: u32, bucket: BucketId) -> Self {
        Self(limiter, bucket)
    }
}

// === impl WaiterPermit ===

impl WaiterPermit {
    /// Makes it a waiter of these keys. False if one of them has its share already.
    #[must_use]
    pub(crate) fn enter(&mut self, keys: Vec<LimiterKey>) -> bool {
        if keys.is_empty() {
            return true;
        }
        let WaiterLimit { most, share, taken } = &self.waiters;
        // With this one, which no other thread can have.
        let free = u64::from(*most).saturating_sub(u64::from(taken.all.load(Relaxed)) - 1);
        let mut by_key = taken.lock();
        let has_room = |key| {
            let own = u64::from(by_key.get(key).copied().unwrap_or(0));
            own < share.of(own + free)
        };
        if !keys.iter().all(has_room) {
            return false;
        }
        for key in &keys {
            *by_key.entry(*key).or_default() += 1;
        }
        drop(by_key);
        self.keys = keys;
        true
    }
}

impl Drop for WaiterPermit {
    fn drop(&mut self) {
        let taken = &self.waiters.taken;
        if !self.keys.is_empty() {
            let mut by_key = taken.lock();
            for key in &self.keys {
                if let Some(number) = by_key.get_mut(key) {
                    *number -= 1;
                    if *number == 0 {
                        by_key.remove(key);
                    }
                }
            }
        }
        taken.all.fetch_sub(1, Relaxed);
    }
}

// === impl Taken ===

impl Taken {
    fn lock(&self) -> MutexGuard<'_, HashMap<LimiterKey, u32>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
