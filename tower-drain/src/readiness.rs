use std::{
    future::{Future, pending},
    pin::Pin,
};

use tower_outcome::{
    Class, Refusal,
    readiness::{Readiness, Ready},
};

use crate::drain::Drain;

impl Drain {
    /// Readiness for probes: ready only while [`Serving`](crate::Phase::Serving).
    ///
    /// It is a service that responds with `200` or `503`, can be combined with that of a lease, and can drive gRPC's health
    /// service: see [`Readiness`].
    ///
    /// ```
    /// use axum::Router;
    /// use tower_drain::Drain;
    ///
    /// let drain = Drain::new();
    /// let probes: Router = Router::new().route_service("/ready", drain.readiness());
    /// ```
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness::new(Serving(self.clone()))
    }
}

struct Serving(Drain);

impl Ready for Serving {
    fn check(&self) -> Result<(), Refusal> {
        if self.0.is_ready() {
            Ok(())
        } else {
            Err(DRAINING)
        }
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        if self.0.is_ready() {
            Box::pin(self.0.announcing())
        } else {
            Box::pin(pending())
        }
    }
}

const DRAINING: Refusal = Refusal::new(Class::Unavailable, "draining");

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[tokio::test]
    async fn it_is_ready_only_while_serving_and_its_only_change_is_not_missed() {
        let drain = Drain::new();
        let readiness = drain.readiness();
        assert_eq!(readiness.check(), Ok(()));
        let (mut unpolled, mut change) = (
            task::spawn(readiness.changed()),
            task::spawn(readiness.changed()),
        );
        assert_pending!(change.poll());
        drain.begin_drain();
        assert!(change.is_woken());
        assert_ready!(change.poll());
        assert_ready!(unpolled.poll());
        assert_eq!(readiness.check(), Err(DRAINING));
        assert_pending!(task::spawn(readiness.changed()).poll());
        drain.force();
        assert_eq!(readiness.check(), Err(DRAINING));
    }
}
