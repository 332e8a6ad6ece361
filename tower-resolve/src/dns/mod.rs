//! Endpoints from DNS.

mod answer;
mod ask;
mod error;
mod memory;
mod target;

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::{Stream, stream::BoxStream};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep_until};

pub use self::error::DnsError;
use self::{
    answer::Ttl,
    ask::Asker,
    memory::{Known, Memories, Place},
    target::Target,
};
use crate::{Generation, Resolve, Topology, Update, backoff::FOR_EVER};

/// Resolves names by DNS, and queries them again when their time to live ends.
///
/// | name | queries | endpoints |
/// |---|---|---|
/// | `echo.example:8080` | A and AAAA | each address, at that port |
/// | `_echo._tcp.example` | SRV, then A and AAAA of each target | each address of each target, at its port, with its priority and weight (0 counts as 1; each address of a target has the target's) |
/// | `192.0.2.1:80`, `[2001:db8::1]:80` | nothing | that one |
///
/// The id of an endpoint is its address, and one from SRV has its `target` in the metadata. Names without a final dot use
/// the search list of the system.
///
/// - **A definite answer is applied**: a name that does not exist is [`Update::DoesNotExist`], a name without addresses (or
///   an SRV target of `.`, RFC 2782) is an empty set.
/// - **An error removes nothing**: a timeout, `SERVFAIL` and the like are [`Update::Degraded`] with a [`DnsError`], and are
///   tried again after 1 s, doubling to 30 s. If only a part fails (AAAA but not A, one SRV target of several) the last
///   addresses of that part stay.
/// - **The time to live is respected**, between [`min_ttl`](Self::min_ttl) and [`max_ttl`](Self::max_ttl), for all followers
///   of the name; meanwhile followers get the last answer. The generation counts changes of the set, independent of the
///   order of the records.
///
/// ```no_run
/// use tower_resolve::{CachedResolver, DnsResolver, Resolve};
///
/// # fn main() -> Result<(), tower_resolve::DnsError> {
/// let names = CachedResolver::new(DnsResolver::system()?);
/// let hosts = names.resolve("echo.example:8080");
/// let services = names.resolve("_echo._tcp.example");
/// # Ok(())
/// # }
/// ```
///
/// It costs two queries for each time to live of a followed name (for SRV: one, and two for each target; 16 at a time), no
/// task besides that of the client, and the memory of the last answer for 1 024 names. `/etc/resolv.conf` and `/etc/hosts`
/// are read once, when it is created.
///
/// # Panics
///
/// The updates panic when they are polled outside of a Tokio runtime.
#[derive(Clone)]
pub struct DnsResolver {
    asker: Arc<Asker>,
    memories: Arc<Memories>,
    ttl: Ttl,
}

/// The updates of one name in a [`DnsResolver`].
pub struct DnsUpdates(BoxStream<'static, Update>);

/// The state that one follower has seen.
struct Follower {
    resolver: DnsResolver,
    target: Target,
    place: Place,
    known: Option<Topology>,
    again_at: Option<Instant>,
    queue: VecDeque<Update>,
}

// === impl DnsResolver ===

impl DnsResolver {
    /// Queries the servers in the configuration of the system.
    ///
    /// # Errors
    ///
    /// The system's configuration cannot be read.
    pub fn system() -> Result<Self, DnsError> {
        Asker::system().map(Self::new)
    }

    /// Queries these servers, over UDP and TCP, without a search list or `/etc/hosts`.
    ///
    /// # Errors
    ///
    /// If the list of servers is empty.
    pub fn servers(servers: impl IntoIterator<Item = SocketAddr>) -> Result<Self, DnsError> {
        Asker::servers(servers.into_iter().collect()).map(Self::new)
    }

    fn new(asker: Asker) -> Self {
        Self {
            asker: Arc::new(asker),
            memories: Arc::default(),
            ttl: Ttl::DEFAULT,
        }
    }

    /// The minimum time that an answer is valid, for any time to live. Default: 1 s, so that records with a time to live of
    /// 0 are not queried in a busy loop.
    #[must_use]
    pub fn min_ttl(mut self, ttl: Duration) -> Self {
        self.ttl.min = ttl.clamp(Duration::from_millis(10), FOR_EVER);
        self
    }

    /// The maximum time that an answer is valid; not less than the minimum. Default: 60 s, so that a change is seen in time
    /// even if a record was published with a time to live of a day by mistake.
    #[must_use]
    pub fn max_ttl(mut self, ttl: Duration) -> Self {
        self.ttl.max = ttl.min(FOR_EVER);
        self
    }

    /// Does not query AAAA. Default: queries both, because an address that cannot be reached from here costs a pick nothing.
    #[must_use]
    pub fn ipv4_only(mut self) -> Self {
        self.asker = Arc::new(self.asker.ipv4_only());
        self
    }
}

impl Resolve for DnsResolver {
    type Updates = DnsUpdates;

    fn resolve(&self, name: &str) -> DnsUpdates {
        let target = match Target::parse(name) {
            Ok(target) => target,
            Err(error) => {
                return DnsUpdates(
                    stream::iter([Update::degraded(error)])
                        .chain(stream::pending())
                        .boxed(),
                );
            }
        };
        let follower = Follower {
            resolver: self.clone(),
            target,
            place: self.memories.place(name, Instant::now()),
            known: None,
            again_at: None,
            queue: VecDeque::new(),
        };
        DnsUpdates(
            stream::unfold(follower, |follower| async { Some(follower.next().await) }).boxed(),
        )
    }
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsResolver")
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

// === impl DnsUpdates ===

impl Stream for DnsUpdates {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for DnsUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsUpdates").finish_non_exhaustive()
    }
}

// === impl Follower ===

impl Follower {
    async fn next(mut self) -> (Update, Self) {
        loop {
            if let Some(update) = self.queue.pop_front() {
                return (update, self);
            }
            if let Some(at) = self.again_at {
                sleep_until(at).await;
            }
            self.ask().await;
        }
    }

    /// Queries, unless the answer for another follower is still valid. Concurrent followers wait for the same answer.
    ///
    /// Cancel safety: a dropped query is started again by the next one.
    async fn ask(&mut self) {
        let mut memory = self.place.lock().await;
        if !memory.counts_at(Instant::now()) {
            let found = self.resolver.asker.ask(&self.target).await;
            let next = || self.resolver.memories.next();
            memory.learn(&self.target, found, self.resolver.ttl, next, Instant::now());
        }
        self.again_at = Some(memory.again_at());
        let update = match memory.known() {
            Known::Trouble(cause) => Update::Degraded(cause.clone()),
            Known::Answer {
                generation,
                endpoints: Some(endpoints),
            } => told(
                &mut self.known,
                Topology::new(*generation, endpoints.iter().cloned()),
            ),
            Known::Answer {
                generation,
                endpoints: None,
            } => told(&mut self.known, Topology::missing(*generation)),
        };
        self.queue.push_back(update);
    }
}

fn told(known: &mut Option<Topology>, next: Topology) -> Update {
    let generation: Generation = next.generation();
    if known
        .as_ref()
        .is_some_and(|known| known.has_same_endpoints(&next))
    {
        return Update::Progress(generation);
    }
    *known = Some(next.clone());
    if next.exists() {
        Update::Snapshot(next)
    } else {
        Update::DoesNotExist(generation)
    }
}
