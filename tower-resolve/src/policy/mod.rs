//! Policies that pick an endpoint for each request.
//!
//! | policy | picks | cost of a pick |
//! |---|---|---|
//! | [`LeastRequest`] (default) | of two at random, the one with fewer requests in flight for its weight | one or two random numbers, two loads |
//! | [`PeakEwma`] | of two at random, the one that answers sooner, by its latency and its load | as above, and the clock, twice |
//! | [`RoundRobin`] | one after the other | a counter |
//! | [`Random`] | any | a random number or two |
//! | [`RingHash`] | by a key of the request | a binary search |
//! | [`Maglev`] | by a key of the request | one lookup in a table |
//!
//! The cost is the same for two endpoints and for ten thousand, except for the ring, whose search is logarithmic. A policy
//! only picks. Whether an endpoint may be used at all depends on readiness and health, and is decided before and after the
//! pick; which of several sets is picked from (zones, priorities) is decided before it.
//!
//! # A weight is a share
//!
//! Under every policy, the share of the requests of an endpoint is its [weight](crate::Endpoint::with_weight) divided by the
//! sum of the weights, with many requests in flight or few. Policies that compare loads deviate from it only to give less to
//! an endpoint that is slower, fuller for its weight, or failing. With keys, it is the share of all keys. During [slow
//! start](crate::balance::BalanceBuilder::slow_start) only a part of the weight is used.
//!
//! # Failing endpoints do not attract traffic
//!
//! An endpoint that fails at once has no requests in flight and the best latency. So both policies with two choices multiply
//! the load by `1 / (1 - f)²`, rounded down, where `f` is the share of failures among its recent responses (each has a
//! weight of an eighth; forgotten within half a minute). One or two failures cost nothing, eight in a row as much as eight
//! requests in flight, and an endpoint that always fails as much as thousands. An endpoint that sends when to retry
//! (`Retry-After`, `grpc-retry-pushback-ms`) costs as much as one that always fails until then. The remaining policies do
//! not compare loads, so failing fast attracts nothing.

mod hash;
mod least_request;
mod maglev;
mod peak_ewma;
mod random;
mod ring_hash;
mod round_robin;
mod weights;

pub(crate) use self::hash::mixed;
pub use self::{
    hash::{Bound, key},
    least_request::LeastRequest,
    maglev::{Maglev, Places},
    peak_ewma::PeakEwma,
    random::Random,
    ring_hash::{Ring, RingHash},
    round_robin::RoundRobin,
    weights::Weights,
};
use crate::Endpoint;

/// Picks among candidates.
///
/// ```
/// use tower_resolve::policy::{Candidates, Policy, PickContext};
///
/// /// Always the first, and the next one while that is not ready.
/// struct First;
///
/// impl<Req> Policy<Req> for First {
///     type Table = ();
///
///     fn table<C: Candidates>(&self, _: &C) {}
///
///     fn pick<C: Candidates>(&self, (): &(), _: &C, context: &PickContext) -> usize {
///         context.step()
///     }
/// }
/// ```
pub trait Policy<Req>: Send + Sync + 'static {
    /// Computed once for each set of candidates and not for each request: a ring, a schedule, or `()`.
    type Table: Send + Sync + 'static;

    /// Whether candidates are all endpoints that might be used, ready or not, so that the table is rebuilt only when the
    /// *set* changes and a key keeps its endpoint. Default: no, only those that are ready.
    const KEEPS_UNREADY: bool = false;

    /// Whether it uses [`latency`](Candidates::latency), which costs reading the clock twice for each request. Default: no.
    const MEASURES_LATENCY: bool = false;

    /// Whether it uses [`total_in_flight`](Candidates::total_in_flight), which costs counting it. Default: no. Called once,
    /// when the balance is built.
    fn counts_total(&self) -> bool {
        false
    }

    /// Computes the table. Called when the set of candidates, or a weight, has changed; there is at least one candidate. It
    /// should depend on the candidates and not on their load.
    fn table<C: Candidates>(&self, candidates: &C) -> Self::Table;

    /// The number of entries of the table. Default: 0. A table with more than [`LARGE_TABLE`] is built on a thread for
    /// blocking work, one at a time, while requests use the previous one and the driver continues. If a balance is driven
    /// outside of a Tokio runtime, the driver builds it.
    fn table_size<C: Candidates>(&self, candidates: &C) -> usize {
        let _ = candidates;
        0
    }

    /// The key that ties a request to an endpoint, for policies that use one. Default: none. Called once for each request.
    fn key(&self, request: &Req) -> Option<u64> {
        let _ = request;
        None
    }

    /// Picks the index of a candidate. An index out of range wraps around.
    ///
    /// Called once for each request, and again with the next [`step`](PickContext::step) for each pick that was not ready.
    /// It must not block, and should cost the same for any number of candidates.
    fn pick<C: Candidates>(
        &self,
        table: &Self::Table,
        candidates: &C,
        context: &PickContext,
    ) -> usize;
}

