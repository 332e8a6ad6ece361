use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use http::HeaderValue;
use tokio::{sync::mpsc, time::Instant};
use tower_outcome::{EjectionBudget, Outcome, Settle, Verdict};

use super::{latency::PeakLatency, queue::Queue};
use crate::{
    Endpoint, EndpointId, Phase,
    policy::Estimate,
    stripe::Sum,
    sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64},
};

/// One endpoint of a published set: its description, its statistics, and its service.
#[derive(Debug)]
pub(super) struct Slot<S> {
    pub(super) endpoint: Arc<Endpoint>,
    /// Boxed, because most endpoints have none.
    pub(super) epoch: Option<Box<HeaderValue>>,
    pub(super) stats: Arc<Stats>,
    pub(super) service: S,
    /// The handle that its service was given.
    pub(super) budget: EjectionBudget,
    /// The endpoint may no longer serve, because its phase changed. A view whose table is still being built may contain it.
    withdrawn: AtomicBool,
}

/// Statistics of one instance. They outlive changes of weight or phase, and new services.
///
/// The order of fields matters: first what each request writes, beside the reference count that it writes too, then what
/// picks read. So a request usually fetches one cache line of an endpoint from the processor that used it last, and rarely
/// two.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Stats {
    picks: AtomicU64,
    in_flight: AtomicU32,
    /// ```text
    ///   31              8 7       6        5         4         3      2      1       0
    ///   ┌────────────────┬───────┬────────┬─────────┬─────────┬──────┬─────┬───────┐
    ///   │ term           │       │ struck │ failing │ retired │ held │ out │ ready │
    ///   └────────────────┴───────┴────────┴─────────┴─────────┴──────┴─────┴───────┘
    /// ```
    /// A term lasts from one ejection to the next: the outcome of a request that began in another term is not counted.
    /// *Held*, *failing* and *struck* mean that the driver knows of it, or that its [`Look`] is on its way.
    state: AtomicU32,
    weight: AtomicU32,
    /// The recent share of failures, of 1 024.
    failing: AtomicU16,
    /// The part of the weight that it has reached in slow start, of 255; 0 before that.
    warmth: AtomicU8,
    latency: PeakLatency,
    failures: AtomicU64,
    returned: AtomicU32,
    /// Ended without a verdict: abandoned by the caller, or rejected locally.
    unjudged: AtomicU32,
    /// As it was first described: for its id, which does not change.
    endpoint: Arc<Endpoint>,
    hub: Arc<Hub>,
    /// Used by the driver: its position among the candidates, see [`Tiers`](super::tier::Tiers).
    pub(super) place: AtomicU32,
    /// Used by the driver: whether its tier counts it as out.
    pub(super) counts_as_out: AtomicBool,
    /// Consecutive failures.
    streak: AtomicU16,
}

/// State that all endpoints of a balance share, independent of the type of their services.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) queue: Queue,
    looks: mpsc::UnboundedSender<Look>,
    /// The requests in flight of all endpoints, if the policy needs the total.
    total: Option<Sum>,
    max_in_flight: u32,
    /// The number of consecutive failures that is reported to the driver; 0 for none.
    strikes: u16,
    start: Instant,
}

/// An event for the driver. At most one of each kind is queued for an endpoint.
#[derive(Debug)]
pub(super) enum Look {
    /// The endpoint was found not ready.
    Pending(Arc<Stats>),
    /// Its service is finished and must be created again.
    Finished(Arc<Stats>),
    /// It had its first recent failure.
    Failing(Arc<Stats>),
    /// It sent `Retry-After`.
    Asked(Arc<Stats>, Duration),
    /// It reached the number of consecutive failures, in this term.
    Struck(Arc<Stats>, u32),
    /// A request waits for an endpoint, and the driver does not run timers for the [`Queue`] yet.
    Waiting,
    /// The last handle is gone.
    Gone,
}

/// The in-flight slot of one request at an endpoint. Dropping it frees the slot.
///
/// It is held by the response body if the balance was built with [`http`](super::BalanceBuilder::http). It records the
/// outcome of the request, by which failing endpoints are recognized.
#[derive(Debug)]
pub struct InFlight {
    stats: Arc<Stats>,
    term: u32,
    is_judged: bool,
    /// In nanoseconds, or [`UNTIMED`].
    began: u64,
}

// === impl Slot ===

