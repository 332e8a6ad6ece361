use std::{
    collections::VecDeque,
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU32, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use bytes::Bytes;
use http::HeaderValue;
use http_body::Body;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower_outcome::{BoxError, Refusal};

use super::connection::{Connection, Dial};
use crate::backoff::Backoff;

/// State that all clones of an upstream, its requests and its bodies share.
pub(super) struct Pool<B> {
    pub(super) dial: Dial,
    pub(super) host: HeaderValue,
    pub(super) limits: Limits,
    pub(super) capacity: Arc<Capacity>,
    idle: Mutex<Idle<B>>,
    is_down: AtomicBool,
    /// Failed attempts to connect since it went down; those of requests, of which there may be many at once, count as one.
    failures: AtomicU32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) idle_timeout: Duration,
    pub(super) max_idle: usize,
}

/// The limit of open connections. Separate from the pool, so that pooled connections do not have to hold the pool.
#[derive(Debug)]
pub(super) struct Capacity {
    open: AtomicUsize,
    max: usize,
    /// Wakes tasks that wait for a free connection, or for the address to come back.
    changed: Notify,
}

/// The slot of one open connection, freed on drop: held by the task of the connection, so it lasts as long as the socket.
#[derive(Debug)]
pub(super) struct Taken(Arc<Capacity>);

struct Idle<B> {
    /// The most recently used at the back.
    connections: VecDeque<(Instant, Connection<B>)>,
    has_reaper: bool,
}

/// The state of an [`Upstream`](super::Upstream) at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamSnapshot {
    /// Whether the last attempt to connect succeeded, or none was made yet.
    pub up: bool,
    /// Open connections, idle ones included.
    pub open: usize,
    /// Idle connections.
    pub idle: usize,
}

// === impl Pool ===

impl<B> Pool<B> {
    pub(super) fn new(
        dial: Dial,
        host: HeaderValue,
        limits: Limits,
        max_connections: usize,
    ) -> Self {
        Self {
            dial,
            host,
            limits,
            capacity: Arc::new(Capacity {
                open: AtomicUsize::new(0),
                max: max_connections,
                changed: Notify::new(),
            }),
            idle: Mutex::new(Idle {
                connections: VecDeque::new(),
                has_reaper: false,
            }),
            is_down: AtomicBool::new(false),
            failures: AtomicU32::new(0),
        }
    }

    /// Whether a request would find a connection, or could open one.
    pub(super) fn is_ready(&self) -> bool {
        !self.is_down.load(Acquire) && (self.capacity.has_room() || self.has_ready())
    }

    pub(super) fn snapshot(&self) -> UpstreamSnapshot {
        let idle = self.idle().connections.len();
        UpstreamSnapshot {
            up: !self.is_down.load(Acquire),
            open: self.capacity.open.load(Relaxed),
            idle,
        }
    }

    /// An idle connection that is open and ready, the most recently used first.
    pub(super) fn take(&self) -> Option<Connection<B>> {
        // Dropped after the lock is released.
        let mut closed = Vec::new();
        let mut idle = self.idle();
        // Connections near the back are the likeliest to be open. Skipped ones are closed, or have not finished their last
        // exchange; closed ones are removed here.
        let mut index = idle.connections.len();
        while let Some(next) = index.checked_sub(1) {
            index = next;
            let (_, connection) = &idle.connections[index];
            if connection.is_closed() {
                closed.extend(idle.connections.remove(index));
            } else if connection.is_ready() {
                return idle
                    .connections
                    .remove(index)
                    .map(|(_, connection)| connection);
            }
        }
        None
    }

    /// The idle connections whose last exchange has not ended on the wire.
    fn take_unready(&self) -> Vec<Connection<B>> {
        let mut idle = self.idle();
        let all = std::mem::take(&mut idle.connections);
        let (ready, unready): (VecDeque<_>, VecDeque<_>) = all
            .into_iter()
            .partition(|(_, connection)| connection.is_ready());
        idle.connections = ready;
        drop(idle);
        unready
            .into_iter()
            .map(|(_, connection)| connection)
            .collect()
    }

    fn has_ready(&self) -> bool {
        self.idle()
            .connections
            .iter()
            .rev()
            .any(|(_, connection)| connection.is_ready())
    }

