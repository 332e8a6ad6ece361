//! Passes listening sockets from an old process to a new one without losing a connection (Linux).
//!
//! There is one listening socket per address, and it outlives every process: closing the last copy of it would reset all
//! connections in its queue. The old process passes it to the new one over a Unix socket.
//!
//! ```text
//!        new                                   old
//!         │  hello                              │ serving
//!         ├────────────────────────────────────►│
//!         │                  the sockets        │
//!         │◄────────────────────────────────────┤ serving
//!         │ (warms up, then accepts)            │
//!         │  ready                              │
//!         ├────────────────────────────────────►│ does not accept: probation, 10 s
//!         │                                     │    the new one dies ─► accepts again, nothing is lost
//!         │                  draining           │
//!         │◄────────────────────────────────────┤
//!         │  ready (now listens at the path)    │
//!         ├────────────────────────────────────►│ closing: its connections end gracefully
//!         │                  done               │
//!         │◄────────────────────────────────────┤
//! ```
//!
//! If a new process dies before it is ready, nothing has changed. If it dies or begins to drain in its probation, the old
//! process takes the queue back, so a release that crashes or is rolled back at once is harmless. The drain of the old
//! process begins only after the probation, because a drain never goes back: until then its connections are served as
//! before. A third process that connects meanwhile gets an error ([`ResourceBusy`](io::ErrorKind::ResourceBusy)) and can
//! try again later. A new process may warm up for any time; if it hangs there, no further process can take over until it
//! is stopped, or the old one drains.
//!
//! ```no_run
//! # #[cfg(feature = "http")]
//! # async fn run(app: axum::Router) -> std::io::Result<()> {
//! use tower_drain::{Drain, ListenerConfig, Server, handoff::Handoff};
//!
//! let drain = Drain::new();
//! // 1. Inherit from `LISTEN_FDS` or from the old process, if there is one.
//! let mut inheritance = Handoff::at("/run/app/handoff").inherit().await?;
//! let listener = inheritance.tcp("http", "0.0.0.0:8080".parse().unwrap(), &ListenerConfig::new())?;
//! // 2. Slow preparation: configuration, certificates, upstreams. The old process still serves.
//! let server = tokio::spawn(Server::new(&drain, listener).serve(app));
//! // 3. From now on this process accepts, and after its probation the next one can inherit from it.
//! let incumbent = inheritance.ready().await?;
//! tokio::spawn(incumbent.serve(drain.clone()));
//! println!("{}", server.await.unwrap()?);
//! # Ok(()) }
//! ```
//!
//! The path should be in a directory that only its user can access: the socket itself is `0600`, and both sides check that
//! the other process runs as the same user, or as root. Processes in different network or mount namespaces cannot connect
//! there; for them there is [`ReusePortListener`].

mod channel;
mod listener;
mod message;
mod reuse;

use std::{
    fmt, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{self, fs::FileTypeExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use tokio::{
    net::{TcpListener, UnixListener},
    select,
    sync::watch,
    time::sleep,
};

use self::{
    channel::{Channel, KNOCK, Porch},
    listener::Gate,
    message::{Kind, MOST, Message, Socket, VERSION},
};
pub use self::{
    listener::{HandoffListener, Park},
    reuse::{HandoffMode, ReusePortListener},
};
use crate::{
    drain::{Drain, bounded},
    server::ListenerConfig,
};

/// The path at which the next process connects to this one, and the settings of the handoff.
#[derive(Clone, Debug)]
#[must_use = "does nothing until `inherit` is called"]
pub struct Handoff {
    path: PathBuf,
    probation: Duration,
}

/// The sockets of the previous process, or none.
#[derive(Debug)]
#[must_use = "take the listeners, and call `ready`"]
pub struct Inheritance {
    handoff: Handoff,
    origin: Origin,
    generation: u64,
    /// Not taken so far.
    given: Vec<(Socket, OwnedFd)>,
    taken: Vec<(Socket, OwnedFd)>,
    predecessor: Option<Channel>,
    gate: watch::Sender<Gate>,
}

/// The origin of listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// None were inherited: they are bound.
    Bound,
    /// From the environment: `LISTEN_FDS` and `LISTEN_FDNAMES`.
    Environment,
    /// From the old process.
    Predecessor,
}

/// The process that serves, until the probation of the next one is over. Made by [`Inheritance::ready`].
#[derive(Debug)]
#[must_use = "the next process can inherit only while `serve` runs"]
pub struct Incumbent {
    handoff: Handoff,
    generation: u64,
    sockets: Vec<(Socket, OwnedFd)>,
    predecessor: Option<Channel>,
    /// Open already, unless a predecessor must stop first.
    porch: Option<Porch>,
    gate: watch::Sender<Gate>,
}

/// The result of a handoff, in the old process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handover {
    /// The successor did not become ready, or stopped in its probation.
    Failed,
    Succeeded,
    /// This process began to drain before the successor was ready. The successor has the sockets nevertheless.
    Abandoned,
}

