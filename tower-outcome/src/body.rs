//! Body wrappers. For responses: [`GuardedBody`] carries a guard to the end of the stream, [`RespondBody`] is either the inner
//! body or a rejection. For requests: [`ClientBody`] marks a failed body as the client's fault.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{BoxError, Class, Refusal};

/// How a body ended.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// All of it was delivered, with these trailers.
    Complete(Option<&'a HeaderMap>),
    /// It ended early, with an error or a panic. `Some` if the error is a local rejection (a lost lease, a forced drain).
    Broken(Option<&'a Refusal>),
}

/// A callback for the end of a body.
///
/// A value that is dropped without a call to [`on_end`](OnEnd::on_end) belongs to a body that was dropped before its end,
/// for example because the client disconnected.
pub trait OnEnd {
    /// Records the end. Called at most once, as soon as the end is known.
    fn on_end(self, end: End<'_>);
}

pin_project! {
    /// A body that carries a guard until its end, its error or its drop. A panic of the inner body counts as an error.
    ///
    /// Servers drop a body without polling it again once its `is_end_stream` returns true, or once it has yielded as many bytes
    /// as its `size_hint` or the head's `Content-Length` announced. So a classification [at the end](crate::classify::AtEnd)
    /// takes either for the end, and counts a body that ends before the announced length as broken off. `size_hint` and
    /// `is_end_stream` are those of the inner body, so framing does not change.
    pub struct GuardedBody<B, G: OnEnd> {
        #[pin]
        inner: B,
        guard: Option<G>,
        // Set while the inner body is polled: a drop during that time is caused by its panic.
        inside: bool,
        // Bytes still to come, or `UNKNOWN`.
        left: u64,
    }

    impl<B, G: OnEnd> PinnedDrop for GuardedBody<B, G> {
        // A panic of the inner body ends it, as an error does. In any other case the guard is dropped with its reader.
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if *this.inside
                && let Some(guard) = this.guard.take()
            {
                guard.on_end(End::Broken(None));
            }
        }
    }
}

pin_project! {
    /// The inner service's body, or the text of a rejection.
    #[derive(Debug)]
    pub struct RespondBody<B> {
        #[pin]
        either: Either<B>,
    }
}

pin_project! {
    /// A request body whose errors are marked as the client's fault: a [`Refusal`] of [`Class::BadRequest`].
    ///
    /// When an upload breaks off, an HTTP client returns an error with the body's error in its chain. A circuit around that
    /// client cannot distinguish it from a failure of the upstream, so clients that break off their uploads could open the circuit
    /// for every client. With this wrapper around the incoming body the chain contains a [`Refusal`], which every preset
    /// classification ignores.
    ///
    /// ```
    /// use http::Request;
    /// use tower_outcome::body::ClientBody;
    ///
    /// // In a stack, between the circuit and the client. A classification can search boxed errors only:
    /// // `.map_err(BoxError::from).map_request(|request: Request<_>| request.map(ClientBody::new))`
    /// let request = Request::new(String::from("body")).map(ClientBody::new);
    /// # let _ = request;
    /// ```
    #[derive(Clone, Copy, Debug, Default)]
    pub struct ClientBody<B> {
        #[pin]
        inner: B,
    }
}

/// The error of a [`ClientBody`]: the request body broke off.
///
/// Its `source()` is the [`Refusal`], so that [`Refusal::find`] finds it. The error of the inner body is part of the message
/// and available from [`get_ref`](Self::get_ref).
#[derive(Debug)]
pub struct ClientBodyError {
    error: BoxError,
    refusal: Refusal,
}

pin_project! {
    #[project = EitherProj]
    #[derive(Debug)]
    enum Either<B> {
        Inner {
            #[pin]
            body: B,
        },
        Refusal {
            text: Option<Bytes>,
        },
    }
}

// === impl GuardedBody ===

impl<B: Body, G: OnEnd> GuardedBody<B, G> {
    /// Attaches `guard` to `inner`. If the body is already at its end, the guard is called now.
    pub fn new(inner: B, guard: G) -> Self {
        Self::of_length(inner, guard, None)
    }

    /// Like [`new`](Self::new), for a body that ends after `length` bytes even if its `is_end_stream` does not report it.
    pub(crate) fn of_length(inner: B, guard: G, length: Option<u64>) -> Self {
        if inner.is_end_stream() || length == Some(0) {
            guard.on_end(End::Complete(None));
            return Self::settled(inner);
        }
        Self {
            inner,
            guard: Some(guard),
            inside: false,
            left: length.unwrap_or(UNKNOWN),
        }
    }
}

const UNKNOWN: u64 = u64::MAX;

impl<B, G: OnEnd> GuardedBody<B, G> {
    /// A body whose end is already known: it carries no guard.
    pub fn settled(inner: B) -> Self {
        Self {
            inner,
            guard: None,
            inside: false,
            left: UNKNOWN,
        }
    }

    /// The inner body.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }
}

impl<B, G> Body for GuardedBody<B, G>
where
    B: Body,
    B::Error: 'static,
    G: OnEnd,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        *this.inside = true;
        let frame = this.inner.as_mut().poll_frame(cx);
        *this.inside = false;
        let frame = ready!(frame);
        if this.guard.is_some() {
            let end = match &frame {
                Some(Ok(frame)) => match frame.trailers_ref() {
                    Some(trailers) => Some(End::Complete(Some(trailers))),
                    None if this.inner.is_end_stream() || is_last(this.left, frame) => {
                        Some(End::Complete(None))
                    }
                    None => None,
                },
                Some(Err(error)) => Some(End::Broken(Refusal::of(error))),
                None if *this.left == 0 || *this.left == UNKNOWN => Some(End::Complete(None)),
                None => Some(End::Broken(None)),
            };
            if let Some(end) = end
                && let Some(guard) = this.guard.take()
            {
                guard.on_end(end);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Subtracts the bytes of a frame; true when none are left.
fn is_last<D: Buf>(left: &mut u64, frame: &Frame<D>) -> bool {
    if *left != UNKNOWN {
        *left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.remaining() as u64));
    }
    *left == 0
}

impl<B: fmt::Debug, G: OnEnd> fmt::Debug for GuardedBody<B, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedBody")
            .field("inner", &self.inner)
            .field("settled", &self.guard.is_none())
            .finish()
    }
}

