//! A fixed number of permits.

use crate::sync::{
    Arc, AtomicUsize,
    Ordering::{AcqRel, Relaxed},
};

/// Exactly `max` permits: never is one more taken, and a permit that is dropped is available to the next caller.
///
/// There are no wakers: a caller that gets no permit rejects its connection.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    max: usize,
    taken: Arc<AtomicUsize>,
}

/// A permit, returned on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    taken: Arc<AtomicUsize>,
}

// === impl Slots ===

impl Slots {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            taken: Arc::new(AtomicUsize::new(0)),
        }
    }

    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    pub(crate) fn take(&self) -> Option<Permit> {
        let more = |taken: usize| (taken < self.max).then(|| taken + 1);
        self.taken.fetch_update(AcqRel, Relaxed, more).ok()?;
        Some(Permit {
            taken: self.taken.clone(),
        })
    }
}

// === impl Permit ===

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, AcqRel);
    }
}
