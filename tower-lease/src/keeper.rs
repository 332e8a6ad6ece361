use std::{
    collections::VecDeque,
    fmt,
    future::{Future, pending, poll_fn},
    pin::Pin,
    task::Poll,
};

use tokio::sync::watch;

use crate::{
    Acquired, BootClock, BootInstant, Claim, ClaimId, Clock, Fault, FencingToken, Grant, Lease,
    LeaseStore, Lost, State, StoreError, Watch, WatchEvent,
    handle::Shared,
    lease::{Core, Granted, Input, Output, Reply, RequestStamp, WatchReport},
    sync::atomic::Ordering,
};

#[cfg(all(test, loom))]
mod loom_tests;

/// Acquires, renews and watches one lease: a future that the user spawns.
///
/// When it is dropped, or its task aborted, the gate closes at once, in `Drop`. It then releases nothing: those inside
/// are still being cut off, and the store's TTL cleans up. For an orderly end call [`Lease::step_down`].
#[must_use = "the lease is never acquired unless its keeper runs"]
pub struct Keeper<S: LeaseStore, C: Clock = BootClock> {
    store: S,
    /// What all claims of this keeper have in common.
    claim: Claim,
    core: Core,
    lease: Lease<C>,
    states: watch::Sender<State>,
    watch: Option<S::Watch>,
    requests: Requests,
}

/// The requests under way. One that outlives its attempt is kept, because its answer may come yet.
struct Requests(VecDeque<PendingRequest>);

// A store's futures cannot be named.
type PendingRequest = Pin<Box<dyn Future<Output = Completed> + Send>>;

/// A request's answer, and the successor's token if it was a transfer that worked.
type Completed = (Input, Option<FencingToken>);

/// Attempts last a second and lie up to half a second apart, so this covers answers that are four seconds late.
const MAX_REQUESTS: usize = 4;

// === impl Keeper ===

impl<S: LeaseStore, C: Clock> Keeper<S, C> {
    pub(crate) fn new(
        store: S,
        claim: Claim,
        core: Core,
        lease: Lease<C>,
        states: watch::Sender<State>,
    ) -> Self {
        Self {
            store,
            claim,
            core,
            lease,
            states,
            watch: None,
            requests: Requests(VecDeque::new()),
        }
    }

    /// Keeps the lease until it is stepped down, or lost without [`reacquire`](crate::LeaseBuilder::reacquire). Answers
    /// with the last state: `Released` or `Fenced`.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the gate at once and leaves the record to the store's TTL.
    pub async fn run(mut self) -> State {
        self.feed(Input::Start);
        while !self.core.is_over() {
            let input = self.next().await;
            self.feed(input);
        }
        self.core.state()
    }

    /// The next event.
    async fn next(&mut self) -> Input {
        let shared = self.lease.shared();
        let deadline = self.core.deadline();
        tokio::select! {
            biased;
            () = timer(&shared.clock, deadline) => Input::Timer,
            input = next_event(&mut self.watch) => input,
            completed = self.requests.next() => {
                let (input, token) = completed;
                if let (Some(token), Some(to)) = (token, &mut shared.handover().to) {
                    to.token = Some(token);
                }
                input
            }
            () = shared.stepping_down.notified() => Input::StepDown { hands_over: shared.handover().to.is_some() },
            () = shared.drained(), if self.core.is_closing() => Input::Drained,
        }
    }

    fn feed(&mut self, input: Input) {
        // Before anything that follows from it can be sent.
        let now = self.lease.shared().clock.now();
        for output in self.core.on(input, now) {
            self.act(output);
        }
        let next = self.core.next_attempt().map_or(0, BootInstant::as_nanos);
        self.lease
            .shared()
            .next_attempt
            .store(next, Ordering::Relaxed);
        *self.lease.shared().counts() = *self.core.counts();
        let mut handover = self.lease.shared().handover();
        if handover.claim.id() != self.core.handover_claim() {
            handover.claim = self.claim.with_id(self.core.handover_claim());
        }
    }

