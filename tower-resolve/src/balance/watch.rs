use std::{
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use tokio::time::{Sleep, sleep};
use tower_outcome::BoxError;
use tower_service::Service;

use super::slot::Stats;

/// Waits for one endpoint: until it is ready, or until its service may be created again.
///
/// Polled only when that endpoint woke it, for any number of endpoints.
#[pin_project]
pub(super) struct Watch<S, Req> {
    stats: Arc<Stats>,
    #[pin]
    state: State<S>,
    request: PhantomData<fn(Req)>,
}

#[pin_project(project = StateProj)]
enum State<S> {
    /// Polls a clone of the service, the same one until it is ready. Its reservation is dropped with it.
    Asking(S),
    /// After a failure.
    Resting(#[pin] Sleep),
}

/// The result of a [`Watch`].
#[derive(Debug)]
pub(super) enum Seen {
    /// The endpoint is ready.
    Ready,
    /// Its service is finished.
    Failed(BoxError),
    /// The backoff after a failure is over.
    Rested,
}

// === impl Watch ===

impl<S, Req> Watch<S, Req> {
    pub(super) fn asking(stats: Arc<Stats>, service: S) -> Self {
        Self {
            stats,
            state: State::Asking(service),
            request: PhantomData,
        }
    }

    pub(super) fn resting(stats: Arc<Stats>, rest: Duration) -> Self {
        Self {
            stats,
            state: State::Resting(sleep(rest)),
            request: PhantomData,
        }
    }
}

impl<S, Req> Future for Watch<S, Req>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    type Output = (Arc<Stats>, Seen);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let seen = match this.state.project() {
            StateProj::Asking(service) => match ready!(service.poll_ready(cx)) {
                Ok(()) => Seen::Ready,
                Err(error) => Seen::Failed(error.into()),
            },
            StateProj::Resting(sleep) => {
                ready!(sleep.poll(cx));
                Seen::Rested
            }
        };
        Poll::Ready((this.stats.clone(), seen))
    }
}
