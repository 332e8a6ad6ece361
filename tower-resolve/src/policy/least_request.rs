use super::{Candidates, Policy, Turn};

/// Of two candidates at random, the one with fewer requests in flight ("power of two choices").
///
/// The default: it evens out slow endpoints by itself, never herds onto the one that looks best, and costs the same for
/// two endpoints and for ten thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastRequest;

// === impl LeastRequest ===

impl LeastRequest {
    /// The policy; it has no knobs.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl Policy for LeastRequest {
    type Table = ();

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), candidates: &C, _: &Turn) -> usize {
        let count = candidates.count();
        if count < 2 {
            return 0;
        }
        let one = fastrand::usize(..count);
        // Any other one: a distance of 1 to count - 1, around the circle.
        let distance = 1 + fastrand::usize(..count - 1);
        let other = if one + distance < count { one + distance } else { one + distance - count };
        if candidates.in_flight(other) < candidates.in_flight(one) { other } else { one }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Loads;

    fn picks(loads: &[u32], times: usize) -> Vec<usize> {
        let mut picks = vec![0; loads.len()];
        for _ in 0..times {
            picks[LeastRequest.pick(&(), &Loads(loads), &Turn::new(0))] += 1;
        }
        picks
    }

    #[test]
    fn of_two_the_idle_one_is_always_picked() {
        assert_eq!(picks(&[3, 0], 100), [0, 100]);
        assert_eq!(picks(&[1, 2], 100), [100, 0]);
    }

    #[test]
    fn the_busiest_is_never_picked_and_the_idle_one_is_seldom_missed() {
        let picks = picks(&[9, 1, 1, 0], 6_000);
        assert_eq!(picks[0], 0, "whatever it is compared with has less");
        // It is one of the two in half of all picks.
        assert!((2_700..3_300).contains(&picks[3]), "{picks:?}");
    }

    #[test]
    fn equals_are_picked_evenly() {
        for picked in picks(&[5; 10], 10_000) {
            assert!((850..1_150).contains(&picked), "{picked}");
        }
    }
}
