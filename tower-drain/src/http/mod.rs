//! The HTTP runner: one connection, HTTP/1 or HTTP/2, from the first byte to the last.

mod app;
mod connection;
mod serve;
mod stream;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_outcome::BoxError;
use tower_service::Service;

pub use self::connection::Connection;
use self::{app::Conversation, stream::Stream};
use crate::{accepted::Accepted, drain::Drain};

/// Serves `App` on a connection: HTTP/1.1, or HTTP/2 with prior knowledge, told apart by their first bytes.
///
/// `App` is any `Service<Request<Incoming>>`: an axum `Router`, tonic `Routes`, a stack of layers. The peer's address is
/// in the request's extensions as [`PeerAddr`](tower_outcome::PeerAddr).
///
/// | limit | default | why |
/// |---|---|---|
/// | first byte | 10 s | hyper-util waits for ever while it sniffs |
/// | head, from the first byte or from the last answer | 10 s | counted by hyper, which does so only with a timer |
/// | head | 32 KiB, 100 fields | a quarter of what peers take, and more than browsers send |
/// | HTTP/2 streams | 100 | what RFC 9113 recommends at least |
/// | HTTP/2 ping | every 20 s, answered within 10 s | finds peers that are gone |
/// | last chance | 1 s | see below |
///
/// # How a connection leaves
///
/// ```text
///   HTTP/1   in a request ─────────────────────────────► answer with Connection: close, end
///            idle, or silent so far ── last chance ────► end            (a request in time is answered as above)
///            half a head ── until it is whole, or its time is over ──► as above
///   HTTP/2   GOAWAY at once; streams under way complete ─► end
///   upgraded lives on until its own end, or until the drain is done
/// ```
///
/// The last chance is for requests that are on their way when closing begins. hyper by itself closes idle connections at
/// once, and such a request then gets a reset for an answer.
///
/// A connection whose request is still under way when the drain is done is cut: its future, and with it the handler's,
/// is dropped at its next `await`.
pub struct Http<App> {
    app: App,
    drain: Drain,
    settings: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    first_byte: Duration,
    last_chance: Duration,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

// === impl Http ===

impl<App> Http<App> {
    /// Serves `app` with the default limits, for as long as `drain` lets it.
    pub fn new(drain: &Drain, app: App) -> Self {
        Self { app, drain: drain.clone(), settings: Arc::default() }
    }

    /// How long a connection may be silent before its first byte. Default: 10 s.
    #[must_use]
    pub fn first_byte_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.first_byte = timeout)
    }

    /// How long the head of an HTTP/1 request may take. Default: 10 s.
    ///
    /// hyper counts from the moment it waits for a head, so this is also how long a kept-alive connection may be idle.
    #[must_use]
    pub fn header_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| {
            settings.http1.header_read_timeout(timeout);
        })
    }

    /// How long the head of a request may be, in bytes. Default: 32 KiB. More is answered with `431`.
    #[must_use]
    pub fn max_header_bytes(self, max: u32) -> Self {
        self.set(|settings| {
            settings.http1.max_header_size(max as usize);
            settings.http2.max_header_list_size(max);
        })
    }

    /// How many HTTP/2 streams a connection may have open. Default: 100.
    #[must_use]
    pub fn max_streams(self, max: u32) -> Self {
        self.set(|settings| {
            settings.http2.max_concurrent_streams(max);
        })
    }

    /// How often an HTTP/2 peer is pinged, and how long it may take to answer. Default: 20 s and 10 s.
    #[must_use]
    pub fn ping(self, every: Duration, within: Duration) -> Self {
        self.set(|settings| {
            settings.http2.keep_alive_interval(every).keep_alive_timeout(within);
        })
    }

    /// How long an idle HTTP/1 connection is kept once closing begins. Default: 1 s, and never longer than what is
    /// left of the phase.
    #[must_use]
    pub fn last_chance(self, grace: Duration) -> Self {
        self.set(|settings| settings.last_chance = grace)
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}

impl<App, Io, B> Service<Accepted<Io>> for Http<App>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = ();
    type Error = BoxError;
    type Future = Connection<App, Io, B>;

    /// Always ready: each request asks the app for its readiness, on a clone of its own.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, accepted: Accepted<Io>) -> Self::Future {
        let conversation = Arc::new(Conversation::new(&self.drain, &accepted));
        let stream = Stream::new(accepted, conversation.clone());
        Connection::new(stream, self.app.clone(), conversation, self.settings.clone())
    }
}

impl<App: Clone> Clone for Http<App> {
    fn clone(&self) -> Self {
        Self { app: self.app.clone(), drain: self.drain.clone(), settings: self.settings.clone() }
    }
}

impl<App> fmt::Debug for Http<App> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { first_byte, last_chance, .. } = &*self.settings;
        f.debug_struct("Http")
            .field("first_byte_timeout", first_byte)
            .field("last_chance", last_chance)
            .finish_non_exhaustive()
    }
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        let mut http1 = http1::Builder::new();
        // The 100 fields are hyper's own default, and setting them would cost an allocation per request.
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER).max_header_size(HEADER_BYTES as usize);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(HEADER_BYTES)
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN);
        Self { first_byte: FIRST_BYTE, last_chance: LAST_CHANCE, http1, http2 }
    }
}

const FIRST_BYTE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(10);
const HEADER_BYTES: u32 = 32 * 1024;
const STREAMS: u32 = 100;
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);
const LAST_CHANCE: Duration = Duration::from_secs(1);