impl<S> Slot<S> {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        stats: Arc<Stats>,
        service: S,
        budget: EjectionBudget,
    ) -> Self {
        budget.set_serving(endpoint.phase() == Phase::Ready);
        let epoch = endpoint
            .epoch()
            .map(|epoch| Box::new(HeaderValue::from(epoch.get())));
        stats.weight.store(endpoint.weight().get(), Relaxed);
        Self {
            endpoint,
            epoch,
            stats,
            service,
            budget,
            withdrawn: AtomicBool::new(false),
        }
    }

    /// No request picks it from now on, even from a view that was published before.
    pub(super) fn withdraw(&self) {
        self.withdrawn.store(true, Release);
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Acquire)
    }
}

// === impl Stats ===

impl Stats {
    /// Of an instance that has not been found ready yet.
    pub(super) fn new(endpoint: Arc<Endpoint>, hub: Arc<Hub>) -> Self {
        Self {
            picks: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            state: AtomicU32::new(0),
            weight: AtomicU32::new(1),
            failing: AtomicU16::new(0),
            warmth: AtomicU8::new(WARM),
            latency: PeakLatency::default(),
            failures: AtomicU64::new(0),
            returned: AtomicU32::new(0),
            unjudged: AtomicU32::new(0),
            endpoint,
            hub,
            place: AtomicU32::new(u32::MAX),
            counts_as_out: AtomicBool::new(false),
            streak: AtomicU16::new(0),
        }
    }

    pub(super) fn id(&self) -> &EndpointId {
        self.endpoint.id()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state.load(Acquire) & READY != 0
    }

    pub(super) fn be_ready(&self) {
        self.state.fetch_or(READY, AcqRel);
    }

    /// Returns whether it was ready until now: of several concurrent calls, one returns `true`.
    pub(super) fn be_unready(&self) -> bool {
        self.state.fetch_and(!READY, AcqRel) & READY != 0
    }

    /// Ready and healthy.
    pub(super) fn is_usable(&self) -> bool {
        self.state.load(Acquire) & (READY | OUT) == READY
    }

    /// Takes it out, or back in. Coming back begins a new term.
    pub(super) fn be_out(&self, is_out: bool) {
        if is_out {
            self.state.fetch_or(OUT, AcqRel);
        } else {
            self.streak.store(0, Relaxed);
            let _ = self.state.fetch_update(AcqRel, Acquire, |state| {
                Some((state & !OUT).wrapping_add(TERM))
            });
        }
    }

    pub(super) fn is_out(&self) -> bool {
        self.state.load(Acquire) & OUT != 0
    }

    /// It was removed: it is not picked any more.
    pub(super) fn retire(&self) {
        self.state.fetch_and(!READY, AcqRel);
        self.state.fetch_or(RETIRED, AcqRel);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.state.load(Acquire) & RETIRED != 0
    }

    pub(super) fn term(&self) -> u32 {
        self.state.load(Acquire) / TERM
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    pub(super) fn picks(&self) -> u64 {
        self.picks.load(Relaxed)
    }

    /// The number of failed requests, including those returned unsent.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Relaxed) + u64::from(self.returned.load(Relaxed))
    }

