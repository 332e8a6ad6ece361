//! The connections of a limit that can be asked to close: at the limit, idle ones make room for new ones.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

/// A connection that can be asked to close while it is idle.
pub(crate) trait Evictable: Send + Sync {
    /// `None` while it has a request under way, and once it closes.
    fn idle(&self) -> Option<Idle>;

    /// Asks it to close. Its task is woken after that, and declines if a request is under way by then.
    fn evict(&self);
}

/// An idle connection. The smaller value is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Idle {
    /// It has had a request.
    pub(crate) used: bool,
    pub(crate) since: Instant,
}

/// All connections of a limit. Its lock is taken when one begins, when one ends, and at the limit; never for a request.
#[derive(Default)]
pub(crate) struct Candidates(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Where the next search begins.
    hand: usize,
}

struct Entry {
    conn: Arc<dyn Evictable>,
    waker: Waker,
}

// === impl Candidates ===

impl Candidates {
    /// Returns its index.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "only connections of `Http` can be asked")
    )]
    pub(crate) fn insert(&self, conn: Arc<dyn Evictable>, waker: Waker) -> u32 {
        let mut entries = self.lock();
        let index = entries.free.pop().unwrap_or_else(|| {
            entries.entries.push(None);
            (entries.entries.len() - 1) as u32
        });
        entries.entries[index as usize] = Some(Entry { conn, waker });
        index
    }

    pub(crate) fn remove(&self, index: u32) {
        let mut entries = self.lock();
        let removed = entries.entries[index as usize].take();
        entries.free.push(index);
        drop(entries);
        // The last waker of a task frees it, which must not happen under the lock.
        drop(removed);
    }

    /// Asks an idle connection to close; `false` if none was found. Of those compared, it is the one that has been idle
    /// longest; connections that never had a request come first.
    pub(crate) fn ask(&self, now: Instant) -> bool {
        let waker = self.lock().ask(now);
        // Not under the lock: a waker runs code of other crates.
        waker.map(Waker::wake).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Candidates")
    }
}

// === impl Entries ===

impl Entries {
    fn ask(&mut self, now: Instant) -> Option<Waker> {
        let (mut best, mut found) = (None::<(Idle, &Entry)>, 0);
        for _ in 0..self.entries.len().min(MAX_EXAMINED) {
            self.hand = (self.hand + 1) % self.entries.len();
            let Some(entry) = &self.entries[self.hand] else {
                continue;
            };
            let Some(idle) = entry.conn.idle().filter(|idle| idle.may_leave(now)) else {
                continue;
            };
            if best.as_ref().is_none_or(|(best, _)| idle < *best) {
                best = Some((idle, entry));
            }
            found += 1;
            if found == MAX_COMPARED {
                break;
            }
        }
        let (_, entry) = best?;
        entry.conn.evict();
        Some(entry.waker.clone())
    }
}

// === impl Idle ===

impl Idle {
    fn may_leave(self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= MIN_IDLE
    }
}

/// How many connections one search visits, and how many idle ones it compares: a new connection must not cost a search
/// through ten thousand.
const MAX_EXAMINED: usize = 256;
const MAX_COMPARED: usize = 16;
/// A connection that has been used, or opened, within this time is not asked: the first request of a new one may be on its
/// way, and new connections cannot take away those that are in use.
pub(crate) const MIN_IDLE: Duration = Duration::from_secs(1);
/// How long an HTTP/1 connection that is asked to close still takes a request. A client that opens connections often uses
/// its idle ones at the same moment.
#[cfg(feature = "http")]
pub(crate) const GRACE: Duration = Duration::from_millis(50);
/// How long its peer may take to close its half. Nothing was sent to it for a second, so there is no response to lose.
#[cfg(feature = "http")]
pub(crate) const LINGER: Duration = Duration::from_millis(50);
/// How long an HTTP/2 peer may take to acknowledge the first GOAWAY. The second one names the streams that were processed, so a
/// client can repeat any other.
#[cfg(feature = "http")]
pub(crate) const GOAWAY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;

    struct Conn {
        busy: AtomicBool,
        asked: AtomicUsize,
        idle: Idle,
    }

    impl Conn {
        fn new(used: bool, since: Instant) -> Arc<Self> {
            Arc::new(Self {
                busy: AtomicBool::new(false),
                asked: AtomicUsize::new(0),
                idle: Idle { used, since },
            })
        }
    }

    impl Evictable for Conn {
        fn idle(&self) -> Option<Idle> {
            let here = !self.busy.load(SeqCst) && self.asked.load(SeqCst) == 0;
            here.then_some(self.idle)
        }

        fn evict(&self) {
            self.asked.fetch_add(1, SeqCst);
        }
    }

    fn candidates(conns: &[Arc<Conn>]) -> Candidates {
        let candidates = Candidates::default();
        for conn in conns {
            candidates.insert(conn.clone(), Waker::noop().clone());
        }
        candidates
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_one_that_is_idle_longest_is_asked_first_and_a_busy_one_never() {
        let start = Instant::now();
        let conns: Vec<_> = [3, 1, 0, 2]
            .map(|since| Conn::new(true, start + secs(since)))
            .into();
        conns[2].busy.store(true, SeqCst);
        let candidates = candidates(&conns);
        let mut order = Vec::new();
        while candidates.ask(start + secs(10)) {
            let asked = |n: &usize| conns[*n].asked.load(SeqCst) > 0 && !order.contains(n);
            let next = (0..4).find(asked).unwrap();
            order.push(next);
        }
        assert_eq!(order, [1, 3, 0]);
    }

    #[test]
    fn one_without_a_request_is_asked_before_those_that_had_one() {
        let start = Instant::now();
        let conns = [Conn::new(true, start), Conn::new(false, start + secs(2))];
        let candidates = candidates(&conns);
        assert!(candidates.ask(start + secs(4)));
        assert_eq!(conns[1].asked.load(SeqCst), 1);
    }

    #[test]
    fn one_that_was_used_or_opened_just_now_is_not_asked() {
        let start = Instant::now();
        let candidates = candidates(&[Conn::new(true, start), Conn::new(false, start)]);
        assert!(!candidates.ask(start + MIN_IDLE - Duration::from_millis(1)));
        assert!(candidates.ask(start + MIN_IDLE));
    }

    #[test]
    fn a_search_is_bounded_and_the_next_one_goes_on() {
        let start = Instant::now();
        let mut conns: Vec<_> = (0..MAX_EXAMINED * 3)
            .map(|_| Conn::new(true, start))
            .collect();
        for conn in &conns {
            conn.busy.store(true, SeqCst);
        }
        conns.push(Conn::new(true, start));
        let candidates = candidates(&conns);
        let asked: Vec<_> = (0..4).map(|_| candidates.ask(start + secs(10))).collect();
        assert_eq!(asked.iter().filter(|asked| **asked).count(), 1, "{asked:?}");
    }

    #[test]
    fn an_entry_is_used_again() {
        let candidates = Candidates::default();
        let conn = Conn::new(true, Instant::now());
        let first = candidates.insert(conn.clone(), Waker::noop().clone());
        candidates.remove(first);
        assert!(!candidates.ask(Instant::now() + secs(10)));
        assert_eq!(candidates.insert(conn, Waker::noop().clone()), first);
    }
}
