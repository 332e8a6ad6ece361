use std::{
    fmt,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_outcome::{
    BoxError, Class, Outcome, Refusal, Settle, Unsent, Verdict,
    classify::{Classify, ClassifyResponse, Judge, Judged, Scope},
};
use tower_service::Service;

use super::{
    InFlight, Stamp,
    queue::Ticket,
    shared::{Chosen, Nothing, Shared},
    slot::Stats,
};
use crate::{
    error::{Stopped, Unreachable},
    policy::Policy,
    stripe::Held,
};

/// The response future of a [`Balance`](super::Balance).
#[pin_project]
pub struct ResponseFuture<S: Service<Req>, Req, P: Policy<Req>, C: Classify<Req>> {
    shared: Held<Shared<S, P::Table, P, C>>,
    #[pin]
    state: State<S::Future, Req, C::Classifier>,
    trail: Trail,
}

#[pin_project(project = StateProj)]
enum State<F, Req, J> {
    /// At an endpoint. -> `Waiting`, `Calling` or `Refused` if the endpoint returns the request.
    Calling {
        #[pin]
        future: F,
        /// The classifier of the response, and its in-flight guard.
        held: Option<(J, InFlight)>,
    },
    /// For an endpoint to become ready. -> `Calling` if woken in time. Boxed, because it is large and few requests wait.
    Waiting(Pin<Box<Waiting<Req>>>),
    /// The result is known. -> `Done`
    Refused(Option<BoxError>),
    Done,
}

#[pin_project]
struct Waiting<Req> {
    request: Option<Req>,
    ticket: Option<Ticket>,
    #[pin]
    deadline: Sleep,
}

/// State that a request keeps across endpoints.
#[derive(Default)]
struct Trail {
    /// The number of endpoints that returned it unsent…
    tried: u32,
    /// …and the error of the last one.
    cause: Option<BoxError>,
    /// The deadline of all waits. Set by the first…
    deadline: Option<Instant>,
    /// …with its number in the queue.
    number: Option<u64>,
}

// === impl ResponseFuture ===

impl<S, Req, P, C> ResponseFuture<S, Req, P, C>
where
    S: Service<Req> + Clone,
    P: Policy<Req>,
    C: Stamp<Req>,
{
    pub(super) fn new(shared: Held<Shared<S, P::Table, P, C>>, request: Req) -> Self {
        let mut trail = Trail::default();
        let state = if shared.0.hub.queue.is_waited_in() {
            // Queues behind waiting requests even if an endpoint is free, because that is reserved for them.
            State::wait(&shared.0, request, &mut trail)
        } else {
            State::begin(&shared.0, request, &mut trail)
        };
        Self {
            shared,
            state,
            trail,
        }
    }
}

impl<S, Req, P, C> Future for ResponseFuture<S, Req, P, C>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy<Req>,
    C: Stamp<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, InFlight>>,
    Req: Send + 'static,
{
    type Output = Result<Judged<C::Classifier, InFlight, S::Response, S::Error>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let shared = &*this.shared.0;
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Calling { future, held } => {
                    let result = ready!(future.poll(cx));
                    let (classifier, mut guard) = held.take().expect("polled after it was ready");
                    match result {
                        Ok(response) => {
                            if P::MEASURES_LATENCY {
                                let head =
                                    ClassifyResponse::<_, S::Error>::head(&classifier, &response);
                                guard.took(
                                    head.map_or(Verdict::Success, |outcome| outcome.verdict()),
                                );
                            }
                            this.state.set(State::Done);
                            let judge = Judge::new(classifier, guard);
                            return Poll::Ready(
                                judge
                                    .attach(Ok(response))
                                    .map_err(|error: S::Error| error.into()),
                            );
                        }
                        Err(error) => {
                            let outcome =
                                ClassifyResponse::<S::Response, _>::error(&classifier, &error);
                            State::failed(shared, (guard, outcome), error.into(), this.trail)
                        }
                    }
                }
                StateProj::Waiting(waiting) => {
                    let mut waiting = waiting.as_mut().project();
                    let is_late = waiting.deadline.as_mut().poll(cx).is_ready();
                    let ticket = waiting.ticket.as_mut().expect("a waiting request");
                    let freed = ready!(ticket.poll_turn(cx, is_late)).freed.clone();
                    match State::woken(shared, waiting.request, freed, is_late, this.trail) {
                        Some(next) => {
                            waiting.ticket.take().into_iter().for_each(Ticket::done);
                            next
                        }
                        None => {
                            ticket.wait_on(cx);
                            continue;
                        }
                    }
                }
                StateProj::Refused(error) => {
                    let error = error.take().expect("polled after it was ready");
                    this.state.set(State::Done);
                    return Poll::Ready(Err(error));
                }
                StateProj::Done => panic!("polled after it was ready"),
            };
            this.state.set(next);
        }
    }
}

