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
/// An `Instant` does not show its number, and a subtraction, which the standard library does out of line, costs as much as
/// all the rest of a check: 41 instructions more. But it can be hashed, which writes out its seconds and nanoseconds, and
/// costs three. This is not documented. Therefore each limiter tries it on distances that are known, and subtracts where it
/// is not so: a platform or a library that hashes in another way makes a check longer, and no decision another one.
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
        Self {
            instant,
            read: Reading::is_true_from(instant).then(|| Reading::of(instant)),
        }
    }

    /// Nanoseconds from then to `now`, below [`HORIZON`].
    #[inline]
    pub(crate) fn until(self, now: Instant) -> u64 {
        let since = match self.read {
            Some(start) => Reading::of(now).wrapping_sub(start),
            None => self.subtract_from(now),
        };
        // Before the start, it is half of eternity.
        if since > HORIZON {
            if since > u64::MAX / 2 { 0 } else { HORIZON - 1 }
        } else {
            since
        }
    }

    #[cold]
    fn subtract_from(self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.instant);
        since
            .as_secs()
            .saturating_mul(1_000_000_000)
            .saturating_add(since.subsec_nanos().into())
            .min(HORIZON)
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

    fn is_true_from(instant: Instant) -> bool {
        Self::is_true_of(|nanos| Self::of(instant + Duration::from_nanos(nanos)))
    }

    fn is_true_of(read: impl Fn(u64) -> u64) -> bool {
        let distances = [
            0,
            1,
            999_999_999,
            1_000_000_000,
            1_750_000_000,
            86_400_000_000_001,
        ];
        distances
            .into_iter()
            .all(|nanos| read(nanos).wrapping_sub(read(0)) == nanos)
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
        self.seconds
            .wrapping_mul(1_000_000_000)
            .wrapping_add(self.nanos.into())
    }
}

#[cfg(test)]
mod tests;
