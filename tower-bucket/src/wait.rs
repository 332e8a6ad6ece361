//! Waiting for a token instead of refusing.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_outcome::refuse::Refuse;
use tower_service::Service;

use crate::{
    BucketService, Limit,
    headers::DecorateResponse,
    limit::{Denial, Terms},
    waiters::{WaiterLimit, WaiterPermit},
};

/// The requests that wait, and the settings for them: [`BucketService`]'s mode when
/// [`BucketLayer::wait`](crate::BucketLayer::wait) made it.
///
/// # Order
///
/// Requests for the same bucket wait in a queue and are let in first come, first served, at the rate of the quota. A request
/// that does not wait itself, because it draws from the same limiter in another layer, does not get ahead of them. When a
/// waiting request is dropped, those behind it move up by what it would have cost: the rate goes to the requests that are
/// still there, however many gave up. No request is let in later than the turn it was given when it came.
///
/// Turns that fall into the same millisecond come together, because the timer is not finer; and so do those that come due
/// while their futures are not polled, for example because the runtime stalls: a turn that is missed is not lost.
///
/// Each of several limits has a queue, and the request passes at the latest of its turns. The rest are paid for by
/// then, and may see it later than it was paid for: beyond their burst by as many requests as wait, at most.
///
/// # How many wait
///
/// How many may wait is bounded ([`waiters`](crate::BucketLayer::waiters)), and one key, such as a client, has at most a share
/// of the places ([`waiters_per_key`](crate::BucketLayer::waiters_per_key)): one that sends more requests than it may does not
/// keep those of other keys from waiting.
///
/// # What a waiting request holds
///
/// The inner service that was ready for it, and what that reserved: place a concurrency limit outside, or requests that wait
/// take its permits.
#[derive(Clone, Debug)]
pub struct Queue {
    longest: Duration,
    waiters: WaiterLimit,
}

pin_project! {
    /// The future of a [`BucketService`] whose requests may wait: its turn, then the inner service's; or a refusal.
    ///
    /// # Cancel safety
    ///
    /// It may be dropped at any time. One that is dropped while it waits has not called the inner service and costs nothing: its
    /// tokens go to the requests behind it, which move up, or back into the bucket. One that is dropped when its turn has come
    /// and before it was polled gives back what of its tokens still lies ahead. A caller that retries with a new request stands at
    /// the end of the queue.
    ///
    /// # Panics
    ///
    /// When it must wait outside of a Tokio runtime with a timer.
    pub struct WaitFuture<S, L, R, Req>
    where
        S: Service<Req>,
        L: Limit<Req>,
        R: Refuse<Req, S::Response, S::Error>,
    {
        #[pin]
        state: State<S, L, Req, Result<R::Response, R::Error>>,
        note: L::Note,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, L, Req, T>
    where
        S: Service<Req>,
        L: Limit<Req>,
    {
        // -> `Called` when the turn comes.
        Waiting {
            #[pin]
            sleep: Sleep,
            // `None` once the turn has come.
            held: Option<(S, Req, Reservation<L, Req>)>,
        },
        Called { #[pin] inner: S::Future },
        // `None` once it was returned.
        Refused { answer: Option<T> },
    }
}

/// The tokens that a waiting request has taken in advance, and its permit. Given back on drop.
struct Reservation<L, Req>
where
    L: Limit<Req>,
{
    limit: L,
    charge: L::Charge,
    taken: L::Taken,
    turn: L::Turn,
    is_used: bool,
    _permit: WaiterPermit,
}

// === impl Queue ===

impl Queue {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            longest,
            waiters: WaiterLimit::new(DEFAULT_WAITERS),
        }
    }

    pub(crate) const fn limit_mut(&mut self) -> &mut WaiterLimit {
        &mut self.waiters
    }

    /// How many requests wait just now.
    #[must_use]
    pub fn waiters(&self) -> u32 {
        self.waiters.taken()
    }

    fn max_wait(&self) -> u64 {
        u64::try_from(self.longest.as_nanos()).unwrap_or(u64::MAX)
    }
}

// === impl BucketService ===

