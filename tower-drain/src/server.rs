use std::{future::Future, io, net::SocketAddr, num::NonZeroUsize, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tower_layer::Layer;
use tower_outcome::BoxError;
use tower_service::Service;

use crate::{
    accept,
    accepted::Accepted,
    bound::BoundListener,
    cancel::Cancellation,
    drain::Drain,
    limit::{ConnectionLimit, ConnectionLimitLayer, Overloaded},
    listen::{Addr, Listen},
    report::Report,
};

/// A listener with a connection limit and a drain: [`Drain::serve`] with settings.
///
/// Several servers may share one drain. An admin server that must outlive them gets a separate drain.
///
/// ```no_run
/// use std::time::Duration;
/// use tower_drain::{ListenerConfig, Server};
///
/// # #[cfg(feature = "http")]
/// # async fn run(app: axum::Router) -> std::io::Result<()> {
/// let config = ListenerConfig::new().drain_grace(Duration::from_secs(15));
/// let server = Server::bind("127.0.0.1:8080".parse().unwrap(), config)?;
/// let (drain, cancellation) = (server.drain_handle(), server.shutdown_token());
/// println!("{}", server.serve(app).await?);
/// # Ok(()) }
/// ```
///
/// # A pipeline of connections
///
/// [`run`](Self::run) takes any connection service, so it can be wrapped in layers. From the outside in: the limit of this
/// server, a lease without which it does not serve, a counter, a log line, TLS, then HTTP.
///
/// ```no_run
/// # #[cfg(all(feature = "http", feature = "tls"))]
/// # async fn run(
/// #     drain: tower_drain::Drain,
/// #     tls: tower_drain::Tls,
/// #     lease: tokio::sync::watch::Receiver<bool>,
/// #     app: axum::Router,
/// # ) -> std::io::Result<()> {
/// use std::{num::NonZeroUsize, sync::{Arc, atomic::{AtomicU64, Ordering}}};
/// use tokio::net::{TcpListener, TcpStream};
/// use tower::ServiceBuilder;
/// use tower_drain::{Accepted, ConnectionLimit, Http, Overloaded, Server, TlsLayer};
///
/// let limit = ConnectionLimit::new(NonZeroUsize::new(2_000).unwrap());
/// let accepted_total = Arc::new(AtomicU64::new(0));
/// let count = accepted_total.clone();
/// let connections = ServiceBuilder::new()
///     .map_request(move |accepted: Accepted<TcpStream>| {
///         count.fetch_add(1, Ordering::Relaxed);
///         accepted
///     })
///     .map_request(|accepted: Accepted<TcpStream>| {
///         println!("accepted {}", accepted.peer());
///         accepted
///     })
///     .map_err(|error| {
///         println!("{error}");
///         error
///     })
///     .layer(TlsLayer::new(&drain, &tls))
///     .service(Http::new(&drain, app));
/// let listener = TcpListener::bind("0.0.0.0:8443").await?;
/// Server::new(&drain, listener)
///     .limit(&limit)
///     .only_while(move || *lease.borrow()) // while it is not held, connections are rejected and do not hang in the queue
///     .refuse_overloaded(Overloaded::silent()) // no response can be sent before the handshake
///     .run(connections)
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a server does nothing until it serves"]
pub struct Server<L, R = Overloaded> {
    drain: Drain,
    listener: L,
    layer: ConnectionLimitLayer<R>,
}

/// The settings of [`Server::bind`].
#[derive(Clone, Debug)]
#[must_use = "bind it"]
pub struct ListenerConfig {
    drain: Drain,
    limit: ConnectionLimit,
    backlog: u32,
    reuse_port: bool,
}

// === impl Server ===

impl Server<BoundListener> {
    /// Binds `addr` with the settings of `config`.
    ///
    /// # Errors
    ///
    /// Those of [`ListenerConfig::bind`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with network enabled.
    pub fn bind(addr: SocketAddr, config: ListenerConfig) -> io::Result<Self> {
        let listener = config.bind(addr)?;
        let ListenerConfig { drain, limit, .. } = config;
        Ok(Self {
            drain,
            listener,
            layer: ConnectionLimitLayer::new(&limit),
        })
    }
}

impl<L: Listen> Server<L> {
    /// A server for `listener`, until `drain` is over.
    pub fn new(drain: &Drain, listener: L) -> Self {
        let layer = ConnectionLimitLayer::new(&ConnectionLimit::default());
        Self {
            drain: drain.clone(),
            listener,
            layer,
        }
    }
}

impl<L: Listen, R> Server<L, R> {
    /// How many connections may be open. Default: a limit of at most 10 000 for this server alone. Several servers may share
    /// one limit.
    pub fn limit(self, limit: &ConnectionLimit) -> Self {
        Self {
            layer: self.layer.with_limit(limit),
            ..self
        }
    }

    /// Rejects each new connection for which `right` returns `false`: see [`ConnectionLimitLayer::only_while`].
    pub fn only_while(self, right: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            layer: self.layer.only_while(right),
            ..self
        }
    }

    /// The service for connections beyond the limit: see [`ConnectionLimitLayer::refuse_overloaded`].
    pub fn refuse_overloaded<T>(self, refuse: T) -> Server<L, T> {
        let Self {
            drain,
            listener,
            layer,
        } = self;
        Server {
            drain,
            listener,
            layer: layer.refuse_overloaded(refuse),
        }
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    ///
    /// If the system does not return it.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.listener.local_addr()
    }

    /// The drain, which outlives the server.
    #[must_use]
    pub fn drain_handle(&self) -> Drain {
        self.drain.clone()
    }

    /// The cancellation token of every handler.
    #[must_use]
    pub fn shutdown_token(&self) -> Cancellation {
        self.drain.cancellation()
    }

    /// [`Drain::begin_drain`]: new connections are still served for the announce time.
    pub fn begin_drain(&self) {
        self.drain.begin_drain();
    }

    /// [`Drain::shutdown`]: no new connections are accepted, requests under way have the close time, then their handlers
    /// are cancelled.
    pub fn shutdown(&self) {
        self.drain.shutdown();
    }

    /// Runs connections through `service`, such as an [`Http`](crate::Http) with custom limits.
    ///
    /// # Errors
    ///
    /// Those of [`Drain::accept_loop`].
    pub fn run<S>(
        self,
        service: S,
    ) -> impl Future<Output = io::Result<Report>> + Send + use<L, S, R>
    where
        S: Service<Accepted<L::Io>, Response = (), Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + 'static,
        R: Service<Accepted<L::Io>, Response = (), Future: Send + 'static> + Clone + Send + 'static,
    {
        tracing::info!(max_connections = self.layer.limit().max(), "listening");
        accept::serve(self.drain, self.listener, self.layer.layer(service))
    }
}

