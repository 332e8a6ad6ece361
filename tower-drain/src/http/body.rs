//! Request bodies that must get on.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_outcome::BoxError;

use super::pace::{Limits, Pace};

/// The body of a request: hyper's, with a clock that runs while the app waits for it.
///
/// A client that sends nothing for 30 s, or less than 240 bytes a second after the first five, ends it with
/// [`TooSlow`]. Time in which the app does not read does not count, so an upload may go to a slow disk. Off by itself
/// for gRPC, and from the moment the answer has begun: then it is a conn, and silence is part of it.
///
/// It costs nothing until the app has to wait for the first time; then one allocation with a timer. A request that
/// brings a body costs one more, for the mark that its answer has begun.
pub struct RequestBody {
    incoming: Incoming,
    limits: Option<Limits>,
    answered: Option<Answered>,
    watch: Option<Pin<Box<Watch>>>,
}

/// The error of a [`RequestBody`] whose client is too slow. It is a `408` to the client; axum's extractors make it a
/// `400`, and the connection ends in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow(());

/// Told once the answer to a request has begun.
#[derive(Clone, Debug, Default)]
pub(super) struct Answered(Arc<AtomicBool>);

#[pin_project]
struct Watch {
    pace: Pace,
    #[pin]
    alarm: Sleep,
}

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(incoming: Incoming, headers: &HeaderMap, limits: Option<Limits>) -> Self {
        let limits = limits.filter(|_| !incoming.is_end_stream() && !is_grpc(headers));
        let answered = limits.map(|_| Answered::default());
        Self {
            incoming,
            limits,
            answered,
            watch: None,
        }
    }

    pub(super) fn answered(&self) -> Option<Answered> {
        self.answered.clone()
    }

    /// Ready when the client has had its time.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limits) = &self.limits else {
            return Poll::Pending;
        };
        if self.answered.as_ref().is_some_and(Answered::is_told) {
            (self.limits, self.watch) = (None, None);
            return Poll::Pending;
        }
        let now = Instant::now();
        let watch = self.watch.get_or_insert_with(|| {
            Box::pin(Watch {
                pace: Pace::new(),
                alarm: sleep_until(now),
            })
        });
        let mut watch = watch.as_mut().project();
        let until = watch.pace.wait(limits, now);
        if watch.alarm.deadline() != until {
            watch.alarm.as_mut().reset(until);
        }
        watch.alarm.poll(cx)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        match &frame {
            Poll::Pending if self.poll_patience(cx).is_ready() => {
                return Poll::Ready(Some(Err(TooSlow(()).into())));
            }
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if let Some(watch) = &mut self.watch {
                    watch.as_mut().project().pace.read(bytes, Instant::now());
                }
            }
            _ => {}
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl From<Incoming> for RequestBody {
    /// Without a clock.
    fn from(incoming: Incoming) -> Self {
        Self {
            incoming,
            limits: None,
            answered: None,
            watch: None,
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody")
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

// === impl TooSlow ===

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's body comes too slowly")
    }
}

impl Error for TooSlow {}

// === impl Answered ===

impl Answered {
    pub(super) fn tell(&self) {
        self.0.store(true, Relaxed);
    }

    fn is_told(&self) -> bool {
        self.0.load(Relaxed)
    }
}
