use std::sync::{
    PoisonError,
    atomic::Ordering::{Acquire, Relaxed, Release},
};

use crate::{
    Quota,
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
#[derive(Debug)]
pub(crate) struct Dial {
    version: AtomicU64,
    pages: [Page; 2],
    turning: Mutex<()>,
}

#[derive(Debug)]
struct Page {
    interval: AtomicU64,
    burst: AtomicU64,
}

// === impl Dial ===

impl Dial {
    pub(crate) fn new(quota: Quota) -> Self {
        Self { version: AtomicU64::new(0), pages: [Page::new(quota), Page::new(quota)], turning: Mutex::new(()) }
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

    pub(crate) fn turn(&self, quota: Quota) {
        let _alone = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.version.load(Relaxed) + 1;
        fence(Release);
        self.page(next).write(quota);
        self.version.store(next, Release);
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
        Self { interval: AtomicU64::new(interval), burst: AtomicU64::new(burst.into()) }
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
            dial.turn(quota(number));
            assert_eq!(dial.read(), quota(number));
        }
    }

    #[test]
    fn a_reader_never_sees_half_of_a_change() {
        let dial = Dial::new(quota(1));
        std::thread::scope(|scope| {
            scope.spawn(|| (1..50_000).for_each(|number| dial.turn(quota(number))));
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
                move || [2, 3].map(|number| dial.turn(quota(number)))
            });
            let seen = dial.read();
            assert_eq!(seen.parts().0, u64::from(seen.parts().1));
            writer.join().unwrap();
            assert_eq!(dial.read(), quota(3));
        });
    }
}
