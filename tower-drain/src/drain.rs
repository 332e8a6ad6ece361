use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU8,
            Ordering::{Acquire, Release},
        },
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    bell::{Bell, Bells},
    count::{Count, Kind},
    guard::Guard,
    phase::{Phase, Phases, Times},
    report::{Report, Snapshot},
    wait::{Done, Reached},
};

/// The handle of a drain. It is cheap to clone, and all clones refer to the same drain.
///
/// Four methods move it forward; none moves it back:
///
/// | | from `Serving` | later |
/// |---|---|---|
/// | [`begin_drain`](Self::begin_drain) | `Announcing` | nothing: it may be called any number of times |
/// | [`shutdown`](Self::shutdown) | `Closing`, without announcing | `Closing` if announcing, else nothing |
/// | [`force`](Self::force) | `Forced` | `Forced` |
/// | [`escalate`](Self::escalate) | `Announcing` | `Forced`, as on a second signal |
///
/// # When phases advance
///
/// A drain has no background task. Its phase advances whenever it is observed or awaited: [`phase`](Self::phase) and
/// [`snapshot`](Self::snapshot) check the clock, and every future of this handle ([`closing`](Self::closing),
/// [`done`](Self::done) …) has its own timer. An accept loop of this crate always awaits the drain; with another
/// server, await [`done`](Self::done) beside it. An application that has only a [`subscribe`](Self::subscribe)d receiver
/// must await the drain as well; `tokio::spawn(drain.done())` is enough.
#[derive(Clone)]
pub struct Drain {
    pub(crate) shared: Arc<Shared>,
}

/// The durations of a [`Drain`], each of which may be zero.
#[derive(Clone, Copy, Debug)]
#[must_use = "call build()"]
pub struct DrainBuilder {
    times: Times,
}

pub(crate) struct Shared {
    pub(crate) count: Count,
    phase: AtomicU8,
    heart: Mutex<Phases>,
    /// Any change of phase.
    pub(crate) changed: Arc<Notify>,
    /// `Closing` or later. Separate from `changed`, so that ten thousand connections are not woken at each change.
    pub(crate) closing: Bell,
    pub(crate) done: Bell,
    /// The same, for requests.
    pub(crate) requests_done: Bells,
    watch: watch::Sender<Phase>,
}

// === impl Drain ===

impl Drain {
    /// A drain with the default durations: 5 s, 20 s and 2 s.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A drain with custom durations.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_drain::Drain;
    ///
    /// let drain = Drain::builder().announce(Duration::from_secs(5)).close(Duration::from_secs(10)).build();
    /// # let _ = drain;
    /// ```
    pub const fn builder() -> DrainBuilder {
        DrainBuilder {
            times: Times {
                announce: ANNOUNCE,
                close: CLOSE,
                force: FORCE,
            },
        }
    }

    /// Begins the drain: readiness is withdrawn, while new connections are still served until the announce time is over.
    ///
    /// Calling it again changes nothing, so a health probe or an admin page may call it any number of times.
    pub fn begin_drain(&self) {
        self.shared.advance(Phase::Announcing);
    }

    /// Begins closing now, without announcing, or ends announcing.
    pub fn shutdown(&self) {
        self.shared.advance(Phase::Closing);
    }

    /// Cancels the remaining handlers now. They have the force time to end, then they are cut.
    pub fn force(&self) {
        self.shared.advance(Phase::Forced);
    }

    /// The response to a signal: the first [begins](Self::begin_drain) the drain, every later one [forces](Self::force) it.
    pub fn escalate(&self) {
        match self.phase() {
            Phase::Serving => self.begin_drain(),
            _ => self.force(),
        }
    }

