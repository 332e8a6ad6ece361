use std::sync::{
    PoisonError,
    atomic::Ordering::{Acquire, Relaxed, Release},
};

use crate::{
    Quota,
    gcra::Charge,
    sync::{AtomicU64, Mutex, fence},
};

/// A quota that can be changed while it is read: a reader sees the old one or the new one, never half of each.
///
/// ```text
///   version 2k:     versions[0] is in force, versions[1] may be written
///   version 2k + 1: versions[1] is in force, versions[0] may be written
/// ```
///
/// A reader asks the version before and after. It reads again if a change came in between; a writer that is stopped
/// half-way blocks no reader.
///
/// # What is owed from before
///
/// A bucket's debt is time, and an hour owed under a slow quota is still an hour under a fast one, whose bucket is perhaps a
/// second deep. So after a change to a quota that is less deep, and as long as such debts may exist, the TAT of a
/// rejected key is clamped to `now + depth + longest wait`. Queued requests keep their turns.
#[derive(Debug)]
pub(crate) struct QuotaCell {
    version: AtomicU64,
    versions: [Version; 2],
    writing: Mutex<()>,
    /// When no debt of a deeper quota is left, in nanoseconds of the limiter's clock.
    clamp_until: AtomicU64,
    longest_wait: AtomicU64,
}

#[derive(Debug)]
struct Version {
    interval: AtomicU64,
    burst: AtomicU64,
}

// === impl QuotaCell ===

impl QuotaCell {
    pub(crate) fn new(quota: Quota) -> Self {
        Self {
            version: AtomicU64::new(0),
            versions: [Version::new(quota), Version::new(quota)],
            writing: Mutex::new(()),
            clamp_until: AtomicU64::new(0),
            longest_wait: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn read(&self) -> Quota {
        loop {
            let version = self.version.load(Acquire);
            let quota = self.at(version).read();
            fence(Acquire);
            if self.version.load(Relaxed) == version {
                return quota;
            }
        }
    }

    pub(crate) fn set(&self, quota: Quota, now: u64) {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version.load(Relaxed);
        let (deep, next) = (self.at(version).read().depth(), version + 1);
        if deep > quota.depth() {
            self.clamp_until
                .fetch_max(now + deep + self.longest_wait.load(Relaxed), Relaxed);
        }
        fence(Release);
        self.at(next).write(quota);
        self.version.store(next, Release);
    }

    /// Records the longest wait, before a request waits.
    #[inline]
    pub(crate) fn note_max_wait(&self, charge: &Charge) {
        if charge.may_wait() {
            self.longest_wait.fetch_max(charge.max_wait(), Relaxed);
        }
    }

    /// The wait of a rejected request after the clamp; and the moment at which its bucket is full at the latest,
    /// if it is deeper in debt than an empty one.
    #[cold]
    pub(crate) fn clamp_debt(&self, charge: &Charge, wait: u64) -> (u64, Option<u64>) {
        let max_wait = self.longest_wait.load(Relaxed);
        if charge.now >= self.clamp_until.load(Relaxed) || wait <= charge.cost() + max_wait {
            return (wait, None);
        }
        (
            charge.cost() + max_wait,
            Some(charge.empty_until() + max_wait),
        )
    }

    #[inline]
    fn at(&self, version: u64) -> &Version {
        &self.versions[(version & 1) as usize]
    }
}

// === impl Version ===

impl Version {
    fn new(quota: Quota) -> Self {
        let (interval, burst) = quota.parts();
        Self {
            interval: AtomicU64::new(interval),
            burst: AtomicU64::new(burst.into()),
        }
    }

    #[inline]
    fn read(&self) -> Quota {
        Quota::from_parts((self.interval.load(Relaxed), self.burst.load(Relaxed) as u32))
    }

    fn write(&self, quota: Quota) {
        let (interval, burst) = quota.parts();
        self.interval.store(interval, Relaxed);
        self.burst.store(burst.into(), Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn quota(number: u32) -> Quota {
        Quota::from_parts((number.into(), number))
    }

    #[test]
    fn a_cell_shows_what_it_was_set_to() {
        let quota_cell = QuotaCell::new(quota(1));
        for number in [2, 3, 3, 7] {
            quota_cell.set(quota(number), 0);
            assert_eq!(quota_cell.read(), quota(number));
        }
    }

    #[test]
    fn a_reader_never_sees_half_of_a_change() {
        let quota_cell = QuotaCell::new(quota(1));
        std::thread::scope(|scope| {
            scope.spawn(|| (1..50_000).for_each(|number| quota_cell.set(quota(number), 0)));
            for _ in 0..50_000 {
                let seen = quota_cell.read();
                assert_eq!(seen.parts().0, u64::from(seen.parts().1));
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{model::Builder, sync::Arc, thread};

    use super::*;

    fn quota(number: u32) -> Quota {
        Quota::from_parts((number.into(), number))
    }

    #[test]
    fn a_reader_sees_the_old_or_the_new_quota_whole() {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let quota_cell = Arc::new(QuotaCell::new(quota(1)));
            let writer = thread::spawn({
                let quota_cell = quota_cell.clone();
                move || [2, 3].map(|number| quota_cell.set(quota(number), 0))
            });
            let seen = quota_cell.read();
            assert_eq!(seen.parts().0, u64::from(seen.parts().1));
            writer.join().unwrap();
            assert_eq!(quota_cell.read(), quota(3));
        });
    }
}
