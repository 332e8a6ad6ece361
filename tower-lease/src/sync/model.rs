//! Tokio's `Notify` as far as it is used here, and an executor of one future.

use std::{
    future::Future,
    ops::Deref,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use loom::sync::{Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(crate) struct Notify(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How often all were notified.
    calls: usize,
    /// `notify_one` was called while no task waited.
    permit: bool,
    waiting: Vec<Waker>,
}

/// Hears of every notification since it was made, though it was not polled before (as Tokio's does).
#[derive(Debug)]
pub(crate) struct Notified<N: Deref<Target = Notify>> {
    notify: N,
    calls: usize,
}

pub(crate) type OwnedNotified = Notified<Arc<Notify>>;

impl Notify {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn notify_waiters(&self) {
        let mut state = self.state();
        state.calls += 1;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn notify_one(&self) {
        let mut state = self.state();
        state.permit = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn notified(&self) -> Notified<&Self> {
        let calls = self.state().calls;
        Notified {
            notify: self,
            calls,
        }
    }

    pub(crate) fn notified_owned(self: Arc<Self>) -> OwnedNotified {
        let calls = self.state().calls;
        Notified {
            notify: self,
            calls,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl<N: Deref<Target = Notify>> Future for Notified<N> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.notify.state();
        if state.calls != self.calls || std::mem::take(&mut state.permit) {
            return Poll::Ready(());
        }
        state.waiting.push(cx.waker().clone());
        Poll::Pending
    }
}

struct Woken(loom::sync::Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Runs a future to its end. A wake-up that is lost is a deadlock, which loom finds.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let woken = Arc::new(Woken(loom::sync::Notify::new()));
    let waker = Waker::from(woken.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        woken.0.wait();
    }
}
