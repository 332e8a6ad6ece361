mod table;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

pub(crate) use self::table::Table;
use self::table::{Forgotten, key_of, revision_of};
use crate::{
    Acquired, Capabilities, Claim, Document, DocumentStore, FencingToken, Grant, LeaseKey,
    LeaseStore, Listing, Record, Revision, StoreError, Swap, Swapped, Watch, WatchEvent, fencing,
};

/// A store in this process's memory, shared by its clones: the embedded default.
///
/// It is the authority for the keepers that share it, within one process: its state, tokens included, ends with the process.
/// Expiry is exact and needs no task: each call removes expired records first, and each watcher has
/// a timer. It runs on Tokio's clock.
///
/// Limits: 100 000 records and documents, then `acquire` and `swap` are refused; the latest 1 024 changes are kept for watchers, and one that
/// falls behind gets [`WatchEvent::Lagged`] and goes on from there.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// Reports the changes of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryWatch {
    store: MemoryStore,
    scope: Scope,
    /// Everything up to here was reported.
    seen: Revision,
    changed: watch::Receiver<Revision>,
}

struct Shared {
    table: Mutex<Table>,
    changed: watch::Sender<Revision>,
}

#[derive(Debug)]
enum Scope {
    /// `false` until its state was reported once.
    Key(LeaseKey, bool),
    Prefix(Box<str>),
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Shared::new(),
        }
    }

    /// Applies `act` to the table, and notifies the watchers if that changed it.
    fn with<T>(&self, act: impl FnOnce(&mut Table, Instant) -> T) -> T {
        let mut table = self.table();
        let result = act(&mut table, Instant::now());
        let revision = table.revision();
        drop(table);
        // Two may come here in the other order; the published revision must not go back.
        self.shared.changed.send_if_modified(|published| {
            let newer = revision > *published;
            *published = revision.max(*published);
            newer
        });
        result
    }

    /// A panic under the lock would be a bug in this crate, and the table is consistent between two of its steps.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn watcher(&self, scope: Scope, seen: Revision) -> MemoryWatch {
        MemoryWatch {
            store: self.clone(),
            scope,
            seen,
            changed: self.shared.changed.subscribe(),
        }
    }
}

impl LeaseStore for MemoryStore {
    type Watch = MemoryWatch;
    type Fencing = fencing::Monotonic;

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.with(|table, now| table.acquire(claim, now))
    }

    async fn renew(&self, claim: &Claim) -> Result<Duration, StoreError> {
        self.with(|table, now| table.renew(claim, now))
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        self.with(|table, now| table.release(claim, now));
        Ok(())
    }

    async fn revoke(&self, key: &LeaseKey, guard: Option<&FencingToken>) -> Result<(), StoreError> {
        self.with(|table, now| table.revoke(key, guard, now))
    }

    async fn inspect(&self, key: &LeaseKey) -> Result<Option<Record>, StoreError> {
        Ok(self.with(|table, now| table.inspect(key, now)))
    }

    fn watch(&self, key: &LeaseKey, _from: Revision) -> MemoryWatch {
        // The state it reports first is the present one, which is never older than `from`.
        self.watcher(Scope::Key(key.clone(), false), Revision::START)
    }

    async fn transfer(&self, from: &Claim, to: &Claim) -> Result<Grant, StoreError> {
        self.with(|table, now| table.transfer(from, to, now))
    }
}

impl DocumentStore for MemoryStore {
    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        Ok(self.with(|table, now| table.list(prefix, now)))
    }

    fn watch_prefix(&self, prefix: &str, after: Revision) -> MemoryWatch {
        self.watcher(Scope::Prefix(prefix.into()), after)
    }

    async fn read(&self, key: &LeaseKey) -> Result<Option<Document>, StoreError> {
        Ok(self.with(|table, now| table.read(key, now)))
    }

    async fn swap(&self, swap: &Swap) -> Result<Swapped, StoreError> {
        self.with(|table, now| table.swap(swap, now))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("revision", &*self.shared.changed.borrow())
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    fn new() -> Arc<Self> {
        let (changed, _) = watch::channel(Revision::START);
        Arc::new(Self {
            table: Mutex::default(),
            changed,
        })
    }
}

// === impl MemoryWatch ===

impl MemoryWatch {
    /// The next event that is already there, or when the next record ends.
    fn look(&mut self) -> Result<WatchEvent, Option<Instant>> {
        // Before the look, so that a change after it wakes us.
        self.changed.mark_unchanged();
        let (scope, seen) = (&mut self.scope, &mut self.seen);
        self.store.with(|table, now| {
            table.sweep(now);
            let found = match scope {
                Scope::Key(key, known) => Self::look_at_key(table, key, known, *seen, now),
                Scope::Prefix(prefix) => {
                    match table.after(*seen, |event| is_under(event, prefix)) {
                        Ok(found) => found.cloned(),
                        Err(Forgotten) => Some(WatchEvent::Lagged),
                    }
                }
            };
            *seen = found
                .as_ref()
                .and_then(revision_of)
                .unwrap_or(table.revision());
            found.ok_or(table.next_end())
        })
    }

    /// Of a key only the latest state matters: a watcher that lags gets that, and has lost nothing.
    fn look_at_key(
        table: &mut Table,
        key: &LeaseKey,
        known: &mut bool,
        seen: Revision,
        now: Instant,
    ) -> Option<WatchEvent> {
        if std::mem::replace(known, true)
            && let Ok(found) = table.after(seen, |event| is_about(event, key))
        {
            return found.cloned();
        }
        let revision = table.revision();
        Some(match table.inspect(key, now) {
            Some(record) => WatchEvent::Held(record, revision),
            None => WatchEvent::Vacant(key.clone(), revision),
        })
    }
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            let next_end = match self.look() {
                Ok(event) => return Ok(event),
                Err(next_end) => next_end,
            };
            tokio::select! {
                // Our own handle of the store keeps the sender alive.
                _ = self.changed.changed() => {}
                () = end(next_end) => {}
            }
        }
    }
}

fn is_under(event: &WatchEvent, prefix: &str) -> bool {
    key_of(event).is_some_and(|key| key.as_str().starts_with(prefix))
}

/// The watch of a key reports its lease only.
fn is_about(event: &WatchEvent, key: &LeaseKey) -> bool {
    let is_of_a_lease = matches!(event, WatchEvent::Held(..) | WatchEvent::Vacant(..));
    is_of_a_lease && key_of(event) == Some(key)
}

async fn end(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
