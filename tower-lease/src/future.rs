use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_outcome::{
    BoxError,
    refuse::{Fail, Refuse},
};

use crate::{
    BootInstant, Clock, InFlight, LeaseGuard, LeaseLost, NotHeld, WrongInstance,
    change_or_deadline::ChangeOrDeadline, protocol::Protocol,
};

pin_project! {
    /// The future of a [`LeaseService`](crate::LeaseService) service.
    pub struct ResponseFuture<F, Req, K, C: Clock, R, P> {
        #[pin]
        step: Step<F, C, Rejection>,
        refuse: R,
        context: K,
        protocol: PhantomData<fn() -> (Req, P)>,
    }
}

pin_project! {
    /// The future of a [`LeaseGate`](crate::LeaseGate).
    pub struct GateFuture<F, Req, C: Clock, P> {
        #[pin]
        step: Step<F, C, BoxError>,
        protocol: PhantomData<fn() -> (Req, P)>,
    }
}

/// Why a request was not let in.
#[derive(Debug)]
pub(crate) enum Rejection {
    NotHeld(NotHeld),
    WrongInstance(WrongInstance),
}

pin_project! {
    #[project = StepProj]
    enum Step<F, C, D> {
        Inside { #[pin] inside: Inside<F, C> },
        Rejected { error: Option<D> },
    }
}

pin_project! {
    /// The inner future with its guard. A request that is ready at its first poll takes no lock.
    struct Inside<F, C> {
        #[pin]
        inner: Option<F>,
        guard: Option<LeaseGuard<C>>,
        #[pin]
        wake: ChangeOrDeadline,
        policy: RunPolicy,
    }
}

/// For how long the inner future may run.
struct RunPolicy {
    in_flight: InFlight,
    /// The inner future was polled while the lease was good. What has not begun is not in flight.
    has_begun: bool,
    /// When it is cut off, once the lease was found lost.
    cut: Option<BootInstant>,
}

// === impl ResponseFuture ===

impl<F, Req, K, C: Clock, R, P> ResponseFuture<F, Req, K, C, R, P> {
    pub(crate) fn inside(
        inner: F,
        guard: LeaseGuard<C>,
        in_flight: InFlight,
        refuse: R,
        context: K,
    ) -> Self {
        let step = Step::Inside {
            inside: Inside::new(inner, guard, in_flight),
        };
        Self {
            step,
            refuse,
            context,
            protocol: PhantomData,
        }
    }

    pub(crate) fn rejected(rejection: Rejection, refuse: R, context: K) -> Self {
        Self {
            step: Step::Rejected {
                error: Some(rejection),
            },
            refuse,
            context,
            protocol: PhantomData,
        }
    }
}

impl<F, Req, K, C, R, P, Res, E> Future for ResponseFuture<F, Req, K, C, R, P>
where
    F: Future<Output = Result<Res, E>>,
    C: Clock,
    P: Protocol<Req, Res, C>,
    R: Refuse<Req, P::Response, E, Context = K>,
    K: Copy,
{
    type Output = Result<R::Response, R::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match this.step.project() {
            StepProj::Inside { inside } => match ready!(inside.poll::<Req, P, _, _>(cx)) {
                Ok(answer) => R::pass(answer),
                Err(lost) => this.refuse.refuse(*this.context, lost),
            },
            StepProj::Rejected { error } => {
                match error.take().expect("polled after it was ready") {
                    Rejection::NotHeld(not_held) => this.refuse.refuse(*this.context, not_held),
                    Rejection::WrongInstance(wrong) => this.refuse.refuse(*this.context, wrong),
                }
            }
        })
    }
}

impl<F, Req, K, C: Clock, R, P> fmt::Debug for ResponseFuture<F, Req, K, C, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

// === impl GateFuture ===

impl<F, Req, C: Clock, P> GateFuture<F, Req, C, P> {
    pub(crate) fn inside(inner: F, guard: LeaseGuard<C>, in_flight: InFlight) -> Self {
        Self {
            step: Step::Inside {
                inside: Inside::new(inner, guard, in_flight),
            },
            protocol: PhantomData,
        }
    }

    pub(crate) fn unsent(error: BoxError) -> Self {
        Self {
            step: Step::Rejected { error: Some(error) },
            protocol: PhantomData,
        }
    }
}

