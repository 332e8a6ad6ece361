//! The places of a connection limit.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, Sleep, sleep},
};

use crate::{
    eviction::Candidates,
    slots::{self, Slots},
};

/// Exactly `max` places. A free place goes to the connection that has waited longest.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    free: Semaphore,
    waiting: Slots,
    connections: Candidates,
}

/// Whether a new connection gets a place.
pub(crate) enum Admission {
    Now(Permit),
    /// An idle connection was asked for its place.
    Later(Waiter),
    /// No connection is idle, or too many wait.
    Never,
}

/// A new connection in the queue for a place. Dropping it passes its turn to the next.
pub(crate) struct Waiter {
    places: Arc<Places>,
    turn: Pin<Box<dyn Future<Output = Permit> + Send>>,
    /// When one more connection is asked.
    alarm: Pin<Box<Sleep>>,
    /// How many have been.
    asked: u32,
    _permit: slots::Permit,
}

/// A place, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    places: Arc<Places>,
    /// The entry of the connection that has this place, once it can be asked to close.
    index: Option<u32>,
    /// The place in another limit around this one, given back with this one.
    outer: Option<Box<Self>>,
}

// === impl Places ===

impl Places {
    pub(crate) fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self {
            max,
            free: Semaphore::new(max),
            waiting: Slots::new((max / WAITING_SHARE).max(1)),
            connections: Candidates::default(),
        }
    }

    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn taken(&self) -> usize {
        self.max - self.free.available_permits()
    }

    pub(crate) fn admit(self: &Arc<Self>) -> Admission {
        if let Some(permit) = self.try_take() {
            return Admission::Now(permit);
        }
        let Some(waiting) = self.waiting.take() else {
            return Admission::Never;
        };
        if !self.ask_idle() {
            return Admission::Never;
        }
        let mut turn: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(self.clone().take());
        // It queues at once, so that the order is that of arrival, not that in which tasks are polled.
        let queued = turn.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match queued {
            Poll::Ready(permit) => Admission::Now(permit),
            Poll::Pending => Admission::Later(Waiter {
                places: self.clone(),
                turn,
                alarm: Box::pin(sleep(ASK_EVERY)),
                asked: 1,
                _permit: waiting,
            }),
        }
    }

    /// `None` while all are taken, or connections wait for one.
    fn try_take(self: &Arc<Self>) -> Option<Permit> {
        let permit = self.free.try_acquire().ok()?;
        permit.forget();
        Some(Permit::new(self.clone()))
    }

    /// Waits for a place. A turn that comes after this is dropped passes to the next.
    async fn take(self: Arc<Self>) -> Permit {
        let permit = self.free.acquire().await.expect("never closed");
        permit.forget();
        Permit::new(self)
    }

    fn ask_idle(&self) -> bool {
        self.connections.ask(Instant::now())
    }
}

// === impl Waiter ===

impl Waiter {
    /// Ready with a place, or with none after the longest wait.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Permit>> {
        loop {
            if let Poll::Ready(permit) = self.turn.as_mut().poll(cx) {
                return Poll::Ready(Some(permit));
            }
            if self.alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.asked == MAX_ASKED {
                return Poll::Ready(None);
            }
            self.asked += 1;
            self.places.ask_idle();
            let next = self.alarm.deadline() + ASK_EVERY;
            self.alarm.as_mut().reset(next);
        }
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter")
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

// === impl Permit ===

impl Permit {
    const fn new(places: Arc<Places>) -> Self {
        Self {
            places,
            index: None,
            outer: None,
        }
    }

    pub(crate) fn keep(&mut self, outer: Option<Self>) {
        self.outer = outer.map(Box::new);
    }

    /// From now on the connection that has this place can be asked to close; `waker` is that of its task.
    #[cfg(feature = "http")]
    pub(crate) fn register(
        &mut self,
        conn: &Arc<impl crate::eviction::Evictable + 'static>,
        waker: &std::task::Waker,
    ) {
        if self.index.is_none() {
            let index = self.places.connections.insert(conn.clone(), waker.clone());
            self.index = Some(index);
        }
        if let Some(outer) = &mut self.outer {
            outer.register(conn, waker);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.places.connections.remove(index);
        }
        self.places.free.add_permits(1);
    }
}

/// At most a tenth of the limit wait for a place.
const WAITING_SHARE: usize = 10;
/// How many idle connections are asked to close for one new connection, at most: the first may get a request just then,
/// or be slow to close.
const MAX_ASKED: u32 = 4;
/// The time between two of them. A connection waits `MAX_ASKED` times as long: half a second.
const ASK_EVERY: Duration = Duration::from_millis(125);

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[test]
    fn a_free_place_goes_to_the_longest_waiting_and_not_to_one_that_comes_later() {
        let places = Arc::new(Places::new(1));
        let first = places.try_take().unwrap();
        let mut second = task::spawn(places.clone().take());
        let mut third = task::spawn(places.clone().take());
        assert_pending!(second.poll());
        assert_pending!(third.poll());
        drop(first);
        assert!(second.is_woken() && !third.is_woken());
        assert!(places.try_take().is_none(), "it is not free");
        drop(assert_ready!(second.poll()));
        assert!(third.is_woken());
        let last = assert_ready!(third.poll());
        assert_eq!(places.taken(), 1);
        drop(last);
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn one_that_leaves_while_it_waits_gives_its_turn_to_the_next() {
        let places = Arc::new(Places::new(1));
        let first = places.try_take().unwrap();
        let mut second = task::spawn(places.clone().take());
        let mut third = task::spawn(places.clone().take());
        assert_pending!(second.poll());
        assert_pending!(third.poll());
        drop(first);
        // Its turn has come, but it was not polled.
        drop(second);
        assert!(third.is_woken());
        assert_ready!(third.poll());
    }
}
