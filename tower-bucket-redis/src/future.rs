use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_bucket::RateLimitHeaders;
use tower_outcome::refuse::Refuse;
use tower_service::Service;

use crate::{limiter::Outcome, modifiers::DecorateResponse};

pin_project! {
    /// The future of a [`RedisService`](crate::RedisService).
    ///
    /// # Cancel safety
    ///
    /// It may be dropped at any time. The [crate's documentation](crate#cancel-safety) describes what is spent then.
    pub struct ResponseFuture<S, R, Req, H = ()>
    where
        S: Service<Req>,
        R: Refuse<Req, S::Response, S::Error>,
    {
        #[pin]
        state: State<S, R, Req, S::Future, Result<R::Response, R::Error>>,
        // `None` until it is known.
        outcome: Option<Outcome>,
        headers: H,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R, Req, F, T> {
        // -> `Called` or `Rejected` with the decision.
        Asking {
            // The connection's own future is boxed and has no name.
            decision: Pin<Box<dyn Future<Output = Outcome> + Send>>,
            // `None` once it is decided.
            held: Option<(S, R, Req)>,
        },
        Called { #[pin] inner: F },
        // `None` once it was returned.
        Rejected { answer: Option<T> },
    }
}

// === impl ResponseFuture ===

impl<S, R, Req, H> ResponseFuture<S, R, Req, H>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    pub(crate) fn decided(
        inner: &mut S,
        refuse: &R,
        request: Req,
        outcome: Outcome,
        headers: H,
    ) -> Self {
        Self {
            state: State::decided(inner, refuse, request, &outcome),
            outcome: Some(outcome),
            headers,
        }
    }

    pub(crate) const fn asking(
        decision: Pin<Box<dyn Future<Output = Outcome> + Send>>,
        held: (S, R, Req),
        headers: H,
    ) -> Self {
        Self {
            state: State::Asking {
                decision,
                held: Some(held),
            },
            outcome: None,
            headers,
        }
    }
}

impl<S, R, Req, H> Future for ResponseFuture<S, R, Req, H>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
    H: DecorateResponse<R::Response>,
{
    type Output = Result<R::Response, R::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut answer = loop {
            match this.state.as_mut().project() {
                StateProj::Asking { decision, held } => {
                    let outcome = ready!(decision.as_mut().poll(cx));
                    let (mut service, refuse, request) =
                        held.take().expect("held until it is decided");
                    let next = State::decided(&mut service, &refuse, request, &outcome);
                    *this.outcome = Some(outcome);
                    this.state.set(next);
                }
                StateProj::Called { inner } => break R::pass(ready!(inner.poll(cx))),
                StateProj::Rejected { answer } => {
                    break answer.take().expect("polled after it was ready");
                }
            }
        };
        if let Ok(response) = &mut answer {
            let outcome = this.outcome.as_ref();
            this.headers.decorate(response, |name| match *outcome? {
                Outcome::Allowed(admitted) => Some(RateLimitHeaders::admitted(name, admitted?)),
                Outcome::Rejected(quota, exhausted) => {
                    Some(RateLimitHeaders::rejected(name, quota, exhausted))
                }
                Outcome::Shadowed => None,
            });
        }
        Poll::Ready(answer)
    }
}

impl<S, R, Req, H> fmt::Debug for ResponseFuture<S, R, Req, H>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Asking { .. } => "asking",
            State::Called { .. } => "called",
            State::Rejected { .. } => "rejected",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

// === impl State ===

impl<S, R, Req> State<S, R, Req, S::Future, Result<R::Response, R::Error>>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    fn decided(inner: &mut S, refuse: &R, request: Req, outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Allowed(_) | Outcome::Shadowed => Self::Called {
                inner: inner.call(request),
            },
            Outcome::Rejected(_, exhausted) => Self::Rejected {
                answer: Some(refuse.refuse(refuse.context(&request), *exhausted)),
            },
        }
    }
}
