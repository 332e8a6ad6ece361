use std::{
    future::{Future, poll_fn},
    num::NonZeroU64,
    pin::{Pin, pin},
    time::Duration,
};

use tower_outcome::{
    Refusal,
    readiness::{Readiness, Ready},
};

use crate::{BootInstant, Clock, Lease, NotHeld, change_or_deadline::ChangeOrDeadline};

/// The state that [`Lease::readiness`] depends on.
struct Held<C>(Lease<C>);

// === impl Lease ===

impl<C: Clock> Lease<C> {
    /// Whether this process should be sent new requests: ready while the lease is held, which a draining gate, a
    /// [`lock_delay`](crate::LeaseBuilder::lock_delay) and the end of validity are not.
    ///
    /// [`Jeopardy`](crate::State::Jeopardy) counts as ready: requests are let in, and a service that took itself out at the
    /// first renewal that fails would be out with every hiccup of the store. To prefer other replicas during it, read
    /// [`state`](Self::state).
    ///
    /// It answers HTTP probes as a service, and can be joined with other conditions: see [`Readiness`]. Each check compares the clock
    /// with the end of validity, and a change is reported by a separate timer, so both are right though the keeper does
    /// not run. (After a suspend that timer may be late: see [`BootClock`](crate::BootClock).) Once the keeper has
    /// ended it is not ready any more, for good.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness::new(Held(self.clone()))
    }
}

// === impl Held ===

impl<C: Clock> Held<C> {
    /// The epoch for which new requests are let in, and until when.
    fn open(&self) -> Option<(NonZeroU64, BootInstant)> {
        self.0.shared().open(Duration::ZERO)
    }
}

impl<C: Clock> Ready for Held<C> {
    fn check(&self) -> Result<(), Refusal> {
        match self.open() {
            Some(_) => Ok(()),
            // Without the time of the next attempt: that changes though the state does not.
            None => Err(NotHeld::REFUSAL),
        }
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let state = Self(self.0.clone());
        // As of this call, so that what happens before the first poll counts.
        let before = state.open().map(|(epoch, _)| epoch);
        Box::pin(async move {
            let shared = state.0.shared();
            let notify = match before {
                Some(_) => &shared.lost,
                None => &shared.opened,
            };
            let mut wake = pin!(ChangeOrDeadline::default());
            // An extension only moves the end: the timer of the old one finds the new one.
            poll_fn(|cx| {
                wake.as_mut().poll(cx, &shared.clock, notify, || {
                    let (epoch, until) = state.open().unzip();
                    (epoch == before).then_some(until)
                })
            })
            .await;
        })
    }
}
