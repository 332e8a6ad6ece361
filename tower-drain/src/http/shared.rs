//! What a connection's stream, its requests and its future know of each other.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use http::{HeaderName, Response, Version};
use tokio::time::Instant;
use tower_outcome::body::{End, OnEnd};

use super::{Settings, info::ConnectionInfo, lifecycle::Activity};
use crate::{
    accepted::Accepted,
    close::Closable,
    drain::{Drain, Shared},
};

/// What a connection is doing: shared by its stream, its requests and its future, which for HTTP/1 are one task.
#[derive(Debug)]
pub(super) struct ConnShared {
    shared: Arc<Shared>,
    pub(super) settings: Arc<Settings>,
    pub(super) info: ConnectionInfo,
    born: Instant,
    /// Requests that were taken, and whose answers are not at their end.
    under_way: AtomicU32,
    /// Requests so far; it may wrap.
    requests: AtomicU32,
    /// Bytes came while no request was under way: the beginning of a head.
    head_began: AtomicBool,
    upgraded: AtomicBool,
    /// It ends though the drain has not begun.
    leaving: AtomicBool,
    /// Since when bytes wait to be written: milliseconds since `born`, and one. `0`: none do.
    stalled: AtomicU64,
    ping: AtomicU8,
}

/// The ping of the first GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ping {
    Unanswered,
    /// The peer has answered, and hyper does not know it.
    Hidden,
    /// We give the answer ourselves.
    Wanted,
    Answered,
}

/// A request under way, until its answer's end or drop.
pub(super) struct RequestGuard(pub(super) Arc<ConnShared>);

// === impl ConnShared ===

impl ConnShared {
    pub(super) fn new<Io>(
        drain: &Drain,
        settings: Arc<Settings>,
        accepted: &Accepted<Io>,
        born: Instant,
    ) -> Self {
        Self {
            shared: drain.shared.clone(),
            settings,
            info: ConnectionInfo::of(accepted),
            born,
            under_way: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            head_began: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            stalled: AtomicU64::new(0),
            ping: AtomicU8::new(0),
        }
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn activity(&self) -> Activity {
        if self.under_way.load(Relaxed) > 0 {
            Activity::Request
        } else if self.head_began.load(Relaxed) {
            Activity::Head
        } else {
            Activity::Idle
        }
    }

    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// Bytes came.
    pub(super) fn heard(&self) {
        if self.under_way.load(Relaxed) == 0 {
            self.head_began.store(true, Relaxed);
        }
    }

    /// HTTP/2 has frames of its own accord: bytes are no head there.
    pub(super) fn forget_head(&self) {
        self.head_began.store(false, Relaxed);
    }

    /// Answers end the connection from now on.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Bytes wait to be written, or do so no longer.
    pub(super) fn set_stalled(&self, stalled: bool) {
        let since = self.stalled.load(Relaxed);
        if !stalled && since != 0 {
            self.stalled.store(0, Relaxed);
        } else if stalled && since == 0 {
            self.stalled
                .store(self.born.elapsed().as_millis() as u64 + 1, Relaxed);
        }
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        let since = self.stalled.load(Relaxed).checked_sub(1)?;
        Some(self.born + Duration::from_millis(since))
    }

    pub(super) fn ping(&self) -> Ping {
        match self.ping.load(Relaxed) {
            0 => Ping::Unanswered,
            1 => Ping::Hidden,
            2 => Ping::Wanted,
            _ => Ping::Answered,
        }
    }

    pub(super) fn set_ping(&self, ping: Ping) {
        self.ping.store(ping as u8, Relaxed);
    }

    /// The stream is gone.
    pub(super) fn ended(&self) {
        if self.is_upgraded() {
            self.shared.count.upgraded.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn take_request(self: &Arc<Self>) -> RequestGuard {
        self.under_way.fetch_add(1, AcqRel);
        self.requests.fetch_add(1, Relaxed);
        self.head_began.store(false, Relaxed);
        RequestGuard(self.clone())
    }

    fn upgrade(&self) {
        if !self.upgraded.swap(true, Relaxed) {
            self.shared.count.upgraded.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn finish<B>(
        &self,
        response: &mut Response<B>,
        closable: Closable,
        version: Version,
    ) {
        if closable.is_upgrade(response) {
            self.upgrade();
        } else if self.is_leaving() {
            closable.close(response);
        } else if let (Version::HTTP_11, Some(keep_alive)) = (version, &self.settings.keep_alive) {
            response
                .headers_mut()
                .entry(KEEP_ALIVE)
                .or_insert_with(|| keep_alive.clone());
        }
    }

    fn is_leaving(&self) -> bool {
        !self.shared.is_serving() || self.leaving.load(Relaxed)
    }
}

// === impl RequestGuard ===

impl OnEnd for RequestGuard {
    fn on_end(self, _: End<'_>) {}
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, AcqRel);
    }
}

impl fmt::Debug for RequestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestGuard")
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
