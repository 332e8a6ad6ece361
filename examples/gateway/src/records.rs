//! Lease records as a topology: the holder of a lease under a prefix is an endpoint.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream, stream::BoxStream};
use tower_lease::{DocumentStore, LeaseKey, Record, Revision, StoreError, Watch, WatchEvent};
use tower_resolve::{Endpoint, Generation, Resolve, SourceId, Topology, Update};

/// Resolves a prefix of lease keys in a store. The payload of each record is the holder's address.
#[derive(Clone, Debug)]
pub(crate) struct LeaseRecords<S> {
    store: S,
    source: SourceId,
}

/// Lists once, then follows the changes; lists again when it has lost track.
enum Follow<S: DocumentStore> {
    /// -> `Watch` when the store has answered; after trouble only when it has answered twice, because one answer of a
    /// store that just came back is not enough to conclude that all endpoints are gone.
    List {
        reader: Reader<S>,
        pause: Duration,
        after: After,
    },
    /// -> `List` when the watch broke or has skipped something.
    Watch {
        reader: Reader<S>,
        watch: S::Watch,
        seen: Revision,
    },
}

#[derive(Clone, Copy)]
enum After {
    Nothing,
    Trouble,
}

struct Reader<S> {
    store: S,
    source: SourceId,
    prefix: String,
}

// === impl LeaseRecords ===

impl<S: DocumentStore> LeaseRecords<S> {
    pub(crate) fn new(store: S) -> Self {
        Self {
            store,
            source: SourceId::unique(),
        }
    }
}

impl<S: DocumentStore> Resolve for LeaseRecords<S> {
    type Updates = BoxStream<'static, Update>;

    fn resolve(&self, prefix: &str) -> Self::Updates {
        let reader = Reader {
            store: self.store.clone(),
            source: self.source,
            prefix: prefix.to_owned(),
        };
        let start = Follow::List {
            reader,
            pause: Duration::ZERO,
            after: After::Nothing,
        };
        stream::unfold(start, |follow| async { Some(follow.next().await) }).boxed()
    }
}

// === impl Follow ===

impl<S: DocumentStore> Follow<S> {
    async fn next(self) -> (Update, Self) {
        match self {
            Self::List {
                reader,
                pause,
                after,
            } => {
                tokio::time::sleep(pause).await;
                match (reader.list().await, after) {
                    (Ok((update, _)), After::Trouble) => (
                        update,
                        Self::List {
                            reader,
                            pause: PAUSE,
                            after: After::Nothing,
                        },
                    ),
                    (Ok((update, seen)), After::Nothing) => {
                        let watch = reader.store.watch_prefix(&reader.prefix, seen);
                        (
                            update,
                            Self::Watch {
                                reader,
                                watch,
                                seen,
                            },
                        )
                    }
                    (Err(error), _) => Self::lost(reader, error),
                }
            }
            Self::Watch {
                reader,
                mut watch,
                seen,
            } => match watch.next().await {
                Ok(WatchEvent::Held(record, at)) => {
                    let put: Vec<_> = reader
                        .endpoint(&record)
                        .into_iter()
                        .map(Into::into)
                        .collect();
                    // A record without an address is no endpoint, even if it was one before.
                    let removed = if put.is_empty() {
                        vec![reader.id(record.key()).into()]
                    } else {
                        Vec::new()
                    };
                    (
                        reader.delta(seen, at, put, removed),
                        Self::Watch {
                            reader,
                            watch,
                            seen: at,
                        },
                    )
                }
                Ok(WatchEvent::Vacant(key, at)) => {
                    let removed = vec![reader.id(&key).into()];
                    (
                        reader.delta(seen, at, Vec::new(), removed),
                        Self::Watch {
                            reader,
                            watch,
                            seen: at,
                        },
                    )
                }
                // A document is no endpoint.
                Ok(WatchEvent::Written(document)) => Self::pass(reader, watch, document.revision()),
                Ok(WatchEvent::Deleted(_, at)) => Self::pass(reader, watch, at),
                // What was skipped is read again; the store is well.
                Ok(_) => {
                    Box::pin(
                        Self::List {
                            reader,
                            pause: Duration::ZERO,
                            after: After::Nothing,
                        }
                        .next(),
                    )
                    .await
                }
                Err(error) => Self::lost(reader, error),
            },
        }
    }

    fn pass(reader: Reader<S>, watch: S::Watch, at: Revision) -> (Update, Self) {
        (
            Update::Progress(reader.generation(at)),
            Self::Watch {
                reader,
                watch,
                seen: at,
            },
        )
    }

    fn lost(reader: Reader<S>, error: StoreError) -> (Update, Self) {
        (
            Update::degraded(error),
            Self::List {
                reader,
                pause: PAUSE,
                after: After::Trouble,
            },
        )
    }
}