    /// The number of requests with a verdict, and of failures among them.
    pub(super) fn ended(&self) -> (u64, u64) {
        let failures = self.failures.load(Relaxed);
        let others = [&self.in_flight, &self.returned, &self.unjudged]
            .map(|count| u64::from(count.load(Relaxed)));
        (
            self.picks().saturating_sub(others.into_iter().sum()),
            failures,
        )
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    pub(super) fn latency(&self, now: u64) -> Estimate {
        self.latency.read(now)
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// `1 / (1 - f)²` for its failures, rounded down: an endpoint that fails fast looks idle and would attract the traffic.
    /// After one or two failures the factor is still 1.
    pub(super) fn penalty(&self) -> u32 {
        match u32::from(self.failing.load(Relaxed)) {
            0 => 1,
            failing => (1 << 20) / (1024 - failing).pow(2),
        }
    }

    /// The part of its weight that is in use.
    pub(super) fn warmth(&self) -> f32 {
        match self.warmth.load(Relaxed) {
            WARM => 1.0,
            warmth => f32::from(warmth.max(COLD)) / f32::from(WARM),
        }
    }

    /// Whether its slow start has yet to begin.
    pub(super) fn is_to_come(&self) -> bool {
        self.warmth.load(Relaxed) == TO_COME
    }

    /// Whether it is in slow start.
    pub(super) fn is_warming(&self) -> bool {
        !matches!(self.warmth.load(Relaxed), TO_COME | WARM)
    }

    pub(super) fn warm_to(&self, warmth: u8) {
        self.warmth.store(warmth, Relaxed);
    }

    /// Decays the failures. Returns whether the driver has to call it again.
    pub(super) fn forgive(&self) -> bool {
        // First, so that a failure from here on is reported again.
        self.unmark(FAILING);
        let update = |failing: u16| Some(failing - failing.div_ceil(8));
        let before = self
            .failing
            .fetch_update(AcqRel, Acquire, update)
            .unwrap_or_default();
        before > before.div_ceil(8) && self.mark(FAILING)
    }

    /// Its `Retry-After` has expired.
    pub(super) fn release(&self) {
        self.unmark(HELD);
    }

    /// The driver has handled the consecutive failures: the next ones are reported again after the same number, because the
    /// driver may have been unable to eject the endpoint now, and may be able to then.
    pub(super) fn heard_strike(&self) {
        // Clears the flag first, so that a concurrent failure is reported and not only counted.
        self.unmark(STRUCK);
        self.streak.store(0, Relaxed);
    }

    /// Returns whether the flag was not set until now: of several concurrent calls, one returns `true`.
    fn mark(&self, mark: u32) -> bool {
        self.state.fetch_or(mark, AcqRel) & mark == 0
    }

    fn unmark(&self, mark: u32) {
        self.state.fetch_and(!mark, AcqRel);
    }

    pub(super) fn is_held(&self) -> bool {
        self.state.load(Relaxed) & HELD != 0
    }

    fn succeeded(&self) {
        if self.streak.load(Relaxed) != 0 {
            self.streak.store(0, Relaxed);
        }
        if self.failing.load(Relaxed) != 0 {
            let _ = self.failing.fetch_update(Relaxed, Relaxed, |failing| {
                (failing > 0).then(|| failing - failing.div_ceil(8))
            });
        }
    }

    fn failed(self: &Arc<Self>, term: u32, is_soft: bool) {
        self.failures.fetch_add(1, Relaxed);
        let towards = |failing: u16| Some(failing + (1024 - failing) / 8);
        let _ = self.failing.fetch_update(AcqRel, Acquire, towards);
        self.tell_failing();
        if is_soft || self.hub.strikes == 0 || self.is_out() || self.term() != term {
            return;
        }
        let count = |streak: u16| Some(streak.saturating_add(1));
        let before = self
            .streak
            .fetch_update(Relaxed, Relaxed, count)
            .unwrap_or_default();
        if before.saturating_add(1) >= self.hub.strikes && self.mark(STRUCK) {
            self.hub.look(Look::Struck(self.clone(), term));
        }
    }

    /// The driver decays the failures over time.
    fn tell_failing(self: &Arc<Self>) {
        if self.mark(FAILING) {
            self.hub.look(Look::Failing(self.clone()));
        }
    }

    /// The endpoint sent `Retry-After`; until it expires, its cost is that of an endpoint that always fails.
    fn asked(self: &Arc<Self>, after: Duration) {
        self.failing.store(MOST_FAILING, Relaxed);
        if self.mark(HELD) {
            self.hub.look(Look::Asked(self.clone(), after));
        }
        self.tell_failing();
    }
}

// === impl Hub ===

impl Hub {
    pub(super) fn new(
        looks: mpsc::UnboundedSender<Look>,
        max_in_flight: u32,
        strikes: u16,
        counts_total: bool,
        start: Instant,
    ) -> Self {
        let total = counts_total.then(Sum::default);
        Self {
            queue: Queue::new(),
            looks,
            total,
            max_in_flight,
            strikes,
            start,
        }
    }

    pub(super) fn look(&self, look: Look) {
        // Without a driver the balance is stopped already.
        let _ = self.looks.send(look);
    }

    pub(super) fn total(&self) -> u64 {
        self.total.as_ref().map_or(0, Sum::get)
    }

    /// Nanoseconds since the balance was created.
    pub(super) fn nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

// === impl InFlight ===

impl InFlight {
    /// `None`: the endpoint is full. `began` is the start of the latency measurement.
    pub(super) fn begin(stats: &Arc<Stats>, began: u64) -> Option<Self> {
        // Creates the guard first: it releases the slot if the limit is exceeded.
        let before = stats.in_flight.fetch_add(1, Relaxed);
        if before >= stats.hub.max_in_flight {
            give_back(stats);
            return None;
        }
        stats.picks.fetch_add(1, Relaxed);
        if let Some(total) = &stats.hub.total {
            total.add(1);
        }
        Some(Self {
            stats: stats.clone(),
            term: stats.term(),
            is_judged: false,
            began,
        })
    }

    pub(super) fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Records the time to a response head or to a failure. The time to a failure is no measure of the latency, and a local
    /// rejection is not recorded at all.
    pub(super) fn took(&mut self, verdict: Verdict) {
        let began = std::mem::replace(&mut self.began, UNTIMED);
        if began == UNTIMED {
            return;
        }
        let (now, latency) = (self.stats.hub.nanos(), &self.stats.latency);
        let took = now.saturating_sub(began);
        match verdict {
            Verdict::Success => latency.record(now, took),
            Verdict::Failure | Verdict::Throttled => latency.failed(now, took),
            Verdict::Ignore => {}
        }
    }

    /// It was not ready after all.
    pub(super) fn undo(mut self) {
        (self.is_judged, self.began) = (true, UNTIMED);
        self.stats.picks.fetch_sub(1, Relaxed);
    }

    /// The request came back unsent, which is not a failure.
    pub(super) fn handed_back(mut self) {
        (self.is_judged, self.began) = (true, UNTIMED);
        self.stats.returned.fetch_add(1, Relaxed);
    }

    /// The caller abandoned the request before the response: the latency is at least the elapsed time.
    #[cold]
    fn gave_up(&self) {
        let now = self.stats.hub.nanos();
        self.stats
            .latency
            .at_least(now, now.saturating_sub(self.began));
    }
}

impl Settle for InFlight {
    fn settle(mut self, outcome: Outcome) {
        self.is_judged = outcome.verdict() != Verdict::Ignore;
        match outcome.verdict() {
            Verdict::Success => self.stats.succeeded(),
            Verdict::Failure => self.stats.failed(self.term, false),
            Verdict::Throttled => self.stats.failed(self.term, true),
            Verdict::Ignore => return,
        }
        if let Some(after) = outcome.retry_after() {
            self.stats.asked(after);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.began != UNTIMED {
            self.gave_up();
        }
        if !self.is_judged {
            self.stats.unjudged.fetch_add(1, Relaxed);
        }
        give_back(&self.stats);
        if let Some(total) = &self.stats.hub.total {
            total.subtract(1);
        }
    }
}

/// A released slot gives a waiting request a turn. The same for a request above the limit, because a concurrent request may
/// have seen the endpoint as full because of it.
fn give_back(stats: &Arc<Stats>) {
    let hub = &stats.hub;
    let before = stats.in_flight.fetch_sub(1, AcqRel);
    if before <= hub.max_in_flight && hub.max_in_flight < u32::MAX {
        hub.queue.freed(stats);
    }
}

const READY: u32 = 1;
const OUT: u32 = 1 << 1;
const HELD: u32 = 1 << 2;
const RETIRED: u32 = 1 << 3;
const FAILING: u32 = 1 << 4;
const STRUCK: u32 = 1 << 5;
const TERM: u32 = 1 << 8;

/// The response head has arrived, or the policy does not use latencies.
pub(super) const UNTIMED: u64 = u64::MAX;

/// The cost of 16 384 requests in flight.
const MOST_FAILING: u16 = 1016;

pub(super) const WARM: u8 = u8::MAX;

/// Its slow start begins when it is eligible for the first time.
pub(super) const TO_COME: u8 = 0;

/// A tenth of the weight, at which a new endpoint starts.
pub(super) const COLD: u8 = WARM / 10;

#[cfg(all(test, loom))]
mod loom {
    use std::task::{Context, Waker};

    use ::loom::thread;

    use super::{super::queue::Ticket, *};

    fn stats(max_in_flight: u32) -> (Arc<Stats>, mpsc::UnboundedReceiver<Look>) {
        let (looks, looked) = mpsc::unbounded_channel();
        let hub = Arc::new(Hub::new(looks, max_in_flight, 2, false, Instant::now()));
        let endpoint = Arc::new(Endpoint::new("a", ([127, 0, 0, 1], 80).into()));
        (Arc::new(Stats::new(endpoint, hub)), looked)
    }

    /// What a request does for an endpoint that may be full. Returns its ticket while it waits.
    fn request(stats: &Arc<Stats>) -> Option<Ticket> {
        let cx = Context::from_waker(Waker::noop());
        if InFlight::begin(stats, UNTIMED).is_some() {
            return None;
        }
        let mut ticket = Ticket::new(&stats.hub, 8, None)?;
        while ticket.poll_turn(&cx, false).is_ready() {
            if InFlight::begin(stats, UNTIMED).is_some() {
                ticket.done();
                return None;
            }
            ticket.wait_on(&cx);
        }
        Some(ticket)
    }

    /// One of the waiting requests has a turn, and then the next.
    fn all_get_their_turn(stats: &Arc<Stats>, tickets: impl IntoIterator<Item = Option<Ticket>>) {
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(stats.in_flight(), 0);
        let mut tickets: Vec<_> = tickets.into_iter().flatten().collect();
        while !tickets.is_empty() {
            let next = tickets
                .iter_mut()
                .position(|ticket| ticket.poll_turn(&cx, false).is_ready())
                .expect("room, and no request knows of it");
            let guard = InFlight::begin(stats, UNTIMED).expect("room");
            tickets.swap_remove(next).done();
            drop(guard);
        }
        assert_eq!(
            (stats.hub.queue.len(), stats.hub.queue.is_waited_in()),
            (0, false)
        );
    }

    #[test]
    fn a_request_that_finds_an_endpoint_full_is_woken_by_free_capacity() {
        ::loom::model(|| {
            let (stats, _looks) = stats(1);
            let guard = InFlight::begin(&stats, UNTIMED);
            let thread = thread::spawn(move || drop(guard));
            let ticket = request(&stats);
            thread.join().unwrap();
            all_get_their_turn(&stats, [ticket]);
        });
    }

    #[test]
    fn requests_that_take_the_last_slot_from_each_other_are_woken() {
        let mut builder = ::loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let (stats, _looks) = stats(1);
            let guard = InFlight::begin(&stats, UNTIMED);
            let other = {
                let stats = stats.clone();
                thread::spawn(move || request(&stats))
            };
            let thread = thread::spawn(move || drop(guard));
            let mine = request(&stats);
            thread.join().unwrap();
            all_get_their_turn(&stats, [mine, other.join().unwrap()]);
        });
    }

    #[test]
    fn the_turn_of_a_dropped_request_goes_to_the_next() {
        let mut builder = ::loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let (stats, _looks) = stats(1);
            let guard = InFlight::begin(&stats, UNTIMED);
            let [first, second] = [request(&stats), request(&stats)];
            let thread = thread::spawn(move || drop(guard));
            drop(first);
            thread.join().unwrap();
            all_get_their_turn(&stats, [second]);
        });
    }

