//! Request bodies that outlive their response, and those that never end.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, body::Bytes, extract::State, routing::get, routing::post};
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    time::{Instant, sleep},
};
use tower_drain::{ConnectionLimit, Drain, Http, Server, StreamingLayer};
use tower_layer::Layer;

use crate::support::{peer::*, *};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The result of an upload: how many bytes, or nothing.
type Uploads = mpsc::UnboundedReceiver<Option<usize>>;

/// Answers at once, and reads the upload in a task.
fn accepting() -> (Router, Uploads) {
    let (sender, uploads) = mpsc::unbounded_channel();
    let handler = async move |body: Body| {
        tokio::spawn(async move {
            let whole = body.collect().await.ok();
            let _ = sender.send(whole.map(|body| body.to_bytes().len()));
        });
        StatusCode::ACCEPTED
    };
    (
        Router::new().route("/", get(async || "hello").post(handler)),
        uploads,
    )
}

/// Answers at once, and keeps the upload without reading it.
fn keeping() -> Router {
    let kept = Arc::new(Mutex::new(Vec::new()));
    async fn keep(State(kept): State<Arc<Mutex<Vec<Body>>>>, body: Body) -> StatusCode {
        kept.lock().unwrap().push(body);
        StatusCode::ACCEPTED
    }
    Router::new()
        .route("/", get(async || "hello").post(keep))
        .with_state(kept)
}

struct Served {
    drain: Drain,
    limit: ConnectionLimit,
    dial: Dial,
}

/// One connection at a time.
fn serve(app: Router, knobs: impl FnOnce(Http<Router>) -> Http<Router>) -> Served {
    let drain = Drain::builder().announce(secs(0)).build();
    let limit = ConnectionLimit::new(NonZeroUsize::MIN);
    let (dial, listener) = wire();
    let server = Server::new(&drain, listener).limit(&limit);
    tokio::spawn(server.run(knobs(Http::new(&drain, app))));
    Served { drain, limit, dial }
}

fn post_of(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n")
}

/// `POST /` on `http://test`.
const POST: [u8; 9] = [0x83, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];

async fn post_begins(peer: &mut Peer, stream: u32) {
    peer.send(HEADERS, END_HEADERS, stream, &POST).await;
}

fn no_pings(http: Http<Router>) -> Http<Router> {
    http.ping(Duration::MAX, secs(10))
}

#[tokio::test(start_paused = true)]
async fn an_upload_may_go_on_after_its_response() {
    let (app, mut uploads) = accepting();
    let served = serve(app, |http| http);
    let mut client = served.dial.connect();
    assert!(
        client
            .ask(&post_of(26_000))
            .await
            .head
            .starts_with("HTTP/1.1 202 ")
    );
    for _ in 0..26 {
        sleep(secs(1)).await;
        client.0.write_all(&[b'x'; 1000]).await.unwrap();
    }
    assert_eq!(uploads.recv().await.unwrap(), Some(26_000));
    sleep(secs(60)).await;
    assert!(
        client.ask(GET).await.ok(),
        "the connection is as good as new"
    );
}

#[tokio::test(start_paused = true)]
async fn over_http_2_too_and_its_connection_is_not_idle() {
    let (app, mut uploads) = accepting();
    let served = serve(app, no_pings);
    let mut peer = Peer::open(&served.dial).await;
    post_begins(&mut peer, 1).await;
    assert_eq!(peer.wait_for(HEADERS).await.unwrap().stream, 1);
    for _ in 0..100 {
        sleep(secs(1)).await;
        for _ in 0..4 {
            peer.send(DATA, 0, 1, &[b'x'; 250]).await;
        }
    }
    peer.send(DATA, END_STREAM, 1, b"").await;
    assert_eq!(uploads.recv().await.unwrap(), Some(100_000));
    assert!(peer.get(3).await);
    let frame = peer.wait_for(HEADERS).await.expect("no GOAWAY ended it");
    assert_eq!(frame.stream, 3);
}

