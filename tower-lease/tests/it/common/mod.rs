//! A store with faults chosen by the test, and leases to try it with.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};
use tower_lease::{
    Acquired, BootInstant, Capabilities, Claim, Clock, Fault, FencingToken, Holder, Lease,
    LeaseBuilder, LeaseKey, LeaseStore, MemoryStore, MemoryWatch, Record, Revision, State,
    StoreError, TokioClock, Watch, WatchEvent,
};

pub(crate) const TTL: Duration = Duration::from_secs(10);
/// The TTL less its margin.
pub(crate) const VALID: Duration = Duration::from_millis(9_300);

/// How a call goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Pass,
    /// It never gets there.
    LoseRequest,
    /// It is carried out and never answered.
    LoseAnswer,
    /// The answer takes that long.
    Delay(Duration),
    /// It fails like this, and nothing happened.
    Fail(Fault),
    /// It is carried out, and the answer is "unknown".
    DoneButUnknown,
    /// The answer promises this TTL.
    Ttl(Duration),
    Panic,
}

/// A [`MemoryStore`] behind a bad network.
#[derive(Clone)]
pub(crate) struct Flaky {
    inner: Arc<Mutex<MemoryStore>>,
    ways: Arc<Mutex<Ways>>,
}

#[derive(Default)]
struct Ways {
    acquire: Script,
    renew: Script,
    release: Script,
    watches_break: bool,
    /// How often the store was restored. Watches of before that break.
    restored: usize,
    sent: Sent,
}

/// How many calls were made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) acquires: usize,
    pub(crate) renewals: usize,
    pub(crate) releases: usize,
}

struct Script {
    next: VecDeque<Way>,
    then: Way,
}

pub(crate) struct FlakyWatch {
    inner: MemoryWatch,
    ways: Arc<Mutex<Ways>>,
    restored: usize,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            next: VecDeque::new(),
            then: Way::Pass,
        }
    }
}

impl Script {
    fn take(&mut self) -> Way {
        self.next.pop_front().unwrap_or(self.then)
    }
}

impl Flaky {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::default(),
            ways: Arc::default(),
        }
    }

    /// The next acquires, and all that follow.
    pub(crate) fn acquires(&self, next: impl IntoIterator<Item = Way>, then: Way) {
        self.ways.lock().unwrap().acquire = Script {
            next: next.into_iter().collect(),
            then,
        };
    }

    pub(crate) fn renewals(&self, next: impl IntoIterator<Item = Way>, then: Way) {
        self.ways.lock().unwrap().renew = Script {
            next: next.into_iter().collect(),
            then,
        };
    }

    pub(crate) fn releases(&self, then: Way) {
        self.ways.lock().unwrap().release.then = then;
    }

    pub(crate) fn watches_break(&self, broken: bool) {
        self.ways.lock().unwrap().watches_break = broken;
    }

    /// Puts an old backup in the place of the store: an empty one. Its revisions begin anew, and streams break.
    pub(crate) fn restore(&self) {
        let mut ways = self.ways.lock().unwrap();
        *self.inner.lock().unwrap() = MemoryStore::new();
        ways.restored += 1;
    }

    pub(crate) fn inner(&self) -> MemoryStore {
        self.inner.lock().unwrap().clone()
    }

    fn watching(&self, inner: MemoryWatch) -> FlakyWatch {
        FlakyWatch {
            inner,
            ways: self.ways.clone(),
            restored: self.ways.lock().unwrap().restored,
        }
    }

    pub(crate) fn sent(&self) -> Sent {
        self.ways.lock().unwrap().sent
    }

    pub(crate) async fn record(&self) -> Option<Record> {
        self.inner().inspect(&key()).await.unwrap()
    }
}

async fn go<T>(
    way: Way,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match way {
        Way::Pass | Way::Ttl(_) => call.await,
        Way::LoseRequest => pending().await,
        Way::LoseAnswer => {
            let _ = call.await;
            pending().await
        }
        Way::Delay(delay) => {
            let answer = call.await;
            sleep(delay).await;
            answer
        }
        Way::Fail(fault) => Err(StoreError::new(fault)),
        Way::DoneButUnknown => {
            let _ = call.await;
            Err(StoreError::unknown("connection reset"))
        }
        Way::Panic => panic!("the store panics"),
    }
}

