use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tower_outcome::{BoxError, body::GuardedBody};

use crate::{
    bell::Heard,
    cut::{CUT, Cut},
    guard::Guard,
};

/// The body of a response that the drain waits for. Made by [`DrainLayer`](crate::DrainLayer).
///
/// If the drain is over before the body ends, the inner body is dropped and an error follows, a
/// [`Refusal`](tower_outcome::Refusal), so that a truncated body never looks complete.
#[pin_project]
pub struct DrainBody<B> {
    /// `None` once it is cut.
    #[pin]
    inner: Option<GuardedBody<B, Guard>>,
    cut: Cut,
    /// Set when the body had to wait. It is boxed so that the body is `Unpin` if the inner one is.
    heard: Option<Pin<Box<Heard>>>,
}

// === impl DrainBody ===

impl<B: Body> DrainBody<B> {
    pub(crate) fn new(inner: B, guard: Guard) -> Self {
        let cut = if inner.is_end_stream() {
            Cut::never()
        } else {
            Cut::at_the_end_of(Arc::clone(guard.shared()))
        };
        Self {
            inner: Some(GuardedBody::new(inner, guard)),
            cut,
            heard: None,
        }
    }
}

impl<B> DrainBody<B> {
    /// The empty body of a response that replaces one that was cut.
    pub(crate) const fn empty() -> Self {
        Self {
            inner: None,
            cut: Cut::never(),
            heard: None,
        }
    }
}

impl<B> Body for DrainBody<B>
where
    B: Body,
    B::Error: Into<BoxError> + 'static,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        if !this.cut.is_due() {
            if let Poll::Ready(frame) = inner.poll_frame(cx) {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            if this.heard.is_none() {
                *this.heard = this.cut.heard().map(Box::pin);
            }
            let Some(heard) = this.heard else {
                return Poll::Pending;
            };
            ready!(heard.as_mut().poll(cx));
        }
        this.inner.set(None);
        Poll::Ready(Some(Err(CUT.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.as_ref().map(Body::size_hint);
        inner.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl<B> fmt::Debug for DrainBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainBody")
            .field("cut", &self.inner.is_none())
            .finish_non_exhaustive()
    }
}
