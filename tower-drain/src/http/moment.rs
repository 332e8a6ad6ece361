//! An instant in one atomic word.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Milliseconds since the connection was accepted, plus one. `0`: none.
#[derive(Debug)]
pub(super) struct Moment(AtomicU64);

// === impl Moment ===

impl Moment {
    pub(super) const fn none() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    pub(super) fn set(&self, born: Instant, moment: Instant) {
        let millis = moment.saturating_duration_since(born).as_millis() as u64;
        self.0.store(millis + 1, Relaxed);
    }

    pub(super) fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    pub(super) fn get(&self, born: Instant) -> Option<Instant> {
        let millis = self.0.load(Relaxed).checked_sub(1)?;
        Some(born + Duration::from_millis(millis))
    }
}
