use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project::pin_project;
use tower_outcome::{
    BoxError, Settle,
    classify::{Classify, ClassifyResponse, Judge, Judged, Scope},
    refuse::Refuse,
};
use tower_service::Service;

use crate::{Open, Permit, permit::Leave};

/// The future of [`CircuitService`](crate::CircuitService).
///
/// Cancel safety: dropping it cancels the call, which the circuit is told.
#[pin_project]
pub struct ResponseFuture<S, C, R, Req>
where
    S: Service<Req>,
    C: Classify<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, Permit>>,
    R: Refuse<Req, Judged<C::Classifier, Permit, S::Response, S::Error>, S::Error>,
{
    #[pin]
    answer: Answer<S::Future, C::Classifier, R, R::Context>,
    request: PhantomData<fn(Req)>,
}

/// The future of [`CircuitGate`](crate::CircuitGate).
///
/// Cancel safety: dropping it cancels the call, which the circuit is told.
#[pin_project]
pub struct GateFuture<F, K>(#[pin] Gated<F, K>);

/// A call under way, whose answer will be judged.
#[pin_project]
struct Watched<F, K> {
    #[pin]
    call: F,
    classifier: Option<K>,
    leave: Leave,
}

#[pin_project(project = AnswerProj)]
enum Answer<F, K, R, N> {
    Admitted(#[pin] Watched<F, K>),
    Refused { refuse: R, seen: N, open: Open },
}

#[pin_project(project = GatedProj)]
enum Gated<F, K> {
    Admitted(#[pin] Watched<F, K>),
    Unsent(Option<BoxError>),
}

// === impl ResponseFuture ===

impl<S, C, R, Req> ResponseFuture<S, C, R, Req>
where
    S: Service<Req>,
    C: Classify<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, Permit>>,
    R: Refuse<Req, Judged<C::Classifier, Permit, S::Response, S::Error>, S::Error>,
{
    #[inline(always)]
    pub(crate) fn admitted(call: S::Future, classifier: C::Classifier, leave: Leave) -> Self {
        Self {
            answer: Answer::Admitted(Watched::new(call, classifier, leave)),
            request: PhantomData,
        }
    }

    pub(crate) fn refused(refuse: R, seen: R::Context, open: Open) -> Self {
        Self {
            answer: Answer::Refused { refuse, seen, open },
            request: PhantomData,
        }
    }
}

impl<S, C, R, Req> Future for ResponseFuture<S, C, R, Req>
where
    S: Service<Req>,
    C: Classify<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, Permit>>,
    R: Refuse<Req, Judged<C::Classifier, Permit, S::Response, S::Error>, S::Error>,
{
    type Output = Result<R::Response, R::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().answer.project() {
            AnswerProj::Admitted(watched) => R::pass(ready!(watched.poll(cx))),
            AnswerProj::Refused { refuse, seen, open } => refuse.refuse(*seen, *open),
        })
    }
}

impl<S, C, R, Req> fmt::Debug for ResponseFuture<S, C, R, Req>
where
    S: Service<Req>,
    C: Classify<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, Permit>>,
    R: Refuse<Req, Judged<C::Classifier, Permit, S::Response, S::Error>, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let admitted = matches!(self.answer, Answer::Admitted(_));
        f.debug_struct("ResponseFuture")
            .field("admitted", &admitted)
            .finish_non_exhaustive()
    }
}

// === impl GateFuture ===

impl<F, K> GateFuture<F, K> {
    #[inline(always)]
    pub(crate) fn admitted(call: F, classifier: K, leave: Leave) -> Self {
        Self(Gated::Admitted(Watched::new(call, classifier, leave)))
    }

    pub(crate) fn unsent(error: BoxError) -> Self {
        Self(Gated::Unsent(Some(error)))
    }
}

impl<F, K, Res, E> Future for GateFuture<F, K>
where
    F: Future<Output = Result<Res, E>>,
    E: Into<BoxError>,
    K: ClassifyResponse<Res, E>,
    K::Scope: Scope<Res, Judge<K, Permit>>,
{
    type Output = Result<Judged<K, Permit, Res, E>, BoxError>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().0.project() {
            GatedProj::Admitted(watched) => ready!(watched.poll(cx)).map_err(Into::into),
            GatedProj::Unsent(error) => Err(error.take().expect(POLLED_AGAIN)),
        })
    }
}

impl<F, K> fmt::Debug for GateFuture<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let admitted = matches!(self.0, Gated::Admitted(_));
        f.debug_struct("GateFuture")
            .field("admitted", &admitted)
            .finish_non_exhaustive()
    }
}

// === impl Watched ===

impl<F, K> Watched<F, K> {
    #[inline(always)]
    fn new(call: F, classifier: K, leave: Leave) -> Self {
        Self {
            call,
            classifier: Some(classifier),
            leave,
        }
    }
}

impl<F, K, Res, E> Future for Watched<F, K>
where
    F: Future<Output = Result<Res, E>>,
    K: ClassifyResponse<Res, E>,
    K::Scope: Scope<Res, Judge<K, Permit>>,
{
    type Output = Result<Judged<K, Permit, Res, E>, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Poll::Ready(result) = this.leave.run(|| this.call.poll(cx)) else {
            this.leave.start();
            return Poll::Pending;
        };
        Poll::Ready(answer(this.classifier, this.leave, result))
    }
}

/// As [`Judge::answer`], but in place.
#[inline(always)]
fn answer<K, Res, E>(
    slot: &mut Option<K>,
    leave: &mut Leave,
    result: Result<Res, E>,
) -> Result<Judged<K, Permit, Res, E>, E>
where
    K: ClassifyResponse<Res, E>,
    K::Scope: Scope<Res, Judge<K, Permit>>,
{
    let classifier = slot.as_ref().expect(POLLED_AGAIN);
    match result {
        Ok(response) => match classifier.head(&response) {
            Some(outcome) => {
                leave.tell(outcome);
                Ok(K::Scope::detached(response))
            }
            None => {
                let (classifier, mut permit) =
                    (slot.take().expect(POLLED_AGAIN), Permit::from(leave.take()));
                permit.head_received();
                Ok(K::Scope::attach(response, Judge::new(classifier, permit)))
            }
        },
        Err(error) => {
            leave.tell(classifier.error(&error));
            Err(error)
        }
    }
}

const POLLED_AGAIN: &str = "a future must not be polled again after it was ready";
