//! The response timeout of each endpoint, inside its circuit: a response that does not come is a failure of the endpoint.
//!
//! The timeout starts when the request has been sent, or when its body makes no progress. An upload may take as long as it makes
//! progress; if the client stalls, the error is the client's and not the endpoint's.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_outcome::{BoxError, Class, Refusal, Unsent};
use tower_service::Service;

use crate::head;

/// Gives up on an answer after this time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerLayer {
    limit: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer<S> {
    inner: S,
    limit: Duration,
}

#[pin_project]
pub(crate) struct AnswerFuture<F, A> {
    #[pin]
    inner: F,
    #[pin]
    timeout: Sleep,
    limit: Duration,
    upload: Option<Arc<Upload>>,
    body: std::marker::PhantomData<fn() -> A>,
}

/// A request body that notes how it moves, and whose trailers are fit to be passed on. One that is empty has nothing to note.
#[pin_project]
#[derive(Debug)]
pub(crate) struct Watched<A> {
    #[pin]
    inner: A,
    upload: Option<Arc<Upload>>,
}

/// The endpoint did not answer in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoAnswer;

#[derive(Debug)]
struct Upload {
    began: Instant,
    /// When it moved last, in milliseconds after it began.
    moved: AtomicU64,
    /// It is the client's turn.
    waits_for_client: AtomicBool,
}

// === impl AnswerLayer ===

impl AnswerLayer {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answer<S>;

    fn layer(&self, inner: S) -> Answer<S> {
        Answer {
            inner,
            limit: self.limit,
        }
    }
}

// === impl Answer ===

impl<S, A, B> Service<Request<A>> for Answer<S>
where
    S: Service<Request<Watched<A>>, Response = Response<B>, Error = BoxError>,
    A: Body + Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = AnswerFuture<S::Future, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let request = request.map(Watched::new);
        let upload = request.body().upload.clone();
        let timeout = tokio::time::sleep(self.limit);
        let body = std::marker::PhantomData;
        AnswerFuture {
            inner: self.inner.call(request),
            timeout,
            limit: self.limit,
            upload,
            body,
        }
    }
}

// === impl AnswerFuture ===

impl<F, A, B> Future for AnswerFuture<F, A>
where
    F: Future<Output = Result<Response<B>, BoxError>>,
    A: Send + 'static,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            return Poll::Ready(result.map_err(handed_back::<A>));
        }
        loop {
            ready!(this.timeout.as_mut().poll(cx));
            match this
                .upload
                .as_ref()
                .map(|upload| upload.moved() + *this.limit)
            {
                Some(later) if later > this.timeout.deadline() => {
                    this.timeout.as_mut().reset(later)
                }
                _ => break,
            }
        }
        let stalled = this
            .upload
            .as_ref()
            .is_some_and(|upload| upload.waits_for_client.load(Relaxed));
        Poll::Ready(Err(if stalled {
            STALLED.into()
        } else {
            NoAnswer.into()
        }))
    }
}

/// A request that comes back unsent comes back as it was given.
fn handed_back<A: Send + 'static>(error: BoxError) -> BoxError {
    match Unsent::<Request<Watched<A>>>::recover(error) {
        Ok((request, cause)) => Unsent::new(request.map(|body| body.inner), cause).into(),
        Err(error) => error,
    }
}

const STALLED: Refusal = Refusal::new(Class::TimedOut, "request-body-stalled");

// === impl Watched ===

impl<A: Body> Watched<A> {
    fn new(inner: A) -> Self {
        let upload = (!inner.is_end_stream()).then(|| Arc::new(Upload::new()));
        Self { inner, upload }
    }
}

impl<A: Body> Body for Watched<A> {
    type Data = A::Data;
    type Error = A::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<A::Data>, A::Error>>> {
        let this = self.project();
        let mut frame = this.inner.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            head::request_trailers(trailers);
        }
        if let Some(upload) = this.upload {
            upload.note(&frame);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl Upload ===

impl Upload {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            moved: AtomicU64::new(0),
            waits_for_client: AtomicBool::new(false),
        }
    }

    fn note<T>(&self, frame: &Poll<T>) {
        self.waits_for_client.store(frame.is_pending(), Relaxed);
        if frame.is_ready() {
            let moved = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.moved.store(moved, Relaxed);
        }
    }

    fn moved(&self) -> Instant {
        self.began + Duration::from_millis(self.moved.load(Relaxed))
    }
}

// === impl NoAnswer ===

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream did not answer in time")
    }
}

impl Error for NoAnswer {}
