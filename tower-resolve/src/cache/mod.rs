//! Remembers what a resolver said, so that asking again is cheap and a source in trouble takes nothing away.

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

/// Remembers what a resolver said of each name.
///
/// A handle: clones share everything. Followers of one name share one question to the source ("single flight"), asked
/// again when its last sign of life is older than the [`ttl`](Self::ttl), while somebody follows.
///
/// - **It never goes back.** An older generation of the same source is refused; a newer one counts at once. Three
///   questions in a row that are answered with an older one are trouble. After twenty of them, over at least half a
///   minute, the source is taken for one that was restored and counts from one again: what it says is taken as that of a
///   new source, under a [`SourceId`](crate::SourceId) of its own. (A replica that lags behind catches up long before.)
/// - **It keeps the last good set** while the source is in trouble, for ever or for [`max_stale`](Self::max_stale). An
///   answer right after trouble that empties the set, or takes more than [`max_loss`](Self::max_loss) of it, is believed
///   when it is confirmed. A source that hangs, ends or panics is in trouble like one that says so.
/// - **It waits for a slow source.** A question that is not answered within 10 s is asked anew, then after 20, 40 and each
///   60 s, and the first one stays open until a later one is answered. A source that took long is given twice that time
///   from then on. So there are at most three subscriptions to a source for one name, and usually one.
/// - **It listens to the data path.** When a peer says "fenced" or shows a newer generation,
///   [`invalidate_older_than`](Self::invalidate_older_than) makes it ask at once.
///
/// Each followed name has one task on the runtime of the first follower. It ends with the last follower; what is known
/// stays, until its place is needed for another name. When that runtime ends before, the task is started anew on the
/// runtime where one of the other followers is polled.
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

/// What a [`CachedResolver`] knows of a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cached {
    /// The last good set.
    pub topology: Topology,
    /// How long ago the source gave its last sign of life.
    pub age: Duration,
    /// Why the source cannot be asked now; `None` while it is well.
    pub degraded: Option<Cause>,
}

// === impl CachedResolver ===

impl<R: Resolve> CachedResolver<R> {
    /// Remembers what `resolver` says, with the defaults.
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

    /// How long the source's last word (a snapshot, a delta, a sign of progress) counts before it is asked again.
    /// Default: 5 s. The question goes out when four fifths of that are over, give or take a tenth, so that the answer is
    /// there in time and many clients do not ask in step. At least 10 ms. Set it before the first name is followed: it is
    /// not told to names that are.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.limits.ttl = ttl.clamp(LEAST, FOR_EVER);
        self
    }

    /// How long a "does not exist", or a failure, counts before the source is asked again. Default: 1 s: soon enough for
    /// whoever waits for a name to appear, seldom enough for the source. At least 10 ms.
    #[must_use]
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.limits.negative = ttl.clamp(LEAST, FOR_EVER);
        self
    }

    /// How long the last good set may be used without a sign of life from its source; then followers are told an empty
    /// one. An answer of an older generation is not taken, but a sign of life. Default: for ever, because a set of yesterday serves better than none, and endpoints that are gone show
    /// themselves by not being ready.
    #[must_use]
    pub fn max_stale(mut self, stale: Duration) -> Self {
        self.limits.max_stale = Some(stale.min(FOR_EVER));
        self
    }

    /// How much of a set, in percent, may go at once in the first good word of a source that was in trouble. Default: 50.
    /// A greater loss, and an emptied set in any case, is held back until the source's next good word, about a
    /// [`negative_ttl`](Self::negative_ttl) later. It is the size that counts: as many others are no loss. A registry that was just restarted, or a replica of it that has not
    /// caught up, often knows fewer than there are. A source that is well is believed at once.
    #[must_use]
    pub fn max_loss(mut self, percent: u8) -> Self {
        self.limits.max_loss = percent;
        self
    }

    /// How many names are remembered. Default: 1 024. The one that nobody follows and that was asked for longest ago
    /// gives way; while all are followed, further names go to the source directly, without a memory.
    #[must_use]
    pub fn max_names(mut self, names: NonZeroUsize) -> Self {
        self.max_names = names;
        self
    }

    /// What is known of a name, without asking anybody; `None` before the first answer, and past
    /// [`max_stale`](Self::max_stale).
    #[must_use]
    pub fn peek(&self, name: &str) -> Option<Cached> {
        let name = self.names().get(name).cloned()?;
        name.peek(&self.limits, Instant::now())
    }

    /// Asks for `name` again if what is known of it is older than `generation` (of the same source), at once, but at
    /// most every 100 ms, and half as often after each answer that is still older. What is known stays in use until a
    /// newer answer comes. Returns whether it was older.
    ///
    /// For the data path: a peer that answers "fenced", or that shows a newer generation, knows better. However many say so,
    /// it costs a short lock each, and one question.
    pub fn invalidate_older_than(&self, name: &str, generation: Generation) -> bool {
        let name = self.names().get(name).cloned();
        name.is_some_and(|name| name.invalidate(generation))
    }

    /// The place of `name`, with room made for it; `None` if all are followed.
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
            // Still under the lock, so that a name is not given up between being found and being followed.
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

/// A source that answers at once would otherwise be asked in a loop that never rests.
const LEAST: Duration = Duration::from_millis(10);
