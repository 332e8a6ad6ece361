use std::{
    fmt,
    num::{NonZeroU64, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    HighWaterMark, StaleToken,
    cached_high_water::Comparison,
    error::Reason,
    table::{Entry, Table},
};
use crate::{FencingToken, LeaseKey, token};

/// Admits requests with the highest fencing token seen, and rejects lower ones. Cheap to clone.
///
/// It remembers what its [`HighWaterMark`] answered, so a token that it knows costs no question. Fences over clones of one mark
/// share that memory. Several processes before one resource each have one, and so have marks that were made separately:
/// one that has not seen the new token yet still lets the old one pass. Where that matters the resource behind them must
/// make the check.
pub struct Fence<M> {
    shared: Arc<Shared<M>>,
}

/// The settings of a [`Fence`]. Made by [`Fence::of_key`] and [`Fence::of_prefix`].
#[derive(Clone, Debug)]
#[must_use]
pub struct FenceBuilder<M> {
    mark: M,
    scope: Scope,
    capacity: NonZeroUsize,
    raise_within: Duration,
}

/// In the extensions of an admitted request: the token with which it passed.
#[derive(Clone, Debug)]
pub struct FencePass {
    entry: Arc<Entry>,
    epoch: NonZeroU64,
}

/// Counts of tokens at a [`Fence`]. From [`Fence::counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FenceCounts {
    /// Refused: older than the highest, or of a key that is not held.
    pub stale: u64,
    /// Refused: missing, malformed, or of another key.
    pub bad: u64,
    /// Refused: the mark did not answer, or did not know such a token.
    pub unknown: u64,
    /// Questions to the mark.
    pub asked: u64,
    /// Keys that are remembered.
    pub keys: usize,
}

struct Shared<M> {
    mark: M,
    scope: Scope,
    raise_within: Duration,
    table: Table,
    counters: Counters,
    /// The mark failed when it was asked last.
    is_failing: AtomicBool,
}

/// Whose tokens count here: a token of some other lease is no right to this resource.
#[derive(Clone, Debug)]
enum Scope {
    Key(LeaseKey),
    Prefix(Arc<str>),
}

#[derive(Debug, Default)]
struct Counters {
    stale: AtomicU64,
    bad: AtomicU64,
    unknown: AtomicU64,
    asked: AtomicU64,
}

/// The result of a check without the mark.
pub(super) enum Check {
    Passed(FencePass),
    Refused(StaleToken),
    Ask(FencingToken),
}

const CAPACITY: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();
const RAISE_WITHIN: Duration = Duration::from_secs(1);

// === impl Fence ===

impl<M: HighWaterMark> Fence<M> {
    /// A fence around a resource that one lease guards.
    pub fn of_key(key: LeaseKey, mark: M) -> FenceBuilder<M> {
        FenceBuilder::new(Scope::Key(key), mark)
    }

    /// A fence around a resource of many parts, each with a separate lease whose key starts with `prefix`.
    ///
    /// It does not know which part a request is about: that the token is of *its* key is for the service to compare,
    /// with the [`FencePass`] that it finds in the request's extensions.
    pub fn of_prefix(prefix: &str, mark: M) -> FenceBuilder<M> {
        FenceBuilder::new(Scope::Prefix(prefix.into()), mark)
    }

    /// Checks `token`, for protocols other than HTTP. For a token that is new it asks the mark, and
    /// takes at most [`raise_within`](FenceBuilder::raise_within).
    ///
    /// # Errors
    ///
    /// The token is not the current one, or not known to be.
    ///
    /// # Cancel safety
    ///
    /// The floor may have been raised or not.
    pub async fn admit(&self, token: &FencingToken) -> Result<FencePass, StaleToken> {
        match self.check(token.key().as_str(), token.epoch()) {
            Check::Passed(pass) => Ok(pass),
            Check::Refused(refused) => Err(refused),
            Check::Ask(token) => self.ask(&token).await,
        }
    }

    /// Counts of checks and rejections.
    #[must_use]
    pub fn counts(&self) -> FenceCounts {
        let Counters {
            stale,
            bad,
            unknown,
            asked,
        } = &self.shared.counters;
        FenceCounts {
            stale: stale.load(Relaxed),
            bad: bad.load(Relaxed),
            unknown: unknown.load(Relaxed),
            asked: asked.load(Relaxed),
            keys: self.shared.table.len(),
        }
    }

    /// The highest token of this key, if the fence has learned it since it was made.
    #[must_use]
    pub fn floor(&self, key: &LeaseKey) -> Option<FencingToken> {
        let epoch = self.shared.table.get(key.as_str())?.floor.epoch()?;
        Some(FencingToken::new(key.clone(), NonZeroU64::new(epoch)?))
    }

    /// As [`look`](Self::look), for a header's value.
    pub(super) fn check_header(&self, text: Option<&[u8]>) -> Check {
        let Some(text) = text else {
            return self.refused(StaleToken::missing());
        };
        match std::str::from_utf8(text).ok().and_then(token::split) {
            Some((key, epoch)) => self.check(key, epoch),
            None => self.refused(StaleToken::malformed()),
        }
    }

    fn check(&self, key: &str, epoch: NonZeroU64) -> Check {
        if let Some(entry) = self.shared.table.get(key) {
            match entry.floor.compare(epoch.get()) {
                Comparison::Current => return Check::Passed(FencePass { entry, epoch }),
                Comparison::Below(floor) => {
                    return self.refused(StaleToken::stale(epoch.get(), Some(floor)));
                }
                Comparison::Unknown => {}
            }
        }
        match LeaseKey::new(key) {
            Ok(key) if self.shared.scope.contains(&key) => {
                Check::Ask(FencingToken::new(key, epoch))
            }
            Ok(_) => self.refused(StaleToken::other_key()),
            Err(_) => self.refused(StaleToken::malformed()),
        }
    }

