use std::task::{Context, Poll};

use tower_outcome::{
    classify::{AnyErr, Classify, ClassifyResponse, Judge, Judged, Scope},
    refuse::{Fail, Refuse},
};
use tower_service::Service;

use crate::{
    Circuit, Open, Permit, ResponseFuture,
    permit::{Callers, Leave},
};

/// Calls the inner service while the circuit admits it, and answers at once while it does not. Made by
/// [`CircuitLayer`](crate::CircuitLayer).
///
/// | | `poll_ready` | `call` |
/// |---|---|---|
/// | closed, or a probe is possible | asks the inner service | asks the circuit once more, then the inner service |
/// | otherwise | ready, the inner service is not asked | [`Open`](crate::Open), told as `R` tells it |
///
/// Readiness that was given while the circuit refused is spent on a refusal, even if the circuit closes in between: the
/// inner service has not said that it is ready.
#[derive(Debug)]
pub struct CircuitService<S, C = AnyErr, R = Fail> {
    inner: S,
    circuit: Circuit,
    classify: C,
    refuse: R,
    callers: Callers,
    grant: Grant,
    /// Beside [`Grant::Refuse`].
    open: Option<Open>,
}

/// What `poll_ready` found, for the next `call` on this very clone.
#[derive(Clone, Copy, Debug)]
enum Grant {
    None,
    /// The inner service is ready.
    Pass,
    /// The inner service was not asked.
    Refuse,
}

// === impl CircuitService ===

impl<S, C, R> CircuitService<S, C, R> {
    pub(crate) fn new(
        inner: S,
        circuit: Circuit,
        classify: C,
        refuse: R,
        callers: Callers,
    ) -> Self {
        Self {
            inner,
            circuit,
            classify,
            refuse,
            callers,
            grant: Grant::None,
            open: None,
        }
    }

    /// The circuit it asks.
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Calling it goes past the circuit.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service, without the circuit.
    pub fn into_inner(self) -> S {
        self.inner
    }

    #[cold]
    #[inline(never)]
    fn admit_or_refuse(&mut self) -> Result<Leave, Open> {
        match std::mem::replace(&mut self.grant, Grant::None) {
            Grant::Pass => self.circuit.admit_call(),
            Grant::Refuse => {
                self.circuit.refused();
                Err(self.open.take().expect("`poll_ready` left it here"))
            }
            Grant::None => panic!("`call` needs `poll_ready` to have said ready on this clone"),
        }
    }

    #[cold]
    fn refuse(&mut self, open: Open) {
        (self.grant, self.open) = (Grant::Refuse, Some(open));
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
    type Future = ResponseFuture<S, C, R, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        if let Err(open) = self.circuit.may_admit() {
            self.refuse(open);
            return Poll::Ready(Ok(()));
        }
        let ready = self.inner.poll_ready(cx);
        self.grant = if matches!(ready, Poll::Ready(Ok(()))) {
            Grant::Pass
        } else {
            Grant::None
        };
        match ready {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(R::pass(Err(error)).map(drop)),
            Poll::Pending => Poll::Pending,
        }
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        if let Grant::Pass = self.grant
            && let Some(leave) = self.circuit.admit_simply()
        {
            self.grant = Grant::None;
            let mut leave = leave.of(self.callers);
            let classifier = self.classify.classify(&request);
            let call = leave.run(|| self.inner.call(request));
            return ResponseFuture::admitted(call, classifier, leave);
        }
        match self.admit_or_refuse() {
            Ok(leave) => {
                let mut leave = leave.of(self.callers);
                let classifier = self.classify.classify(&request);
                let call = leave.run(|| self.inner.call(request));
                ResponseFuture::admitted(call, classifier, leave)
            }
            Err(open) => {
                ResponseFuture::refused(self.refuse.clone(), self.refuse.context(&request), open)
            }
        }
    }
}

impl<S: Clone, C: Clone, R: Clone> Clone for CircuitService<S, C, R> {
    /// A clone shares the circuit and has to ask for readiness itself.
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.circuit.clone(),
            self.classify.clone(),
            self.refuse.clone(),
            self.callers,
        )
    }
}
