use std::{
    collections::BTreeMap,
    future::Future,
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
};

use tower_outcome::BoxError;

use super::HighWaterCache;
use crate::{FencingToken, LeaseKey, LeaseStore, fencing};

/// Where a [`Fence`](super::Fence) keeps the highest token of each key: state that outlives the process (R-21).
///
/// A fence asks it for every token that is new to it, which is once an epoch, and once for each key after a start; never
/// on the way of a token that it knows. In SQL it is one statement, best in the database that holds the data:
///
/// ```sql
/// INSERT INTO floors (key, epoch) VALUES ($1, $2)
/// ON CONFLICT (key) DO UPDATE SET epoch = GREATEST(floors.epoch, $2) RETURNING epoch
/// ```
///
/// All fences of a process that guard one resource take clones of one mark, made once: they share its [`HighWaterCache`].
pub trait HighWaterMark: Send + Sync + 'static {
    /// What the fences over this mark know: a field of the mark, made with [`HighWaterCache::new`] and cloned with it. Two fences
    /// with different ones would each let pass what the other has refused (I2).
    fn cache(&self) -> &HighWaterCache;

    /// Remembers `token` if it is the highest of its key so far, and answers with the highest. Both must be **durable**
    /// by then, and one step: two callers at once get answers that agree on an order.
    ///
    /// A token passes if the answer is its own epoch. A lower answer means that the mark knows no such token, `None`
    /// that no token of this key is valid now; both reject it.
    ///
    /// # Errors
    ///
    /// The floor is not known. The request is refused, and the next one asks again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have raised the mark or not.
    fn raise(
        &self,
        token: &FencingToken,
    ) -> impl Future<Output = Result<Option<NonZeroU64>, BoxError>> + Send;
}

/// Reads the holder of the key from the lease store (R-21). It keeps no state, and no token passes that the store did not grant.
///
/// The store must be linearizable, and its tokens must fence (R-32). While the key is vacant, no token is valid. It forgets what the store forgets: a
/// store restored from a backup may give out a token again, and a fence restarted at the same time lets it pass (R-24);
/// a mark of the resource's own does not.
#[derive(Clone, Debug)]
pub struct StoreMark<S> {
    store: S,
    cache: HighWaterCache,
}

/// Keeps the highest tokens in memory that its clones share, at most 65 536 of them: for tests, and for resources whose
/// data is gone with the process too.
///
/// It outlives a fence, but not the process: for durable data **it is not a floor** (R-21).
#[derive(Clone, Debug, Default)]
pub struct MemoryMark {
    highest: Arc<Mutex<BTreeMap<LeaseKey, NonZeroU64>>>,
    cache: HighWaterCache,
}

pub(super) const MAX_KEYS: usize = 65_536;

// === impl StoreMark ===

impl<S: LeaseStore<Fencing = fencing::Monotonic>> StoreMark<S> {
    /// Asks `store`, which must be the one that the holders use. For several fences make one, and clone it.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store,
            cache: HighWaterCache::new(),
        }
    }
}

impl<S: LeaseStore<Fencing = fencing::Monotonic>> HighWaterMark for StoreMark<S> {
    fn cache(&self) -> &HighWaterCache {
        &self.cache
    }

    async fn raise(&self, token: &FencingToken) -> Result<Option<NonZeroU64>, BoxError> {
        if !self.store.capabilities().linearizable() {
            return Err("the lease store is not linearizable, so its answer may be stale".into());
        }
        let record = self.store.inspect(token.key()).await?;
        Ok(record.map(|record| record.token().epoch()))
    }
}

// === impl MemoryMark ===

impl MemoryMark {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl HighWaterMark for MemoryMark {
    fn cache(&self) -> &HighWaterCache {
        &self.cache
    }

    async fn raise(&self, token: &FencingToken) -> Result<Option<NonZeroU64>, BoxError> {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if highest.len() >= MAX_KEYS && !highest.contains_key(token.key()) {
            return Err("as many keys as there may be".into());
        }
        Ok(Some(raise(&mut highest, token)))
    }
}

pub(super) fn raise(
    cache: &mut BTreeMap<LeaseKey, NonZeroU64>,
    token: &FencingToken,
) -> NonZeroU64 {
    let floor = cache.entry(token.key().clone()).or_insert(token.epoch());
    *floor = token.epoch().max(*floor);
    *floor
}
