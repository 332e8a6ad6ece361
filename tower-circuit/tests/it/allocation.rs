//! The closed path allocates nothing, and a circuit takes the documented memory.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use http_body::{Body, Frame};
use tower::{BoxError, Layer, Service, service_fn};
use tower_circuit::{
    Circuit, CircuitBuilder, CircuitLayer, EjectionBudget, KeyedCircuitLayer, KeyedCircuits, Ratio,
    State, Trip, classify,
};
use tower_outcome::{Outcome, Settle};

use crate::common::*;

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

/// The waker of the test is allocated, so the allocations of the bare service are subtracted.
fn bare() -> u64 {
    allocations(service_fn(ok))
}

#[test]
fn a_closed_circuit_allocates_nothing_a_call() {
    // With a window and consecutive failures, as by default.
    let circuit = Circuit::new();
    assert_eq!(
        allocations(CircuitLayer::new(&circuit).layer(service_fn(ok))),
        bare()
    );
    assert_eq!(
        allocations(CircuitLayer::new(&circuit).respond().layer(service_fn(ok))),
        bare()
    );
    assert_eq!(
        allocations(CircuitLayer::new(&circuit).gate().layer(service_fn(ok))),
        bare()
    );
    assert_eq!(
        (circuit.state(), circuit.snapshot().totals.succeeded),
        (State::Closed, 303)
    );
}

/// A body of two frames.
fn streamed(_: Request<String>) -> std::future::Ready<Result<Response<Frames>, BoxError>> {
    std::future::ready(Ok(Response::new(Frames(2))))
}

#[derive(Default)]
struct Frames(u8);

impl Body for Frames {
    type Data = &'static [u8];
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<&'static [u8]>, Infallible>>> {
        self.0 = self.0.saturating_sub(1);
        Poll::Ready((self.0 > 0).then(|| Ok(Frame::data(&b"x"[..]))))
    }
}

/// As [`allocations`], with a body that is read to its end.
fn allocations_to_the_end<S, B>(mut service: S) -> u64
where
    S: Service<Request<String>, Response = Response<B>>,
    S::Error: std::fmt::Debug,
    B: Body,
{
    let mut call = || {
        assert!(is_ready(&mut service));
        let response = finish(service.call(request())).unwrap();
        let mut body = pin!(response.into_body());
        while let Poll::Ready(Some(_)) = body
            .as_mut()
            .poll_frame(&mut Context::from_waker(Waker::noop()))
        {}
    };
    call();
    allocation_counter::measure(|| (0..100).for_each(|_| call())).count_total
}

#[test]
fn a_circuit_that_classifies_the_end_of_a_body_allocates_nothing() {
    let bare = allocations_to_the_end(service_fn(streamed));
    let circuit = Circuit::new();
    let layer = || CircuitLayer::new(&circuit).classify(classify::Auto::new());
    for allocations in [
        allocations_to_the_end(layer().layer(service_fn(streamed))),
        allocations_to_the_end(layer().gate().layer(service_fn(streamed))),
    ] {
        assert_eq!(allocations, bare);
    }
    assert_eq!(circuit.snapshot().totals.succeeded, 202);
}

#[test]
fn a_gate_with_a_budget_allocates_nothing() {
    let budget = EjectionBudget::new();
    budget.set_members(3);
    let endpoints = Circuit::builder().ejection_budget(&budget).per_endpoint();
    let gate = endpoints.gate("a", service_fn(ok));
    assert_eq!(allocations(gate), bare());
}

#[test]
fn a_keyed_layer_that_responds_allocates_nothing() {
    let circuits = KeyedCircuits::<usize>::new(Circuit::builder());
    let by_length = |request: &Request<String>| request.body().len();
    let layer = KeyedCircuitLayer::new(&circuits, by_length).respond();
    assert_eq!(allocations(layer.layer(service_fn(ok))), bare());
}

