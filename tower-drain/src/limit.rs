use std::{
    fmt,
    future::Future,
    io, mem,
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
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

use crate::{
    accepted::Accepted,
    places::{self, Admission, Places, Waiter},
    slots::{Permit, Slots},
};

/// How many connections may be open at once: a handle, cheap to clone.
///
/// A connection counts until its stream is dropped, so an upgraded connection counts until it ends.
///
/// # At the limit
///
/// For a new connection an idle one of [`Http`](crate::Http) is asked to close: over HTTP/1 one that waits for its next
/// request, over HTTP/2 one without a stream, and one of either that has sent nothing so far; each for at least a second.
/// The new connection waits up to 500 ms for the place, and another idle connection is asked every 125 ms. The one that
/// has been idle longest is asked first, of 16 that are found idle among the next 256. At most a tenth of the limit wait,
/// in the order of their arrival.
///
/// An idle HTTP/1 connection still takes a request for 50 ms, then it is closed as by its idle timeout, except that it is
/// read from for at most 50 ms; over HTTP/2 its peer gets a GOAWAY. A connection with a request under way, even one that
/// arrives in this time, is not cut: it ends after its response.
///
/// If no idle connection is found, the new one is accepted **and rejected**, so that clients do not hang in the kernel's
/// queue: at most 64 at once get a response, within a second each; beyond those the connection is just closed. The
/// response is that of [`ConnectionLimitLayer::refuse_overloaded`].
///
/// This costs nothing per request, and a lock when a connection begins and when it ends.
#[derive(Clone)]
pub struct ConnectionLimit {
    open: Arc<Places>,
    refusing: Slots,
    refused: Arc<AtomicU64>,
}

/// Applies a [`ConnectionLimit`], and rejects all connections while a condition does not hold.
#[derive(Clone, Debug)]
pub struct ConnectionLimitLayer<R = Overloaded> {
    limit: ConnectionLimit,
    right: Right,
    refuse: R,
}

/// A connection service with a limit. Made by [`ConnectionLimitLayer`].
#[derive(Clone, Debug)]
pub struct Limited<S, R = Overloaded> {
    inner: S,
    limit: ConnectionLimit,
    right: Right,
    refuse: R,
}

/// The condition under which connections are served.
#[derive(Clone)]
struct Right(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

/// The future of a connection that was admitted, or the rejection of one that was not.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct LimitedFuture<S, R, Io>(#[pin] Fate<S, R, Io>)
where
    S: Service<Accepted<Io>>,
    R: Service<Accepted<Io>>;

#[pin_project(project = FateProj)]
enum Fate<S, R, Io>
where
    S: Service<Accepted<Io>>,
    R: Service<Accepted<Io>>,
{
    /// -> `Admitted` when a place is free, or `Refused` or `Closed` when that takes too long.
    Waiting(Option<Box<Waiting<S, R, Io>>>),
    Admitted(#[pin] S::Future),
    Refused(#[pin] Refused<R::Future>),
    Closed,
}

/// A connection that waits for the place of an idle one, with the services that are ready for it.
struct Waiting<S, R, Io> {
    service: S,
    refuse: R,
    accepted: Accepted<Io>,
    limit: ConnectionLimit,
    waiter: Waiter,
}

/// A rejection, which takes a second at most.
#[pin_project]
struct Refused<R> {
    #[pin]
    refusal: R,
    #[pin]
    alarm: Sleep,
    _permit: Permit,
}

/// A service that rejects connections with a short response.
///
/// It is the default for connections that a [`ConnectionLimit`] or
/// [`only_while`](ConnectionLimitLayer::only_while) does not admit. The limit gives it a second, and bounds how many run at
/// once; by itself it waits until the client has read the response and closed.
#[derive(Clone, Copy, Debug)]
pub struct Overloaded {
    answer: &'static [u8],
}

/// The future of a connection that is rejected. Made by [`Overloaded`].
#[must_use = "futures do nothing unless polled"]
pub struct Refusing<Io> {
    io: Io,
    unwritten: &'static [u8],
    told: bool,
    // The drain waits until the response is written.
    _rest: Accepted<()>,
}

// === impl ConnectionLimit ===

impl ConnectionLimit {
    /// At most `max` connections.
    #[must_use]
    pub fn new(max: NonZeroUsize) -> Self {
        Self {
            open: Arc::new(Places::new(max.get())),
            refusing: Slots::new(REFUSING),
            refused: Arc::default(),
        }
    }

    /// How many may be open.
    #[must_use]
    pub fn max(&self) -> usize {
        self.open.max()
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.taken()
    }

    /// How many were rejected so far, with or without a response.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn refuse<R, Io>(&self, service: &mut R, accepted: Accepted<Io>) -> Option<Refused<R::Future>>
    where
        R: Service<Accepted<Io>>,
    {
        self.refused.fetch_add(1, Relaxed);
        tracing::trace!(peer = %accepted.peer(), open = self.open(), "connection refused");
        let permit = self.refusing.take()?;
        Some(Refused {
            refusal: service.call(accepted),
            alarm: sleep(PATIENCE),
            _permit: permit,
        })
    }
}

impl Default for ConnectionLimit {
    /// 10 000: at 33 kB each, about what HAProxy takes, that is 330 MB. Less where the process may not open that many
    /// files: nine tenths of its `RLIMIT_NOFILE`, halved, because a proxy uses two for a request.
    fn default() -> Self {
        let max = files().map_or(MAX, |files| (files / 20 * 9).clamp(1, MAX));
        Self::new(NonZeroUsize::new(max).expect("at least 1"))
    }
}

impl fmt::Debug for ConnectionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionLimit")
            .field("max", &self.open.max())
            .field("open", &self.open())
            .field("refused", &self.refused())
            .finish()
    }
}

/// How many files this process may have open.
#[cfg(unix)]
fn files() -> Option<usize> {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile)
        .current
        .and_then(|files| usize::try_from(files).ok())
}

#[cfg(not(unix))]
fn files() -> Option<usize> {
    None
}

// === impl ConnectionLimitLayer ===

impl ConnectionLimitLayer {
    /// Refers to `limit`. A connection that is rejected gets an HTTP/1 `503`.
    #[must_use]
    pub fn new(limit: &ConnectionLimit) -> Self {
        Self {
            limit: limit.clone(),
            right: Right(None),
            refuse: Overloaded::http1(),
        }
    }
}

impl<R> ConnectionLimitLayer<R> {
    /// The service for connections that are rejected: any connection service, [`Overloaded`] by default.
    ///
    /// Under TLS no response can be sent before the handshake, so use `Overloaded::silent()` there. The service runs in
    /// the connection's task, at most 64 at once, and is dropped after a second.
    #[must_use]
    pub fn refuse_overloaded<T>(self, refuse: T) -> ConnectionLimitLayer<T> {
        ConnectionLimitLayer {
            limit: self.limit,
            right: self.right,
            refuse,
        }
    }

    /// Rejects each new connection for which `right` returns `false`, in the same way and within the same bounds: while a
    /// lease is not held, for example. Open connections stay open. It is called once for each connection, on the accept
    /// loop's task, so it must not block.
    #[must_use]
    pub fn only_while(self, right: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            right: Right(Some(Arc::new(right))),
            ..self
        }
    }

    pub(crate) const fn limit(&self) -> &ConnectionLimit {
        &self.limit
    }

    pub(crate) fn with_limit(self, limit: &ConnectionLimit) -> Self {
        Self {
            limit: limit.clone(),
            ..self
        }
    }
}

