use std::{collections::VecDeque, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{Event, EventType, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use futures_core::Stream;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tower_lease::{Document, LeaseKey, Revision, StoreError, Watch, WatchEvent};

use crate::{
    codec::decode,
    fault::Failed,
    keys::Keys,
    pool::{Pool, Taken},
    store::{EtcdStore, Found},
};

/// Reports the changes that an [`EtcdStore`](crate::EtcdStore) sees.
///
/// Nothing is kept here: who does not read holds etcd's stream back, and goes on where it was. Every two seconds without
/// news the member is asked for a sign of life, and one that gives none breaks the watch.
pub struct EtcdWatch(Pin<Box<dyn Stream<Item = Result<WatchEvent, StoreError>> + Send>>);

/// A watch as etcd has it: of a key or a range, from a revision on.
pub(crate) struct Follow {
    pool: Arc<Pool>,
    taken: Taken,
    stream: WatchStream,
    patience: Duration,
    /// Which cluster it is of; 0 if the server does not say, as etcd's own proxy.
    pub(crate) cluster: u64,
    /// What was asked for is forgotten.
    pub(crate) is_compacted: bool,
}

/// A watch with its first message, and the client it was opened with.
type Opened = (Taken, WatchStream, WatchResponse);

/// What a [`Follow`] hears.
pub(crate) enum Heard {
    /// In the order of their revisions.
    Events(Vec<Event>),
    /// Nothing happened, up to this revision if the server counts well (from 3.4.25 and 3.5.8 on).
    #[cfg_attr(
        not(feature = "resolve"),
        expect(dead_code, reason = "a lease's watcher needs no more than the sign")
    )]
    Progress(i64),
    /// What was asked for is forgotten.
    Compacted,
}

/// Which keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    Key,
    Prefix,
}

/// Without news the member is asked whether it lives.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// The longest message that a watch takes: what a store can do in a thousand revisions.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

// === impl EtcdWatch ===

impl EtcdWatch {
    /// First the present state, then every later one.
    pub(crate) fn of_key(store: EtcdStore, key: LeaseKey) -> Self {
        let start = OfKey {
            store,
            key,
            follow: None,
            queue: VecDeque::new(),
        };
        Self::new(start, |mut watch| async move {
            let event = watch.next().await;
            (event, watch)
        })
    }

    /// Everything after a revision.
    pub(crate) fn of_prefix(store: EtcdStore, prefix: &str, after: Revision) -> Self {
        let start = OfPrefix {
            store,
            prefix: prefix.to_owned(),
            after: Some(after),
            follow: None,
            queue: VecDeque::new(),
        };
        Self::new(start, |mut watch| async move {
            let event = watch.next().await;
            (event, watch)
        })
    }

    /// Ends with the first error. The future in progress lives in the stream, so a dropped `next` loses nothing.
    fn new<W, F>(start: W, next: impl Fn(W) -> F + Send + 'static) -> Self
    where
        W: Send + 'static,
        F: Future<Output = (Result<WatchEvent, StoreError>, W)> + Send + 'static,
    {
        let events = stream::unfold((Some(start), next), |(watch, next)| async move {
            let (event, watch) = next(watch?).await;
            let watch = event.is_ok().then_some(watch);
            Some((event, (watch, next)))
        });
        Self(Box::pin(events))
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        self.0
            .next()
            .await
            .unwrap_or_else(|| Err(StoreError::not_sent("the watch broke before")))
    }
}

impl fmt::Debug for EtcdWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdWatch").finish_non_exhaustive()
    }
}

// === impl OfKey, OfPrefix ===

struct OfKey {
    store: EtcdStore,
    key: LeaseKey,
    /// `None`: the present state is to be read first.
    follow: Option<Follow>,
    queue: VecDeque<Event>,
}

