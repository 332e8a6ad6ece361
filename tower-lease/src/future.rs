use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use tower_outcome::{
    BoxError,
    refuse::{Fail, Refuse},
};

use crate::{
    BootInstant, Clock, InFlight, LeaseLost, NotHeld, Ticket, WrongInstance, alarm::Alarm,
    carry::Carry,
};

/// The future of a [`Leased`](crate::Leased) service.
#[pin_project]
pub struct ResponseFuture<F, Req, K, C: Clock, R, P> {
    #[pin]
    step: Step<F, C, Denial>,
    refuse: R,
    seen: K,
    carry: PhantomData<fn() -> (Req, P)>,
}

/// The future of a [`LeaseGate`](crate::LeaseGate).
#[pin_project]
pub struct GateFuture<F, Req, C: Clock, P> {
    #[pin]
    step: Step<F, C, BoxError>,
    carry: PhantomData<fn() -> (Req, P)>,
}

/// Why a request was not let in.
#[derive(Debug)]
pub(crate) enum Denial {
    NotHeld(NotHeld),
    WrongInstance(WrongInstance),
}

#[pin_project(project = StepProj)]
#[expect(
    clippy::large_enum_variant,
    reason = "a box would be an allocation for every request that is let in"
)]
enum Step<F, C, D> {
    Inside(#[pin] Inside<F, C>),
    Denied(Option<D>),
}

/// The inner future with its ticket. A request that is ready at its first poll takes no lock.
#[pin_project]
struct Inside<F, C> {
    #[pin]
    inner: Option<F>,
    ticket: Option<Ticket<C>>,
    #[pin]
    alarm: Alarm,
    stay: Stay,
}

/// For how long the inner future may run.
struct Stay {
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
        ticket: Ticket<C>,
        in_flight: InFlight,
        refuse: R,
        seen: K,
    ) -> Self {
        let step = Step::Inside(Inside::new(inner, ticket, in_flight));
        Self {
            step,
            refuse,
            seen,
            carry: PhantomData,
        }
    }

    pub(crate) fn denied(denial: Denial, refuse: R, seen: K) -> Self {
        Self {
            step: Step::Denied(Some(denial)),
            refuse,
            seen,
            carry: PhantomData,
        }
    }
}

impl<F, Req, K, C, R, P, Res, E> Future for ResponseFuture<F, Req, K, C, R, P>
where
    F: Future<Output = Result<Res, E>>,
    C: Clock,
    P: Carry<Req, Res, C>,
    R: Refuse<Req, P::Response, E, Context = K>,
    K: Copy,
{
    type Output = Result<R::Response, R::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match this.step.project() {
            StepProj::Inside(inside) => match ready!(inside.poll::<Req, P, _, _>(cx)) {
                Ok(answer) => R::pass(answer),
                Err(lost) => this.refuse.refuse(*this.seen, lost),
            },
            StepProj::Denied(denial) => match denial.take().expect("polled after it was ready") {
                Denial::NotHeld(not_held) => this.refuse.refuse(*this.seen, not_held),
                Denial::WrongInstance(wrong) => this.refuse.refuse(*this.seen, wrong),
            },
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
    pub(crate) fn inside(inner: F, ticket: Ticket<C>, in_flight: InFlight) -> Self {
        Self {
            step: Step::Inside(Inside::new(inner, ticket, in_flight)),
            carry: PhantomData,
        }
    }

    pub(crate) fn unsent(error: BoxError) -> Self {
        Self {
            step: Step::Denied(Some(error)),
            carry: PhantomData,
        }
    }
}

impl<F, Req, C, P, Res, E> Future for GateFuture<F, Req, C, P>
where
    F: Future<Output = Result<Res, E>>,
    C: Clock,
    P: Carry<Req, Res, C>,
    E: Into<BoxError>,
{
    type Output = Result<P::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().step.project() {
            StepProj::Inside(inside) => match ready!(inside.poll::<Req, P, _, _>(cx)) {
                Ok(answer) => <Fail as Refuse<Req, P::Response, E>>::pass(answer),
                Err(lost) => Err(lost.into()),
            },
            StepProj::Denied(error) => Err(error.take().expect("polled after it was ready")),
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
            Self::Inside(inside) => f.debug_tuple("Inside").field(&inside.ticket).finish(),
            Self::Denied(_) => f.write_str("Denied"),
        }
    }
}

// === impl Inside ===

impl<F, C: Clock> Inside<F, C> {
    fn new(inner: F, ticket: Ticket<C>, in_flight: InFlight) -> Self {
        let stay = Stay {
            in_flight,
            has_begun: false,
            cut: None,
        };
        Self {
            inner: Some(inner),
            ticket: Some(ticket),
            alarm: Alarm::default(),
            stay,
        }
    }

    fn poll<Req, P, Res, E>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<P::Response, E>, LeaseLost>>
    where
        F: Future<Output = Result<Res, E>>,
        P: Carry<Req, Res, C>,
    {
        let mut this = self.project();
        let ticket = this.ticket.as_ref().expect("polled after it was ready");
        let answer = match this.inner.as_mut().as_pin_mut() {
            Some(inner) if this.stay.may_run(ticket) => inner.poll(cx),
            _ => Poll::Pending,
        };
        if answer.is_pending() && this.stay.has_begun {
            if this.stay.in_flight == InFlight::Finish {
                return Poll::Pending;
            }
            let shared = ticket.shared();
            ready!(
                this.alarm
                    .poll(cx, &shared.clock, &shared.lost, || this.stay.look(ticket))
            );
        }
        // What is inside goes first, then the ticket that counts it.
        this.inner.set(None);
        let ticket = this.ticket.take().expect("checked above");
        Poll::Ready(match answer {
            Poll::Ready(answer) if ticket.is_good() => {
                Ok(answer.map(|response| P::attach(response, ticket)))
            }
            answer => Err(lost(&ticket, answer.is_ready())),
        })
    }
}

/// what was produced after the loss is replaced, what was not is cancelled.
fn lost<C: Clock>(ticket: &Ticket<C>, is_answered: bool) -> LeaseLost {
    let counters = &ticket.shared().counters;
    if is_answered {
        counters.replaced()
    } else {
        counters.cancelled()
    }
    LeaseLost::new(ticket.epoch())
}

// === impl Stay ===

impl Stay {
    /// Whether the inner future may run now.
    ///
    /// The clock is read before each poll, the first one too: since `call` or the last poll the future may have waited in
    /// a queue, or the process may have been stopped.
    fn may_run<C: Clock>(&mut self, ticket: &Ticket<C>) -> bool {
        if self.has_begun && self.in_flight == InFlight::Finish {
            return true;
        }
        if ticket.is_good() {
            self.has_begun = true;
            return true;
        }
        match self.in_flight {
            InFlight::FinishWithin(grace) if self.has_begun => self.has_grace(ticket, grace),
            _ => false,
        }
    }

    /// When to look again; `None` if it may run no longer.
    fn look<C: Clock>(&mut self, ticket: &Ticket<C>) -> Option<Option<BootInstant>> {
        if ticket.is_good() {
            return Some(ticket.good_until());
        }
        match self.in_flight {
            InFlight::Cancel => None,
            InFlight::Finish => Some(None),
            InFlight::FinishWithin(grace) => self.has_grace(ticket, grace).then_some(self.cut),
        }
    }

    fn has_grace<C: Clock>(&mut self, ticket: &Ticket<C>, grace: Duration) -> bool {
        let cut = *self.cut.get_or_insert_with(|| ticket.grace_until(grace));
        ticket.shared().clock.now() < cut
    }
}