/// Which process stopped first, in the new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Predecessor,
    Us,
}

// === impl Handoff ===

impl Handoff {
    /// Uses this path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            probation: PROBATION,
        }
    }

    /// How long a successor must live before this process begins to drain. Default: 10 s.
    pub fn probation(self, probation: Duration) -> Self {
        Self {
            probation: bounded(probation),
            ..self
        }
    }

    /// Takes the sockets that exist: first from the environment, then from the process at the path.
    ///
    /// # Errors
    ///
    /// Those of the system; if the process at the path runs as another user, or uses another protocol; and
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if it is draining, or has a successor already: try again later. It is
    /// not an error if no process listens at the path.
    pub async fn inherit(self) -> io::Result<Inheritance> {
        let environment = from_environment();
        if !environment.is_empty() {
            return Ok(Inheritance::new(
                self,
                Origin::Environment,
                0,
                environment,
                None,
            ));
        }
        let Some(channel) = Channel::knock(&self.path)? else {
            return Ok(Inheritance::new(self, Origin::Bound, 0, Vec::new(), None));
        };
        let (generation, given) = pull(&channel).await?;
        tracing::info!(sockets = given.len(), generation, handoff_mode = %HandoffMode::Descriptor, "inherited");
        Ok(Inheritance::new(
            self,
            Origin::Predecessor,
            generation,
            given,
            Some(channel),
        ))
    }
}

/// Requests the sockets.
async fn pull(channel: &Channel) -> io::Result<(u64, Vec<(Socket, OwnedFd)>)> {
    channel
        .send(
            &Message::Hello {
                version: VERSION,
                pid: std::process::id(),
            },
            &[],
        )
        .await?;
    let mut given = Vec::new();
    loop {
        let (generation, last, sockets, fds) = match channel.expect().await? {
            (
                Message::Listeners {
                    generation,
                    last,
                    sockets,
                },
                fds,
            ) => (generation, last, sockets, fds),
            (Message::Refused, _) => {
                let busy =
                    "the process before is leaving, or has a successor that must prove itself";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, busy));
            }
            _ => return Err(io::Error::other("unexpected message from the predecessor")),
        };
        if sockets.len() != fds.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "names and sockets do not match",
            ));
        }
        for (socket, fd) in sockets.into_iter().zip(fds) {
            check(&socket, &fd)?;
            given.push((socket, fd));
        }
        if last {
            return Ok((generation, given));
        }
    }
}

/// Whether it is a listening socket of its kind.
fn check(socket: &Socket, fd: &OwnedFd) -> io::Result<()> {
    let unix = socket_domain(fd)? == rustix::net::AddressFamily::UNIX;
    let stream = socket_type(fd)? == rustix::net::SocketType::STREAM;
    if socket_acceptconn(fd)? && stream && unix == (socket.kind == Kind::Unix) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{socket} is no listening socket of its kind"),
    ))
}

