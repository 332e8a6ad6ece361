use super::{Candidates, Policy, Turn, two};

/// Of two candidates at random, the one that will answer sooner: the latency of its worst answers lately, times what it
/// has in flight (Finagle's peak EWMA).
///
/// For endpoints that differ in speed, or are slow at times. The latency is that to the head of a response; a failure
/// counts as a second at least, and see the [module](super) for what else it costs. A request that is given up before its
/// answer counts for as long as it was waited for, if that is longer than what was known, so that an endpoint that never
/// answers is not taken for a fast one. Costs reading the clock twice a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeakEwma;

// === impl PeakEwma ===

impl PeakEwma {
    /// The policy; it has no knobs.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<Req> Policy<Req> for PeakEwma {
    type Table = ();

    const MEASURES_LATENCY: bool = true;

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), candidates: &C, turn: &Turn) -> usize {
        let count = candidates.count();
        if count < 2 {
            return 0;
        }
        let (one, other) = two(count);
        let cost = |index: usize| {
            // One microsecond at least: what decayed to nothing still has its load.
            let latency = candidates.latency(index, turn).max(1.0);
            latency * candidates.cost(index) as f32 / candidates.weight(index) as f32
        };
        if cost(other) < cost(one) { other } else { one }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, is_about, picks};

    #[test]
    fn of_two_idle_ones_the_faster_is_picked_until_its_load_outweighs_that() {
        let mut candidates = Some::of(&[1, 1]);
        candidates.latency = vec![10_000.0, 2_000.0];
        assert_eq!(picks(&PeakEwma, &candidates, 100), [0, 100]);
        candidates.in_flight = vec![0, 5];
        assert_eq!(picks(&PeakEwma, &candidates, 100), [100, 0]);
    }

    #[test]
    fn unknown_ones_are_picked_evenly() {
        for picked in picks(&PeakEwma, &Some::of(&[1; 10]), 10_000) {
            assert!(is_about(picked, 0.1, 10_000), "{picked}");
        }
    }
}
