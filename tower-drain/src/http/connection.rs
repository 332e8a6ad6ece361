use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use pin_project::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};
use tower_outcome::BoxError;
use tower_service::Service;

use super::{
    app::{self, HyperAdapter},
    body::RequestBody,
    http2::Session,
    late::{self, Late},
    lifecycle::{Activity, ConnLifecycle, Next, Observation, Ping},
    shared::ConnShared,
    stream::{Protocol, Stream},
};
use crate::{bell::Heard, eviction};

/// A future that runs an HTTP connection to its end. Made by [`Http`](crate::Http).
///
/// # Cancel safety
///
/// Dropping it closes the connection, and drops the handlers of its requests.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Connection<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    stage: Stage<App, Io, B>,
    life: ConnLifecycle,
    #[pin]
    closing: Heard,
    /// Set to the next thing that is due, or earlier.
    #[pin]
    alarm: Option<Sleep>,
    conn: Arc<ConnShared>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "the large one is nearly all there are"
)]
enum Stage<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    /// -> `Http1` or `Http2` when the first bytes decide the protocol; `Late` when none arrive.
    Sniffing(Stream<Io>, App),
    /// -> `Late` when a head takes too long.
    Http1(Http1<App, Io>),
    /// -> `Late` when the peer misbehaves.
    Http2(Session<App, Io, B>),
    Late(Late<Io>),
    Over,
}

type Http1<App, Io> =
    http1::UpgradeableConnection<TokioIo<Stream<Io>>, HyperAdapter<App, app::Http1>>;

// === impl Connection ===

impl<App, Io, B> Connection<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    pub(super) fn new(stream: Stream<Io>, app: App, conn: Arc<ConnShared>, born: Instant) -> Self {
        let closing = conn.shared().closing.heard();
        let life = ConnLifecycle::new(born, jittered_age(conn.settings.life.age));
        Self {
            stage: Stage::Sniffing(stream, app),
            life,
            closing,
            alarm: None,
            conn,
        }
    }
}

impl<App, Io, B> Future for Connection<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            let sniffed = match this.stage {
                Stage::Sniffing(stream, _) => stream.poll_sniff(cx)?,
                Stage::Http1(connection) => {
                    if let Poll::Ready(result) = Pin::new(connection).poll(cx) {
                        return Poll::Ready(result.map_err(Into::into));
                    }
                    if this.conn.is_head_too_large() {
                        this.stage.be_late(late::TOO_LARGE);
                        continue;
                    }
                    Poll::Pending
                }
                Stage::Http2(session) => {
                    if let Poll::Ready(result) = session.poll(cx) {
                        let Some(late) = this.stage.after_flood() else {
                            return Poll::Ready(result.map_err(Into::into));
                        };
                        *this.stage = Stage::Late(late);
                        continue;
                    }
                    Poll::Pending
                }
                Stage::Late(late) => return Pin::new(late).poll(cx).map_err(Into::into),
                Stage::Over => return Poll::Ready(Ok(())),
            };
            if let Poll::Ready(protocol) = sniffed {
                self.as_mut().speak(protocol);
                continue;
            }
            let next = ready!(self.as_mut().poll_life(cx));
            self.as_mut().act(next)?;
        }
    }
}

