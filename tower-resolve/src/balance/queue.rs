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

/// The requests that wait for an endpoint, in the order in which they came.
///
/// ```text
///              join                 a place is free, or the set changed
///   (newcomer) ────► waiting for a turn ──────────────────────► has a turn ──── polled ───► tries
///                        ▲   ▲                                     │                        │  │
///                        │   └──────────── found nothing ──────────│────────────────────────┘  └─► at an endpoint
///                        └──── polled ──── lapsed ◄── not polled ──┘
/// ```
///
/// A free place is a turn of the request that waits longest, and a request that comes while others wait queues behind
/// them, so nothing overtakes. Several turns are taken at the same time, because a request is polled only when its task
/// gets to run. A request that found nothing keeps its number, and so its place in the queue.
///
/// A request that has a turn and is not polled would hold up all others, for as long as its caller likes. So its turn
/// lapses after [`TURN`], and goes to the next.
///
/// The lock is taken by requests that wait, and by those that make room for them.
#[derive(Debug)]
pub(super) struct Queue {
    /// How many wait or have a turn. Beside the lock, because every request looks at it.
    active: AtomicUsize,
    /// How many tickets there are: those that lapsed, too.
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
    /// A turn that came while all that wait had one. Another request may have looked before there was room and not
    /// have joined yet.
    missed: Option<Turn>,
}

/// The right to look for an endpoint.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// Where a place is free, if that is known.
    pub(super) freed: Option<Arc<Stats>>,
    /// Whether there may be more than one place. Then whoever finds one gives the next two requests a turn each.
    spreads: bool,
}

/// One request's place in the queue, given up by being dropped.
pub(super) struct Ticket {
    hub: Arc<Hub>,
    number: u64,
    /// While it tries.
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

    /// Whether a request that comes now has to queue.
    pub(super) fn is_waited_in(&self) -> bool {
        self.active.load(Acquire) > 0
    }

    /// How many requests wait.
    pub(super) fn len(&self) -> usize {
        self.tickets.load(Relaxed)
    }

    /// The set changed: there may be room for all that wait.
    pub(super) fn open(&self) {
        // A request that joins right now looks at the set after it has counted itself in; see `Ticket::new`.
        fence(SeqCst);
        if self.is_waited_in() {
            self.give(Turn::ANYTHING);
        }
    }

    /// There is nothing to wait for, so all have a turn to find that out, and so have those that join meanwhile.
    pub(super) fn close(&self) {
        fence(SeqCst);
        if self.is_waited_in() {
            let mut line = self.line();
            // One more than wait: it is for those that try right now, and may have looked before.
            let wakers: Vec<_> = (0..=line.waiting.len())
                .filter_map(|_| line.give(Turn::ANYTHING))
                .collect();
            drop(line);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// An endpoint has room for one more request.
    pub(super) fn freed(&self, stats: &Arc<Stats>) {
        // A request that joins right now tries by itself: it counts itself in before it looks at the endpoint, and the
        // endpoint was changed before this. See `InFlight::begin`.
        if self.is_waited_in() {
            self.give(Turn {
                freed: Some(stats.clone()),
                spreads: false,
            });
        }
    }

    /// Passes on turns that were not taken in time. Returns whether to come back in [`TURN`].
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
                // Two, where there may be room for both: many that are not polled hold up the others for a few turns, and
                // not for one each.
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
        // It may have been joined in between, by a request that still saw it watched; see `Ticket::new`.
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
    /// Gives a turn to the one that waits longest, which is to be woken.
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

    /// The last one leaves nothing behind.
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
    /// Queues a request, with the number that it had before if it waited already. `None`: as many wait as may.
    ///
    /// Where no other one waits, it has a turn at once: what it missed before it was counted in, it finds now.
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

    /// Waits for a turn, and takes it. One that `is_late` takes it in any case.
    pub(super) fn poll_turn(&mut self, cx: &Context<'_>, is_late: bool) -> Poll<&Turn> {
        let queue = &self.hub.queue;
        // What is the user's is neither cloned nor dropped under the lock.
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
                    // Its turn lapsed; there may be something yet.
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

    /// It found nothing, and waits for its next turn, which may have come already.
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

    /// It is done. Where there may be more than what it found, the next two have a turn.
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
    /// A turn that was not used goes to the next.
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

/// How long a turn lasts. A task that is woken gets to run sooner, where the runtime is not overloaded; and where it is, the
/// request loses nothing but this turn, because it keeps its number.
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
    fn requests_that_are_not_polled_hold_up_the_others_for_a_few_turns_and_not_for_one_each() {
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
            assert!(lapses < 10, "it is still held up");
        }
        drop((last, idle));
        assert_eq!((hub.queue.len(), hub.queue.is_waited_in()), (0, false));
    }
}
