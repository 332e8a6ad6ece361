//! The deadline for what precedes the service of a connection, such as a handshake.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::{bell::Heard, drain::Drain};

/// Ready at the deadline, which moves to one second ahead, if that is earlier, once closing begins.
#[pin_project]
pub(crate) struct Patience {
    #[pin]
    closing: Heard,
    told: bool,
    #[pin]
    alarm: Sleep,
}

// === impl Patience ===

impl Patience {
    pub(crate) fn new(drain: &Drain, timeout: Duration) -> Self {
        Self {
            closing: drain.shared.closing.heard(),
            told: false,
            alarm: sleep(timeout),
        }
    }
}

impl Future for Patience {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if !*this.told && this.closing.poll(cx).is_ready() {
            *this.told = true;
            let last = this.alarm.deadline().min(Instant::now() + LAST_CHANCE);
            this.alarm.set(sleep_until(last));
        }
        this.alarm.poll(cx)
    }
}

/// A few round trips.
const LAST_CHANCE: Duration = Duration::from_secs(1);
