//! Traits that public types implement.

use http::{Request, Response};
use testkit::Probe;
use tower::{Layer, Service};
use tower_circuit::{
    Circuit, CircuitBuilder, CircuitGate, CircuitGateLayer, CircuitLayer, CircuitService, Cooldown,
    KeyedCircuitLayer, KeyedCircuitService, KeyedCircuits, Open, PerEndpoint, Permit, Ratio,
    Snapshot, State, Totals, Trip, classify, refuse,
};

fn value<T: Send + Sync + Unpin + 'static>() {}
fn shared<T: Clone + Send + Sync + Unpin + 'static>() {}
fn future<T: Send + 'static>(_: fn(&mut ()) -> T) {}

#[test]
fn handles_layers_and_services_are_clone_send_and_sync() {
    shared::<Circuit>();
    shared::<CircuitBuilder>();
    shared::<CircuitLayer>();
    shared::<CircuitLayer<classify::Auto, refuse::Auto>>();
    shared::<CircuitGateLayer>();
    shared::<CircuitService<Probe>>();
    shared::<CircuitService<Probe, classify::Auto, refuse::Auto>>();
    shared::<CircuitGate<Probe>>();
    shared::<KeyedCircuits<String>>();
    shared::<KeyedCircuitLayer<String, fn(&Request<String>) -> String>>();
    shared::<KeyedCircuitService<Probe, String, fn(&Request<String>) -> String>>();
    shared::<PerEndpoint<classify::Auto>>();
    shared::<Ratio>();
    shared::<Open>();
    shared::<Snapshot>();
    shared::<State>();
    shared::<Totals>();
    shared::<Trip>();
    shared::<Cooldown>();
    value::<Permit>();
}

#[test]
fn futures_and_bodies_are_send() {
    type Future<S> = <S as Service<Request<String>>>::Future;
    type Body<S> = <S as Service<Request<String>>>::Response;
    future::<Future<CircuitService<Probe>>>(|_| unreachable!());
    future::<Future<CircuitService<Probe, classify::Auto, refuse::Auto>>>(|_| unreachable!());
    future::<Future<CircuitGate<Probe>>>(|_| unreachable!());
    value::<Body<CircuitService<Probe, classify::Auto, refuse::Auto>>>();
}

#[test]
fn a_protocol_neutral_classification_keeps_the_response_type() {
    fn response_of<S: Service<Request<String>, Response = Response<testkit::Script>>>(_: S) {}
    response_of(CircuitLayer::new(Circuit::new()).layer(Probe::new().0));
    response_of(
        CircuitLayer::new(Circuit::new())
            .gate()
            .layer(Probe::new().0),
    );
}