/// A table with more entries than this is not built by the driver, see [`Policy::table_size`]: 16 384 points of a ring take
/// about a millisecond to compute and sort, which is as long as a task should occupy its thread.
pub const LARGE_TABLE: usize = 16_384;

/// The endpoints that a [`Policy`] may pick: at least one, in no particular order, but in the same order as in the table
/// that was made of them.
pub trait Candidates {
    /// The number of candidates.
    fn count(&self) -> usize;

    /// The description of a candidate.
    fn endpoint(&self, index: usize) -> &Endpoint;

    /// The number of requests in flight to a candidate, sent by this balance and its clones.
    fn in_flight(&self, index: usize) -> u32;

    /// The factor of its load because of its failures: ⌊1 / (1 - f)²⌋, see the [module](self). 1 for a healthy candidate.
    fn penalty(&self, index: usize) -> u32;

    /// The weight of a candidate.
    fn weight(&self, index: usize) -> u32;

    /// The part of its weight that a candidate has reached in slow start: above 0, and 1 at the end. It changes without a
    /// new table.
    fn warmth(&self, index: usize) -> f32;

    /// The largest weight among them.
    fn heaviest(&self) -> u32;

    /// The sum of their weights.
    fn total_weight(&self) -> u64;

    /// The latency of a candidate. Only measured if the policy [`MEASURES_LATENCY`](Policy::MEASURES_LATENCY).
    fn latency(&self, index: usize, context: &PickContext) -> Estimate;

    /// The number of requests in flight to all endpoints of the balance. Only counted if the policy [counts the
    /// total](Policy::counts_total).
    fn total_in_flight(&self) -> u64;
}

/// The latency of an endpoint, in microseconds. It decays by two thirds in 10 s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Estimate {
    /// That of its slowest recent responses.
    Known(f32),
    /// No response yet. A request was abandoned after this time; 0 if none was.
    AtLeast(f32),
}

/// The properties of the request that a policy picks for.
#[derive(Clone, Copy, Debug)]
pub struct PickContext {
    step: usize,
    key: Option<u64>,
    nanos: u64,
}

// === impl PickContext ===

impl PickContext {
    pub(crate) const fn new(key: Option<u64>, nanos: u64) -> Self {
        Self {
            step: 0,
            key,
            nanos,
        }
    }

    pub(crate) const fn at(self, step: usize) -> Self {
        Self { step, ..self }
    }

    pub(crate) const fn nanos(&self) -> u64 {
        self.nanos
    }

    /// 0 for the first pick of a request, 1 when that endpoint was not ready, and so on.
    #[must_use]
    pub const fn step(&self) -> usize {
        self.step
    }

    /// The result of [`Policy::key`].
    #[must_use]
    pub const fn key(&self) -> Option<u64> {
        self.key
    }
}

/// The load of a candidate, to be compared with that of another one.
#[derive(Clone, Copy)]
struct Load {
    in_flight: f64,
    penalty: f64,
    weight: f64,
    /// The cost of one request.
    unit: f64,
}

// === impl Load ===

impl Load {
    fn of<C: Candidates>(candidates: &C, index: usize) -> Self {
        Self {
            in_flight: candidates.in_flight(index).into(),
            penalty: candidates.penalty(index).into(),
            weight: weights::effective(candidates, index),
            unit: 1.0,
        }
    }

    fn times(self, unit: f64) -> Self {
        Self { unit, ..self }
    }

    fn is_failing(&self) -> bool {
        self.penalty > 1.0
    }

    /// In requests, with one more.
    fn cost(&self) -> f64 {
        (self.in_flight + 1.0) * self.penalty
    }

