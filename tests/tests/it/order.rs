//! Changing the order of layers changes no error types, and no reservation leaks.

use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use testkit::{Answer, Probe, ProbeHandle};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_bucket::{BucketLayer, Limiter};
use tower_circuit::CircuitLayer;
use tower_drain::{Drain, DrainLayer};
use tower_lease::LeaseLayer;
use tower_outcome::Refusal;

use crate::parts::{circuit, held_lease, twenty};

fn probed<L>(layer: &L) -> (L::Service, ProbeHandle)
where
    L: Layer<Probe>,
{
    let (probe, handle) = Probe::new();
    (layer.layer(probe), handle)
}

/// A service as Tower's users need it: `Send`, `Sync`, `Clone`, and with a boxed error.
fn rejects<S, B>(service: S) -> S
where
    S: Service<Request<String>, Response = Response<B>, Error = BoxError>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    service
}

/// As axum needs it.
fn responds<S, B>(service: S) -> S
where
    S: Service<Request<String>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    service
}

#[tokio::test]
async fn rejecting_layers_have_one_error_type_in_every_order() {
    let (circuit, limiter) = (circuit(), Limiter::new(twenty()));
    let (lease, keeper) = held_lease().await;
    let (c, b, l) = (
        CircuitLayer::new(circuit.clone()),
        BucketLayer::new(limiter.clone()),
        LeaseLayer::new(&lease),
    );
    macro_rules! each_order {
        ($($($layer:ident)+;)+) => {$(
            let stack = ServiceBuilder::new()$(.layer($layer.clone()))+;
            let (service, probe) = probed(&stack);
            let mut service = rejects(service);
            assert_eq!(service.ready().await.unwrap().call(Request::default()).await.unwrap().status(), 200);
            circuit.force_open();
            let error = service.ready().await.unwrap().call(Request::default()).await.err().unwrap();
            assert_eq!(Refusal::find(&*error).unwrap().code(), "circuit-open");
            circuit.reset();
            probe.answer(Answer::Fail);
            let error = service.ready().await.unwrap().call(Request::default()).await.err().unwrap();
            assert!(error.is::<testkit::Broken>(), "an inner error is not wrapped: {error:?}");
            assert_eq!(probe.in_flight(), 0);
        )+};
    }
    each_order!(c b l; c l b; b c l; b l c; l b c; l c b;);
    keeper.abort();
}

#[tokio::test]
async fn responding_layers_stay_infallible_in_every_order() {
    let (circuit, limiter, drain) = (circuit(), Limiter::new(twenty()), Drain::new());
    let (lease, keeper) = held_lease().await;
    let c = CircuitLayer::new(circuit.clone()).respond();
    let b = BucketLayer::new(limiter.clone()).respond();
    let l = LeaseLayer::new(&lease).respond();
    let d = DrainLayer::new(&drain);
    let app = service_fn(async |_: Request<String>| {
        Ok::<_, Infallible>(Response::new("hello".to_owned()))
    });
    macro_rules! each_order {
        ($($($layer:ident)+;)+) => {$(
            let mut service = responds(ServiceBuilder::new()$(.layer($layer.clone()))+.service(app.clone()));
            assert_eq!(service.ready().await.unwrap().call(Request::default()).await.unwrap().status(), 200);
            circuit.force_open();
            assert_eq!(service.ready().await.unwrap().call(Request::default()).await.unwrap().status(), 503);
            circuit.reset();
        )+};
    }
    each_order!(d b l c; d b c l; d l b c; d l c b; d c b l; d c l b; b d c l; c b l d; l c b d;);
    assert_eq!(
        drain.snapshot().requests,
        0,
        "every answer was dropped, and with it its place"
    );
    keeper.abort();
}

/// A drain waits for what is under way: nothing of the stack may hold its place longer than the request.
#[tokio::test(start_paused = true)]
async fn a_cancelled_request_leaves_nothing_behind_in_any_layer() {
    let (circuit, drain) = (circuit(), Drain::builder().announce(Duration::ZERO).build());
    let stack = ServiceBuilder::new()
        .layer(DrainLayer::new(&drain))
        .layer(BucketLayer::per_client(twenty()).respond())
        .layer(CircuitLayer::new(circuit.clone()).respond());
    let (probe, handle) = Probe::<String>::new();
    let mut service = stack.service(probe);
    handle.answer(Answer::Hang);
    let call = service.ready().await.unwrap().call(Request::default());
    assert!(
        tokio::time::timeout(Duration::from_millis(10), call)
            .await
            .is_err()
    );
    assert_eq!((handle.in_flight(), drain.snapshot().requests), (0, 0));
    assert_eq!(circuit.snapshot().totals.abandoned, 1);
    drain.shutdown();
    assert!(drain.done().await.is_clean());
}
