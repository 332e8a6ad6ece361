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

/// The handle of a drain: cheap to clone, and all clones are the same drain.
///
/// An operator has four verbs, none of which ever goes back:
///
/// | | from `Serving` | later |
/// |---|---|---|
/// | [`begin_drain`](Self::begin_drain) | `Announcing` | nothing: it may be called any number of times |
/// | [`shutdown`](Self::shutdown) | `Closing`, without announcing | `Closing` if announcing, else nothing |
/// | [`force`](Self::force) | `Forced` | `Forced` |
/// | [`escalate`](Self::escalate) | `Announcing` | `Forced`: what a second signal means |
///
/// # Who moves time on
///
/// There is no task of its own. Time moves on whenever somebody looks or waits: [`phase`](Self::phase),
/// [`snapshot`](Self::snapshot), and every future of this handle ([`closing`](Self::closing), [`done`](Self::done) …)
/// has its own timer. An accept loop of this crate waits all the time; whoever has another server awaits
/// [`done`](Self::done) beside it. Only who has nothing but a [`subscribe`](Self::subscribe)d receiver must see to it
/// that somebody waits; `tokio::spawn(drain.done())` is enough.
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
    /// `Closing` or later. Apart from `changed`, so that ten thousand connections are not woken for nothing.
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

    /// A drain with durations of your own.
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

    /// Begins to leave: readiness goes off, while everybody is still served until the announce time is over.
    ///
    /// Calling it again changes nothing, so a health probe or an admin page may do it as often as it likes.
    pub fn begin_drain(&self) {
        self.shared.advance(Phase::Announcing);
    }

    /// Closes now, without announcing, or ends announcing.
    pub fn shutdown(&self) {
        self.shared.advance(Phase::Closing);
    }

    /// Cancels what is left, now. It gets the force time to end, then it is cut.
    pub fn force(&self) {
        self.shared.advance(Phase::Forced);
    }

    /// What a signal means: the first [begins](Self::begin_drain), every later one [forces](Self::force).
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

    /// Whether to say so at a readiness endpoint: only while [`Serving`](Phase::Serving).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.is_serving()
    }

    /// The changes of phase, for whoever wants to tell them on.
    ///
    /// Phases that last no time are skipped. See [above](Self#who-moves-time-on) for who moves time on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.shared.watch.subscribe()
    }

    /// Who is here.
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

    /// Ready from [`Closing`](Phase::Closing) on. It is the signal for others' servers, see [`around`](Self::around).
    pub fn closing(&self) -> Reached {
        Reached::new(self.shared.clone(), Phase::Closing)
    }

    /// Ready from [`Forced`](Phase::Forced) on: the cancellation that handlers may listen to.
    pub fn forced(&self) -> Reached {
        Reached::new(self.shared.clone(), Phase::Forced)
    }

    /// Ready when all is over, with the report.
    ///
    /// What it waits for are [`Guard`]s: of this crate's accept loops and connections, of [`DrainLayer`], and your own.
    ///
    /// [`DrainLayer`]: crate::DrainLayer
    pub fn done(&self) -> Done {
        Done::new(self.shared.clone())
    }

    /// Runs a server of somebody else's to its end, but no longer than the drain lasts: such servers have a signal, and no
    /// deadline. `None` if the drain was over first; then the server is dropped, and the report says what was cut.
    ///
    /// Such servers spawn their connections, which go on when the server is dropped. It is [`DrainLayer`] that cuts what is
    /// left of the requests: their handlers and bodies are dropped, and the connections end with them. Requests that do
    /// not pass the layer are neither counted nor cut.
    ///
    /// [`DrainLayer`]: crate::DrainLayer
    ///
    /// The server is a guest like any other, from this call on. So the drain waits until the server has written all that it
    /// has to, and knows of no end before; [`done`](Self::done) alone is ready with the last request, whose last bytes may
    /// still be on their way.
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
    /// Dropping it drops the server, and the drain waits for it no more.
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

    /// Lets somebody in whom the drain waits for.
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
    /// How long everybody is still served while the world is told that we leave. Default: 5 s.
    ///
    /// That is what load balancers and Kubernetes need to take the address out of their lists. It lasts that long even
    /// if nobody is connected: who comes now does so because it was not told yet.
    pub const fn announce(self, announce: Duration) -> Self {
        Self {
            times: Times {
                announce: bounded(announce),
                ..self.times
            },
        }
    }

    /// How long connections may take to end once they are told to. Default: 20 s. It ends earlier if all are gone.
    pub const fn close(self, close: Duration) -> Self {
        Self {
            times: Times {
                close: bounded(close),
                ..self.times
            },
        }
    }

    /// How long what is cancelled may take to end. Default: 2 s.
    ///
    /// With the other two it makes 27 s, inside the 30 s that Kubernetes grants before it kills.
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

    /// The phase as it was told last, without a look at the clock.
    pub(crate) fn told(&self) -> Phase {
        Phase::from_u8(self.phase.load(Acquire))
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.told() == Phase::Serving
    }

    /// The phase at this moment, and when the next one is due.
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
                // Before the next census: whoever leaves after it says so.
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

    /// Tells the transitions. Not under the lock: wakers are others' code.
    fn tell(&self, mut from: Phase, passed: &[Phase]) {
        let Some(&last) = passed.last() else { return };
        for &to in passed {
            let guests = self.count.census().here.guests;
            tracing::info!(%from, %to, guests, "drain");
            from = to;
        }
        // Two tellers may meet here in the wrong order; a phase is never taken back.
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
/// Far enough, and still far from where adding it to an instant would overflow.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
