use super::{Candidates, Estimate, Load, PickContext, Policy, Weights};

/// Of two candidates at random, the one with the lower expected latency: the latency of its slowest recent responses, times
/// its requests in flight (Finagle's peak EWMA).
///
/// For endpoints that differ in speed, or are slow at times. The latency is measured to the head of a response. It rises
/// with a slow response at once and falls by two thirds in 10 s, so one response that took a hundred times as long as usual
/// keeps an endpoint out of the picks for about 45 s. A request that is abandoned before its response counts with the time
/// that it waited, if that is longer than the known latency, so that an endpoint that never responds does not look fast.
/// Costs reading the clock twice for each request.
///
/// Both candidates are drawn by weight, and their loads, times the latencies, are compared as in
/// [`LeastRequest`](super::LeastRequest). In addition, the second is taken if its latency is at most two thirds and its load
/// for its weight allows it. So endpoints of about the same speed get the shares of their weights, also when they are idle.
///
/// **A new endpoint** is assumed to be as fast as the one that it is compared with, and gets one request at a time until its
/// first response.
///
/// **A failure** is no measure of speed. It counts by the factor described in the [module](super); a slow one also raises
/// the latency, to at most four times the known value. An endpoint that keeps failing is never assumed to be faster than the
/// one that it is compared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeakEwma;

// === impl PeakEwma ===

impl PeakEwma {
    /// The policy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<Req> Policy<Req> for PeakEwma {
    type Table = Weights;

    const MEASURES_LATENCY: bool = true;

    fn table<C: Candidates>(&self, candidates: &C) -> Weights {
        Weights::of(candidates)
    }

    fn table_size<C: Candidates>(&self, candidates: &C) -> usize {
        Weights::size(candidates)
    }

    fn pick<C: Candidates>(
        &self,
        weights: &Weights,
        candidates: &C,
        context: &PickContext,
    ) -> usize {
        if candidates.count() < 2 {
            return 0;
        }
        let (one, other) = weights.pair(candidates);
        let [first, second] = [one, other].map(|index| Load::of(candidates, index));
        let [known, against] = [one, other].map(|index| candidates.latency(index, context));
        // A candidate with a request but no response yet gets no second request.
        match (known, against) {
            (Estimate::AtLeast(_), Estimate::Known(_)) if first.in_flight > 0.0 => return other,
            (Estimate::Known(_), Estimate::AtLeast(_)) if second.in_flight > 0.0 => return one,
            _ => {}
        }
        let (mut first_takes, mut second_takes) = (takes(known, against), takes(against, known));
        if first.is_failing() {
            first_takes = first_takes.max(second_takes);
        }
        if second.is_failing() {
            second_takes = second_takes.max(first_takes);
        }
        let is_faster = second_takes * FASTER <= first_takes;
        let (first, second) = (first.times(first_takes), second.times(second_takes));
        if second.is_below(&first) || is_faster && second.is_at_most(&first) {
            other
        } else {
            one
        }
    }
}

/// In microseconds. Without a response it is that of the other candidate, and at least one: a value that has decayed to
/// nothing still has its load.
fn takes(latency: Estimate, against: Estimate) -> f64 {
    let micros = match (latency, against) {
        (Estimate::AtLeast(waited), Estimate::Known(other)) => waited.max(other),
        (Estimate::Known(micros) | Estimate::AtLeast(micros), _) => micros,
    };
    f64::from(micros).max(1.0)
}

/// How much faster the second must be to be taken when both have about nothing in flight. Latencies of equal endpoints
/// usually differ by less than that, and then their shares are those of their weights.
const FASTER: f64 = 1.5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, is_about, picks};

    #[test]
    fn of_two_idle_ones_the_faster_is_picked_until_its_load_outweighs_that() {
        let mut candidates = Some::of(&[1, 1]);
        candidates.latency = vec![Estimate::Known(10_000.0), Estimate::Known(2_000.0)];
        assert_eq!(picks(&PeakEwma, &candidates, 100), [0, 100]);
        candidates.in_flight = vec![0, 5];
        assert_eq!(picks(&PeakEwma, &candidates, 100), [100, 0]);
    }

    #[test]
    fn idle_ones_of_about_the_same_speed_are_picked_by_weight() {
        for weights in [&[1; 10][..], &[1, 2], &[1, 99], &[1, 2, 3, 4]] {
            let mut candidates = Some::of(weights);
            for first in [Estimate::AtLeast(0.0), Estimate::Known(1_300.0)] {
                candidates.latency.fill(Estimate::Known(1_000.0));
                candidates.latency[0] = first;
                let total: u32 = weights.iter().sum();
                for (picked, weight) in picks(&PeakEwma, &candidates, 50_000).iter().zip(weights) {
                    let share = f64::from(*weight) / f64::from(total);
                    assert!(is_about(*picked, share, 50_000), "{weights:?}: {picked}");
                }
            }
        }
    }

    #[test]
    fn a_new_one_is_as_good_as_the_other_until_it_is_asked_and_then_waited_for() {
        let mut candidates = Some::of(&[1, 1]);
        for micros in [1.0, 30_000.0, 5_000_000.0] {
            candidates.latency = vec![Estimate::Known(micros), Estimate::AtLeast(0.0)];
            candidates.in_flight = vec![0, 0];
            let picked = picks(&PeakEwma, &candidates, 1_000)[1];
            assert!(is_about(picked, 0.5, 1_000), "{picked}");
            candidates.in_flight = vec![7, 1];
            assert_eq!(picks(&PeakEwma, &candidates, 100), [100, 0]);
        }
    }

    #[test]
    fn one_that_keeps_failing_is_not_fast() {
        let mut candidates = Some::of(&[1, 1]);
        candidates.latency = vec![Estimate::Known(50_000.0), Estimate::Known(1.0)];
        candidates.penalty[1] = 7;
        assert_eq!(picks(&PeakEwma, &candidates, 100), [100, 0]);
    }
}
