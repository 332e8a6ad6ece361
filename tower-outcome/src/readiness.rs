//! Readiness: whether this process should be sent new requests, for the probes of orchestrators and load balancers.
//!
//! A drain is not ready once it has begun; a lease is not ready while another process holds it. Their handles have a method
//! `readiness()`, and [`Readiness::and`] combines several. The result is a [`Service`] that answers HTTP probes, and
//! [`Readiness::follow`] reports changes to APIs that are notified instead of polled, such as gRPC's health service.
//!
//! # Example
//!
//! ```
//! use std::{future, pin::Pin};
//! use tower_outcome::{Class, Refusal, readiness::{Readiness, Ready}};
//!
//! /// Always ready.
//! struct Always;
//!
//! impl Ready for Always {
//!     fn check(&self) -> Result<(), Refusal> {
//!         Ok(())
//!     }
//!     fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
//!         Box::pin(future::pending())
//!     }
//! }
//!
//! let readiness = Readiness::new(Always).and(Readiness::new(Always));
//! assert!(readiness.check().is_ok());
//! // axum: Router::new().route_service("/ready", readiness)
//! ```
//!
//! With tonic-health, where `reporter` is its `HealthReporter`:
//!
//! ```text
//! tokio::spawn(readiness.follow(move |ready| {
//!     let reporter = reporter.clone();
//!     let status = match ready {
//!         Ok(()) => ServingStatus::Serving,
//!         Err(_) => ServingStatus::NotServing,
//!     };
//!     async move { reporter.set_service_status("", status).await }
//! }));
//! ```