impl<F, Req, C, P, Res, E> Future for GateFuture<F, Req, C, P>
where
    F: Future<Output = Result<Res, E>>,
    C: Clock,
    P: Protocol<Req, Res, C>,
    E: Into<BoxError>,
{
    type Output = Result<P::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().step.project() {
            StepProj::Inside { inside } => match ready!(inside.poll::<Req, P, _, _>(cx)) {
                Ok(answer) => <Fail as Refuse<Req, P::Response, E>>::pass(answer),
                Err(lost) => Err(lost.into()),
            },
            StepProj::Rejected { error } => Err(error.take().expect("polled after it was ready")),
        })
    }
}

impl<F, Req, C: Clock, P> fmt::Debug for GateFuture<F, Req, C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateFuture")
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

// === impl Step ===

impl<F, C, D> fmt::Debug for Step<F, C, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside { inside } => f.debug_tuple("Inside").field(&inside.guard).finish(),
            Self::Rejected { .. } => f.write_str("Rejected"),
        }
    }
}

// === impl Inside ===

impl<F, C: Clock> Inside<F, C> {
    fn new(inner: F, guard: LeaseGuard<C>, in_flight: InFlight) -> Self {
        let policy = RunPolicy {
            in_flight,
            has_begun: false,
            cut: None,
        };
        Self {
            inner: Some(inner),
            guard: Some(guard),
            wake: ChangeOrDeadline::default(),
            policy,
        }
    }

    fn poll<Req, P, Res, E>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<P::Response, E>, LeaseLost>>
    where
        F: Future<Output = Result<Res, E>>,
        P: Protocol<Req, Res, C>,
    {
        let mut this = self.project();
        let guard = this.guard.as_ref().expect("polled after it was ready");
        let answer = match this.inner.as_mut().as_pin_mut() {
            Some(inner) if this.policy.may_run(guard) => inner.poll(cx),
            _ => Poll::Pending,
        };
        if answer.is_pending() && this.policy.has_begun {
            if this.policy.in_flight == InFlight::Finish {
                return Poll::Pending;
            }
            let shared = guard.shared();
            ready!(
                this.wake
                    .poll(cx, &shared.clock, &shared.lost, || this.policy.look(guard))
            );
        }
        // The inner future is dropped first, then the guard that counts it.
        this.inner.set(None);
        let guard = this.guard.take().expect("checked above");
        Poll::Ready(match answer {
            Poll::Ready(answer) if guard.is_valid() => {
                Ok(answer.map(|response| P::on_response(response, guard)))
            }
            answer => Err(lost(&guard, answer.is_ready())),
        })
    }
}

/// what was produced after the loss is replaced, what was not is cancelled.
fn lost<C: Clock>(guard: &LeaseGuard<C>, is_answered: bool) -> LeaseLost {
    let counters = &guard.shared().counters;
    if is_answered {
        counters.replaced()
    } else {
        counters.cancelled()
    }
    LeaseLost::new(guard.epoch())
}

// === impl RunPolicy ===

impl RunPolicy {
    /// Whether the inner future may run now.
    ///
    /// The clock is read before each poll, the first one too: since `call` or the last poll the future may have waited in
    /// a queue, or the process may have been stopped.
    fn may_run<C: Clock>(&mut self, guard: &LeaseGuard<C>) -> bool {
        if self.has_begun && self.in_flight == InFlight::Finish {
            return true;
        }
        if guard.is_valid() {
            self.has_begun = true;
            return true;
        }
        match self.in_flight {
            InFlight::FinishWithin(grace) if self.has_begun => self.has_grace(guard, grace),
            _ => false,
        }
    }

    /// When to look again; `None` if it may run no longer.
    fn look<C: Clock>(&mut self, guard: &LeaseGuard<C>) -> Option<Option<BootInstant>> {
        if guard.is_valid() {
            return Some(guard.valid_until());
        }
        match self.in_flight {
            InFlight::Cancel => None,
            InFlight::Finish => Some(None),
            InFlight::FinishWithin(grace) => self.has_grace(guard, grace).then_some(self.cut),
        }
    }

    fn has_grace<C: Clock>(&mut self, guard: &LeaseGuard<C>, grace: Duration) -> bool {
        let cut = *self.cut.get_or_insert_with(|| guard.grace_until(grace));
        guard.shared().clock.now() < cut
    }
}