    fn idle(&self) -> MutexGuard<'_, Idle<B>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The only transition between up and down.
    fn enter(&self, is_down: bool) {
        let was_down = self.is_down.swap(is_down, AcqRel);
        if was_down != is_down {
            self.failures.store(u32::from(is_down), Relaxed);
            let name = |is_down| if is_down { "down" } else { "up" };
            tracing::info!(addr = %self.dial.addr, from = name(was_down), to = name(is_down), "upstream");
            self.capacity.changed.notify_waiters();
        }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Pool<B>
where
    B::Error: Into<BoxError>,
{
    /// Opens a connection, and records whether that succeeded.
    pub(super) async fn connect(&self) -> Result<Connection<B>, BoxError> {
        let made = self.dial.connect(self.capacity.clone()).await;
        match &made {
            Ok(_) => self.enter(false),
            Err(error) if Refusal::find(&**error).is_some() => {}
            Err(_) => self.enter(true),
        }
        made
    }

    /// Waits until it may be ready. Connects again, if no connection is open.
    pub(super) async fn changed(self: Arc<Self>) {
        let mut changed = pin!(self.capacity.changed.notified());
        // No notification is missed from here on, so the current state is checked after.
        changed.as_mut().enable();
        if self.is_ready() {
            return;
        }
        // A connection that was returned before its exchange ended sends no notification.
        self.take_unready().into_iter().for_each(|connection| {
            tokio::spawn(finish(
                Arc::downgrade(&self),
                connection,
                self.limits.idle_timeout,
            ));
        });
        if !self.is_down.load(Acquire) {
            return changed.await;
        }
        tokio::select! {
            () = changed => {}
            () = self.reconnect() => {}
        }
    }

    async fn reconnect(self: &Arc<Self>) {
        loop {
            sleep(RECONNECT.after(self.failures.load(Relaxed))).await;
            match self.connect().await {
                Ok(connection) => return self.put(connection),
                Err(error) => {
                    self.failures.fetch_add(1, Relaxed);
                    tracing::debug!(addr = %self.dial.addr, error = &*error as &dyn std::error::Error, "still down");
                }
            }
        }
    }
}

impl<B: Send + 'static> Pool<B> {
    /// Returns a connection, at the end of an exchange.
    ///
    /// The exchange may not have ended on the wire: its last byte is read before hyper reports it, and a response may come
    /// before its request has been sent. Usually it is ready for the next request. If no other connection can be opened, a
    /// task may wait for this one, so it is returned when it is ready, and waiting tasks are notified.
    pub(super) fn put(self: &Arc<Self>, connection: Connection<B>) {
        if connection.is_ready() || self.capacity.has_room() {
            self.shelve(connection);
        } else if !connection.is_closed() {
            tokio::spawn(finish(
                Arc::downgrade(self),
                connection,
                self.limits.idle_timeout,
            ));
        }
    }

    fn shelve(self: &Arc<Self>, connection: Connection<B>) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.idle();
        if idle.connections.len() >= self.limits.max_idle {
            drop(idle);
            return;
        }
        idle.connections.push_back((Instant::now(), connection));
        let needs_reaper = !std::mem::replace(&mut idle.has_reaper, true);
        drop(idle);
        if needs_reaper {
            tokio::spawn(reap(Arc::downgrade(self), self.limits.idle_timeout));
        }
        self.capacity.came_free();
    }

    /// Closes connections that were idle for too long. Returns when to call it again; `None` if there are no connections
    /// left.
    fn reap(&self, now: Instant) -> Option<Instant> {
        let mut closed = Vec::new();
        let mut idle = self.idle();
        while let Some((since, _)) = idle.connections.front()
            && *since + self.limits.idle_timeout <= now
        {
            closed.extend(idle.connections.pop_front());
        }
        let next = idle
            .connections
            .front()
            .map(|(since, _)| *since + self.limits.idle_timeout);
        // Connections in use will be returned; only without any there is nothing to wait for.
        let next = next.or_else(|| {
            (self.capacity.open.load(Relaxed) > closed.len())
                .then(|| now + self.limits.idle_timeout)
        });
        idle.has_reaper = next.is_some();
        drop(idle);
        drop(closed);
        next
    }
}

/// Waits for the end of an exchange, for as long as a connection may be idle.
async fn finish<B: Send + 'static>(
    pool: Weak<Pool<B>>,
    mut connection: Connection<B>,
    idle_timeout: Duration,
) {
    if timeout(idle_timeout, connection.ready())
        .await
        .is_ok_and(|is_ready| is_ready)
        && let Some(pool) = pool.upgrade()
    {
        pool.shelve(connection);
    }
}

/// Closes idle connections in time. One task per upstream that has any, which wakes once per idle timeout at most.
async fn reap<B: Send + 'static>(pool: Weak<Pool<B>>, idle_timeout: Duration) {
    let mut next = Instant::now() + idle_timeout;
    loop {
        sleep_until(next).await;
        let Some(pool) = pool.upgrade() else { return };
        match pool.reap(Instant::now()) {
            Some(at) => next = at,
            None => return,
        }
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("addr", &self.dial.addr)
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

// === impl Capacity ===

impl Capacity {
    pub(super) fn take(capacity: &Arc<Self>) -> Option<Taken> {
        // Never above the limit, not even for a moment: the task that falls below it then notifies the waiting ones.
        let more = |open: usize| (open < capacity.max).then(|| open + 1);
        capacity.open.fetch_update(SeqCst, SeqCst, more).ok()?;
        Some(Taken(capacity.clone()))
    }

    fn has_room(&self) -> bool {
        self.open.load(SeqCst) < self.max
    }

    /// A connection has become available that was not before.
    fn came_free(&self) {
        if !self.has_room() {
            self.changed.notify_waiters();
        }
    }
}

// === impl Taken ===

impl Drop for Taken {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, SeqCst) >= self.0.max {
            self.0.changed.notify_waiters();
        }
    }
}

/// The delay between two attempts to connect to an address that refused: 50 ms, doubling to 2 s.
const RECONNECT: Backoff = Backoff {
    first: Duration::from_millis(50),
    cap: Duration::from_secs(2),
};
