//! Other servers with the signal, the deadline and the counts of a drain. And gRPC streams, there and here.

use std::{future::IntoFuture, sync::Arc, time::Duration};

use axum::{Router, body::Body, response::Response, routing::get, routing::post};
use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc},
};
use tonic::transport::{Server, server::TcpIncoming};
use tower_drain::{Drain, DrainLayer, Phase};

use crate::support::*;

type Frames = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

/// A gRPC method that streams what the test sends.
fn streaming() -> (Router, Frames) {
    let (sender, mut receiver) = mpsc::channel(4);
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let body = Arc::new(std::sync::Mutex::new(Some(Body::new(StreamBody::new(
        frames,
    )))));
    let method = move || async move {
        let body = body.lock().unwrap().take().unwrap();
        Response::builder()
            .header("content-type", "application/grpc")
            .body(body)
            .unwrap()
    };
    (
        Router::new().route("/demo.Demo/Watch", post(method)),
        sender,
    )
}

fn message(text: &str) -> Frame<Bytes> {
    let mut bytes = vec![0, 0, 0, 0, text.len() as u8];
    bytes.extend(text.as_bytes());
    Frame::data(bytes.into())
}

fn trailers() -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    Frame::trailers(trailers)
}

async fn watch(addr: std::net::SocketAddr) -> http::Response<hyper::body::Incoming> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method("POST")
        .uri("http://test/demo.Demo/Watch")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .body(Empty::<Bytes>::new())
        .unwrap();
    soon(requests.send_request(request)).await.unwrap()
}

/// A stream that began before goes on while closing, and ends with its trailers.
async fn outlives_closing(drain: &Drain, frames: Frames, addr: std::net::SocketAddr) {
    let mut answer = watch(addr).await.into_body();
    frames.send(Ok(message("one"))).await.unwrap();
    assert_eq!(
        &soon(answer.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()[5..],
        b"one"
    );
    drain.shutdown();
    tokio::time::sleep(ms(1500)).await;
    assert_eq!(drain.phase(), Phase::Closing, "longer than a GOAWAY takes");
    frames.send(Ok(message("two"))).await.unwrap();
    assert_eq!(
        &soon(answer.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()[5..],
        b"two"
    );
    frames.send(Ok(trailers())).await.unwrap();
    drop(frames);
    let end = soon(answer.frame())
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(end["grpc-status"], "0");
    assert!(soon(answer.frame()).await.is_none());
}

#[tokio::test]
async fn a_grpc_stream_under_way_ends_with_its_trailers() {
    let drain = quick();
    let (app, frames) = streaming();
    let server = serve(&drain, app).await;
    outlives_closing(&drain, frames, server.addr).await;
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn a_grpc_stream_that_does_not_end_is_reset_and_never_looks_whole() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let (app, frames) = streaming();
    let server = serve(&drain, app).await;
    let mut answer = watch(server.addr).await.into_body();
    frames.send(Ok(message("one"))).await.unwrap();
    soon(answer.frame()).await.unwrap().unwrap();
    drain.shutdown();
    assert_eq!(server.report().await.leaked, 1);
    assert!(
        soon(answer.frame()).await.unwrap().is_err(),
        "no trailers, so no success"
    );
}

/// tonic's server, which has no deadline itself.
async fn tonic(drain: &Drain, app: Router) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let (listener, addr) = listen().await;
    let routes = tonic::service::Routes::from(app);
    let server = Server::builder()
        .layer(DrainLayer::new(drain))
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), drain.closing());
    let server = drain.around(server);
    let task = tokio::spawn(async move { server.await.transpose().map(drop).unwrap() });
    (addr, task)
}

#[tokio::test]
async fn tonics_server_has_its_signal_from_the_drain_and_its_streams_are_waited_for() {
    let drain = quick();
    let (app, frames) = streaming();
    let (addr, server) = tonic(&drain, app).await;
    outlives_closing(&drain, frames, addr).await;
    let report = soon(drain.done()).await;
    assert_eq!((report.requests.drained, report.is_clean()), (1, true));
    soon(server).await.unwrap();
}

#[tokio::test]
async fn tonics_server_ends_at_our_deadline_though_a_stream_does_not() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let (app, _frames) = streaming();
    let (addr, server) = tonic(&drain, app).await;
    let _answer = watch(addr).await;
    drain.shutdown();
    soon(server).await.unwrap();
    let report = drain.done().await;
    assert_eq!(
        (
            report.requests.forced,
            report.requests.leaked,
            report.leaked_tasks()
        ),
        (1, 1, 1)
    );
}

fn hanging() -> (Router, Arc<Notify>) {
    let came = Arc::new(Notify::new());
    let tell = came.clone();
    let handler = move || async move {
        tell.notify_one();
        std::future::pending::<&str>().await
    };
    (Router::new().route("/", get(handler)), came)
}

