use std::{
    hash::Hash,
    mem,
    task::{Context, Poll, ready},
};

use redis::aio::ConnectionLike;
use tower_bucket::Key;
use tower_layer::Layer;
use tower_outcome::refuse::Refuse;
use tower_service::Service;

use crate::{
    RedisKey, RedisLayer, ResponseFuture,
    limiter::First,
    modifiers::{CostFn, DecorateResponse, Modifiers, QuotaFn},
};

/// Decides about a request, in Redis if need be, before it calls the inner service. Made by [`RedisLayer`].
///
/// Readiness is the inner service's; while Redis is asked, the request owns the service that was ready.
#[derive(Clone, Debug)]
pub struct RedisService<S, L> {
    pub(crate) inner: S,
    pub(crate) layer: L,
}

// === impl RedisService ===

impl<S, F: Clone, K: ?Sized, C: Clone, R: Clone, M: Clone> Layer<S> for RedisLayer<F, K, C, R, M> {
    type Service = RedisService<S, Self>;

    fn layer(&self, inner: S) -> Self::Service {
        RedisService {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S, F, K, C, R, T, Q, H, Req> Service<Req>
    for RedisService<S, RedisLayer<F, K, C, R, Modifiers<T, Q, H>>>
where
    S: Service<Req> + Clone,
    F: Key<Req, Key = K>,
    K: Hash + RedisKey + 'static,
    C: ConnectionLike + Clone + Send + Sync + 'static,
    R: Refuse<Req, S::Response, S::Error> + Clone,
    T: CostFn<Req>,
    Q: QuotaFn<Req>,
    H: DecorateResponse<R::Response> + Clone,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = ResponseFuture<S, R, Req, H>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(R::pass(Err(error)).map(drop)),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (limiter, headers) = (&self.layer.limiter, self.layer.modifiers.headers.clone());
        match self.layer.first(&request) {
            (bucket, First::Decided(outcome)) => {
                limiter.count(bucket, &outcome);
                ResponseFuture::decided(
                    &mut self.inner,
                    &self.layer.refuse,
                    request,
                    outcome,
                    headers,
                )
            }
            (bucket, First::Ask(question)) => {
                let limiter = limiter.clone();
                let decision = async move {
                    let outcome = limiter.ask(&question).await;
                    limiter.count(bucket, &outcome);
                    outcome
                };
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                ResponseFuture::asking(
                    Box::pin(decision),
                    (ready, self.layer.refuse.clone(), request),
                    headers,
                )
            }
        }
    }
}