impl LeaseStore for Flaky {
    type Watch = FlakyWatch;
    type Fencing = tower_lease::fencing::Monotonic;

    fn capabilities(&self) -> Capabilities {
        self.inner().capabilities()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let way = {
            let mut ways = self.ways.lock().unwrap();
            ways.sent.acquires += 1;
            ways.acquire.take()
        };
        let acquired = go(way, self.inner().acquire(claim)).await?;
        Ok(match (acquired, way) {
            (Acquired::Granted(grant), Way::Ttl(ttl)) => Acquired::Granted(
                tower_lease::Grant::new(grant.token().clone(), ttl, grant.revision()),
            ),
            (acquired, _) => acquired,
        })
    }

    async fn renew(&self, claim: &Claim) -> Result<Duration, StoreError> {
        let way = {
            let mut ways = self.ways.lock().unwrap();
            ways.sent.renewals += 1;
            ways.renew.take()
        };
        let ttl = go(way, self.inner().renew(claim)).await?;
        Ok(match way {
            Way::Ttl(ttl) => ttl,
            _ => ttl,
        })
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        let way = {
            let mut ways = self.ways.lock().unwrap();
            ways.sent.releases += 1;
            ways.release.take()
        };
        go(way, self.inner().release(claim)).await
    }

    async fn revoke(&self, key: &LeaseKey, guard: Option<&FencingToken>) -> Result<(), StoreError> {
        self.inner().revoke(key, guard).await
    }

    async fn inspect(&self, key: &LeaseKey) -> Result<Option<Record>, StoreError> {
        self.inner().inspect(key).await
    }

    fn watch(&self, key: &LeaseKey, from: Revision) -> FlakyWatch {
        self.watching(self.inner().watch(key, from))
    }
}

impl FlakyWatch {
    fn is_broken(&self) -> bool {
        let ways = self.ways.lock().unwrap();
        ways.watches_break || ways.restored != self.restored
    }
}

impl Watch for FlakyWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            if self.is_broken() {
                return Err(StoreError::unknown("the watch broke"));
            }
            tokio::select! {
                event = self.inner.next() => return event,
                () = sleep(Duration::from_millis(20)) => {}
            }
        }
    }
}

/// A clock that counts a suspension which Tokio's does not.
#[derive(Clone, Debug)]
pub(crate) struct Suspending {
    clock: TokioClock,
    asleep: Arc<AtomicU64>,
}

impl Suspending {
    pub(crate) fn new() -> Self {
        Self {
            clock: TokioClock::new(),
            asleep: Arc::default(),
        }
    }

    pub(crate) fn suspend(&self, slept: Duration) {
        self.asleep
            .fetch_add(slept.as_nanos().try_into().unwrap(), SeqCst);
    }
}

impl Clock for Suspending {
    fn now(&self) -> BootInstant {
        self.clock
            .now()
            .after(Duration::from_nanos(self.asleep.load(SeqCst)))
    }
}

pub(crate) fn key() -> LeaseKey {
    LeaseKey::new("svc/echo/0").unwrap()
}

/// On Tokio's clock, which the tests pause.
pub(crate) fn builder<S: LeaseStore>(store: &S) -> LeaseBuilder<S, TokioClock> {
    Lease::builder(store.clone(), key(), Holder::new("echo-0")).clock(TokioClock::new())
}

pub(crate) type Kept = (Lease<TokioClock>, JoinHandle<State>);

pub(crate) fn spawn<S: LeaseStore>(builder: LeaseBuilder<S, TokioClock>) -> Kept {
    let (lease, keeper) = builder.build().unwrap();
    (lease, tokio::spawn(keeper.run()))
}

/// A lease that is held, on a new store.
pub(crate) async fn held() -> (MemoryStore, Kept) {
    let store = MemoryStore::new();
    let kept = spawn(builder(&store));
    soon(kept.0.held()).await.unwrap();
    (store, kept)
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Lets everything that is ready run, without letting time pass.
pub(crate) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// What should not take long: a test that hangs shows where. The time is looked at first, so that this does not stand in
/// for a wake-up that was lost.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::select! {
        biased;
        () = sleep(Duration::from_secs(300)) => panic!("not within five minutes of paused time"),
        output = future => output,
    }
}
