//! A new process in place of the old one, and nobody notices (Linux).
//!
//! There is one listening socket per address, and it outlives every process: closing the last copy of it would reset all
//! who wait in its queue. The old process gives it to the new one over a Unix socket.
//!
//! ```text
//!        new                                   old
//!         │  hello                              │ serving
//!         ├────────────────────────────────────►│
//!         │                  the sockets        │
//!         │◄────────────────────────────────────┤ serving
//!         │ (warms up, then accepts)            │
//!         │  ready                              │
//!         ├────────────────────────────────────►│ accepts nobody: probation, 10 s
//!         │                                     │    the new one dies ─► accepts again, nothing was lost
//!         │                  draining           │
//!         │◄────────────────────────────────────┤
//!         │  ready (at the path now)            │
//!         ├────────────────────────────────────►│ closing: its connections end in good order
//!         │                  done               │
//!         │◄────────────────────────────────────┤
//! ```
//!
//! A new process that dies before it is ready has changed nothing. One that dies in its probation, or begins to leave in
//! it, gives the queue back, so a release that crashes or is rolled back at once is harmless. The drain of the old one
//! begins only after that, because a drain never goes back: until then its connections are served as ever. A third
//! process that comes meanwhile is told that it is too early ([`ResourceBusy`](io::ErrorKind::ResourceBusy)). A new process
//! may warm up for as long as it needs; one that hangs there keeps others out until it is ended, or the old one leaves.
//!
//! ```no_run
//! # #[cfg(feature = "http")]
//! # async fn run(app: axum::Router) -> std::io::Result<()> {
//! use tower_drain::{Drain, ListenerConfig, Server, handoff::Handoff};
//!
//! let drain = Drain::new();
//! // 1. What is there already: `LISTEN_FDS`, the old process, or nothing.
//! let mut inheritance = Handoff::at("/run/app/handoff").inherit().await?;
//! let listener = inheritance.tcp("http", "0.0.0.0:8080".parse().unwrap(), &ListenerConfig::new())?;
//! // 2. Whatever is slow: configuration, certificates, upstreams. The old process still serves.
//! let server = tokio::spawn(Server::new(&drain, listener).serve(app));
//! // 3. From now on this process accepts, and once it has proved itself the next one finds it.
//! let incumbent = inheritance.ready().await?;
//! tokio::spawn(incumbent.serve(drain.clone()));
//! println!("{}", server.await.unwrap()?);
//! # Ok(()) }
//! ```
//!
//! The path should be in a directory that only its user may enter: the socket itself is `0600`, and both sides check
//! that the other one runs as the same user, or as root. Processes in different network or mount namespaces cannot meet
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

/// The place where the next process finds this one.
#[derive(Clone, Debug)]
#[must_use = "inherit from whoever is there"]
pub struct Handoff {
    path: PathBuf,
    probation: Duration,
}

/// What a process starts with: the sockets of the one before, or none.
#[derive(Debug)]
#[must_use = "take the listeners, and say when you are ready"]
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

/// Where listening sockets came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// There were none: they are bound.
    Bound,
    /// From the environment: `LISTEN_FDS` and `LISTEN_FDNAMES`.
    Environment,
    /// From the old process.
    Predecessor,
}

/// The process that serves, until the next one has proved itself. Made by [`Inheritance::ready`].
#[derive(Debug)]
#[must_use = "serve, or nobody can inherit"]
pub struct Incumbent {
    handoff: Handoff,
    generation: u64,
    sockets: Vec<(Socket, OwnedFd)>,
    predecessor: Option<Channel>,
    /// Open already, if nobody is there who must leave first.
    porch: Option<Porch>,
    gate: watch::Sender<Gate>,
}

/// How a handoff went, seen from the old process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handover {
    /// The other one did not get ready, or left in its probation.
    Failed,
    Succeeded,
    /// We had to leave before the other one was ready. It has the sockets all the same.
    Abandoned,
}

/// Who left first, seen from the new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Predecessor,
    Us,
}

// === impl Handoff ===

impl Handoff {
    /// At this path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            probation: PROBATION,
        }
    }

    /// How long a successor must live before this process begins to leave. Default: 10 s.
    pub fn probation(self, probation: Duration) -> Self {
        Self {
            probation: bounded(probation),
            ..self
        }
    }

    /// Takes what is there: first from the environment, then from the process at the path.
    ///
    /// # Errors
    ///
    /// Those of the system; that the process at the path runs as another user, or does not speak this language; and
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if it is leaving, or has a successor already: try again later. Nobody
    /// at the path is no error.
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

/// Asks for the sockets.
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
            _ => return Err(io::Error::other("the process before says something else")),
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

/// Whether it is what its name says.
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

/// The sockets that systemd, or whoever started us, has left open.
fn from_environment() -> Vec<(Socket, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    if number("LISTEN_PID") != Some(std::process::id() as usize) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    let fds = crate::raw::take_listen_fds(number("LISTEN_FDS").unwrap_or(0));
    // A number that is no descriptor still has its name.
    names
        .zip(fds)
        .filter_map(|(name, fd)| named(name, fd?))
        .collect()
}

