//! `DrainLayer`: guards to the body's end, `Connection: close` on HTTP/1 responses, nothing else changed.

use std::time::Duration;

use http::{Method, Request, Version};
use http_body_util::BodyExt;
use testkit::{Answer, Probe, ProbeHandle, Script, Step, contract};
use tokio::time::timeout;
use tower::{Layer, Service, ServiceExt};
use tower_drain::{Drain, DrainLayer, Guarded};

fn wrapped(drain: &Drain) -> (Guarded<Probe>, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (DrainLayer::new(drain).layer(probe), handle)
}

fn request(version: Version) -> Request<String> {
    Request::builder()
        .version(version)
        .body(String::new())
        .unwrap()
}

async fn connection_header(service: &mut Guarded<Probe>, version: Version) -> Option<String> {
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request(version))
        .await
        .unwrap();
    response
        .headers()
        .get("connection")
        .map(|value| value.to_str().unwrap().to_owned())
}

#[test]
fn it_keeps_the_contract_in_every_phase() {
    let drain = Drain::new();
    contract::check(|probe| DrainLayer::new(&drain).layer(probe));
    drain.begin_drain();
    contract::check(|probe| DrainLayer::new(&drain).layer(probe));
    drain.shutdown();
    contract::check(|probe| DrainLayer::new(&drain).layer(probe));
    assert_eq!(drain.snapshot().requests, 0);
}

#[tokio::test]
async fn only_http_1_responses_get_close_and_only_while_draining() {
    let drain = Drain::new();
    let (mut service, _handle) = wrapped(&drain);
    assert_eq!(
        connection_header(&mut service, Version::HTTP_11).await,
        None
    );
    drain.begin_drain();
    assert_eq!(
        connection_header(&mut service, Version::HTTP_11)
            .await
            .as_deref(),
        Some("close")
    );
    assert_eq!(
        connection_header(&mut service, Version::HTTP_10)
            .await
            .as_deref(),
        Some("close")
    );
    assert_eq!(connection_header(&mut service, Version::HTTP_2).await, None);
}

#[tokio::test]
async fn a_response_to_an_earlier_request_gets_close_too() {
    let drain = Drain::new();
    let (mut service, _handle) = wrapped(&drain);
    let answer = service
        .ready()
        .await
        .unwrap()
        .call(request(Version::HTTP_11));
    drain.begin_drain();
    assert_eq!(answer.await.unwrap().headers()["connection"], "close");
}

#[tokio::test]
async fn upgrades_are_left_alone() {
    let drain = Drain::new();
    drain.begin_drain();
    let (mut service, handle) = wrapped(&drain);
    handle.answer(Answer::Status(101));
    assert_eq!(
        connection_header(&mut service, Version::HTTP_11).await,
        None
    );
    let mut connect = request(Version::HTTP_11);
    *connect.method_mut() = Method::CONNECT;
    let response = service.ready().await.unwrap().call(connect).await.unwrap();
    assert!(!response.headers().contains_key("connection"));
}

#[tokio::test(start_paused = true)]
async fn the_drain_waits_for_the_end_of_the_body() {
    let drain = Drain::new();
    let (mut service, handle) = wrapped(&drain);
    handle.answer(Answer::Body(
        200,
        Script::new([Step::Data("a"), Step::Data("b")]),
    ));
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request(Version::HTTP_11))
        .await
        .unwrap();
    drain.shutdown();
    let mut done = tokio_test::task::spawn(drain.done());
    tokio_test::assert_pending!(done.poll());
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    body.frame().await.unwrap().unwrap();
    tokio_test::assert_pending!(done.poll());
    assert!(body.frame().await.is_none());
    assert!(done.is_woken());
    let report = done.await;
    assert_eq!((report.requests.drained, report.drained), (1, 0));
}

