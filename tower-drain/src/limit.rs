use std::{
    fmt,
    future::Future,
    io,
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tower_layer::Layer;
use tower_service::Service;

use crate::accepted::Accepted;

/// How many connections may be open at once: a handle, cheap to clone.
///
/// A connection counts until its stream is gone, so an upgraded one counts for as long as it lives. Who comes beyond
/// the limit is accepted **and refused**, so that clients do not hang in the kernel's queue: at most 64 at once get a
/// short answer, for which they have a second each; beyond those the connection is just closed.
#[derive(Clone)]
pub struct ConnectionLimit {
    open: Slots,
    refusing: Slots,
    refused: Arc<AtomicU64>,
    answer: &'static [u8],
}

/// Holds connections to a [`ConnectionLimit`].
#[derive(Clone, Debug)]
pub struct ConnectionLimitLayer {
    limit: ConnectionLimit,
}

/// A connection service within a limit. Made by [`ConnectionLimitLayer`].
#[derive(Clone, Debug)]
pub struct Limited<S> {
    inner: S,
    limit: ConnectionLimit,
}

/// The life of a connection that was let in, or the refusal of one that was not.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct LimitedFuture<F, Io>(#[pin] Fate<F, Io>);

#[pin_project(project = FateProj)]
#[expect(clippy::large_enum_variant, reason = "a life is larger than a refusal")]
enum Fate<F, Io> {
    Admitted(#[pin] F),
    Refused(#[pin] Refusing<Io>),
    Closed,
}

#[pin_project]
struct Refusing<Io> {
    io: Io,
    unwritten: &'static [u8],
    told: bool,
    #[pin]
    alarm: Sleep,
    // The drain waits for the answer to be told.
    _rest: Accepted<()>,
    _permit: Permit,
}

/// A number of places.
#[derive(Clone)]
struct Slots {
    max: usize,
    taken: Arc<AtomicUsize>,
}

/// A place, given back on drop.
pub(crate) struct Permit(Arc<AtomicUsize>);

// === impl ConnectionLimit ===

impl ConnectionLimit {
    /// At most `max` connections, and an HTTP/1 answer for who is refused: `503` with `Retry-After: 1`.
    #[must_use]
    pub fn new(max: NonZeroUsize) -> Self {
        Self {
            open: Slots::new(max.get()),
            refusing: Slots::new(REFUSING),
            refused: Arc::default(),
            answer: OVERLOADED.as_bytes(),
        }
    }

    /// What is written to a connection that is refused. Default: an HTTP/1 `503`. Empty: it is closed without a word.
    #[must_use]
    pub fn answer(self, answer: &'static [u8]) -> Self {
        Self { answer, ..self }
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.taken.load(Relaxed)
    }

    /// How many were refused so far, told so or not.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn refuse<Io>(&self, accepted: Accepted<Io>) -> Option<Refusing<Io>> {
        self.refused.fetch_add(1, Relaxed);
        tracing::trace!(peer = %accepted.peer(), open = self.open(), "connection refused: limit reached");
        let permit = self.refusing.take()?;
        let (io, rest) = accepted.split();
        Some(Refusing { io, unwritten: self.answer, told: false, alarm: sleep(PATIENCE), _rest: rest, _permit: permit })
    }
}

impl Default for ConnectionLimit {
    /// 10 000: at 33 kB each, what a proxy like HAProxy takes, that is 330 MB.
    fn default() -> Self {
        Self::new(const { NonZeroUsize::new(10_000).unwrap() })
    }
}

impl fmt::Debug for ConnectionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionLimit")
            .field("max", &self.open.max)
            .field("open", &self.open())
            .field("refused", &self.refused())
            .finish()
    }
}

// === impl ConnectionLimitLayer ===

impl ConnectionLimitLayer {
    /// Refers to `limit`.
    #[must_use]
    pub fn new(limit: &ConnectionLimit) -> Self {
        Self { limit: limit.clone() }
    }
}

impl<S> Layer<S> for ConnectionLimitLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limit: self.limit.clone() }
    }
}

// === impl Limited ===

impl<S, Io> Service<Accepted<Io>> for Limited<S>
where
    S: Service<Accepted<Io>, Response = ()>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    type Response = ();
    type Error = S::Error;
    type Future = LimitedFuture<S::Future, Io>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut accepted: Accepted<Io>) -> Self::Future {
        LimitedFuture(match self.limit.open.take() {
            Some(permit) => {
                accepted.hold(permit);
                Fate::Admitted(self.inner.call(accepted))
            }
            None => self.limit.refuse(accepted).map_or(Fate::Closed, Fate::Refused),
        })
    }
}

// === impl LimitedFuture ===

impl<F, Io, E> Future for LimitedFuture<F, Io>
where
    F: Future<Output = Result<(), E>>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(), E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            FateProj::Admitted(life) => life.poll(cx),
            FateProj::Refused(refusing) => refusing.poll(cx).map(Ok),
            FateProj::Closed => Poll::Ready(Ok(())),
        }
    }
}

