use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Acquired, Capabilities, Claim, Document, DocumentStore, Fault, FencingToken, Grant, LeaseKey,
    LeaseStore, Listing, Record, Revision, StoreError, Swap, Swapped, Watch, WatchEvent,
};

/// A store behind a bad network: calls are lost, late, repeated, reordered, answered with "unknown", or stopped.
///
/// As made it changes nothing; [`set`](Self::set) sets what goes wrong from here on, by chance and by a seed, so that a
/// run can be repeated. Clones share the network. Each call is carried out by a separate task, whether or not the
/// caller still waits, as a real one would be.
#[derive(Clone)]
pub struct FaultyStore<S> {
    inner: S,
    network: Arc<Network>,
}

/// What goes wrong, and how often. Chances are in a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "faults change nothing until a store is given them"]
pub struct Faults {
    lost_requests: u32,
    lost_answers: u32,
    unknown: u32,
    repeated: u32,
    longest_delay: Duration,
    fails: Option<Fault>,
}

/// Calls made so far, carried out or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// Of `acquire`.
    pub acquires: u64,
    /// Of `renew`.
    pub renewals: u64,
    /// Of `release`, `revoke` and `transfer`.
    pub ends: u64,
    /// All other calls.
    pub others: u64,
}

/// Reports the changes of a [`FaultyStore`]: late, and not at all while it is paused; it breaks where an answer would be
/// lost.
pub struct FaultyWatch<W> {
    inner: W,
    network: Arc<Network>,
    /// An event on its way, and when it arrives.
    coming: Option<(Instant, WatchEvent)>,
}

struct Network {
    state: Mutex<State>,
    paused: watch::Sender<bool>,
}

struct State {
    rng: Rng,
    faults: Faults,
    calls: Calls,
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug)]
struct Fate {
    request_is_lost: bool,
    answer_is_lost: bool,
    is_unknown: bool,
    is_repeated: bool,
    there: Duration,
    back: Duration,
    fails: Option<Fault>,
}

// === impl FaultyStore ===

impl<S> FaultyStore<S> {
    /// `inner` behind a network that works, until [`set`](Self::set) is called.
    pub fn new(inner: S, seed: u64) -> Self {
        let state = State {
            rng: Rng::with_seed(seed),
            faults: Faults::default(),
            calls: Calls::default(),
        };
        let (paused, _) = watch::channel(false);
        Self {
            inner,
            network: Arc::new(Network {
                state: Mutex::new(state),
                paused,
            }),
        }
    }

    /// What goes wrong with the calls that are made from here on.
    pub fn set(&self, faults: Faults) {
        self.network.state().faults = faults;
    }

    /// Stops the store, as a stopped process: calls wait, and watches are silent.
    pub fn pause(&self) {
        self.network.paused.send_replace(true);
    }

    /// Lets a stopped store go on; all that waits is carried out then.
    pub fn resume(&self) {
        self.network.paused.send_replace(false);
    }

    /// How often it was called.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.network.state().calls
    }

    /// The store itself, with nothing in between.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: LeaseStore> FaultyStore<S> {
    async fn call<T, F>(
        &self,
        count: impl FnOnce(&mut Calls) -> &mut u64 + Send,
        make: impl Fn(S) -> F + Send + Sync + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let fate = self.network.fate(count);
        if let Some(fault) = fate.fails {
            return Err(StoreError::new(fault));
        }
        let (answer, answered) = oneshot::channel();
        let (store, network) = (self.inner.clone(), self.network.clone());
        tokio::spawn(async move {
            let result = network.carry(fate, || make(store.clone())).await;
            if !fate.answer_is_lost && !fate.request_is_lost {
                _ = answer.send(result);
            }
        });
        match answered.await {
            Ok(result) => result,
            // Lost: the caller waits for an answer that does not come.
            Err(_) => std::future::pending().await,
        }
    }
}

impl<S: LeaseStore> LeaseStore for FaultyStore<S> {
    type Watch = FaultyWatch<S::Watch>;
    type Fencing = S::Fencing;

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let claim = Arc::new(claim.clone());
        let make = move |store: S| {
            let claim = claim.clone();
            async move { store.acquire(&claim).await }
        };
        self.call(|calls| &mut calls.acquires, make).await
    }

    async fn renew(&self, claim: &Claim) -> Result<Duration, StoreError> {
        let claim = Arc::new(claim.clone());
        let make = move |store: S| {
            let claim = claim.clone();
            async move { store.renew(&claim).await }
        };
        self.call(|calls| &mut calls.renewals, make).await
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        let claim = Arc::new(claim.clone());
        let make = move |store: S| {
            let claim = claim.clone();
            async move { store.release(&claim).await }
        };
        self.call(|calls| &mut calls.ends, make).await
    }

    async fn revoke(&self, key: &LeaseKey, guard: Option<&FencingToken>) -> Result<(), StoreError> {
        let (key, guard) = (key.clone(), guard.cloned());
        let make = move |store: S| {
            let (key, guard) = (key.clone(), guard.clone());
            async move { store.revoke(&key, guard.as_ref()).await }
        };
        self.call(|calls| &mut calls.ends, make).await
    }

    async fn inspect(&self, key: &LeaseKey) -> Result<Option<Record>, StoreError> {
        let key = key.clone();
        let make = move |store: S| {
            let key = key.clone();
            async move { store.inspect(&key).await }
        };
        self.call(|calls| &mut calls.others, make).await
    }

    fn watch(&self, key: &LeaseKey, from: Revision) -> Self::Watch {
        FaultyWatch {
            inner: self.inner.watch(key, from),
            network: self.network.clone(),
            coming: None,
        }
    }

    async fn transfer(&self, from: &Claim, to: &Claim) -> Result<Grant, StoreError> {
        let claims = Arc::new((from.clone(), to.clone()));
        let make = move |store: S| {
            let claims = claims.clone();
            async move { store.transfer(&claims.0, &claims.1).await }
        };
        self.call(|calls| &mut calls.ends, make).await
    }
}