/// What the environment left open under `name`, if it is a listening socket.
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

    /// Where the sockets came from.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// The TCP listener `name` at `addr`: the one that was inherited, or a new one.
    ///
    /// From an old process, name and address must be the same. From the environment, the name is enough, and so is the
    /// address: by default systemd gives its sockets the name of their unit (`app.socket`), unless the unit has a
    /// `FileDescriptorName=`. A port of `0` is inherited by name only. It accepts nobody until [`ready`](Self::ready).
    ///
    /// # Errors
    ///
    /// Those of the system when it must be bound, with what was inherited and not taken so far; and that name or address
    /// is longer than 400 bytes.
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
        // Those of systemd usually are blocking.
        listener.set_nonblocking(true)?;
        self.keep(
            Kind::Tcp,
            name,
            addr.to_string(),
            listener.as_fd().try_clone_to_owned()?,
        )?;
        Ok(HandoffListener::new(listener, self.gate.subscribe()))
    }

    /// The Unix listener `name` at `path`: the one that was inherited, by the rules of [`tcp`](Self::tcp), or a new one.
    /// A socket that is there is replaced if nobody listens to it any more.
    ///
    /// # Errors
    ///
    /// As [`tcp`](Self::tcp). Something else at the path, or a socket that is listened to, is in use.
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

    /// `by_name`: the address says nothing.
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
            // Several may have one name: all sockets of a systemd unit do.
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

    /// This process accepts from now on, and the one before stops; if there was none, the next one finds this one from
    /// now on. Should that one be gone by now, nothing is lost: its
    /// queues are here.
    ///
    /// # Errors
    ///
    /// When sockets were inherited that nobody has taken: closing them would lose who waits in their queues. Then the
    /// listeners of this process end with an error, nobody was let in, and the old process serves on. And when there was
    /// no process before and the path cannot be bound.
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

/// Whether a socket is at `path` that nobody listens to.
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
    /// How many processes have had these sockets.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Which guarantee is in force: [`HandoffMode::Descriptor`].
    #[must_use]
    pub const fn mode(&self) -> HandoffMode {
        HandoffMode::Descriptor
    }

    /// Gives the sockets to the next process, and when that one has proved itself [shuts `drain` down](Drain::shutdown);
    /// until then, or until `drain` closes for another reason. It ends when the drain is done.
    ///
    /// If `drain` begins to leave while this process is in its own probation, the one before takes the queue back.
    ///
    /// # Errors
    ///
    /// When the path cannot be bound. What goes wrong with a successor is logged, and the next one may try.
    ///
    /// # Cancel safety
    ///
    /// Dropping it means that nobody can inherit any more.
    pub async fn serve(mut self, drain: Drain) -> io::Result<()> {
        // The one before must be told to be gone before this one may go.
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
                    tracing::warn!(%error, "handoff: somebody knocked");
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
        // Whoever knocks from now on finds the successor, or is told to come later.
        select! {
            () = self.leave(successor, &drain) => Ok(()),
            never = porch.turn_away() => match never {},
        }
    }

    /// Gives the sockets away and waits until the other one has proved itself.
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
            // It says nothing now, unless it dies.
            _ = channel.receive() => Ok(Handover::Failed),
            // It need not prove itself any longer: we leave in any case.
            () = drain.closing() => Ok(Handover::Succeeded),
            () = sleep(self.handoff.probation) => Ok(Handover::Succeeded),
            never = porch.turn_away() => match never {},
        }
    }

    /// Tells whether the other one got ready.
    async fn give(&self, channel: &Channel) -> io::Result<bool> {
        match channel.expect().await? {
            (
                Message::Hello {
                    version: VERSION,
                    pid,
                },
                _,
            ) => tracing::info!(pid, "handoff: a successor"),
            _ => return Err(io::Error::other("it says something else")),
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
        // It may take its time: configuration, certificates, upstreams.
        Ok(matches!(
            channel.receive().await?,
            Some((Message::Ready, _))
        ))
    }

    /// Closes our copies. Whoever has others serves on; whoever has not, loses nobody who was let in.
    async fn leave(self, successor: Option<Channel>, drain: &Drain) {
        let Some(channel) = successor else {
            return self.close(drain).await;
        };
        drop(self.sockets);
        if channel.send(&Message::Draining, &[]).await.is_ok() {
            // It says that it is at the path. Until then somebody must be there, or a third one would take it for empty.
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

    /// As [`leave`](Self::leave), with nobody to tell.
    async fn close(self, drain: &Drain) {
        drop(self.sockets);
        // `gate` is kept: listeners that are open have nothing to wait for.
        drain.done().await;
    }
}

/// Waits until the one before has begun to leave, or is gone, or we leave ourselves.
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

/// Tells how the one before fared, and keeps the channel open for that long.
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

/// For the fuzzer alone.
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

    /// As if systemd had left open a listener at each of `addrs`, all under `name`.
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
