use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    Candidates, PickContext, Policy, Weights,
    weights::{is_accepted, is_even},
};
use crate::stripe::Stripes;

/// Each candidate in order, as often as its weight requires.
///
/// With equal weights this is a plain round. Otherwise a candidate is skipped in a round unless its stride has come up, so
/// that the turns of a heavy one are spread out (gRPC's A58, "static stride scheduler"): there is no table, so a change of
/// the set or of a weight costs nothing, and a pick takes on average as many steps as the ratio of the heaviest weight to
/// the mean. If that is more than four, the turns are read from a table, in an order that is as even in the long run but
/// leaves larger gaps.
///
/// Clones of a balance share the round; each thread has a separate one (up to 16 of them), so that threads do not contend
/// for one counter: with *t* threads and equal weights, no endpoint is ever more than *t* requests ahead of another. A round
/// starts at a random position, so that clients that start together are not in step.
#[derive(Debug)]
pub struct RoundRobin {
    next: Stripes<AtomicU64>,
}

// === impl RoundRobin ===

impl RoundRobin {
    /// The policy; it has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Stripes::new(|| AtomicU64::new(u64::from(fastrand::u32(..)))),
        }
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl<Req> Policy<Req> for RoundRobin {
    type Table = Weights;

    fn table<C: Candidates>(&self, candidates: &C) -> Weights {
        Weights::of(candidates)
    }

    fn table_size<C: Candidates>(&self, candidates: &C) -> usize {
        Weights::size(candidates)
    }

    fn pick<C: Candidates>(&self, weights: &Weights, candidates: &C, _: &PickContext) -> usize {
        let (count, heaviest) = (candidates.count() as u64, u64::from(candidates.heaviest()));
        let (next, is_even) = (self.next.own(), is_even(candidates));
        let mut index = 0;
        for _ in 0..STEPS {
            let turn = next.fetch_add(1, Relaxed);
            let (is_due, at) = match weights.at(turn.wrapping_mul(GOLDEN)) {
                Some(index) => (true, index),
                None if is_even => (true, (turn % count) as usize),
                None => {
                    let (round, at) = (turn / count, turn % count);
                    let weight = u64::from(candidates.weight(at as usize));
                    (is_due(weight, heaviest, round, at), at as usize)
                }
            };
            index = at;
            if is_due && is_accepted(f64::from(candidates.warmth(index))) {
                break;
            }
        }
        index
    }
}

/// Whether a multiple of the heaviest weight lies between its sum in this round and in the previous one. Every other one
/// starts half a stride later, so that equals of half the weight do not come in one round.
fn is_due(weight: u64, heaviest: u64, round: u64, index: u64) -> bool {
    let offset = if index.is_multiple_of(2) {
        0
    } else {
        heaviest / 2
    };
    let had = (weight.wrapping_mul(round % heaviest) + offset) % heaviest;
    had + weight >= heaviest
}

/// The multiples of 2⁶⁴ ÷ the golden ratio fill the range of a `u64` more evenly than those of any other number.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Four on average at most, ten times that when all are at the start of their slow start.
const STEPS: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::testing::{Some, picks};

    #[test]
    fn each_gets_its_turn() {
        let picks = picks(&RoundRobin::new(), &Some::with_loads(&[9, 0, 0]), 30);
        assert_eq!(picks, [10; 3], "whatever it has in flight");
    }

    #[test]
    fn equal_weights_are_picked_in_turn() {
        assert_eq!(picks(&RoundRobin::new(), &Some::of(&[7; 5]), 50), [10; 5]);
    }

    #[test]
    fn on_several_threads_no_endpoint_is_further_ahead_than_there_are_threads() {
        let (policy, candidates) = (RoundRobin::new(), Some::of(&[1; 7]));
        let picked = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| picks(&policy, &candidates, 1_003)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .fold(vec![0; 7], |mut sum, picks| {
                    sum.iter_mut()
                        .zip(picks)
                        .for_each(|(sum, picks)| *sum += picks);
                    sum
                })
        });
        assert!(
            picked.iter().max().unwrap() - picked.iter().min().unwrap() <= 4,
            "{picked:?}"
        );
    }

    #[test]
    fn a_heavy_ones_turns_are_spread_out() {
        let policy = RoundRobin::new();
        let candidates = Some::of(&[4, 1, 1]);
        let table = Policy::<u64>::table(&policy, &candidates);
        let order: Vec<_> = (0..60)
            .map(|_| Policy::<u64>::pick(&policy, &table, &candidates, &PickContext::new(None, 0)))
            .collect();
        assert_eq!(order.iter().filter(|picked| **picked == 0).count(), 40);
        assert!(
            !order.windows(5).any(|picked| picked == [0; 5]),
            "{order:?}"
        );
    }

    #[test]
    fn weights_that_are_most_uneven_are_kept_to_the_percent() {
        let mut weights = [1; 21];
        weights[10] = 2_000;
        let picked = picks(&RoundRobin::new(), &Some::of(&weights), 50 * 2_020);
        assert!(picked[10].abs_diff(100_000) < 100, "{}", picked[10]);
        for (index, picked) in picked.iter().enumerate().filter(|(index, _)| *index != 10) {
            assert!(picked.abs_diff(50) <= 2, "{index}: {picked}");
        }
    }

    proptest! {
        /// In whole rounds of strides the shares are exact; in between off by a pick or two for each endpoint.
        #[test]
        fn the_shares_are_those_of_the_weights(weights in proptest::collection::vec(1_u32..20, 1..8)) {
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let picked = picks(&RoundRobin::new(), &Some::of(&weights), 100 * total);
            for (picked, weight) in picked.iter().zip(&weights) {
                let share = 100 * u64::from(*weight);
                prop_assert!(picked.abs_diff(share) <= 4, "{weights:?}: {picked} instead of {share}");
            }
        }
    }
}
