use std::{
    panic::resume_unwind,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{runtime::Handle, task::JoinHandle};

use super::{shelf::Shown, slot::Slot};
use crate::{
    Endpoint,
    policy::{Candidates, Estimate, LARGE_TABLE, PickContext, Policy},
};

/// The view of a tier that requests use.
#[derive(Debug)]
pub(super) struct View<S, T> {
    pub(super) shown: Shown<S>,
    /// Made of the same candidates in the same order. It outlives changes of their descriptions and services.
    pub(super) table: Arc<T>,
}

/// Creates the view of a tier again when the tier changes.
///
/// A large table is built on another thread. Meanwhile the previous view stays in use: endpoints that were removed since are
/// not picked from it, and new ones are not in it yet.
#[derive(Debug)]
pub(super) struct Views<S, T> {
    latest: Option<Arc<View<S, T>>>,
    state: State,
    building: Option<Building<S>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The latest view is up to date. -> `Replaced`, `Changed`
    True,
    /// Its table is up to date, its entries are not. -> `True` at the next read, `Changed`
    Replaced,
    /// The candidates or their weights changed. -> `True` when their table has been built
    Changed,
}

/// The input of a table that is being built.
#[derive(Debug)]
struct Building<S> {
    shown: Shown<S>,
    is_overtaken: bool,
}

/// Builds large tables, one at a time, on a thread for blocking work.
#[derive(Debug)]
pub(super) struct Builds<K, T> {
    running: Option<(K, JoinHandle<T>)>,
    /// The runtime does not run such threads (any more).
    is_closed: bool,
}

/// Whether a build was started.
enum Start {
    Yes,
    /// Another one runs.
    Later,
    /// There is no thread for it.
    Never,
}

// === impl Views ===

impl<S, T> Views<S, T> {
    pub(super) const fn new() -> Self {
        Self {
            latest: None,
            state: State::Changed,
            building: None,
        }
    }

    /// The candidates or their weights have changed.
    pub(super) fn changed(&mut self) {
        self.state = State::Changed;
        if let Some(building) = &mut self.building {
            building.is_overtaken = true;
        }
    }

    /// A candidate has another description or another service, with the same weight.
    pub(super) fn replaced(&mut self, after: &Arc<Slot<S>>) {
        match (self.state, &mut self.latest) {
            (State::True, _) => self.state = State::Replaced,
            (State::Replaced, _) | (State::Changed, None) => {}
            (State::Changed, Some(latest)) => {
                let mut shown = latest.shown.clone();
                if shown.replace(after) {
                    let table = latest.table.clone();
                    *latest = Arc::new(View { shown, table });
                }
            }
        }
        if let Some(building) = &mut self.building {
            building.shown.replace(after);
        }
    }

    /// The view to publish: of what is `shown` now, or the previous one while the table is being built. `None`: there is
    /// none yet.
    pub(super) fn latest<K, Req, P>(
        &mut self,
        shown: impl FnOnce() -> Shown<S>,
        policy: &Arc<P>,
        (key, builds): (K, &mut Builds<K, T>),
    ) -> Option<Arc<View<S, T>>>
    where
        P: Policy<Req, Table = T>,
        T: Send + 'static,
    {
        match (self.state, &self.latest) {
            (State::True, _) => return self.latest.clone(),
            (State::Replaced, Some(latest)) => {
                let (shown, table) = (shown(), latest.table.clone());
                self.latest = Some(Arc::new(View { shown, table }));
                self.state = State::True;
                return self.latest.clone();
            }
            _ => {}
        }
        let shown = shown();
        if policy.table_size(&shown) > LARGE_TABLE {
            if self.building.is_some() {
                return self.latest.clone();
            }
            match builds.start(key, policy, &shown) {
                Start::Yes => {
                    self.building = Some(Building {
                        shown,
                        is_overtaken: false,
                    });
                    return self.latest.clone();
                }
                Start::Later => return self.latest.clone(),
                Start::Never => {}
            }
        }
        let table = Arc::new(policy.table(&shown));
        self.building = None;
        self.latest = Some(Arc::new(View { shown, table }));
        self.state = State::True;
        self.latest.clone()
    }

    /// The table has been built, or never will be.
    pub(super) fn built(&mut self, table: Option<T>) {
        let Some(Building {
            shown,
            is_overtaken,
        }) = self.building.take()
        else {
            return;
        };
        if let Some(table) = table.map(Arc::new) {
            self.latest = Some(Arc::new(View { shown, table }));
            if !is_overtaken {
                self.state = State::True;
            }
        }
    }
}

// === impl Builds ===

impl<K, T> Builds<K, T> {
    pub(super) const fn new() -> Self {
        Self {
            running: None,
            is_closed: false,
        }
    }

    fn start<S, Req, P>(&mut self, key: K, policy: &Arc<P>, shown: &Shown<S>) -> Start
    where
        P: Policy<Req, Table = T>,
        T: Send + 'static,
    {
        if self.running.is_some() {
            return Start::Later;
        }
        let Some(runtime) = Handle::try_current().ok().filter(|_| !self.is_closed) else {
            return Start::Never;
        };
        let (policy, described) = (policy.clone(), Described::of(shown));
        let running = runtime.spawn_blocking(move || policy.table(&described));
        self.running = Some((key, running));
        Start::Yes
    }

    /// Waits for the table of the running build. `None`: the runtime is shutting down.
    ///
    /// # Panics
    ///
    /// If the policy panicked.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(K, Option<T>)> {
        let Some((_, running)) = &mut self.running else {
            return Poll::Pending;
        };
        let result = ready!(std::pin::Pin::new(running).poll(cx));
        let Some((key, _)) = self.running.take() else {
            return Poll::Pending;
        };
        let table = result.map_err(|error| {
            if let Ok(panic) = error.try_into_panic() {
                resume_unwind(panic);
            }
            self.is_closed = true;
        });
        Poll::Ready((key, table.ok()))
    }
}

/// Candidates without their services, which need not be [`Send`]. They have no requests in flight.
struct Described {
    endpoints: Box<[Arc<Endpoint>]>,
    heaviest: u32,
    total_weight: u64,
}

// === impl Described ===

impl Described {
    fn of<S>(shown: &Shown<S>) -> Self {
        let endpoint = |index| shown.slot(index).endpoint.clone();
        Self {
            endpoints: (0..shown.count()).map(endpoint).collect(),
            heaviest: shown.heaviest(),
            total_weight: shown.total_weight(),
        }
    }
}

impl Candidates for Described {
    fn count(&self) -> usize {
        self.endpoints.len()
    }

    fn endpoint(&self, index: usize) -> &Endpoint {
        &self.endpoints[index]
    }

    fn in_flight(&self, _: usize) -> u32 {
        0
    }

    fn penalty(&self, _: usize) -> u32 {
        1
    }

    fn weight(&self, index: usize) -> u32 {
        self.endpoints[index].weight().get()
    }

    fn warmth(&self, _: usize) -> f32 {
        1.0
    }

    fn heaviest(&self) -> u32 {
        self.heaviest
    }

    fn total_weight(&self) -> u64 {
        self.total_weight
    }

    fn latency(&self, _: usize, _: &PickContext) -> Estimate {
        Estimate::AtLeast(0.0)
    }

    fn total_in_flight(&self) -> u64 {
        0
    }
}
