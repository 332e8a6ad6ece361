use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_outcome::refuse::Refuse;
use tower_service::Service;

use crate::headers::DecorateResponse;

pin_project! {
    /// The future of a [`BucketService`](crate::BucketService): the inner service's, or a refusal that is ready at once.
    ///
    /// # Cancel safety
    ///
    /// It may be dropped at any time. The token was taken in `call` and is not given back: the inner service has been
    /// called, and may have done its work.
    pub struct ResponseFuture<S, R, Req, N = ()>
    where
        S: Service<Req>,
        R: Refuse<Req, S::Response, S::Error>,
    {
        #[pin]
        state: State<S::Future, Result<R::Response, R::Error>>,
        note: N,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, T> {
        Admitted { #[pin] inner: F },
        // `None` once it was returned.
        Refused { answer: Option<T> },
    }
}

// === impl ResponseFuture ===

impl<S, R, Req, N> ResponseFuture<S, R, Req, N>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    pub(crate) const fn admitted(inner: S::Future, note: N) -> Self {
        Self {
            state: State::Admitted { inner },
            note,
        }
    }

    pub(crate) const fn refused(answer: Result<R::Response, R::Error>, note: N) -> Self {
        Self {
            state: State::Refused {
                answer: Some(answer),
            },
            note,
        }
    }
}

impl<S, R, Req, N> Future for ResponseFuture<S, R, Req, N>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
    N: DecorateResponse<R::Response>,
{
    type Output = Result<R::Response, R::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = match this.state.project() {
            StateProj::Admitted { inner } => R::pass(ready!(inner.poll(cx))),
            StateProj::Refused { answer } => answer.take().expect("polled after it was ready"),
        };
        if let Ok(response) = &mut answer {
            this.note.decorate(response);
        }
        Poll::Ready(answer)
    }
}

impl<S, R, Req, N> fmt::Debug for ResponseFuture<S, R, Req, N>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = matches!(self.state, State::Refused { .. });
        f.debug_struct("ResponseFuture")
            .field("refused", &refused)
            .finish_non_exhaustive()
    }
}