impl<S, R: Clone> Layer<S> for ConnectionLimitLayer<R> {
    type Service = Limited<S, R>;

    fn layer(&self, inner: S) -> Limited<S, R> {
        Limited {
            inner,
            limit: self.limit.clone(),
            right: self.right.clone(),
            refuse: self.refuse.clone(),
        }
    }
}

// === impl Limited ===

impl<S, R, Io> Service<Accepted<Io>> for Limited<S, R>
where
    S: Service<Accepted<Io>, Response = ()> + Clone,
    R: Service<Accepted<Io>, Response = ()> + Clone,
{
    type Response = ();
    type Error = S::Error;
    type Future = LimitedFuture<S, R, Io>;

    /// The rejecting service must be ready too, or no connection could be rejected.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.refuse.poll_ready(cx) {
            Poll::Pending => Poll::Pending,
            // If that service has failed for good, its call fails, and the connection is closed.
            Poll::Ready(_) => self.inner.poll_ready(cx),
        }
    }

    fn call(&mut self, mut accepted: Accepted<Io>) -> Self::Future {
        let admission = if self.right.is_held() {
            self.limit.open.admit()
        } else {
            Admission::Never
        };
        LimitedFuture(match admission {
            Admission::Now(permit) => {
                accepted.hold(permit);
                Fate::Admitted(self.inner.call(accepted))
            }
            Admission::Later(waiter) => {
                // The services that are ready move into the future.
                let (inner, refuse) = (self.inner.clone(), self.refuse.clone());
                Fate::Waiting(Some(Box::new(Waiting {
                    service: mem::replace(&mut self.inner, inner),
                    refuse: mem::replace(&mut self.refuse, refuse),
                    accepted,
                    limit: self.limit.clone(),
                    waiter,
                })))
            }
            Admission::Never => Fate::refused(self.limit.refuse(&mut self.refuse, accepted)),
        })
    }
}