    /// Whether it has no more for its weight with one more request than `first`, which was drawn before it, has without. A
    /// lighter `first` may have one request more.
    fn is_below(&self, first: &Self) -> bool {
        let slack = if first.weight < self.weight { 1.0 } else { 0.0 };
        let (mine, theirs) = (self.cost() - slack, first.cost() - 1.0 - slack);
        mine * self.unit * first.weight <= theirs * first.unit * self.weight
    }

    /// Whether it has no more for its weight than `first`, each with one more request.
    fn is_at_most(&self, first: &Self) -> bool {
        self.cost() * self.unit * first.weight <= first.cost() * first.unit * self.weight
    }
}

/// Two different candidates at random, of at least two and fewer than 2³²: each half of one random number, scaled.
fn two(count: usize) -> (usize, usize) {
    let (random, count) = (fastrand::u64(..), count as u64);
    let one = ((random >> 32) * count) >> 32;
    // Any other one: a distance of 1 to count - 1, around the circle.
    let other = one + 1 + (((random & u64::from(u32::MAX)) * (count - 1)) >> 32);
    (
        one as usize,
        if other < count { other } else { other - count } as usize,
    )
}

#[cfg(test)]
mod testing {
    use super::*;

    /// Candidates with nothing in flight, to be changed.
    pub(super) struct Some {
        pub(super) endpoints: Vec<Endpoint>,
        pub(super) in_flight: Vec<u32>,
        pub(super) penalty: Vec<u32>,
        pub(super) warmth: Vec<f32>,
        pub(super) latency: Vec<Estimate>,
    }

    impl Some {
        pub(super) fn of(weights: &[u32]) -> Self {
            let ids: Vec<_> = (0..weights.len()).collect();
            Self::named(&ids, weights)
        }

        pub(super) fn named(ids: &[usize], weights: &[u32]) -> Self {
            let endpoint = |(id, weight): (&usize, &u32)| {
                let endpoint = Endpoint::new(format!("e{id}"), ([127, 0, 0, 1], 80).into());
                endpoint.with_weight((*weight).try_into().unwrap())
            };
            let endpoints = ids.iter().zip(weights).map(endpoint).collect();
            Self {
                endpoints,
                in_flight: vec![0; ids.len()],
                penalty: vec![1; ids.len()],
                warmth: vec![1.0; ids.len()],
                latency: vec![Estimate::AtLeast(0.0); ids.len()],
            }
        }

        pub(super) fn with_loads(loads: &[u32]) -> Self {
            Self {
                in_flight: loads.to_vec(),
                ..Self::of(&vec![1; loads.len()])
            }
        }
    }

    impl Candidates for Some {
        fn count(&self) -> usize {
            self.endpoints.len()
        }

        fn endpoint(&self, index: usize) -> &Endpoint {
            &self.endpoints[index]
        }

        fn in_flight(&self, index: usize) -> u32 {
            self.in_flight[index]
        }

        fn penalty(&self, index: usize) -> u32 {
            self.penalty[index]
        }

        fn weight(&self, index: usize) -> u32 {
            self.endpoints[index].weight().get()
        }

        fn heaviest(&self) -> u32 {
            (0..self.count())
                .map(|index| self.weight(index))
                .max()
                .unwrap()
        }

        fn total_weight(&self) -> u64 {
            (0..self.count())
                .map(|index| u64::from(self.weight(index)))
                .sum()
        }

        fn warmth(&self, index: usize) -> f32 {
            self.warmth[index]
        }

        fn latency(&self, index: usize, _: &PickContext) -> Estimate {
            self.latency[index]
        }

        fn total_in_flight(&self) -> u64 {
            self.in_flight.iter().map(|load| u64::from(*load)).sum()
        }
    }

    /// How often each is picked, by a policy for requests that are numbers.
    pub(super) fn picks<P: Policy<u64>>(policy: &P, candidates: &Some, times: u64) -> Vec<u64> {
        let table = policy.table(candidates);
        let mut picks = vec![0; candidates.count()];
        for request in 0..times {
            picks[policy.pick(
                &table,
                candidates,
                &PickContext::new(policy.key(&request), 0),
            ) % candidates.count()] += 1;
        }
        picks
    }

    /// Whether `picked` fits a share of `times` picks made at random, within five standard deviations: one in two million.
    pub(super) fn is_about(picked: u64, share: f64, times: u64) -> bool {
        let times = times as f64;
        let deviation = (times * share * (1.0 - share)).sqrt();
        (picked as f64 - times * share).abs() <= 5.0 * deviation + 1.0
    }
}
