//! A one-shot broadcast flag. A poll is one atomic load; the list of waiters is locked only when a task registers.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, Waker},
};

use pin_project::pin_project;
use tokio::sync::{Notify, futures::OwnedNotified};

/// A flag that is set once and stays set.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<Rope>);

#[derive(Default)]
struct Rope {
    rung: AtomicBool,
    notify: Arc<Notify>,
}

/// Several flags that are set together, for short-lived waiters: tasks that register at the same time use different
/// locks.
#[derive(Debug, Default)]
pub(crate) struct Bells([Bell; BELLS]);

/// Ready when the flag is set.
///
/// A connection polls it whenever it is polled itself, so a poll is one atomic load: the lock of the list of waiters is taken
/// when a task registers, and not again.
#[pin_project]
pub(crate) struct Heard {
    bell: Bell,
    #[pin]
    notified: OwnedNotified,
    waker: Option<Waker>,
}

// === impl Bell ===

impl Bell {
    pub(crate) fn ring(&self) {
        self.0.rung.store(true, Release);
        self.0.notify.notify_waiters();
    }

    pub(crate) fn heard(&self) -> Heard {
        Heard {
            bell: self.clone(),
            notified: self.0.notify.clone().notified_owned(),
            waker: None,
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bell").field(&self.0.rung).finish()
    }
}

// === impl Bells ===

impl Bells {
    pub(crate) fn ring(&self) {
        self.0.iter().for_each(Bell::ring);
    }

    pub(crate) fn heard(&self) -> Heard {
        self.0[fastrand::usize(..BELLS)].heard()
    }
}

const BELLS: usize = 16;

// === impl Heard ===

impl Future for Heard {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.bell.0.rung.load(Acquire) {
            return Poll::Ready(());
        }
        if this
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            return Poll::Pending;
        }
        *this.waker = Some(cx.waker().clone());
        // It was created before the load above, so it is notified if the flag was set since then.
        this.notified.poll(cx)
    }
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Heard").field(&self.bell).finish()
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[test]
    fn all_waiters_are_woken_and_later_ones_are_ready_at_once() {
        let bell = Bell::default();
        let mut early = task::spawn(bell.heard());
        let mut unpolled = task::spawn(bell.heard());
        assert_pending!(early.poll());
        assert_pending!(early.poll());
        bell.ring();
        assert!(early.is_woken());
        assert_ready!(early.poll());
        assert_ready!(unpolled.poll());
        assert_ready!(task::spawn(bell.heard()).poll());
    }

    #[test]
    fn bells_ring_together() {
        let bells = Bells::default();
        let mut heard: Vec<_> = (0..100).map(|_| task::spawn(bells.heard())).collect();
        heard
            .iter_mut()
            .for_each(|heard| assert_pending!(heard.poll()));
        bells.ring();
        heard
            .iter_mut()
            .for_each(|heard| assert_ready!(heard.poll()));
    }

    #[test]
    fn a_listener_that_moves_to_another_task_is_woken_there() {
        let bell = Bell::default();
        let mut first = task::spawn(Box::pin(bell.heard()));
        assert_pending!(first.poll());
        let mut second = task::spawn(first.into_inner());
        assert_pending!(second.poll());
        bell.ring();
        assert!(second.is_woken());
    }
}