    fn act(&mut self, output: Output) {
        let shared = self.lease.shared();
        match output {
            Output::Acquire(stamp) => {
                self.start(|store, claim| acquire(store, claim, stamp), stamp.claim)
            }
            Output::Renew(stamp) => {
                self.start(|store, claim| renew(store, claim, stamp), stamp.claim)
            }
            Output::Release(claim) => self.start(release, claim),
            Output::RevokeOwn(claim) => self.start(revoke_own, claim),
            Output::Transfer(claim) => {
                // The caller that asked for it has named one.
                let to = shared
                    .handover()
                    .to
                    .as_ref()
                    .map_or_else(|| self.claim.clone(), |to| to.claim.clone());
                self.start(|store, claim| transfer(store, claim, to), claim);
            }
            Output::Forget => self.requests.0.clear(),
            Output::Watch(from) => self.watch = Some(self.store.watch(self.lease.key(), from)),
            Output::Unwatch => self.watch = None,
            Output::Open(epoch, until) => {
                shared.cell.open(epoch.get(), until);
                shared.opened.notify_waiters();
            }
            Output::Extend(until) => {
                shared.cell.extend(until);
                // Gates that want more time than was left.
                shared.opened.notify_waiters();
            }
            Output::Drain => {
                shared.cell.drain();
                shared.lost.notify_waiters();
            }
            Output::Close => shared.close(),
            Output::NonMonotonicToken { epoch, highest } => {
                let key = self.lease.key();
                tracing::error!(%key, epoch, highest, "lease store granted a fencing token that is not above the last one");
            }
            Output::Publish(state) => self.publish(state),
        }
    }

    fn start<F>(&mut self, request: impl FnOnce(S, Claim) -> F, id: ClaimId)
    where
        F: Future<Output = Completed> + Send + 'static,
    {
        let claim = self.claim.with_id(id);
        self.requests
            .push(Box::pin(request(self.store.clone(), claim)));
    }

    /// One event per transition, at the level an operator needs.
    fn publish(&self, state: State) {
        let from = self.states.send_replace(state);
        let (key, holder) = (self.lease.key(), self.claim.holder().name());
        let epoch = state.epoch().map(u64::from);
        match state {
            State::Fenced { cause, .. } => {
                tracing::warn!(%key, holder, epoch, %from, to = %state, %cause, "lease lost");
            }
            State::Jeopardy { .. } => {
                tracing::warn!(%key, holder, epoch, %from, to = %state, "lease in jeopardy")
            }
            _ => tracing::info!(%key, holder, epoch, %from, to = %state, "lease state changed"),
        }
    }
}

impl<S: LeaseStore, C: Clock> Drop for Keeper<S, C> {
    fn drop(&mut self) {
        let shared = self.lease.shared();
        shared.close();
        match self.core.state() {
            State::Fenced { .. } | State::Released => {}
            state => {
                let lost = state.epoch().map(|epoch| State::Fenced {
                    epoch,
                    cause: Lost::KeeperGone,
                });
                if lost.is_some() {
                    shared.counts().losses.count(Lost::KeeperGone);
                }
                self.publish(lost.unwrap_or(State::Released));
            }
        }
        shared.next_attempt.store(0, Ordering::Relaxed);
        // The flag first, then the notification: a task that is woken checks once, and waits again if nothing has changed.
        shared.ended.store(true, Ordering::Release);
        shared.opened.notify_waiters();
    }
}

impl<S: LeaseStore, C: Clock> fmt::Debug for Keeper<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

// === impl Requests ===

impl Requests {
    fn push(&mut self, request: PendingRequest) {
        if self.0.len() == MAX_REQUESTS {
            self.0.pop_front();
        }
        self.0.push_back(request);
    }

    /// The first answer. Cancel safe: the requests stay where they are.
    async fn next(&mut self) -> Completed {
        poll_fn(|cx| {
            for at in 0..self.0.len() {
                if let Poll::Ready(input) = self.0[at].as_mut().poll(cx) {
                    drop(self.0.remove(at));
                    return Poll::Ready(input);
                }
            }
            Poll::Pending
        })
        .await
    }
}

