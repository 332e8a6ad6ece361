use crate::sync::atomic::{AtomicU64, Ordering};

#[cfg(all(test, loom))]
mod loom_tests;

/// The highest epoch of one key that is known to be remembered by the mark. Only grows.
///
/// A cache, not a floor by itself: while it is empty no token is accepted and none is rejected.
#[derive(Debug)]
pub(crate) struct CachedHighWater(AtomicU64);

/// How an epoch compares with the highest one known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// It is the highest.
    Current,
    /// This one is higher.
    Below(u64),
    /// It is higher than any seen here, or nothing was seen yet: the mark must be asked.
    Unknown,
}

// === impl CachedHighWater ===

impl CachedHighWater {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One plain load on x86.
    pub(crate) fn compare(&self, epoch: u64) -> Comparison {
        match self.0.load(Ordering::Acquire) {
            floor if floor > epoch => Comparison::Below(floor),
            floor if floor == epoch => Comparison::Current,
            _ => Comparison::Unknown,
        }
    }

    /// Records the mark's answer and returns the previous value. A late answer lowers nothing.
    pub(crate) fn raise(&self, highest: u64) -> u64 {
        self.0.fetch_max(highest, Ordering::AcqRel)
    }

    /// The highest epoch, if one is known.
    pub(crate) fn epoch(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|floor| *floor > 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn r21_an_empty_memory_is_not_a_floor() {
        let floor = CachedHighWater::new();
        assert_eq!(floor.compare(1), Comparison::Unknown);
        assert_eq!(floor.compare(u64::MAX - 1), Comparison::Unknown);
        assert_eq!(floor.epoch(), None);
    }

    #[test]
    fn i2_a_floor_only_rises() {
        let floor = CachedHighWater::new();
        assert_eq!(floor.raise(7), 0);
        assert_eq!(
            (floor.compare(6), floor.compare(7), floor.compare(8)),
            (
                Comparison::Below(7),
                Comparison::Current,
                Comparison::Unknown
            )
        );
        assert_eq!(floor.raise(5), 7, "an answer that comes late");
        assert_eq!(
            (floor.epoch(), floor.compare(5)),
            (Some(7), Comparison::Below(7))
        );
    }
}
