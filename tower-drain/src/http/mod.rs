//! The HTTP runner: serves one connection from its first byte to its last.

mod ahead;
mod app;
mod body;
mod connection;
mod exchange;
#[cfg(feature = "http2")]
mod http2;
mod info;
mod kernel;
mod late;
mod lifecycle;
mod moment;
mod pace;
mod response;
mod serve;
mod shared;
mod stream;
mod streaming;
#[cfg(not(feature = "http2"))]
mod without_http2;

use std::{
    fmt,
    num::NonZeroU32,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tower_outcome::BoxError;
use tower_service::Service;

pub(crate) use self::exchange::Exchange;
#[cfg(not(feature = "http2"))]
use self::without_http2 as http2;
pub use self::{
    body::{RequestBody, TooSlow},
    connection::Connection,
    streaming::{StreamingLayer, StreamingService},
};
use self::{shared::ConnShared, stream::Stream};
use crate::{
    accepted::Accepted,
    drain::{Drain, bounded},
};

/// Serves `App` on a connection: HTTP/1.1, and with the feature `http2` also HTTP/2 with prior knowledge. The first bytes
/// decide which.
///
/// The feature is off by default: it turns on HTTP/2 of hyper, and Cargo adds up the features of a build, so a server of
/// `axum::serve` in the same application would speak HTTP/2 too. Without it a connection that begins HTTP/2 is closed,
/// [`Tls::from_pem`](crate::Tls::from_pem) offers only `http/1.1`, and the settings that concern HTTP/2 do not exist.
///
/// `App` is any `Service<Request<RequestBody>>`: an axum `Router`, tonic `Routes`, a stack of layers. In a request's
/// extensions are
///
/// - the peer's address, as [`PeerAddr`](crate::PeerAddr); with the feature `axum` also as axum's
///   `ConnectInfo<SocketAddr>`, and with the feature `tonic` as tonic's `TcpConnectInfo`, which
///   `tonic::Request::remote_addr()` reads;
/// - a [`Cancellation`](crate::Cancellation);
/// - clones of the connection's [extensions](Accepted::extensions_mut), to which a layer around this service may add
///   values for handlers: the certificates of the peer, its SNI name, the local address.
///
/// ```no_run
/// # #[cfg(feature = "tls")]
/// # async fn run(drain: tower_drain::Drain, tls: tower_drain::Tls, app: axum::Router) -> std::io::Result<()> {
/// use tokio::net::{TcpListener, TcpStream};
/// use tokio_rustls::server::TlsStream;
/// use tower::ServiceBuilder;
/// use tower_drain::{Accepted, Http, Overloaded, Server, TlsLayer};
///
/// /// The certificate of the client. A handler takes `Extension<ClientCertificate>`.
/// #[derive(Clone)]
/// struct ClientCertificate(rustls::pki_types::CertificateDer<'static>);
///
/// let connections = ServiceBuilder::new()
///     .layer(TlsLayer::new(&drain, &tls))
///     .map_request(|mut accepted: Accepted<TlsStream<TcpStream>>| {
///         let (_, tls) = accepted.io().get_ref();
///         if let Some([leaf, ..]) = tls.peer_certificates() {
///             let leaf = ClientCertificate(leaf.clone().into_owned());
///             accepted.extensions_mut().insert(leaf);
///         }
///         accepted
///     })
///     .service(Http::new(&drain, app));
/// let listener = TcpListener::bind("0.0.0.0:8443").await?;
/// Server::new(&drain, listener).refuse_overloaded(Overloaded::silent()).run(connections).await?;
/// # Ok(()) }
/// ```
///
/// All limits are on by default. A duration of [`Duration::MAX`] turns its limit off.
///
/// | limit | default | why |
/// |---|---|---|
/// | first byte | 10 s | hyper-util detects the protocol without a timeout |
/// | head, from its first byte | 10 s in all, then `408` | counting each read would let a byte a minute hold a slot |
/// | head | 32 KiB, 100 fields, else `431` | a quarter of what other servers take, and more than browsers send |
/// | buffers | 64 KiB for a connection's response, and for its request | a client that reads nothing holds that much |
/// | idle between requests | 75 s; advertised as `Keep-Alive: timeout=70` | a client that closes first never loses a request |
/// | request body | 30 s without a byte; 240 B/s after 5 s | see [`RequestBody`] |
/// | request that goes on after its response | 5 s without progress | what is left of it holds the connection |
/// | response that is not taken | 30 s without progress | only while unsent bytes are held: idle SSE and gRPC streams are not cut |
/// | HTTP/2 streams | 100 | what RFC 9113 recommends at least |
/// | HTTP/2 windows | 256 KiB a stream, 1 MiB a connection | bounds the memory that a peer can use |
/// | HTTP/2 resets | 250 early ones in 10 s, less those with a response | rapid reset |
/// | HTTP/2 pings, settings, priorities, empty data | 1 000 together without a stream's frame between them | floods that cost their sender nothing |
/// | HTTP/2 keep-alive ping | every 20 s, answered within 10 s | detects peers that are gone |
/// | age | 1 h, ± 10 % | lets load move to new machines; what is under way is not cut, unless there is a `max_age_grace` |
/// | last chance | 1 s, up to a quarter more | see below |
/// | lingering | 1 s | a response is not lost because the client is still sending |
///
/// # How a connection ends
///
/// ```text
///   HTTP/1   in a request ─────────────────────────────► response with Connection: close, linger, end
///            idle, or silent so far ── last chance ────► end            (a request in time gets a response as above)
///            half a head ── until it is whole, or its time is over ──► as above, or 408
///   HTTP/2   GOAWAY at once; streams under way complete ─► end          (a peer that does not acknowledge it: after 1 s,
///            as if it had; a peer in the middle of a frame gets the last GOAWAY, and the end)
///   upgraded stays open until it ends by itself, or until the drain is done
/// ```
///
/// The last chance is for requests that are in transit when closing begins. hyper alone closes idle connections at once,
/// and such a request then gets a reset instead of a response.
///
/// A connection whose request is still under way when the drain is done is cut: its future, and with it the handler's,
/// is dropped at its next `await`.
pub struct Http<App> {
    app: App,
    drain: Drain,
    settings: Arc<Settings>,
}

#[derive(Clone, Debug)]
struct Settings {
    protocols: http2::Protocols,
    life: lifecycle::Limits,
    last_chance: Duration,
    linger: Duration,
    pace: pace::Limits,
    /// The value advertised in HTTP/1.1 responses.
    keep_alive: Option<HeaderValue>,
    http1: http1::Builder,
    max_header_bytes: u32,
    max_buffer_bytes: u32,
    half_close: bool,
    http2: http2::Settings,
}

// === impl Http ===

impl<App> Http<App> {
    /// Serves `app` with the default limits, until `drain` is over.
    pub fn new(drain: &Drain, app: App) -> Self {
        Self {
            app,
            drain: drain.clone(),
            settings: Arc::default(),
        }
    }

    /// Serves only HTTP/1: a connection that begins HTTP/2 is closed. Default: both, with the feature `http2`.
    ///
    /// It exists without that feature too, for a server that must not speak HTTP/2 when another crate of the build turns
    /// the feature on.
    #[must_use]
    pub fn http1_only(self) -> Self {
        self.set(|settings| settings.protocols = http2::Protocols::http1_only())
    }

    /// How long a connection may be silent before its first byte. Default: 10 s.
    #[must_use]
    pub fn first_byte_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.life.first_byte = bounded(timeout))
    }

    /// How long the head of an HTTP/1 request may take, from its first byte. Default: 10 s.
    #[must_use]
    pub fn header_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.life.head = bounded(timeout))
    }

    /// How long a connection may be idle between two requests. Default: 75 s.
    ///
    /// HTTP/1.1 responses advertise 5 s less, so that a client that respects it never sends into a closing connection. Below
    /// 10 s nothing is advertised.
    #[must_use]
    pub fn keep_alive(self, idle: Duration) -> Self {
        self.set(|settings| {
            settings.life.idle = bounded(idle);
            settings.keep_alive = advertised(bounded(idle));
        })
    }

    /// The maximum length of a request's head, in bytes. Default: 32 KiB. The response to a longer one is `431`.
    ///
    /// Over HTTP/1 a head that was sent before the response to the request in front of it may be longer by what was read
    /// with that request, up to [`max_buffer_bytes`](Self::max_buffer_bytes) in all.
    #[must_use]
    pub fn max_header_bytes(self, max: u32) -> Self {
        self.set(|settings| {
            settings.max_header_bytes = max;
            settings.bound_buffers();
        })
    }

    /// How much hyper may keep of a response that its peer does not take yet, and of a request that the app does not
    /// read yet: for each HTTP/1 connection, and for each response of HTTP/2, in bytes. Default: 64 KiB. At least 8 KiB,
    /// and for HTTP/1 as much as [`max_header_bytes`](Self::max_header_bytes).
    ///
    /// A body waits when the buffer is full, but a piece that was begun is buffered whole. hyper's default is 408 KiB, with
    /// which the 10 000 connections of a default [`ConnectionLimit`](crate::ConnectionLimit) could hold 4 GB for clients
    /// that read nothing; with 64 KiB the throughput is the same.
    #[must_use]
    pub fn max_buffer_bytes(self, max: u32) -> Self {
        self.set(|settings| {
            settings.max_buffer_bytes = max.max(LEAST_BUFFER);
            settings.bound_buffers();
        })
    }

    /// How long an app may wait for the next piece of a request's body. Default: 30 s.
    #[must_use]
    pub fn body_timeout(self, idle: Duration) -> Self {
        self.set(|settings| settings.pace.idle = bounded(idle))
    }

    /// The minimum rate of a request's body while it is read, in bytes per second. Default: 240, after 5 s. `None`: no
    /// minimum.
    #[must_use]
    pub fn body_rate(self, rate: Option<NonZeroU32>) -> Self {
        self.set(|settings| settings.pace.rate = rate.map_or(0, NonZeroU32::get))
    }

    /// How long a request whose response has ended may make no progress, because its client sends no more of the body or
    /// the app reads no more. Default: 5 s.
    ///
    /// An app may respond early and still read the upload, as long as it makes progress. An upload without progress keeps
    /// the connection from its next request and from its end, so the connection is closed; over HTTP/2 the stream is reset
    /// if the app waits for the body, else the connection ends once no other stream is open.
    #[must_use]
    pub fn upload_linger(self, linger: Duration) -> Self {
        self.set(|settings| settings.life.upload = bounded(linger))
    }

    /// How long a peer may take none of the bytes that are held for it. Default: 30 s.
    ///
    /// On Linux, for a TCP or Unix socket, with [`TlsLayer`](crate::TlsLayer) or without, progress is measured by the bytes
    /// that the peer's kernel acknowledges, so a client that reads slowly gets its whole response. Elsewhere it is measured
    /// by writes, which a kernel with large buffers accepts only now and then.
    ///
    /// An HTTP/1 connection without progress is closed. An HTTP/2 stream without progress is reset, unless it waits for its
    /// turn on a connection that makes progress. Up to 16 KiB at the end of a response cannot be taken back by a
    /// reset; a connection that has only such remainders, and makes no progress, is closed.
    ///
    /// A short duration can cut a client that reads slowly but steadily, because its kernel may acknowledge nothing for
    /// seconds while its receive buffer is nearly full. Measured with a response of 8 MB: clients that read 10 and 20 kB/s
    /// got all of it with the default, and with 5 s one that reads 20 kB/s was cut.
    #[must_use]
    pub fn write_stall(self, stall: Duration) -> Self {
        self.set(|settings| settings.life.write_stall = bounded(stall))
    }

    /// The age at which a connection is closed gracefully, as at a drain, a tenth more or less. Default: 1 h.
    #[must_use]
    pub fn max_age(self, age: Duration) -> Self {
        self.set(|settings| settings.life.age = bounded(age))
    }

    /// How long after its maximum age a connection with a request under way is cut. Default: [`Duration::MAX`], never: a
    /// long stream is usually intended.
    #[must_use]
    pub fn max_age_grace(self, grace: Duration) -> Self {
        self.set(|settings| settings.life.age_grace = bounded(grace))
    }

    /// How long an idle HTTP/1 connection is kept once closing begins, and up to a quarter longer. Default: 1 s, and
    /// never longer than what is left of the phase.
    #[must_use]
    pub fn last_chance(self, grace: Duration) -> Self {
        self.set(|settings| settings.last_chance = bounded(grace))
    }

    /// How long a connection is still read from after the server has closed its half, until the peer closes too.
    /// Default: 1 s.
    ///
    /// The drain waits for it: closing with unread bytes resets the connection, and the last response may be lost.
    #[must_use]
    pub fn linger(self, linger: Duration) -> Self {
        self.set(|settings| settings.linger = bounded(linger))
    }

    /// Whether a client that has closed its half of an HTTP/1 connection still gets its response. Default: `false`.
    ///
    /// RFC 9112 requires the response, and `printf .. | nc -N` needs it. But a client that disconnects looks the same
    /// until something is written to it, so with `true` its handler runs to the end for no reader.
    ///
    /// With `false` a client that closes, and with either one that resets, is detected at once and its handler dropped, even
    /// if it has sent the next request, or a body that is not read, up to 16 KiB of it.
    #[must_use]
    pub fn half_close(self, allowed: bool) -> Self {
        self.set(|settings| {
            settings.http1.half_close(allowed);
            settings.half_close = allowed;
        })
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}

