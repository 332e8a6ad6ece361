//! A cache for a resolver: repeated queries are cheap, and trouble of the source removes nothing.

mod entry;
mod flight;
mod questions;
mod updates;

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use self::updates::CachedUpdates;
use self::{entry::Limits, flight::Name};
use crate::{Cause, Generation, Resolve, Topology, backoff::FOR_EVER};

/// Caches the answers of a resolver for each name.
///
/// A handle: clones share all state. Followers of one name share one subscription to the source ("single flight"). It is
/// renewed when the last sign of life is older than the [`ttl`](Self::ttl), while there are followers.
///
/// - **It never goes back.** An older generation of the same source is ignored; a newer one is used at once. After three
///   consecutive queries that are answered with an older one, the source is degraded. After twenty of them, over at least
///   half a minute, it is treated as restored: its answers are taken as those of a new source, under a new
///   [`SourceId`](crate::SourceId). (A replica that lags behind catches up long before.)
/// - **It keeps the last good set** while the source is degraded, for ever or for [`max_stale`](Self::max_stale). An answer
///   right after trouble that empties the set, or removes more than [`max_loss`](Self::max_loss) of it, is applied when it
///   is confirmed. A source that hangs, ends or panics is degraded, too.
/// - **It waits for a slow source.** A query that is not answered within 10 s is repeated, then after 20, 40 and each 60 s,
///   and the first one stays open until a later one is answered. After a slow answer the next query waits for twice that
///   time. So there are at most three subscriptions to a source for one name, and usually one.
/// - **The data path can invalidate it.** When a peer answers "fenced" or shows a newer generation,
///   [`invalidate_older_than`](Self::invalidate_older_than) starts a query at once.
///
/// Each followed name has one task on the runtime of the first follower. It ends with the last follower; the known set stays
/// until its entry is evicted for another name. If that runtime ends before, the task is started again on the runtime where
/// another follower is polled.
///
/// # Panics
///
/// `resolve` panics outside of a Tokio runtime with timers.
pub struct CachedResolver<R> {
    resolver: Arc<R>,
    limits: Limits,
    max_names: NonZeroUsize,
    names: Arc<Mutex<Names>>,
    clock: Arc<AtomicU64>,
}

type Names = HashMap<Arc<str>, Arc<Name>>;

/// The cached state of a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cached {
    /// The last good set.
    pub topology: Topology,
    /// The time since the last sign of life of the source.
    pub age: Duration,
    /// Why the source is degraded; `None` while it is not.
    pub degraded: Option<Cause>,
}

// === impl CachedResolver ===

impl<R: Resolve> CachedResolver<R> {
    /// Caches the answers of `resolver`, with the defaults.
    pub fn new(resolver: R) -> Self {
        Self {
            resolver: Arc::new(resolver),
            limits: Limits {
                ttl: Duration::from_secs(5),
                negative: Duration::from_secs(1),
                max_stale: None,
                max_loss: 50,
            },
            max_names: const { NonZeroUsize::new(1024).unwrap() },
            names: Arc::default(),
            clock: Arc::default(),
        }
    }

