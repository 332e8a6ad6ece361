use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU64,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use etcd_client::{Event, EventType, KeyValue, ResponseHeader};
use futures_core::Stream;
use futures_util::stream;
use tokio::time::sleep;
use tower_lease::{Revision, StoreError};
use tower_resolve::{Endpoint, EndpointId, Generation, Resolve, SourceId, Topology, Update};

use crate::{
    Cluster, EtcdStore,
    store::{Found, is_same_cluster},
    watch::{Follow, Heard, Range, revision},
};

/// The keys under a prefix as endpoints: listed once, then followed change by change.
///
/// A name is a prefix of keys, `svc/echo/`; what follows it names the endpoint. By itself it understands the records of
/// an [`EtcdStore`](crate::EtcdStore) whose holders tell their address as payload, with the lease's epoch; and keys whose
/// value is an address. [`with_decode`](Self::with_decode) is for others.
///
/// The generation is etcd's revision, and the source the cluster's id; a cluster whose revision goes back (it was
/// restored from a backup) counts as another source. Where the endpoints lead to another cluster than before, a watch that
/// is opened again notices by that id, and lists anew. Compaction costs one more listing, and no removal is lost by it.
/// Every two seconds without news comes an [`Update::Progress`].
#[derive(Clone)]
pub struct EtcdResolver {
    store: EtcdStore,
    decode: Arc<Decode>,
}

/// A key as an [`EtcdResolver`] found it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    id: &'a str,
    value: &'a [u8],
    epoch: Option<NonZeroU64>,
}

/// The updates of one name. Dropping it ends the watch.
pub struct EtcdUpdates(Pin<Box<dyn Stream<Item = Update> + Send>>);

type Decode = dyn Fn(Entry<'_>) -> Option<Endpoint> + Send + Sync;

/// One name's way through a cluster.
struct Source {
    store: EtcdStore,
    decode: Arc<Decode>,
    name: String,
    /// Everything up to here was told. `None`: to be listed (again).
    known: Option<Generation>,
    /// The last that was known, and in which cluster, to see whether a listing goes on from it.
    before: Option<(u64, Generation)>,
    cluster: u64,
    /// Who is known by which key.
    ids: HashMap<Vec<u8>, EndpointId>,
    /// `None`: to be opened again.
    follow: Option<Follow>,
    /// The member's revision in a sign of life can be trusted.
    counts_well: bool,
    /// In a row.
    failures: u32,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

// === impl EtcdResolver ===

impl EtcdResolver {
    /// Follows keys of that cluster as they are.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            store: EtcdStore::new(cluster),
            decode: Arc::new(|entry| entry.endpoint()),
        }
    }

    /// Puts `prefix` before every name. Default: none. The same as [`EtcdStore::with_prefix`].
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self {
            store: self.store.with_prefix(prefix),
            ..self
        }
    }

    /// How a key becomes an endpoint; `None` if it is none, which takes away what the key was before. Default:
    /// [`Entry::endpoint`].
    #[must_use]
    pub fn with_decode(
        self,
        decode: impl Fn(Entry<'_>) -> Option<Endpoint> + Send + Sync + 'static,
    ) -> Self {
        Self {
            decode: Arc::new(decode),
            ..self
        }
    }
}

impl Resolve for EtcdResolver {
    type Updates = EtcdUpdates;

    fn resolve(&self, name: &str) -> EtcdUpdates {
        let source = Source {
            store: self.store.clone(),
            decode: self.decode.clone(),
            name: name.to_owned(),
            known: None,
            before: None,
            cluster: 0,
            ids: HashMap::new(),
            follow: None,
            counts_well: false,
            failures: 0,
        };
        EtcdUpdates(Box::pin(stream::unfold(source, |mut source| async move {
            Some((source.next().await, source))
        })))
    }
}

impl fmt::Debug for EtcdResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdResolver")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

// === impl Entry ===

impl<'a> Entry<'a> {
    /// What follows the name in the key.
    #[must_use]
    pub const fn id(&self) -> &'a str {
        self.id
    }

    /// The value; of a lease's record, its holder's payload.
    #[must_use]
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }

    /// The epoch, if it is a lease's record.
    #[must_use]
    pub const fn epoch(&self) -> Option<NonZeroU64> {
        self.epoch
    }

    /// The endpoint whose address is the value, as text.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        let address = std::str::from_utf8(self.value).ok()?.parse().ok()?;
        Some(Endpoint::new(self.id, address).with_epoch(self.epoch))
    }
}

// === impl EtcdUpdates ===

impl Stream for EtcdUpdates {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for EtcdUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdUpdates").finish_non_exhaustive()
    }
}

// === impl Source ===

impl Source {
    async fn next(&mut self) -> Update {
        loop {
            if self.follow.is_none() {
                sleep(self.pause()).await;
            }
            match self.step().await {
                Ok(Some(update)) => {
                    self.failures = 0;
                    return update;
                }
                Ok(None) => {}
                Err(error) => {
                    self.follow = None;
                    self.failures = self.failures.saturating_add(1);
                    return Update::degraded(error);
                }
            }
        }
    }

    /// List, then open, then follow. What fails is tried again from where it stood.
    async fn step(&mut self) -> Result<Option<Update>, StoreError> {
        let Some(known) = self.known else {
            return self.list().await.map(Some);
        };
        let Some(follow) = &mut self.follow else {
            self.open(known).await?;
            return Ok(None);
        };
        Ok(match follow.next().await? {
            Heard::Events(events) => self.change(known, &events),
            Heard::Progress(at) => Some(self.progress(known, at)),
            Heard::Compacted => {
                self.list_again();
                None
            }
        })
    }