impl OfKey {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            while let Some(event) = self.queue.pop_front() {
                if let Some(event) = self.tell(&event) {
                    return Ok(event);
                }
            }
            match &mut self.follow {
                None => return self.look().await,
                Some(follow) => match follow.next().await? {
                    Heard::Events(events) => self.queue.extend(events),
                    Heard::Progress(_) => {}
                    // Of one key the present state is enough.
                    Heard::Compacted => self.follow = None,
                },
            }
        }
    }

    async fn look(&mut self) -> Result<WatchEvent, StoreError> {
        let (found, at) = self.store.look(&self.key).await?;
        self.follow = Some(
            self.store
                .follow(self.store.keys.of(&self.key), Range::Key, Some(at))
                .await?,
        );
        Ok(match found {
            Found::Record(found) => {
                let revision = found.revision();
                WatchEvent::Held(found.record(self.key.clone()), revision)
            }
            Found::Vacant | Found::Document(..) => WatchEvent::Vacant(self.key.clone(), at),
        })
    }

    fn tell(&self, event: &Event) -> Option<WatchEvent> {
        match tell(&self.store.keys, event)? {
            // Who watches one key asks for its lease, and where a document is or was there is none, as `look` has it.
            WatchEvent::Written(document) => {
                Some(WatchEvent::Vacant(self.key.clone(), document.revision()))
            }
            WatchEvent::Deleted(key, at) => Some(WatchEvent::Vacant(key, at)),
            // What it was is forgotten; it is not there now.
            WatchEvent::Lagged => Some(WatchEvent::Vacant(
                self.key.clone(),
                revision(event.kv()?.mod_revision()),
            )),
            event => Some(event),
        }
    }
}

struct OfPrefix {
    store: EtcdStore,
    prefix: String,
    /// `None`: from now on.
    after: Option<Revision>,
    follow: Option<Follow>,
    queue: VecDeque<Event>,
}

impl OfPrefix {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            while let Some(event) = self.queue.pop_front() {
                if let Some(event) = tell(&self.store.keys, &event) {
                    return Ok(event);
                }
            }
            let Some(follow) = &mut self.follow else {
                self.open().await?;
                continue;
            };
            match follow.next().await? {
                Heard::Events(events) => self.queue.extend(events),
                Heard::Progress(_) => {}
                Heard::Compacted => {
                    self.after = None;
                    self.open().await?;
                    return Ok(WatchEvent::Lagged);
                }
            }
        }
    }

    async fn open(&mut self) -> Result<(), StoreError> {
        let key = self.store.keys.under(&self.prefix);
        self.follow = Some(self.store.follow(key, Range::Prefix, self.after).await?);
        Ok(())
    }
}

/// What an event means; `None` for keys that are nobody's business.
fn tell(keys: &Keys, event: &Event) -> Option<WatchEvent> {
    let now = event.kv()?;
    let key = keys.parse(now.key())?;
    let at = revision(now.mod_revision());
    Some(match event.event_type() {
        EventType::Put => match Found::of(now) {
            Found::Record(found) => WatchEvent::Held(found.record(key), at),
            _ => WatchEvent::Written(Document::new(key, Bytes::copy_from_slice(now.value()), at)),
        },
        EventType::Delete => match event.prev_kv() {
            Some(before) if decode(before.value()).is_some() => WatchEvent::Vacant(key, at),
            Some(_) => WatchEvent::Deleted(key, at),
            // Compacted in the meantime.
            None => WatchEvent::Lagged,
        },
    })
}

pub(crate) fn revision(number: i64) -> Revision {
    Revision::new(u64::try_from(number).unwrap_or(0))
}

// === impl Follow ===

impl Follow {
    /// Follows from `start` on; from now on if that is 0.
    pub(crate) async fn open(
        pool: &Arc<Pool>,
        key: Vec<u8>,
        range: Range,
        start: u64,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        let options = WatchOptions::new()
            .with_prev_key()
            .with_start_revision(i64::try_from(start).unwrap_or(i64::MAX));
        let options = if range == Range::Prefix {
            options.with_prefix()
        } else {
            options
        };
        let member = pool.at();
        let opened = timeout(patience, Self::open_at(pool, member, key, options));
        let opened = opened.await.unwrap_or(Err(Failed::TimedOut(patience)));
        pool.note(member, opened.as_ref().err()).await;
        let (taken, stream, created) = opened?;
        let is_compacted = created.compact_revision() != 0;
        let cluster = created.header().map_or(0, ResponseHeader::cluster_id);
        Ok(Self {
            pool: pool.clone(),
            taken,
            stream,
            patience,
            cluster,
            is_compacted,
        })
    }