#[tokio::test(start_paused = true)]
async fn an_upload_after_its_response_goes_on_while_closing() {
    let (app, mut uploads) = accepting();
    let served = serve(app, |http| http);
    let mut client = served.dial.connect();
    client.ask(&post_of(10_000)).await;
    for second in 0..10 {
        if second == 3 {
            served.drain.shutdown();
        }
        sleep(secs(1)).await;
        client.0.write_all(&[b'x'; 1000]).await.unwrap();
    }
    assert_eq!(uploads.recv().await.unwrap(), Some(10_000));
    assert!(client.is_closed().await);
    let report = served.drain.done().await;
    assert!(report.is_clean() && report.took < secs(9), "{report}");
}

/// Whether the one place is free again for a client that is served.
async fn is_free(served: &Served) -> bool {
    served.limit.open() == 0 && served.dial.connect().ask(GET).await.ok()
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stops_after_its_response_gives_its_place_back() {
    for read in [true, false] {
        let (app, mut uploads) = accepting();
        let served = serve(if read { app } else { keeping() }, |http| http);
        let mut client = served.dial.connect();
        client.send(&post_of(1_000_000)).await;
        client.send("abc").await;
        assert!(client.answer().await.head.starts_with("HTTP/1.1 202 "));
        let start = Instant::now();
        assert!(client.is_closed().await);
        assert_eq!(start.elapsed().as_secs(), 5, "{read}");
        drop(client);
        sleep(secs(2)).await;
        assert!(is_free(&served).await);
        if read {
            assert_eq!(uploads.recv().await.unwrap(), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stops_after_its_response_does_not_hold_the_drain_up() {
    for (read, http2) in [(true, false), (false, false), (true, true), (false, true)] {
        let app = if read { accepting().0 } else { keeping() };
        let served = serve(app, no_pings);
        let io = if http2 {
            let mut peer = Peer::open(&served.dial).await;
            post_begins(&mut peer, 1).await;
            peer.wait_for(HEADERS).await.expect("answered");
            peer.0
        } else {
            let mut client = served.dial.connect();
            client.ask(&post_of(1_000_000)).await;
            client.0
        };
        sleep(secs(1)).await;
        served.drain.shutdown();
        let report = served.drain.done().await;
        assert!(
            report.is_clean() && report.took < secs(8),
            "{read} {http2}: {report}"
        );
        drop(io);
    }
}

#[tokio::test(start_paused = true)]
async fn over_http_2_such_an_upload_is_reset_and_its_siblings_live() {
    let (app, mut uploads) = accepting();
    let slow = app.route("/slow", get(async || sleep(secs(60)).await));
    let served = serve(slow, no_pings);
    let mut peer = Peer::open(&served.dial).await;
    let slow = [
        0x82, 0x86, 0x44, 5, b'/', b's', b'l', b'o', b'w', 0x41, 1, b't',
    ];
    peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &slow).await;
    post_begins(&mut peer, 3).await;
    peer.send(DATA, 0, 3, b"abc").await;
    assert_eq!(peer.wait_for(HEADERS).await.unwrap().stream, 3);
    let start = Instant::now();
    let reset = peer.wait_for(RESET).await.unwrap();
    assert_eq!(
        (reset.stream, reset.payload, start.elapsed().as_secs()),
        (3, vec![0, 0, 0, 0], 5),
        "NO_ERROR: the response is whole"
    );
    assert_eq!(uploads.recv().await.unwrap(), None);
    assert_eq!(peer.wait_for(HEADERS).await.unwrap().stream, 1);
}

#[tokio::test(start_paused = true)]
async fn over_http_2_an_upload_that_is_kept_gives_its_place_back() {
    let served = serve(keeping(), no_pings);
    let mut peer = Peer::open(&served.dial).await;
    post_begins(&mut peer, 1).await;
    peer.wait_for(HEADERS).await.expect("answered");
    let start = Instant::now();
    while peer.read().await.is_some() {}
    assert!(
        (5..9).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
    drop(peer);
    sleep(secs(2)).await;
    assert!(is_free(&served).await);
}

#[tokio::test(start_paused = true)]
async fn how_long_an_upload_may_linger_can_be_set() {
    let served = serve(keeping(), |http| http.upload_linger(secs(40)));
    let mut client = served.dial.connect();
    client.ask(&post_of(1_000_000)).await;
    let start = Instant::now();
    sleep(secs(39)).await;
    assert!(client.is_closed().await);
    assert_eq!(start.elapsed().as_secs(), 40);
}

/// Responds with the number of bytes once all have arrived.
fn counting() -> Router {
    Router::new().route("/", post(async |body: Bytes| body.len().to_string()))
}

const GRPC: &str =
    "POST / HTTP/1.1\r\nhost: test\r\ncontent-type: application/grpc\r\ncontent-length: 5\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn no_header_turns_the_clock_of_an_http_1_body_off_and_no_route_does() {
    for app in [counting(), counting().layer(StreamingLayer::new())] {
        let served = serve(app, |http| http);
        let mut client = served.dial.connect();
        let start = Instant::now();
        client.send(GRPC).await;
        sleep(secs(20)).await;
        assert!(client.head().await.starts_with("HTTP/1.1 400 "));
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}

/// `POST /` with `content-type: application/grpc`, and no byte.
async fn silent_call(dial: &Dial) -> Peer {
    let mut peer = Peer::open(dial).await;
    let field = *b"\x0f\x10\x10application/grpc";
    peer.send(HEADERS, END_HEADERS, 1, &[&POST[..], &field].concat())
        .await;
    peer
}

#[tokio::test(start_paused = true)]
async fn over_http_2_a_route_may_and_no_header_does() {
    let served = serve(counting(), no_pings);
    let mut peer = silent_call(&served.dial).await;
    let start = Instant::now();
    assert!(peer.wait_for(HEADERS).await.is_some());
    assert_eq!(start.elapsed().as_secs(), 30);

    let served = serve(counting().layer(StreamingLayer::new()), no_pings);
    let mut peer = silent_call(&served.dial).await;
    sleep(secs(600)).await;
    peer.send(DATA, END_STREAM, 1, b"hello").await;
    assert_eq!(peer.wait_for(DATA).await.unwrap().payload, b"5");
}

#[tokio::test(start_paused = true)]
async fn a_tonic_server_is_one_line_under_the_runner() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let routes = tonic::service::Routes::default().prepare();
    tokio::spawn(drain.serve(listener, StreamingLayer::new().layer(routes)));
    let mut peer = silent_call(&dial).await;
    assert!(peer.wait_for(HEADERS).await.is_some());
}

/// What is read within a second.
async fn said(client: &mut Client<DuplexStream>) -> String {
    let mut bytes = vec![0; 1000];
    match tokio::time::timeout(secs(1), client.0.read(&mut bytes)).await {
        Ok(read) => String::from_utf8_lossy(&bytes[..read.unwrap()]).into(),
        Err(_) => "nothing".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn line_ends_between_two_requests_are_no_head() {
    let served = serve(keeping(), |http| http);
    let mut client = served.dial.connect();
    assert!(client.ask(&format!("{GET}\r\n")).await.ok());
    client.send("\r\n").await;
    sleep(secs(60)).await;
    assert_eq!(said(&mut client).await, "nothing");
    assert!(client.ask(GET).await.ok());
    client.send("\r\nG").await;
    let start = Instant::now();
    assert!(client.head().await.starts_with("HTTP/1.1 408 "));
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn half_a_head_behind_a_request_has_its_ten_seconds_from_the_response() {
    for request in [GET.to_owned(), post_of(3) + "abc"] {
        let app = get(async || "hello").post(async |body: Bytes| body.len().to_string());
        let served = serve(Router::new().route("/", app), |http| http);
        let mut client = served.dial.connect();
        client.ask(&format!("{request}GET / HT")).await;
        let start = Instant::now();
        assert!(
            client.head().await.starts_with("HTTP/1.1 408 "),
            "{request}"
        );
        assert_eq!(start.elapsed().as_secs(), 10, "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_app_does_not_read_is_no_head_either() {
    let served = serve(Router::new().route("/", post(async || "no")), |http| http);
    let mut client = served.dial.connect();
    for _ in 0..3 {
        assert!(client.ask(&(post_of(3) + "abc")).await.ok());
        sleep(secs(60)).await;
    }
    assert_eq!(said(&mut client).await, "nothing");
}