#[tokio::test]
async fn a_body_that_is_dropped_or_breaks_is_over() {
    let drain = Drain::new();
    let (mut service, handle) = wrapped(&drain);
    handle.answer(Answer::Body(200, Script::new([Step::Hang])));
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request(Version::HTTP_11))
        .await
        .unwrap();
    assert_eq!(drain.snapshot().requests, 1);
    drop(response);
    assert_eq!(drain.snapshot().requests, 0);
    handle.answer(Answer::Body(200, Script::new([Step::Break])));
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request(Version::HTTP_11))
        .await
        .unwrap();
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(drain.snapshot().requests, 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_or_fails_is_over() {
    let drain = Drain::new();
    let (mut service, handle) = wrapped(&drain);
    handle.answer(Answer::Hang);
    let mut call = tokio_test::task::spawn(
        service
            .ready()
            .await
            .unwrap()
            .call(request(Version::HTTP_2)),
    );
    assert!(call.poll().is_pending());
    assert_eq!(drain.snapshot().requests, 1);
    drop(call);
    handle.answer(Answer::Fail);
    assert_eq!(
        service
            .ready()
            .await
            .unwrap()
            .call(request(Version::HTTP_2))
            .await
            .unwrap_err(),
        testkit::Broken
    );
    assert_eq!(drain.snapshot().requests, 0);
}

/// Longer than any drain here.
const LONG: Duration = Duration::from_secs(60);

/// A drain of two seconds that has served a request.
async fn drain_that_served(version: Version) -> (Drain, ProbeHandle, Guarded<Probe>) {
    let drain = Drain::builder()
        .announce(Duration::ZERO)
        .close(Duration::from_secs(1))
        .force(Duration::from_secs(1))
        .build();
    let (mut service, handle) = wrapped(&drain);
    handle.answer(Answer::Status(200));
    assert_eq!(connection_header(&mut service, version).await, None);
    (drain, handle, service)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_outlasts_the_drain_is_dropped_and_answered() {
    for (grpc, status) in [(false, 503), (true, 200)] {
        let (drain, handle, mut service) = drain_that_served(Version::HTTP_2).await;
        handle.answer(Answer::Hang);
        let mut request = request(Version::HTTP_2);
        if grpc {
            *request.method_mut() = Method::POST;
            let grpc = "application/grpc".parse().unwrap();
            request.headers_mut().insert("content-type", grpc);
        }
        let call = service.ready().await.unwrap().call(request);
        let call = timeout(LONG, call);
        let (response, report) = tokio::join!(call, async {
            drain.shutdown();
            drain.done().await
        });
        let response = response.expect("it is cut");
        assert_eq!((report.requests.forced, report.requests.leaked), (1, 1));
        let response = response.unwrap();
        assert_eq!(response.status(), status);
        let message = response.headers().get("grpc-status");
        assert_eq!(
            message.map(|status| status.as_bytes()),
            grpc.then_some(&b"14"[..])
        );
        assert_eq!(handle.in_flight(), 0, "it was dropped");
        assert_eq!(drain.snapshot().requests, 0);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_outlasts_the_drain_is_dropped_and_ends_with_an_error() {
    let (drain, handle, mut service) = drain_that_served(Version::HTTP_11).await;
    handle.answer(Answer::Body(
        200,
        Script::new([Step::Data("a"), Step::Hang]),
    ));
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request(Version::HTTP_11))
        .await;
    let mut body = response.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    let (end, report) = tokio::join!(timeout(LONG, body.frame()), async {
        drain.shutdown();
        drain.done().await
    });
    let end = end.expect("it is cut");
    let error = end.unwrap().unwrap_err();
    assert!(tower_outcome::Refusal::find(&*error).is_some(), "{error}");
    assert_eq!(report.requests.leaked, 1);
    assert_eq!(drain.snapshot().requests, 0);
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_begins_after_the_drain_is_over_is_neither_counted_nor_cut() {
    let (drain, handle, mut service) = drain_that_served(Version::HTTP_2).await;
    drain.shutdown();
    drain.done().await;
    handle.answer(Answer::Hang);
    let mut call = tokio_test::task::spawn(
        service
            .ready()
            .await
            .unwrap()
            .call(request(Version::HTTP_2)),
    );
    tokio_test::assert_pending!(call.poll());
}
