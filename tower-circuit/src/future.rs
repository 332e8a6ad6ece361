use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_outcome::{
    BoxError, Settle,
    classify::{Classify, ClassifyResponse, Judge, Judged, Scope},
    refuse::Refuse,
};
use tower_service::Service;

use crate::{Open, Permit};

pin_project! {
    /// The future of [`CircuitService`](crate::CircuitService) and [`KeyedCircuitService`](crate::KeyedCircuitService).
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends the call, and the circuit records that its caller abandoned it.
    #[derive(Debug)]
    pub struct ResponseFuture<F, K, R, N, Req> {
        #[pin]
        state: State<F, K, R, N>,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    /// The future of [`CircuitGate`](crate::CircuitGate).
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends the call, and the circuit records that its caller abandoned it.
    #[derive(Debug)]
    pub struct GateFuture<F, K> {
        #[pin]
        state: GateState<F, K>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F, K, R, N> {
        Admitted { #[pin] call: RecordedCall<F, K> },
        Rejected { refuse: R, context: N, open: Open },
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = GateStateProj]
    enum GateState<F, K> {
        Admitted { #[pin] call: RecordedCall<F, K> },
        Unsent { error: Option<BoxError> },
    }
}

pin_project! {
    /// An admitted call, whose outcome is recorded.
    #[derive(Debug)]
    pub(crate) struct RecordedCall<F, K> {
        #[pin]
        call: F,
        classifier: Option<K>,
        permit: Permit,
    }
}

// === impl ResponseFuture ===

impl<F, K, R, N, Req> ResponseFuture<F, K, R, N, Req> {
    #[inline(always)]
    pub(crate) fn admitted(call: RecordedCall<F, K>) -> Self {
        Self {
            state: State::Admitted { call },
            request: PhantomData,
        }
    }

    pub(crate) fn rejected<Res, E>(refuse: &R, request: &Req, open: Open) -> Self
    where
        R: Refuse<Req, Res, E, Context = N> + Clone,
    {
        let (refuse, context) = (refuse.clone(), refuse.context(request));
        Self {
            state: State::Rejected {
                refuse,
                context,
                open,
            },
            request: PhantomData,
        }
    }
}

impl<F, K, R, N, Req, Res, E> Future for ResponseFuture<F, K, R, N, Req>
where
    F: Future<Output = Result<Res, E>>,
    K: ClassifyResponse<Res, E>,
    K::Scope: Scope<Res, Judge<K, Permit>>,
    R: Refuse<Req, Judged<K, Permit, Res, E>, E, Context = N>,
    N: Copy,
{
    type Output = Result<R::Response, R::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().state.project() {
            StateProj::Admitted { call } => R::pass(ready!(call.poll(cx))),
            StateProj::Rejected {
                refuse,
                context,
                open,
            } => refuse.refuse(*context, *open),
        })
    }
}

// === impl GateFuture ===

impl<F, K> GateFuture<F, K> {
    #[inline(always)]
    pub(crate) fn admitted(call: RecordedCall<F, K>) -> Self {
        Self {
            state: GateState::Admitted { call },
        }
    }

    pub(crate) fn unsent(error: BoxError) -> Self {
        let error = Some(error);
        Self {
            state: GateState::Unsent { error },
        }
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
        Poll::Ready(match self.project().state.project() {
            GateStateProj::Admitted { call } => ready!(call.poll(cx)).map_err(Into::into),
            GateStateProj::Unsent { error } => Err(error.take().expect(POLLED_AGAIN)),
        })
    }
}

// === impl RecordedCall ===

impl<F, K> RecordedCall<F, K> {
    /// Calls the inner service.
    #[inline(always)]
    pub(crate) fn new<S, C, Req>(
        inner: &mut S,
        classify: &C,
        request: Req,
        mut permit: Permit,
    ) -> Self
    where
        S: Service<Req, Future = F>,
        C: Classify<Req, Classifier = K>,
    {
        let classifier = Some(classify.classify(&request));
        let call = permit.run(|| inner.call(request));
        Self {
            call,
            classifier,
            permit,
        }
    }
}

impl<F, K, Res, E> Future for RecordedCall<F, K>
where
    F: Future<Output = Result<Res, E>>,
    K: ClassifyResponse<Res, E>,
    K::Scope: Scope<Res, Judge<K, Permit>>,
{
    type Output = Result<Judged<K, Permit, Res, E>, E>;

    /// As [`Judge::answer`], but in place.
    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (slot, permit) = (this.classifier, this.permit);
        let Poll::Ready(result) = permit.run(|| this.call.poll(cx)) else {
            permit.start();
            return Poll::Pending;
        };
        let classifier = slot.as_ref().expect(POLLED_AGAIN);
        Poll::Ready(match result {
            Ok(response) => match classifier.head(&response) {
                Some(outcome) => {
                    permit.record(outcome);
                    Ok(K::Scope::detached(response))
                }
                None => {
                    let classifier = slot.take().expect(POLLED_AGAIN);
                    let mut permit = permit.take();
                    permit.head_received();
                    Ok(K::Scope::attach(response, Judge::new(classifier, permit)))
                }
            },
            Err(error) => {
                permit.record(classifier.error(&error));
                Err(error)
            }
        })
    }
}

const POLLED_AGAIN: &str = "a future must not be polled again after it was ready";
