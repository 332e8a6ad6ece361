//! The state that a connection's stream, its requests and its future share.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use http::{HeaderName, Response, Version};
use tokio::time::Instant;

use super::{
    Settings,
    http2::{self, Slot},
    info::ConnectionInfo,
    lifecycle::{Activity, Ping},
    moment::Moment,
};
use crate::{
    accepted::Accepted,
    close::Closable,
    drain::{Drain, Shared},
    eviction::{self, Evictable, Idle},
};

/// What a connection is doing: shared by its stream, its requests and its future, which for HTTP/1 are one task.
#[derive(Debug)]
pub(super) struct ConnShared {
    shared: Arc<Shared>,
    pub(super) settings: Arc<Settings>,
    pub(super) info: ConnectionInfo,
    pub(super) born: Instant,
    /// Set only for HTTP/2.
    pub(super) http2: OnceLock<Box<http2::State>>,
    /// Guards of requests: until the end of their response, and for HTTP/2 until the end of the task that sends it.
    under_way: AtomicU32,
    /// Requests so far; it may wrap.
    requests: AtomicU32,
    /// Bodies of requests that have not ended and are not dropped.
    uploads: AtomicU32,
    /// Frames of such bodies that were read; it may wrap.
    read: AtomicU32,
    /// HTTP/1: bytes arrived while no request was under way: the beginning of a head.
    head_began: AtomicBool,
    /// HTTP/1: how many bytes hyper got while no request was under way, since the last one.
    head_bytes: AtomicU32,
    /// HTTP/1: hyper wants more of a head than it may have.
    head_too_large: AtomicBool,
    /// HTTP/1: hyper has buffered bytes after the request under way: also the beginning of a head.
    behind: AtomicBool,
    /// HTTP/1: the app reads the body of the request under way.
    reading: AtomicBool,
    /// HTTP/1: a body was dropped before its end, so hyper's buffer may contain some of it.
    abandoned: AtomicBool,
    upgraded: AtomicBool,
    /// The connection ends though the drain has not begun.
    leaving: AtomicBool,
    /// Its limit has asked it to close, and no request has arrived since.
    evicted: AtomicBool,
    /// Since when the activity has not changed, as of the last check.
    since: Moment,
    stalled: Moment,
    /// How much the peer has not acknowledged, for a lifecycle that asks.
    sample: Sample,
}

/// `0`: not requested. `1`: requested. Else a number of bytes, plus two.
#[derive(Debug, Default)]
struct Sample(AtomicU64);