    /// The phase. One atomic load while serving.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.look().0
    }

    /// Whether a readiness endpoint should report ready: only while [`Serving`](Phase::Serving).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.is_serving()
    }

    /// A receiver of the changes of phase.
    ///
    /// Phases of zero duration are skipped. See [above](Self#when-phases-advance) for when phases advance.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.shared.watch.subscribe()
    }

    /// The phase and the counts at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let phase = self.phase();
        let census = self.shared.count.census();
        Snapshot {
            phase,
            guests: census.here.guests,
            requests: census.here.requests,
            upgraded: census.upgraded,
        }
    }

    /// Ready from [`Announcing`](Phase::Announcing) on.
    pub fn announcing(&self) -> Reached {
        Reached::new(self.shared.clone(), Phase::Announcing)
    }

    /// Ready from [`Closing`](Phase::Closing) on. It is the shutdown signal for another server, see [`around`](Self::around).
    pub fn closing(&self) -> Reached {
        Reached::new(self.shared.clone(), Phase::Closing)
    }

    /// Ready from [`Forced`](Phase::Forced) on: the cancellation that handlers may await.
    pub fn forced(&self) -> Reached {
        Reached::new(self.shared.clone(), Phase::Forced)
    }

    /// Ready when the drain is over, with the report.
    ///
    /// It waits for [`Guard`]s: those of this crate's accept loops and connections, of [`DrainLayer`], and of the
    /// application.
    ///
    /// [`DrainLayer`]: crate::DrainLayer
    pub fn done(&self) -> Done {
        Done::new(self.shared.clone())
    }

    /// Runs another server to its end, but no longer than the drain lasts: such servers have a shutdown signal, but no
    /// deadline. Returns `None` if the drain is over first; then the server is dropped, and the report counts what was cut.
    ///
    /// Such servers spawn their connections, which go on when the server is dropped. [`DrainLayer`] cuts the remaining
    /// requests: their handlers and bodies are dropped, and the connections end with them. Requests that do not pass
    /// through the layer are neither counted nor cut.
    ///
    /// [`DrainLayer`]: crate::DrainLayer
    ///
    /// The server is counted like a task, from this call on. So the drain waits until the server has written all its
    /// responses; [`done`](Self::done) alone is ready with the last request, whose last bytes may not be written yet.
    ///
    /// ```no_run
    /// # async fn run(listener: tokio::net::TcpListener, app: axum::Router) -> std::io::Result<()> {
    /// use tower_drain::{Drain, DrainLayer};
    ///
    /// let drain = Drain::new();
    /// let app = app.layer(DrainLayer::new(&drain));
    /// let server = axum::serve(listener, app).with_graceful_shutdown(drain.closing());
    /// if let Some(Err(broken)) = drain.around(server).await {
    ///     return Err(broken);
    /// }
    /// println!("{}", drain.done().await);
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the server, and the drain no longer waits for it.
    pub fn around<S: IntoFuture>(
        &self,
        server: S,
    ) -> impl Future<Output = Option<S::Output>> + use<S> {
        let (guard, done, server) = (self.guard(), self.done(), server.into_future());
        async move {
            tokio::select! {
                biased;
                output = server => {
                    drop(guard);
                    Some(output)
                }
                _ = done => None,
            }
        }
    }

    /// A guard that the drain waits for until it is dropped.
    pub fn guard(&self) -> Guard {
        Guard::new(self.shared.clone(), Kind::Guest)
    }

    pub(crate) fn guard_of(&self, kind: Kind) -> Guard {
        Guard::new(self.shared.clone(), kind)
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let census = self.shared.count.census();
        f.debug_struct("Drain")
            .field("phase", &self.shared.told())
            .field("guests", &census.here.guests)
            .field("requests", &census.here.requests)
            .finish_non_exhaustive()
    }
}

// === impl DrainBuilder ===

impl DrainBuilder {
    /// How long new connections are still served after readiness was withdrawn. Default: 5 s.
    ///
    /// Load balancers and Kubernetes need that time to remove the address from their lists. The phase lasts that long even
    /// if no client is connected: clients that connect during it have not yet seen the change of readiness.
    pub const fn announce(self, announce: Duration) -> Self {
        Self {
            times: Times {
                announce: bounded(announce),
                ..self.times
            },
        }
    }