impl<S: DocumentStore> DocumentStore for FaultyStore<S> {
    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        let make = move |store: S| {
            let prefix = prefix.clone();
            async move { store.list_prefix(&prefix).await }
        };
        self.call(|calls| &mut calls.others, make).await
    }

    fn watch_prefix(&self, prefix: &str, after: Revision) -> Self::Watch {
        FaultyWatch {
            inner: self.inner.watch_prefix(prefix, after),
            network: self.network.clone(),
            coming: None,
        }
    }

    async fn read(&self, key: &LeaseKey) -> Result<Option<Document>, StoreError> {
        let key = key.clone();
        let make = move |store: S| {
            let key = key.clone();
            async move { store.read(&key).await }
        };
        self.call(|calls| &mut calls.others, make).await
    }

    async fn swap(&self, swap: &Swap) -> Result<Swapped, StoreError> {
        let swap = Arc::new(swap.clone());
        let make = move |store: S| {
            let swap = swap.clone();
            async move { store.swap(&swap).await }
        };
        self.call(|calls| &mut calls.others, make).await
    }
}

impl<S: fmt::Debug> fmt::Debug for FaultyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self.network.state().faults;
        f.debug_struct("FaultyStore")
            .field("inner", &self.inner)
            .field("faults", &faults)
            .finish_non_exhaustive()
    }
}

// === impl Faults ===

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self::default()
    }

    /// The store is out of reach: nothing arrives, neither there nor back.
    pub fn unreachable() -> Self {
        Self::none().lose_requests(1000)
    }

    /// How many requests in a thousand do not arrive; their callers wait for ever.
    pub fn lose_requests(self, in_a_thousand: u32) -> Self {
        Self {
            lost_requests: in_a_thousand,
            ..self
        }
    }

    /// How many in a thousand are carried out and never answered.
    pub fn lose_answers(self, in_a_thousand: u32) -> Self {
        Self {
            lost_answers: in_a_thousand,
            ..self
        }
    }

    /// How many in a thousand are carried out and answered with [`Fault::Unknown`].
    pub fn answer_unknown(self, in_a_thousand: u32) -> Self {
        Self {
            unknown: in_a_thousand,
            ..self
        }
    }

    /// How many in a thousand are carried out twice, the second time later.
    pub fn repeat(self, in_a_thousand: u32) -> Self {
        Self {
            repeated: in_a_thousand,
            ..self
        }
    }

    /// Each request and each answer takes up to that long, by chance; so they overtake each other.
    pub fn delay(self, longest: Duration) -> Self {
        Self {
            longest_delay: longest,
            ..self
        }
    }

    /// Every call fails like this, and nothing happens.
    pub fn fail(self, fault: Fault) -> Self {
        Self {
            fails: Some(fault),
            ..self
        }
    }
}

// === impl Network ===

impl Network {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, count: impl FnOnce(&mut Calls) -> &mut u64) -> Fate {
        let mut state = self.state();
        *count(&mut state.calls) += 1;
        state.fate()
    }

    /// Carries a call out as often as it arrives.
    async fn carry<T, F>(
        &self,
        fate: Fate,
        make: impl Fn() -> F + Send + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        sleep(fate.there).await;
        if fate.request_is_lost {
            return Err(StoreError::new(Fault::Unknown));
        }
        self.running().await;
        let mut result = make().await;
        if fate.is_repeated {
            sleep(fate.back).await;
            self.running().await;
            result = make().await;
        }
        sleep(fate.back).await;
        self.running().await;
        if fate.is_unknown {
            Err(StoreError::unknown("the answer was mangled"))
        } else {
            result
        }
    }

    async fn running(&self) {
        // We hold the sender, so it does not end.
        _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }
}

impl State {
    fn fate(&mut self) -> Fate {
        let faults = self.faults;
        Fate {
            request_is_lost: self.happens(faults.lost_requests),
            answer_is_lost: self.happens(faults.lost_answers),
            is_unknown: self.happens(faults.unknown),
            is_repeated: self.happens(faults.repeated),
            there: self.delay(),
            back: self.delay(),
            fails: faults.fails,
        }
    }

    fn happens(&mut self, in_a_thousand: u32) -> bool {
        self.rng.u32(0..1000) < in_a_thousand
    }

    fn delay(&mut self) -> Duration {
        self.faults.longest_delay.mul_f64(self.rng.f64())
    }
}

// === impl FaultyWatch ===

impl<W: Watch> Watch for FaultyWatch<W> {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        if self.coming.is_none() {
            let event = self.inner.next().await?;
            let fate = self.network.state().fate();
            if fate.answer_is_lost || fate.request_is_lost || fate.fails.is_some() {
                return Err(StoreError::unknown("the watch broke"));
            }
            self.coming = Some((Instant::now() + fate.back, event));
        }
        if let Some((at, _)) = &self.coming {
            sleep_until(*at).await;
        }
        self.network.running().await;
        self.coming
            .take()
            .map(|(_, event)| event)
            .ok_or_else(|| StoreError::new(Fault::Unknown))
    }
}

impl<W: fmt::Debug> fmt::Debug for FaultyWatch<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyWatch")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