impl<App, Io, B> Service<Accepted<Io>> for Http<App>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = ();
    type Error = BoxError;
    type Future = Connection<App, Io, B>;

    /// Always ready: the app's readiness is polled for each request, on a clone.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, accepted: Accepted<Io>) -> Self::Future {
        let born = Instant::now();
        let conn = Arc::new(ConnShared::new(
            &self.drain,
            self.settings.clone(),
            &accepted,
            born,
        ));
        let stream = Stream::new(accepted, conn.clone());
        Connection::new(stream, self.app.clone(), conn, born)
    }
}

impl<App: Clone> Clone for Http<App> {
    fn clone(&self) -> Self {
        Self {
            app: self.app.clone(),
            drain: self.drain.clone(),
            settings: self.settings.clone(),
        }
    }
}

impl<App> fmt::Debug for Http<App> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings {
            life,
            last_chance,
            linger,
            http2,
            ..
        } = &*self.settings;
        f.debug_struct("Http")
            .field("limits", life)
            .field("last_chance", last_chance)
            .field("linger", linger)
            .field("http2", http2)
            .finish_non_exhaustive()
    }
}

// === impl Settings ===

impl Settings {
    /// hyper searches for the end of a head in its buffer only.
    fn bound_buffers(&mut self) {
        let bytes = self.max_buffer_bytes.max(self.max_header_bytes);
        self.http1.max_buf_size(bytes as usize);
    }
}

