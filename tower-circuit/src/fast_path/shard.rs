//! Counters and reference counts that are distributed over groups of threads, each in separate cache lines.

use std::{
    array,
    ops::Deref,
    sync::{
        Arc,
        atomic::{
            self,
            Ordering::{Acquire, Relaxed},
            fence,
        },
    },
};

use super::{
    thread::{MAX_SHARDS, assign_shard, shard_index},
    window::ShardWindow,
};
use crate::Totals;

/// The counters of a circuit, one [`Shard`] for each group of threads. Their number divides [`MAX_SHARDS`].
#[derive(Debug)]
pub(crate) struct Shards(Box<[Arc<Shard>]>);

/// The counters of one group of threads: successes by time, and the other calls by how they ended. Takes a cache line for the
/// reference count and four for the counters, 320 bytes.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) window: ShardWindow,
    totals: [atomic::AtomicU64; KINDS],
    /// Keeps other allocations off the last cache line.
    _padding: [u64; 6],
}

/// One value with a reference count for each shard, so that calls on different threads do not contend for one count.
#[derive(Debug)]
pub(crate) struct StripedArc<T>(Arc<Stripes<T>>);

/// A reference to the value of a [`StripedArc`], counted in this thread's stripe, with the shard to count calls in.
pub(crate) type StripedRef<T> = Arc<Stripe<T>>;

#[derive(Debug)]
struct Stripes<T> {
    value: Arc<T>,
    /// With fewer stripes than shards of threads, each is repeated.
    refs: [StripedRef<T>; MAX_SHARDS],
    /// How often each is repeated.
    repeats: usize,
}

#[derive(Debug)]
pub(crate) struct Stripe<T> {
    value: Arc<T>,
    pub(crate) shard: Arc<Shard>,
    /// Keeps the reference counts of two stripes, which precede all this, a cache line apart.
    _padding: [u64; 4],
}

/// How a call ended, for the totals. Most successes are counted in the [`ShardWindow`] instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Succeeded,
    Failed,
    Throttled,
    Ignored,
    Abandoned,
    Stale,
    Rejected,
}

// === impl Shards ===

impl Shards {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| Arc::new(Shard::new())).collect())
    }

    /// The shard of this thread, which is assigned one if it has none.
    pub(crate) fn mine(&self) -> &Shard {
        assign_shard();
        &self.0[shard_index() % self.0.len()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Shard> {
        self.0.iter().map(|shard| &**shard)
    }

    pub(crate) fn totals(&self) -> Totals {
        let sum = |count: Count| {
            let counts = self.iter().map(|shard| &shard.totals[count as usize]);
            counts.map(|count| count.load(Relaxed)).sum()
        };
        let in_windows: u64 = self.iter().map(|shard| shard.window.total()).sum();
        Totals {
            succeeded: sum(Count::Succeeded) + in_windows,
            failed: sum(Count::Failed),
            throttled: sum(Count::Throttled),
            ignored: sum(Count::Ignored),
            abandoned: sum(Count::Abandoned),
            stale: sum(Count::Stale),
            rejected: sum(Count::Rejected),
        }
    }
}

// === impl Shard ===

impl Shard {
    fn new() -> Self {
        Self {
            window: ShardWindow::new(),
            totals: array::from_fn(|_| atomic::AtomicU64::new(0)),
            _padding: [0; 6],
        }
    }

    #[inline]
    pub(crate) fn count(&self, count: Count) {
        self.totals[count as usize].fetch_add(1, Relaxed);
    }
}

const KINDS: usize = 7;

// === impl StripedArc ===

impl<T> StripedArc<T> {
    /// With as many stripes as `value` has shards.
    pub(crate) fn new(value: T, shards: impl Fn(&T) -> &Shards) -> Self {
        let value = Arc::new(value);
        let stripe = |shard: &Arc<Shard>| {
            Arc::new(Stripe {
                value: value.clone(),
                shard: shard.clone(),
                _padding: [0; 4],
            })
        };
        let stripes: Box<[_]> = shards(&value).0.iter().map(stripe).collect();
        Self(Arc::new(Stripes {
            refs: array::from_fn(|index| stripes[index % stripes.len()].clone()),
            repeats: MAX_SHARDS / stripes.len(),
            value,
        }))
    }

    #[inline]
    pub(crate) fn get(&self) -> &T {
        &self.0.value
    }

    #[inline]
    pub(crate) fn hold(&self) -> StripedRef<T> {
        self.0.refs[shard_index()].clone()
    }

    /// Whether this is the only handle, and no reference is held.
    pub(crate) fn is_unique(&self) -> bool {
        // The counts are read relaxed, hence the fences: a thread that dropped a handle may have taken references through
        // it before, and a thread that dropped a reference may have counted a call.
        let no_handle = Arc::strong_count(&self.0) == 1;
        fence(Acquire);
        let is_free = |stripe: &StripedRef<T>| Arc::strong_count(stripe) == self.0.repeats;
        let no_reference = self.0.refs.iter().all(is_free);
        fence(Acquire);
        no_handle && no_reference
    }
}

impl<T> Clone for StripedArc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// === impl Stripe ===

impl<T> Deref for Stripe<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    #[test]
    fn threads_that_only_reject_do_not_all_count_in_one_shard() {
        let shards = Shards::new(MAX_SHARDS);
        let mine = || std::ptr::from_ref(shards.mine()).addr();
        let addresses: HashSet<_> = (0..2 * MAX_SHARDS)
            .map(|_| thread::scope(|scope| scope.spawn(mine).join().unwrap()))
            .collect();
        assert!(addresses.len() > 1);
    }
}
