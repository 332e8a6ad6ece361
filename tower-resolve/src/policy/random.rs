use super::{Candidates, Policy, Turn};

/// Any candidate, each as often as its weight says.
///
/// Needs no state, so threads and clients cannot disturb each other. Less even than a round: of 100 requests to ten
/// endpoints, one usually gets 15 or more. Where weights differ, it throws again until one is accepted by its weight: as
/// often as the heaviest is above the mean, and at most 64 times.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

// === impl Random ===

impl Random {
    /// The policy; it has no knobs.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<Req> Policy<Req> for Random {
    type Table = ();

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), candidates: &C, _: &Turn) -> usize {
        let (count, heaviest) = (candidates.count(), candidates.heaviest());
        let mut index = fastrand::usize(..count);
        if candidates.total_weight() == u64::from(heaviest) * count as u64 {
            return index;
        }
        for _ in 0..THROWS {
            if fastrand::u32(..heaviest) < candidates.weight(index) {
                break;
            }
            index = fastrand::usize(..count);
        }
        index
    }
}

const THROWS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, is_about, picks};

    #[test]
    fn the_shares_are_those_of_the_weights() {
        for weights in [&[1; 10][..], &[1, 2, 3, 4]] {
            let total: u32 = weights.iter().sum();
            let picked = picks(&Random, &Some::of(weights), 20_000);
            for (picked, weight) in picked.iter().zip(weights) {
                let share = f64::from(*weight) / f64::from(total);
                assert!(is_about(*picked, share, 20_000), "{weights:?}: {picked}");
            }
        }
    }
}
