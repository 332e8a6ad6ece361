use std::{
    fmt,
    future::Future,
    hash::Hash,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project::pin_project;
use redis::aio::ConnectionLike;
use tower_layer::Layer;
use tower_outcome::refuse::{Auto, Fail, Refuse};
use tower_service::Service;

use super::{First, RedisKey, RedisLimiter};
use crate::{Admitted, Exhausted, Key, OnMissingKey, error::Reason, store::Drawer};

/// Lets no more requests through than a [`RedisLimiter`] admits, over all machines. Makes a [`RedisBucket`].
///
/// For limits of this machine besides, put a [`BucketLayer`](crate::BucketLayer) outside.
pub struct RedisLayer<F, K: ?Sized, C, R = Fail> {
    limiter: RedisLimiter<K, C>,
    key: F,
    missing: OnMissingKey,
    refuse: R,
}

/// A service that asks Redis, or knows the answer, before it calls the inner service. Made by [`RedisLayer`].
///
/// Readiness is the inner service's; while Redis is asked, the request owns the service that was ready.
pub struct RedisBucket<S, F, K: ?Sized, C, R = Fail> {
    inner: S,
    layer: RedisLayer<F, K, C, R>,
}

/// The future of a [`RedisBucket`]. See the module about what is spent when it is dropped.
#[pin_project]
pub struct RedisFuture<S, R, Req>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    #[pin]
    state: State<S, R, Req, Result<R::Response, R::Error>>,
}

#[pin_project(project = StateProj)]
enum State<S, R, Req, T>
where
    S: Service<Req>,
{
    /// -> `Called` or `Refused` when it is decided.
    Asking {
        // The connection's own future is boxed and has no name.
        decision: Pin<Box<dyn Future<Output = Result<Admitted, Exhausted>> + Send>>,
        /// `None` once it is decided.
        held: Option<(S, R, Req)>,
    },
    Called(#[pin] S::Future),
    /// `None` once it was told.
    Refused(Option<T>),
}

// === impl RedisLayer ===

impl<F, K: ?Sized, C> RedisLayer<F, K, C> {
    /// Each request draws from the bucket of its key.
    #[must_use]
    pub fn new(limiter: RedisLimiter<K, C>, key: F) -> Self {
        Self { limiter, key, missing: OnMissingKey::default(), refuse: Fail }
    }
}

impl<F, K: ?Sized, C, R> RedisLayer<F, K, C, R> {
    /// What becomes of a request without a key. Default: [`OnMissingKey::Shared`], over all machines.
    #[must_use]
    pub fn on_missing_key(self, choice: OnMissingKey) -> Self {
        Self { missing: choice, ..self }
    }

    /// Answers refused requests, as [`BucketLayer::respond`](crate::BucketLayer::respond) does.
    #[must_use]
    pub fn respond(self) -> RedisLayer<F, K, C, Auto> {
        self.respond_with(Auto::new())
    }

    /// Tells refusals in another way.
    #[must_use]
    pub fn respond_with<T>(self, refuse: T) -> RedisLayer<F, K, C, T> {
        RedisLayer { limiter: self.limiter, key: self.key, missing: self.missing, refuse }
    }

    /// The limiter that is drawn from.
    pub const fn limiter(&self) -> &RedisLimiter<K, C> {
        &self.limiter
    }

    fn first<Req>(&self, request: &Req) -> (Drawer, First)
    where
        F: Key<Req, Key = K>,
        K: Hash + RedisKey + Sized,
    {
        if let Some(key) = self.key.key(request) {
            let drawer = Drawer::Key(self.limiter.local.fingerprint(&key));
            return (drawer, self.limiter.first(drawer, |name| key.write_to(name)));
        }
        self.limiter.local.note_keyless();
        let first = match self.missing {
            OnMissingKey::Shared => self.limiter.first(Drawer::Keyless, |_| {}),
            OnMissingKey::Allow => First::Decided(Ok(Admitted::new(0, self.limiter.local.quota()))),
            OnMissingKey::Deny => First::Decided(Err(Reason::Keyless)),
        };
        (Drawer::Keyless, first)
    }
}

impl<F: Clone, K: ?Sized, C: Clone, R: Clone> Clone for RedisLayer<F, K, C, R> {
    fn clone(&self) -> Self {
        let Self { limiter, key, missing, refuse } = self;
        Self { limiter: limiter.clone(), key: key.clone(), missing: *missing, refuse: refuse.clone() }
    }
}

impl<F, K: ?Sized, C, R> fmt::Debug for RedisLayer<F, K, C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLayer").field("limiter", &self.limiter).finish_non_exhaustive()
    }
}

impl<S, F: Clone, K: ?Sized, C: Clone, R: Clone> Layer<S> for RedisLayer<F, K, C, R> {
    type Service = RedisBucket<S, F, K, C, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RedisBucket { inner, layer: self.clone() }
    }
}

// === impl RedisBucket ===

impl<S, F, K, C, R, Req> Service<Req> for RedisBucket<S, F, K, C, R>
where
    S: Service<Req> + Clone,
    F: Key<Req, Key = K>,
    K: Hash + RedisKey + 'static,
    C: ConnectionLike + Clone + Send + Sync + 'static,
    R: Refuse<Req, S::Response, S::Error> + Clone,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = RedisFuture<S, R, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(R::pass(Err(error)).map(drop)),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (limiter, refuse) = (&self.layer.limiter, &self.layer.refuse);
        let state = match self.layer.first(&request) {
            (drawer, First::Decided(decision)) => match limiter.count(drawer, decision) {
                Ok(_) => State::Called(self.inner.call(request)),
                Err(exhausted) => State::Refused(Some(refuse.refuse(refuse.see(&request), exhausted))),
            },
            (drawer, First::Ask(question)) => {
                let limiter = limiter.clone();
                let decision = async move { limiter.count(drawer, limiter.ask(&question).await) };
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                State::Asking { decision: Box::pin(decision), held: Some((ready, refuse.clone(), request)) }
            }
        };
        RedisFuture { state }
    }
}

impl<S: Clone, F: Clone, K: ?Sized, C: Clone, R: Clone> Clone for RedisBucket<S, F, K, C, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, F, K: ?Sized, C, R> fmt::Debug for RedisBucket<S, F, K, C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBucket").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}

// === impl RedisFuture ===

impl<S, R, Req> Future for RedisFuture<S, R, Req>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    type Output = Result<R::Response, R::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Asking { decision, held } => {
                    let decision = ready!(decision.as_mut().poll(cx));
                    let (mut service, refuse, request) = held.take().expect("held until it is decided");
                    state.set(match decision {
                        Ok(_) => State::Called(service.call(request)),
                        Err(exhausted) => State::Refused(Some(refuse.refuse(refuse.see(&request), exhausted))),
                    });
                }
                StateProj::Called(inner) => return Poll::Ready(R::pass(ready!(inner.poll(cx)))),
                StateProj::Refused(answer) => return Poll::Ready(answer.take().expect("polled after it was ready")),
            }
        }
    }
}

impl<S, R, Req> fmt::Debug for RedisFuture<S, R, Req>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Asking { .. } => "asking",
            State::Called(_) => "called",
            State::Refused(_) => "refused",
        };
        f.debug_struct("RedisFuture").field("state", &state).finish_non_exhaustive()
    }
}