    /// How long connections may take to end gracefully. Default: 20 s. The phase ends earlier if all have ended.
    pub const fn close(self, close: Duration) -> Self {
        Self {
            times: Times {
                close: bounded(close),
                ..self.times
            },
        }
    }

    /// How long cancelled handlers may take to end. Default: 2 s.
    ///
    /// With the other two defaults that is 27 s, within the 30 s after which Kubernetes kills a pod.
    pub const fn force(self, force: Duration) -> Self {
        Self {
            times: Times {
                force: bounded(force),
                ..self.times
            },
        }
    }

    /// The drain.
    #[must_use]
    pub fn build(self) -> Drain {
        Drain {
            shared: Arc::new(Shared::new(self.times)),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn new(times: Times) -> Self {
        Self {
            count: Count::default(),
            phase: AtomicU8::new(Phase::Serving as u8),
            heart: Mutex::new(Phases::new(times)),
            changed: Arc::default(),
            closing: Bell::default(),
            done: Bell::default(),
            requests_done: Bells::default(),
            watch: watch::Sender::new(Phase::Serving),
        }
    }

    /// The phase that was published last, without a check of the clock.
    pub(crate) fn told(&self) -> Phase {
        Phase::from_u8(self.phase.load(Acquire))
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.told() == Phase::Serving
    }

    /// The phase at this moment, and the deadline of the next one.
    pub(crate) fn look(&self) -> (Phase, Option<Instant>) {
        match self.told() {
            phase @ (Phase::Serving | Phase::Done) => (phase, None),
            phase => self.advance(phase),
        }
    }

    pub(crate) fn report(&self) -> Option<Report> {
        self.heart().report()
    }

    pub(crate) fn leave(&self, kind: Kind) {
        let counted = matches!(self.told(), Phase::Announcing | Phase::Closing);
        if self.count.leave(kind, counted) {
            self.look();
        }
    }

    fn advance(&self, order: Phase) -> (Phase, Option<Instant>) {
        let mut heart = self.heart();
        heart.order(order);
        let (from, now) = (heart.phase(), Instant::now());
        let mut passed = Vec::new();
        while let Some(phase) = heart.step(now, &self.count.census()) {
            if phase >= Phase::Closing {
                // Before the next census: guards that are dropped after it are reported.
                self.count.close();
            }
            self.phase.store(phase as u8, Release);
            passed.push(phase);
        }
        let at = (heart.phase(), heart.deadline());
        drop(heart);
        self.tell(from, &passed);
        at
    }

    /// Publishes the transitions. Not under the lock: wakers run code of other crates.
    fn tell(&self, mut from: Phase, passed: &[Phase]) {
        let Some(&last) = passed.last() else { return };
        for &to in passed {
            let guests = self.count.census().here.guests;
            tracing::info!(%from, %to, guests, "drain");
            from = to;
        }
        // Two threads may arrive here in the wrong order; a phase never goes back.
        self.watch.send_if_modified(|phase| {
            let later = last > *phase;
            *phase = last.max(*phase);
            later
        });
        self.changed.notify_waiters();
        if last >= Phase::Closing {
            self.closing.ring();
        }
        if last >= Phase::Done {
            self.done.ring();
            self.requests_done.ring();
        }
    }

    fn heart(&self) -> MutexGuard<'_, Phases> {
        self.heart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("phase", &self.told())
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

pub(crate) const fn bounded(duration: Duration) -> Duration {
    if duration.as_secs() < FOREVER.as_secs() {
        duration
    } else {
        FOREVER
    }
}

const ANNOUNCE: Duration = Duration::from_secs(5);
const CLOSE: Duration = Duration::from_secs(20);
const FORCE: Duration = Duration::from_secs(2);
/// Long enough, and adding it to an instant does not overflow.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
