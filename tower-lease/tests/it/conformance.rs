//! The suite for stores, over the store in memory; and over stores that are wrong on purpose, which it must find out.

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tower_lease::{
    Acquired, Capabilities, Claim, Document, DocumentStore, FencingToken, Grant, LeaseKey,
    LeaseStore, Listing, MemoryStore, MemoryWatch, Record, Revision, StoreError, Swap, Swapped,
    Watch, WatchEvent, fencing, testing::Conformance,
};

#[tokio::test(start_paused = true)]
async fn the_memory_store_conforms() {
    let store = MemoryStore::new();
    Conformance::new(store.clone(), store.clone())
        .ttl(Duration::from_secs(3))
        .run_with_documents()
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let left = store.list_prefix("").await.unwrap();
    assert_eq!(
        (left.records.len(), left.documents.len()),
        (0, 0),
        "the suite leaves nothing behind"
    );
}

/// An engine that is loaded answers late now and then, and then the result is unknown.
#[tokio::test(start_paused = true)]
async fn r15_a_store_that_is_right_and_often_silent_conforms() {
    let store = Flawed::new(Flaw::LosesAnswers);
    Conformance::new(store.clone(), store.clone())
        .run_with_documents()
        .await;
    assert!(
        store.calls.load(Relaxed) > 100,
        "of which every second had no answer"
    );
}

/// What is wrong with a [`Flawed`] store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    GrantsTwice,
    ForgetsItsClaims,
    RenewsAnyone,
    ReleasesAnyone,
    RepeatsTokens,
    CallsEveryEndClean,
    PromisesTooMuch,
    NeverEnds,
    WatchSwallowsEnds,
    WatchSkipsTheStart,
    WatchTellsThePast,
    ListsTooMuch,
    IgnoresGuards,
    IgnoresWhatIsExpected,
    LeavesBoundDocuments,
    TransfersFromAnyone,
    LosesPayloads,
    /// To every second request that may be repeated; it was carried out.
    LosesAnswers,
}

const FLAWS: [(Flaw, &str); 17] = [
    (Flaw::GrantsTwice, "R-14"),
    (Flaw::ForgetsItsClaims, "R-15"),
    (Flaw::RenewsAnyone, "R-16"),
    (Flaw::ReleasesAnyone, "R-30"),
    (Flaw::RepeatsTokens, "R-19"),
    (Flaw::CallsEveryEndClean, "R-18"),
    (Flaw::PromisesTooMuch, "R-2"),
    (Flaw::NeverEnds, "not renewed ends"),
    (Flaw::WatchSwallowsEnds, "R-12"),
    (Flaw::WatchSkipsTheStart, "R-12"),
    (Flaw::WatchTellsThePast, "as of the grant or later"),
    (Flaw::ListsTooMuch, "under the prefix"),
    (Flaw::IgnoresGuards, "R-21"),
    (Flaw::IgnoresWhatIsExpected, "it is there already"),
    (Flaw::LeavesBoundDocuments, "bound document"),
    (Flaw::TransfersFromAnyone, "R-20"),
    (Flaw::LosesPayloads, "name, incarnation and payload"),
];

#[tokio::test(start_paused = true)]
async fn a_store_that_is_wrong_is_found_out() {
    for (flaw, rule) in FLAWS {
        let store = Flawed::new(flaw);
        let run = tokio::spawn(Conformance::new(store.clone(), store).run_with_documents()).await;
        let panic = run
            .expect_err(&format!("{flaw:?} passes the suite"))
            .into_panic();
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or_default();
        assert!(
            message.contains(rule),
            "{flaw:?} is found out for another reason: {message}"
        );
    }
}

#[derive(Clone, Debug)]
struct Flawed {
    inner: MemoryStore,
    flaw: Flaw,
    calls: Arc<AtomicU32>,
}

struct FlawedWatch(MemoryWatch, Flaw);

impl Flawed {
    fn new(flaw: Flaw) -> Self {
        Self {
            inner: MemoryStore::new(),
            flaw,
            calls: Arc::default(),
        }
    }

