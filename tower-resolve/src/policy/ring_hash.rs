use std::num::NonZeroU32;

use super::{
    Bound, Candidates, Policy, Turn,
    hash::{LOOKS, key, key_of, mixed},
};

/// Keeps each key at one endpoint: the next one on a ring of hashes (consistent hashing).
///
/// A request without a key goes anywhere. When an endpoint comes or goes, only keys that move to it or away from it move:
/// of *n* endpoints, one in *n*. One that is merely not ready keeps its place on the ring, and its keys go to the next one
/// until it is back.
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
/// A pick costs a binary search. The ring has 100 points for each endpoint of weight 1, which gives each its share to within
/// 10 % (the standard deviation is one over the root of the points), and costs 16 bytes a point: 1.6 kB an endpoint. It is
/// made anew when the set changes, not when readiness does.
#[derive(Clone, Debug)]
pub struct RingHash<F> {
    key: F,
    points: NonZeroU32,
    bound: Bound,
}

/// The table of [`RingHash`]: the points of all candidates, in order, and whose they are.
#[derive(Debug)]
pub struct Ring(Box<[(u64, u32)]>);

// === impl RingHash ===

impl<F> RingHash<F> {
    /// The policy for keys that `key` takes from the request. [`policy::key`](key) makes one of bytes.
    pub const fn new<Req>(key: F) -> Self
    where
        F: Fn(&Req) -> Option<u64>,
    {
        Self {
            key,
            points: const { NonZeroU32::new(100).unwrap() },
            bound: Bound::percent(25),
        }
    }

    /// How many points an endpoint of mean weight has. Default: 100. More are more even, and dearer to make and to keep.
    #[must_use]
    pub fn points(self, points: NonZeroU32) -> Self {
        Self { points, ..self }
    }

    /// How much more than the mean an endpoint may have. Default: 25 %.
    #[must_use]
    pub fn bound(self, bound: Bound) -> Self {
        Self { bound, ..self }
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
        let mut points = Vec::new();
        for index in 0..candidates.count() {
            let seed = key(candidates.endpoint(index).id().as_str().as_bytes());
            // By the weight itself and not by its share: another's weight must not move this one's points.
            let count =
                u64::from(self.points.get()) * u64::from(candidates.weight(index)).min(HEAVIEST);
            points.extend((0..count).map(|point| (mixed(seed ^ mixed(point + 1)), index as u32)));
        }
        points.sort_unstable();
        Ring(points.into())
    }

    fn key(&self, request: &Req) -> Option<u64> {
        (self.key)(request)
    }

    fn pick<C: Candidates>(&self, Ring(points): &Ring, candidates: &C, turn: &Turn) -> usize {
        let key = key_of(turn);
        let start = points.partition_point(|(point, _)| *point < key);
        let around = points[start..]
            .iter()
            .chain(&points[..start])
            .map(|(_, index)| *index as usize);
        nth_below(around, turn.step(), |index| {
            self.bound.is_over(candidates, index)
        })
    }
}

/// The `step`th of those that are below their bound, each counted once; the first where there is none.
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

/// What weights count for at most, so that a ring stays small.
const HEAVIEST: u64 = 128;

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
                &policy().bound(Bound::NONE),
                &table,
                &candidates,
                &Turn::new(Option::Some(request), 0),
            )]
        };
        (0..keys).map(pick).collect()
    }

    #[test]
    fn a_key_has_one_home_and_all_homes_have_keys() {
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

    #[test]
    fn weights_are_kept() {
        let picked = picks(&policy(), &Some::of(&[1, 3]), 20_000);
        assert!((3_500..6_500).contains(&picked[0]), "{picked:?}");
    }

    #[test]
    fn a_key_whose_home_is_not_ready_goes_to_the_next_and_then_to_another() {
        let candidates = Some::of(&[1; 10]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        for request in 0..100 {
            let turn = Turn::new(Option::Some(request), 0);
            let steps: Vec<_> = (0..4)
                .map(|step| Policy::<u64>::pick(&policy(), &table, &candidates, &turn.at(step)))
                .collect();
            let distinct: std::collections::BTreeSet<_> = steps.iter().collect();
            assert_eq!(distinct.len(), 4, "{steps:?}");
        }
    }

    #[test]
    fn a_full_home_gives_its_keys_to_the_next() {
        let mut candidates = Some::of(&[1; 4]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        let turn = Turn::new(Option::Some(7), 0);
        let home = Policy::<u64>::pick(&policy(), &table, &candidates, &turn);
        candidates.in_flight[home] = 10;
        let next = Policy::<u64>::pick(&policy(), &table, &candidates, &turn);
        assert_ne!(home, next);
        assert_eq!(
            home,
            Policy::<u64>::pick(&policy().bound(Bound::NONE), &table, &candidates, &turn)
        );
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