// === impl ListenerConfig ===

impl ListenerConfig {
    /// 10 000 connections, or as many as the process may open; a new drain; a queue of 4 096; one socket.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many connections may be open. Default: [`ConnectionLimit::default`].
    pub fn max_concurrent_connections(self, max: NonZeroUsize) -> Self {
        Self {
            limit: ConnectionLimit::new(max),
            ..self
        }
    }

    /// The drain. Default: a new one with the default durations.
    pub fn drain(self, drain: &Drain) -> Self {
        Self {
            drain: drain.clone(),
            ..self
        }
    }

    /// A new drain with this close time: how long connections may take to end gracefully. Default: 20 s.
    pub fn drain_grace(self, grace: Duration) -> Self {
        Self {
            drain: Drain::builder().close(grace).build(),
            ..self
        }
    }

    /// How many connections may wait to be accepted. Default: 4 096, which the system may lower (`somaxconn`).
    pub fn backlog(self, backlog: u32) -> Self {
        Self { backlog, ..self }
    }

    /// Whether other sockets may bind the same address (`SO_REUSEPORT`), to spread load. Default: `false`.
    ///
    /// This alone is **not** a way to replace a process without losing connections: each socket has a separate queue, and
    /// closing the socket resets all connections in it. See the feature `handoff`.
    pub fn reuse_port(self, reuse_port: bool) -> Self {
        Self { reuse_port, ..self }
    }

    /// Binds and listens, for [`Server::new`]: with a shared drain or a shared limit, for example.
    ///
    /// # Errors
    ///
    /// Those of the system.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with network enabled.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<BoundListener> {
        TcpListener::from_std(self.listen(addr)?).map(BoundListener::new)
    }

    /// Binds and listens; not blocking, and closed on `exec`. For a socket that is passed to another process.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn listen(&self, addr: SocketAddr) -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        set_reuse(&socket, self.reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    }
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            drain: Drain::new(),
            limit: ConnectionLimit::default(),
            backlog: BACKLOG,
            reuse_port: false,
        }
    }
}

/// `SO_REUSEADDR` lets a new process bind while connections of the old one are in `TIME_WAIT`.
#[cfg(unix)]
fn set_reuse(socket: &Socket, port: bool) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(port)
}

/// On Windows `SO_REUSEADDR` has another meaning: it would let any process take over the port.
#[cfg(not(unix))]
fn set_reuse(_: &Socket, port: bool) -> io::Result<()> {
    if port {
        Err(io::ErrorKind::Unsupported.into())
    } else {
        Ok(())
    }
}

impl Drain {
    /// The accept loop alone: calls `service` with each connection, until this drain is over.
    ///
    /// Connections are requests, so they can be wrapped in layers. The future that `service` returns runs the connection to
    /// its end; it is spawned as a task, and dropped if it is not complete when the drain is over. `service` is polled
    /// for readiness before each accept, so a layer that waits (tower's `ConcurrencyLimit`) keeps clients in the kernel's
    /// queue; [`ConnectionLimit`] accepts and rejects instead. Readiness never delays the drain.
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
    ///         println!("accepted {}", accepted.peer());
    ///         accepted
    ///     })
    ///     .layer(ConnectionLimitLayer::new(&ConnectionLimit::default()))
    ///     .service_fn(echo);
    /// println!("{}", drain.accept_loop(listener, service).await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # When closing begins
    ///
    /// Queued connections are still accepted, until none arrived for 100 ms, and for at most 1 s. Then the listener is
    /// closed.
    ///
    /// # Errors
    ///
    /// If the listener or `service` has failed for good. Then no connection can be accepted any more, so the drain
    /// [shuts down](Drain::shutdown), open connections end as in any drain, and the error is returned after that. Errors of
    /// single connections are ignored. When descriptors or memory run out, the loop waits 10 ms, doubling to 1 s, and from
    /// the second time on it closes up to 64 queued connections, with a spare descriptor.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with network and time enabled, when polled. And if `service` panics in `poll_ready` or
    /// `call`: then its connections are cut, as if the future was dropped. A panic in a connection's future ends only that
    /// connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listener and cuts all its connections.
    pub fn accept_loop<L, S>(
        &self,
        listener: L,
        service: S,
    ) -> impl Future<Output = io::Result<Report>> + Send + use<L, S>
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Error: Into<BoxError>, Future: Send + 'static> + Send + 'static,
    {
        accept::serve(self.clone(), listener, service)
    }
}

/// Linux's limit, unless an administrator has set another.
const BACKLOG: u32 = 4096;
