use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::{
    BootInstant, Clock,
    sync::{Notify, OwnedNotified},
};

pin_project! {
    /// Waits for a notification or an instant. It costs nothing until it is polled; then it registers with a `Notify` and with
    /// Tokio's timer, each behind a short lock.
    #[derive(Default)]
    pub(crate) struct ChangeOrDeadline {
        #[pin]
        change: Option<OwnedNotified>,
        // What the timer is set to.
        deadline: Option<BootInstant>,
        #[pin]
        timer: Option<Sleep>,
    }
}

// === impl ChangeOrDeadline ===

impl ChangeOrDeadline {
    /// For fields that must be `Unpin`.
    pub(crate) fn boxed() -> Pin<Box<Self>> {
        Box::pin(Self::default())
    }

    /// Ready when `look` returns `None`. Otherwise calls `look` again at the next notification, or at the instant it returned.
    pub(crate) fn poll<C: Clock>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        clock: &C,
        notify: &Arc<Notify>,
        mut look: impl FnMut() -> Option<Option<BootInstant>>,
    ) -> Poll<()> {
        loop {
            let mut this = self.as_mut().project();
            // Registers before it checks, so that no change falls between the two.
            if this.change.is_none() {
                this.change.set(Some(notify.clone().notified_owned()));
            }
            let Some(deadline) = look() else {
                self.set(Self::default());
                return Poll::Ready(());
            };
            if let Some(change) = this.change.as_mut().as_pin_mut()
                && change.poll(cx).is_ready()
            {
                this.change.set(None);
                continue;
            }
            // A timer that is set to an earlier time than need be wakes us, and then we look again.
            if let Some(deadline) = deadline
                && this.deadline.is_none_or(|set| deadline < set)
            {
                *this.deadline = Some(deadline);
                this.timer.set(Some(clock.sleep_until(deadline)));
            }
            match this.timer.as_mut().as_pin_mut().map(|timer| timer.poll(cx)) {
                Some(Poll::Ready(())) => {
                    *this.deadline = None;
                    this.timer.set(None);
                }
                _ => return Poll::Pending,
            }
        }
    }
}

impl fmt::Debug for ChangeOrDeadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeOrDeadline")
            .field("armed", &self.change.is_some())
            .finish()
    }
}
