use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How requests fared at a lease's gates, in plain numbers. From [`Lease::requests`](crate::Lease::requests).
///
/// They count from the making of the lease, over all its epochs and layers, and each only grows, but for `inside`.
/// What is let in and answered is not counted: that would cost every request, and is the business of an access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestCounts {
    /// Not let in: not held, or not for long enough.
    pub refused: u64,
    /// Not let in: meant for another instance.
    pub misdirected: u64,
    /// Cut off at a loss, their inner futures dropped.
    pub cancelled: u64,
    /// Answered after a loss, and the answer replaced.
    pub replaced: u64,
    /// Answers whose bodies broke off at a loss.
    pub broken_off: u64,
    /// Inside now: requests, the bodies of their answers, tickets.
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
