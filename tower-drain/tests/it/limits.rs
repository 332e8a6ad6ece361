//! The timeouts of a connection, in paused time on a simulated network.

use std::{
    num::NonZeroUsize,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Extension, Router, body::Bytes, routing::get, routing::post};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::{Instant, sleep},
};
use tower::service_fn;
use tower_drain::{
    Accepted, Cancellation, ConnectionLimit, ConnectionLimitLayer, Drain, Http, Overloaded,
    RequestBody, Server, TooSlow,
};
use tower_layer::Layer;

use crate::support::*;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Serves on a separate wire.
fn serve_wire(
    drain: &Drain,
    app: Router,
    knobs: impl FnOnce(Http<Router>) -> Http<Router>,
) -> Dial {
    let (dial, listener) = wire();
    tokio::spawn(Server::new(drain, listener).run(knobs(Http::new(drain, app))));
    dial
}

fn serve(drain: &Drain, app: Router) -> Dial {
    serve_wire(drain, app, |http| http)
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_for_75_seconds_and_advertises_70() {
    let drain = Drain::new();
    let mut client = serve(&drain, app()).connect();
    let start = Instant::now();
    assert!(
        client
            .ask(GET)
            .await
            .head
            .contains("keep-alive: timeout=70\r\n")
    );
    sleep(secs(70)).await;
    assert!(
        client.ask(GET).await.ok(),
        "the time begins anew with each request"
    );
    let mut end = [0; 1];
    assert_eq!(client.0.read(&mut end).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 145);
}

#[tokio::test(start_paused = true)]
async fn a_long_handler_is_not_idle() {
    let drain = Drain::new();
    let slow = Router::new().route("/", get(async || sleep(secs(600)).await));
    let mut client = serve(&drain, slow).connect();
    client.send(GET).await;
    sleep(secs(599)).await;
    let answer = client.answer().await;
    assert!(answer.ok());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_byte_by_byte_has_ten_seconds_in_all() {
    // A slow-loris attack: each byte is in time, the head is not, and its place is given back.
    let drain = Drain::new();
    let limit = ConnectionLimit::new(NonZeroUsize::new(4).unwrap());
    let (dial, listener) = wire();
    tokio::spawn(
        Server::new(&drain, listener)
            .limit(&limit)
            .run(Http::new(&drain, app())),
    );
    let lorises: Vec<_> = (0..4)
        .map(|_| {
            let mut client = dial.connect();
            tokio::spawn(async move {
                let start = Instant::now();
                for byte in GET.bytes() {
                    if client.0.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    sleep(secs(1)).await;
                    if start.elapsed() > secs(11) {
                        break;
                    }
                }
                let head = client.head().await;
                assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
                assert!(client.is_closed().await);
            })
        })
        .collect();
    sleep(secs(5)).await;
    assert_eq!(limit.open(), 4);
    assert!(
        dial.connect()
            .ask(GET)
            .await
            .head
            .starts_with("HTTP/1.1 503 "),
        "the pool is exhausted"
    );
    for loris in lorises {
        loris.await.unwrap();
    }
    assert_eq!(limit.open(), 0);
    assert!(dial.connect().ask(GET).await.ok(), "and it comes back");
}

#[tokio::test(start_paused = true)]
async fn a_second_head_has_ten_seconds_from_its_first_byte_too() {
    let drain = Drain::new();
    let mut client = serve(&drain, app()).connect();
    assert!(client.ask(GET).await.ok());
    sleep(secs(60)).await;
    let start = Instant::now();
    client.send("GET / HT").await;
    assert!(client.head().await.starts_with("HTTP/1.1 408 "));
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_byte_by_byte_does_not_hold_the_drain_up() {
    for (limit, ends) in [(secs(10), 10), (Duration::MAX, 20)] {
        let drain = Drain::builder().announce(secs(0)).build();
        let dial = serve_wire(&drain, app(), |http| http.header_timeout(limit));
        let client = dial.connect();
        let (mut read, mut write) = tokio::io::split(client.0);
        let loris = tokio::spawn(async move {
            for byte in GET.bytes().cycle().filter(|byte| *byte != b'\r') {
                if write.write_all(&[byte]).await.is_err() {
                    return;
                }
                sleep(secs(1)).await;
            }
        });
        sleep(ms(10)).await;
        drain.shutdown();
        let report = drain.done().await;
        // Without the limit, as in hyper without a timer, only the deadline of the drain ends it.
        assert!(
            (ends..ends + 3).contains(&report.took.as_secs()),
            "{report}"
        );
        assert_eq!(report.is_clean(), ends == 10);
        loris.abort();
        let _ = read.read_to_end(&mut Vec::new()).await;
    }
}

/// Responds with the number of bytes of an upload, or its error.
fn uploads() -> Router {
    async fn upload(body: axum::body::Body) -> String {
        match body.collect().await {
            Ok(body) => format!("{} bytes", body.to_bytes().len()),
            Err(error) => format!("{}", find::<TooSlow>(&error)),
        }
    }
    Router::new().route("/", post(upload))
}

/// Whether an error of that type is in the chain.
fn find<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<E>() {
            return true;
        }
        next = error.source();
    }
    false
}

const POST: &str = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10000\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn an_upload_that_stops_has_thirty_seconds() {
    let drain = Drain::new();
    let mut client = serve(&drain, uploads()).connect();
    let start = Instant::now();
    client.send(POST).await;
    sleep(secs(29)).await;
    assert_eq!(client.answer().await.body, "true");
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_trickles_ends_and_one_that_is_slow_does_not() {
    let drain = Drain::new();
    let dial = serve(&drain, uploads());
    let mut trickle = dial.connect();
    let start = Instant::now();
    trickle.send(POST).await;
    let (read, mut write) = tokio::io::split(trickle.0);
    let trickling = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            sleep(secs(1)).await;
        }
    });
    assert_eq!(
        Client(tokio::io::join(read, tokio::io::sink()))
            .answer()
            .await
            .body,
        "true"
    );
    assert!(start.elapsed() < secs(8), "{:?}", start.elapsed());
    trickling.abort();

    let mut slow = dial.connect();
    let start = Instant::now();
    slow.send(POST).await;
    for _ in 0..40 {
        slow.0.write_all(&[b'x'; 250]).await.unwrap();
        sleep(secs(1)).await;
    }
    assert_eq!(slow.answer().await.body, "10000 bytes");
    assert!(start.elapsed() >= secs(40));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_reads_slowly_costs_its_client_nothing() {
    async fn upload(mut body: axum::body::Body) -> String {
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().into_data().unwrap_or_default().len();
            sleep(secs(100)).await;
        }
        length.to_string()
    }
    let drain = Drain::new();
    let mut client = serve(&drain, Router::new().route("/", post(upload))).connect();
    client
        .send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n")
        .await;
    sleep(secs(1)).await;
    client.send("a").await;
    sleep(secs(50)).await;
    client.send("b").await;
    let start = Instant::now();
    let mut answer = Client(client.0);
    // `answer` waits 20 s at most, and this takes longer.
    let head = tokio::time::timeout(secs(1000), answer.0.read_u8())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(head, b'H');
    assert!(start.elapsed() > secs(100));
}

