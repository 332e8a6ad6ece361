use super::{Candidates, Policy, Turn, two};

/// Of two candidates at random, the one with fewer requests in flight for its weight ("power of two choices").
///
/// The default: it evens out slow endpoints by itself, never herds onto the one that looks best, and costs the same for
/// two endpoints and for ten thousand. See the [module](super) for what a failing one looks like to it.
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

impl<Req> Policy<Req> for LeastRequest {
    type Table = ();

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), candidates: &C, _: &Turn) -> usize {
        let count = candidates.count();
        if count < 2 {
            return 0;
        }
        let (one, other) = two(count);
        let cost = |of: usize, beside: usize| {
            candidates
                .cost(of)
                .saturating_mul(candidates.weight(beside).into())
        };
        if cost(other, one) < cost(one, other) {
            other
        } else {
            one
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, is_about, picks};

    #[test]
    fn of_two_the_idle_one_is_always_picked() {
        assert_eq!(
            picks(&LeastRequest, &Some::with_loads(&[3, 0]), 100),
            [0, 100]
        );
        assert_eq!(
            picks(&LeastRequest, &Some::with_loads(&[1, 2]), 100),
            [100, 0]
        );
    }

    #[test]
    fn the_busiest_is_never_picked_and_the_idle_one_is_seldom_missed() {
        let picks = picks(&LeastRequest, &Some::with_loads(&[9, 1, 1, 0]), 6_000);
        assert_eq!(picks[0], 0, "whatever it is compared with has less");
        // It is one of the two in half of all picks.
        assert!(is_about(picks[3], 0.5, 6_000), "{picks:?}");
    }

    #[test]
    fn equals_are_picked_evenly() {
        for picked in picks(&LeastRequest, &Some::with_loads(&[5; 10]), 10_000) {
            assert!(is_about(picked, 0.1, 10_000), "{picked}");
        }
    }

    #[test]
    fn a_heavy_one_may_have_more_in_flight() {
        let mut candidates = Some::of(&[4, 1]);
        candidates.in_flight = vec![2, 0];
        assert_eq!(
            picks(&LeastRequest, &candidates, 100),
            [100, 0],
            "3 of 4 is less than 1 of 1"
        );
        candidates.in_flight = vec![4, 0];
        assert_eq!(picks(&LeastRequest, &candidates, 100), [0, 100]);
    }
}
