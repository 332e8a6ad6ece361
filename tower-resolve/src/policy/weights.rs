use super::{Candidates, two};

/// The table of the policies that draw by weight.
///
/// It is empty while the heaviest candidate weighs at most four times the mean: a draw then picks any candidate and accepts
/// it with the probability of its weight (rejection sampling), which takes at most four tries on average, and there is
/// nothing to rebuild when the set changes. Beyond that it is an alias table (Walker, 1977; Vose, 1991) of 8 bytes for each
/// candidate, and a draw is one lookup.
#[derive(Debug)]
pub struct Weights(Option<Box<[Column]>>);

/// One column of an alias table: all have the same size, and each holds at most two candidates.
#[derive(Clone, Copy, Debug)]
struct Column {
    /// How much of the column belongs to the candidate of the same index, of 2³².
    own: u32,
    /// The candidate that the rest belongs to.
    alias: u32,
}

// === impl Weights ===

impl Weights {
    pub(super) fn of<C: Candidates>(candidates: &C) -> Self {
        Self((Self::size(candidates) > 0).then(|| columns(candidates)))
    }

    /// The number of columns.
    pub(super) fn size<C: Candidates>(candidates: &C) -> usize {
        let count = candidates.count();
        let heaviest = u128::from(candidates.heaviest()) * count as u128;
        let is_skewed = heaviest > SKEWED * u128::from(candidates.total_weight());
        if is_skewed { count } else { 0 }
    }

    /// A candidate at random, by weight and warmth.
    pub(super) fn draw<C: Candidates>(&self, candidates: &C) -> usize {
        let (count, heaviest) = (candidates.count(), f64::from(candidates.heaviest()));
        let mut index = 0;
        for _ in 0..TRIES {
            let part;
            (index, part) = match self.at(fastrand::u64(..)) {
                Some(index) => (index, f64::from(candidates.warmth(index))),
                None => {
                    let index = fastrand::usize(..count);
                    (index, effective(candidates, index) / heaviest)
                }
            };
            if is_accepted(part) {
                break;
            }
        }
        index
    }

    /// Two different candidates of at least two, each drawn by weight and warmth. If the same one is drawn twice, the second
    /// is any other one.
    pub(super) fn pair<C: Candidates>(&self, candidates: &C) -> (usize, usize) {
        let count = candidates.count();
        let (one, mut other) = if is_even(candidates) {
            // The usual case takes one random number.
            let (one, other) = two(count);
            let warm = |index| match is_accepted(f64::from(candidates.warmth(index))) {
                true => index,
                false => self.draw(candidates),
            };
            (warm(one), warm(other))
        } else {
            (self.draw(candidates), self.draw(candidates))
        };
        if one == other {
            other = (one + 1 + fastrand::usize(..count - 1)) % count;
        }
        (one, other)
    }

    /// The candidate at a point of the range of all `u64`s, which it shares by weight. `None`: there is no alias table.
    pub(super) fn at(&self, point: u64) -> Option<usize> {
        let columns = self.0.as_deref()?;
        let scaled = u128::from(point) * columns.len() as u128;
        let (index, within) = ((scaled >> 64) as usize, (scaled >> 32) as u32);
        let column = columns[index];
        Some(if within < column.own {
            index
        } else {
            column.alias as usize
        })
    }
}

/// The weight in use: less during slow start.
pub(super) fn effective<C: Candidates>(candidates: &C, index: usize) -> f64 {
    f64::from(candidates.weight(index)) * f64::from(candidates.warmth(index))
}

/// Whether all have the same weight.
pub(super) fn is_even<C: Candidates>(candidates: &C) -> bool {
    candidates.total_weight() == u64::from(candidates.heaviest()) * candidates.count() as u64
}

/// True with this probability; takes a random number only where that is below 1.
pub(super) fn is_accepted(part: f64) -> bool {
    part >= 1.0 || fastrand::f64() < part
}

