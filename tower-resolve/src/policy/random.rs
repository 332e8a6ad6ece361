use super::{Candidates, PickContext, Policy, Weights};

/// Any candidate, each as often as its weight requires.
///
/// It has no state, so threads and clients do not affect each other. Less even than a round: of 100 requests to ten
/// endpoints, one usually gets 15 or more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

// === impl Random ===

impl Random {
    /// The policy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<Req> Policy<Req> for Random {
    type Table = Weights;

    fn table<C: Candidates>(&self, candidates: &C) -> Weights {
        Weights::of(candidates)
    }

    fn table_size<C: Candidates>(&self, candidates: &C) -> usize {
        Weights::size(candidates)
    }

    fn pick<C: Candidates>(&self, weights: &Weights, candidates: &C, _: &PickContext) -> usize {
        weights.draw(candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, is_about, picks};

    #[test]
    fn the_shares_are_those_of_the_weights() {
        for weights in [&[1; 10][..], &[1, 2, 3, 4], &[1, 65_535]] {
            let total: u32 = weights.iter().sum();
            let picked = picks(&Random, &Some::of(weights), 20_000);
            for (picked, weight) in picked.iter().zip(weights) {
                let share = f64::from(*weight) / f64::from(total);
                assert!(is_about(*picked, share, 20_000), "{weights:?}: {picked}");
            }
        }
    }
}