impl<S: Service<Req>, Req, P: Policy<Req>, C: Classify<Req>> fmt::Debug
    for ResponseFuture<S, Req, P, C>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "Calling",
            State::Waiting(_) => "Waiting",
            State::Refused(_) => "Refused",
            State::Done => "Done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .field("tried", &self.trail.tried)
            .finish_non_exhaustive()
    }
}

// === impl State ===

impl<F, Req, J> State<F, Req, J> {
    /// At the first endpoint, or at another one.
    fn begin<S, T, P, C>(shared: &Shared<S, T, P, C>, mut request: Req, trail: &mut Trail) -> Self
    where
        S: Service<Req, Future = F> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req, Classifier = J>,
    {
        match shared.choose(&mut request, None) {
            Ok(chosen) => Self::call(shared, chosen, request),
            Err(Nothing::Yet) => Self::wait(shared, request, trail),
            Err(nothing) => Self::refused(shared, &nothing, trail),
        }
    }

    fn call<S, T, P, C>(shared: &Shared<S, T, P, C>, mut chosen: Chosen<S>, request: Req) -> Self
    where
        S: Service<Req, Future = F>,
        C: Classify<Req, Classifier = J>,
    {
        let classifier = shared.classify.classify(&request);
        let future = chosen.service.call(request);
        Self::Calling {
            future,
            held: Some((classifier, chosen.guard)),
        }
    }

    /// The endpoint failed. A request that it returned unsent goes to another endpoint.
    fn failed<S, T, P, C>(
        shared: &Shared<S, T, P, C>,
        (mut guard, outcome): (InFlight, Outcome),
        error: BoxError,
        trail: &mut Trail,
    ) -> Self
    where
        S: Service<Req, Future = F> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req, Classifier = J>,
        Req: Send + 'static,
    {
        match Unsent::<Req>::recover(error) {
            Ok((request, cause)) => {
                // Its readiness shows why it rejected the request; the driver polls it before the next request does.
                shared.set_aside(guard.stats(), false);
                guard.handed_back();
                Self::elsewhere(shared, request, cause, trail)
            }
            Err(error) => {
                if P::MEASURES_LATENCY {
                    guard.took(outcome.verdict());
                }
                guard.settle(outcome);
                Self::Refused(Some(error))
            }
        }
    }

    fn elsewhere<S, T, P, C>(
        shared: &Shared<S, T, P, C>,
        request: Req,
        cause: BoxError,
        trail: &mut Trail,
    ) -> Self
    where
        S: Service<Req, Future = F> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req, Classifier = J>,
    {
        let is_full =
            Refusal::find(&*cause).is_some_and(|refusal| refusal.class() == Class::Exhausted);
        trail.tried += 1;
        trail.cause = Some(cause);
        if trail.tried < shared.limits.max_endpoints {
            return Self::begin(shared, request, trail);
        }
        // Full endpoints are healthy, and will have room again.
        match is_full
            && trail
                .deadline
                .is_none_or(|deadline| Instant::now() < deadline)
        {
            true => Self::wait(shared, request, trail),
            false => Self::refused(shared, &Nothing::Yet, trail),
        }
    }

    /// An endpoint may be ready now, or the deadline has passed. `None`: continues to wait.
    fn woken<S, T, P, C>(
        shared: &Shared<S, T, P, C>,
        waiting: &mut Option<Req>,
        freed: Option<Arc<Stats>>,
        is_late: bool,
        trail: &mut Trail,
    ) -> Option<Self>
    where
        S: Service<Req, Future = F> + Clone,
        P: Policy<Req, Table = T>,
        C: Stamp<Req, Classifier = J>,
    {
        let mut request = waiting.take().expect("a waiting request");
        match shared.choose(&mut request, freed.as_ref()) {
            Ok(chosen) => Some(Self::call(shared, chosen, request)),
            Err(Nothing::Yet) if !is_late => {
                *waiting = Some(request);
                None
            }
            Err(nothing) => Some(Self::refused(shared, &nothing, trail)),
        }
    }

    /// Waits, if there is room.
    fn wait<S, T, P, C>(shared: &Shared<S, T, P, C>, request: Req, trail: &mut Trail) -> Self {
        let Some(ticket) = Ticket::new(&shared.hub, shared.limits.max_waiting, trail.number) else {
            return Self::refused(shared, &Nothing::Yet, trail);
        };
        trail.number = Some(ticket.number());
        let deadline = *trail
            .deadline
            .get_or_insert_with(|| Instant::now() + shared.limits.max_wait);
        Self::Waiting(Box::pin(Waiting {
            request: Some(request),
            ticket: Some(ticket),
            deadline: sleep_until(deadline),
        }))
    }

    fn refused<S, T, P, C>(
        shared: &Shared<S, T, P, C>,
        nothing: &Nothing,
        trail: &mut Trail,
    ) -> Self {
        let error = match (nothing, trail.cause.take(), NonZeroU32::new(trail.tried)) {
            (Nothing::Stopped, ..) => Stopped::new().into(),
            (_, Some(cause), Some(tried)) => Unreachable::new(tried, cause).into(),
            _ => shared.no_endpoints().into(),
        };
        Self::Refused(Some(error))
    }
}