impl Default for Settings {
    fn default() -> Self {
        let mut http1 = http1::Builder::new();
        // The timeout of heads is enforced here. hyper's default is the 100 fields wanted, and setting it would cost an
        // allocation per request.
        http1.timer(TokioTimer::new()).header_read_timeout(None);
        let life = lifecycle::Limits {
            first_byte: FIRST_BYTE,
            head: HEADER,
            idle: IDLE,
            write_stall: WRITE_STALL,
            upload: UPLOAD,
            age: AGE,
            age_grace: bounded(Duration::MAX),
            goaway: GOAWAY,
        };
        let mut settings = Self {
            protocols: http2::Protocols::default(),
            life,
            last_chance: LAST_CHANCE,
            linger: LINGER,
            pace: pace::Limits {
                idle: BODY_IDLE,
                grace: BODY_GRACE,
                rate: BODY_RATE,
            },
            keep_alive: advertised(IDLE),
            http1,
            max_header_bytes: HEADER_BYTES,
            max_buffer_bytes: BUFFER_BYTES,
            half_close: false,
            http2: http2::Settings::default(),
        };
        settings.bound_buffers();
        settings
    }
}

fn advertised(idle: Duration) -> Option<HeaderValue> {
    let limited = idle < bounded(Duration::MAX);
    let seconds = idle
        .as_secs()
        .checked_sub(5)
        .filter(|seconds| limited && *seconds >= 5)?;
    HeaderValue::try_from(format!("timeout={seconds}")).ok()
}

const FIRST_BYTE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(10);
const HEADER_BYTES: u32 = 32 * 1024;
const BUFFER_BYTES: u32 = 64 * 1024;
/// hyper's minimum.
const LEAST_BUFFER: u32 = 8 * 1024;
const IDLE: Duration = Duration::from_secs(75);
const BODY_IDLE: Duration = Duration::from_secs(30);
const BODY_GRACE: Duration = Duration::from_secs(5);
const BODY_RATE: u32 = 240;
const UPLOAD: Duration = Duration::from_secs(5);
const WRITE_STALL: Duration = Duration::from_secs(30);
const AGE: Duration = Duration::from_secs(3600);
const GOAWAY: Duration = Duration::from_secs(1);
const LAST_CHANCE: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_secs(1);
