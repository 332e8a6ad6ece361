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
use crate::{
    Cost, Exhausted, Key, OnMissingKey, Plan, PolicyName, Shadow, Told, Tuned,
    fields::Tell,
    limit::{
        Denial, Standing, Taken, Terms,
        sealed::{Manner, Note},
    },
    store::Drawer,
};

/// Lets no more requests through than a [`RedisLimiter`] admits, over all machines. Makes a [`RedisBucket`].
///
/// For limits of this machine besides, put a [`BucketLayer`](crate::BucketLayer) outside. There is no waiting for a turn: a
/// turn would have to be kept, or given back, over all machines.
///
/// ```no_run
/// use std::num::NonZeroU32;
/// use http::Request;
/// use tower_bucket::{ClientIp, PeerIp, PolicyName, Quota, redis::{RedisLayer, RedisLimiter}};
///
/// # async fn connect() -> redis::RedisResult<()> {
/// const SITE: PolicyName = PolicyName::new("site").unwrap();
///
/// // It reconnects by itself.
/// let connection = redis::Client::open("redis://127.0.0.1/")?.get_connection_manager().await?;
/// let quota = Quota::per_minute(NonZeroU32::new(600).unwrap());
/// let limiter = RedisLimiter::<ClientIp, _>::new(connection, "site", quota);
/// let layer = RedisLayer::new(limiter, PeerIp)
///     .cost(|request: &Request<String>| if request.method() == "POST" { 5 } else { 1 })
///     .fields(SITE)
///     .respond();
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
pub struct RedisLayer<F, K: ?Sized, C, R = Fail, A = ()> {
    limiter: RedisLimiter<K, C>,
    key: F,
    missing: OnMissingKey,
    refuse: R,
    /// What is asked and told.
    manner: A,
}

/// A service that asks Redis, or knows the answer, before it calls the inner service. Made by [`RedisLayer`].
///
/// Readiness is the inner service's; while Redis is asked, the request owns the service that was ready.
pub struct RedisBucket<S, F, K: ?Sized, C, R = Fail, A = ()> {
    inner: S,
    layer: RedisLayer<F, K, C, R, A>,
}

/// The future of a [`RedisBucket`]. See the module about what is spent when it is dropped.
#[pin_project]
pub struct RedisFuture<S, R, Req, N = ()>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
{
    #[pin]
    state: State<S, R, Req, Result<R::Response, R::Error>>,
    note: N,
}

/// And how the bucket stands then.
type Decision = (Result<Taken, Exhausted>, Standing);

#[pin_project(project = StateProj)]
enum State<S, R, Req, T>
where
    S: Service<Req>,
{
    /// -> `Called` or `Refused` when it is decided.
    Asking {
        // The connection's own future is boxed and has no name.
        decision: Pin<Box<dyn Future<Output = Decision> + Send>>,
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
        Self {
            limiter,
            key,
            missing: OnMissingKey::default(),
            refuse: Fail,
            manner: (),
        }
    }
}

impl<F, K: ?Sized, C, R, A> RedisLayer<F, K, C, R, A> {
    /// What becomes of a request without a key. Default: [`OnMissingKey::Shared`], over all machines.
    #[must_use]
    pub fn on_missing_key(self, choice: OnMissingKey) -> Self {
        Self {
            missing: choice,
            ..self
        }
    }

    /// How many tokens a request costs, as [`BucketLayer::cost`](crate::BucketLayer::cost) has it.
    #[must_use]
    pub fn cost<T>(self, tokens: T) -> RedisLayer<F, K, C, R, Tuned<A, Cost<T>>> {
        self.map(|manner| Tuned::new(manner, Cost::new(tokens)))
    }

    /// Which quota a request is held to, as [`BucketLayer::plan`](crate::BucketLayer::plan) has it. All machines must say the
    /// same of a key.
    #[must_use]
    pub fn plan<T>(self, quota: T) -> RedisLayer<F, K, C, R, Tuned<A, Plan<T>>> {
        self.map(|manner| Tuned::new(manner, Plan::new(quota)))
    }

    /// Refuses nothing, and only counts what would have been refused. It still waits for Redis as long as the
    /// [timeout](RedisLimiter::timeout) says.
    #[must_use]
    pub fn shadow(self) -> RedisLayer<F, K, C, R, Tuned<A, Shadow>> {
        self.map(|manner| Tuned::new(manner, Shadow))
    }

    /// Tells how the limit stands in the `RateLimit` and `RateLimit-Policy` fields, as
    /// [`BucketLayer::fields`](crate::BucketLayer::fields) does: over all machines, or of this machine's own bucket where
    /// that has decided.
    #[must_use]
    pub fn fields(self, name: PolicyName) -> RedisLayer<F, K, C, R, Told<A>> {
        self.map(|manner| Told::new(manner, name))
    }

    /// Answers refused requests, as [`BucketLayer::respond`](crate::BucketLayer::respond) does.
    #[must_use]
    pub fn respond(self) -> RedisLayer<F, K, C, Auto, A> {
        self.respond_with(Auto::new())
    }

    /// Tells refusals in another way.
    #[must_use]
    pub fn respond_with<T>(self, refuse: T) -> RedisLayer<F, K, C, T, A> {
        let Self {
            limiter,
            key,
            missing,
            manner,
            ..
        } = self;
        RedisLayer {
            limiter,
            key,
            missing,
            refuse,
            manner,
        }
    }

    /// The limiter that is drawn from.
    pub const fn limiter(&self) -> &RedisLimiter<K, C> {
        &self.limiter
    }

    fn map<T>(self, change: impl FnOnce(A) -> T) -> RedisLayer<F, K, C, R, T> {
        let Self {
            limiter,
            key,
            missing,
            refuse,
            manner,
        } = self;
        RedisLayer {
            limiter,
            key,
            missing,
            refuse,
            manner: change(manner),
        }
    }