impl<S, L, R, Req> Service<Req> for BucketService<S, L, R, Queue>
where
    S: Service<Req> + Clone,
    L: Limit<Req>,
    L::Note: DecorateResponse<R::Response>,
    R: Refuse<Req, S::Response, S::Error>,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = WaitFuture<S, L, R, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(R::pass(Err(error)).map(drop)),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (charge, now) = (self.limit.charge(&request, Terms::USUAL), Instant::now());
        let queued = match self.limit.take(charge, now, 0) {
            Ok(taken) => {
                self.limit.count_passed(charge, taken, false);
                let note = self.limit.note(charge, Ok(taken));
                return WaitFuture {
                    state: State::Called {
                        inner: self.inner.call(request),
                    },
                    note,
                };
            }
            Err(denial) => self.queue(charge, now, denial),
        };
        match queued {
            Ok(reservation) => {
                let note = self.limit.note(charge, Ok(reservation.taken));
                // Set by the first poll.
                let sleep = sleep_until(now);
                let held = Some((self.take_ready(), request, reservation));
                WaitFuture {
                    state: State::Waiting { sleep, held },
                    note,
                }
            }
            Err(denial) => {
                let (answer, note) = self.deny(&request, charge, denial);
                WaitFuture {
                    state: State::Refused {
                        answer: Some(answer),
                    },
                    note,
                }
            }
        }
    }
}

impl<S, L, R> BucketService<S, L, R, Queue> {
    /// Takes a turn and a place in the queue, unless the turn would come too late or the places are taken.
    fn queue<Req>(
        &self,
        charge: L::Charge,
        now: Instant,
        denial: Denial,
    ) -> Result<Reservation<L, Req>, Denial>
    where
        L: Limit<Req>,
    {
        // Of what is refused, most is refused here, without a lock.
        let Some(mut permit) = self.mode.waiters.take() else {
            return Err(denial);
        };
        let (taken, turn) = self.limit.queue(charge, now, self.mode.max_wait())?;
        let mut keys = Vec::new();
        L::keyed_buckets(charge, taken, 0, &mut keys);
        if !permit.enter(keys) {
            self.limit.leave(charge, taken, turn, now);
            return Err(denial);
        }
        Ok(Reservation {
            limit: self.limit.clone(),
            charge,
            taken,
            turn,
            is_used: false,
            _permit: permit,
        })
    }

    /// The service that was ready; a clone, which is not, takes its place.
    fn take_ready(&mut self) -> S
    where
        S: Clone,
    {
        let clone = self.inner.clone();
        mem::replace(&mut self.inner, clone)
    }
}

// === impl WaitFuture ===

impl<S, L, R, Req> Future for WaitFuture<S, L, R, Req>
where
    S: Service<Req>,
    L: Limit<Req>,
    L::Note: DecorateResponse<R::Response>,
    R: Refuse<Req, S::Response, S::Error>,
{
    type Output = Result<R::Response, R::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut answer = loop {
            match this.state.as_mut().project() {
                StateProj::Waiting { mut sleep, held } => {
                    let (_, _, reservation) =
                        held.as_mut().expect("polled after the turn had come");
                    if let Some(turn) = reservation.poll(Instant::now(), cx.waker()) {
                        if sleep.deadline() != turn {
                            sleep.as_mut().reset(turn);
                        }
                        ready!(sleep.poll(cx));
                        continue;
                    }
                    let (mut service, request, reservation) =
                        held.take().expect("it was there just now");
                    reservation.spend();
                    this.state.set(State::Called {
                        inner: service.call(request),
                    });
                }
                StateProj::Called { inner } => break R::pass(ready!(inner.poll(cx))),
                StateProj::Refused { answer } => {
                    break answer.take().expect("polled after it was ready");
                }
            }
        };
        if let Ok(response) = &mut answer {
            this.note.decorate(response);
        }
        Poll::Ready(answer)
    }
}

impl<S, L, R, Req> fmt::Debug for WaitFuture<S, L, R, Req>
where
    S: Service<Req>,
    L: Limit<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Waiting { .. } => "waiting",
            State::Called { .. } => "called",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("WaitFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

// === impl Reservation ===

impl<L: Limit<Req>, Req> Reservation<L, Req> {
    /// `None`: its turn has come. `Some`: ask again then, or when woken.
    fn poll(&mut self, now: Instant, waker: &Waker) -> Option<Instant> {
        self.limit
            .poll_turn(self.charge, self.taken, &mut self.turn, now, waker)
    }

    fn spend(mut self) {
        self.is_used = true;
        self.limit.count_passed(self.charge, self.taken, true);
    }
}

impl<L: Limit<Req>, Req> Drop for Reservation<L, Req> {
    fn drop(&mut self) {
        if !self.is_used {
            self.limit
                .leave(self.charge, self.taken, self.turn, Instant::now());
            self.limit.count_abandoned(self.charge);
        }
    }
}

/// With a request of a few KiB each, a few MiB at most.
const DEFAULT_WAITERS: u32 = 1024;