impl<App, Io, B> Connection<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    /// Hands the stream to hyper.
    fn speak(self: Pin<&mut Self>, protocol: Protocol) {
        let this = self.project();
        let Stage::Sniffing(stream, app) = std::mem::replace(this.stage, Stage::Over) else {
            return;
        };
        let protocols = this.conn.settings.protocols;
        *this.stage = match protocol {
            Protocol::Http1 if !protocols.includes_http1() => {
                Stage::Late(Late::new(stream, Bytes::from_static(late::NOT_SPOKEN)))
            }
            Protocol::Http1 => {
                let adapter = HyperAdapter::new(app, this.conn.clone());
                let http1 = &this.conn.settings.http1;
                let connection = http1.serve_connection(TokioIo::new(stream), adapter);
                Stage::Http1(connection.with_upgrades())
            }
            Protocol::Http2 => match Session::begin(stream, app, this.conn) {
                Ok(session) => Stage::Http2(session),
                // A client that speaks only HTTP/2 would not understand a response.
                Err(stream) => {
                    tracing::debug!("connection closed: HTTP/2 is not enabled");
                    Stage::Late(Late::new(stream, Bytes::new()))
                }
            },
            Protocol::Nothing => Stage::Over,
        };
    }

    /// Ready when there is something to do.
    fn poll_life(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        let mut this = self.project();
        let closing = this.life.stays() && this.closing.as_mut().poll(cx).is_ready();
        let (sniffing, http2) = (
            matches!(this.stage, Stage::Sniffing(..)),
            matches!(this.stage, Stage::Http2(..)),
        );
        loop {
            let conn = &**this.conn;
            let activity = if sniffing {
                Activity::Silent
            } else {
                conn.activity()
            };
            let evicted = conn.heed_eviction(activity);
            let seen = Observation {
                activity,
                requests: conn.requests(),
                progress: conn.progress(activity),
                stalled_since: conn.stalled_since(),
                unacknowledged: conn.take_unacknowledged(),
                told: match (closing, evicted) {
                    (false, false) => None,
                    _ if http2 => Some(Duration::ZERO),
                    (true, _) => Some(last_chance(conn)),
                    (false, true) => Some(eviction::GRACE),
                },
                chance: if http2 {
                    Duration::ZERO
                } else {
                    conn.settings.last_chance
                },
                http2,
                ping: conn.ping(),
                goaway: conn.goaway_timeout(),
            };
            let next = this.life.next(&conn.settings.life, &seen, Instant::now());
            conn.note_since(this.life.since());
            if !this.life.stays() {
                conn.leave();
            }
            match next {
                Next::Wait(None) => return Poll::Pending,
                Next::Wait(Some(due)) => {
                    // A timer that fires early costs one poll, which is cheaper than resetting it each time.
                    if this
                        .alarm
                        .as_ref()
                        .as_pin_ref()
                        .is_none_or(|alarm| alarm.deadline() > due)
                    {
                        this.alarm.set(Some(sleep_until(due)));
                    }
                    ready!(
                        this.alarm
                            .as_mut()
                            .as_pin_mut()
                            .expect("set above")
                            .poll(cx)
                    );
                    this.alarm.set(None);
                }
                next => return Poll::Ready(next),
            }
        }
    }

    fn act(self: Pin<&mut Self>, next: Next) -> Result<(), BoxError> {
        let this = self.project();
        match (next, &mut *this.stage) {
            (Next::Wait(_), _) => {}
            (Next::Answer, _) => this.conn.set_ping(Ping::Wanted),
            (Next::Ask, _) => this.conn.ask_unacknowledged(),
            (Next::Cut, _) => return Err("cut: it does not read, or it is too old".into()),
            (Next::Goodbye, Stage::Http1(connection)) => Pin::new(connection).graceful_shutdown(),
            (Next::Goodbye, Stage::Http2(session)) => session.graceful_shutdown(),
            // There is no request to respond to.
            (Next::Goodbye, Stage::Sniffing(..)) => this.stage.be_late(b""),
            (Next::Late, Stage::Http1(_)) => this.stage.be_late(late::TIMEOUT),
            (Next::End, Stage::Http1(_)) => this.stage.be_late(b""),
            (Next::End, Stage::Http2(..)) => this.stage.end_http2(),
            (Next::Goodbye | Next::Late | Next::End, _) => *this.stage = Stage::Over,
        }
        Ok(())
    }
}

impl<App, Io, B> fmt::Debug for Connection<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

// === impl Stage ===

impl<App, Io, B> Stage<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Error: Into<BoxError>> + 'static,
{
    fn be_late(&mut self, answer: &'static [u8]) {
        let stream = match std::mem::replace(self, Self::Over) {
            Self::Sniffing(stream, _) => Some(stream),
            Self::Http1(connection) => connection.into_parts().map(|parts| parts.io.into_inner()),
            _ => None,
        };
        if let Some(stream) = stream {
            *self = Self::Late(Late::new(stream, Bytes::from_static(answer)));
        }
    }

    /// Sends the last GOAWAY once hyper has ended an HTTP/2 connection because of a flood.
    fn after_flood(&mut self) -> Option<Late<Io>> {
        match std::mem::replace(self, Self::Over) {
            Self::Http2(session) => session.after_flood(),
            _ => None,
        }
    }

    /// Ends an HTTP/2 connection that hyper would keep open.
    fn end_http2(&mut self) {
        if let Self::Http2(session) = std::mem::replace(self, Self::Over)
            && let Some(late) = session.end()
        {
            *self = Self::Late(late);
        }
    }
}

/// At most what is left of the phase, and up to a quarter longer than the setting: ten thousand clients should not
/// reconnect at the same moment.
fn last_chance(conn: &ConnShared) -> Duration {
    let (_, deadline) = conn.shared().look();
    let left = deadline.map_or(Duration::ZERO, |deadline| {
        deadline.saturating_duration_since(Instant::now())
    });
    conn.settings
        .last_chance
        .mul_f32(1.0 + fastrand::f32() / 4.0)
        .min(left)
}

/// A tenth more or less, for the same reason.
fn jittered_age(age: Duration) -> Duration {
    age.mul_f32(0.9 + fastrand::f32() / 5.0)
}