/// Vose's construction: each column takes what one light candidate has, and is filled up by a heavy one.
fn columns<C: Candidates>(candidates: &C) -> Box<[Column]> {
    let (count, total) = (candidates.count(), u128::from(candidates.total_weight()));
    // In units of which a column holds `total`. A column that stays as it is belongs to one candidate alone.
    let mut left: Vec<u128> = (0..count)
        .map(|index| u128::from(candidates.weight(index)) * count as u128)
        .collect();
    let mut columns: Vec<Column> = (0..count as u32)
        .map(|alias| Column {
            own: u32::MAX,
            alias,
        })
        .collect();
    let (mut light, mut heavy): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|index| left[*index] < total);
    while let (Some(index), Some(alias)) = (light.pop(), heavy.last().copied()) {
        columns[index] = Column {
            own: ((left[index] << 32) / total) as u32,
            alias: alias as u32,
        };
        left[alias] -= total - left[index];
        if left[alias] < total {
            heavy.pop();
            light.push(alias);
        }
    }
    columns.into()
}

/// The largest weight without a table, as a multiple of the mean.
const SKEWED: u128 = 4;

/// A draw takes the last candidate after this number of tries. Without a table and with all candidates at a tenth of their
/// warmth one draw in 25 reaches it; usually one in 10¹⁵ does.
const TRIES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, is_about};

    fn drawn(candidates: &Some, times: u64) -> Vec<u64> {
        let weights = Weights::of(candidates);
        let mut drawn = vec![0; candidates.count()];
        (0..times).for_each(|_| drawn[weights.draw(candidates)] += 1);
        drawn
    }

    #[test]
    fn draws_are_by_weight_with_a_table_and_without() {
        let skewed: Vec<u32> = (0..40)
            .map(|index| [1, 7, 65_535][index % 40 / 19])
            .collect();
        for weights in [&[1; 10][..], &[1, 2, 3, 4], &[1, 99], &skewed] {
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            let drawn = drawn(&Some::of(weights), 100_000);
            for (drawn, weight) in drawn.iter().zip(weights) {
                let share = f64::from(*weight) / total;
                assert!(is_about(*drawn, share, 100_000), "{weights:?}: {drawn}");
            }
        }
    }

    #[test]
    fn the_columns_of_an_alias_table_add_up_to_the_weights() {
        let weights = [1, 1, 1, 1, 1, 1, 1, 1, 1, 300, 5, 65_535];
        let candidates = Some::of(&weights);
        let columns = Weights::of(&candidates).0.expect("skewed");
        let mut parts = vec![0_u64; weights.len()];
        for (index, column) in columns.iter().enumerate() {
            parts[index] += u64::from(column.own);
            parts[column.alias as usize] += (1 << 32) - u64::from(column.own);
        }
        let all = (weights.len() as f64) * 2_f64.powi(32);
        let total = candidates.total_weight() as f64;
        for (part, weight) in parts.iter().zip(weights) {
            let off = *part as f64 / all - f64::from(weight) / total;
            assert!(off.abs() < 1e-8, "{weight}: {off}");
        }
    }

    #[test]
    fn a_cold_candidate_is_drawn_less_often_by_its_warmth() {
        for weights in [&[2, 2, 2, 2][..], &[1, 2, 3, 4], &[1, 1, 1, 1, 1, 1, 1, 93]] {
            let mut candidates = Some::of(weights);
            candidates.warmth[1] = 0.1;
            let total = candidates.total_weight() as f64 - 0.9 * f64::from(weights[1]);
            let drawn = drawn(&candidates, 100_000);
            for (index, weight) in weights.iter().enumerate() {
                let weight = f64::from(*weight) * f64::from(candidates.warmth[index]);
                assert!(is_about(drawn[index], weight / total, 100_000), "{drawn:?}");
            }
        }
    }

    #[test]
    fn two_are_different_and_the_first_is_drawn_by_weight() {
        for (weights, warmth) in [([1, 99], 1.0), ([1, 1], 0.1), ([3, 3], 1.0)] {
            let mut candidates = Some::of(&weights);
            candidates.warmth[0] = warmth;
            let table = Weights::of(&candidates);
            let mut first = 0;
            for _ in 0..50_000 {
                let (one, other) = table.pair(&candidates);
                assert_ne!(one, other);
                first += u64::from(one == 0);
            }
            let light = f64::from(weights[0]) * f64::from(warmth);
            let share = light / (light + f64::from(weights[1]));
            assert!(is_about(first, share, 50_000), "{weights:?}: {first}");
        }
    }
}
