//! A circuit for each endpoint of a set, in Tower's own balancer.

use std::{convert::Infallible, pin::pin};

use futures_util::{StreamExt, stream};
use tower::{
    Service, ServiceExt,
    balance::p2c::Balance,
    discover::Change,
    load::{CompleteOnResponse, Constant, Load, PendingRequests},
    service_fn,
};
use tower_circuit::{CircuitGate, CircuitService, KeyedCircuitService, State};
use tower_outcome::BoxError;

use crate::common::*;

/// Endpoint 0 is down.
async fn answer(endpoint: usize) -> Result<usize, BoxError> {
    if endpoint == 0 {
        Err("down".into())
    } else {
        Ok(endpoint)
    }
}

/// A service that rejects at once looks idle, so a balancer by load must not accept its type.
#[test]
fn only_the_gate_has_a_load() {
    struct Of<S>(std::marker::PhantomData<S>);
    trait WithoutLoad {
        const HAS_LOAD: bool = false;
    }
    impl<S> WithoutLoad for Of<S> {}
    // An inherent associated constant takes precedence over that of a trait.
    impl<S: Load> Of<S> {
        const HAS_LOAD: bool = true;
    }
    type Inner = Constant<testkit::Probe, usize>;
    type Keyed = KeyedCircuitService<Inner, String, fn(&String) -> String>;
    const { assert!(Of::<Inner>::HAS_LOAD && Of::<CircuitGate<Inner>>::HAS_LOAD) };
    const { assert!(!Of::<CircuitService<Inner>>::HAS_LOAD && !Of::<Keyed>::HAS_LOAD) };
}

#[tokio::test(start_paused = true)]
async fn a_balancer_over_discovered_endpoints_leaves_out_the_one_that_is_down() {
    let endpoints = (0..3).map(|endpoint| {
        let service = service_fn(move |()| answer(endpoint));
        Ok::<_, Infallible>(Change::Insert(
            endpoint,
            PendingRequests::new(service, CompleteOnResponse::default()),
        ))
    });
    let circuits = trips_at(3).per_endpoint();
    let mut balance: Balance<_, ()> =
        Balance::new(Box::pin(circuits.discover(stream::iter(endpoints))));
    let mut failed = 0;
    for _ in 0..200 {
        failed += usize::from(balance.ready().await.unwrap().call(()).await.is_err());
    }
    assert_eq!(failed, 3, "only until its circuit opened");
    assert_eq!(balance.len(), 3, "it was not removed");
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_has_a_circuit_named_after_its_key() {
    let endpoint = |load: usize| Constant::new(service_fn(move |()| answer(load)), load);
    let changes = [
        Change::Insert("a", endpoint(7)),
        Change::Insert("b", endpoint(8)),
        Change::Remove("a"),
    ];
    let circuits = trips_at(1).per_endpoint();
    let gates: Vec<_> = pin!(circuits.discover(stream::iter(changes.map(Ok::<_, Infallible>))))
        .collect()
        .await;
    let [
        Ok(Change::Insert("a", a)),
        Ok(Change::Insert("b", b)),
        Ok(Change::Remove("a")),
    ] = &gates[..]
    else {
        panic!("{}", gates.len())
    };
    trip(a.circuit());
    assert_eq!(
        (a.circuit().name(), b.circuit().name(), b.circuit().state()),
        (Some("a"), Some("b"), State::Closed)
    );
    assert_eq!((a.load(), b.load()), (7, 8));
}
