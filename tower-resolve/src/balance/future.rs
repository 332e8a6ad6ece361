use std::{
    fmt,
    marker::PhantomData,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use pin_project::pin_project;
use tokio::{
    sync::futures::OwnedNotified,
    time::{Instant, Sleep, sleep_until},
};
use tower_outcome::{BoxError, Class, Refusal, Unsent, classify::Scope};
use tower_service::Service;

use super::{
    Stamp,
    shared::{Nothing, Shared},
    slot::InFlight,
};
use crate::{
    error::{Stopped, Unreachable},
    policy::Policy,
};

/// A request on its way through a [`Balance`](super::Balance).
#[pin_project]
pub struct ResponseFuture<S: Service<Req>, Req, P: Policy, K> {
    shared: Arc<Shared<S, P>>,
    #[pin]
    state: State<S::Future, Req>,
    trail: Trail,
    kind: PhantomData<fn(K)>,
}

#[pin_project(project = StateProj)]
enum State<F, Req> {
    /// At an endpoint. -> `Waiting`, `Calling` or `Refused` if that hands it back.
    Calling {
        #[pin]
        future: F,
        guard: Option<InFlight>,
    },
    /// For an endpoint to become ready. -> `Calling` when woken in time.
    Waiting {
        request: Option<Req>,
        _place: Place,
        #[pin]
        freed: OwnedNotified,
        #[pin]
        deadline: Sleep,
    },
    /// Decided. -> `Done`
    Refused(Option<BoxError>),
    Done,
}

/// What a request leaves behind on its way.
#[derive(Default)]
struct Trail {
    /// How many endpoints handed it back so far…
    tried: u32,
    /// …and why the last of them did.
    cause: Option<BoxError>,
    /// Ends all waits together. Set by the first.
    deadline: Option<Instant>,
}

/// One of the bounded number of waiting requests, given up by being dropped.
struct Place(Arc<AtomicUsize>);

// === impl ResponseFuture ===

impl<S, Req, P, K> ResponseFuture<S, Req, P, K>
where
    S: Service<Req> + Clone,
    P: Policy,
    K: Stamp<Req>,
{
    pub(super) fn new(shared: Arc<Shared<S, P>>, request: Req) -> Self {
        let mut trail = Trail::default();
        let state = State::begin::<S, P, K>(&shared, request, &mut trail);
        Self { shared, state, trail, kind: PhantomData }
    }
}

impl<S, Req, P, K> Future for ResponseFuture<S, Req, P, K>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    P: Policy,
    K: Stamp<Req> + Scope<S::Response, InFlight>,
    Req: Send + 'static,
{
    type Output = Result<<K as Scope<S::Response, InFlight>>::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let shared = &**this.shared;
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Calling { future, guard } => {
                    let result = ready!(future.poll(cx));
                    let guard = guard.take().expect("polled after it was ready");
                    match result {
                        Ok(response) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(K::attach(response, guard)));
                        }
                        Err(error) => State::failed::<S, P, K>(shared, guard, error.into(), this.trail),
                    }
                }
                StateProj::Waiting { request, mut freed, deadline, .. } => {
                    let is_late = deadline.poll(cx).is_ready();
                    if !is_late {
                        ready!(freed.as_mut().poll(cx));
                        // A new one before the look: what changes in between finds it, or leaves it a permit.
                        freed.set(shared.freed.clone().notified_owned());
                    }
                    match State::woken::<S, P, K>(shared, request, is_late, this.trail) {
                        Some(next) => next,
                        None => continue,
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

impl<S: Service<Req>, Req, P: Policy, K> fmt::Debug for ResponseFuture<S, Req, P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "Calling",
            State::Waiting { .. } => "Waiting",
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

impl<F, Req> State<F, Req> {
    /// At the first endpoint, or at another one.
    fn begin<S, P, K>(shared: &Shared<S, P>, mut request: Req, trail: &mut Trail) -> Self
    where
        S: Service<Req, Future = F> + Clone,
        P: Policy,
        K: Stamp<Req>,
    {
        match shared.choose::<Req, K>(&mut request) {
            Ok((mut service, guard)) => Self::Calling { future: service.call(request), guard: Some(guard) },
            Err(Nothing::Yet) => Self::wait(shared, request, trail),
            Err(nothing) => Self::refused(shared, &nothing, trail),
        }
    }

    /// The endpoint failed. A request that it hands back goes elsewhere.
    fn failed<S, P, K>(shared: &Shared<S, P>, guard: InFlight, error: BoxError, trail: &mut Trail) -> Self
    where
        S: Service<Req, Future = F> + Clone,
        P: Policy,
        K: Stamp<Req>,
        Req: Send + 'static,
    {
        let recovered = Unsent::<Req>::recover(error);
        if recovered.is_ok() {
            // Whatever made it refuse, its readiness shows; the driver asks before the next request does.
            shared.set_aside(guard.stats(), false);
        }
        guard.failed();
        match recovered {
            Ok((request, cause)) => {
                let is_full = Refusal::find(&*cause).is_some_and(|refusal| refusal.class() == Class::Exhausted);
                trail.tried += 1;
                trail.cause = Some(cause);
                if trail.tried >= shared.limits.max_endpoints {
                    // They are well, and will have room again.
                    let waits = is_full && trail.deadline.is_none_or(|deadline| Instant::now() < deadline);
                    return match waits {
                        true => Self::wait(shared, request, trail),
                        false => Self::refused(shared, &Nothing::Yet, trail),
                    };
                }
                Self::begin::<S, P, K>(shared, request, trail)
            }
            Err(error) => Self::Refused(Some(error)),
        }
    }

    /// Something may be ready now, or it is too late. `None`: goes on waiting.
    fn woken<S, P, K>(
        shared: &Shared<S, P>,
        waiting: &mut Option<Req>,
        is_late: bool,
        trail: &mut Trail,
    ) -> Option<Self>
    where
        S: Service<Req, Future = F> + Clone,
        P: Policy,
        K: Stamp<Req>,
    {
        let mut request = waiting.take().expect("a waiting request");
        match shared.choose::<Req, K>(&mut request) {
            Ok((mut service, guard)) => {
                // There may be as much for the next one.
                shared.freed.notify_one();
                Some(Self::Calling { future: service.call(request), guard: Some(guard) })
            }
            Err(Nothing::Yet) if !is_late => {
                *waiting = Some(request);
                None
            }
            Err(nothing) => {
                if !matches!(nothing, Nothing::Yet) {
                    // It is everybody's last word.
                    shared.freed.notify_one();
                }
                Some(Self::refused(shared, &nothing, trail))
            }
        }
    }

    /// Waits, if there is room.
    fn wait<S, P: Policy>(shared: &Shared<S, P>, request: Req, trail: &mut Trail) -> Self {
        let Some(place) = Place::take(&shared.waiting, shared.limits.max_waiting) else {
            return Self::refused(shared, &Nothing::Yet, trail);
        };
        let deadline = *trail.deadline.get_or_insert_with(|| Instant::now() + shared.limits.max_wait);
        let freed = shared.freed.clone().notified_owned();
        Self::Waiting { request: Some(request), _place: place, freed, deadline: sleep_until(deadline) }
    }

    fn refused<S, P: Policy>(shared: &Shared<S, P>, nothing: &Nothing, trail: &mut Trail) -> Self {
        let error = match (nothing, trail.cause.take(), NonZeroU32::new(trail.tried)) {
            (Nothing::Stopped, ..) => Stopped::new().into(),
            (_, Some(cause), Some(tried)) => Unreachable::new(tried, cause).into(),
            _ => shared.no_endpoints().into(),
        };
        Self::Refused(Some(error))
    }
}

// === impl Place ===

impl Place {
    fn take(waiting: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        if waiting.fetch_add(1, Relaxed) >= limit {
            waiting.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Self(waiting.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