    fn told<T>(&self, answer: T) -> Result<T, StoreError> {
        let is_lost =
            self.calls.fetch_add(1, Relaxed).is_multiple_of(2) && self.is(Flaw::LosesAnswers);
        if is_lost {
            Err(StoreError::unknown("no answer in time"))
        } else {
            Ok(answer)
        }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn bent(&self, grant: Grant) -> Grant {
        let epoch = if self.is(Flaw::RepeatsTokens) {
            NonZeroU64::MIN
        } else {
            grant.token().epoch()
        };
        let token = FencingToken::new(grant.token().key().clone(), epoch);
        let ttl = if self.is(Flaw::PromisesTooMuch) {
            grant.ttl() * 2
        } else {
            grant.ttl()
        };
        let bent = Grant::new(token, ttl, grant.revision());
        if grant.is_clean() || self.is(Flaw::CallsEveryEndClean) {
            bent.after_clean_end()
        } else {
            bent
        }
    }

    fn bent_record(&self, record: Record) -> Record {
        match self.flaw {
            Flaw::RepeatsTokens => {
                let token = FencingToken::new(record.key().clone(), NonZeroU64::MIN);
                Record::new(token, record.holder().clone(), record.claim())
            }
            Flaw::LosesPayloads => {
                let holder = record.holder();
                let bare = tower_lease::Holder::restore(
                    holder.name(),
                    holder.incarnation(),
                    bytes::Bytes::new(),
                );
                Record::new(record.token().clone(), bare, record.claim())
            }
            _ => record,
        }
    }

    /// The claim that holds the key.
    async fn holder_of(&self, claim: &Claim) -> Result<Claim, StoreError> {
        let record = self.inner.inspect(claim.key()).await?;
        let id = record.map_or(claim.id(), |record| record.claim());
        Ok(Claim::new(
            claim.key().clone(),
            claim.holder().clone(),
            id,
            claim.ttl(),
        ))
    }
}

impl LeaseStore for Flawed {
    type Watch = FlawedWatch;
    type Fencing = fencing::Monotonic;

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let held = self.inner.inspect(claim.key()).await?;
        if let Some(record) = held {
            let ours = record.claim() == claim.id();
            if self.is(Flaw::ForgetsItsClaims) && ours {
                return Ok(Acquired::Held(record));
            }
            if self.is(Flaw::GrantsTwice) && !ours {
                return Ok(Acquired::Granted(Grant::new(
                    record.token().clone(),
                    claim.ttl(),
                    Revision::new(1),
                )));
            }
        }
        let endless = Claim::new(
            claim.key().clone(),
            claim.holder().clone(),
            claim.id(),
            Duration::from_secs(9_999),
        );
        let claim = if self.is(Flaw::NeverEnds) {
            &endless
        } else {
            claim
        };
        self.told(match self.inner.acquire(claim).await? {
            Acquired::Granted(grant) if self.is(Flaw::NeverEnds) => {
                let told = Grant::new(
                    grant.token().clone(),
                    Duration::from_secs(1),
                    grant.revision(),
                );
                Acquired::Granted(if grant.is_clean() {
                    told.after_clean_end()
                } else {
                    told
                })
            }
            Acquired::Granted(grant) => Acquired::Granted(self.bent(grant)),
            Acquired::Held(record) => Acquired::Held(self.bent_record(record)),
        })
    }

    async fn renew(&self, claim: &Claim) -> Result<Duration, StoreError> {
        let holder = self.holder_of(claim).await?;
        self.told(
            self.inner
                .renew(if self.is(Flaw::RenewsAnyone) {
                    &holder
                } else {
                    claim
                })
                .await?,
        )
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        let holder = self.holder_of(claim).await?;
        self.told(
            self.inner
                .release(if self.is(Flaw::ReleasesAnyone) {
                    &holder
                } else {
                    claim
                })
                .await?,
        )
    }

    async fn revoke(&self, key: &LeaseKey, guard: Option<&FencingToken>) -> Result<(), StoreError> {
        self.told(self.inner.revoke(key, guard).await?)
    }

    async fn inspect(&self, key: &LeaseKey) -> Result<Option<Record>, StoreError> {
        Ok(self
            .inner
            .inspect(key)
            .await?
            .map(|record| self.bent_record(record)))
    }

    fn watch(&self, key: &LeaseKey, from: Revision) -> FlawedWatch {
        let watch = match self.flaw {
            Flaw::WatchSkipsTheStart => self.inner.watch_prefix(key.as_str(), from),
            _ => self.inner.watch(key, from),
        };
        FlawedWatch(watch, self.flaw)
    }

    async fn transfer(&self, from: &Claim, to: &Claim) -> Result<Grant, StoreError> {
        let holder = self.holder_of(from).await?;
        let from = if self.is(Flaw::TransfersFromAnyone) {
            &holder
        } else {
            from
        };
        self.told(self.bent(self.inner.transfer(from, to).await?))
    }
}

impl DocumentStore for Flawed {
    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = if self.is(Flaw::ListsTooMuch) {
            prefix.trim_end_matches('/')
        } else {
            prefix
        };
        self.inner.list_prefix(prefix).await
    }

    fn watch_prefix(&self, prefix: &str, after: Revision) -> FlawedWatch {
        FlawedWatch(self.inner.watch_prefix(prefix, after), self.flaw)
    }

    async fn read(&self, key: &LeaseKey) -> Result<Option<Document>, StoreError> {
        self.inner.read(key).await
    }

    async fn swap(&self, swap: &Swap) -> Result<Swapped, StoreError> {
        let (key, value) = (
            swap.key().clone(),
            swap.value().cloned().unwrap_or_default(),
        );
        let expecting = |at: Revision| Document::new(key.clone(), bytes::Bytes::new(), at);
        let bent = match (self.flaw, swap.value(), swap.guard()) {
            (Flaw::IgnoresWhatIsExpected, Some(_), _) => match self.inner.read(&key).await? {
                Some(found) => Swap::replace(&found, value),
                None => swap.clone(),
            },
            (Flaw::IgnoresGuards, Some(_), Some(_)) => match swap.expected() {
                Some(at) => Swap::replace(&expecting(at), value),
                None => Swap::create(key, value),
            },
            (Flaw::LeavesBoundDocuments, Some(_), Some(guard)) if swap.is_bound() => {
                Swap::create(key, value).guarded_by(guard)
            }
            _ => swap.clone(),
        };
        self.inner.swap(&bent).await
    }
}

impl Watch for FlawedWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            match self.0.next().await? {
                WatchEvent::Vacant(..) if self.1 == Flaw::WatchSwallowsEnds => {}
                WatchEvent::Held(record, at) if self.1 == Flaw::WatchTellsThePast => {
                    let before = Revision::new(at.number() - 1);
                    return Ok(WatchEvent::Held(record, before));
                }
                event => return Ok(event),
            }
        }
    }
}
