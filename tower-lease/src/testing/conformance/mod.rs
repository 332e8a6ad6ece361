//! What every store must do, as one suite that any store can be put through.

mod clock;
mod documents;
mod holding;
mod watching;

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    Acquired, Claim, ClaimId, DocumentStore, Fault, Grant, Holder, LeaseKey, LeaseStore, Record,
    StoreError, fencing::Fencing,
};

/// The suite. It looks at the store through two handles, and panics, naming the rule, at the first that is broken.
///
/// A request whose answer is unknown is sent again, within the slack, as keepers do (R-15); but for swaps, which are no
/// such requests. It waits for leases to expire, some three TTLs in all. On a real engine its keys lie under a separate prefix,
/// to which no other client may write; the rest of the engine is left alone.
///
/// ```
/// use std::time::Duration;
/// use tower_lease::{MemoryStore, testing::Conformance};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let store = MemoryStore::new();
/// Conformance::new(store.clone(), store).ttl(Duration::from_secs(2)).run_with_documents().await;
/// # });
/// ```
#[must_use = "the suite does nothing until it is run"]
pub struct Conformance<S> {
    one: S,
    other: S,
    prefix: String,
    ttl: Duration,
    slack: Duration,
    keys: AtomicU32,
}

// === impl Conformance ===

impl<S: LeaseStore> Conformance<S> {
    /// A suite that sees one authority through two handles: best two connections, at least two clones.
    pub fn new(one: S, other: S) -> Self {
        let prefix = format!("conformance/{:032x}/", ClaimId::random().as_u128());
        let ttl = one.capabilities().min_ttl().max(Duration::from_secs(1));
        Self {
            one,
            other,
            prefix,
            ttl,
            slack: Duration::from_secs(5),
            keys: AtomicU32::new(0),
        }
    }

    /// Where its keys lie. Default: `conformance/` and a random name.
    pub fn under(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// The TTL it asks for. Default: the store's shortest, at least a second.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How much later than promised an answer, an expiry or an event may come, beside the store's own granularity.
    /// Default: 5 s, for machines that are busy.
    pub fn slack(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// Runs every check: those that wait for the end of a lease at the same time, all other checks one after the other.
    ///
    /// # Panics
    ///
    /// A rule is broken, or the store answered with an error where it must not.
    pub async fn run(self) {
        self.leases().await;
        self.end_by_time().await;
    }

    async fn leases(&self) {
        self.hold().await;
        if self.one.capabilities().watch() {
            self.watch().await;
        }
    }

    /// A key that was never used.
    fn key(&self) -> LeaseKey {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        LeaseKey::new(&format!("{}{number}", self.prefix))
            .expect("the prefix is short visible ASCII")
    }

    fn claim(&self, key: &LeaseKey) -> Claim {
        let holder = Holder::new("conformance")
            .with_payload("10.0.0.7:80")
            .expect("short");
        Claim::new(key.clone(), holder, ClaimId::random(), self.ttl)
    }

    async fn granted(&self, claim: &Claim) -> Grant {
        match known(self.patience(), || self.one.acquire(claim)).await {
            Ok(Acquired::Granted(grant)) => grant,
            other => panic!("R-14: a free key is granted: {other:?}"),
        }
    }

    /// A key that is held, by this claim, with this grant.
    async fn held(&self) -> (LeaseKey, Claim, Grant) {
        let key = self.key();
        let claim = self.claim(&key);
        let grant = self.granted(&claim).await;
        (key, claim, grant)
    }

    async fn inspected(&self, key: &LeaseKey) -> Option<Record> {
        self.answer(|| self.other.inspect(key), "inspect").await
    }

    /// What a call that may be repeated was answered.
    async fn answer<T, F>(&self, call: impl Fn() -> F, what: &str) -> T
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        ok(known(self.patience(), call).await, what)
    }

    async fn assert_fault<T: fmt::Debug, F>(&self, call: impl Fn() -> F, fault: Fault, rule: &str)
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        assert_fault(known(self.patience(), call).await, fault, rule);
    }

    /// For how long to ask again, and how often.
    fn patience(&self) -> (Duration, Duration) {
        (self.slack, self.ttl / 40)
    }

    /// How long a lease may outlive its TTL before that is a fault.
    fn lateness(&self) -> Duration {
        self.one.capabilities().expiry_granularity() + self.slack
    }

    /// Waits until the key is vacant.
    async fn until_vacant(&self, key: &LeaseKey, limit: Duration) {
        let start = Instant::now();
        while self.inspected(key).await.is_some() {
            assert!(
                start.elapsed() < limit,
                "a lease that is not renewed ends: still held after {limit:?}"
            );
            sleep(self.ttl / 40).await;
        }
    }

    /// R-19, where the tokens of the store fence.
    fn assert_rises(&self, from: &Grant, to: &Grant, how: &str) {
        if S::Fencing::IS_MONOTONIC {
            let rises = from
                .token()
                .compare(to.token())
                .expect("R-25: of one key")
                .is_lt();
            assert!(
                rises,
                "R-19: a token rises over {how}: {} then {}",
                from.token(),
                to.token()
            );
        }
    }
}

impl<S: DocumentStore> Conformance<S> {
    /// Runs every check of [`run`](Self::run), and those of documents, listings and watches of a prefix.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub async fn run_with_documents(self) {
        self.leases().await;
        self.document().await;
        tokio::join!(
            self.end_by_time(),
            self.a_bound_document_ends_with_an_expiry()
        );
        self.clean_up().await;
    }
}

impl<S: fmt::Debug> fmt::Debug for Conformance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conformance")
            .field("store", &self.one)
            .field("under", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Asks until the answer is known, as a keeper does (R-15): only for what may be repeated.
async fn known<T, F>(
    (limit, pause): (Duration, Duration),
    call: impl Fn() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let start = Instant::now();
    loop {
        match call().await {
            Err(error) if error.fault() == Fault::Unknown && start.elapsed() < limit => {
                sleep(pause).await
            }
            known => return known,
        }
    }
}

fn ok<T>(result: Result<T, StoreError>, what: &str) -> T {
    result.unwrap_or_else(|error| panic!("{what} must work, not: {}", text_of(&error)))
}

fn assert_fault<T: fmt::Debug>(result: Result<T, StoreError>, fault: Fault, rule: &str) {
    match result {
        Err(error) if error.fault() == fault => {}
        other => panic!("{rule}: {fault:?} is the answer, not {other:?}"),
    }
}

fn text_of(error: &StoreError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
