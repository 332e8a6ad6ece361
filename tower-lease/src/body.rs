use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_outcome::BoxError;

use crate::{BootClock, Clock, LeaseGuard, LeaseLost, change_or_deadline::ChangeOrDeadline};

pin_project! {
    /// A response body that breaks off with [`LeaseLost`] once the lease is lost (R-28, I3), and that counts as inside until
    /// its end.
    ///
    /// `size_hint` and `is_end_stream` are the inner body's, so framing does not change. It costs two reads of the clock per
    /// frame, before the inner body is polled and before the frame leaves; a body that has to wait also costs one allocation and a place in a timer.
    pub struct LeaseBody<B, C = BootClock> {
        // None once it broke off.
        #[pin]
        inner: Option<B>,
        // None when its end is known.
        guard: Option<LeaseGuard<C>>,
        // Boxed, so that it is `Unpin`, and only once it has to wait.
        wake: Option<Pin<Box<ChangeOrDeadline>>>,
    }
}

// === impl LeaseBody ===

impl<B: Body, C: Clock> LeaseBody<B, C> {
    pub(crate) fn new(inner: B, guard: LeaseGuard<C>) -> Self {
        // A server drops such a body without polling it again.
        let guard = Some(guard).filter(|_| !inner.is_end_stream());
        Self {
            inner: Some(inner),
            guard,
            wake: None,
        }
    }
}

impl<B, C> Body for LeaseBody<B, C>
where
    B: Body,
    B::Error: Into<BoxError>,
    C: Clock,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let Some(mut inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let Some(guard) = this.guard else {
            return inner.poll_frame(cx).map_err(Into::into);
        };
        // The clock is read before each poll: since the last one a client may have read nothing for long, or the process
        // may have been stopped.
        let frame = if guard.is_valid() {
            inner.as_mut().poll_frame(cx)
        } else {
            Poll::Pending
        };
        if frame.is_pending() {
            let shared = guard.shared();
            let wake = this.wake.get_or_insert_with(ChangeOrDeadline::boxed);
            ready!(wake.as_mut().poll(cx, &shared.clock, &shared.lost, || {
                guard.is_valid().then(|| guard.valid_until())
            }));
        }
        match frame {
            // The end of the body is checked too: without an error the client takes the body for complete.
            Poll::Ready(frame) if guard.is_valid() => {
                let goes_on = matches!(&frame, Some(Ok(frame)) if !frame.is_trailers());
                if !goes_on || inner.is_end_stream() {
                    (*this.guard, *this.wake) = (None, None);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            _ => {
                let lost = LeaseLost::new(guard.epoch());
                guard.shared().counters.broken_off();
                // The inner body is dropped first, then the guard that counts it.
                this.inner.set(None);
                (*this.guard, *this.wake) = (None, None);
                Poll::Ready(Some(Err(lost.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_settled = self.guard.is_none();
        self.inner
            .as_ref()
            .is_none_or(|inner| is_settled && inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Default, C> Default for LeaseBody<B, C> {
    /// The inner body's default: empty, for every body in use.
    fn default() -> Self {
        Self {
            inner: Some(B::default()),
            guard: None,
            wake: None,
        }
    }
}

impl<B: fmt::Debug, C> fmt::Debug for LeaseBody<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseBody")
            .field("inner", &self.inner)
            .field("guarded", &self.guard.is_some())
            .finish()
    }
}
