//! A circuit for each key, in front of a service.

use http::Request;
use testkit::{Answer, Probe, ProbeHandle};
use tower::{Layer, Service, ServiceExt};
use tower_circuit::{
    Circuit, KeyedCircuitLayer, KeyedCircuitService, KeyedCircuits, OnFull, Open, State, classify,
    refuse,
};

use crate::common::*;

type ByPath = fn(&Request<String>) -> String;
type Service_ = KeyedCircuitService<Probe, String, ByPath, classify::Auto, refuse::Auto>;

fn path(request: &Request<String>) -> String {
    request.uri().path().to_owned()
}

fn circuits() -> KeyedCircuits<String> {
    KeyedCircuits::new(trips_at(1))
}

fn layer(circuits: &KeyedCircuits<String>) -> KeyedCircuitLayer<String, ByPath> {
    KeyedCircuitLayer::new(circuits, path as ByPath)
}

fn respond(circuits: &KeyedCircuits<String>) -> (Service_, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (layer(circuits).respond().layer(probe), handle)
}

fn to(path: &str) -> Request<String> {
    Request::get(path).body(String::new()).unwrap()
}

#[test]
fn a_keyed_layer_keeps_the_contract() {
    // One that does not open at the first failure: a panic is one.
    let circuits = || KeyedCircuits::new(Circuit::builder());
    testkit::contract::check(|probe| layer(&circuits()).layer(probe));
    testkit::contract::check(|probe| layer(&circuits()).respond().layer(probe));
}

#[tokio::test(start_paused = true)]
async fn a_route_that_fails_does_not_affect_another() {
    let circuits = circuits();
    let (mut service, probe) = respond(&circuits);
    probe.answer(Answer::Status(500));
    assert_eq!(
        finish(service.ready().await.unwrap().call(to("/a")))
            .unwrap()
            .status(),
        500
    );
    let refused = finish(service.ready().await.unwrap().call(to("/a"))).unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"10".parse().unwrap())
    );
    assert_eq!(
        finish(service.ready().await.unwrap().call(to("/b")))
            .unwrap()
            .status(),
        200
    );
    assert_eq!(probe.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_uses_up_readiness_but_not_that_of_the_inner_service() {
    let circuits = circuits();
    let (mut service, probe) = respond(&circuits);
    circuits.get(&"/a".into()).force_open();
    service.ready().await.unwrap();
    assert_eq!(finish(service.call(to("/a"))).unwrap().status(), 503);
    assert_eq!(probe.calls(), 0);
    assert_eq!(
        finish(service.ready().await.unwrap().call(to("/b")))
            .unwrap()
            .status(),
        200
    );
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "without a successful `poll_ready`")]
async fn a_call_without_readiness_panics() {
    let (mut service, _probe) = respond(&circuits());
    drop(service.call(to("/a")));
}

#[tokio::test(start_paused = true)]
async fn a_probe_closes_its_key_again() {
    let circuits = circuits();
    let (mut service, probe) = respond(&circuits);
    probe.answer(Answer::Status(500));
    finish(service.ready().await.unwrap().call(to("/a"))).unwrap();
    tokio::time::advance(COOLDOWN).await;
    assert_eq!(
        finish(service.ready().await.unwrap().call(to("/a")))
            .unwrap()
            .status(),
        200
    );
    assert_eq!(circuits.get(&"/a".into()).state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_does_not_replace_known_ones() {
    let circuits = circuits().capacity(2).on_full(OnFull::Reject);
    let (probe, handle) = Probe::<String>::new();
    let mut service = layer(&circuits).layer(probe);
    for path in ["/a", "/b"] {
        handle.answer(Answer::Fail);
        finish(service.ready().await.unwrap().call(to(path))).unwrap_err();
    }
    for index in 0..1_000 {
        let error = finish(
            service
                .ready()
                .await
                .unwrap()
                .call(to(&format!("/{index}"))),
        )
        .unwrap_err();
        assert!(error.is::<Open>());
    }
    assert_eq!(
        (
            handle.calls(),
            circuits.snapshot().keys,
            circuits.snapshot().overflowed
        ),
        (2, 2, 1_000)
    );
    tokio::time::advance(COOLDOWN).await;
    finish(service.ready().await.unwrap().call(to("/a"))).unwrap();
}
