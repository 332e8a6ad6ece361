use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::ReusableBoxFuture;
use tower_outcome::{BoxError, Class, Refusal};

use super::pool::Capacity;

/// A connection and what is needed to use it. Dropping it closes the connection.
pub(super) struct Connection<B> {
    sender: http1::SendRequest<B>,
    /// The future of the exchange. Its box is reused for the next request.
    exchange: Option<Exchange<B>>,
    is_reused: bool,
}

type Exchange<B> = ReusableBoxFuture<'static, Answer<B>>;
type Answer<B> = Result<Response<Incoming>, TrySendError<Request<B>>>;

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dial {
    pub(super) addr: SocketAddr,
    pub(super) timeout: Duration,
}

// === impl Connection ===

impl<B> Connection<B> {
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether the last exchange has ended on the wire, too.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Waits for that. `false`: the connection closed.
    pub(super) async fn ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Whether it served a request before.
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    pub(super) fn be_reused(&mut self) {
        self.is_reused = true;
    }
}

impl<B: Body + Send + 'static> Connection<B> {
    /// Begins an exchange.
    pub(super) fn send(&mut self, request: Request<B>) {
        let answer = self.sender.try_send_request(request);
        match &mut self.exchange {
            Some(exchange) => exchange.set(answer),
            None => self.exchange = Some(ReusableBoxFuture::new(answer)),
        }
    }

    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer<B>> {
        self.exchange
            .as_mut()
            .expect("an exchange was begun")
            .poll(cx)
    }
}

// === impl Dial ===

impl Dial {
    /// Connects, and spawns the task of the connection.
    pub(super) async fn connect<B>(self, capacity: Arc<Capacity>) -> Result<Connection<B>, BoxError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // A local limit is no failure of the other side, so it is a rejection.
        let taken = Capacity::take(&capacity)
            .ok_or(Refusal::new(Class::Exhausted, "upstream-connections"))?;
        let stream = timeout(self.timeout, TcpStream::connect(self.addr))
            .await
            .map_err(io::Error::from)?;
        let stream = stream.map_err(told)?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await?;
        let addr = self.addr;
        tokio::spawn(async move {
            let _taken = taken;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%addr, error = &error as &dyn std::error::Error, "an upstream connection broke");
            }
        });
        Ok(Connection {
            sender,
            exchange: None,
            is_reused: false,
        })
    }
}

/// The buffer of hyper for each direction of a connection: 32 KiB instead of the default 408. Each slow client of a proxy
/// costs this buffer, one frame in the channel, and what the server holds: its buffer and one frame. It is also the maximum
/// size of a response head.
const MAX_BUFFER: usize = 32 * 1024;

/// Distinguishes failures of the other side from a lack of resources in this process, which is no failure of the other side.
fn told(error: io::Error) -> BoxError {
    use io::ErrorKind::{AddrNotAvailable, OutOfMemory};
    let is_ours = matches!(error.kind(), AddrNotAvailable | OutOfMemory)
        || error
            .raw_os_error()
            .is_some_and(|code| NO_DESCRIPTORS.contains(&code));
    if !is_ours {
        return error.into();
    }
    tracing::warn!(%error, "no socket for an upstream connection");
    Refusal::new(Class::Unavailable, "local-sockets").into()
}

/// `ENFILE` and `EMFILE`, which have no `ErrorKind`, and the same numbers on every Unix.
const NO_DESCRIPTORS: [i32; 2] = [23, 24];
