use std::{future::Future, io};

use tokio::io::{AsyncRead, AsyncWrite};
use tower_layer::Layer;
use tower_outcome::BoxError;
use tower_service::Service;

use crate::{
    accept,
    accepted::Accepted,
    drain::Drain,
    limit::{ConnectionLimit, ConnectionLimitLayer},
    listen::{Addr, Listen},
    report::Report,
};

/// A listener with a limit, under a drain: [`Drain::serve`] with knobs.
///
/// Several servers may share one drain. An admin server that must outlive the others gets a drain of its own.
#[derive(Debug)]
#[must_use = "a server does nothing until it serves"]
pub struct Server<L> {
    drain: Drain,
    listener: L,
    limit: ConnectionLimit,
}

// === impl Server ===

impl<L: Listen> Server<L> {
    /// Will serve `listener` for as long as `drain` lets it.
    pub fn new(drain: &Drain, listener: L) -> Self {
        Self { drain: drain.clone(), listener, limit: ConnectionLimit::default() }
    }

    /// How many connections may be open. Default: 10 000 of its own. One limit may be shared by several servers.
    pub fn limit(self, limit: &ConnectionLimit) -> Self {
        Self { limit: limit.clone(), ..self }
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    ///
    /// When the system does not tell it.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.listener.local_addr()
    }

    /// The drain.
    pub const fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Runs connections through `service`, an [`Http`](crate::Http) with limits of your own for example.
    ///
    /// # Errors
    ///
    /// Those of [`Drain::accept`].
    pub fn run<S>(self, service: S) -> impl Future<Output = io::Result<Report>> + Send + use<L, S>
    where
        L::Io: AsyncRead + AsyncWrite + Unpin,
        S: Service<Accepted<L::Io>, Response = (), Error: Into<BoxError>, Future: Send + 'static> + Send + 'static,
    {
        let layer = ConnectionLimitLayer::new(&self.limit);
        accept::serve(self.drain, self.listener, layer.layer(service))
    }
}

impl Drain {
    /// The accept loop by itself: calls `service` with each connection, until this drain is over.
    ///
    /// Connections are requests, so what surrounds them are layers. The future that `service` answers with is the
    /// connection's whole life; it runs in a task of its own, and is dropped if it is still there when the drain is
    /// done. `service` is polled ready before each accept, which makes a layer that waits (tower's `ConcurrencyLimit`)
    /// keep clients in the kernel's queue; [`ConnectionLimit`] accepts and refuses instead. Readiness never delays the
    /// drain.
    ///
    /// ```no_run
    /// use tokio::{io, net::{TcpListener, TcpStream}};
    /// use tower::{ServiceBuilder, service_fn};
    /// use tower_drain::{Accepted, ConnectionLimit, ConnectionLimitLayer, Drain};
    ///
    /// async fn echo(accepted: Accepted<TcpStream>) -> io::Result<()> {
    ///     // `_rest` is the connection's guard: the drain waits for it.
    ///     let (mut stream, _rest) = accepted.split();
    ///     let (mut read, mut write) = stream.split();
    ///     io::copy(&mut read, &mut write).await.map(|_| ())
    /// }
    ///
    /// # async fn run(drain: Drain, listener: TcpListener) -> io::Result<()> {
    /// let service = ServiceBuilder::new()
    ///     .map_request(|accepted: Accepted<TcpStream>| {
    ///         println!("hello, {}", accepted.peer());
    ///         accepted
    ///     })
    ///     .layer(ConnectionLimitLayer::new(&ConnectionLimit::default()))
    ///     .service_fn(echo);
    /// println!("{}", drain.accept(listener, service).await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # When closing begins
    ///
    /// Who is in the queue is still let in: all there are, and after 10 ms, for handshakes under way, once more. Then
    /// the listener is closed.
    ///
    /// # Errors
    ///
    /// When the listener is broken for good, or `service` is. Then nobody can come any more, so the drain
    /// [shuts down](Drain::shutdown), those who are here end as in any drain, and the error is told after that. Errors
    /// of single connections pass; when descriptors or memory run out it waits 10 ms, doubling to 1 s.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with network and time enabled, when polled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listener and cuts all its connections.
    pub fn accept<L, S>(&self, listener: L, service: S) -> impl Future<Output = io::Result<Report>> + Send + use<L, S>
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Error: Into<BoxError>, Future: Send + 'static> + Send + 'static,
    {
        accept::serve(self.clone(), listener, service)
    }
}