impl<F, Io> fmt::Debug for LimitedFuture<F, Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedFuture").field("refused", &!matches!(self.0, Fate::Admitted(_))).finish()
    }
}

// === impl Refusing ===

impl<Io: AsyncRead + AsyncWrite + Unpin> Future for Refusing<Io> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.as_mut().project().alarm.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // A client that is gone needs no answer.
        self.poll_answer(cx).map(|_| ())
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Refusing<Io> {
    fn poll_answer(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        while !this.unwritten.is_empty() {
            match ready!(Pin::new(&mut *this.io).poll_write(cx, this.unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => *this.unwritten = &this.unwritten[written..],
            }
        }
        if !*this.told {
            ready!(Pin::new(&mut *this.io).poll_shutdown(cx))?;
            *this.told = true;
        }
        poll_read_out(Pin::new(this.io), cx)
    }
}

/// Reads what the client still sends: closing with unread bytes resets the connection, and the answer may be lost.
fn poll_read_out<Io: AsyncRead>(mut io: Pin<&mut Io>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut bytes = [0; 512];
    loop {
        let mut buf = ReadBuf::new(&mut bytes);
        ready!(io.as_mut().poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

// === impl Slots ===

impl Slots {
    fn new(max: usize) -> Self {
        Self { max, taken: Arc::default() }
    }

    fn take(&self) -> Option<Permit> {
        let more = |taken: usize| (taken < self.max).then(|| taken + 1);
        self.taken.fetch_update(AcqRel, Relaxed, more).ok()?;
        Some(Permit(self.taken.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, AcqRel);
    }
}

/// How many may be told at once that they are refused.
const REFUSING: usize = 64;
/// How long one of them gets to take its answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Written before a byte of the request is read, so it cannot come from `tower-outcome`, which answers requests.
const OVERLOADED: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 37\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\
    \r\n\
    out of capacity (connections-limited)";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{Addr, Drain};

    fn accepted(drain: &Drain) -> (DuplexStream, Accepted<DuplexStream>) {
        let (client, server) = duplex(1024);
        (client, Accepted::new(drain, server, Addr::Other, Addr::Other))
    }

    async fn hold(accepted: Accepted<DuplexStream>) -> Result<(), io::Error> {
        let (mut io, _rest) = accepted.split();
        io.read_to_end(&mut Vec::new()).await.map(|_| ())
    }

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let (head, body) = OVERLOADED.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }

    #[tokio::test(start_paused = true)]
    async fn one_too_many_is_told_so_and_a_place_comes_back() {
        let drain = Drain::new();
        let limit = ConnectionLimit::new(NonZeroUsize::MIN);
        let service = ConnectionLimitLayer::new(&limit).layer(service_fn(hold));
        let (first, one) = accepted(&drain);
        let first_life = tokio::spawn(service.clone().oneshot(one));
        let (mut second, two) = accepted(&drain);
        let second_life = tokio::spawn(service.clone().oneshot(two));
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, second.read_to_string(&mut answer)).await.expect("refused").unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        drop(second);
        second_life.await.unwrap().unwrap();
        assert_eq!((limit.open(), limit.refused()), (1, 1));
        drop(first);
        first_life.await.unwrap().unwrap();
        assert_eq!(limit.open(), 0);
        assert_eq!(drain.snapshot().guests, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_read_its_refusal_has_a_second() {
        let drain = Drain::new();
        let limit = ConnectionLimit::new(NonZeroUsize::MIN);
        let service = ConnectionLimitLayer::new(&limit).layer(service_fn(hold));
        let (_first, one) = accepted(&drain);
        tokio::spawn(service.clone().oneshot(one));
        tokio::task::yield_now().await;
        let (mut second, two) = accepted(&drain);
        let start = tokio::time::Instant::now();
        second.write_all(&[0; 100]).await.unwrap();
        service.clone().oneshot(two).await.unwrap();
        assert_eq!(start.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_told_at_once() {
        let drain = Drain::new();
        let limit = ConnectionLimit::new(NonZeroUsize::MIN);
        let mut service = ConnectionLimitLayer::new(&limit).layer(service_fn(hold));
        let pairs: Vec<_> = (0..REFUSING + 2).map(|_| accepted(&drain)).collect();
        let (_clients, servers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let lives: Vec<_> = servers.into_iter().map(|server| service.call(server)).collect();
        let closed = lives.iter().filter(|life| matches!(life.0, Fate::Closed)).count();
        assert_eq!((closed, limit.open(), limit.refused()), (1, 1, REFUSING as u64 + 1));
        drop(lives);
        assert_eq!((limit.open(), limit.refusing.taken.load(Relaxed)), (0, 0));
    }
}
