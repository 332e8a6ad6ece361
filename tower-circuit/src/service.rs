use std::{
    mem,
    task::{Context, Poll, ready},
};

use tower_outcome::{
    classify::{AnyErr, Classify, ClassifyResponse, Judge, Judged, Scope},
    refuse::{Fail, Refuse},
};
use tower_service::Service;

use crate::{Circuit, Open, Permit, ResponseFuture, future::RecordedCall, handling::Handling};

/// Calls the inner service while the circuit admits it, and rejects at once while it does not. Made by
/// [`CircuitLayer`](crate::CircuitLayer).
///
/// | | `poll_ready` | `call` |
/// |---|---|---|
/// | closed, or a probe is possible | polls the inner service | asks the circuit again, then calls the inner service |
/// | otherwise | ready, the inner service is not polled | rejects with [`Open`](crate::Open), as `R` renders it |
///
/// Readiness that was reported while the circuit rejected is used up by a rejection, even if the circuit closes in between,
/// because the inner service has not reported readiness.
#[derive(Debug)]
pub struct CircuitService<S, C = AnyErr, R = Fail> {
    inner: S,
    circuit: Circuit,
    handling: Handling<C, R>,
    readiness: Readiness,
}

/// The result of `poll_ready`, for the next `call` on this very clone.
#[derive(Debug)]
enum Readiness {
    NotReady,
    /// The inner service is ready.
    Ready,
    /// The inner service was not polled.
    Reject(Open),
}

// === impl CircuitService ===

impl<S, C, R> CircuitService<S, C, R> {
    pub(crate) fn new(inner: S, circuit: Circuit, handling: Handling<C, R>) -> Self {
        Self {
            inner,
            circuit,
            handling,
            readiness: Readiness::NotReady,
        }
    }

    /// The circuit.
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Calling it bypasses the circuit.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service, without the circuit.
    pub fn into_inner(self) -> S {
        self.inner
    }

    #[cold]
    #[inline(never)]
    fn admit(&mut self) -> Result<Permit, Open> {
        match mem::replace(&mut self.readiness, Readiness::NotReady) {
            Readiness::Ready => self.circuit.admit_call(self.handling.caller),
            Readiness::Reject(open) => Err(self.circuit.count_rejected(open)),
            Readiness::NotReady => panic!("`call` without a successful `poll_ready` of this clone"),
        }
    }
}

impl<S, C, R, Req> Service<Req> for CircuitService<S, C, R>
where
    S: Service<Req>,
    C: Classify<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, Permit>>,
    R: Refuse<Req, Judged<C::Classifier, Permit, S::Response, S::Error>, S::Error> + Clone,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = ResponseFuture<S::Future, C::Classifier, R, R::Context, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        if let Err(open) = self.circuit.may_admit() {
            self.readiness = Readiness::Reject(open);
            return Poll::Ready(Ok(()));
        }
        self.readiness = Readiness::NotReady;
        Poll::Ready(match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => {
                self.readiness = Readiness::Ready;
                Ok(())
            }
            Err(error) => R::pass(Err(error)).map(drop),
        })
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        if let Readiness::Ready = self.readiness
            && let Some(permit) = self.circuit.admit_fast(self.handling.caller)
        {
            self.readiness = Readiness::NotReady;
            let call = RecordedCall::new(&mut self.inner, &self.handling.classify, request, permit);
            return ResponseFuture::admitted(call);
        }
        match self.admit() {
            Ok(permit) => ResponseFuture::admitted(RecordedCall::new(
                &mut self.inner,
                &self.handling.classify,
                request,
                permit,
            )),
            Err(open) => ResponseFuture::rejected(&self.handling.refuse, &request, open),
        }
    }
}

impl<S: Clone, C: Clone, R: Clone> Clone for CircuitService<S, C, R> {
    /// A clone shares the circuit, and is not ready.
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.circuit.clone(),
            self.handling.clone(),
        )
    }
}
