use std::num::NonZeroU32;

use super::{
    Bound, Candidates, PickContext, Policy,
    hash::{LOOKS, is_to_come, key, key_of, mixed},
};

/// Keeps each key at one endpoint: the next one on a ring of hashes (consistent hashing).
///
/// A request without a key goes to any endpoint. When an endpoint is added or removed, only the keys that it gains or loses
/// move: of *n* endpoints, one in *n*. An endpoint that is only not ready keeps its place on the ring, and its keys go to
/// the next one until it is ready again.
///
/// ```
/// use http::Request;
/// use tower_resolve::policy::{self, RingHash};
///
/// let by_user = RingHash::new(|request: &Request<String>| {
///     request.headers().get("x-user").map(|user| policy::key(user.as_bytes()))
/// });
/// # let _ = by_user;
/// ```
///
/// # The ring
///
/// A pick costs a binary search. An endpoint has [`points`](Self::points) on the ring for each unit of its weight, 100 by
/// default, where the unit is the greatest common divisor of all weights: 1000 : 2000 : 3000 is the ring of 1 : 2 : 3. Its
/// share is right to one part in the root of its points (the standard deviation), so to 10 % for the lightest. A point
/// costs 16 bytes, so with equal weights an endpoint costs 1.6 kB.
///
/// The points of an endpoint do not depend on other endpoints, so that keys move only to and from the endpoint that changes;
/// that is why small sets are not filled up to a minimum size. Weights without a common divisor would make the ring large.
/// If a ring has more than [`MIN_CUT`](Self::MIN_CUT) points, its unit is doubled until an endpoint has at most 16 times
/// `points` on average, and the ring at most [`max_ring_size`](Self::max_ring_size); a `debug` event reports it. The shares
/// remain, but become less exact, and each endpoint has at least one point. A change of the weights that changes the unit
/// moves many keys.
///
/// The ring is built when the set or a weight changes, not when readiness does; a large one on a thread for blocking
/// work, while requests use the one before.
#[derive(Clone, Debug)]
pub struct RingHash<F> {
    key: F,
    points: NonZeroU32,
    max_size: NonZeroU32,
    bound: Bound,
}

/// The table of [`RingHash`]: the points of all candidates, in order, each with the index of its candidate.
#[derive(Debug)]
pub struct Ring(Box<[(u64, u32)]>);

// === impl RingHash ===

impl RingHash<()> {
    /// A ring with up to this number of points, 1 MB, is never cut.
    pub const MIN_CUT: u32 = 65_536;
}

impl<F> RingHash<F> {
    /// The policy for keys that `key` takes from the request. [`policy::key`](key) makes a key of bytes.
    pub const fn new<Req>(key: F) -> Self
    where
        F: Fn(&Req) -> Option<u64>,
    {
        Self {
            key,
            points: const { NonZeroU32::new(100).unwrap() },
            max_size: const { NonZeroU32::new(1 << 20).unwrap() },
            bound: Bound::NONE,
        }
    }

    /// The number of points of an endpoint for each unit of its weight. Default: 100. More points give more even shares, and
    /// cost more time and memory.
    #[must_use]
    pub fn points(self, points: NonZeroU32) -> Self {
        Self { points, ..self }
    }

    /// The maximum number of points of the ring, not counting the one that each endpoint has in any case. Default: 1 048
    /// 576, which takes 16 MB and is enough for 10 000 endpoints.
    #[must_use]
    pub fn max_ring_size(self, points: NonZeroU32) -> Self {
        Self {
            max_size: points,
            ..self
        }
    }

    /// How far an endpoint may exceed the mean number of requests in flight. Default: [`Bound::NONE`], so that keys do not
    /// move.
    #[must_use]
    pub fn bound(self, bound: Bound) -> Self {
        Self { bound, ..self }
    }

    /// The weight that has [`points`](Self::points), and the number of points of the ring with that, and with the greatest
    /// common divisor.
    fn unit<C: Candidates>(&self, candidates: &C) -> (u64, [u128; 2]) {
        let points = u64::from(self.points.get());
        let mut unit = (0..candidates.count())
            .map(|index| u64::from(candidates.weight(index)))
            .reduce(gcd)
            .unwrap_or(1);
        let size =
            |unit| u128::from(points) * u128::from(candidates.total_weight()) / u128::from(unit);
        let most = (CUT_ABOVE * points)
            .saturating_mul(candidates.count() as u64)
            .max(RingHash::MIN_CUT.into())
            .min(self.max_size.get().into());
        let full = size(unit);
        while size(unit) > most.into() {
            unit *= 2;
        }
        (unit, [size(unit), full])
    }
}

const fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 {
        one
    } else {
        gcd(other, one % other)
    }
}

impl<Req, F> Policy<Req> for RingHash<F>
where
    F: Fn(&Req) -> Option<u64> + Send + Sync + 'static,
{
    type Table = Ring;

    const KEEPS_UNREADY: bool = true;

    fn counts_total(&self) -> bool {
        self.bound != Bound::NONE
    }

    fn table<C: Candidates>(&self, candidates: &C) -> Ring {
        let (unit, [size, full]) = self.unit(candidates);
        if size < full {
            let endpoints = candidates.count();
            tracing::debug!(endpoints, %full, %size, "the ring was cut, its shares are less exact");
        }
        let scale = u64::from(self.points.get());
        let mut points = Vec::with_capacity(size as usize + candidates.count());
        for index in 0..candidates.count() {
            let seed = key(candidates.endpoint(index).id().as_str().as_bytes());
            let count = (u64::from(candidates.weight(index)) * scale / unit).max(1);
            points.extend((0..count).map(|point| (mixed(seed ^ mixed(point + 1)), index as u32)));
        }
        points.sort_unstable();
        Ring(points.into())
    }

    fn table_size<C: Candidates>(&self, candidates: &C) -> usize {
        self.unit(candidates).1[0] as usize
    }

    fn key(&self, request: &Req) -> Option<u64> {
        (self.key)(request)
    }

    fn pick<C: Candidates>(
        &self,
        Ring(points): &Ring,
        candidates: &C,
        context: &PickContext,
    ) -> usize {
        let key = key_of(context);
        let start = points.partition_point(|(point, _)| *point < key);
        let around = points[start..]
            .iter()
            .chain(&points[..start])
            .map(|(_, index)| *index as usize);
        nth_below(around, context.step(), |index| {
            self.bound.is_over(candidates, index) || is_to_come(candidates, index, key)
        })
    }
}

/// The `step`th candidate within its bound, each counted once; the first if there is none.
fn nth_below(
    around: impl Iterator<Item = usize>,
    step: usize,
    is_over: impl Fn(usize) -> bool,
) -> usize {
    let (mut seen, mut below) = ([usize::MAX; LOOKS], 0);
    let mut count = 0;
    for index in around.take(8 * LOOKS) {
        if seen[..count].contains(&index) {
            continue;
        }
        if count == LOOKS {
            break;
        }
        seen[count] = index;
        count += 1;
        if !is_over(index) {
            if below == step {
                return index;
            }
            below += 1;
        }
    }
    seen[step.min(count - 1)]
}