/// Before a store that failed is asked again.
const PAUSE: Duration = Duration::from_millis(200);

// === impl Reader ===

impl<S: DocumentStore> Reader<S> {
    async fn list(&self) -> Result<(Update, Revision), StoreError> {
        let listing = self.store.list_prefix(&self.prefix).await?;
        let endpoints = listing
            .records
            .iter()
            .filter_map(|record| self.endpoint(record));
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
        Update::Delta {
            from: self.generation(from),
            to: self.generation(to),
            put,
            removed,
        }
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
        key.as_str()
            .strip_prefix(&self.prefix)
            .unwrap_or(key.as_str())
    }

    fn generation(&self, revision: Revision) -> Generation {
        Generation::new(self.source, revision.number())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::watch;
    use tower_lease::{
        Acquired, Capabilities, Claim, ClaimId, Document, FencingToken, Holder, LeaseStore,
        Listing, MemoryStore, MemoryWatch, StoreError, Swap, Swapped,
    };
    use tower_resolve::{CachedResolver, diff::Fold};

    use super::*;

    /// A store that can be cut off, and that may come back without a memory for its next listings.
    #[derive(Clone)]
    struct Flaky {
        store: MemoryStore,
        is_cut: watch::Sender<bool>,
        blanks: Arc<Mutex<usize>>,
    }

    struct FlakyWatch {
        watch: MemoryWatch,
        is_cut: watch::Receiver<bool>,
    }

    impl Flaky {
        fn new() -> Self {
            Self {
                store: MemoryStore::new(),
                is_cut: watch::Sender::new(false),
                blanks: Arc::default(),
            }
        }

        fn sent<T>(&self, answer: T) -> Result<T, StoreError> {
            if *self.is_cut.borrow() {
                Err(StoreError::not_sent("cut off"))
            } else {
                Ok(answer)
            }
        }

        async fn hold(&self, name: &str, id: u128, port: u16) {
            let key = LeaseKey::new(&format!("echo/{name}")).unwrap();
            let holder = Holder::new(name)
                .with_payload(format!("127.0.0.1:{port}").into_bytes())
                .unwrap();
            let claim = Claim::new(
                key,
                holder,
                ClaimId::from_u128(id),
                Duration::from_secs(600),
            );
            assert!(matches!(
                self.store.acquire(&claim).await,
                Ok(Acquired::Granted(_))
            ));
        }

        async fn revoke(&self, name: &str) {
            self.store
                .revoke(&LeaseKey::new(&format!("echo/{name}")).unwrap(), None)
                .await
                .unwrap();
        }
    }

    impl LeaseStore for Flaky {
        type Watch = FlakyWatch;
        type Fencing = <MemoryStore as LeaseStore>::Fencing;

        fn capabilities(&self) -> Capabilities {
            self.store.capabilities()
        }

        async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
            self.store.acquire(claim).await
        }

        async fn renew(&self, claim: &Claim) -> Result<Duration, StoreError> {
            self.store.renew(claim).await
        }

        async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
            self.store.release(claim).await
        }

        async fn revoke(
            &self,
            key: &LeaseKey,
            guard: Option<&FencingToken>,
        ) -> Result<(), StoreError> {
            self.store.revoke(key, guard).await
        }

        async fn inspect(&self, key: &LeaseKey) -> Result<Option<Record>, StoreError> {
            self.store.inspect(key).await
        }