#[test]
fn a_circuit_with_all_conditions_allocates_nothing() {
    let trip = Trip::default().or(Trip::slow_ratio(SECOND, Ratio::HALF));
    let circuit = Circuit::builder().trip(trip).build();
    assert_eq!(
        allocations(CircuitLayer::new(&circuit).layer(service_fn(ok))),
        bare()
    );
    assert_eq!(circuit.snapshot().window.succeeded, 101);
}

#[test]
fn finding_a_known_key_allocates_nothing() {
    let circuits = KeyedCircuits::<usize>::new(Circuit::builder());
    let by_length = |request: &Request<String>| request.body().len();
    assert_eq!(
        allocations(KeyedCircuitLayer::new(&circuits, by_length).layer(service_fn(ok))),
        bare()
    );
}

#[test]
fn a_failure_and_a_rejection_allocate_nothing() {
    let circuit = Circuit::builder().trip(Trip::never()).build();
    let failures = allocation_counter::measure(|| {
        (0..100).for_each(|_| circuit.admit().unwrap().settle(Outcome::FAILURE));
    });
    assert_eq!(failures.count_total, 0);
    circuit.force_open();
    let refusals =
        allocation_counter::measure(|| assert!((0..100).all(|_| circuit.admit().is_err())));
    assert_eq!(refusals.count_total, 0);
}

#[test]
fn a_clone_allocates_nothing() {
    let service = CircuitLayer::new(Circuit::new())
        .respond()
        .layer(service_fn(ok));
    let cloned = allocation_counter::measure(|| drop(service.clone()));
    assert_eq!(cloned.count_total, 0);
}

/// The memory of a circuit when new, and after 100,000 calls of every kind.
fn memory(builder: CircuitBuilder) -> (i64, i64) {
    let mut circuit = None;
    let new = allocation_counter::measure(|| circuit = Some(builder.build())).bytes_current;
    let circuit = circuit.unwrap();
    let grown = allocation_counter::measure(|| {
        for index in 0..100_000 {
            let outcome = [
                Outcome::SUCCESS,
                Outcome::FAILURE,
                Outcome::THROTTLED,
                Outcome::IGNORE,
            ][index % 4];
            circuit
                .admit()
                .into_iter()
                .for_each(|permit| permit.settle(outcome));
            if index % 1_000 == 0 {
                circuit.force_open();
                circuit.automatic();
            }
        }
    });
    (new, new + grown.bytes_current)
}

#[test]
fn a_circuit_takes_four_kibibytes_at_any_load() {
    let (new, later) = memory(Circuit::builder());
    println!("a circuit: {new} bytes, after 100,000 calls {later}");
    assert!(new <= 4_096 && later <= 4_096, "{new} {later}");
}

#[test]
fn gates_that_have_waited_leave_no_memory_behind() {
    let circuit = Circuit::new();
    let left = allocation_counter::measure(|| {
        circuit.force_open();
        let gate = CircuitLayer::new(&circuit).gate().layer(service_fn(ok));
        let mut gates = vec![gate; 1_000];
        assert!(!gates.iter_mut().any(is_ready));
        circuit.reset();
    });
    assert_eq!(left.bytes_current, 0);
}

#[test]
fn a_key_takes_two_kibibytes() {
    let keys = 1_000;
    let circuits = KeyedCircuits::<usize>::new(Circuit::builder()).capacity(2 * keys);
    let all = allocation_counter::measure(|| (0..keys).for_each(|key| drop(circuits.get(&key))))
        .bytes_current;
    println!("a key: {} bytes", all as usize / keys);
    assert!(all as usize / keys <= 2_048, "{all}");
    let more =
        allocation_counter::measure(|| (0..10 * keys).for_each(|key| drop(circuits.get(&key))))
            .bytes_current;
    assert!(
        (all + more) as usize <= 2 * keys * 2_048 && circuits.snapshot().keys <= 2 * keys,
        "{more}"
    );
}
