use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project::pin_project;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use super::{
    entry::{Told, is_same_trouble},
    flight::Flight,
};
use crate::{Cause, Update};

/// The updates of a name in a [`CachedResolver`](super::CachedResolver).
///
/// Changes that come faster than they are read are merged into the latest state.
#[pin_project]
pub struct CachedUpdates<U>(#[pin] Kind<U>);

#[pin_project(project = KindProj)]
enum Kind<U> {
    Shared {
        #[pin]
        told: WatchStream<Told>,
        flight: Arc<dyn Flight>,
        /// The task could not be started again where this is polled.
        is_grounded: bool,
        last: Told,
        queue: VecDeque<Update>,
    },
    Direct(#[pin] U),
}

// === impl CachedUpdates ===

impl<U> CachedUpdates<U> {
    pub(super) fn shared(told: watch::Receiver<Told>, flight: Arc<dyn Flight>) -> Self {
        let told = WatchStream::from_changes(told);
        Self(Kind::Shared {
            told,
            flight,
            is_grounded: false,
            last: Told::default(),
            queue: VecDeque::new(),
        })
    }

    pub(super) fn direct(updates: U) -> Self {
        Self(Kind::Direct(updates))
    }
}

impl<U: Stream<Item = Update>> Stream for CachedUpdates<U> {
    type Item = Update;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        match self.project().0.project() {
            KindProj::Direct(updates) => updates.poll_next(cx),
            KindProj::Shared {
                mut told,
                flight,
                is_grounded,
                last,
                queue,
            } => loop {
                if let Some(update) = queue.pop_front() {
                    return Poll::Ready(Some(update));
                }
                match told.as_mut().poll_next(cx) {
                    Poll::Ready(Some(next)) => {
                        queue.extend(between(last, &next));
                        *last = next;
                    }
                    Poll::Ready(None) => return Poll::Ready(None),
                    // Once: if it cannot be started, a second attempt ends in the same way.
                    Poll::Pending if *is_grounded || flight.keep() => return Poll::Pending,
                    Poll::Pending => {
                        *is_grounded = true;
                        let cause: Cause = Arc::new(NoRuntime);
                        last.degraded = Some(cause.clone());
                        return Poll::Ready(Some(Update::Degraded(cause)));
                    }
                }
            },
        }
    }
}

impl<U> fmt::Debug for CachedUpdates<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_shared = matches!(self.0, Kind::Shared { .. });
        f.debug_struct("CachedUpdates")
            .field("shared", &is_shared)
            .finish_non_exhaustive()
    }
}

/// The task that followed the name ended with its runtime, and there is none here to start it on.
#[derive(Debug)]
struct NoRuntime;

// === impl NoRuntime ===

impl fmt::Display for NoRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the runtime that followed the name has ended: poll its updates within another one",
        )
    }
}

impl std::error::Error for NoRuntime {}

/// The updates for a follower that has `last`.
fn between(last: &Told, next: &Told) -> impl Iterator<Item = Update> {
    let set = next.topology.as_ref().filter(|next| {
        let is_known = |last: &crate::Topology| {
            last.generation() == next.generation() && last.has_same_endpoints(next)
        };
        !last.topology.as_ref().is_some_and(is_known)
    });
    // The cache has confirmed an empty set already: `Degraded` is cleared first, so that the follower does not hold it back
    // again.
    let believe = last.degraded.is_some() && (next.degraded.is_none() || set.is_some());
    let progress = last
        .topology
        .as_ref()
        .filter(|_| believe)
        .map(|last| Update::Progress(last.generation()));
    let set = set.map(|set| {
        if set.exists() {
            Update::Snapshot(set.clone())
        } else {
            Update::DoesNotExist(set.generation())
        }
    });
    let trouble = next.degraded.clone().filter(|cause| {
        progress.is_some() || !is_same_trouble(last.degraded.as_ref(), Some(cause))
    });
    progress
        .into_iter()
        .chain(set)
        .chain(trouble.map(Update::Degraded))
}
