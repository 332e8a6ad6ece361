use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use testkit::Wakes;
use tokio::time::Instant;
use tower::Service;
use tower_circuit::{Circuit, CircuitBuilder, Cooldown, State, Trip};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const COOLDOWN: Duration = Duration::from_secs(10);

/// Opens at this many consecutive failures, for 10 s each time; the other settings are the defaults.
pub(crate) fn trips_at(failures: u32) -> CircuitBuilder {
    let trip = Trip::consecutive(failures);
    Circuit::builder()
        .trip(trip)
        .cooldown(Cooldown::fixed(COOLDOWN))
}

/// Opens a circuit made by [`trips_at`] with 1.
pub(crate) fn trip(circuit: &Circuit) {
    use tower_outcome::{Outcome, Settle};
    circuit.admit().unwrap().settle(Outcome::FAILURE);
    assert!(is_open(circuit));
}

/// Whether this is `least`, or up to a tenth more, by which cooldowns and hints are extended.
pub(crate) fn is_spread(time: Duration, least: Duration) -> bool {
    (least..=least + least / 10).contains(&time)
}

pub(crate) fn is_open(circuit: &Circuit) -> bool {
    matches!(circuit.state(), State::Open { .. })
}

/// Opens it, and waits until a probe is possible.
pub(crate) async fn cool_down(circuit: &Circuit) {
    trip(circuit);
    tokio::time::advance(COOLDOWN).await;
}

pub(crate) fn until(circuit: &Circuit) -> Instant {
    match circuit.state() {
        State::Open { until: Some(until) } => until,
        state => panic!("not open for a time: {state:?}"),
    }
}

pub(crate) fn request() -> Request<String> {
    Request::new(String::new())
}

pub(crate) fn grpc_request() -> Request<String> {
    Request::post("/")
        .header("content-type", "application/grpc")
        .body(String::new())
        .unwrap()
}

/// Polls once, with a waker that does nothing.
pub(crate) fn ready<S: Service<Request<String>>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    let (_, waker) = Wakes::new();
    service.poll_ready(&mut Context::from_waker(&waker))
}

pub(crate) fn is_ready<S: Service<Request<String>>>(service: &mut S) -> bool {
    matches!(ready(service), Poll::Ready(Ok(())))
}

pub(crate) fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    let (_, waker) = Wakes::new();
    future.poll(&mut Context::from_waker(&waker))
}

/// The output of a future that is ready.
pub(crate) fn finish<F: Future>(future: F) -> F::Output {
    match poll_once(pin!(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not ready"),
    }
}
