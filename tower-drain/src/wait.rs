use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project::pin_project;
use tokio::{
    sync::futures::OwnedNotified,
    time::{Instant, Sleep, sleep_until},
};

use crate::{drain::Shared, phase::Phase, report::Report};

/// Ready when the drain has reached a phase. Made by [`Drain::closing`](crate::Drain::closing) and its siblings.
///
/// It is `'static`, so it can be moved into a task, and it has its own timer, so phases advance while it is awaited.
///
/// # Cancel safety
///
/// Dropping it changes nothing.
///
/// # Panics
///
/// If it is polled outside a tokio runtime with time enabled while a drain is going on.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Reached {
    shared: Arc<Shared>,
    phase: Phase,
    #[pin]
    changed: OwnedNotified,
    #[pin]
    alarm: Option<Sleep>,
}

/// Ready when the drain is over, with the [`Report`]. Made by [`Drain::done`](crate::Drain::done).
///
/// It has its own timer, as [`Reached`] has; cancel safety and panics are as there.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Done(#[pin] Reached);

// === impl Reached ===

impl Reached {
    pub(crate) fn new(shared: Arc<Shared>, phase: Phase) -> Self {
        let changed = shared.changed.clone().notified_owned();
        Self {
            shared,
            phase,
            changed,
            alarm: None,
        }
    }
}

impl Future for Reached {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            // `changed` was created before this check, so a change after it is not missed.
            let (phase, deadline) = this.shared.look();
            if phase >= *this.phase {
                return Poll::Ready(());
            }
            if this.changed.as_mut().poll(cx).is_ready() {
                this.changed
                    .set(this.shared.changed.clone().notified_owned());
                continue;
            }
            if !poll_alarm(this.alarm.as_mut(), deadline, cx) {
                return Poll::Pending;
            }
        }
    }
}

impl fmt::Debug for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reached")
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Sets the timer to `deadline` and polls it.
fn poll_alarm(
    mut alarm: Pin<&mut Option<Sleep>>,
    deadline: Option<Instant>,
    cx: &mut Context<'_>,
) -> bool {
    if alarm.as_ref().as_pin_ref().map(|sleep| sleep.deadline()) != deadline {
        alarm.set(deadline.map(sleep_until));
    }
    alarm
        .as_pin_mut()
        .is_some_and(|sleep| sleep.poll(cx).is_ready())
}

// === impl Done ===

impl Done {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(Reached::new(shared, Phase::Done))
    }
}

impl Future for Done {
    type Output = Report;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Report> {
        let mut reached = self.project().0;
        reached.as_mut().poll(cx).map(|()| {
            reached
                .shared
                .report()
                .expect("a drain that is done has its report")
        })
    }
}
