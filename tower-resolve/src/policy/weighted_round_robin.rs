use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Candidates, Policy, Turn};
use crate::stripe::Stripes;

/// One candidate after the other, each as often as its weight says: a static stride schedule.
///
/// In each round a candidate is passed over unless its stride comes round, so that the turns of a heavy one are spread out
/// and not in a row (gRPC's A58, "static stride scheduler"). There is no table, so a change of the set or of a weight
/// costs nothing. A pick takes as many steps as the heaviest is above the mean weight, on average, and at most 64: one
/// endpoint far above 64 times the mean gets less than its share. Each thread walks a round of its own, as in
/// [`RoundRobin`](super::RoundRobin).
#[derive(Debug)]
pub struct WeightedRoundRobin {
    next: Stripes<AtomicU64>,
}

// === impl WeightedRoundRobin ===

impl WeightedRoundRobin {
    /// The policy; it has no knobs.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Stripes::new(|| AtomicU64::new(u64::from(fastrand::u32(..)))),
        }
    }
}

impl Default for WeightedRoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl<Req> Policy<Req> for WeightedRoundRobin {
    type Table = ();

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), candidates: &C, _: &Turn) -> usize {
        let (count, heaviest) = (candidates.count() as u64, u64::from(candidates.heaviest()));
        let next = self.next.own();
        let mut index = 0;
        for _ in 0..STEPS {
            let turn = next.fetch_add(1, Relaxed);
            let round = turn / count;
            index = (turn % count) as usize;
            if is_due(
                u64::from(candidates.weight(index)),
                heaviest,
                round,
                turn % count,
            ) {
                break;
            }
        }
        index
    }
}

/// Whether a multiple of the heaviest weight lies between what it has by this round and what it had by the last. Every other
/// one starts half a stride on, so that equals of half the weight do not come in one round.
fn is_due(weight: u64, heaviest: u64, round: u64, index: u64) -> bool {
    let offset = if index.is_multiple_of(2) {
        0
    } else {
        heaviest / 2
    };
    let had = (weight.wrapping_mul(round % heaviest) + offset) % heaviest;
    had + weight >= heaviest
}

const STEPS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::testing::{Some, picks};

    #[test]
    fn equals_are_picked_in_turn() {
        assert_eq!(
            picks(&WeightedRoundRobin::new(), &Some::of(&[7; 5]), 50),
            [10; 5]
        );
    }

    #[test]
    fn a_heavy_ones_turns_are_spread_out() {
        let policy = WeightedRoundRobin::new();
        let candidates = Some::of(&[4, 1, 1]);
        let order: Vec<_> = (0..60)
            .map(|_| Policy::<u64>::pick(&policy, &(), &candidates, &Turn::new(None, 0)))
            .collect();
        assert_eq!(order.iter().filter(|picked| **picked == 0).count(), 40);
        assert!(
            !order.windows(5).any(|picked| picked == [0; 5]),
            "{order:?}"
        );
    }

    proptest! {
        /// In whole rounds of strides the shares are exact; in between off by a pick or two for each endpoint.
        #[test]
        fn the_shares_are_those_of_the_weights(weights in proptest::collection::vec(1_u32..20, 1..8)) {
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let picked = picks(&WeightedRoundRobin::new(), &Some::of(&weights), 100 * total);
            for (picked, weight) in picked.iter().zip(&weights) {
                let share = 100 * u64::from(*weight);
                prop_assert!(picked.abs_diff(share) <= 4, "{weights:?}: {picked} instead of {share}");
            }
        }
    }
}
