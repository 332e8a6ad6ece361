use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, PoisonError,
        atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::slot::{Hub, Look, Stats};
use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, fence};

/// The queue of requests that wait for an endpoint, in order of arrival.
///
/// ```text
///              join                 a place is free, or the set changed
///   (newcomer) ────► waiting for a turn ──────────────────────► has a turn ──── polled ───► tries
///                        ▲   ▲                                     │                        │  │
///                        │   └──────────── found nothing ──────────│────────────────────────┘  └─► at an endpoint
///                        └──── polled ──── lapsed ◄── not polled ──┘
/// ```
///
/// Free capacity gives a turn to the request that has waited longest, and a request that arrives while requests wait is
/// queued behind them, so none overtakes. Several requests may have a turn at the same time, because a request is polled
/// only when its task runs. A request that found no endpoint keeps its number, and so its position in the queue.
///
/// A request that has a turn and is not polled would block the queue for any length of time. So its turn lapses after
/// [`TURN`], and goes to the next request.
///
/// The lock is taken by waiting requests, and by requests that free capacity for them.
#[derive(Debug)]
pub(super) struct Queue {
    /// The number of requests that wait or have a turn. Outside of the lock, because every request reads it.
    active: AtomicUsize,
    /// The number of tickets, including those whose turn lapsed.
    tickets: AtomicUsize,
    /// The driver knows that turns may lapse.
    is_watched: AtomicBool,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    waiting: BTreeMap<u64, Option<Waker>>,
    turns: BTreeMap<u64, (Turn, Instant)>,
    trying: usize,
    /// A turn that was given while all waiting requests had one. Another request may have tried before there was capacity
    /// and not have joined yet.
    missed: Option<Turn>,
}

/// The right to try the endpoints.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// The endpoint with free capacity, if known.
    pub(super) freed: Option<Arc<Stats>>,
    /// Whether there may be more than one free slot. If so, a request that finds one gives the next two requests a turn
    /// each.
    spreads: bool,
}

