//! A client's stack: circuits as gates inside a balance, ours and Tower's own.

use std::{num::NonZeroU64, time::Duration};

use futures_util::stream;
use http::Request;
use testkit::{Answer, Probe};
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_circuit::{CircuitGateLayer, State};
use tower_outcome::{Refusal, classify, header::LEASE_EPOCH};
use tower_resolve::{
    Balance, Endpoint, Generation, SourceId, Topology, Update, policy::RoundRobin,
};

use crate::parts::circuit;

fn endpoint(id: &str) -> Endpoint {
    let address = "127.0.0.1:1".parse().unwrap();
    Endpoint::new(id, address).with_epoch(NonZeroU64::new(7))
}

fn never_ending(topology: Topology) -> impl stream::Stream<Item = Update> + Send + Unpin {
    use futures_util::StreamExt;
    stream::iter([Update::Snapshot(topology)]).chain(stream::pending())
}

#[tokio::test(start_paused = true)]
async fn the_balance_goes_round_an_open_circuit_and_comes_back_after_its_probe() {
    let (good, good_probe) = Probe::<String>::new();
    let (bad, bad_probe) = Probe::<String>::new();
    let circuit = circuit();
    let gate = circuit.clone();
    let topology = Topology::new(
        Generation::new(SourceId::unique(), 1),
        [endpoint("bad"), endpoint("good")],
    );
    let (balance, driver) = Balance::builder()
        .http()
        .policy(RoundRobin::default())
        .build(never_ending(topology), move |endpoint, _| {
            // Both have one, so that they are of one type; the good one's never opens.
            let (circuit, probe) = match endpoint.id().as_str() {
                "bad" => (gate.clone(), bad.clone()),
                _ => (crate::parts::circuit(), good.clone()),
            };
            CircuitGateLayer::new(circuit)
                .classify(classify::Http::new())
                .layer(probe)
        });
    tokio::spawn(driver);
    for _ in 0..2 {
        bad_probe.answer(Answer::Status(500));
    }
    let ask = async || {
        let mut balance = balance.clone();
        let response = balance
            .ready()
            .await?
            .call(Request::new(String::new()))
            .await?;
        Ok::<_, BoxError>(response.status().as_u16())
    };
    let mut failures = 0;
    for _ in 0..20 {
        failures += usize::from(ask().await.unwrap() == 500);
    }
    assert_eq!(
        (failures, bad_probe.calls()),
        (2, 2),
        "two open it, and nobody else meets it"
    );
    assert!(matches!(circuit.state(), State::Open { .. }));
    assert_eq!(good_probe.last_head().unwrap().headers[LEASE_EPOCH], "7");

    tokio::time::sleep(Duration::from_secs(61)).await;
    for _ in 0..20 {
        assert_eq!(ask().await.unwrap(), 200);
    }
    assert_eq!(circuit.state(), State::Closed);
    assert!(bad_probe.calls() > 5, "it has its share again");
}

#[tokio::test(start_paused = true)]
async fn with_every_circuit_open_requests_are_rejected_in_bounded_time() {
    let circuit = circuit();
    circuit.force_open();
    let gate = circuit.clone();
    let (probe, _handle) = Probe::<String>::new();
    let topology = Topology::new(Generation::new(SourceId::unique(), 1), [endpoint("only")]);
    let (mut balance, driver) = Balance::builder()
        .http()
        .build(never_ending(topology), move |_, _| {
            CircuitGateLayer::new(gate.clone()).layer(probe.clone())
        });
    tokio::spawn(driver);
    let began = tokio::time::Instant::now();
    let error = balance
        .ready()
        .await
        .unwrap()
        .call(Request::new(String::new()))
        .await
        .err()
        .unwrap();
    assert_eq!(Refusal::find(&*error).unwrap().code(), "no-endpoints");
    assert_eq!(began.elapsed().as_secs(), 1);
}

/// Tower's p2c, measured elsewhere: a breaker that rejects in `call` drew 38 to 40 % of the requests; a gate draws none.
#[tokio::test(start_paused = true)]
async fn an_open_gate_draws_nothing_in_towers_own_balance() {
    use tower::{balance::p2c::Balance, discover::ServiceList, load::Constant};
    let (good, _good_probe) = Probe::<String>::new();
    let (bad, bad_probe) = Probe::<String>::new();
    let open = circuit();
    open.force_open();
    let services = [(open, bad), (circuit(), good)]
        .map(|(circuit, probe)| Constant::new(CircuitGateLayer::new(circuit).layer(probe), 1));
    let mut balance = Balance::new(ServiceList::new::<Request<String>>(services));
    for _ in 0..200 {
        let response = balance
            .ready()
            .await
            .unwrap()
            .call(Request::new(String::new()))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
    }
    assert_eq!(bad_probe.calls(), 0);
}
