use std::{
    hash::{Hash, Hasher},
    time::Duration,
};

use tokio::time::Instant;

use crate::quota::HORIZON;

/// The moment that is nanosecond zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    instant: Instant,
    /// As [`Reading`] has it, where that can be relied on.
    read: Option<u64>,
}

/// Reads an instant as a number of nanoseconds from some beginning.
///
/// An `Instant` does not show its number, and taking two apart costs more than all the rest of a check: 58 instructions.
/// But it can be hashed, which writes out its seconds and nanoseconds, and costs three. No document says so; therefore
/// each limiter tries it on distances that are known, and subtracts where it is not so.
#[derive(Default)]
struct Reading {
    seconds: u64,
    nanos: u32,
}

// === impl Start ===

impl Start {
    pub(crate) fn now() -> Self {
        Self::at(Instant::now())
    }

    fn at(instant: Instant) -> Self {
        Self { instant, read: Reading::is_true_of(instant).then(|| Reading::of(instant)) }
    }

    /// Nanoseconds from then to `now`, below [`HORIZON`].
    #[inline]
    pub(crate) fn until(self, now: Instant) -> u64 {
        let since = match self.read {
            Some(start) => Reading::of(now).wrapping_sub(start),
            None => self.subtract_from(now),
        };
        // Before the start, it is half of eternity.
        if since > HORIZON { if since > u64::MAX / 2 { 0 } else { HORIZON - 1 } } else { since }
    }

    #[cold]
    fn subtract_from(self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.instant).as_nanos()).unwrap_or(HORIZON).min(HORIZON)
    }
}

// === impl Reading ===

impl Reading {
    #[inline]
    fn of(instant: Instant) -> u64 {
        let mut reading = Self::default();
        instant.hash(&mut reading);
        reading.finish()
    }

    fn is_true_of(instant: Instant) -> bool {
        let distances = [0, 1, 999_999_999, 1_000_000_000, 1_750_000_000, 86_400_000_000_001];
        distances.into_iter().all(|nanos| {
            let later = instant + Duration::from_nanos(nanos);
            Self::of(later).wrapping_sub(Self::of(instant)) == nanos
        })
    }
}

impl Hasher for Reading {
    #[inline]
    fn write_i64(&mut self, seconds: i64) {
        self.seconds = seconds.cast_unsigned();
    }

    #[inline]
    fn write_u64(&mut self, seconds: u64) {
        self.seconds = seconds;
    }

    #[inline]
    fn write_u32(&mut self, nanos: u32) {
        self.nanos = nanos;
    }

    /// Anything else is not understood, and shows when it is tried.
    fn write(&mut self, _: &[u8]) {}

    #[inline]
    fn finish(&self) -> u64 {
        self.seconds.wrapping_mul(1_000_000_000).wrapping_add(self.nanos.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_instant_is_read_as_it_would_be_subtracted(before in 0..u64::MAX / 8, nanos in 0..u64::MAX / 8) {
            let instant = Instant::now() + Duration::from_nanos(before);
            let start = Start::at(instant);
            let later = instant + Duration::from_nanos(nanos);
            prop_assert!(start.read.is_some(), "otherwise it works, and is slower");
            prop_assert_eq!(start.until(later), nanos);
            prop_assert_eq!(Start { read: None, ..start }.until(later), nanos);
        }
    }

    #[test]
    fn before_the_start_it_is_zero_and_beyond_the_horizon_it_stands_still() {
        let instant = Instant::now() + Duration::from_secs(10);
        for start in [Start::at(instant), Start { instant, read: None }] {
            assert_eq!(start.until(instant - Duration::from_nanos(1)), 0);
            assert_eq!(start.until(instant - Duration::from_secs(9)), 0);
            let far = instant + Duration::from_nanos(HORIZON) + Duration::from_secs(1);
            assert!((HORIZON - 1..=HORIZON).contains(&start.until(far)));
        }
    }
}
