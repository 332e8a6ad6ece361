use super::{
    Bound, Candidates, PickContext, Policy,
    hash::{LOOKS, is_to_come, key, key_of, mixed},
};

/// Keeps each key at one endpoint, by a table in which each endpoint has its share of places (Eisenbud et al., "Maglev: A
/// Fast and Reliable Software Network Load Balancer", 2016, section 3.4).
///
/// Compared with [`RingHash`](super::RingHash), a pick is one table lookup, and the shares are even to within a percent; but
/// when the set changes, a few keys move unnecessarily (less than 2 % of them, with 100 places for each endpoint), and the
/// table costs more to build. A request without a key goes to any endpoint.
///
/// The table has 65 537 places for up to 655 endpoints, and 655 357 beyond, of 4 bytes each. It is built when the set or a
/// weight changes, not when readiness does, on a thread for blocking work, while requests use the previous one. That takes
/// time in proportion to the places and the endpoints, for any weights. Each endpoint has at least one place, so one that
/// weighs less than a place gets a little more than its share.
#[derive(Clone, Debug)]
pub struct Maglev<F> {
    key: F,
    bound: Bound,
}

/// The table of [`Maglev`]: the candidate of each place.
#[derive(Debug)]
pub struct Places(Box<[u32]>);

// === impl Maglev ===

impl<F> Maglev<F> {
    /// The policy for keys that `key` takes from the request. [`policy::key`](key) makes a key of bytes.
    pub const fn new<Req>(key: F) -> Self
    where
        F: Fn(&Req) -> Option<u64>,
    {
        Self {
            key,
            bound: Bound::NONE,
        }
    }

    /// How far an endpoint may exceed the mean number of requests in flight. Default: [`Bound::NONE`], so that keys do not
    /// move.
    #[must_use]
    pub fn bound(self, bound: Bound) -> Self {
        Self { bound, ..self }
    }
}

impl<Req, F> Policy<Req> for Maglev<F>
where
    F: Fn(&Req) -> Option<u64> + Send + Sync + 'static,
{
    type Table = Places;

    const KEEPS_UNREADY: bool = true;

    fn counts_total(&self) -> bool {
        self.bound != Bound::NONE
    }

    fn table<C: Candidates>(&self, candidates: &C) -> Places {
        places(candidates)
    }

    fn table_size<C: Candidates>(&self, candidates: &C) -> usize {
        size(candidates.count()) as usize
    }

    fn key(&self, request: &Req) -> Option<u64> {
        (self.key)(request)
    }

    fn pick<C: Candidates>(
        &self,
        Places(places): &Places,
        candidates: &C,
        context: &PickContext,
    ) -> usize {
        let key = key_of(context);
        let (mut first, mut below) = (None, 0);
        // A different place in each further step, the same for this key each time.
        for look in 0..LOOKS as u64 {
            let place = if look == 0 {
                key
            } else {
                mixed(key ^ mixed(look))
            };
            let index = places[(place % places.len() as u64) as usize] as usize;
            let first = *first.get_or_insert(index);
            let is_passed_over = self.bound.is_over(candidates, index)
                || is_to_come(candidates, index, key)
                || look > 0 && index == first;
            if is_passed_over {
                continue;
            }
            if below == context.step() {
                return index;
            }
            below += 1;
        }
        first.unwrap_or_default() + context.step()
    }
}

/// Each in order takes the next free place of its permutation of all places, until it has as many as its weight allows.
fn places<C: Candidates>(candidates: &C) -> Places {
    // In order of the ids, because all clients must get the same table.
    let mut order: Vec<u32> = (0..candidates.count() as u32).collect();
    order.sort_unstable_by_key(|index| candidates.endpoint(*index as usize).id());
    let size = size(candidates.count());
    let mut walks: Vec<Walk> = order
        .iter()
        .zip(seats(candidates, &order, size))
        .filter(|(_, seats)| *seats > 0)
        .map(|(index, seats)| Walk::of(candidates, *index, seats, size))
        .collect();
    let mut places = vec![u32::MAX; size as usize];
    // In each round every endpoint that still needs places takes one, so the rounds take as many steps as there are places.
    while !walks.is_empty() {
        for walk in &mut walks {
            let place = loop {
                let place = walk.next as usize;
                walk.next = (walk.next + walk.skip) % size;
                if places[place] == u32::MAX {
                    break place;
                }
            };
            places[place] = walk.index;
            walk.seats -= 1;
        }
        walks.retain(|walk| walk.seats > 0);
    }
    Places(places.into())
}

const fn size(endpoints: usize) -> u64 {
    if endpoints <= SMALL as usize / 100 {
        SMALL
    } else {
        LARGE
    }
}

/// The number of places of each, in this order: its share, rounded so that all are assigned (largest remainders). At least
/// one, as long as there are enough; the heaviest ones give them up.
fn seats<C: Candidates>(candidates: &C, order: &[u32], size: u64) -> Vec<u64> {
    let total = u128::from(candidates.total_weight());
    let parts = order.iter().map(|index| {
        let part = u128::from(candidates.weight(*index as usize)) * u128::from(size);
        ((part / total) as u64, (part % total) as u64)
    });
    let (mut seats, remainders): (Vec<u64>, Vec<u64>) = parts.unzip();
    let mut by_remainder: Vec<usize> = (0..order.len()).collect();
    // Stable, so that of equals the first by id gets one.
    by_remainder.sort_by_key(|index| std::cmp::Reverse(remainders[*index]));
    let left = size - seats.iter().sum::<u64>();
    for index in &by_remainder[..left as usize] {
        seats[*index] += 1;
    }
    let heaviest = seats.iter().copied().max().unwrap_or_default();
    let mut rich = (0..seats.len())
        .filter(|index| 2 * seats[*index] >= heaviest)
        .collect::<Vec<_>>()
        .into_iter()
        .cycle();
    for index in 0..seats.len() {
        if seats[index] == 0
            && let Some(rich) = rich.next().filter(|rich| seats[*rich] > 1)
        {
            seats[rich] -= 1;
            seats[index] = 1;
        }
    }
    seats
}

