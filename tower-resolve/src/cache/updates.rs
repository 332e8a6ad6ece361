use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project::pin_project;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use super::entry::Told;
use crate::Update;

/// The updates of a name in a [`CachedResolver`](super::CachedResolver).
///
/// What happens faster than it is read is told once, as the latest state.
#[pin_project]
pub struct CachedUpdates<U>(#[pin] Kind<U>);

#[pin_project(project = KindProj)]
enum Kind<U> {
    Shared {
        #[pin]
        told: WatchStream<Told>,
        last: Told,
        queue: VecDeque<Update>,
    },
    Direct(#[pin] U),
}

// === impl CachedUpdates ===

impl<U> CachedUpdates<U> {
    pub(super) fn shared(told: watch::Receiver<Told>) -> Self {
        let told = WatchStream::from_changes(told);
        Self(Kind::Shared {
            told,
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
                last,
                queue,
            } => loop {
                if let Some(update) = queue.pop_front() {
                    return Poll::Ready(Some(update));
                }
                let Some(next) = ready!(told.as_mut().poll_next(cx)) else {
                    return Poll::Ready(None);
                };
                queue.extend(between(last, &next));
                *last = next;
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

/// What to tell somebody who knows `last`.
fn between(last: &Told, next: &Told) -> impl Iterator<Item = Update> {
    let set = next.topology.as_ref().filter(|next| {
        let is_known = |last: &crate::Topology| {
            last.generation() == next.generation() && last.has_same_endpoints(next)
        };
        !last.topology.as_ref().is_some_and(is_known)
    });
    // The cache has weighed an empty set already: said first, this tells the follower not to hold it back again.
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
    let trouble = next
        .degraded
        .clone()
        .filter(|_| last.degraded.is_none() || progress.is_some());
    progress
        .into_iter()
        .chain(set)
        .chain(trouble.map(Update::Degraded))
}
