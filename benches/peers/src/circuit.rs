//! Circuit breakers: closed, open, and with many threads in them.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use failsafe::{backoff, failure_policy};
use recloser::{AnyError, AsyncRecloser, Recloser, RecloserFuture};
use tower::Layer;
use tower_resilience_circuitbreaker::CircuitBreakerLayer;
use tower_service::Service;

use crate::drive::{self, Bare, BareWaits, Case, Contended, EitherWay};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "recloser",
        job: JOB,
        bare: "peers-bare",
        run: |calls| drive::calls(calls, recloser(Bare)),
    },
    Case {
        name: "failsafe",
        job: JOB,
        bare: "peers-bare",
        run: |calls| drive::calls(calls, failsafe(Bare)),
    },
    Case {
        name: "tower-resilience",
        job: JOB,
        bare: "peers-bare",
        run: |calls| drive::calls(calls, resilience(Bare)),
    },
    Case {
        name: "recloser-waits",
        job: JOB,
        bare: "peers-bare-waits",
        run: |calls| drive::waiting_calls(calls, recloser(BareWaits)),
    },
    Case {
        name: "failsafe-waits",
        job: JOB,
        bare: "peers-bare-waits",
        run: |calls| drive::waiting_calls(calls, failsafe(BareWaits)),
    },
    Case {
        name: "tower-resilience-waits",
        job: JOB,
        bare: "peers-bare-waits",
        run: |calls| drive::waiting_calls(calls, resilience(BareWaits)),
    },
    Case {
        name: "recloser-open",
        job: OPEN,
        bare: "peers-bare",
        run: |calls| drive::calls(calls, open_recloser()),
    },
    Case {
        name: "failsafe-open",
        job: OPEN,
        bare: "peers-bare",
        run: |calls| drive::calls(calls, open_failsafe()),
    },
    Case {
        name: "tower-resilience-open",
        job: OPEN,
        bare: "peers-bare",
        run: |calls| drive::calls(calls, open_resilience()),
    },
];

pub(crate) const CONTENDED: &[Contended] = &[
    Contended {
        name: "recloser",
        run: |calls, threads| drive::contend(calls, threads, recloser(Bare)),
    },
    Contended {
        name: "failsafe",
        run: |calls, threads| drive::contend(calls, threads, failsafe(Bare)),
    },
    Contended {
        name: "tower-resilience",
        run: |calls, threads| drive::contend(calls, threads, resilience(Bare)),
    },
    Contended {
        name: "recloser-open",
        run: |calls, threads| drive::contend(calls, threads, open_recloser()),
    },
    Contended {
        name: "failsafe-open",
        run: |calls, threads| drive::contend(calls, threads, open_failsafe()),
    },
    // tower-resilience's open circuit falls back on a timer of Tokio's when two threads meet in it.
];

const JOB: &str = "circuit";
const OPEN: &str = "circuit, open";

/// So long that nobody probes.
const A_DAY: Duration = Duration::from_secs(86_400);

fn recloser<S>(inner: S) -> Reclosing<S> {
    Reclosing {
        inner,
        recloser: Recloser::custom().build().into(),
    }
}

fn open_recloser() -> EitherWay<Reclosing<Bare>> {
    let recloser: AsyncRecloser = Recloser::custom()
        .closed_len(1)
        .open_wait(A_DAY)
        .build()
        .into();
    let fails = || now(recloser.call(ready(Err::<(), _>("down"))));
    while !matches!(fails(), Err(recloser::Error::Rejected)) {}
    EitherWay(Reclosing {
        inner: Bare,
        recloser,
    })
}

fn failsafe<S>(inner: S) -> Failsafe<S, impl failsafe::futures::CircuitBreaker + Clone + Send> {
    Failsafe {
        inner,
        breaker: failsafe::Config::new().build(),
    }
}

fn open_failsafe()
-> EitherWay<Failsafe<Bare, impl failsafe::futures::CircuitBreaker + Clone + Send>> {
    let policy = failure_policy::consecutive_failures(1, backoff::constant(A_DAY));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    let fails = || {
        now(failsafe::futures::CircuitBreaker::call(
            &breaker,
            ready(Err::<(), _>("down")),
        ))
    };
    while !matches!(fails(), Err(failsafe::Error::Rejected)) {}
    EitherWay(Failsafe {
        inner: Bare,
        breaker,
    })
}

fn resilience<S>(
    inner: S,
) -> impl Service<u32, Response = u32, Error: std::fmt::Debug> + Clone + Send
where
    S: Service<u32, Response = u32, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    CircuitBreakerLayer::standard()
        .build()
        .expect("the preset")
        .layer(inner)
}

fn open_resilience() -> impl Service<u32, Error = Infallible> + Clone + Send {
    let (layer, handle) = CircuitBreakerLayer::standard()
        .wait_duration_in_open(A_DAY)
        .build_with_handle()
        .expect("the preset");
    now(handle.force_open());
    EitherWay(layer.layer(Bare))
}

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nobody else is there to wait for"),
    }
}

#[derive(Clone)]
struct Reclosing<S> {
    inner: S,
    recloser: AsyncRecloser,
}

#[derive(Clone)]
struct Failsafe<S, B> {
    inner: S,
    breaker: B,
}

impl<S> Service<u32> for Reclosing<S>
where
    S: Service<
            u32,
            Response = u32,
            Error = Infallible,
            Future: Future<Output = Result<u32, Infallible>>,
        >,
{
    type Response = u32;
    type Error = recloser::Error<Infallible>;
    type Future = RecloserFuture<S::Future, AnyError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        self.recloser.call(self.inner.call(request))
    }
}

impl<S, B> Service<u32> for Failsafe<S, B>
where
    S: Service<u32, Response = u32, Error = Infallible>,
    B: failsafe::futures::CircuitBreaker,
{
    type Response = u32;
    type Error = failsafe::Error<Infallible>;
    type Future = failsafe::futures::ResponseFuture<
        S::Future,
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