// === impl Right ===

impl Right {
    fn is_held(&self) -> bool {
        self.0.as_ref().is_none_or(|right| right())
    }
}

impl fmt::Debug for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Right").field(&self.is_held()).finish()
    }
}

// === impl LimitedFuture ===

impl<S, R, Io> Future for LimitedFuture<S, R, Io>
where
    S: Service<Accepted<Io>, Response = ()>,
    R: Service<Accepted<Io>>,
{
    type Output = Result<(), S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut fate = self.project().0;
        loop {
            let next = match fate.as_mut().project() {
                FateProj::Waiting(waiting) => {
                    let waiter = &mut waiting.as_mut().expect("until it is ready").waiter;
                    let permit = ready!(waiter.poll(cx));
                    waiting.take().expect("as above").end(permit)
                }
                FateProj::Admitted(life) => return life.poll(cx),
                FateProj::Refused(refused) => return refused.poll(cx).map(Ok),
                FateProj::Closed => return Poll::Ready(Ok(())),
            };
            fate.set(next);
        }
    }
}

impl<S, R, Io> fmt::Debug for LimitedFuture<S, R, Io>
where
    S: Service<Accepted<Io>>,
    R: Service<Accepted<Io>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedFuture")
            .field("waiting", &matches!(self.0, Fate::Waiting(_)))
            .field(
                "refused",
                &matches!(self.0, Fate::Refused(_) | Fate::Closed),
            )
            .finish()
    }
}

// === impl Fate ===

impl<S, R, Io> Fate<S, R, Io>
where
    S: Service<Accepted<Io>>,
    R: Service<Accepted<Io>>,
{
    fn refused(refused: Option<Refused<R::Future>>) -> Self {
        refused.map_or(Self::Closed, Self::Refused)
    }
}

// === impl Waiting ===

impl<S, R, Io> Waiting<S, R, Io>
where
    S: Service<Accepted<Io>>,
    R: Service<Accepted<Io>>,
{
    fn end(mut self, permit: Option<places::Permit>) -> Fate<S, R, Io> {
        match permit {
            Some(permit) => {
                self.accepted.hold(permit);
                Fate::Admitted(self.service.call(self.accepted))
            }
            None => Fate::refused(self.limit.refuse(&mut self.refuse, self.accepted)),
        }
    }
}

// === impl Refused ===

impl<R: Future> Future for Refused<R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.alarm.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // An error of the rejecting service is ignored: a client that is gone needs no response.
        this.refusal.poll(cx).map(|_| ())
    }
}

// === impl Overloaded ===

impl Overloaded {
    /// An HTTP/1 `503` with `Retry-After: 1` and `Connection: close`.
    #[must_use]
    pub const fn http1() -> Self {
        Self {
            answer: OVERLOADED.as_bytes(),
        }
    }

    /// Closes without a response, and without a reset: under TLS none can be sent before the handshake.
    #[must_use]
    pub const fn silent() -> Self {
        Self { answer: b"" }
    }

    /// Responds with these bytes.
    #[must_use]
    pub const fn saying(answer: &'static [u8]) -> Self {
        Self { answer }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Service<Accepted<Io>> for Overloaded {
    type Response = ();
    type Error = io::Error;
    type Future = Refusing<Io>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, accepted: Accepted<Io>) -> Refusing<Io> {
        let (io, rest) = accepted.split();
        Refusing {
            io,
            unwritten: self.answer,
            told: false,
            _rest: rest,
        }
    }
}

// === impl Refusing ===

impl<Io: AsyncRead + AsyncWrite + Unpin> Future for Refusing<Io> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.unwritten.is_empty() {
            match ready!(Pin::new(&mut this.io).poll_write(cx, this.unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => this.unwritten = &this.unwritten[written..],
            }
        }
        if !this.told {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.told = true;
        }
        poll_read_out(Pin::new(&mut this.io), cx)
    }
}