// === impl Granted ===

impl From<&Grant> for Granted {
    fn from(grant: &Grant) -> Self {
        Self {
            epoch: grant.token().epoch(),
            ttl: grant.ttl(),
            revision: grant.revision(),
            is_clean: grant.is_clean(),
        }
    }
}

// === impl Shared ===

impl<C> Shared<C> {
    /// Closes the gate, and notifies the requests in flight.
    fn close(&self) {
        self.cell.close();
        self.lost.notify_waiters();
        // Someone may have left between a drain and this.
        self.drained.notify_waiters();
    }
}

async fn acquire<S: LeaseStore>(store: S, claim: Claim, stamp: RequestStamp) -> Completed {
    let reply = match store.acquire(&claim).await {
        Ok(Acquired::Granted(grant)) => Ok(Reply::Granted(Granted::from(&grant))),
        Ok(Acquired::Held(record)) => Ok(Reply::Held {
            claim: record.claim(),
            expires_in: record.expires_in(),
        }),
        Err(error) => Err(fault(&error, &claim, "acquire")),
    };
    (Input::Acquired(stamp, reply), None)
}

async fn renew<S: LeaseStore>(store: S, claim: Claim, stamp: RequestStamp) -> Completed {
    (
        Input::Renewed(
            stamp,
            store
                .renew(&claim)
                .await
                .map_err(|error| fault(&error, &claim, "renew")),
        ),
        None,
    )
}

async fn release<S: LeaseStore>(store: S, claim: Claim) -> Completed {
    let certain = is_certain(store.release(&claim).await, &claim, "release");
    (Input::Released(claim.id(), certain), None)
}

/// Revokes what the claim holds, if it holds anything: guarded by its token, so that it affects no other holder.
async fn revoke_own<S: LeaseStore>(store: S, claim: Claim) -> Completed {
    let result = match store.inspect(claim.key()).await {
        Ok(Some(record)) if record.claim() == claim.id() => {
            store.revoke(claim.key(), Some(record.token())).await
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    (
        Input::Released(claim.id(), is_certain(result, &claim, "revoke")),
        None,
    )
}

async fn transfer<S: LeaseStore>(store: S, claim: Claim, to: Claim) -> Completed {
    let token = match store.transfer(&claim, &to).await {
        Ok(grant) => Some(grant.token().clone()),
        Err(error) => {
            fault(&error, &claim, "transfer");
            None
        }
    };
    (Input::Transferred(claim.id(), token.is_some()), token)
}

/// Whether the claim is known to hold nothing any more: done, or it held nothing.
fn is_certain(result: Result<(), StoreError>, claim: &Claim, call: &str) -> bool {
    result
        .err()
        .is_none_or(|error| fault(&error, claim, call) == Fault::Lost)
}

fn fault(error: &StoreError, claim: &Claim, call: &str) -> Fault {
    let cause = std::error::Error::source(error).map(tracing::field::display);
    tracing::debug!(key = %claim.key(), call, %error, cause, "lease store call failed");
    error.fault()
}

async fn next_event<W: Watch>(watch: &mut Option<W>) -> Input {
    let Some(watch) = watch else {
        return pending().await;
    };
    Input::Watched(match watch.next().await {
        Ok(WatchEvent::Held(record, revision)) => WatchReport::Held(record.claim(), revision),
        Ok(WatchEvent::Vacant(_, revision)) => WatchReport::Vacant(revision),
        // What was skipped may have been the loss, and documents do not belong here: begin again with the present state.
        Ok(WatchEvent::Lagged | WatchEvent::Written(_) | WatchEvent::Deleted(..)) | Err(_) => {
            WatchReport::Broken
        }
    })
}

async fn timer<C: Clock>(clock: &C, deadline: Option<BootInstant>) {
    match deadline {
        // The core looks at the time again, so a timer of another rate does no harm.
        Some(deadline) => clock.sleep_until(deadline).await,
        None => pending().await,
    }
}
