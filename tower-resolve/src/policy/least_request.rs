use super::{Candidates, Load, PickContext, Policy, Weights};

/// Of two candidates at random, the one with fewer requests in flight for its weight ("power of two choices").
///
/// The default: it evens out slow endpoints, does not herd onto the endpoint that looks best, and costs the same for two
/// endpoints and for ten thousand. See the [module](super) for how it treats failing endpoints.
///
/// Both candidates are drawn by weight. The first is taken, unless the second would have no more in flight for its weight
/// with this request than the first has without it. So the shares of idle endpoints are exactly their weights, and with
/// equal weights the less loaded of the two is always taken. If the first is the lighter of the two, it may have one request
/// more than that: one request is a large part of the capacity of a light endpoint, and without this one of weight 1 beside
/// one of weight 99 would get two thirds of its share at 50 requests in flight.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastRequest;

// === impl LeastRequest ===

impl LeastRequest {
    /// The policy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<Req> Policy<Req> for LeastRequest {
    type Table = Weights;

    fn table<C: Candidates>(&self, candidates: &C) -> Weights {
        Weights::of(candidates)
    }

    fn table_size<C: Candidates>(&self, candidates: &C) -> usize {
        Weights::size(candidates)
    }

    fn pick<C: Candidates>(&self, weights: &Weights, candidates: &C, _: &PickContext) -> usize {
        if candidates.count() < 2 {
            return 0;
        }
        let (one, other) = weights.pair(candidates);
        let [first, second] = [one, other].map(|index| Load::of(candidates, index));
        if second.is_below(&first) { other } else { one }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, is_about, picks};

    #[test]
    fn of_two_the_idle_endpoint_is_always_picked() {
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
    fn the_busiest_is_never_picked_and_the_idle_one_is_rarely_missed() {
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
    fn idle_ones_are_picked_by_weight() {
        for weights in [&[1, 2][..], &[1, 4], &[1, 99], &[1, 2, 3, 4]] {
            let total: u32 = weights.iter().sum();
            let picked = picks(&LeastRequest, &Some::of(weights), 50_000);
            for (picked, weight) in picked.into_iter().zip(weights) {
                let share = f64::from(*weight) / f64::from(total);
                assert!(is_about(picked, share, 50_000), "{weights:?}: {picked}");
            }
        }
    }

    #[test]
    fn a_heavy_one_may_have_more_in_flight() {
        let mut candidates = Some::of(&[4, 1]);
        candidates.in_flight = vec![2, 2];
        assert_eq!(
            picks(&LeastRequest, &candidates, 100),
            [100, 0],
            "3 of 4 is less than 2 of 1, even with one to spare"
        );
        candidates.in_flight = vec![8, 0];
        assert_eq!(picks(&LeastRequest, &candidates, 100), [0, 100]);
    }
}
