use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{policy::Estimate, sync::AtomicU64};

/// The latency of an endpoint from the view of its clients: rises at once with the slowest response, and falls slowly ("peak
/// EWMA", after Finagle's `PeakEwma`; the decay depends on the elapsed time and not on the number of samples, so it is
/// independent of the load).
///
/// One word: the value as an `f32` in microseconds, negative before the first response, and the time of the last write in
/// ticks of 16 µs. The ticks wrap after 19 hours; an endpoint idle for exactly that long is taken for a recently used one.
#[derive(Debug, Default)]
pub(super) struct PeakLatency(AtomicU64);

// === impl PeakLatency ===

impl PeakLatency {
    /// Records the time of one response, at `now`, in nanoseconds since a common start.
    pub(super) fn record(&self, now: u64, took: u64) {
        let sample = micros(took);
        // A sample may be lost to a faster one; a peak must not be lost.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let (value, turn) = unpacked(word);
            let passed = turns(now).wrapping_sub(turn);
            let next = match () {
                // The first response, or a peak.
                () if word == 0 || sample >= value => sample,
                // No time has passed, so the new sample has no weight.
                () if passed == 0 => return None,
                () => sample + (value - sample) * remaining(passed),
            };
            Some(packed(next, turns(now)))
        });
    }

    /// Records a request that was abandoned after this time without a response. It is a lower bound, so it can only raise
    /// the value.
    pub(super) fn at_least(&self, now: u64, took: u64) {
        let sample = micros(took);
        let _ = self
            .0
            .fetch_update(Relaxed, Relaxed, |word| match read(word, now) {
                Estimate::Known(value) => (sample > value).then(|| packed(sample, turns(now))),
                Estimate::AtLeast(value) => (sample > value).then(|| packed(-sample, turns(now))),
            });
    }

    /// Records a failure after this duration. It raises the value, but only to a limit: one failure must not keep an
    /// endpoint out of the picks for long.
    pub(super) fn failed(&self, now: u64, took: u64) {
        let sample = micros(took);
        let _ =
            self.0
                .fetch_update(Relaxed, Relaxed, |word| match read(word, now) {
                    Estimate::Known(value) => (sample > value)
                        .then(|| packed(sample.min(FAILURE_RAISES * value), turns(now))),
                    Estimate::AtLeast(_) => None,
                });
    }

    /// As of `now`. The latency of an idle endpoint decays towards zero, so that it is picked again.
    pub(super) fn read(&self, now: u64) -> Estimate {
        read(self.0.load(Relaxed), now)
    }
}

fn read(word: u64, now: u64) -> Estimate {
    if word == 0 {
        return Estimate::AtLeast(0.0);
    }
    let (value, turn) = unpacked(word);
    let left = value.abs() * remaining(turns(now).wrapping_sub(turn));
    if value.is_sign_negative() {
        Estimate::AtLeast(left)
    } else {
        Estimate::Known(left)
    }
}

fn micros(nanos: u64) -> f32 {
    nanos as f32 / 1e3
}

fn turns(nanos: u64) -> u32 {
    // Starts from 1, so that no written word is 0.
    ((nanos >> 14) as u32).wrapping_add(1)
}

fn packed(value: f32, turn: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(turn)
}

fn unpacked(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

/// The remaining part of a value after this number of ticks.
fn remaining(turns: u32) -> f32 {
    (-(turns as f32) / DECAY_TURNS).exp()
}

/// As in Finagle and linkerd: after 10 s a third of the old value remains.
const DECAY: Duration = Duration::from_secs(10);
const DECAY_TURNS: f32 = (DECAY.as_nanos() >> 14) as f32;

/// A slow failure raises the latency to at most this factor of the old value, which decays within 14 s.
const FAILURE_RAISES: f32 = 4.0;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MILLI;

    fn known(latency: &PeakLatency, now: u64) -> f32 {
        match latency.read(now) {
            Estimate::Known(micros) => micros,
            Estimate::AtLeast(micros) => panic!("only known to be at least {micros}"),
        }
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let latency = PeakLatency::default();
        assert_eq!(latency.read(5 * SECOND), Estimate::AtLeast(0.0));
        latency.record(SECOND, 10 * MILLI);
        latency.record(SECOND, 50 * MILLI);
        assert!((known(&latency, SECOND) - 50_000.0).abs() < 1.0);
        latency.record(SECOND + MILLI, MILLI);
        assert!(
            known(&latency, SECOND + MILLI) > 49_000.0,
            "one good answer proves little"
        );
        for turn in 0..10_000 {
            latency.record(SECOND + turn * 10 * MILLI, MILLI);
        }
        let later = known(&latency, 101 * SECOND);
        assert!((later - 1_000.0).abs() < 60.0, "{later}");
    }

    #[test]
    fn a_request_that_was_given_up_raises_it_and_never_lowers_it() {
        let latency = PeakLatency::default();
        latency.record(SECOND, MILLI);
        latency.at_least(SECOND, 200 * MILLI);
        assert!((known(&latency, SECOND) - 200_000.0).abs() < 1.0);
        latency.at_least(2 * SECOND, 50 * MILLI);
        assert!(known(&latency, 2 * SECOND) > 150_000.0);
        latency.at_least(60 * SECOND, 50 * MILLI);
        assert!(
            (known(&latency, 60 * SECOND) - 50_000.0).abs() < 1.0,
            "it had fallen below that"
        );
    }

    #[test]
    fn only_an_answer_makes_it_known() {
        let latency = PeakLatency::default();
        latency.at_least(SECOND, 200 * MILLI);
        latency.at_least(SECOND, MILLI);
        latency.failed(SECOND, 900 * MILLI);
        let Estimate::AtLeast(micros) = latency.read(SECOND) else {
            panic!("nothing was answered");
        };
        assert!((micros - 200_000.0).abs() < 1.0);
        latency.record(SECOND, 3 * MILLI);
        assert!((known(&latency, SECOND) - 3_000.0).abs() < 1.0);
    }

    #[test]
    fn a_failure_raises_it_little_and_a_fast_one_changes_nothing() {
        let latency = PeakLatency::default();
        latency.record(SECOND, 5 * MILLI);
        latency.failed(SECOND, MILLI);
        assert!((known(&latency, SECOND) - 5_000.0).abs() < 1.0);
        latency.failed(SECOND, 15 * SECOND);
        assert!((known(&latency, SECOND) - 20_000.0).abs() < 1.0);
        latency.failed(SECOND, 30 * MILLI);
        assert!((known(&latency, SECOND) - 30_000.0).abs() < 1.0);
    }

    #[test]
    fn what_is_not_asked_becomes_cheap_in_time() {
        let latency = PeakLatency::default();
        latency.record(0, 100 * MILLI);
        let after = |seconds: u64| known(&latency, seconds * SECOND);
        assert!(after(10) < 0.4 * after(0) && after(10) > 0.3 * after(0));
        assert!(after(100) < 0.001 * after(0));
    }

    #[test]
    fn the_weight_of_a_sample_does_not_depend_on_how_many_there_are() {
        let [often, seldom] = [10, 1_000].map(|millis| {
            let latency = PeakLatency::default();
            latency.record(0, 100 * MILLI);
            for at in 1..=10_000 / millis {
                latency.record(at * millis * MILLI, MILLI);
            }
            known(&latency, 10 * SECOND)
        });
        assert!((often - seldom).abs() < 0.1 * often, "{often} {seldom}");
    }
}