/// How many times its points an endpoint of mean weight may have before the ring is cut.
const CUT_ABOVE: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, picks};

    fn policy() -> RingHash<fn(&u64) -> Option<u64>> {
        RingHash::new::<u64>(|request| Some(*request))
    }

    fn owners(ids: &[usize], keys: u64) -> Vec<usize> {
        let candidates = Some::named(ids, &vec![1; ids.len()]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        let pick = |request| {
            ids[Policy::<u64>::pick(
                &policy(),
                &table,
                &candidates,
                &PickContext::new(Option::Some(request), 0),
            )]
        };
        (0..keys).map(pick).collect()
    }

    #[test]
    fn a_key_has_one_endpoint_and_all_endpoints_have_keys() {
        let picked = picks(&policy(), &Some::of(&[1; 10]), 20_000);
        assert!(
            picked.iter().all(|picked| (1_200..2_900).contains(picked)),
            "{picked:?}"
        );
        assert_eq!(owners(&[0, 1, 2, 3], 500), owners(&[0, 1, 2, 3], 500));
        assert_eq!(
            owners(&[0, 1, 2, 3], 500),
            owners(&[3, 1, 0, 2], 500),
            "in whatever order they are known"
        );
    }

    #[test]
    fn a_removal_moves_only_the_keys_of_the_one_that_left() {
        let (before, after) = (
            owners(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 5_000),
            owners(&[0, 1, 2, 3, 4, 6, 7, 8, 9], 5_000),
        );
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == 5, "{before} -> {after}");
        }
    }

    fn ring(weights: &[u32]) -> Ring {
        Policy::<u64>::table(&policy(), &Some::of(weights))
    }

    #[test]
    fn weights_are_shares_also_large_and_uneven_ones() {
        for weights in [
            &[1, 3][..],
            &[1, 99],
            &[100, 200],
            &[1_000, 2_000, 3_000],
            &[7, 1_000, 9_001],
        ] {
            let total: u32 = weights.iter().sum();
            for (picked, weight) in picks(&policy(), &Some::of(weights), 50_000)
                .iter()
                .zip(weights)
            {
                let share = *picked as f64 / 50_000.0 * f64::from(total) / f64::from(*weight);
                // Three standard deviations of the lightest one's 100 points.
                assert!(
                    (0.7..1.3).contains(&share),
                    "{weights:?}: {weight} has {share} of its share"
                );
            }
        }
    }

    #[test]
    fn only_the_proportion_of_the_weights_counts() {
        assert_eq!(ring(&[1, 2, 3]).0, ring(&[1_000, 2_000, 3_000]).0);
        assert_eq!(ring(&[100; 100]).0.len(), 10_000);
    }

    #[test]
    fn no_weights_make_the_ring_larger_than_its_maximum() {
        let uneven: Vec<u32> = (0..500).map(|index| 65_535 - 7 * index % 997).collect();
        let ring = ring(&uneven);
        assert!(ring.0.len() <= 500 * 1_600, "{}", ring.0.len());
        let small = policy().max_ring_size(1_000.try_into().unwrap());
        for weights in [&[1; 20][..], &[1, 65_535], &uneven] {
            let table = Policy::<u64>::table(&small, &Some::of(weights));
            assert!(table.0.len() <= 1_000 + weights.len());
            let mut indices: Vec<_> = table.0.iter().map(|(_, index)| *index).collect();
            indices.sort_unstable();
            indices.dedup();
            assert_eq!(indices.len(), weights.len(), "each has a point");
        }
    }

    #[test]
    fn a_heavy_one_that_comes_moves_only_the_keys_that_it_takes() {
        let owners = |weights: &[u32]| {
            let candidates = Some::of(weights);
            let table = Policy::<u64>::table(&policy(), &candidates);
            let context = |key| PickContext::new(Option::Some(key), 0);
            (0..5_000)
                .map(|key| Policy::<u64>::pick(&policy(), &table, &candidates, &context(key)))
                .collect::<Vec<_>>()
        };
        let (before, after) = (owners(&[100, 200, 100]), owners(&[100, 200, 100, 2_000]));
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *after == 3, "{before} -> {after}");
        }
    }

    #[test]
    fn keys_come_to_a_cold_one_one_by_one_and_stay() {
        let mut candidates = Some::of(&[1; 4]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        let mut owners = |warmth| {
            candidates.warmth[2] = warmth;
            let pick = |key| {
                let context = PickContext::new(Option::Some(key), 0);
                Policy::<u64>::pick(&policy(), &table, &candidates, &context)
            };
            (0..20_000).map(pick).collect::<Vec<_>>()
        };
        let (cold, half, warm) = (owners(0.1), owners(0.5), owners(1.0));
        let count = |owners: &[usize]| owners.iter().filter(|owner| **owner == 2).count() as f64;
        for (part, owners) in [(0.1, &cold), (0.5, &half)] {
            let share = count(owners) / count(&warm);
            assert!((share - part).abs() < 0.03, "{share} at {part}");
        }
        for ((cold, half), warm) in cold.iter().zip(&half).zip(&warm) {
            assert!(*cold != 2 || *half == 2, "what came stays");
            assert!(*warm == 2 || cold == warm && half == warm);
        }
    }

    #[test]
    fn a_key_whose_home_is_not_ready_goes_to_the_next_and_then_to_another() {
        let candidates = Some::of(&[1; 10]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        for request in 0..100 {
            let context = PickContext::new(Option::Some(request), 0);
            let steps: Vec<_> = (0..4)
                .map(|step| Policy::<u64>::pick(&policy(), &table, &candidates, &context.at(step)))
                .collect();
            let distinct: std::collections::BTreeSet<_> = steps.iter().collect();
            assert_eq!(distinct.len(), 4, "{steps:?}");
        }
    }

    #[test]
    fn a_full_home_gives_its_keys_to_the_next_where_there_is_a_bound() {
        let mut candidates = Some::of(&[1; 4]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        let context = PickContext::new(Option::Some(7), 0);
        let pick = |policy: RingHash<_>, candidates: &Some| {
            Policy::<u64>::pick(&policy, &table, candidates, &context)
        };
        let home = pick(policy(), &candidates);
        candidates.in_flight[home] = 10;
        assert_eq!(home, pick(policy(), &candidates));
        assert_ne!(home, pick(policy().bound(Bound::percent(25)), &candidates));
    }

    #[test]
    fn a_request_without_a_key_goes_anywhere() {
        let policy = RingHash::new(|_: &u64| None);
        assert!(
            picks(&policy, &Some::of(&[1; 4]), 400)
                .iter()
                .all(|picked| *picked > 20)
        );
    }
}