/// The sockets that systemd, or another parent process, has passed.
fn from_environment() -> Vec<(Socket, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    if number("LISTEN_PID") != Some(std::process::id() as usize) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    let fds = crate::raw::take_listen_fds(number("LISTEN_FDS").unwrap_or(0));
    // A number that is not a descriptor still has a name in the list.
    names
        .zip(fds)
        .filter_map(|(name, fd)| named(name, fd?))
        .collect()
}

/// The socket of the environment with this `name`, if it is a listening socket.
fn named(name: &str, fd: OwnedFd) -> Option<(Socket, OwnedFd)> {
    let unix = socket_domain(&fd).is_ok_and(|domain| domain == rustix::net::AddressFamily::UNIX);
    let kind = if unix { Kind::Unix } else { Kind::Tcp };
    let socket = Socket {
        kind,
        name: name.to_owned(),
        addr: bound_to(&fd),
        shard: 0,
    };
    match check(&socket, &fd) {
        Ok(()) => Some((socket, fd)),
        Err(error) => {
            tracing::warn!(%error, "handoff: closed what the environment gave");
            None
        }
    }
}

/// The address of an inherited socket, for messages.
fn bound_to(fd: &OwnedFd) -> String {
    let addr = socket2::SockRef::from(fd).local_addr().ok();
    let path = |addr: &socket2::SockAddr| addr.as_pathname().map(|path| path.display().to_string());
    addr.and_then(|addr| {
        addr.as_socket()
            .map_or_else(|| path(&addr), |addr| Some(addr.to_string()))
    })
    .unwrap_or_else(|| "unknown address".to_owned())
}

/// Whether the TCP socket `fd` is at `addr`. systemd's `ListenStream=8080` is `[::]:8080`, which is `0.0.0.0:8080` too.
fn is_at(fd: &OwnedFd, addr: SocketAddr) -> bool {
    let socket = socket2::SockRef::from(fd);
    let bound = socket.local_addr().ok().and_then(|addr| addr.as_socket());
    bound.is_some_and(|bound| {
        let both = addr.is_ipv4()
            && addr.ip().is_unspecified()
            && bound.is_ipv6()
            && bound.ip().is_unspecified()
            && bound.port() == addr.port()
            && socket.only_v6().is_ok_and(|only| !only);
        bound == addr || both
    })
}

// === impl Inheritance ===

impl Inheritance {
    fn new(
        handoff: Handoff,
        origin: Origin,
        generation: u64,
        given: Vec<(Socket, OwnedFd)>,
        predecessor: Option<Channel>,
    ) -> Self {
        let gate = watch::Sender::new(Gate::Unready);
        Self {
            handoff,
            origin,
            generation,
            given,
            taken: Vec::new(),
            predecessor,
            gate,
        }
    }

    /// The origin of the sockets.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// The TCP listener `name` at `addr`: inherited, or a new one.
    ///
    /// From an old process, name and address must be the same. From the environment, the name is enough, and so is the
    /// address: by default systemd gives its sockets the name of their unit (`app.socket`), unless the unit has a
    /// `FileDescriptorName=`. A port of `0` is inherited by name only. It accepts no connections until
    /// [`ready`](Self::ready).
    ///
    /// # Errors
    ///
    /// Those of the system when it must be bound, with the inherited sockets that were not taken so far; and if name or
    /// address is longer than 400 bytes.
    pub fn tcp(
        &mut self,
        name: &str,
        addr: SocketAddr,
        config: &ListenerConfig,
    ) -> io::Result<HandoffListener<TcpListener>> {
        let at = |fd: &OwnedFd| is_at(fd, addr);
        let by_name = addr.port() == 0;
        let listener = match self.take(Kind::Tcp, name, &addr.to_string(), at, by_name) {
            Some(fd) => std::net::TcpListener::from(fd),
            None => config.listen(addr).map_err(|error| self.not_bound(error))?,
        };
        // Sockets of systemd are usually blocking.
        listener.set_nonblocking(true)?;
        self.keep(
            Kind::Tcp,
            name,
            addr.to_string(),
            listener.as_fd().try_clone_to_owned()?,
        )?;
        Ok(HandoffListener::new(listener, self.gate.subscribe()))
    }

