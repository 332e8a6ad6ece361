//! HTTP/1 connections on loopback, and how they end.

use std::{
    future::IntoFuture,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Extension,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use tower_drain::{ConnectionLimit, Drain, DrainLayer, Phase, RequestBody, Server};
use tower_outcome::PeerAddr;

use crate::support::*;

/// A body fed by the test.
fn stream() -> (mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>, Body) {
    let (sender, mut receiver) = mpsc::channel(4);
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, Body::new(StreamBody::new(frames)))
}

/// Responds when the test notifies it, and notifies the test of each request.
fn gated() -> (Router, Arc<Notify>, Arc<Notify>) {
    let (came, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (came.clone(), go.clone());
    let handler = move || async move {
        tell.notify_one();
        wait.notified().await;
        "at last"
    };
    (Router::new().route("/", get(handler)), came, go)
}

#[tokio::test]
async fn a_virgin_connection_gets_its_answer_though_closing_has_begun() {
    let drain = quick();
    let server = serve(&drain, app()).await;
    let mut client = server.client().await;
    guests(&drain, 1).await;
    drain.begin_drain();
    sleep(ms(50)).await;
    assert_eq!(drain.phase(), Phase::Closing);
    let answer = client.ask(GET).await;
    assert!(answer.ok());
    assert_eq!((answer.closes(), answer.body.as_str()), (1, "hello"));
    assert!(client.is_closed().await);
    let report = server.report().await;
    assert_eq!((report.drained, report.is_clean()), (1, true));
    assert!(
        report.took < ms(1000),
        "it ended with the connection, not with a timer: {report}"
    );
}

#[tokio::test]
async fn without_a_last_chance_a_virgin_connection_is_cut() {
    // The negative control of the test above: the behaviour of plain hyper.
    let drain = quick();
    let server = serve_with(&drain, app(), |http| http.last_chance(Duration::ZERO)).await;
    let mut client = server.client().await;
    guests(&drain, 1).await;
    drain.shutdown();
    assert!(client.is_closed().await);
    server.report().await;
}

#[tokio::test]
async fn an_idle_connection_gets_its_answer_though_closing_has_begun() {
    let drain = quick();
    let server = serve(&drain, app()).await;
    let mut client = server.client().await;
    assert_eq!(client.ask(GET).await.closes(), 0);
    drain.shutdown();
    sleep(ms(50)).await;
    let answer = client.ask(GET).await;
    assert!(answer.ok());
    assert_eq!(answer.closes(), 1);
    assert!(client.is_closed().await);
    assert!(server.report().await.took < ms(1000));
}

#[tokio::test]
async fn an_idle_connection_that_sends_nothing_ends_with_its_last_chance() {
    let drain = quick();
    let server = serve_with(&drain, app(), |http| http.last_chance(ms(100))).await;
    let (mut idle, mut virgin) = (server.client().await, server.client().await);
    idle.ask(GET).await;
    guests(&drain, 2).await;
    drain.shutdown();
    let start = Instant::now();
    assert!(idle.is_closed().await && virgin.is_closed().await);
    assert!(start.elapsed() >= ms(90), "{:?}", start.elapsed());
    assert!(server.report().await.took < ms(1000));
}

#[tokio::test]
async fn a_virgin_connection_that_speaks_after_its_last_chance_meets_an_end_and_no_reset() {
    let drain = quick();
    let server = serve_with(&drain, app(), |http| http.last_chance(ms(50))).await;
    let mut client = server.client().await;
    guests(&drain, 1).await;
    drain.shutdown();
    sleep(ms(200)).await;
    // The server's FIN and the request have crossed. The request is read and discarded; a reset would break the second
    // piece.
    for piece in [GET, GET] {
        client.send(piece).await;
        sleep(ms(50)).await;
    }
    assert!(client.is_closed().await);
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn half_a_head_is_waited_for_beyond_the_last_chance() {
    let drain = quick();
    let server = serve_with(&drain, app(), |http| http.last_chance(ms(50))).await;
    let (mut kept, mut fresh) = (server.client().await, server.client().await);
    kept.ask(GET).await;
    guests(&drain, 2).await;
    let (begin, rest) = GET.split_at(9);
    kept.send(begin).await;
    fresh.send(begin).await;
    sleep(ms(20)).await;
    drain.shutdown();
    sleep(ms(200)).await;
    for client in [&mut kept, &mut fresh] {
        let answer = client.ask(rest).await;
        assert!(answer.ok());
        assert_eq!(answer.closes(), 1);
        assert!(client.is_closed().await);
    }
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn while_announcing_all_requests_are_served_with_connection_close() {
    let drain = Drain::builder().announce(ms(500)).close(ms(5000)).build();
    let server = serve(&drain, app()).await;
    let mut kept = server.client().await;
    assert_eq!(kept.ask(GET).await.closes(), 0);
    drain.begin_drain();
    let answer = kept.ask(GET).await;
    assert!(answer.ok());
    assert_eq!(answer.closes(), 1);
    assert!(kept.is_closed().await);
    let mut fresh = server.client().await;
    let answer = fresh.ask(GET).await;
    assert!(answer.ok());
    assert_eq!(answer.closes(), 1);
    assert_eq!(drain.phase(), Phase::Announcing);
    let report = server.report().await;
    assert!(report.took >= ms(500) && report.took < ms(1500), "{report}");
}

#[tokio::test]
async fn with_the_layer_too_there_is_one_close_header() {
    let drain = quick();
    let server = serve(&drain, app().layer(DrainLayer::new(&drain))).await;
    let mut client = server.client().await;
    guests(&drain, 1).await;
    drain.shutdown();
    sleep(ms(20)).await;
    assert_eq!(client.ask(GET).await.closes(), 1);
    let report = server.report().await;
    assert_eq!((report.drained, report.requests.drained), (1, 1));
}

#[tokio::test]
async fn a_request_under_way_is_answered_and_then_it_ends_at_once() {
    let drain = quick();
    let (app, came, go) = gated();
    let server = serve(&drain, app).await;
    let mut client = server.client().await;
    client.send(GET).await;
    soon(came.notified()).await;
    drain.shutdown();
    sleep(ms(100)).await;
    assert_eq!(drain.phase(), Phase::Closing);
    go.notify_one();
    let answer = client.answer().await;
    assert_eq!((answer.closes(), answer.body.as_str()), (1, "at last"));
    assert!(client.is_closed().await);
    assert!(server.report().await.took < ms(1000));
}

#[tokio::test]
async fn a_download_that_began_before_comes_whole_and_ends_the_connection() {
    let drain = quick();
    let (sender, body) = stream();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let handler = move || async move { Response::new(body.lock().unwrap().take().unwrap()) };
    let server = serve(&drain, Router::new().route("/", get(handler))).await;
    let mut client = server.client().await;
    client.send(GET).await;
    let head = client.head().await;
    assert!(!head.contains("close"), "{head}");
    drain.shutdown();
    sleep(ms(50)).await;
    for part in ["one", "two"] {
        sender
            .send(Ok(Frame::data(Bytes::from(part))))
            .await
            .unwrap();
    }
    drop(sender);
    let mut rest = String::new();
    soon(client.0.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n");
    drop(client);
    assert!(server.report().await.took < ms(1000));
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_is_gone() {
    let drain = quick();
    let (_sender, body) = stream();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let handler = move || async move { Response::new(body.lock().unwrap().take().unwrap()) };
    let server = serve(&drain, Router::new().route("/", get(handler))).await;
    let mut client = server.client().await;
    client.send(GET).await;
    client.head().await;
    drain.shutdown();
    sleep(ms(20)).await;
    drop(client);
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn a_handler_that_listens_is_cancelled_and_not_leaked() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(5000))
        .build();
    let forced = drain.clone();
    let came = Arc::new(Notify::new());
    let tell = came.clone();
    let handler = move || async move {
        tell.notify_one();
        forced.forced().await;
        "cancelled"
    };
    let server = serve(&drain, Router::new().route("/", get(handler))).await;
    let mut client = server.client().await;
    client.send(GET).await;
    soon(came.notified()).await;
    drain.shutdown();
    assert_eq!(client.answer().await.body, "cancelled");
    let report = server.report().await;
    assert_eq!((report.drained, report.forced, report.leaked), (0, 1, 0));
    assert!(report.took < ms(2000), "{report}");
}

#[tokio::test]
async fn a_handler_that_ignores_cancellation_is_cut_and_counted_as_leaked() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let (came, dropped) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (tell, on_drop) = (came.clone(), dropped.clone());
    let handler = move || async move {
        let _on_drop = Dropped(on_drop);
        tell.notify_one();
        std::future::pending::<String>().await
    };
    let server = serve(&drain, Router::new().route("/", get(handler))).await;
    let mut client = server.client().await;
    client.send(GET).await;
    soon(came.notified()).await;
    drain.shutdown();
    let report = server.report().await;
    assert_eq!((report.drained, report.forced, report.leaked), (0, 1, 1));
    assert!(client.is_closed().await);
    assert!(dropped.load(SeqCst), "the handler's future was dropped");
    assert_eq!(drain.snapshot().guests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_does_not_hold_the_drain_up() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let came = Arc::new(Notify::new());
    let tell = came.clone();
    let handler = move || async move {
        tell.notify_one();
        std::thread::sleep(ms(1500));
    };
    let server = serve(&drain, Router::new().route("/", get(handler))).await;
    let mut client = server.client().await;
    client.send(GET).await;
    soon(came.notified()).await;
    drain.shutdown();
    let report = server.report().await;
    assert_eq!(report.leaked, 1);
    assert!(report.took < ms(1000), "{report}");
}

#[tokio::test]
async fn a_silent_connection_is_closed_without_a_drain() {
    let drain = quick();
    let server = serve_with(&drain, app(), |http| {
        http.first_byte_timeout(ms(100)).header_timeout(ms(100))
    })
    .await;
    let (mut silent, mut half) = (server.client().await, server.client().await);
    half.send("GET / HT").await;
    assert!(silent.is_closed().await);
    assert!(half.head().await.starts_with("HTTP/1.1 408 "));
    assert!(half.is_closed().await);
    guests(&drain, 0).await;
}

#[tokio::test]
async fn a_connection_beyond_the_limit_gets_a_503() {
    let drain = quick();
    let limit = ConnectionLimit::new(NonZeroUsize::MIN);
    let (listener, addr) = listen().await;
    let server = Running {
        addr,
        task: tokio::spawn(Server::new(&drain, listener).limit(&limit).serve(app())),
    };
    let mut first = server.client().await;
    assert!(first.ask(GET).await.ok());
    let mut second = server.client().await;
    let answer = second.ask(GET).await;
    assert!(answer.head.starts_with("HTTP/1.1 503 "), "{}", answer.head);
    assert!(answer.head.contains("retry-after: 1\r\n"));
    assert_eq!(answer.closes(), 1);
    assert!(second.is_closed().await);
    drop(second);
    drop(first);
    guests(&drain, 0).await;
    let mut third = server.client().await;
    assert!(third.ask(GET).await.ok());
    assert_eq!((limit.open(), limit.refused()), (1, 1));
}

#[tokio::test]
async fn a_panic_in_a_handler_ends_its_connection_alone() {
    async fn broken() -> &'static str {
        panic!("on purpose")
    }
    let drain = quick();
    let server = serve(&drain, app().route("/panic", get(broken))).await;
    let (mut bystander, mut client) = (server.client().await, server.client().await);
    bystander.ask(GET).await;
    client
        .send("GET /panic HTTP/1.1\r\nhost: test\r\n\r\n")
        .await;
    assert!(client.is_closed().await);
    assert!(bystander.ask(GET).await.ok());
    guests(&drain, 1).await;
    drain.shutdown();
    drop(bystander);
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn a_head_too_long_is_answered_431() {
    let drain = quick();
    let server = serve(&drain, app()).await;
    let mut client = server.client().await;
    let long = format!(
        "GET / HTTP/1.1\r\nhost: test\r\nx-long: {}\r\n\r\n",
        "x".repeat(33 * 1024)
    );
    client.send(&long).await;
    assert!(client.head().await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn the_bound_of_a_head_is_exact_for_each_request_and_does_not_hold_for_a_body() {
    const MAX: usize = 1000;
    let drain = quick();
    let upload = post(async |body: String| body.len().to_string());
    let app = app().route("/upload", upload);
    let server = serve_with(&drain, app, |http| http.max_header_bytes(MAX as u32)).await;
    let head = |request: &str, length: usize| {
        let begin = format!("{request}\r\nhost: test\r\nx-long: ");
        let end = "\r\n\r\n";
        let fill = "x".repeat(length - begin.len() - end.len());
        begin + &fill + end
    };
    for pieces in [1, MAX] {
        for (length, status) in [(MAX, "200"), (MAX + 1, "431")] {
            let mut client = server.client().await;
            let body = "x".repeat(100_000);
            let upload = format!("POST /upload HTTP/1.1\r\ncontent-length: {}", body.len());
            client.send(&(head(&upload, MAX) + &body)).await;
            assert_eq!(client.answer().await.body, "100000");
            assert!(client.ask(GET).await.ok());
            let head = head("GET / HTTP/1.1", length);
            for piece in head.as_bytes().chunks(head.len().div_ceil(pieces)) {
                // The last byte of a head that is too long may meet the answer.
                let _ = client.0.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            let answer = client.head().await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{length} bytes: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_head_too_long_is_not_answered_in_the_middle_of_the_response_before() {
    let drain = quick();
    let large = Router::new().route("/", get(async || "x".repeat(20_000_000)));
    let server = serve_with(&drain, large, |http| http.max_header_bytes(1000)).await;
    let mut client = server.client().await;
    client.send(GET).await;
    sleep(ms(100)).await;
    // Also beyond the buffers, which may be full of what came with the request before.
    let long = "x".repeat(10_000);
    client
        .send(&format!("GET / HTTP/1.1\r\nx-long: {long}"))
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.body.len(), 20_000_000);
    client.send(&"x".repeat(100_000)).await;
    assert!(client.head().await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_head_may_be_longer_than_the_buffers_if_that_is_allowed() {
    let drain = quick();
    let server = serve_with(&drain, app(), |http| {
        http.max_header_bytes(200 * 1024).max_buffer_bytes(0)
    })
    .await;
    let mut client = server.client().await;
    let mut long = "GET / HTTP/1.1\r\nhost: test\r\n".to_owned();
    for field in 0..3 {
        long += &format!("x-{field}: {}\r\n", "x".repeat(50 * 1024));
    }
    assert!(client.ask(&(long + "\r\n")).await.ok());
}

#[tokio::test]
async fn more_than_a_hundred_fields_are_answered_431() {
    let drain = quick();
    let server = serve(&drain, app()).await;
    for (fields, status) in [(99, "200"), (100, "431")] {
        let mut client = server.client().await;
        // Beside `host`.
        client
            .send(&format!(
                "GET / HTTP/1.1\r\nhost: test\r\n{}\r\n",
                "x: y\r\n".repeat(fields)
            ))
            .await;
        assert!(
            client
                .head()
                .await
                .starts_with(&format!("HTTP/1.1 {status} ")),
            "{fields}"
        );
    }
}

#[tokio::test]
async fn the_peers_address_is_in_the_extensions() {
    let drain = quick();
    let handler = |Extension(PeerAddr(addr)): Extension<PeerAddr>| async move { addr.to_string() };
    let server = serve(&drain, Router::new().route("/", get(handler))).await;
    let mut client = server.client().await;
    let addr = client.0.local_addr().unwrap().to_string();
    assert_eq!(client.ask(GET).await.body, addr);
}

#[tokio::test]
async fn queued_connections_are_served_when_closing_begins() {
    let drain = quick();
    let (listener, addr) = listen().await;
    let server = drain.serve(listener, app());
    drain.shutdown();
    // Blocking, and the server was never polled: they are all in the kernel's queue.
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let mut client = std::net::TcpStream::connect(addr).unwrap();
            std::io::Write::write_all(&mut client, GET.as_bytes()).unwrap();
            client.set_nonblocking(true).unwrap();
            TcpStream::from_std(client).unwrap()
        })
        .collect();
    let server = Running {
        addr,
        task: tokio::spawn(server),
    };
    for client in clients {
        let answer = Client(client).answer().await;
        assert!(answer.ok());
        assert_eq!(answer.closes(), 1);
    }
    let report = server.report().await;
    assert_eq!((report.drained, report.is_clean()), (20, true));
    assert!(
        TcpStream::connect(addr).await.is_err(),
        "and then the listener is closed"
    );
}

#[tokio::test]
async fn a_server_that_is_dropped_cuts_its_connections() {
    let drain = quick();
    let server = serve(&drain, app()).await;
    let mut client = server.client().await;
    client.ask(GET).await;
    let start = Instant::now();
    server.task.abort();
    assert!(client.is_closed().await);
    assert!(start.elapsed() < ms(5000), "cut, and not for being idle");
    guests(&drain, 0).await;
    assert_eq!(drain.phase(), Phase::Serving);
}

#[tokio::test]
async fn two_servers_share_a_drain() {
    let drain = quick();
    let (one, two) = (serve(&drain, app()).await, serve(&drain, app()).await);
    let (mut first, mut second) = (one.client().await, two.client().await);
    assert!(first.ask(GET).await.ok() && second.ask(GET).await.ok());
    drain.shutdown();
    drop((first, second));
    let report = one.report().await;
    assert_eq!(report, two.report().await);
    assert_eq!(report.drained, 2);
}

#[tokio::test]
async fn another_server_has_its_signal_its_deadline_and_its_answers_from_the_drain() {
    let drain = quick();
    let (app, came, go) = gated();
    let (listener, addr) = listen().await;
    let server = axum::serve(listener, app.layer(DrainLayer::new(&drain)))
        .with_graceful_shutdown(drain.closing());
    let server = tokio::spawn(server.into_future());
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    client.send(GET).await;
    soon(came.notified()).await;
    drain.begin_drain();
    sleep(ms(50)).await;
    assert_eq!(drain.phase(), Phase::Closing);
    go.notify_one();
    let report = soon(drain.done()).await;
    assert_eq!(
        (report.requests.drained, report.drained, report.is_clean()),
        (1, 0, true)
    );
    let answer = client.answer().await;
    assert_eq!((answer.closes(), answer.body.as_str()), (1, "at last"));
    soon(server).await.unwrap().unwrap();
}

/// Switches protocols and echoes what comes after.
fn tunnel() -> Router {
    async fn upgrade(mut request: axum::extract::Request) -> Response {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 64];
            while let Ok(read @ 1..) = io.read(&mut bytes).await {
                if io.write_all(&bytes[..read]).await.is_err() {
                    break;
                }
            }
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "echo");
        response.body(Body::empty()).unwrap()
    }
    Router::new().route("/", get(upgrade))
}

const UPGRADE: &str =
    "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

async fn echoes(client: &mut Client) {
    client.send("hey").await;
    let mut bytes = [0; 3];
    soon(client.0.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"hey");
}

#[tokio::test]
async fn an_upgraded_connection_is_waited_for() {
    let drain = quick();
    let limit = ConnectionLimit::default();
    let (listener, addr) = listen().await;
    let server = Running {
        addr,
        task: tokio::spawn(Server::new(&drain, listener).limit(&limit).serve(tunnel())),
    };
    let mut client = server.client().await;
    assert!(client.ask(UPGRADE).await.head.starts_with("HTTP/1.1 101 "));
    echoes(&mut client).await;
    let snapshot = drain.snapshot();
    assert_eq!(
        (snapshot.guests, snapshot.upgraded, limit.open()),
        (1, 1, 1)
    );
    drain.shutdown();
    sleep(ms(1200)).await;
    assert_eq!(drain.phase(), Phase::Closing, "longer than any last chance");
    echoes(&mut client).await;
    drop(client);
    let report = server.report().await;
    assert_eq!(
        (report.drained, report.upgraded, report.is_clean()),
        (1, 1, true)
    );
    assert_eq!((drain.snapshot().upgraded, limit.open()), (0, 0));
}

#[tokio::test]
async fn a_connect_tunnel_is_waited_for_too() {
    async fn connect(
        mut request: http::Request<RequestBody>,
    ) -> Result<http::Response<Body>, std::convert::Infallible> {
        assert_eq!(request.method(), http::Method::CONNECT);
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 64];
            while let Ok(read @ 1..) = io.read(&mut bytes).await {
                if io.write_all(&bytes[..read]).await.is_err() {
                    break;
                }
            }
        });
        Ok(http::Response::new(Body::empty()))
    }
    let drain = quick();
    let (listener, addr) = listen().await;
    let server = Running {
        addr,
        task: tokio::spawn(drain.serve(listener, tower::service_fn(connect))),
    };
    let mut client = server.client().await;
    client
        .send("CONNECT test:443 HTTP/1.1\r\nhost: test:443\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && !head.contains("close"),
        "{head}"
    );
    echoes(&mut client).await;
    drain.shutdown();
    sleep(ms(1200)).await;
    echoes(&mut client).await;
    assert_eq!(
        (drain.phase(), drain.snapshot().upgraded),
        (Phase::Closing, 1)
    );
    drop(client);
    let report = server.report().await;
    assert_eq!(
        (report.drained, report.upgraded, report.is_clean()),
        (1, 1, true)
    );
}

#[tokio::test]
async fn both_halves_of_an_upgraded_connection_hear_that_it_is_cut() {
    // Each in a separate task, as tunnels are written, and both waiting.
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let upgrade = move |mut request: axum::extract::Request| async move {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
            let (mut read, mut write) = tokio::io::split(io);
            let other = count.clone();
            tokio::spawn(async move {
                let _ = read.read(&mut [0; 64]).await;
                other.fetch_add(1, SeqCst);
            });
            // It is not read.
            while write.write_all(&[0; 64 * 1024]).await.is_ok() {}
            count.fetch_add(1, SeqCst);
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "echo");
        response.body(Body::empty()).unwrap()
    };
    let server = serve(&drain, Router::new().route("/", get(upgrade))).await;
    let mut client = server.client().await;
    client.send(UPGRADE).await;
    client.head().await;
    sleep(ms(200)).await;
    drain.shutdown();
    server.report().await;
    soon(async {
        while ended.load(SeqCst) < 2 {
            sleep(ms(1)).await;
        }
    })
    .await;
    guests(&drain, 0).await;
}

#[tokio::test]
async fn an_upgraded_connection_that_stays_is_cut_and_counted() {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(100))
        .force(ms(100))
        .build();
    let server = serve(&drain, tunnel()).await;
    let mut client = server.client().await;
    client.ask(UPGRADE).await;
    echoes(&mut client).await;
    drain.shutdown();
    let report = server.report().await;
    assert_eq!((report.upgraded, report.forced, report.leaked), (1, 1, 1));
    assert!(client.is_closed().await);
    guests(&drain, 0).await;
}

#[tokio::test]
async fn requests_keep_coming_while_it_drains_and_none_fails() {
    let drain = Drain::builder().announce(ms(200)).close(ms(5000)).build();
    let server = serve(&drain, app()).await;
    let (addr, answered, stop) = (
        server.addr,
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (answered, stop) = (answered.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    // Only a refused connection shows that the server has stopped.
                    let Ok(stream) = TcpStream::connect(addr).await else {
                        return;
                    };
                    let mut client = Client(stream);
                    loop {
                        let answer = client.ask(GET).await;
                        assert!(answer.ok());
                        answered.fetch_add(1, SeqCst);
                        if answer.closes() > 0 {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    sleep(ms(100)).await;
    drain.begin_drain();
    let report = server.report().await;
    stop.store(true, SeqCst);
    for client in clients {
        soon(client).await.unwrap();
    }
    assert!(answered.load(SeqCst) > 20);
    assert!(report.is_clean() && report.took < ms(2500), "{report}");
}
