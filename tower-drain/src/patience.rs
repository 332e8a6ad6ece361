//! The time that a connection has for what comes before it is served.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::{bell::Heard, drain::Drain};

/// Ready when the time is up: so long, but once closing begins a second at most.
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