    /// The Unix listener `name` at `path`: inherited, by the rules of [`tcp`](Self::tcp), or a new one. An existing socket
    /// file is replaced if no process listens at it any more.
    ///
    /// # Errors
    ///
    /// As [`tcp`](Self::tcp). If there is another kind of file at the path, or a process listens at it, the address is in
    /// use.
    pub fn unix(&mut self, name: &str, path: &Path) -> io::Result<HandoffListener<UnixListener>> {
        let addr = path.to_string_lossy().into_owned();
        let at = |fd: &OwnedFd| {
            let bound = socket2::SockRef::from(fd).local_addr().ok();
            bound.is_some_and(|bound| bound.as_pathname() == Some(path))
        };
        let listener = match self.take(Kind::Unix, name, &addr, at, false) {
            Some(fd) => unix::net::UnixListener::from(fd),
            None => bind_unix(path).map_err(|error| self.not_bound(error))?,
        };
        listener.set_nonblocking(true)?;
        self.keep(
            Kind::Unix,
            name,
            addr,
            listener.as_fd().try_clone_to_owned()?,
        )?;
        Ok(HandoffListener::new(listener, self.gate.subscribe()))
    }

    /// `by_name`: the address does not identify the socket.
    fn take(
        &mut self,
        kind: Kind,
        name: &str,
        addr: &str,
        at: impl Fn(&OwnedFd) -> bool,
        by_name: bool,
    ) -> Option<OwnedFd> {
        let at = |fd: &OwnedFd| by_name || at(fd);
        let find = |wanted: &dyn Fn(&Socket, &OwnedFd) -> bool| {
            let mut given = self.given.iter();
            given.position(|(socket, fd)| socket.kind == kind && wanted(socket, fd))
        };
        let index = if self.origin == Origin::Environment {
            // Several may have the same name: all sockets of a systemd unit do.
            find(&|socket, fd| socket.name == name && at(fd))
                .or_else(|| find(&|socket, _| socket.name == name))
                .or_else(|| find(&|socket, fd| (!by_name || socket.name.is_empty()) && at(fd)))
        } else {
            find(&|socket, fd| socket.name == name && socket.addr == addr && at(fd))
        }?;
        Some(self.given.swap_remove(index).1)
    }

    /// The inherited sockets that no listener has taken so far.
    fn left_over(&self) -> String {
        let left: Vec<_> = self
            .given
            .iter()
            .map(|(socket, _)| socket.to_string())
            .collect();
        left.join(", ")
    }

    fn not_bound(&self, error: io::Error) -> io::Error {
        if self.given.is_empty() {
            return error;
        }
        io::Error::new(
            error.kind(),
            format!(
                "{error}; inherited sockets that no listener matches so far: {}",
                self.left_over()
            ),
        )
    }

    fn keep(&mut self, kind: Kind, name: &str, addr: String, fd: OwnedFd) -> io::Result<()> {
        let shard = self
            .taken
            .iter()
            .filter(|(socket, _)| socket.name == name && socket.addr == addr)
            .count() as u16;
        let socket = Socket {
            kind,
            name: name.to_owned(),
            addr,
            shard,
        };
        if !socket.is_short() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "name or address too long",
            ));
        }
        self.taken.push((socket, fd));
        Ok(())
    }

    /// From now on this process accepts and its predecessor does not; without a predecessor, the next process can inherit
    /// from now on. If the predecessor has died meanwhile, nothing is lost: this process has its queues.
    ///
    /// # Errors
    ///
    /// If inherited sockets were not taken: closing them would lose the connections in their queues. Then the listeners of
    /// this process end with an error, no connection was accepted, and the old process continues to serve. And if there is
    /// no predecessor and the path cannot be bound.
    pub async fn ready(self) -> io::Result<Incumbent> {
        if !self.given.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "inherited sockets that no listener has taken: {}",
                    self.left_over()
                ),
            ));
        }
        let porch = if self.predecessor.is_none() {
            Some(Porch::open(&self.handoff.path)?)
        } else {
            None
        };
        self.gate.send_replace(Gate::Open);
        if let Some(channel) = &self.predecessor {
            let told = channel.send(&Message::Ready, &[]).await;
            let _ = told
                .inspect_err(|error| tracing::info!(%error, "handoff: the process before is gone"));
        }
        let Self {
            handoff,
            generation,
            taken: sockets,
            predecessor,
            gate,
            ..
        } = self;
        Ok(Incumbent {
            handoff,
            generation: generation + 1,
            sockets,
            predecessor,
            porch,
            gate,
        })
    }
}