use std::{
    convert::Infallible,
    fmt,
    future::{self, Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use tower_service::Service;

use crate::{Refusal, body::RespondBody, refuse};

/// Something that readiness depends on.
pub trait Ready: Send + Sync + 'static {
    /// Returns whether it is ready now.
    ///
    /// # Errors
    ///
    /// The reason why it is not ready, as the refusal with which requests would be rejected.
    fn check(&self) -> Result<(), Refusal>;

    /// Completes when the result of [`check`](Self::check) may have changed since this method was called (not since the
    /// first poll), also when it changes by the passing of time alone. If the state can no longer change, the future stays
    /// pending.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The readiness of this process: ready if each of its parts is.
///
/// Cheap to clone. As a [`Service`] it answers any request with `200`, or with `503` and the reason; both carry
/// `Cache-Control: no-store`.
#[derive(Clone)]
pub struct Readiness {
    states: Arc<[Arc<dyn Ready>]>,
}

// === impl Readiness ===

impl Readiness {
    /// Readiness that depends on `state` alone.
    pub fn new(state: impl Ready) -> Self {
        Self {
            states: Arc::new([Arc::new(state)]),
        }
    }

    /// Ready only if both are. The reason is that of the first part that is not ready.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let states = self.states.iter().chain(other.states.iter()).cloned();
        Self {
            states: states.collect(),
        }
    }

    /// Returns whether all parts are ready now.
    ///
    /// # Errors
    ///
    /// The reason of the first part that is not ready.
    pub fn check(&self) -> Result<(), Refusal> {
        self.states.iter().try_for_each(|state| state.check())
    }

    /// Completes when the result of [`check`](Self::check) may have changed since this method was called.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing; the next one starts from the state at that time.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut changes: Vec<_> = self.states.iter().map(|state| state.changed()).collect();
        poll_fn(move |cx| {
            let mut changes = changes.iter_mut();
            match changes.any(|change| change.as_mut().poll(cx).is_ready()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
    }

    /// Calls `report` with the result of [`check`](Self::check), now and after every change. Never completes: spawn it.
    ///
    /// The future of one report is awaited before the next is made, so reports are in order. A change that is reverted in
    /// the meantime is not reported.
    pub async fn follow<F, Fut>(self, mut report: F)
    where
        F: FnMut(Result<(), Refusal>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut last = None;
        loop {
            let changed = self.changed();
            let now = self.check();
            if last != Some(now) {
                last = Some(now);
                report(now).await;
            }
            changed.await;
        }
    }
}

impl<B> Service<Request<B>> for Readiness {
    type Response = Response<RespondBody<String>>;
    type Error = Infallible;
    type Future = future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let mut response = match self.check() {
            Ok(()) => {
                let mut response = Response::new(RespondBody::inner("ready\n".to_owned()));
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, text);
                response
            }
            Err(refusal) => refuse::Http::new().response(&refusal, refusal),
        };
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(CACHE_CONTROL, no_store);
        future::ready(Ok(response))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("ready", &self.check())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::watch;

    use super::*;
    use crate::Class;

    const DRAINING: Refusal = Refusal::new(Class::Unavailable, "draining");
    const NOT_HELD: Refusal = Refusal::new(Class::Unavailable, "lease-not-held");

    struct Flag(watch::Receiver<bool>, Refusal);

    impl Ready for Flag {
        fn check(&self) -> Result<(), Refusal> {
            if *self.0.borrow() {
                Ok(())
            } else {
                Err(self.1)
            }
        }

        fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            let mut receiver = self.0.clone();
            receiver.mark_unchanged();
            Box::pin(async move {
                if receiver.changed().await.is_err() {
                    future::pending().await
                }
            })
        }
    }

    fn flag(refusal: Refusal) -> (watch::Sender<bool>, Readiness) {
        let (sender, receiver) = watch::channel(true);
        (sender, Readiness::new(Flag(receiver, refusal)))
    }

    #[test]
    fn all_states_must_be_ready_and_the_first_that_is_not_gives_the_reason() {
        let ((drain, first), (lease, second)) = (flag(DRAINING), flag(NOT_HELD));
        let both = first.and(second);
        assert_eq!(both.check(), Ok(()));
        lease.send_replace(false);
        assert_eq!(both.check(), Err(NOT_HELD));
        drain.send_replace(false);
        assert_eq!(both.check(), Err(DRAINING));
    }

    #[tokio::test]
    async fn probes_get_200_or_503_with_the_reason() {
        let (drain, mut readiness) = flag(DRAINING);
        let response = readiness.call(Request::new(())).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["cache-control"], "no-store");
        drain.send_replace(false);
        let response = readiness.call(Request::new(())).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["cache-control"], "no-store");
    }

    #[tokio::test]
    async fn changes_of_any_state_are_reported_once_each_and_in_order() {
        let ((drain, first), (lease, second)) = (flag(DRAINING), flag(NOT_HELD));
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = reports.clone();
        let follow = tokio::spawn(first.and(second).follow(move |ready| {
            sink.lock().unwrap().push(ready);
            future::ready(())
        }));
        let settled = || async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        };
        settled().await;
        lease.send_replace(false);
        settled().await;
        lease.send_replace(false); // the same again is no change
        settled().await;
        drain.send_replace(false);
        settled().await;
        drop(drain); // a part that can no longer change neither ends the future nor makes it spin
        settled().await;
        lease.send_replace(true);
        settled().await;
        assert!(!follow.is_finished());
        follow.abort();
        assert_eq!(
            *reports.lock().unwrap(),
            [Ok(()), Err(NOT_HELD), Err(DRAINING)]
        );
    }

    #[tokio::test]
    async fn a_change_during_a_report_is_not_missed() {
        let (drain, readiness) = flag(DRAINING);
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = reports.clone();
        let mut drain = Some(drain);
        let follow = tokio::spawn(readiness.follow(move |ready| {
            sink.lock().unwrap().push(ready);
            if let Some(drain) = drain.take() {
                drain.send_replace(false);
            }
            future::ready(())
        }));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        follow.abort();
        assert_eq!(*reports.lock().unwrap(), [Ok(()), Err(DRAINING)]);
    }
}
