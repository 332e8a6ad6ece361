use crate::{
    BootInstant,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;

/// The gate itself: which epoch, until when, and how many are inside. One writer (the keeper), any number of readers.
///
/// Readers compare the clock with `until` themselves, so the gate closes on time even if no task runs.
#[derive(Debug)]
pub(crate) struct LeaseCell {
    /// Only grows.
    epoch: AtomicU64,
    /// Nanoseconds, even; the lowest bit means that no more requests are admitted. 0 when closed, and always 0 while `epoch` changes.
    valid: AtomicU64,
    /// The value of `valid` when it was closed.
    ended: AtomicU64,
    in_flight: AtomicUsize,
}

/// What a reader saw: everything in it is of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) epoch: u64,
    pub(crate) until: BootInstant,
    pub(crate) draining: bool,
}

const DRAINING: u64 = 1;

// === impl LeaseCell ===

impl LeaseCell {
    pub(crate) fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            valid: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// Reads (epoch, until) of one epoch. Three plain loads on x86.
    ///
    /// Why they belong together: `epoch` only grows, and the writer stores 0 to `valid` before it and the new validity
    /// after it. Having read `e` (acquire), we see that 0 or something later. If what we read from `valid` (acquire)
    /// belongs to a later epoch, then that epoch's store happened before ours of `valid`, so the second look at `epoch`
    /// must see it, and differs. So equal looks mean: closed, or of `e`.
    pub(crate) fn read(&self) -> Reading {
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            let valid = self.valid.load(Ordering::Acquire);
            if self.epoch.load(Ordering::Relaxed) == epoch {
                return Reading {
                    epoch,
                    until: BootInstant::from_nanos(valid & !DRAINING),
                    draining: valid & DRAINING != 0,
                };
            }
        }
    }

    /// Opens for a new epoch.
    pub(crate) fn open(&self, epoch: u64, until: BootInstant) {
        debug_assert_eq!(
            self.valid.load(Ordering::Relaxed),
            0,
            "an epoch opens only after the last was closed"
        );
        self.epoch.store(epoch, Ordering::Release);
        self.valid
            .store(until.as_nanos() & !DRAINING, Ordering::Release);
    }

    /// Moves the end of an open epoch.
    pub(crate) fn extend(&self, until: BootInstant) {
        let draining = self.valid.load(Ordering::Relaxed) & DRAINING;
        self.valid
            .store((until.as_nanos() & !DRAINING) | draining, Ordering::Release);
    }

    /// Admits no more requests; those in flight may stay until the end.
    pub(crate) fn drain(&self) {
        let valid = self.valid.load(Ordering::Relaxed);
        if valid != 0 {
            self.valid.store(valid | DRAINING, Ordering::Release);
        }
    }

    /// Ends the epoch, now and for everyone.
    pub(crate) fn close(&self) {
        let until = self.valid.load(Ordering::Relaxed) & !DRAINING;
        if until != 0 {
            self.ended.store(until, Ordering::Release);
        }
        self.valid.store(0, Ordering::Release);
    }

    /// The end of this epoch's validity, closed or not; `None` if a later one has begun.
    ///
    /// A later epoch stores `ended` only after it has stored `epoch`, so the last load of `epoch` decides.
    pub(crate) fn ended_by(&self, epoch: u64) -> Option<BootInstant> {
        let until = match self.valid.load(Ordering::Acquire) & !DRAINING {
            0 => self.ended.load(Ordering::Acquire),
            until => until,
        };
        Some(BootInstant::from_nanos(until)).filter(|_| self.epoch.load(Ordering::Relaxed) == epoch)
    }

    /// Counts one in. Must come *before* the reading that decides: see [`in_flight`](Self::in_flight).
    pub(crate) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one out; true if it was the last.
    pub(crate) fn leave(&self) -> bool {
        self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// How many are inside. After [`drain`](Self::drain), 0 means that none is and none will be.
    ///
    /// It is a read-modify-write so that it stands in one order with every `enter`: one that came before is counted
    /// here; one that comes after reads from this write and so sees the gate draining. No `SeqCst` is needed for that.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.fetch_add(0, Ordering::AcqRel)
    }
}

// === impl Reading ===

impl Reading {
    /// Whether the epoch lasts at `now`, for those inside.
    pub(crate) fn lasts(&self, now: BootInstant) -> bool {
        now < self.until
    }

    /// Whether new ones are let in, as far as that is known without the clock.
    pub(crate) fn seems_open(&self) -> bool {
        !self.draining && self.until > BootInstant::from_nanos(0)
    }
}
