//! HTTP/2 with prior knowledge, axum and tonic.

use std::sync::Arc;

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::sleep,
};
use tower_drain::{Drain, DrainLayer, Phase};

use crate::support::*;

type Requests = http2::SendRequest<Empty<Bytes>>;

async fn connect(server: &Running) -> (Requests, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    (requests, tokio::spawn(connection))
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::builder()
        .uri(format!("http://test{path}"))
        .body(Empty::new())
        .unwrap()
}

#[tokio::test]
async fn a_stream_under_way_completes_after_goaway_and_no_new_one_is_taken() {
    let drain = quick();
    let (came, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (came.clone(), go.clone());
    let handler = move || async move {
        tell.notify_one();
        wait.notified().await;
        "at last"
    };
    let server = serve(&drain, app().route("/slow", get(handler))).await;
    let (mut requests, connection) = connect(&server).await;
    let slow = tokio::spawn(requests.send_request(request("/slow")));
    soon(came.notified()).await;
    drain.shutdown();
    // The client's connection has received the GOAWAY, and takes no more requests.
    soon(async {
        while requests.send_request(request("/")).await.is_ok() {
            sleep(ms(1)).await;
        }
    })
    .await;
    assert_eq!(
        (drain.phase(), drain.snapshot().guests),
        (Phase::Closing, 1),
        "the stream under way is waited for"
    );
    go.notify_one();
    let answer = soon(slow).await.unwrap().unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "at last"
    );
    soon(connection).await.unwrap().unwrap();
    let report = server.report().await;
    assert_eq!((report.drained, report.is_clean()), (1, true));
    assert!(report.took < ms(1500), "{report}");
}

#[tokio::test]
async fn an_idle_connection_ends_at_once() {
    let drain = quick();
    let server = serve(&drain, app()).await;
    let (mut requests, connection) = connect(&server).await;
    assert_eq!(
        requests.send_request(request("/")).await.unwrap().status(),
        200
    );
    drain.shutdown();
    soon(connection).await.unwrap().unwrap();
    let report = server.report().await;
    assert!(report.is_clean() && report.took < ms(500), "{report}");
}

#[tokio::test]
async fn while_announcing_answers_are_as_they_were() {
    let drain = Drain::builder().announce(ms(300)).build();
    let server = serve(&drain, app().layer(DrainLayer::new(&drain))).await;
    let (mut requests, _connection) = connect(&server).await;
    drain.begin_drain();
    for _ in 0..3 {
        let answer = requests.send_request(request("/")).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("connection"));
    }
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn a_peer_that_only_sends_the_preface_does_not_hold_the_drain_up_for_ever() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(200))
        .force(ms(0))
        .build();
    let server = serve(&drain, app()).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    guests(&drain, 1).await;
    drain.shutdown();
    let report = server.report().await;
    assert!(report.took < ms(1000), "{report}");
    soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_ignores_cancellation_is_reset_and_its_connection_counted_as_leaked() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(50))
        .force(ms(50))
        .build();
    let came = Arc::new(Notify::new());
    let tell = came.clone();
    let handler = move || async move {
        tell.notify_one();
        std::future::pending::<String>().await
    };
    let server = serve(&drain, Router::new().route("/", get(handler))).await;
    let (mut requests, _connection) = connect(&server).await;
    let hanging = tokio::spawn(requests.send_request(request("/")));
    soon(came.notified()).await;
    drain.shutdown();
    let report = server.report().await;
    assert_eq!((report.forced, report.leaked), (1, 1));
    assert!(soon(hanging).await.unwrap().is_err());
}

#[tokio::test]
async fn tonic_routes_are_served_and_drained() {
    let drain = quick();
    let (listener, addr) = listen().await;
    let routes = tonic::service::Routes::default().prepare();
    let server = Running {
        addr,
        task: tokio::spawn(drain.serve(listener, routes)),
    };
    let (mut requests, connection) = connect(&server).await;
    let mut call = request("/demo.Demo/Call");
    *call.method_mut() = http::Method::POST;
    call.headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let answer = requests.send_request(call).await.unwrap();
    assert_eq!(
        answer.headers()["grpc-status"],
        "12",
        "tonic reports an unimplemented method"
    );
    drain.shutdown();
    soon(connection).await.unwrap().unwrap();
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn a_server_of_one_protocol_does_not_speak_the_other() {
    let drain = quick();
    let server = serve_with(&drain, app(), |http| http.http1_only()).await;
    assert!(server.client().await.ask(GET).await.ok());
    let (mut requests, connection) = connect(&server).await;
    assert!(requests.send_request(request("/")).await.is_err());
    assert!(soon(connection).await.unwrap().is_err());

    let server = serve_with(&drain, app(), |http| http.http2_only()).await;
    let (mut requests, _connection) = connect(&server).await;
    assert_eq!(
        requests.send_request(request("/")).await.unwrap().status(),
        200
    );
    let mut client = server.client().await;
    client.send(GET).await;
    assert!(client.head().await.starts_with("HTTP/1.1 505 "));
    assert!(client.is_closed().await);
}