struct Walk {
    index: u32,
    next: u64,
    skip: u64,
    /// The number of places it still gets.
    seats: u64,
}

// === impl Walk ===

impl Walk {
    fn of<C: Candidates>(candidates: &C, index: u32, seats: u64, size: u64) -> Self {
        let seed = key(candidates.endpoint(index as usize).id().as_str().as_bytes());
        // The size is a prime, so every skip reaches every place.
        let (next, skip) = (seed % size, mixed(seed ^ 1) % (size - 1) + 1);
        Self {
            index,
            next,
            skip,
            seats,
        }
    }
}

/// The paper's sizes, primes: 100 places an endpoint for 655, and for 6 553.
const SMALL: u64 = 65_537;
const LARGE: u64 = 655_357;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, picks};

    fn policy() -> Maglev<fn(&u64) -> Option<u64>> {
        Maglev::new::<u64>(|request| Some(*request))
    }

    fn owners(ids: &[usize]) -> Vec<usize> {
        let candidates = Some::named(ids, &vec![1; ids.len()]);
        places(&candidates)
            .0
            .iter()
            .map(|index| ids[*index as usize])
            .collect()
    }

    #[test]
    fn the_sizes_are_primes() {
        for size in [SMALL, LARGE] {
            assert!(
                (2..)
                    .take_while(|by| by * by <= size)
                    .all(|by| size % by != 0),
                "{size}"
            );
        }
    }

    #[test]
    fn the_shares_are_those_of_the_weights_to_the_place() {
        let light = [&[1; 999][..], &[65_535]].concat();
        for weights in [
            &[1; 7][..],
            &[1, 1, 2, 4],
            &[1, 99],
            &[3, 1_000, 7_000],
            &light,
        ] {
            let total: u64 = weights.iter().copied().map(u64::from).sum();
            let table = places(&Some::of(weights));
            let mut shares = vec![0_u64; weights.len()];
            table
                .0
                .iter()
                .for_each(|index| shares[*index as usize] += 1);
            for (share, weight) in shares.into_iter().zip(weights) {
                let exact = table.0.len() as f64 * f64::from(*weight) / total as f64;
                assert!(
                    (share as f64 - exact).abs() <= 1.0,
                    "{weight}: {share}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn each_has_a_place_however_light_it_is() {
        let weights = [&[u32::MAX; 2][..], &[1; 600]].concat();
        let mut has = vec![0_u32; weights.len()];
        places(&Some::of(&weights))
            .0
            .iter()
            .for_each(|index| has[*index as usize] += 1);
        assert!(has[2..].iter().all(|has| *has == 1), "{has:?}");
        assert!(has[0].abs_diff(has[1]) < 2, "{:?}", &has[..2]);
    }

    #[test]
    fn uneven_weights_cost_no_more_steps_than_even_ones() {
        // A round that also visits those with all their places takes places times endpoints steps: here minutes.
        let weights = [&[1; 20_000][..], &[65_535]].concat();
        let start = tokio::time::Instant::now();
        let table = places(&Some::of(&weights));
        assert_eq!(table.0.len() as u64, LARGE);
        assert!(
            start.elapsed() < std::time::Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn a_key_has_one_endpoint_for_any_order_of_the_endpoints() {
        assert_eq!(owners(&[0, 1, 2, 3]), owners(&[2, 0, 3, 1]));
        let candidates = Some::of(&[1; 10]);
        assert_eq!(
            picks(&policy(), &candidates, 2_000),
            picks(&policy(), &candidates, 2_000)
        );
    }

    #[test]
    fn a_removal_moves_hardly_more_than_the_keys_of_the_one_that_left() {
        let all: Vec<_> = (0..100).collect();
        let less: Vec<_> = (0..100).filter(|id| *id != 50).collect();
        let (before, after) = (owners(&all), owners(&less));
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after && **before != 50)
            .count();
        assert!(moved < SMALL as usize * 2 / 100, "{moved}");
    }

    #[test]
    fn a_full_home_gives_its_keys_to_another_where_there_is_a_bound() {
        let mut candidates = Some::of(&[1; 4]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        let context = PickContext::new(Option::Some(7), 0);
        let pick = |policy: Maglev<_>, candidates: &Some, step| {
            Policy::<u64>::pick(&policy, &table, candidates, &context.at(step))
        };
        let home = pick(policy(), &candidates, 0);
        assert_ne!(
            home,
            pick(policy(), &candidates, 1),
            "where it is not ready"
        );
        candidates.in_flight[home] = 10;
        assert_eq!(home, pick(policy(), &candidates, 0));
        let bounded = policy().bound(Bound::percent(25));
        assert_ne!(home, pick(bounded, &candidates, 0));
    }
}