        fn watch(&self, key: &LeaseKey, from: Revision) -> FlakyWatch {
            FlakyWatch {
                watch: self.store.watch(key, from),
                is_cut: self.is_cut.subscribe(),
            }
        }
    }

    impl DocumentStore for Flaky {
        async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
            let mut listing = self.store.list_prefix(prefix).await?;
            let mut blanks = self.blanks.lock().unwrap();
            if *blanks > 0 && !*self.is_cut.borrow() {
                *blanks -= 1;
                listing.records.clear();
            }
            self.sent(listing)
        }

        fn watch_prefix(&self, prefix: &str, after: Revision) -> FlakyWatch {
            FlakyWatch {
                watch: self.store.watch_prefix(prefix, after),
                is_cut: self.is_cut.subscribe(),
            }
        }

        async fn read(&self, key: &LeaseKey) -> Result<Option<Document>, StoreError> {
            self.store.read(key).await
        }

        async fn swap(&self, swap: &Swap) -> Result<Swapped, StoreError> {
            self.store.swap(swap).await
        }
    }

    impl Watch for FlakyWatch {
        async fn next(&mut self) -> Result<WatchEvent, StoreError> {
            tokio::select! {
                biased;
                _ = self.is_cut.wait_for(|is_cut| *is_cut) => Err(StoreError::unknown("cut off")),
                event = self.watch.next() => event,
            }
        }
    }

    /// Hears until what is known is these ports, and the store is (not) in trouble.
    async fn hear(
        updates: &mut (impl stream::Stream<Item = Update> + Unpin),
        fold: &mut Fold,
        ports: &[u16],
        well: bool,
    ) {
        let known = |fold: &Fold| {
            let topology = fold.topology()?;
            Some(
                topology
                    .iter()
                    .map(|endpoint| endpoint.addr().port())
                    .collect::<Vec<_>>(),
            )
        };
        let hearing = async {
            while known(fold).as_deref() != Some(ports) || fold.degraded().is_none() != well {
                let before = fold.topology().map(Topology::generation);
                let _ = fold.apply(updates.next().await.unwrap());
                let after = fold.topology().map(Topology::generation);
                assert!(
                    before.is_none_or(|before| Some(before) <= after),
                    "never back"
                );
            }
        };
        let heard = tokio::time::timeout(Duration::from_secs(30), hearing).await;
        assert!(heard.is_ok(), "waiting for {ports:?}, known is {fold:?}");
    }

    fn followed(store: &Flaky) -> (BoxStream<'static, Update>, Fold) {
        (
            LeaseRecords::new(store.clone()).resolve("echo/"),
            Fold::new(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_holder_of_a_lease_is_an_endpoint_until_it_loses_it() {
        let store = Flaky::new();
        store.hold("a", 1, 1).await;
        let (mut updates, mut fold) = followed(&store);
        hear(&mut updates, &mut fold, &[1], true).await;
        let first = fold.topology().unwrap().get("a").unwrap().epoch().unwrap();
        store.hold("b", 2, 2).await;
        hear(&mut updates, &mut fold, &[1, 2], true).await;
        store.revoke("a").await;
        hear(&mut updates, &mut fold, &[2], true).await;
        store.hold("a", 3, 3).await;
        hear(&mut updates, &mut fold, &[3, 2], true).await;
        assert!(
            fold.topology().unwrap().get("a").unwrap().epoch().unwrap() > first,
            "another instance"
        );
        store.revoke("a").await;
        store.revoke("b").await;
        hear(&mut updates, &mut fold, &[], true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_cut_off_takes_nothing_away_and_what_was_missed_is_read_again() {
        let store = Flaky::new();
        store.hold("a", 1, 1).await;
        let (mut updates, mut fold) = followed(&store);
        hear(&mut updates, &mut fold, &[1], true).await;
        store.is_cut.send_replace(true);
        hear(&mut updates, &mut fold, &[1], false).await;
        store.revoke("a").await;
        store.hold("b", 2, 2).await;
        store.is_cut.send_replace(false);
        hear(&mut updates, &mut fold, &[2], true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn emptiness_right_after_trouble_is_confirmed_by_a_second_listing() {
        let store = Flaky::new();
        store.hold("a", 1, 1).await;
        let (mut updates, mut fold) = followed(&store);
        hear(&mut updates, &mut fold, &[1], true).await;
        store.is_cut.send_replace(true);
        hear(&mut updates, &mut fold, &[1], false).await;
        store.revoke("a").await;
        store.is_cut.send_replace(false);
        // Nothing happens in the store any more: only a second listing can confirm it.
        hear(&mut updates, &mut fold, &[], true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_blank_listing_of_a_store_that_came_back_takes_nothing_away() {
        let store = Flaky::new();
        store.hold("a", 1, 1).await;
        let cached = CachedResolver::new(LeaseRecords::new(store.clone()));
        let (mut updates, mut fold) = (cached.resolve("echo/"), Fold::new());
        hear(&mut updates, &mut fold, &[1], true).await;
        store.is_cut.send_replace(true);
        hear(&mut updates, &mut fold, &[1], false).await;
        *store.blanks.lock().unwrap() = 1;
        store.is_cut.send_replace(false);
        let mut seen = Vec::new();
        while fold.degraded().is_some() {
            let _ = fold.apply(updates.next().await.unwrap());
            seen.push(fold.topology().unwrap().len());
        }
        assert!(seen.iter().all(|len| *len == 1), "{seen:?}");
        assert_eq!(*store.blanks.lock().unwrap(), 0, "it did answer blank");
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_was_too_slow_reads_again() {
        let store = Flaky::new();
        store.hold("a", 1, 1).await;
        let (mut updates, mut fold) = followed(&store);
        hear(&mut updates, &mut fold, &[1], true).await;
        // More than any store keeps for a watch that is not read.
        for id in 0..20_000 {
            store.hold("b", 2 + id, 2).await;
            store.revoke("b").await;
        }
        store.hold("c", 1_000_000, 3).await;
        hear(&mut updates, &mut fold, &[1, 3], true).await;
    }
}