    fn refused(&self, why: StaleToken) -> Check {
        self.count(&why);
        Check::Refused(why)
    }

    /// Asks the mark about a token that is new here.
    pub(super) async fn ask(&self, token: &FencingToken) -> Result<FencePass, StaleToken> {
        let cache = self.shared.mark.cache();
        let entry = self.shared.table.get_or_insert(token.key(), cache);
        let asking = tokio::time::timeout(self.shared.raise_within, self.raise(&entry, token));
        let answer = asking
            .await
            .unwrap_or_else(|_| Err(self.fails("it did not answer in time")));
        answer
            .map(|()| FencePass {
                entry,
                epoch: token.epoch(),
            })
            .inspect_err(|why| self.count(why))
    }

    async fn raise(&self, entry: &Entry, token: &FencingToken) -> Result<(), StaleToken> {
        let _place = entry.wait().ok_or(StaleToken::floor_unknown())?;
        let _turn = entry
            .asking
            .acquire()
            .await
            .map_err(|_| StaleToken::floor_unknown())?;
        let epoch = token.epoch().get();
        // The task before this one may have learned it.
        match entry.floor.compare(epoch) {
            Comparison::Current => return Ok(()),
            Comparison::Below(floor) => return Err(StaleToken::stale(epoch, Some(floor))),
            Comparison::Unknown => {}
        }
        self.shared.counters.asked.fetch_add(1, Relaxed);
        let highest = self
            .shared
            .mark
            .raise(token)
            .await
            .map_err(|error| self.fails(&error.to_string()))?;
        self.works();
        let Some(highest) = highest else {
            return Err(StaleToken::stale(epoch, None));
        };
        let before = entry.floor.raise(highest.get());
        if before < highest.get() {
            tracing::info!(key = %token.key(), from = before, to = highest.get(), "high-water mark raised");
        }
        match before.max(highest.get()) {
            floor if floor > epoch => Err(StaleToken::stale(epoch, Some(floor))),
            floor if floor < epoch => Err(StaleToken::ahead(epoch, floor)),
            _ => Ok(()),
        }
    }

    fn fails(&self, cause: &str) -> StaleToken {
        if !self.shared.is_failing.swap(true, Relaxed) {
            tracing::warn!(cause, "high-water mark failed, new tokens are rejected");
        }
        StaleToken::floor_unknown()
    }

    fn works(&self) {
        // A plain load first: it is nearly always false.
        if self.shared.is_failing.load(Relaxed) && self.shared.is_failing.swap(false, Relaxed) {
            tracing::info!("high-water mark recovered");
        }
    }

    fn count(&self, error: &StaleToken) {
        let counters = &self.shared.counters;
        let counter = match error.reason {
            Reason::Stale { .. } => &counters.stale,
            Reason::Ahead { .. } | Reason::FloorUnknown => &counters.unknown,
            Reason::Missing | Reason::Malformed | Reason::OtherKey => &counters.bad,
        };
        counter.fetch_add(1, Relaxed);
    }
}

impl<M> From<&Self> for Fence<M> {
    /// Another handle of the same fence, for the constructors of layers.
    fn from(fence: &Self) -> Self {
        fence.clone()
    }
}

impl<M> Clone for Fence<M> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<M> fmt::Debug for Fence<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { scope, table, .. } = &*self.shared;
        f.debug_struct("Fence")
            .field("scope", scope)
            .field("keys", &table.len())
            .finish_non_exhaustive()
    }
}

// === impl FenceBuilder ===

impl<M: HighWaterMark> FenceBuilder<M> {
    fn new(scope: Scope, mark: M) -> Self {
        Self {
            mark,
            scope,
            capacity: CAPACITY,
            raise_within: RAISE_WITHIN,
        }
    }

    /// How many keys are remembered; beyond that some key is forgotten, and the mark asked again when it comes back.
    /// Default: 1 024. Each takes some 220 bytes.
    pub fn capacity(mut self, keys: NonZeroUsize) -> Self {
        self.capacity = keys;
        self
    }

    /// How long a request with a token that is new waits for the mark, its turn included; at most 1 024 do for each key.
    /// Then it is refused as `floor-unknown`. Default: 1 s.
    pub fn raise_within(mut self, limit: Duration) -> Self {
        self.raise_within = limit;
        self
    }

    /// Makes the fence.
    #[must_use]
    pub fn build(self) -> Fence<M> {
        let Self {
            mark,
            scope,
            capacity,
            raise_within,
        } = self;
        let (table, counters) = (Table::new(capacity), Counters::default());
        let shared = Shared {
            mark,
            scope,
            raise_within,
            table,
            counters,
            is_failing: AtomicBool::new(false),
        };
        Fence {
            shared: Arc::new(shared),
        }
    }
}

// === impl FencePass ===

impl FencePass {
    /// The token with which it passed.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        FencingToken::new(self.entry.key.clone(), self.epoch)
    }

    /// Whether no higher token was seen since, by this fence or another one over a clone of its mark: ask again right
    /// before an effect.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.entry.floor.compare(self.epoch.get()) == Comparison::Current
    }
}

// === impl Scope ===

impl Scope {
    fn contains(&self, key: &LeaseKey) -> bool {
        match self {
            Self::Key(own) => own == key,
            Self::Prefix(prefix) => key.as_str().starts_with(&**prefix),
        }
    }
}
