use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of requests at the gates of a lease. From [`Lease::requests`](crate::Lease::requests).
///
/// They count from the creation of the lease, over all its epochs and layers, and each only grows, but for `inside`.
/// Requests that are admitted and answered are not counted, because that would cost every request; an access log has
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestCounts {
    /// Rejected: not held, or not for long enough.
    pub refused: u64,
    /// Rejected: meant for another instance.
    pub misdirected: u64,
    /// Cancelled when the lease was lost; their inner futures were dropped.
    pub cancelled: u64,
    /// Completed after a loss; the response was replaced.
    pub replaced: u64,
    /// Responses whose bodies were cut off at a loss.
    pub broken_off: u64,
    /// In flight now: requests, response bodies, and each [`LeaseGuard`](crate::LeaseGuard).
    pub inside: usize,
}

/// Counted only where something goes wrong, so no admitted request pays for it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    refused: AtomicU64,
    misdirected: AtomicU64,
    cancelled: AtomicU64,
    replaced: AtomicU64,
    broken_off: AtomicU64,
}

// === impl Counters ===

impl Counters {
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn misdirected(&self) {
        self.misdirected.fetch_add(1, Relaxed);
    }

    pub(crate) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    pub(crate) fn replaced(&self) {
        self.replaced.fetch_add(1, Relaxed);
    }

    pub(crate) fn broken_off(&self) {
        self.broken_off.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self, inside: usize) -> RequestCounts {
        RequestCounts {
            refused: self.refused.load(Relaxed),
            misdirected: self.misdirected.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            replaced: self.replaced.load(Relaxed),
            broken_off: self.broken_off.load(Relaxed),
            inside,
        }
    }
}
