//! The closed path allocates nothing.

mod common;

use std::convert::Infallible;

use common::*;
use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_circuit::{Circuit, CircuitLayer, State};

fn ok(_: Request<String>) -> std::future::Ready<Result<Response<String>, Infallible>> {
    std::future::ready(Ok(Response::new(String::new())))
}

/// Allocations of 100 calls, after a first one that sets up the thread.
fn allocations<S: Service<Request<String>>>(mut service: S) -> u64 {
    let mut call = || {
        assert!(is_ready(&mut service));
        assert!(finish(service.call(request())).is_ok());
    };
    call();
    allocation_counter::measure(|| (0..100).for_each(|_| call())).count_total
}

#[test]
fn a_closed_circuit_allocates_nothing_a_call() {
    let circuit = Circuit::new();
    // The test's own waker is allocated: what the bare service costs is taken off.
    let bare = allocations(service_fn(ok));
    assert_eq!(allocations(CircuitLayer::new(&circuit).layer(service_fn(ok))), bare);
    assert_eq!(allocations(CircuitLayer::new(&circuit).respond().layer(service_fn(ok))), bare);
    assert_eq!(allocations(CircuitLayer::new(&circuit).gate().layer(service_fn(ok))), bare);
    assert_eq!((circuit.state(), circuit.snapshot().totals.succeeded), (State::Closed, 303));
}

#[test]
fn a_clone_allocates_nothing() {
    let service = CircuitLayer::new(Circuit::new()).respond().layer(service_fn(ok));
    let cloned = allocation_counter::measure(|| drop(service.clone()));
    assert_eq!(cloned.count_total, 0);
}