fn bind_unix(path: &Path) -> io::Result<unix::net::UnixListener> {
    match unix::net::UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_deserted(path)? => {
            std::fs::remove_file(path)?;
            unix::net::UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Whether there is a socket at `path` at which no process listens.
fn is_deserted(path: &Path) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let socket = socket2::Socket::new(
        socket2::Domain::UNIX,
        socket2::Type::STREAM.nonblocking(),
        None,
    )?;
    let refused = socket
        .connect(&socket2::SockAddr::unix(path)?)
        .is_err_and(|error| is_refused(&error));
    Ok(refused)
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

// === impl Incumbent ===

impl Incumbent {
    /// How many processes have used these sockets.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The guarantee in force: [`HandoffMode::Descriptor`].
    #[must_use]
    pub const fn mode(&self) -> HandoffMode {
        HandoffMode::Descriptor
    }

    /// Passes the sockets to the next process, and [shuts `drain` down](Drain::shutdown) after the probation of that
    /// process. It serves until then, or until `drain` closes for another reason, and ends when the drain is over.
    ///
    /// If `drain` begins during the probation of this process, the predecessor takes the queue back.
    ///
    /// # Errors
    ///
    /// If the path cannot be bound. A failure of a successor is logged, and the next one may try.
    ///
    /// # Cancel safety
    ///
    /// After the future is dropped, no process can inherit any more.
    pub async fn serve(mut self, drain: Drain) -> io::Result<()> {
        // The predecessor must have stopped before this process may hand over.
        if let Some(predecessor) = self.predecessor.take() {
            if outlive(&predecessor, &drain).await == First::Us {
                drop(predecessor);
                self.close(&drain).await;
                return Ok(());
            }
            self.porch = Some(Porch::open(&self.handoff.path)?);
            let _ = predecessor.send(&Message::Ready, &[]).await;
            tokio::spawn(async move { farewell(predecessor).await });
        }
        let mut porch = match self.porch.take() {
            Some(porch) => porch,
            None => Porch::open(&self.handoff.path)?,
        };
        let successor = loop {
            let channel = select! {
                biased;
                () = drain.closing() => break None,
                channel = porch.answer() => channel,
            };
            let (handed, channel) = match channel {
                Ok(channel) => (self.hand_over(&channel, &porch, &drain).await, channel),
                Err(error) => {
                    tracing::warn!(%error, "handoff: connection rejected");
                    sleep(KNOCK).await;
                    continue;
                }
            };
            match handed {
                Ok(Handover::Succeeded) => break Some(channel),
                Ok(Handover::Abandoned) => break None,
                Ok(Handover::Failed) => {
                    tracing::warn!("handoff: the successor is gone, so we go on")
                }
                Err(error) => tracing::warn!(%error, "handoff: failed, so we go on"),
            }
            self.gate.send_replace(Gate::Open);
            porch = Porch::open(&self.handoff.path)?;
        };
        // A process that connects from now on reaches the successor, or is rejected until later.
        select! {
            () = self.leave(successor, &drain) => Ok(()),
            never = porch.turn_away() => match never {},
        }
    }

    /// Passes the sockets on and waits for the end of the successor's probation.
    async fn hand_over(
        &self,
        channel: &Channel,
        porch: &Porch,
        drain: &Drain,
    ) -> io::Result<Handover> {
        let accepts = select! {
            biased;
            () = drain.closing() => return Ok(Handover::Abandoned),
            ready = self.give(channel) => ready?,
            never = porch.turn_away() => match never {},
        };
        if !accepts {
            return Ok(Handover::Failed);
        }
        self.gate.send_replace(Gate::Parked);
        tracing::info!(probation = ?self.handoff.probation, "handoff: the successor accepts");
        select! {
            biased;
            // It sends nothing now; this is ready if it dies.
            _ = channel.receive() => Ok(Handover::Failed),
            // The probation is over early: this process drains in any case.
            () = drain.closing() => Ok(Handover::Succeeded),
            () = sleep(self.handoff.probation) => Ok(Handover::Succeeded),
            never = porch.turn_away() => match never {},
        }
    }

    /// Returns whether the successor became ready.
    async fn give(&self, channel: &Channel) -> io::Result<bool> {
        match channel.expect().await? {
            (
                Message::Hello {
                    version: VERSION,
                    pid,
                },
                _,
            ) => tracing::info!(pid, "handoff: a successor"),
            _ => return Err(io::Error::other("unexpected message from the successor")),
        }
        let mut rest = &self.sockets[..];
        loop {
            let (part, after) = rest.split_at(rest.len().min(MOST));
            let (sockets, fds): (Vec<_>, Vec<_>) = part
                .iter()
                .map(|(socket, fd)| (socket.clone(), fd.as_fd()))
                .unzip();
            let (generation, last) = (self.generation, after.is_empty());
            channel
                .send(
                    &Message::Listeners {
                        generation,
                        last,
                        sockets,
                    },
                    &fds,
                )
                .await?;
            if last {
                break;
            }
            rest = after;
        }
        // No timeout: it may load configuration and certificates, and connect to upstreams.
        Ok(matches!(
            channel.receive().await?,
            Some((Message::Ready, _))
        ))
    }

    /// Closes the copies of this process. Another process with copies continues to serve; without one, accepted
    /// connections are still drained.
    async fn leave(self, successor: Option<Channel>, drain: &Drain) {
        let Some(channel) = successor else {
            return self.close(drain).await;
        };
        drop(self.sockets);
        if channel.send(&Message::Draining, &[]).await.is_ok() {
            // It reports that it listens at the path. Until then this process must, or a third one would find the path free.
            let _ = channel.expect().await;
        }
        drain.shutdown();
        let report = drain.done().await;
        let count = |count: usize| count as u64;
        let (drained, forced, leaked) = (
            count(report.drained),
            count(report.forced),
            count(report.leaked),
        );
        let _ = channel
            .send(
                &Message::Done {
                    drained,
                    forced,
                    leaked,
                },
                &[],
            )
            .await;
    }

    /// As [`leave`](Self::leave), without a successor.
    async fn close(self, drain: &Drain) {
        drop(self.sockets);
        // `gate` is kept: open listeners must not see it closed.
        drain.done().await;
    }
}

/// Waits until the predecessor has begun to drain, or has died, or this process begins to drain.
async fn outlive(predecessor: &Channel, drain: &Drain) -> First {
    select! {
        biased;
        received = predecessor.receive() => match received {
            Ok(Some((Message::Draining, _))) => tracing::info!("handoff: proved"),
            Ok(_) | Err(_) => tracing::info!("handoff: the process before is gone"),
        },
        () = drain.announcing() => {
            tracing::info!("handoff: given back");
            return First::Us;
        }
    }
    First::Predecessor
}

/// Logs the report of the predecessor, and keeps the channel open until then.
async fn farewell(predecessor: Channel) {
    if let Ok(Some((
        Message::Done {
            drained,
            forced,
            leaked,
        },
        _,
    ))) = predecessor.receive().await
    {
        tracing::info!(
            drained,
            forced,
            leaked,
            "handoff: the process before is done"
        );
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bound => "bound",
            Self::Environment => "environment",
            Self::Predecessor => "predecessor",
        })
    }
}