    fn first<Req>(&self, request: &Req, terms: Terms) -> (Drawer, First)
    where
        F: Key<Req, Key = K>,
        K: Hash + RedisKey + Sized,
    {
        if let Some(key) = self.key.key(request) {
            let drawer = Drawer::Key(self.limiter.local.fingerprint(&key));
            return (
                drawer,
                self.limiter.first(drawer, terms, |name| key.write_to(name)),
            );
        }
        self.limiter.local.note_keyless();
        let first = match self.missing {
            OnMissingKey::Shared => self.limiter.first(Drawer::Keyless, terms, |name| {
                name.extend_from_slice(KEYLESS)
            }),
            OnMissingKey::Allow => First::Decided(Ok(Taken::NOTHING)),
            OnMissingKey::Deny => First::Decided(terms.keyless()),
        };
        (Drawer::Keyless, first)
    }
}

impl<F: Clone, K: ?Sized, C: Clone, R: Clone, A: Clone> Clone for RedisLayer<F, K, C, R, A> {
    fn clone(&self) -> Self {
        let (limiter, key, refuse) = (self.limiter.clone(), self.key.clone(), self.refuse.clone());
        Self {
            limiter,
            key,
            missing: self.missing,
            refuse,
            manner: self.manner.clone(),
        }
    }
}

impl<F, K: ?Sized, C, R, A> fmt::Debug for RedisLayer<F, K, C, R, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLayer")
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}

impl<S, F: Clone, K: ?Sized, C: Clone, R: Clone, A: Clone> Layer<S> for RedisLayer<F, K, C, R, A> {
    type Service = RedisBucket<S, F, K, C, R, A>;

    fn layer(&self, inner: S) -> Self::Service {
        RedisBucket {
            inner,
            layer: self.clone(),
        }
    }
}

// === impl RedisBucket ===

impl<S, F, K, C, R, A, Req> Service<Req> for RedisBucket<S, F, K, C, R, A>
where
    S: Service<Req> + Clone,
    F: Key<Req, Key = K>,
    K: Hash + RedisKey + 'static,
    C: ConnectionLike + Clone + Send + Sync + 'static,
    R: Refuse<Req, S::Response, S::Error> + Clone,
    A: Manner<Req>,
    A::Note: Tell<R::Response>,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = RedisFuture<S, R, Req, A::Note>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(R::pass(Err(error)).map(drop)),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (limiter, refuse, note) = (
            &self.layer.limiter,
            &self.layer.refuse,
            self.layer.manner.note(),
        );
        let terms = self.layer.manner.terms(&request, Terms::USUAL);
        match self.layer.first(&request, terms) {
            (drawer, First::Decided(decision)) => {
                let (decision, standing) = decide(limiter, drawer, terms, decision);
                let state = match decision {
                    Ok(_) => State::Called(self.inner.call(request)),
                    Err(exhausted) => {
                        State::Refused(Some(refuse.refuse(refuse.context(&request), exhausted)))
                    }
                };
                RedisFuture {
                    state,
                    note: note.at(standing),
                }
            }
            (drawer, First::Ask(question)) => {
                let limiter = limiter.clone();
                let decision =
                    async move { decide(&limiter, drawer, terms, limiter.ask(&question).await) };
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                let held = Some((ready, refuse.clone(), request));
                RedisFuture {
                    state: State::Asking {
                        decision: Box::pin(decision),
                        held,
                    },
                    note,
                }
            }
        }
    }
}

/// Counts a decision.
fn decide<K: ?Sized, C>(
    limiter: &RedisLimiter<K, C>,
    drawer: Drawer,
    terms: Terms,
    decision: Result<Taken, Denial>,
) -> Decision {
    let standing = Standing::new(decision, || terms.quota_or(limiter.local.quota()));
    (limiter.count(drawer, decision), standing)
}

impl<S: Clone, F: Clone, K: ?Sized, C: Clone, R: Clone, A: Clone> Clone
    for RedisBucket<S, F, K, C, R, A>
{
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S: fmt::Debug, F, K: ?Sized, C, R, A> fmt::Debug for RedisBucket<S, F, K, C, R, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBucket")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}

// === impl RedisFuture ===

impl<S, R, Req, N> Future for RedisFuture<S, R, Req, N>
where
    S: Service<Req>,
    R: Refuse<Req, S::Response, S::Error>,
    N: Note + Tell<R::Response>,
{
    type Output = Result<R::Response, R::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut answer = loop {
            match this.state.as_mut().project() {
                StateProj::Asking { decision, held } => {
                    let (decision, standing) = ready!(decision.as_mut().poll(cx));
                    *this.note = this.note.at(standing);
                    let (mut service, refuse, request) =
                        held.take().expect("held until it is decided");
                    this.state.set(match decision {
                        Ok(_) => State::Called(service.call(request)),
                        Err(exhausted) => {
                            State::Refused(Some(refuse.refuse(refuse.context(&request), exhausted)))
                        }
                    });
                }
                StateProj::Called(inner) => break R::pass(ready!(inner.poll(cx))),
                StateProj::Refused(answer) => {
                    break answer.take().expect("polled after it was ready");
                }
            }
        };
        if let Ok(response) = &mut answer {
            this.note.tell(response);
        }
        Poll::Ready(answer)
    }
}

impl<S, R, Req, N> fmt::Debug for RedisFuture<S, R, Req, N>
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
        f.debug_struct("RedisFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

/// As no key is written: no header has a line feed, and no text the byte behind it.
const KEYLESS: &[u8] = b"\n\xffkeyless";