    async fn list(&mut self) -> Result<Update, StoreError> {
        let (found, header) = self.store.list(&self.name).await?;
        let generation = self.generation(&header);
        self.ids.clear();
        let mut endpoints = Vec::new();
        for found in &found {
            endpoints.extend(self.put(found));
        }
        self.known = Some(generation);
        Ok(Update::Snapshot(Topology::new(generation, endpoints)))
    }

    /// A revision below one that was told before is of another history, and so is another cluster's.
    fn generation(&mut self, header: &ResponseHeader) -> Generation {
        let value = revision(header.revision()).number();
        self.cluster = header.cluster_id();
        let source = match self.before {
            Some((cluster, before)) if cluster == self.cluster && before.value <= value => {
                before.source
            }
            Some((cluster, _)) if cluster == self.cluster => SourceId::unique(),
            // The upper half of the range is for sources without an id of their own.
            _ => SourceId::new(self.cluster & (u64::MAX >> 1)),
        };
        Generation::new(source, value)
    }

    async fn open(&mut self, known: Generation) -> Result<(), StoreError> {
        let key = self.store.keys.under(&self.name);
        let follow = self
            .store
            .follow(key, Range::Prefix, Some(Revision::new(known.value)))
            .await?;
        if !is_same_cluster(follow.cluster, self.cluster) {
            // Its revisions do not go on from those that are known, though they may be higher.
            self.list_again();
            return Ok(());
        }
        self.counts_well = counts_well(&follow.version().await);
        self.follow = Some(follow);
        Ok(())
    }

    fn list_again(&mut self) {
        self.follow = None;
        if let Some(known) = self.known.take() {
            self.before = Some((self.cluster, known));
        }
    }

    fn change(&mut self, known: Generation, events: &[Event]) -> Option<Update> {
        let (mut put, mut removed, mut to) = (HashMap::new(), Vec::new(), known);
        for event in events {
            let Some(found) = event.kv() else { continue };
            let at = revision(found.mod_revision()).number();
            // A member could tell what is past before 3.5.8.
            if at <= known.value {
                continue;
            }
            to.value = to.value.max(at);
            let before = self.ids.remove(found.key());
            let now = if event.event_type() == EventType::Put {
                self.put(found)
            } else {
                None
            };
            if let Some(before) =
                before.filter(|before| now.as_ref().is_none_or(|now| now.id() != before))
            {
                put.remove(&before);
                removed.push(before);
            }
            if let Some(now) = now {
                removed.retain(|gone| gone != now.id());
                put.insert(now.id().clone(), Arc::new(now));
            }
        }
        self.known = Some(to);
        if to == known {
            return None;
        }
        Some(Update::Delta {
            from: known,
            to,
            put: put.into_values().collect(),
            removed,
        })
    }

    fn progress(&mut self, known: Generation, at: i64) -> Update {
        let at = revision(at).number();
        let to = if self.counts_well {
            Generation {
                value: at.max(known.value),
                ..known
            }
        } else {
            known
        };
        self.known = Some(to);
        Update::Progress(to)
    }

    /// The endpoint that a key is, remembered by the key.
    fn put(&mut self, found: &KeyValue) -> Option<Endpoint> {
        let key = self.store.keys.parse(found.key())?;
        let id = key.as_str().strip_prefix(&self.name)?;
        let endpoint = match Found::of(found) {
            Found::Record(held) => {
                let entry = Entry {
                    id,
                    value: held.written.holder.payload(),
                    epoch: Some(held.token),
                };
                (self.decode)(entry)
            }
            Found::Document(value, _) => (self.decode)(Entry {
                id,
                value: &value,
                epoch: None,
            }),
            Found::Vacant => None,
        };
        match &endpoint {
            Some(endpoint) => drop(self.ids.insert(found.key().to_vec(), endpoint.id().clone())),
            None => tracing::debug!(%key, "an etcd key is no endpoint"),
        }
        endpoint
    }

    /// Doubles with each failure; of that, a random part between half and all.
    fn pause(&self) -> Duration {
        if self.failures == 0 {
            return Duration::ZERO;
        }
        let full = FIRST_PAUSE
            .saturating_mul(1 << (self.failures - 1).min(10))
            .min(MAX_PAUSE);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Whether a version's signs of life tell a revision up to which all events were told: from 3.4.25 and 3.5.8 on.
fn counts_well(version: &str) -> bool {
    let mut parts = version
        .split(['.', '-', '+'])
        .map(|part| part.parse::<u32>().ok());
    match (
        parts.next().flatten(),
        parts.next().flatten(),
        parts.next().flatten(),
    ) {
        (Some(3), Some(4), Some(patch)) => patch >= 25,
        (Some(3), Some(5), Some(patch)) => patch >= 8,
        (Some(3), Some(minor), _) => minor > 5,
        (Some(major), ..) => major > 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_versions_count_well() {
        for (version, well) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.1", false),
            ("3.5.16", true),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("3.3.27", false),
            ("", false),
        ] {
            assert_eq!(counts_well(version), well, "{version}");
        }
    }

    #[test]
    fn a_value_that_is_an_address_is_an_endpoint() {
        let entry = |value| Entry {
            id: "echo-0",
            value,
            epoch: NonZeroU64::new(7),
        };
        let endpoint = entry(b"10.0.0.7:80").endpoint().unwrap();
        assert_eq!(
            (endpoint.id().as_str(), endpoint.epoch()),
            ("echo-0", NonZeroU64::new(7))
        );
        assert_eq!(entry(b"\xff").endpoint(), None);
        assert_eq!(entry(b"nowhere").endpoint(), None);
    }
}
