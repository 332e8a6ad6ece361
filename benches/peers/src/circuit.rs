//! Circuit breakers, closed.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use recloser::{AnyError, AsyncRecloser, Recloser, RecloserFuture};
use tower::Layer;
use tower_resilience_circuitbreaker::CircuitBreakerLayer;
use tower_service::Service;

use crate::drive::{self, Bare, Case};

pub(crate) const CASES: &[Case] = &[
    Case { name: "recloser", job: JOB, bare: "peers-bare", run: recloser },
    Case { name: "failsafe", job: JOB, bare: "peers-bare", run: failsafe },
    Case { name: "tower-resilience", job: JOB, bare: "peers-bare", run: resilience },
];

const JOB: &str = "circuit";

fn recloser(calls: u32) {
    drive::calls(calls, Reclosing { inner: Bare, recloser: Recloser::custom().build().into() });
}

fn failsafe(calls: u32) {
    drive::calls(calls, Failsafe { inner: Bare, breaker: failsafe::Config::new().build() });
}

fn resilience(calls: u32) {
    let layer = CircuitBreakerLayer::standard().build().expect("the preset");
    drive::calls(calls, layer.layer(Bare));
}

struct Reclosing {
    inner: Bare,
    recloser: AsyncRecloser,
}

struct Failsafe<B> {
    inner: Bare,
    breaker: B,
}

impl Service<u32> for Reclosing {
    type Response = u32;
    type Error = recloser::Error<Infallible>;
    type Future = RecloserFuture<<Bare as Service<u32>>::Future, AnyError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        self.recloser.call(self.inner.call(request))
    }
}

impl<B: failsafe::futures::CircuitBreaker> Service<u32> for Failsafe<B> {
    type Response = u32;
    type Error = failsafe::Error<Infallible>;
    type Future = failsafe::futures::ResponseFuture<
        <Bare as Service<u32>>::Future,
        B::FailurePolicy,
        B::Instrument,
        fn(&Infallible) -> bool,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        self.breaker.call_with(|_| true, self.inner.call(request))
    }
}
