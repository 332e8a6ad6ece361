use std::sync::{
    PoisonError,
    atomic::Ordering::{Acquire, Relaxed, Release},
};

use crate::{
    Quota,
    gcra::Ask,
    sync::{AtomicU64, Mutex, fence},
};

/// A quota that can be changed while it is read: a reader sees the old one or the new one, never half of each.
///
/// ```text
///   version 2k:     pages[0] is in force, pages[1] may be written
///   version 2k + 1: pages[1] is in force, pages[0] may be written
/// ```
///
/// A reader asks the version before and after. It reads again if a change came in between; a writer that is stopped
/// half-way holds nobody up.
///
/// # What is owed from before
///
/// A bucket's debt is time, and an hour owed under a slow quota is still an hour under a fast one, whose bucket is perhaps a
/// second deep. So after a change to a quota that is less deep, and as long as such debts may be about, whoever is refused
/// has his bucket brought to where an empty one stands today. It passes nothing by itself, and who waits keeps his turn: the
/// longest that anybody may wait is left on top.
#[derive(Debug)]
pub(crate) struct Dial {
    version: AtomicU64,
    pages: [Page; 2],
    turning: Mutex<()>,
    /// When no debt of a deeper quota is left, in nanoseconds of the limiter's clock.
    relief_until: AtomicU64,
    longest_patience: AtomicU64,
}

#[derive(Debug)]
struct Page {
    interval: AtomicU64,
    burst: AtomicU64,
}

// === impl Dial ===

impl Dial {
    pub(crate) fn new(quota: Quota) -> Self {
        Self {
            version: AtomicU64::new(0),
            pages: [Page::new(quota), Page::new(quota)],
            turning: Mutex::new(()),
            relief_until: AtomicU64::new(0),
            longest_patience: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn read(&self) -> Quota {
        loop {
            let version = self.version.load(Acquire);
            let quota = self.page(version).read();
            fence(Acquire);
            if self.version.load(Relaxed) == version {
                return quota;
            }
        }
    }

    pub(crate) fn turn(&self, quota: Quota, now: u64) {
        let _alone = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version.load(Relaxed);
        let (deep, next) = (self.page(version).read().depth(), version + 1);
        if deep > quota.depth() {
            self.relief_until
                .fetch_max(now + deep + self.longest_patience.load(Relaxed), Relaxed);
        }
        fence(Release);
        self.page(next).write(quota);
        self.version.store(next, Release);
    }

    /// Notes how long somebody may wait. Before he does.
    #[inline]
    pub(crate) fn note_patience(&self, ask: &Ask) {
        if ask.is_patient() {
            self.longest_patience
                .fetch_max(ask.patience_nanos(), Relaxed);
        }
    }

    /// What to tell one who is refused and should wait for so long; and the moment at which his bucket may be full at the latest,
    /// if it is deeper in debt than an empty one.
    #[cold]
    pub(crate) fn relieve(&self, ask: &Ask, wait: u64) -> (u64, Option<u64>) {
        let patience = self.longest_patience.load(Relaxed);
        if ask.now >= self.relief_until.load(Relaxed) || wait <= ask.cost() + patience {
            return (wait, None);
        }
        (ask.cost() + patience, Some(ask.empty_until() + patience))
    }

    #[inline]
    fn page(&self, version: u64) -> &Page {
        &self.pages[(version & 1) as usize]
    }
}

// === impl Page ===

impl Page {
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
    fn a_turned_dial_shows_what_it_was_turned_to() {
        let dial = Dial::new(quota(1));
        for number in [2, 3, 3, 7] {
            dial.turn(quota(number), 0);
            assert_eq!(dial.read(), quota(number));
        }
    }

    #[test]
    fn a_reader_never_sees_half_of_a_change() {
        let dial = Dial::new(quota(1));
        std::thread::scope(|scope| {
            scope.spawn(|| (1..50_000).for_each(|number| dial.turn(quota(number), 0)));
            for _ in 0..50_000 {
                let seen = dial.read();
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
            let dial = Arc::new(Dial::new(quota(1)));
            let writer = thread::spawn({
                let dial = dial.clone();
                move || [2, 3].map(|number| dial.turn(quota(number), 0))
            });
            let seen = dial.read();
            assert_eq!(seen.parts().0, u64::from(seen.parts().1));
            writer.join().unwrap();
            assert_eq!(dial.read(), quota(3));
        });
    }
}
