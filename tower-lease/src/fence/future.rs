use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Request;
use pin_project_lite::pin_project;
use tower_outcome::refuse::Refuse;
use tower_service::Service;

use super::{FencePass, StaleToken};

pin_project! {
    /// The future of a [`FenceService`](super::FenceService).
    pub struct FenceFuture<S: Service<Req>, Req, R, K> {
        #[pin]
        step: Step<S, Req, S::Future>,
        refuse: R,
        context: K,
    }
}

pin_project! {
    #[project = StepProj]
    enum Step<S, Req, F> {
        /// The mark is asked. -> `Passed`, or refused.
        Asking { asking: Asking, then: Option<(S, Req)> },
        Passed { #[pin] inner: F },
        Rejected { error: StaleToken },
    }
}

// A mark's future cannot be named; it is made once an epoch.
type Asking = Pin<Box<dyn Future<Output = Result<FencePass, StaleToken>> + Send>>;

// === impl FenceFuture ===

impl<S: Service<Req>, Req, R, K> FenceFuture<S, Req, R, K> {
    pub(super) fn asking(asking: Asking, service: S, request: Req, refuse: R, context: K) -> Self {
        Self {
            step: Step::Asking {
                asking,
                then: Some((service, request)),
            },
            refuse,
            context,
        }
    }

    pub(super) fn passed(inner: S::Future, refuse: R, context: K) -> Self {
        Self {
            step: Step::Passed { inner },
            refuse,
            context,
        }
    }

    pub(super) fn refused(why: StaleToken, refuse: R, context: K) -> Self {
        Self {
            step: Step::Rejected { error: why },
            refuse,
            context,
        }
    }
}

impl<S, B, R> Future for FenceFuture<S, Request<B>, R, R::Context>
where
    S: Service<Request<B>>,
    R: Refuse<Request<B>, S::Response, S::Error>,
{
    type Output = Result<R::Response, R::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.step.as_mut().project() {
                StepProj::Asking { asking, then } => match ready!(asking.as_mut().poll(cx)) {
                    Ok(pass) => {
                        let (mut service, mut request) =
                            then.take().expect("polled after it was ready");
                        request.extensions_mut().insert(pass);
                        Step::Passed {
                            inner: service.call(request),
                        }
                    }
                    Err(error) => Step::Rejected { error },
                },
                StepProj::Passed { inner } => return inner.poll(cx).map(R::pass),
                StepProj::Rejected { error } => {
                    return Poll::Ready(this.refuse.refuse(*this.context, *error));
                }
            };
            this.step.set(next);
        }
    }
}

impl<S: Service<Req>, Req, R, K> fmt::Debug for FenceFuture<S, Req, R, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match &self.step {
            Step::Asking { .. } => "asking",
            Step::Passed { .. } => "passed",
            Step::Rejected { .. } => "rejected",
        };
        f.debug_struct("FenceFuture")
            .field("step", &step)
            .finish_non_exhaustive()
    }
}
