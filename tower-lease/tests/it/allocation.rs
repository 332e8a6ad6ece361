//! A request that is let in allocates nothing, but for the token where a handler wants it.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    num::NonZeroU64,
    pin::pin,
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_lease::{
    FencingToken, InFlight, LeaseKey, LeaseLayer, PropagateLayer, TokenIn,
    fence::{Fence, FenceLayer, HighWaterCache, HighWaterMark, MemoryMark},
};
use tower_outcome::BoxError;

use crate::common::{held, key};

fn ok(_: Request<String>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

fn request() -> Request<String> {
    // A token of the lease, in a map of headers that has room for one.
    let mut request = Request::new(String::new());
    request
        .headers_mut()
        .insert("x-lease-token", "svc/echo/0;1".parse().unwrap());
    request
}

/// Allocations of 100 calls, after a first one.
fn allocations<S: Service<Request<String>>>(mut service: S) -> u64 {
    let mut context = Context::from_waker(Waker::noop());
    let mut call = |request| {
        assert!(matches!(
            service.poll_ready(&mut context),
            Poll::Ready(Ok(()))
        ));
        assert!(matches!(
            pin!(service.call(request)).poll(&mut context),
            Poll::Ready(Ok(_))
        ));
    };
    call(request());
    let mut requests: Vec<_> = (0..100).map(|_| request()).collect();
    allocation_counter::measure(|| requests.drain(..).for_each(call)).count_total
}

#[tokio::test(start_paused = true)]
async fn an_admitted_request_allocates_nothing() {
    let (_store, (lease, _keeper)) = held().await;
    let layer = LeaseLayer::new(&lease);
    assert_eq!(allocations(service_fn(ok)), 0);
    assert_eq!(allocations(layer.clone().layer(service_fn(ok))), 0);
    assert_eq!(allocations(layer.clone().gate().layer(service_fn(ok))), 0);
    let within = InFlight::FinishWithin(crate::common::ms(100));
    assert_eq!(
        allocations(layer.clone().in_flight(within).layer(service_fn(ok))),
        0
    );
    let http = layer.clone().http().token_in(TokenIn::Nowhere);
    assert_eq!(allocations(http.clone().layer(service_fn(ok))), 0);
    assert_eq!(allocations(http.clone().gate().layer(service_fn(ok))), 0);
    assert_eq!(
        allocations(
            layer
                .respond()
                .token_in(TokenIn::Nowhere)
                .deadlines(crate::common::ms(10))
                .layer(service_fn(ok))
        ),
        0
    );
}

/// The figures in the docs of `TokenIn`, `FenceLayer` and `PropagateLayer`.
#[tokio::test(start_paused = true)]
async fn a_token_allocates_what_the_docs_state() {
    let (_store, (lease, _keeper)) = held().await;
    let layer = LeaseLayer::new(&lease).http();
    assert_eq!(allocations(layer.clone().layer(service_fn(ok))), 300);
    assert_eq!(
        allocations(layer.token_in(TokenIn::Header).layer(service_fn(ok))),
        100
    );
    assert_eq!(
        allocations(PropagateLayer::new(&lease).layer(service_fn(ok))),
        100
    );
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    // The first call asks the mark.
    let layer = FenceLayer::new(&fence);
    assert!(tokio_now(fence.admit(&lease.token().unwrap())).is_ok());
    assert_eq!(allocations(layer.layer(service_fn(ok))), 300);
}

/// A mark that remembers nothing, so that what is measured is the fence's.
struct Echo(HighWaterCache);

impl HighWaterMark for Echo {
    fn cache(&self) -> &HighWaterCache {
        &self.0
    }

    async fn raise(&self, token: &FencingToken) -> Result<Option<NonZeroU64>, BoxError> {
        Ok(Some(token.epoch()))
    }
}

/// The figure in the docs of `FenceBuilder::capacity`.
#[tokio::test(start_paused = true)]
async fn a_key_that_a_fence_remembers_takes_some_220_bytes() {
    let tokens: Vec<_> = (0..1_000)
        .map(|index| format!("shard/{index}").parse::<LeaseKey>().unwrap())
        .map(|key| FencingToken::new(key, 7.try_into().unwrap()))
        .collect();
    let fence = Fence::of_prefix("shard/", Echo(HighWaterCache::new())).build();
    let grown = allocation_counter::measure(|| {
        tokens
            .iter()
            .for_each(|token| drop(tokio_now(fence.admit(token))))
    });
    assert_eq!(fence.counts().keys, 1_000);
    let bytes = grown.bytes_current / 1_000;
    assert!((100..=300).contains(&bytes), "{bytes} bytes a key");
}

#[tokio::test(start_paused = true)]
async fn a_clone_allocates_nothing() {
    let (_store, (lease, _keeper)) = held().await;
    let service = LeaseLayer::new(&lease).respond().layer(service_fn(ok));
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    let fenced = FenceLayer::new(&fence).respond().layer(service_fn(ok));
    let cloned = allocation_counter::measure(|| drop((service.clone(), fenced.clone())));
    assert_eq!(cloned.count_total, 0);
}

fn tokio_now<F: Future>(future: F) -> F::Output {
    match pin!(tokio::task::unconstrained(future)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a memory answers at once"),
    }
}