#[tokio::test(start_paused = true)]
async fn a_conversation_may_be_silent() {
    // The response has begun: from then on the body may be silent.
    async fn echo(body: axum::body::Body) -> axum::body::Body {
        body
    }
    let drain = Drain::new();
    let mut client = serve(&drain, Router::new().route("/", post(echo))).connect();
    client
        .send("POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.head().await;
    sleep(secs(600)).await;
    client.send("5\r\nhello\r\n0\r\n\r\n").await;
    let mut said = [0; 10];
    client.0.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"5\r\nhello\r\n");
}

/// A megabyte in pieces.
async fn download() -> axum::body::Body {
    let pieces = futures_util::stream::iter(
        (0..64).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 16 * 1024]))),
    );
    axum::body::Body::from_stream(pieces)
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_read_its_answer_has_thirty_seconds() {
    let drain = Drain::new();
    let mut client = serve(&drain, Router::new().route("/", get(download))).connect();
    client.send(GET).await;
    sleep(secs(29)).await;
    assert_eq!(drain.snapshot().guests, 1);
    // It reads a little, and that is enough for another thirty.
    client.0.read_exact(&mut [0; 1000]).await.unwrap();
    sleep(secs(29)).await;
    assert_eq!(drain.snapshot().guests, 1);
    sleep(secs(2)).await;
    assert_eq!(drain.snapshot().guests, 0, "cut");
}

