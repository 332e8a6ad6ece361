use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Candidates, Policy, Turn};

/// One candidate after the other, in the order of their ids.
///
/// Starts somewhere at random, so that many clients started at once do not walk in step. Clones of a balance share the
/// turn.
#[derive(Debug)]
pub struct RoundRobin {
    next: AtomicUsize,
}

// === impl RoundRobin ===

impl RoundRobin {
    /// The policy; it has no knobs.
    #[must_use]
    pub fn new() -> Self {
        Self { next: AtomicUsize::new(fastrand::u32(..) as usize) }
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for RoundRobin {
    type Table = ();

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), candidates: &C, _: &Turn) -> usize {
        self.next.fetch_add(1, Relaxed) % candidates.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Loads;

    #[test]
    fn each_gets_its_turn() {
        // From zero: the one uneven step, where the counter wraps, is 2^64 requests away.
        let policy = RoundRobin { next: AtomicUsize::new(0) };
        let mut picks = [0; 3];
        for _ in 0..30 {
            picks[policy.pick(&(), &Loads(&[9, 0, 0]), &Turn::new(0))] += 1;
        }
        assert_eq!(picks, [10; 3]);
    }
}