    /// Once more with another token, if the first one may have been refused.
    async fn open_at(
        pool: &Pool,
        member: usize,
        key: Vec<u8>,
        options: WatchOptions,
    ) -> Result<Opened, Failed> {
        let taken = pool.take(member).await?;
        let taken = match Self::create(taken, key.clone(), options.clone()).await {
            Err((taken, failed)) if failed.may_be_stale_token() => {
                pool.refresh(&taken).await?;
                pool.take(member).await?
            }
            opened => return opened.map_err(|(_, failed)| failed),
        };
        let opened = Self::create(taken, key, options).await;
        opened.map_err(|(_, failed)| failed)
    }

    async fn create(
        taken: Taken,
        key: Vec<u8>,
        options: WatchOptions,
    ) -> Result<Opened, (Taken, Failed)> {
        // Leaders and the like are asked when the stream opens.
        let mut client = taken
            .client
            .watch_client()
            .max_decoding_message_size(MAX_MESSAGE);
        let created = async {
            let mut stream = client.watch(key, Some(options)).await?;
            let created = stream.message().await?;
            Ok((stream, created))
        };
        let (stream, created) = match created.await {
            Ok(created) => created,
            Err(error) => return Err((taken, Failed::Etcd(error))),
        };
        let Some(created) = created.filter(WatchResponse::created) else {
            return Err((taken, broken("the watch was not made")));
        };
        if created.canceled() && created.compact_revision() == 0 {
            return Err((taken, canceled(created.cancel_reason())));
        }
        Ok((taken, stream, created))
    }

    /// What comes next. An error is final.
    pub(crate) async fn next(&mut self) -> Result<Heard, StoreError> {
        let heard = self.hear().await;
        if let Err(failed) = &heard {
            self.pool.note(self.taken.member, Some(failed)).await;
        }
        Ok(heard?)
    }

    /// What the member says it is; nothing if it does not say.
    #[cfg(feature = "resolve")]
    pub(crate) async fn version(&self) -> String {
        let mut client = self.taken.client.maintenance_client();
        let told = timeout(self.patience, client.status()).await;
        told.ok()
            .and_then(Result::ok)
            .map(|status| status.version().to_owned())
            .unwrap_or_default()
    }

    async fn hear(&mut self) -> Result<Heard, Failed> {
        if self.is_compacted {
            return Ok(Heard::Compacted);
        }
        let message = match timeout(PROBE_EVERY, self.stream.message()).await {
            Ok(message) => message.map_err(Failed::Etcd)?,
            Err(_) => self.probe().await?,
        };
        let Some(message) = message else {
            return Err(broken("the watch has ended"));
        };
        if message.compact_revision() != 0 {
            return Ok(Heard::Compacted);
        }
        if message.canceled() {
            return Err(canceled(message.cancel_reason()));
        }
        if message.events().is_empty() {
            return Ok(Heard::Progress(
                message.header().map_or(0, ResponseHeader::revision),
            ));
        }
        Ok(Heard::Events(message.events().to_vec()))
    }

    /// Asks for a sign of life. Any message is one.
    async fn probe(&mut self) -> Result<Option<WatchResponse>, Failed> {
        self.stream.request_progress().await.map_err(Failed::Etcd)?;
        let answer = timeout(self.patience, self.stream.message()).await;
        answer
            .map_err(|_| Failed::TimedOut(self.patience))?
            .map_err(Failed::Etcd)
    }
}

/// Why etcd ended a watch: a refusal, or something that may be over at the next attempt.
fn canceled(reason: &str) -> Failed {
    let refused = Failed::Refused(reason.to_owned());
    if refused.may_be_stale_token() {
        refused
    } else {
        broken(reason)
    }
}

fn broken(why: &str) -> Failed {
    Failed::Etcd(etcd_client::Error::WatchError(why.to_owned()))
}
