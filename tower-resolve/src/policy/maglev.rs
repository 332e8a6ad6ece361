use super::{
    Bound, Candidates, Policy, Turn,
    hash::{LOOKS, key, key_of, mixed},
};

/// Keeps each key at one endpoint, by a table in which each endpoint has its share of places (Eisenbud and others,
/// "Maglev: A Fast and Reliable Software Network Load Balancer", 2016, section 3.4).
///
/// Beside [`RingHash`](super::RingHash): a pick is one look into the table, and the shares are even to within a percent;
/// but when the set changes, a few keys move that need not (less than 2 % of them beyond the unavoidable, with 100 places
/// an endpoint), and the table costs more to make. A request without a key goes anywhere.
///
/// The table has 65 537 places for up to 655 endpoints, and 655 357 beyond, of 4 bytes each. It is made anew when the set
/// changes, not when readiness does.
#[derive(Clone, Debug)]
pub struct Maglev<F> {
    key: F,
    bound: Bound,
}

/// The table of [`Maglev`]: whose each place is.
#[derive(Debug)]
pub struct Places(Box<[u32]>);

// === impl Maglev ===

impl<F> Maglev<F> {
    /// The policy for keys that `key` takes from the request. [`policy::key`](key) makes one of bytes.
    pub const fn new<Req>(key: F) -> Self
    where
        F: Fn(&Req) -> Option<u64>,
    {
        Self {
            key,
            bound: Bound::percent(25),
        }
    }

    /// How much more than the mean an endpoint may have. Default: 25 %.
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

    fn key(&self, request: &Req) -> Option<u64> {
        (self.key)(request)
    }

    fn pick<C: Candidates>(&self, Places(places): &Places, candidates: &C, turn: &Turn) -> usize {
        let key = key_of(turn);
        let (mut first, mut below) = (None, 0);
        // Another place for each further look, the same for this key each time.
        for look in 0..LOOKS as u64 {
            let place = if look == 0 {
                key
            } else {
                mixed(key ^ mixed(look))
            };
            let index = places[(place % places.len() as u64) as usize] as usize;
            let first = *first.get_or_insert(index);
            if look > 0 && index == first || self.bound.is_over(candidates, index) {
                continue;
            }
            if below == turn.step() {
                return index;
            }
            below += 1;
        }
        first.unwrap_or_default() + turn.step()
    }
}

/// Each in turn takes the next free place of its own permutation of them all, the light ones less often.
fn places<C: Candidates>(candidates: &C) -> Places {
    // In the order of the names, because all clients must come to one table.
    let mut order: Vec<u32> = (0..candidates.count() as u32).collect();
    order.sort_unstable_by_key(|index| candidates.endpoint(*index as usize).id());
    let size = if candidates.count() <= SMALL as usize / 100 {
        SMALL
    } else {
        LARGE
    };
    let mut walks: Vec<Walk> = order
        .iter()
        .map(|index| Walk::of(candidates, *index, size))
        .collect();
    let heaviest = u64::from(candidates.heaviest());
    let mut places = vec![u32::MAX; size as usize];
    let mut free = size;
    loop {
        for walk in &mut walks {
            walk.credit += u64::from(walk.weight);
            if walk.credit < heaviest {
                continue;
            }
            walk.credit -= heaviest;
            let place = loop {
                let place = walk.next as usize;
                walk.next = (walk.next + walk.skip) % size;
                if places[place] == u32::MAX {
                    break place;
                }
            };
            places[place] = walk.index;
            free -= 1;
            if free == 0 {
                return Places(places.into());
            }
        }
    }
}

struct Walk {
    index: u32,
    next: u64,
    skip: u64,
    weight: u32,
    credit: u64,
}

// === impl Walk ===

impl Walk {
    fn of<C: Candidates>(candidates: &C, index: u32, size: u64) -> Self {
        let seed = key(candidates.endpoint(index as usize).id().as_str().as_bytes());
        // The size is a prime, so every skip reaches every place.
        let (next, skip) = (seed % size, mixed(seed ^ 1) % (size - 1) + 1);
        Self {
            index,
            next,
            skip,
            weight: candidates.weight(index as usize),
            credit: 0,
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
    fn the_shares_are_even_and_those_of_the_weights() {
        let candidates = Some::of(&[1, 1, 2, 4]);
        let mut shares = [0; 4];
        places(&candidates)
            .0
            .iter()
            .for_each(|index| shares[*index as usize] += 1);
        for (share, weight) in shares.into_iter().zip([1, 1, 2, 4]) {
            assert!((share - 65_537 * weight / 8_i32).abs() <= 655, "{shares:?}");
        }
    }

    #[test]
    fn a_key_has_one_home_in_whatever_order_they_are_known() {
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
    fn a_full_home_gives_its_keys_to_another_and_so_does_one_that_is_not_ready() {
        let mut candidates = Some::of(&[1; 4]);
        let table = Policy::<u64>::table(&policy(), &candidates);
        let turn = Turn::new(Option::Some(7), 0);
        let pick = |candidates: &Some, step| {
            Policy::<u64>::pick(&policy(), &table, candidates, &turn.at(step))
        };
        let home = pick(&candidates, 0);
        assert_ne!(home, pick(&candidates, 1));
        candidates.in_flight[home] = 10;
        assert_ne!(home, pick(&candidates, 0));
    }
}
