//! Disconnected clients are detected, with any data that they have sent before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tower_drain::{Drain, Http, Server};

use crate::support::*;

/// How many handlers there are, and responses under way.
#[derive(Clone, Default)]
struct Running(Arc<AtomicUsize>);

struct Counted(Running);

impl Running {
    fn one_more(&self) -> Counted {
        self.0.fetch_add(1, SeqCst);
        Counted(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }

    /// Waits for this number, and returns how long that took.
    async fn reach(&self, count: usize) -> Duration {
        let start = Instant::now();
        while self.count() != count {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{} left",
                self.count()
            );
            sleep(ms(1)).await;
        }
        start.elapsed()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// `/` never answers, `/events` answers with a body that never has anything to give, `/echo` counts a body.
fn hanging() -> (Router, Running) {
    let running = Running::default();
    let (waits, streams) = (running.clone(), running.clone());
    let wait = async move || {
        let _counted = waits.one_more();
        std::future::pending::<()>().await;
    };
    let events = async move || {
        let counted = streams.one_more();
        Body::from_stream(futures_util::stream::poll_fn(move |_| {
            let _ = &counted;
            std::task::Poll::<Option<std::io::Result<bytes::Bytes>>>::Pending
        }))
    };
    let app = Router::new()
        .route("/", get(wait.clone()).post(wait))
        .route("/events", get(events))
        .route("/hello", get(async || "hello"));
    (app, running)
}

async fn serve(drain: &Drain, app: Router, half_close: bool) -> std::net::SocketAddr {
    let (listener, addr) = listen().await;
    let http = Http::new(drain, app).half_close(half_close);
    tokio::spawn(Server::new(drain, listener).run(http));
    addr
}

/// The data that the client has sent after its request.
const BEHIND: [&str; 5] = ["", "\r\n", "G", GET, "GET / HTTP/1.1\r\nhost: te"];
const EVENTS: &str = "GET /events HTTP/1.1\r\nhost: test\r\n\r\n";
/// A body that the handler does not read.
const POST: &str = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello";

/// The connection is reset when this is dropped.
fn will_reset(client: &Client) {
    SockRef::from(&client.0)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[tokio::test]
async fn a_disconnected_client_is_detected_with_any_data_behind_its_request() {
    let drain = Drain::new();
    for half_close in [false, true] {
        for request in [GET, EVENTS, POST] {
            for behind in BEHIND {
                for reset in [true, false] {
                    if half_close && !reset {
                        continue;
                    }
                    let (app, running) = hanging();
                    let addr = serve(&drain, app, half_close).await;
                    let mut client = Client(tokio::net::TcpStream::connect(addr).await.unwrap());
                    client.send(request).await;
                    client.send(behind).await;
                    running.reach(1).await;
                    sleep(ms(20)).await;
                    if reset {
                        will_reset(&client);
                        drop(client);
                    } else {
                        client.0.shutdown().await.unwrap();
                    }
                    let took = running.reach(0).await;
                    assert!(
                        took < ms(300),
                        "{took:?}: {request:?} {behind:?} {reset} {half_close}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn two_hundred_clients_that_reset_leave_no_handler() {
    let drain = Drain::new();
    let (app, running) = hanging();
    let addr = serve(&drain, app, false).await;
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = Client(tokio::net::TcpStream::connect(addr).await.unwrap());
        client.send(&format!("{GET}\r\n")).await;
        will_reset(&client);
        clients.push(client);
    }
    running.reach(200).await;
    drop(clients);
    running.reach(0).await;
    guests(&drain, 0).await;
}

#[tokio::test]
async fn what_was_read_ahead_is_served_in_its_order() {
    // Pipelined, in all sizes, behind a request whose handler is slow; and a body behind its head.
    let slow = get(async || {
        sleep(ms(20)).await;
        "slow"
    });
    let upload = axum::routing::post(async |body: bytes::Bytes| {
        format!(
            "{} {}",
            body.len(),
            body.iter().map(|byte| u64::from(*byte)).sum::<u64>()
        )
    });
    let drain = Drain::new();
    let app = Router::new().route("/slow", slow).route("/upload", upload);
    let addr = serve(&drain, app, false).await;
    let mut client = Client(tokio::net::TcpStream::connect(addr).await.unwrap());
    let body: String = (0..60_000)
        .map(|at| char::from(b'a' + (at % 26) as u8))
        .collect();
    let sum: u64 = body.bytes().map(u64::from).sum();
    for pause in [0, 1, 5] {
        client
            .send("GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")
            .await;
        sleep(ms(pause)).await;
        client
            .send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 60000\r\n\r\n")
            .await;
        for piece in body.as_bytes().chunks(7_001) {
            client.0.write_all(piece).await.unwrap();
            sleep(ms(pause)).await;
        }
        client
            .send("GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")
            .await;
        assert_eq!(client.answer().await.body, "slow");
        assert_eq!(client.answer().await.body, format!("60000 {sum}"));
        assert_eq!(client.answer().await.body, "slow");
    }
}

#[tokio::test]
async fn a_client_that_closes_its_half_gets_its_response_if_that_is_allowed_with_any_data_behind() {
    let drain = Drain::new();
    let slow = get(async || {
        sleep(ms(100)).await;
        "slow"
    });
    let addr = serve(&drain, Router::new().route("/", slow), true).await;
    for (behind, answers) in [("", 1), ("\r\n", 1), (GET, 2)] {
        let mut client = Client(tokio::net::TcpStream::connect(addr).await.unwrap());
        client.send(GET).await;
        sleep(ms(10)).await;
        client.send(behind).await;
        client.0.shutdown().await.unwrap();
        let mut all = String::new();
        soon(client.0.read_to_string(&mut all)).await.unwrap();
        assert_eq!(all.matches("slow").count(), answers, "{all}");
    }
}