/// A request under way, until its response's end or drop.
pub(super) struct RequestGuard {
    pub(super) conn: Arc<ConnShared>,
    pub(super) slot: Slot,
}

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
            http2: OnceLock::new(),
            under_way: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            uploads: AtomicU32::new(0),
            read: AtomicU32::new(0),
            head_began: AtomicBool::new(false),
            head_bytes: AtomicU32::new(0),
            head_too_large: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            reading: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            since: Moment::none(),
            stalled: Moment::none(),
            sample: Sample::default(),
        }
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    #[cfg(test)]
    pub(super) fn for_test() -> Arc<Self> {
        use crate::listen::Addr::Other;
        let drain = Drain::new();
        let accepted = Accepted::new(&drain, (), Other, Other);
        Arc::new(Self::new(&drain, Arc::default(), &accepted, Instant::now()))
    }

    pub(super) fn activity(&self) -> Activity {
        if self.under_way.load(Relaxed) > 0 {
            return Activity::Request;
        }
        match self
            .http2
            .get()
            .map_or(Activity::Idle, |http2| http2.activity())
        {
            Activity::Idle if self.uploads.load(Relaxed) > 0 => Activity::Upload,
            Activity::Idle if self.head_began.load(Relaxed) || self.behind.load(Relaxed) => {
                Activity::Head
            }
            activity => activity,
        }
    }

    /// Changes whenever the activity makes progress.
    pub(super) fn progress(&self, activity: Activity) -> u32 {
        let http2 = self.http2.get();
        match activity {
            Activity::Held => http2.map_or(0, |http2| http2.sent()),
            Activity::Upload => {
                let received = http2.map_or(0, |http2| http2.received());
                self.read.load(Relaxed).wrapping_add(received)
            }
            _ => 0,
        }
    }

    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// Bytes of HTTP/1 arrived. Empty lines before a head (RFC 9112, 2.2) do not begin one.
    pub(super) fn heard(&self, bytes: &[u8]) {
        if !self.awaits_head() {
            return;
        }
        if bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            self.head_began.store(true, Relaxed);
        }
        self.head_bytes.fetch_add(bytes.len() as u32, Relaxed);
    }

    fn awaits_head(&self) -> bool {
        self.under_way.load(Relaxed) == 0 && self.uploads.load(Relaxed) == 0
    }

    /// HTTP/1: how many bytes hyper may get now. Without a request it gets at most the length of a head, since hyper itself
    /// bounds only its buffers.
    pub(super) fn head_budget(&self) -> usize {
        let unbounded = !self.awaits_head()
            || self.http2.get().is_some()
            || self.is_upgraded()
            || self.abandoned.load(Relaxed);
        if unbounded {
            return usize::MAX;
        }
        let given = self.head_bytes.load(Relaxed);
        self.settings.max_header_bytes.saturating_sub(given) as usize
    }

    /// HTTP/1: hyper has got all that a head may have, and wants more.
    pub(super) fn reject_head(&self) {
        self.head_too_large.store(true, Relaxed);
    }

    /// Not while a response before it is held: this one would be written into its middle.
    pub(super) fn is_head_too_large(&self) -> bool {
        self.head_too_large.load(Relaxed) && !self.stalled.is_set()
    }

    /// A request's body begins.
    pub(super) fn begin_upload(&self) {
        self.uploads.fetch_add(1, AcqRel);
    }

    pub(super) fn end_upload(&self, whole: bool) {
        if !whole {
            self.abandoned.store(true, Relaxed);
        }
        self.uploads.fetch_sub(1, AcqRel);
    }

    /// The app polls a request's body.
    pub(super) fn note_reading(&self) {
        self.reading.store(true, Relaxed);
    }

    /// HTTP/1: whether to watch the peer while hyper reads nothing. An app that reads a body sees its end by itself.
    pub(super) fn must_watch(&self) -> bool {
        let has_body = self.uploads.load(Relaxed) > 0;
        self.under_way.load(Relaxed) > 0
            && !self.is_upgraded()
            && !(has_body && self.reading.load(Relaxed))
    }

    /// HTTP/1: hyper has not read again since it got bytes that do not end with a line, so it has buffered some of them.
    pub(super) fn note_behind(&self) {
        let body = self.uploads.load(Relaxed) > 0 || self.abandoned.load(Relaxed);
        if !body && !self.settings.half_close {
            self.behind.store(true, Relaxed);
        }
    }

    /// Some of a request's body was read.
    pub(super) fn note_read(&self) {
        self.read.fetch_add(1, Relaxed);
    }

    /// Responses end the connection from now on.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    pub(super) fn note_since(&self, since: Instant) {
        self.since.set(self.born, since);
    }

    /// Whether its limit has asked it to close. A connection with a request under way declines.
    pub(super) fn heed_eviction(&self, activity: Activity) -> bool {
        if !self.evicted.load(Relaxed) {
            return false;
        }
        let idle = matches!(activity, Activity::Silent | Activity::Idle);
        if !idle {
            self.evicted.store(false, Relaxed);
        }
        idle
    }

    /// How long the connection is read from once it is closed.
    pub(super) fn linger(&self) -> Duration {
        let linger = self.settings.linger;
        if self.evicted.load(Relaxed) {
            linger.min(eviction::LINGER)
        } else {
            linger
        }
    }

    /// How long the peer may take to acknowledge the first GOAWAY.
    pub(super) fn goaway_timeout(&self) -> Duration {
        let goaway = self.settings.life.goaway;
        if self.evicted.load(Relaxed) {
            goaway.min(eviction::GOAWAY)
        } else {
            goaway
        }
    }

    /// Bytes are blocked from being written, or no longer.
    pub(super) fn set_stalled(&self, stalled: bool) {
        match (self.stalled.is_set(), stalled) {
            (false, true) => self.stalled.set(self.born, Instant::now()),
            (true, false) => {
                self.stalled.clear();
                if let Some(http2) = self.http2.get() {
                    http2.note_congested(self.born, Instant::now());
                }
            }
            _ => {}
        }
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled.get(self.born)
    }

    /// Requests the unacknowledged bytes, which the stream determines at its next write.
    pub(super) fn ask_unacknowledged(&self) {
        self.sample.0.store(1, Relaxed);
    }

    pub(super) fn is_asked(&self) -> bool {
        self.sample.0.load(Relaxed) == 1
    }

    pub(super) fn set_unacknowledged(&self, bytes: Option<u32>) {
        let sample = bytes.map_or(0, |bytes| u64::from(bytes) + 2);
        self.sample.0.store(sample, Relaxed);
    }

    /// The stream's last value, once.
    pub(super) fn take_unacknowledged(&self) -> Option<u32> {
        let bytes = self.sample.0.swap(0, Relaxed).checked_sub(2)?;
        u32::try_from(bytes).ok()
    }

    /// For HTTP/1 as if there were none.
    pub(super) fn ping(&self) -> Ping {
        self.http2
            .get()
            .map_or(Ping::Answered, |http2| http2.ping())
    }

    pub(super) fn set_ping(&self, ping: Ping) {
        if let Some(http2) = self.http2.get() {
            http2.set_ping(ping);
        }
    }

    /// The stream was dropped.
    pub(super) fn ended(&self) {
        if self.is_upgraded() {
            self.shared.count.upgraded.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn take_request(self: &Arc<Self>) -> RequestGuard {
        let nth = self.requests.fetch_add(1, Relaxed);
        for flag in [
            &self.head_began,
            &self.behind,
            &self.reading,
            &self.abandoned,
            &self.evicted,
        ] {
            flag.store(false, Relaxed);
        }
        self.head_bytes.store(0, Relaxed);
        self.guard_of(Slot::of(nth))
    }

    pub(super) fn guard_of(self: &Arc<Self>, slot: Slot) -> RequestGuard {
        self.under_way.fetch_add(1, AcqRel);
        RequestGuard {
            conn: self.clone(),
            slot,
        }
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

impl Evictable for ConnShared {
    fn idle(&self) -> Option<Idle> {
        let idle = self.activity() == Activity::Idle
            && !self.stalled.is_set()
            && !self.is_upgraded()
            && !self.leaving.load(Relaxed)
            && !self.evicted.load(Relaxed);
        idle.then(|| Idle {
            used: self.requests() > 0,
            since: self.since.get(self.born).unwrap_or(self.born),
        })
    }

    fn evict(&self) {
        self.evicted.store(true, Relaxed);
    }
}

// === impl RequestGuard ===

impl RequestGuard {
    pub(super) fn conn(&self) -> &ConnShared {
        &self.conn
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.conn.under_way.fetch_sub(1, AcqRel);
    }
}

impl fmt::Debug for RequestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestGuard")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
