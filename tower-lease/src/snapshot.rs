use std::time::Duration;

use crate::{Fault, Lost, RequestCounts, State};

/// The state, the counters and the histograms of a lease. From [`Lease::snapshot`](crate::Lease::snapshot).
///
/// Everything but the first two counts from the creation of the lease, over all its epochs, and only grows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state, and in it the epoch.
    pub state: State,
    /// For how long it is still held if no renewal succeeds.
    pub remaining: Duration,
    /// Epochs begun.
    pub acquisitions: u64,
    /// How long each successful renewal took, from before it was sent to its handling.
    pub renewals: Histogram,
    /// How much validity was left when each renewal came. Its least value is the early warning: when that comes near
    /// zero, the next slow renewal is a loss.
    pub validity: Histogram,
    /// Acquires and renewals that failed.
    pub failures: Failures,
    /// Epochs that were lost rather than given back.
    pub losses: Losses,
    /// Counts of requests.
    pub requests: RequestCounts,
}

/// Durations, counted by how long they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
    extremes: Option<(Duration, Duration)>,
}

/// Calls to the store that failed, by what may have happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failures {
    /// [`Fault::NotSent`].
    pub not_sent: u64,
    /// [`Fault::Refused`].
    pub refused: u64,
    /// [`Fault::Unknown`].
    pub unknown: u64,
    /// [`Fault::Lost`].
    pub lost: u64,
    /// Not answered within an attempt's time. An answer may have come later, and counted then.
    pub timed_out: u64,
}

/// Epochs that were lost, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Losses {
    /// [`Lost::Expired`].
    pub expired: u64,
    /// [`Lost::Gone`].
    pub gone: u64,
    /// [`Lost::Replaced`].
    pub replaced: u64,
    /// [`Lost::Rewound`].
    pub rewound: u64,
    /// [`Lost::KeeperGone`].
    pub keeper_gone: u64,
}

/// What the keeper counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) acquisitions: u64,
    pub(crate) renewals: Histogram,
    pub(crate) validity: Histogram,
    pub(crate) failures: Failures,
    pub(crate) losses: Losses,
}

/// From a quick store to the longest TTLs that make sense.
const BOUNDS: [Duration; 16] = {
    let ms = Duration::from_millis;
    [
        ms(1),
        ms(2),
        ms(5),
        ms(10),
        ms(25),
        ms(50),
        ms(100),
        ms(250),
        ms(500),
        ms(1_000),
        ms(2_500),
        ms(5_000),
        ms(10_000),
        ms(20_000),
        ms(30_000),
        ms(60_000),
    ]
};

// === impl Histogram ===

impl Histogram {
    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// The shortest one.
    #[must_use]
    pub fn least(&self) -> Option<Duration> {
        self.extremes.map(|(least, _)| least)
    }

    /// The longest one.
    #[must_use]
    pub fn most(&self) -> Option<Duration> {
        self.extremes.map(|(_, most)| most)
    }

    /// Each upper bound (inclusive; `None` is the rest) with how many durations fell between it and the one before.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        BOUNDS.into_iter().map(Some).chain([None]).zip(self.counts)
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let at = BOUNDS
            .iter()
            .position(|bound| duration <= *bound)
            .unwrap_or(BOUNDS.len());
        self.counts[at] += 1;
        self.sum = self.sum.saturating_add(duration);
        let (least, most) = self.extremes.unwrap_or((duration, duration));
        self.extremes = Some((least.min(duration), most.max(duration)));
    }
}

// === impl Failures, Losses, Counts ===

impl Failures {
    pub(crate) const fn count(&mut self, fault: Fault) {
        match fault {
            Fault::NotSent => self.not_sent += 1,
            Fault::Refused => self.refused += 1,
            Fault::Unknown => self.unknown += 1,
            Fault::Lost => self.lost += 1,
        }
    }
}

impl Losses {
    pub(crate) const fn count(&mut self, cause: Lost) {
        match cause {
            Lost::Expired => self.expired += 1,
            Lost::Gone => self.gone += 1,
            Lost::Replaced => self.replaced += 1,
            Lost::Rewound => self.rewound += 1,
            Lost::KeeperGone => self.keeper_gone += 1,
        }
    }
}

impl Counts {
    pub(crate) fn renewed(&mut self, left: Duration, took: Duration) {
        self.validity.add(left);
        self.renewals.add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn r33_a_histogram_counts_each_duration_once() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.count(), histogram.least()), (0, None));
        for millis in [1, 2, 3, 700, 61_000] {
            histogram.add(ms(millis));
        }
        assert_eq!(
            (histogram.least(), histogram.most()),
            (Some(ms(1)), Some(ms(61_000)))
        );
        assert_eq!((histogram.count(), histogram.sum()), (5, ms(61_706)));
        let full: Vec<_> = histogram
            .buckets()
            .filter(|(_, count)| *count > 0)
            .collect();
        let bounds = [Some(ms(1)), Some(ms(2)), Some(ms(5)), Some(ms(1_000)), None];
        assert_eq!(full, bounds.map(|bound| (bound, 1)));
    }
}