#[tokio::test]
async fn axums_server_ends_at_our_deadline_and_by_itself_it_would_not() {
    for (around, layer) in [(true, true), (true, false), (false, true), (false, false)] {
        let drain = Drain::builder()
            .announce(ms(0))
            .close(ms(100))
            .force(ms(100))
            .build();
        let (app, came) = hanging();
        let (listener, addr) = listen().await;
        let app = match layer {
            true => app.layer(DrainLayer::new(&drain)),
            false => app,
        };
        let server = axum::serve(listener, app).with_graceful_shutdown(drain.closing());
        let mut server = match around {
            true => tokio::spawn(drain.around(server)),
            false => tokio::spawn(async { Some(server.await) }),
        };
        let mut client = Client(TcpStream::connect(addr).await.unwrap());
        client.send(GET).await;
        soon(came.notified()).await;
        drain.shutdown();
        let report = soon(drain.done()).await;
        assert_eq!(
            (report.leaked, report.requests.leaked),
            (usize::from(around), usize::from(layer)),
            "the server, and its request"
        );
        let ended = tokio::time::timeout(Duration::from_secs(1), &mut server).await;
        assert_eq!(ended.is_ok(), around || layer, "{around} {layer}");
        server.abort();
    }
}

/// Counts itself out when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_handler_under_axums_server_that_ignores_the_drain_is_dropped_at_its_end() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let (came, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, inside) = (came.clone(), dropped.clone());
    let handler = move || async move {
        let _dropped = Dropped(inside);
        tell.notify_one();
        std::future::pending::<&str>().await
    };
    let app = Router::new().route("/", get(handler));
    let (listener, addr) = listen().await;
    let server = axum::serve(listener, app.layer(DrainLayer::new(&drain)))
        .with_graceful_shutdown(drain.closing());
    let server = tokio::spawn(drain.around(server));
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    client.send(GET).await;
    soon(came.notified()).await;
    drain.shutdown();
    soon(dropped.notified()).await;
    let report = drain.done().await;
    assert_eq!(
        (report.requests.forced, report.requests.leaked),
        (1, 1),
        "dropped by the drain, and not by itself"
    );
    let answer = client.answer().await;
    assert!(answer.head.starts_with("HTTP/1.1 503 "), "{}", answer.head);
    assert_eq!(answer.closes(), 1);
    assert!(client.is_closed().await);
    assert!(soon(server).await.unwrap().is_none());
}

#[tokio::test]
async fn a_stream_under_tonics_server_that_ignores_the_drain_is_reset_at_its_end() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let (app, frames) = streaming();
    let (addr, server) = tonic(&drain, app).await;
    let mut answer = watch(addr).await.into_body();
    frames.send(Ok(message("one"))).await.unwrap();
    soon(answer.frame()).await.unwrap().unwrap();
    drain.shutdown();
    soon(frames.closed()).await;
    assert_eq!(drain.done().await.requests.leaked, 1);
    let end = soon(answer.frame()).await.unwrap();
    assert!(end.is_err(), "no trailers, so no success: {end:?}");
    soon(server).await.unwrap();
}

/// Without `around` the drain would be over with the last request, and unwritten responses would be cut.
#[tokio::test(start_paused = true)]
async fn the_drain_waits_until_anothers_server_has_ended_and_not_only_its_requests() {
    let drain = Drain::builder().announce(ms(0)).build();
    let closing = drain.closing();
    let server = tokio::spawn(drain.around(async {
        closing.await;
        tokio::time::sleep(ms(500)).await;
        "all is written"
    }));
    drain.begin_drain();
    tokio::time::sleep(ms(400)).await;
    assert_eq!(drain.phase(), Phase::Closing);
    assert_eq!(server.await.unwrap(), Some("all is written"));
    let report = drain.done().await;
    assert_eq!((report.drained, report.is_clean()), (1, true), "the server");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_dropped_is_waited_for_no_more() {
    let drain = Drain::builder().announce(ms(0)).build();
    drop(drain.around(std::future::pending::<()>()));
    drain.begin_drain();
    assert!(drain.done().await.took < Duration::from_secs(1));
}

#[tokio::test]
async fn what_axums_server_alone_does_to_a_connection_that_has_not_spoken_yet() {
    // The negative control of `a_virgin_connection_gets_its_answer_though_closing_has_begun`.
    let drain = quick();
    let (listener, addr) = listen().await;
    let server = axum::serve(listener, app()).with_graceful_shutdown(drain.closing());
    tokio::spawn(server.into_future());
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    // Another one that is served shows that it was accepted.
    assert!(
        Client(TcpStream::connect(addr).await.unwrap())
            .ask(GET)
            .await
            .ok()
    );
    drain.shutdown();
    assert!(client.is_closed().await, "without an answer");
}