    #[test]
    fn the_first_failure_and_the_limit_of_consecutive_failures_are_each_reported_once() {
        ::loom::model(|| {
            let (stats, mut looks) = stats(u32::MAX);
            let guards = [
                InFlight::begin(&stats, UNTIMED).unwrap(),
                InFlight::begin(&stats, UNTIMED).unwrap(),
            ];
            let threads = guards.map(|guard| thread::spawn(move || guard.settle(Outcome::FAILURE)));
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            let mut told = [0, 0];
            while let Ok(look) = looks.try_recv() {
                told[usize::from(matches!(look, Look::Struck(..)))] += 1;
            }
            assert_eq!((told, stats.failures(), stats.in_flight()), ([1, 1], 2, 0));
        });
    }

    #[test]
    fn a_failure_during_the_decay_of_earlier_ones_decays_later() {
        ::loom::model(|| {
            let (stats, mut looks) = stats(u32::MAX);
            let guards = [
                InFlight::begin(&stats, UNTIMED).unwrap(),
                InFlight::begin(&stats, UNTIMED).unwrap(),
            ];
            let [first, second] = guards;
            first.settle(Outcome::FAILURE);
            assert!(matches!(looks.try_recv(), Ok(Look::Failing(_))));
            let thread = thread::spawn(move || second.settle(Outcome::FAILURE));
            let stays = stats.forgive();
            thread.join().unwrap();
            let is_told = matches!(looks.try_recv(), Ok(Look::Failing(_)));
            assert!(stays ^ is_told, "kept: {stays}, told anew: {is_told}");
        });
    }

    #[test]
    fn exactly_one_of_concurrent_requests_marks_an_endpoint_not_ready() {
        ::loom::model(|| {
            let (stats, _looks) = stats(u32::MAX);
            stats.be_ready();
            let other = {
                let stats = stats.clone();
                thread::spawn(move || stats.be_unready())
            };
            let mine = stats.be_unready();
            assert!(mine ^ other.join().unwrap());
        });
    }

    #[test]
    fn a_peak_is_never_lost() {
        ::loom::model(|| {
            let (stats, _looks) = stats(u32::MAX);
            let threads = [5_000_000, 90_000_000].map(|took| {
                let stats = stats.clone();
                thread::spawn(move || stats.latency.record(1 << 20, took))
            });
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            let latency = stats.latency(1 << 20);
            assert!(matches!(latency, Estimate::Known(micros) if micros > 89_999.0));
        });
    }
}