#[tokio::test(start_paused = true)]
async fn a_late_head_is_not_answered_in_the_middle_of_the_answer_before() {
    let drain = Drain::new();
    let large = Router::new().route("/", get(async || "x".repeat(300_000)));
    let mut client = serve(&drain, large).connect();
    client.send(GET).await;
    sleep(secs(1)).await;
    client.send("GET / HT").await;
    // The head is late, and most of the answer is still held.
    sleep(secs(15)).await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.body.len(), answer.body.contains("408")),
        (300_000, false)
    );
    assert!(
        client.head().await.starts_with("HTTP/1.1 408 "),
        "and then there is a 408"
    );
}

#[tokio::test(start_paused = true)]
async fn events_that_do_not_come_are_no_stall() {
    let drain = Drain::new();
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let events = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let body = Arc::new(std::sync::Mutex::new(Some(axum::body::Body::from_stream(
        events,
    ))));
    let handler = get(move || async move { body.lock().unwrap().take().unwrap() });
    let mut client = serve(&drain, Router::new().route("/", handler)).connect();
    client.send(GET).await;
    client.head().await;
    sleep(secs(1800)).await;
    sender.send(Ok(Bytes::from("event"))).await.unwrap();
    let mut event = [0; 10];
    client.0.read_exact(&mut event).await.unwrap();
    assert_eq!(&event, b"5\r\nevent\r\n");
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_closed_gracefully_and_not_cut() {
    let drain = Drain::new();
    let dial = serve_wire(&drain, app(), |http| {
        http.max_age(secs(100)).keep_alive(Duration::MAX)
    });
    let (mut idle, mut used) = (dial.connect(), dial.connect());
    idle.ask(GET).await;
    let answer = used.ask(GET).await;
    assert!(
        answer.closes() == 0 && !answer.head.contains("keep-alive"),
        "nothing is promised that is not limited"
    );
    sleep(secs(89)).await;
    assert_eq!(used.ask(GET).await.closes(), 0);
    assert_eq!(drain.snapshot().guests, 2);
    sleep(secs(23)).await;
    assert_eq!(
        drain.snapshot().guests,
        0,
        "at 110 s at the latest, and one of last chance"
    );
    assert_eq!(drain.phase(), tower_drain::Phase::Serving);

    let mut fresh = dial.connect();
    let handled = Instant::now();
    fresh.ask(GET).await;
    while fresh.ask(GET).await.closes() == 0 {
        sleep(ms(500)).await;
    }
    let age = handled.elapsed().as_secs();
    assert!((89..=111).contains(&age), "{age}");
    assert!(fresh.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_request_beyond_its_connections_age_is_cut_only_after_the_grace() {
    let drain = Drain::new();
    let slow = Router::new().route("/", get(async || sleep(secs(300)).await));
    let dial = serve_wire(&drain, slow, |http| {
        http.max_age(secs(100)).max_age_grace(secs(50))
    });
    dial.connect().send(GET).await;
    let mut client = dial.connect();
    client.send(GET).await;
    sleep(secs(139)).await;
    assert_eq!(drain.snapshot().guests, 1, "the other one hung up");
    sleep(secs(22)).await;
    assert_eq!(drain.snapshot().guests, 0);
}

/// Responds when the test notifies it, and records when it is dropped.
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

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_half_is_answered_only_if_that_is_allowed() {
    for allowed in [false, true] {
        let drain = Drain::new();
        let (app, came, go) = gated();
        let mut client = serve_wire(&drain, app, |http| http.half_close(allowed)).connect();
        client.send(GET).await;
        came.notified().await;
        client.0.shutdown().await.unwrap();
        sleep(secs(1)).await;
        assert_eq!(
            drain.snapshot().guests,
            usize::from(allowed),
            "the handler is cancelled, or works on"
        );
        go.notify_one();
        let mut answer = String::new();
        client.0.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.ends_with("at last"), allowed, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_handler_has_a_cancellation_that_fires_when_forced() {
    async fn handler(Extension(cancellation): Extension<Cancellation>) -> &'static str {
        cancellation.cancelled().await;
        "cancelled"
    }
    let drain = Drain::new();
    let (dial, listener) = wire();
    let server = Server::new(&drain, listener);
    let (handle, token) = (server.drain_handle(), server.shutdown_token());
    let server = tokio::spawn(server.serve(Router::new().route("/", get(handler))));
    let mut client = dial.connect();
    client.send(GET).await;
    sleep(secs(1)).await;
    let start = Instant::now();
    handle.shutdown();
    sleep(secs(19)).await;
    assert!(!token.is_cancelled(), "shutdown is not yet force");
    assert_eq!(client.answer().await.body, "cancelled");
    assert_eq!(start.elapsed().as_secs(), 20);
    assert!(token.is_cancelled());
    drop(client);
    let report = server.await.unwrap().unwrap();
    assert_eq!((report.forced, report.leaked_tasks()), (1, 0));
    assert_eq!(handle.done().await, report);
}

#[tokio::test(start_paused = true)]
async fn an_answer_outlives_the_bytes_that_still_come() {
    // An upload that is not read: closing at once would reset the connection and lose the response.
    let drain = Drain::new();
    let early = Router::new().route("/", post(|| async { "enough" }));
    let mut client = serve(&drain, early).connect();
    client.send(POST).await;
    let answer = client.answer().await;
    assert_eq!(answer.body, "enough");
    for _ in 0..9 {
        client.0.write_all(&[b'x'; 1000]).await.expect("still read");
        sleep(ms(100)).await;
    }
    assert_eq!(drain.snapshot().guests, 1);
    sleep(secs(1)).await;
    assert_eq!(drain.snapshot().guests, 0, "but not for ever");
}

/// A stream that cannot be closed: for example a TLS stream whose peer takes no more bytes.
struct Unclosable(tokio::io::DuplexStream);

impl tokio::io::AsyncRead for Unclosable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Unclosable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn one_whose_end_is_not_taken_has_thirty_seconds_too() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let wrap = |accepted: Accepted<tokio::io::DuplexStream>| {
        let (io, rest) = accepted.split();
        rest.with(Unclosable(io))
    };
    let http = tower::ServiceBuilder::new()
        .map_request(wrap)
        .service(Http::new(&drain, app()));
    tokio::spawn(Server::new(&drain, listener).run(http));
    let mut client = dial.connect();
    let answer = client
        .ask("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.ok());
    sleep(secs(29)).await;
    assert_eq!(drain.snapshot().guests, 1);
    sleep(secs(2)).await;
    assert_eq!(drain.snapshot().guests, 0, "cut");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_connection_gets_the_response_of_the_rejecting_service() {
    async fn hold(accepted: Accepted<tokio::io::DuplexStream>) -> std::io::Result<()> {
        let (mut io, _rest) = accepted.split();
        io.read_to_end(&mut Vec::new()).await.map(|_| ())
    }
    let drain = Drain::new();
    for (refuse, said) in [
        (
            Overloaded::saying(b"-ERR max clients\r\n"),
            "-ERR max clients\r\n",
        ),
        (Overloaded::silent(), ""),
    ] {
        let limit = ConnectionLimit::new(NonZeroUsize::MIN);
        let layer = ConnectionLimitLayer::new(&limit).refuse_overloaded(refuse);
        let (dial, listener) = wire();
        tokio::spawn(drain.accept_loop(listener, layer.layer(service_fn(hold))));
        let _first = dial.connect();
        sleep(ms(1)).await;
        let mut second = dial.connect();
        let mut heard = String::new();
        second.0.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, said);
        assert_eq!((limit.open(), limit.refused()), (1, 1));
    }
}

#[tokio::test]
async fn a_body_by_itself_has_no_clock() {
    fn is_body<B: http_body::Body<Data = Bytes> + Send + Unpin + 'static>() {}
    is_body::<RequestBody>();
}