impl<Io> fmt::Debug for Refusing<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusing")
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

/// Reads what the client still sends: closing with unread bytes resets the connection, and the response may be lost.
fn poll_read_out<Io: AsyncRead>(
    mut io: Pin<&mut Io>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut bytes = [0; 512];
    loop {
        let mut buf = ReadBuf::new(&mut bytes);
        ready!(io.as_mut().poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

/// How many connections may be open by default.
const MAX: usize = 10_000;
/// How many may be rejected with a response at once.
const REFUSING: usize = 64;
/// How long each of them may take to read its response.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Written before a byte of the request is read, so it cannot come from `tower-outcome`, which responds to requests.
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
        (
            client,
            Accepted::new(drain, server, Addr::Other, Addr::Other),
        )
    }

    async fn hold(accepted: Accepted<DuplexStream>) -> Result<(), io::Error> {
        let (mut io, _rest) = accepted.split();
        io.read_to_end(&mut Vec::new()).await.map(|_| ())
    }

    #[test]
    fn the_content_length_is_that_of_the_body() {
        let (head, body) = OVERLOADED.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_beyond_the_limit_gets_a_503_and_a_place_is_given_back() {
        let drain = Drain::new();
        let limit = ConnectionLimit::new(NonZeroUsize::MIN);
        let service = ConnectionLimitLayer::new(&limit).layer(service_fn(hold));
        let (first, one) = accepted(&drain);
        let first_life = tokio::spawn(service.clone().oneshot(one));
        let (mut second, two) = accepted(&drain);
        let second_life = tokio::spawn(service.clone().oneshot(two));
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, second.read_to_string(&mut answer))
            .await
            .expect("refused")
            .unwrap();
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
    async fn a_limit_within_another_leaves_the_outer_one_its_count() {
        let (drain, outer, inner) = (
            Drain::new(),
            ConnectionLimit::default(),
            ConnectionLimit::default(),
        );
        let layers = (
            ConnectionLimitLayer::new(&outer),
            ConnectionLimitLayer::new(&inner),
        );
        let service = layers.layer(service_fn(hold));
        let (client, connection) = accepted(&drain);
        let life = tokio::spawn(service.oneshot(connection));
        tokio::task::yield_now().await;
        assert_eq!((outer.open(), inner.open()), (1, 1));
        drop(client);
        life.await.unwrap().unwrap();
        assert_eq!((outer.open(), inner.open()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_are_rejected_while_the_condition_does_not_hold_and_open_ones_stay() {
        use std::sync::atomic::AtomicBool;
        let (drain, limit, held) = (
            Drain::new(),
            ConnectionLimit::default(),
            Arc::new(AtomicBool::new(true)),
        );
        let asked = held.clone();
        let layer = ConnectionLimitLayer::new(&limit).only_while(move || asked.load(Relaxed));
        let service = layer.layer(service_fn(hold));
        let (first, one) = accepted(&drain);
        let first_life = tokio::spawn(service.clone().oneshot(one));
        tokio::task::yield_now().await;
        held.store(false, Relaxed);
        let (mut second, two) = accepted(&drain);
        tokio::spawn(service.clone().oneshot(two));
        let mut answer = String::new();
        second.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!((limit.open(), limit.refused()), (1, 1));
        held.store(true, Relaxed);
        let (_third, three) = accepted(&drain);
        tokio::spawn(service.oneshot(three));
        tokio::task::yield_now().await;
        assert_eq!((limit.open(), limit.refused()), (2, 1));
        drop(first);
        first_life.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn only_64_at_once_are_rejected_with_a_response() {
        let drain = Drain::new();
        let limit = ConnectionLimit::new(NonZeroUsize::MIN);
        let mut service = ConnectionLimitLayer::new(&limit).layer(service_fn(hold));
        let pairs: Vec<_> = (0..REFUSING + 2).map(|_| accepted(&drain)).collect();
        let (_clients, servers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let lives: Vec<_> = servers
            .into_iter()
            .map(|server| service.call(server))
            .collect();
        let closed = lives
            .iter()
            .filter(|life| matches!(life.0, Fate::Closed))
            .count();
        assert_eq!(
            (closed, limit.open(), limit.refused()),
            (1, 1, REFUSING as u64 + 1)
        );
        drop(lives);
        assert_eq!((limit.open(), limit.refusing.taken()), (0, 0));
    }
}
