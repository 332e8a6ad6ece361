//! An HTTP/2 connection.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_outcome::BoxError;
use tower_service::Service;

use super::{
    super::{
        Settings, app::HyperAdapter, body::RequestBody, late::Late, shared::ConnShared,
        stream::Stream,
    },
    app::Http2,
    frames::Reason,
    lent::{Lent, Owner, lend},
    streams::Streams,
    wire::Wire,
};

/// hyper's connection, boxed: it is twice as large as one of HTTP/1, and ten thousand idle HTTP/1 connections should not
/// take that memory.
pub(in crate::http) struct Session<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    connection: Pin<Box<Hyper<App, Io>>>,
    owner: Owner<Io>,
}

type Hyper<App, Io> = http2::Connection<TokioIo<Lent<Io>>, HyperAdapter<App, Http2>, Streams>;

// === impl Session ===

impl<App, Io, B> Session<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    /// Passes the stream to hyper, or returns it if HTTP/2 is not enabled.
    pub(in crate::http) fn begin(
        mut stream: Stream<Io>,
        app: App,
        conn: &Arc<ConnShared>,
    ) -> Result<Self, Stream<Io>> {
        if !conn.settings.protocols.includes_http2() {
            return Err(stream);
        }
        expect_frames(&mut stream, conn);
        let (lent, owner) = lend(stream);
        let connection = builder(&conn.settings, conn.clone())
            .serve_connection(TokioIo::new(lent), HyperAdapter::new(app, conn.clone()));
        Ok(Self {
            connection: Box::pin(connection),
            owner,
        })
    }

    pub(in crate::http) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.connection.as_mut().poll(cx)
    }

    pub(in crate::http) fn graceful_shutdown(&mut self) {
        self.connection.as_mut().graceful_shutdown();
    }
}

impl<App, Io, B> Session<App, Io, B>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Error: Into<BoxError>> + 'static,
{
    /// Sends the last GOAWAY once hyper has ended the connection because of a flood.
    pub(in crate::http) fn after_flood(self) -> Option<Late<Io>> {
        let stream = self.reclaim()?;
        let wire = stream.wire.as_ref()?;
        let flood = wire.flood()?.as_str();
        tracing::debug!(flood, "connection cut");
        let goaway = wire.goaway(Reason::EnhanceYourCalm, flood)?;
        Some(Late::new(stream, goaway.into()))
    }

    /// Ends a connection that hyper would keep open.
    pub(in crate::http) fn end(self) -> Option<Late<Io>> {
        let stream = self.reclaim()?;
        let goaway = stream.wire.as_ref()?.goaway(Reason::NoError, "")?;
        Some(Late::new(stream, goaway.into()))
    }

    /// Takes the stream from hyper.
    fn reclaim(self) -> Option<Stream<Io>> {
        drop(self.connection);
        self.owner.take()
    }
}

/// From now on the bytes that arrive are frames.
pub(super) fn expect_frames<Io>(stream: &mut Stream<Io>, conn: &ConnShared) {
    conn.speak_http2();
    stream.wire = Some(Box::new(Wire::new()));
}

/// One per connection: hyper ties a builder to its executor. It is boxed with the connection.
fn builder(settings: &Settings, conn: Arc<ConnShared>) -> http2::Builder<Streams> {
    let mut http2 = http2::Builder::new(Streams { conn });
    http2
        .timer(TokioTimer::new())
        .max_header_list_size(settings.max_header_bytes)
        .max_concurrent_streams(settings.http2.max_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(settings.max_buffer_bytes as usize)
        .keep_alive_interval(settings.http2.ping_every)
        .keep_alive_timeout(settings.http2.ping_within);
    http2
}

const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
