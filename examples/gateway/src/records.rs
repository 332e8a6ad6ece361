//! Lease records as a topology: whoever holds a lease under a prefix is an endpoint, until it does not.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream, stream::BoxStream};
use tower_lease::{LeaseKey, LeaseStore, Record, Revision, StoreError, Watch, WatchEvent};
use tower_resolve::{Endpoint, Generation, Resolve, SourceId, Topology, Update};

/// Resolves a prefix of lease keys in a store. The payload of each record is the holder's address.
#[derive(Clone, Debug)]
pub(crate) struct LeaseRecords<S> {
    store: S,
    source: SourceId,
}

/// Lists once, then follows the changes; lists again when it has lost track.
enum Follow<S: LeaseStore> {
    /// -> `Watch` when the store has answered.
    List { reader: Reader<S>, pause: Duration },
    /// -> `List` when the watch broke or has skipped something.
    Watch { reader: Reader<S>, watch: S::Watch, seen: Revision },
}

struct Reader<S> {
    store: S,
    source: SourceId,
    prefix: String,
}

// === impl LeaseRecords ===

impl<S: LeaseStore> LeaseRecords<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store, source: SourceId::unique() }
    }
}

impl<S: LeaseStore> Resolve for LeaseRecords<S> {
    type Updates = BoxStream<'static, Update>;

    fn resolve(&self, prefix: &str) -> Self::Updates {
        let reader = Reader { store: self.store.clone(), source: self.source, prefix: prefix.to_owned() };
        let start = Follow::List { reader, pause: Duration::ZERO };
        stream::unfold(start, |follow| async { Some(follow.next().await) }).boxed()
    }
}

// === impl Follow ===

impl<S: LeaseStore> Follow<S> {
    async fn next(self) -> (Update, Self) {
        match self {
            Self::List { reader, pause } => {
                tokio::time::sleep(pause).await;
                match reader.list().await {
                    Ok((update, seen)) => {
                        let watch = reader.store.watch_prefix(&reader.prefix, seen);
                        (update, Self::Watch { reader, watch, seen })
                    }
                    Err(error) => (Update::degraded(error), Self::List { reader, pause: PAUSE }),
                }
            }
            Self::Watch { reader, mut watch, seen } => match watch.next().await {
                Ok(WatchEvent::Held(record, at)) => {
                    let put: Vec<_> = reader.endpoint(&record).into_iter().map(Into::into).collect();
                    // A record without an address is no endpoint, whatever was there before.
                    let removed = if put.is_empty() { vec![reader.id(record.key()).into()] } else { Vec::new() };
                    (reader.delta(seen, at, put, removed), Self::Watch { reader, watch, seen: at })
                }
                Ok(WatchEvent::Vacant(key, at)) => {
                    let removed = vec![reader.id(&key).into()];
                    (reader.delta(seen, at, Vec::new(), removed), Self::Watch { reader, watch, seen: at })
                }
                Ok(_) => {
                    let lagged = Update::degraded("the watch has skipped changes");
                    (lagged, Self::List { reader, pause: Duration::ZERO })
                }
                Err(error) => (Update::degraded(error), Self::List { reader, pause: PAUSE }),
            },
        }
    }
}

/// Before a store that failed is asked again.
const PAUSE: Duration = Duration::from_millis(200);

// === impl Reader ===

impl<S: LeaseStore> Reader<S> {
    async fn list(&self) -> Result<(Update, Revision), StoreError> {
        let listing = self.store.list_prefix(&self.prefix).await?;
        let endpoints = listing.records.iter().filter_map(|record| self.endpoint(record));
        let topology = Topology::new(self.generation(listing.revision), endpoints);
        Ok((Update::Snapshot(topology), listing.revision))
    }

    fn delta(
        &self,
        from: Revision,
        to: Revision,
        put: Vec<std::sync::Arc<Endpoint>>,
        removed: Vec<tower_resolve::EndpointId>,
    ) -> Update {
        Update::Delta { from: self.generation(from), to: self.generation(to), put, removed }
    }

    fn endpoint(&self, record: &Record) -> Option<Endpoint> {
        let payload = std::str::from_utf8(record.holder().payload()).ok();
        let Some(address) = payload.and_then(|payload| payload.parse::<SocketAddr>().ok()) else {
            tracing::warn!(key = %record.key(), "the lease record names no address");
            return None;
        };
        Some(Endpoint::new(self.id(record.key()), address).with_epoch(record.token().epoch()))
    }

    /// An endpoint is named by what follows the prefix.
    fn id<'a>(&self, key: &'a LeaseKey) -> &'a str {
        key.as_str().strip_prefix(&self.prefix).unwrap_or(key.as_str())
    }

    fn generation(&self, revision: Revision) -> Generation {
        Generation::new(self.source, revision.number())
    }
}