/// The position of one request in the queue. Dropping it leaves the queue.
pub(super) struct Ticket {
    hub: Arc<Hub>,
    number: u64,
    /// Set while it has a turn.
    turn: Option<Turn>,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            active: AtomicUsize::new(0),
            tickets: AtomicUsize::new(0),
            is_watched: AtomicBool::new(false),
            line: Mutex::new(Line::default()),
        }
    }

    /// Whether a request that arrives now has to queue.
    pub(super) fn is_waited_in(&self) -> bool {
        self.active.load(Acquire) > 0
    }

    /// The number of waiting requests.
    pub(super) fn len(&self) -> usize {
        self.tickets.load(Relaxed)
    }

    /// The set changed: there may be capacity for all waiting requests.
    pub(super) fn open(&self) {
        // A request that joins right now reads the set after it has registered; see `Ticket::new`.
        fence(SeqCst);
        if self.is_waited_in() {
            self.give(Turn::ANYTHING);
        }
    }

    /// No endpoint will become ready, so all requests get a turn to find that out, including those that join meanwhile.
    pub(super) fn close(&self) {
        fence(SeqCst);
        if self.is_waited_in() {
            let mut line = self.line();
            // One more than the waiting ones: for requests that are trying right now, and may have read the old state.
            let wakers: Vec<_> = (0..=line.waiting.len())
                .filter_map(|_| line.give(Turn::ANYTHING))
                .collect();
            drop(line);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// An endpoint has capacity for one more request.
    pub(super) fn freed(&self, stats: &Arc<Stats>) {
        // A request that joins right now tries by itself: it registers before it reads the endpoint, and the endpoint was
        // changed before this. See `InFlight::begin`.
        if self.is_waited_in() {
            self.give(Turn {
                freed: Some(stats.clone()),
                spreads: false,
            });
        }
    }

    /// Passes on turns that were not taken in time. Returns whether to call it again after [`TURN`].
    pub(super) fn lapse(&self, now: Instant) -> bool {
        let mut wakers = Vec::new();
        let mut line = self.line();
        let is_late = |(_, since): &(Turn, Instant)| now.duration_since(*since) >= TURN;
        let late: Vec<u64> = line
            .turns
            .iter()
            .filter(|(_, turn)| is_late(turn))
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            if let Some((turn, _)) = line.turns.remove(&number) {
                self.active.fetch_sub(1, AcqRel);
                // Two, if there may be capacity for both: many requests that are not polled then block the queue for a few
                // turns, and not for one turn each.
                let turns = if turn.spreads { 2 } else { 1 };
                wakers.extend((0..turns).filter_map(|_| line.give(turn.clone())));
            }
        }
        drop(line);
        wakers.into_iter().for_each(Waker::wake);
        if self.is_waited_in() {
            return true;
        }
        self.is_watched.store(false, Relaxed);
        // A request may have joined in between that still read it as watched; see `Ticket::new`.
        fence(SeqCst);
        self.is_waited_in() && !self.is_watched.swap(true, Relaxed)
    }

    fn give(&self, turn: Turn) {
        let waker = self.line().give(turn);
        waker.into_iter().for_each(Waker::wake);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Line ===

impl Line {
    /// Gives a turn to the request that has waited longest, and returns its waker.
    #[must_use]
    fn give(&mut self, turn: Turn) -> Option<Waker> {
        match self.waiting.pop_first() {
            Some((number, waker)) => {
                self.turns.insert(number, (turn, Instant::now()));
                waker
            }
            None => {
                if !self.is_empty() {
                    self.missed = Some(match self.missed {
                        Some(_) => Turn::ANYTHING,
                        None => turn,
                    });
                }
                None
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.trying == 0 && self.turns.is_empty() && self.waiting.is_empty()
    }

    /// When the last one leaves, unused turns are dropped.
    fn left(&mut self) {
        if self.is_empty() {
            self.missed = None;
        }
    }
}

// === impl Turn ===

impl Turn {
    const ANYTHING: Self = Self {
        freed: None,
        spreads: true,
    };

    const ONCE: Self = Self {
        freed: None,
        spreads: false,
    };
}

// === impl Ticket ===

impl Ticket {
    /// Queues a request, with its previous number if it waited before. `None`: the queue is full.
    ///
    /// If no other request waits, it has a turn at once, so that it sees changes from before it was registered.
    pub(super) fn new(hub: &Arc<Hub>, limit: usize, number: Option<u64>) -> Option<Self> {
        let queue = &hub.queue;
        if queue.tickets.fetch_add(1, Relaxed) >= limit {
            queue.tickets.fetch_sub(1, Relaxed);
            return None;
        }
        let mut line = queue.line();
        let number = number.unwrap_or_else(|| {
            line.next += 1;
            line.next
        });
        if queue.active.fetch_add(1, AcqRel) == 0 {
            line.turns.insert(number, (Turn::ANYTHING, Instant::now()));
        } else if let Some(turn) = line.missed.take() {
            line.turns.insert(number, (turn, Instant::now()));
        } else {
            line.waiting.insert(number, None);
        }
        drop(line);
        fence(SeqCst);
        if !queue.is_watched.load(Relaxed) && !queue.is_watched.swap(true, Relaxed) {
            hub.look(Look::Waiting);
        }
        Some(Self {
            hub: hub.clone(),
            number,
            turn: None,
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Waits for a turn, and takes it. With `is_late` it takes one in any case.
    pub(super) fn poll_turn(&mut self, cx: &Context<'_>, is_late: bool) -> Poll<&Turn> {
        let queue = &self.hub.queue;
        // The waker is user code: it is neither cloned nor dropped under the lock.
        let mut waker = Some(cx.waker().clone());
        let mut line = queue.line();
        let turn = match line.turns.remove(&self.number) {
            Some((turn, _)) => turn,
            None => match line.waiting.get_mut(&self.number) {
                Some(known) if !is_late => {
                    std::mem::swap(known, &mut waker);
                    drop(line);
                    return Poll::Pending;
                }
                Some(known) => {
                    waker = known.take();
                    line.waiting.remove(&self.number);
                    Turn::ONCE
                }
                None => {
                    // Its turn lapsed; there may still be capacity.
                    queue.active.fetch_add(1, AcqRel);
                    Turn::ONCE
                }
            },
        };
        line.trying += 1;
        drop(line);
        drop(waker);
        Poll::Ready(self.turn.insert(turn))
    }

    /// It found no endpoint, and waits for its next turn, which may have been given already.
    pub(super) fn wait_on(&mut self, cx: &Context<'_>) {
        let waker = cx.waker().clone();
        self.turn = None;
        let mut line = self.hub.queue.line();
        line.trying -= 1;
        match line.missed.take() {
            Some(turn) => {
                line.turns.insert(self.number, (turn, Instant::now()));
            }
            None => {
                line.waiting.insert(self.number, Some(waker));
            }
        }
    }

    /// It has found an endpoint. If there may be more capacity, the next two requests get a turn.
    pub(super) fn done(mut self) {
        let Some(turn) = self.turn.take() else {
            return;
        };
        let queue = &self.hub.queue;
        let mut line = queue.line();
        line.trying -= 1;
        queue.active.fetch_sub(1, AcqRel);
        let turns = if turn.spreads { 2 } else { 0 };
        let wakers: Vec<_> = (0..turns)
            .filter_map(|_| line.give(Turn::ANYTHING))
            .collect();
        line.left();
        drop(line);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Ticket {
    /// An unused turn goes to the next request.
    fn drop(&mut self) {
        let queue = &self.hub.queue;
        queue.tickets.fetch_sub(1, Relaxed);
        let mut line = queue.line();
        let (unused, waker) = match self.turn.take() {
            Some(turn) => {
                line.trying -= 1;
                (Some(turn), None)
            }
            None => match line.turns.remove(&self.number) {
                Some((turn, _)) => (Some(turn), None),
                None => match line.waiting.remove(&self.number) {
                    Some(waker) => (None, waker),
                    // It was done, or its turn lapsed: it is not counted any more.
                    None => return,
                },
            },
        };
        queue.active.fetch_sub(1, AcqRel);
        let next = unused.and_then(|turn| line.give(turn));
        line.left();
        drop(line);
        drop(waker);
        next.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("number", &self.number)
            .field("turn", &self.turn)
            .finish_non_exhaustive()
    }
}

/// How long a turn lasts. A woken task runs sooner than that unless the runtime is overloaded; in that case the request
/// loses only this turn, because it keeps its number.
pub(super) const TURN: Duration = Duration::from_millis(50);

#[cfg(all(test, not(loom)))]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn hub() -> Arc<Hub> {
        let (looks, _) = mpsc::unbounded_channel();
        Arc::new(Hub::new(looks, u32::MAX, 0, false, Instant::now()))
    }

    fn waiting(hub: &Arc<Hub>) -> Ticket {
        let cx = Context::from_waker(Waker::noop());
        let mut ticket = Ticket::new(hub, 1_000, None).unwrap();
        while ticket.poll_turn(&cx, false).is_ready() {
            ticket.wait_on(&cx);
        }
        ticket
    }

    #[test]
    fn a_request_that_looked_just_before_the_last_word_looks_again() {
        let (hub, cx) = (hub(), Context::from_waker(Waker::noop()));
        let mut ticket = Ticket::new(&hub, 8, None).unwrap();
        assert!(ticket.poll_turn(&cx, false).is_ready());
        hub.queue.close();
        ticket.wait_on(&cx);
        assert!(ticket.poll_turn(&cx, false).is_ready());
        ticket.done();
        assert!(!hub.queue.is_waited_in());
    }

    #[test]
    fn requests_that_are_not_polled_delay_the_queue_by_a_few_turns_and_not_by_one_each() {
        let (hub, cx) = (hub(), Context::from_waker(Waker::noop()));
        let idle: Vec<_> = (0..100).map(|_| waiting(&hub)).collect();
        let mut last = waiting(&hub);
        hub.queue.open();
        let mut now = Instant::now();
        let mut lapses = 0;
        while last.poll_turn(&cx, false).is_pending() {
            now += TURN;
            hub.queue.lapse(now);
            lapses += 1;
            assert!(lapses < 10, "the queue is still blocked");
        }
        drop((last, idle));
        assert_eq!((hub.queue.len(), hub.queue.is_waited_in()), (0, false));
    }
}
