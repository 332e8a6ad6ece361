use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The number of shards that threads are distributed over, and those of a circuit which all threads of a server use. Of more
/// than eight threads, several share a shard.
pub(crate) const MAX_SHARDS: usize = 8;
/// The shards of one of many circuits, which few threads use at the same time.
pub(crate) const FEW_SHARDS: usize = 2;

/// The shard of this thread. A thread that has [none assigned](assign_shard) uses the first.
#[inline]
pub(crate) fn shard_index() -> usize {
    SHARD.get() % MAX_SHARDS
}

/// Assigns the shards to threads in turn. Called when a thread first counts a call, so that the threads of a process
/// that never make calls do not skew the distribution.
pub(crate) fn assign_shard() {
    if SHARD.get() == UNASSIGNED {
        SHARD.set(MAX_SHARDS + NEXT.fetch_add(1, Relaxed) % MAX_SHARDS);
    }
}

const UNASSIGNED: usize = 0;

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Modulo [`MAX_SHARDS`].
    static SHARD: Cell<usize> = const { Cell::new(UNASSIGNED) };
}