    /// How long the last answer of the source (a snapshot, a delta, a sign of progress) is valid before the source is
    /// queried again. Default: 5 s. The query starts after four fifths of that, plus or minus a tenth, so that the answer
    /// arrives in time and many clients do not query in step. At least 10 ms. Set it before the first name is followed: it
    /// has no effect on names that are followed already.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.limits.ttl = ttl.clamp(LEAST, FOR_EVER);
        self
    }

    /// How long a "does not exist", or a failure, is valid before the source is queried again. Default: 1 s: short enough
    /// for callers that wait for a name to appear, long enough for the source. At least 10 ms.
    #[must_use]
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.limits.negative = ttl.clamp(LEAST, FOR_EVER);
        self
    }

    /// How long the last good set may be used without a sign of life from its source; after that followers get an empty one.
    /// An answer of an older generation is not applied, but is a sign of life. Default: for ever, because an old set serves
    /// better than none, and removed endpoints are recognized by not being ready.
    #[must_use]
    pub fn max_stale(mut self, stale: Duration) -> Self {
        self.limits.max_stale = Some(stale.min(FOR_EVER));
        self
    }

    /// How much of a set, in percent, may be removed at once by the first good answer of a source that was degraded.
    /// Default: 50. A larger loss, and an emptied set in any case, is held back until the next good answer of the source,
    /// about a [`negative_ttl`](Self::negative_ttl) later. Only the size counts: the same number of different endpoints is
    /// no loss. A registry that was just restarted, or a replica of it that has not caught up, often has an incomplete set.
    /// The answer of a source that was not degraded is applied at once.
    #[must_use]
    pub fn max_loss(mut self, percent: u8) -> Self {
        self.limits.max_loss = percent;
        self
    }

    /// The number of cached names. Default: 1 024. The least recently used name without followers is evicted; if all have
    /// followers, further names go to the source directly, without a cache.
    #[must_use]
    pub fn max_names(mut self, names: NonZeroUsize) -> Self {
        self.max_names = names;
        self
    }

    /// The cached state of a name, without a query; `None` before the first answer, and past [`max_stale`](Self::max_stale).
    #[must_use]
    pub fn peek(&self, name: &str) -> Option<Cached> {
        let name = self.names().get(name).cloned()?;
        name.peek(&self.limits, Instant::now())
    }

    /// Queries `name` again if the known set is older than `generation` (of the same source), at once, but at most every 100
    /// ms, and half as often after each answer that is still older. The known set stays in use until a newer answer arrives.
    /// Returns whether it was older.
    ///
    /// For the data path: call it when a peer answers "fenced", or shows a newer generation. Each call costs a short lock;
    /// any number of calls starts one query.
    /// it costs a short lock each, and one question.
    pub fn invalidate_older_than(&self, name: &str, generation: Generation) -> bool {
        let name = self.names().get(name).cloned();
        name.is_some_and(|name| name.invalidate(generation))
    }

    /// The entry of `name`, evicting another one if necessary; `None` if all have followers.
    fn place(&self, names: &mut Names, text: &str) -> Option<Arc<Name>> {
        let used = self.clock.fetch_add(1, Relaxed);
        if let Some(name) = names.get(text) {
            name.used.store(used, Relaxed);
            return Some(name.clone());
        }
        if names.len() >= self.max_names.get() {
            let idle = names.iter().filter(|(_, name)| name.is_idle());
            let oldest = idle
                .min_by_key(|(_, name)| name.used.load(Relaxed))
                .map(|(text, _)| text.clone())?;
            names.remove(&oldest);
        }
        let name = Arc::new(Name::new(text.into(), used));
        names.insert(name.text.clone(), name.clone());
        Some(name)
    }
}

impl<R> CachedResolver<R> {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Resolve> Resolve for CachedResolver<R> {
    type Updates = CachedUpdates<R::Updates>;

    fn resolve(&self, name: &str) -> Self::Updates {
        let mut names = self.names();
        match self.place(&mut names, name) {
            // Still under the lock, so that a name is not evicted between being found and being followed.
            Some(name) => {
                let (told, flight) = flight::follow(&name, &self.resolver, self.limits);
                CachedUpdates::shared(told, flight)
            }
            None => {
                drop(names);
                CachedUpdates::direct(self.resolver.resolve(name))
            }
        }
    }
}

impl<R> Clone for CachedResolver<R> {
    fn clone(&self) -> Self {
        Self {
            resolver: self.resolver.clone(),
            limits: self.limits,
            max_names: self.max_names,
            names: self.names.clone(),
            clock: self.clock.clone(),
        }
    }
}

impl<R> fmt::Debug for CachedResolver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedResolver")
            .field("limits", &self.limits)
            .field("names", &self.names().len())
            .finish_non_exhaustive()
    }
}

/// A source that answers at once would otherwise be queried in a busy loop.
const LEAST: Duration = Duration::from_millis(10);