/// For the fuzzer only.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}

const PROBATION: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    /// As if systemd had passed a listener at each of `addrs`, all named `name`.
    fn activated(name: &str, addrs: &[&str]) -> (Vec<SocketAddr>, Inheritance) {
        let listeners = addrs
            .iter()
            .map(|addr| std::net::TcpListener::bind(addr).unwrap());
        let (addrs, given) = listeners
            .map(|listener| {
                (
                    listener.local_addr().unwrap(),
                    named(name, listener.into()).unwrap(),
                )
            })
            .unzip();
        let handoff = Handoff::at("/nowhere");
        (
            addrs,
            Inheritance::new(handoff, Origin::Environment, 0, given, None),
        )
    }

    fn port(listener: &HandoffListener<TcpListener>) -> u16 {
        use crate::Listen;
        listener.local_addr().unwrap().ip().unwrap().port()
    }

    #[tokio::test]
    async fn a_socket_under_its_units_name_is_taken_by_its_address() {
        let (addrs, mut inheritance) = activated("app.socket", &["127.0.0.1:0", "127.0.0.1:0"]);
        for addr in addrs.iter().rev() {
            let listener = inheritance
                .tcp("http", *addr, &ListenerConfig::new())
                .unwrap();
            assert_eq!(port(&listener), addr.port());
        }
        assert!(inheritance.given.is_empty());
    }

    #[tokio::test]
    async fn of_several_sockets_of_one_name_each_listener_gets_the_one_at_its_address() {
        let (addrs, mut inheritance) = activated("http", &["127.0.0.1:0", "127.0.0.1:0"]);
        for addr in addrs.iter().rev() {
            let listener = inheritance
                .tcp("http", *addr, &ListenerConfig::new())
                .unwrap();
            assert_eq!(port(&listener), addr.port());
        }
    }

    #[tokio::test]
    async fn a_name_is_enough_wherever_the_socket_is_and_a_port_of_zero_wants_one() {
        let any = "127.0.0.1:0".parse().unwrap();
        let (addrs, mut inheritance) = activated("http", &["127.0.0.1:0"]);
        let other = inheritance
            .tcp("admin", any, &ListenerConfig::new())
            .unwrap();
        assert_ne!(port(&other), addrs[0].port());
        let elsewhere = "127.0.0.2:80".parse().unwrap();
        let listener = inheritance
            .tcp("http", elsewhere, &ListenerConfig::new())
            .unwrap();
        assert_eq!(port(&listener), addrs[0].port());
    }

    #[tokio::test]
    async fn a_dual_stack_socket_is_at_the_ipv4_wildcard_too() {
        let Ok(socket) = std::net::TcpListener::bind("[::]:0") else {
            return; // no IPv6 here
        };
        let port = socket.local_addr().unwrap().port();
        let fd = OwnedFd::from(socket);
        assert!(is_at(&fd, ([0, 0, 0, 0], port).into()));
        assert!(!is_at(&fd, ([127, 0, 0, 1], port).into()));
        assert!(!is_at(&fd, ([0, 0, 0, 0], port ^ 1).into()));
    }

    #[tokio::test]
    async fn errors_name_what_was_inherited_and_not_taken() {
        let (addrs, mut inheritance) = activated("app.socket", &["127.0.0.1:0"]);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().map(|addr| (taken, addr)).unwrap();
        let error = inheritance
            .tcp("http", taken.1, &ListenerConfig::new())
            .unwrap_err();
        let left = format!("app.socket ({})", addrs[0]);
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&left), "{error}");
        let error = inheritance.ready().await.unwrap_err();
        assert!(error.to_string().contains(&left), "{error}");
    }
}