impl<B: Default, G: OnEnd> Default for GuardedBody<B, G> {
    /// An empty body without a guard.
    fn default() -> Self {
        Self::settled(B::default())
    }
}

// === impl ClientBody ===

impl<B> ClientBody<B> {
    /// Marks the errors of `body` as the client's fault.
    pub const fn new(body: B) -> Self {
        Self { inner: body }
    }

    /// The inner body.
    pub fn into_inner(self) -> B {
        self.inner
    }
}

impl<B> Body for ClientBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = ClientBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, ClientBodyError>>> {
        let frame = ready!(self.project().inner.poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(ClientBodyError::new)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl ClientBodyError ===

impl ClientBodyError {
    fn new(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        let broke_off = Refusal::new(Class::BadRequest, "request-body-broke-off");
        // A refusal from the server that read the body (too slow, too large) is more precise.
        let refusal = Refusal::find(&*error).copied().unwrap_or(broke_off);
        Self { error, refusal }
    }

    /// The error of the inner body.
    #[must_use]
    pub fn get_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.error
    }
}

impl fmt::Display for ClientBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request body broke off: {}", self.error)
    }
}

impl Error for ClientBodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === impl RespondBody ===

impl<B> RespondBody<B> {
    /// Wraps the inner service's body.
    pub fn inner(body: B) -> Self {
        Self {
            either: Either::Inner { body },
        }
    }

    /// The text of a rejection; empty for a gRPC trailers-only response.
    pub fn refusal(text: impl Into<Bytes>) -> Self {
        let text = Some(text.into()).filter(|text: &Bytes| !text.is_empty());
        Self {
            either: Either::Refusal { text },
        }
    }
}

impl<B: Body<Data = Bytes>> Body for RespondBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().either.project() {
            EitherProj::Inner { body } => body.poll_frame(cx),
            EitherProj::Refusal { text } => {
                Poll::Ready(text.take().map(|text| Ok(Frame::data(text))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.either {
            Either::Inner { body } => body.is_end_stream(),
            Either::Refusal { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.either {
            Either::Inner { body } => body.size_hint(),
            Either::Refusal { text } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}

impl<B: Default> Default for RespondBody<B> {
    /// The default of the inner body, which is empty for all common bodies.
    fn default() -> Self {
        Self::inner(B::default())
    }
}
