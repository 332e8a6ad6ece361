//! Request bodies with a timeout and a minimum rate.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_outcome::BoxError;

use super::{
    exchange::{Exchange, Owes},
    pace::{Limits, Pace},
    shared::ConnShared,
};

/// The body of a request: hyper's body, with a timer that runs while the app waits for data.
///
/// A client that sends nothing for 30 s, or less than 240 bytes a second after the first five, ends it with
/// [`TooSlow`]. Time in which the app does not read is not counted, so an upload may be written to a slow disk.
///
/// No header turns the timer off, but the server can: for all requests with
/// [`Http::body_timeout`](crate::Http::body_timeout) and [`Http::body_rate`](crate::Http::body_rate), for a route over
/// HTTP/2 with a [`StreamingLayer`](crate::StreamingLayer), and for one request by beginning its response: the request is
/// then taken for a bidirectional stream, which may be silent. Once the response has ended, the rest of the body may take
/// [`Http::upload_linger`](crate::Http::upload_linger), 5 s, between two frames.
///
/// It costs nothing until the app waits for the first time; then one allocation with a timer. A request with a body costs
/// one more allocation, for the state that its body and its response share.
pub struct RequestBody {
    /// `None` after the end, so that hyper's body is freed even if the app keeps this value.
    incoming: Option<Incoming>,
    upload: Option<Upload>,
    watch: Option<Pin<Box<Watch>>>,
}

/// The error of a [`RequestBody`] whose client is too slow. The client gets a `408`; axum's extractors make it a
/// `400`. The connection is closed in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow(());

/// A body that has not ended.
struct Upload {
    conn: Arc<ConnShared>,
    exchange: Arc<Exchange>,
    /// It has ended.
    whole: bool,
}

#[pin_project]
struct Watch {
    /// The connection whose counters it updates.
    owes: Owes,
    pace: Pace,
    #[pin]
    alarm: Sleep,
}

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(incoming: Incoming, conn: &Arc<ConnShared>) -> Self {
        let upload = (!incoming.is_end_stream()).then(|| Upload::begin(conn));
        Self {
            incoming: Some(incoming),
            upload,
            watch: None,
        }
    }

    pub(super) fn exchange(&self) -> Option<Arc<Exchange>> {
        Some(self.upload.as_ref()?.exchange.clone())
    }

    /// Ready when the client's time has expired.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Upload { conn, exchange, .. }) = &self.upload else {
            return Poll::Pending;
        };
        exchange.register(cx.waker());
        let owes = exchange.owes();
        let limits = match owes {
            Owes::Request => conn.settings.pace,
            Owes::Rest => Limits {
                idle: conn.settings.life.upload,
                ..conn.settings.pace
            },
            Owes::Nothing => {
                self.watch = None;
                return Poll::Pending;
            }
        };
        let now = Instant::now();
        let watch = match &mut self.watch {
            Some(watch) if watch.owes == owes => watch,
            watch => watch.insert(Box::pin(Watch {
                owes,
                pace: Pace::new(),
                alarm: sleep_until(now),
            })),
        };
        let mut watch = watch.as_mut().project();
        let until = watch.pace.wait(&limits, now);
        if watch.alarm.deadline() != until {
            watch.alarm.as_mut().reset(until);
        }
        watch.alarm.poll(cx)
    }

    fn note_read(&mut self, frame: &Frame<Bytes>) {
        if let Some(upload) = &self.upload {
            upload.conn.note_read();
        }
        if let Some(watch) = &mut self.watch {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            watch.as_mut().project().pace.read(bytes, Instant::now());
        }
        if self.incoming.as_ref().is_none_or(Body::is_end_stream) {
            self.end(true);
        }
    }

    fn end(&mut self, whole: bool) {
        if let Some(upload) = &mut self.upload {
            upload.whole = whole;
        }
        (self.incoming, self.upload, self.watch) = (None, None, None);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(upload) = &self.upload {
            upload.conn.note_reading();
        }
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(incoming).poll_frame(cx);
        match &frame {
            Poll::Pending if self.poll_patience(cx).is_ready() => {
                self.end(false);
                return Poll::Ready(Some(Err(TooSlow(()).into())));
            }
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => self.note_read(frame),
            Poll::Ready(None) => self.end(true),
            Poll::Ready(Some(Err(_))) => self.end(false),
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl From<Incoming> for RequestBody {
    /// Without a timer.
    fn from(incoming: Incoming) -> Self {
        Self {
            incoming: Some(incoming),
            upload: None,
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

// === impl Upload ===

impl Upload {
    fn begin(conn: &Arc<ConnShared>) -> Self {
        conn.begin_upload();
        Self {
            conn: conn.clone(),
            exchange: Arc::default(),
            whole: false,
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.conn.end_upload(self.whole);
    }
}

// === impl TooSlow ===

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's body comes too slowly")
    }
}

impl Error for TooSlow {}
