use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use redis::Script;
use tokio::time::Instant;

/// The state of the server, shared by the clones of a limiter.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) script: Script,
    start: Instant,
    /// Nanoseconds since `start`; 0 while it replies.
    down_until: AtomicU64,
    failures: AtomicU64,
    /// When an error reply was logged last, in nanoseconds since `start`. 0: never.
    error_logged: AtomicU64,
}

// === impl Server ===

impl Server {
    /// Whether it is asked without a test.
    pub(crate) fn is_up(&self) -> bool {
        self.now() >= self.down_until.load(Relaxed)
    }

    /// While it is not known to reply, one request at a time asks, and the rest do not wait for that one.
    pub(crate) fn may_ask(&self) -> bool {
        let (now, until) = (self.now(), self.down_until.load(Relaxed));
        until == 0
            || until <= now
                && self
                    .down_until
                    .compare_exchange(until, now + PAUSE, Relaxed, Relaxed)
                    .is_ok()
    }

    /// Records a reply. True if it had been down.
    pub(crate) fn record_reply(&self) -> bool {
        self.down_until.load(Relaxed) != 0 && self.down_until.swap(0, Relaxed) != 0
    }

    /// Records a timeout or an I/O error. True if it had been up.
    pub(crate) fn record_no_reply(&self) -> bool {
        self.down_until.swap(self.now() + PAUSE, Relaxed) == 0
    }

    pub(crate) fn count_failure(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Whether an error reply may be logged: once a minute.
    pub(crate) fn may_log_error(&self) -> bool {
        let (now, last) = (self.now(), self.error_logged.load(Relaxed));
        (last == 0 || now.saturating_sub(last) >= ONE_MINUTE)
            && self
                .error_logged
                .compare_exchange(last, now.max(1), Relaxed, Relaxed)
                .is_ok()
    }

    fn now(&self) -> u64 {
        // Enough for 584 years.
        self.start.elapsed().as_nanos() as u64
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            script: Script::new(SCRIPT),
            start: Instant::now(),
            down_until: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            error_logged: AtomicU64::new(0),
        }
    }
}

const SCRIPT: &str = include_str!("gcra.lua");

/// Nanoseconds without requests to the server after it did not reply, so that not every request waits for the timeout.
const PAUSE: u64 = 1_000_000_000;
const ONE_MINUTE: u64 = 60_000_000_000;
