//! SIGTERM under load loses no request.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::common::{Backend, Gateway, connect, connect_h2, get, send, tcp};
use http::Request;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::Instant,
};

/// What the clients of a drain saw, by name; anything that is not named here panics.
type Seen = BTreeMap<&'static str, usize>;

/// A backend, and how many requests for `/stream` have reached it.
async fn backend() -> (Backend, Arc<AtomicUsize>) {
    let streams = Arc::new(AtomicUsize::new(0));
    let counter = streams.clone();
    let backend = Backend::new(move |request| {
        let path = request.uri().path().to_owned();
        counter.fetch_add(usize::from(path == "/stream"), SeqCst);
        async move {
            if path == "/slow" {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            http::Response::new(crate::common::full("x".repeat(2000)))
        }
    });
    (backend.await, streams)
}

/// Keeps its connection until a response with `Connection: close`, then opens a new one; ends when that fails.
async fn kept(address: SocketAddr, client: u8) -> Seen {
    let mut seen = Seen::new();
    while let Ok(mut connection) = connect(address, client).await {
        loop {
            let answer = match send(&mut connection, get("/")).await {
                Ok(answer) => answer,
                // Closed by the gateway while idle, in its last-chance window: nothing was sent.
                Err(error) if error.is_canceled() || error.is_closed() => {
                    *seen.entry("closed while idle").or_default() += 1;
                    break;
                }
                Err(error) => panic!("a request on a kept connection failed: {error:?}"),
            };
            assert_eq!(answer.status, 200, "{}", answer.text);
            *seen.entry("kept").or_default() += 1;
            if answer
                .headers
                .get("connection")
                .is_some_and(|value| value == "close")
            {
                *seen.entry("told to close").or_default() += 1;
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    seen
}

/// A connection a request, until none is to be had.
async fn fresh(address: SocketAddr, client: u8) -> Seen {
    let mut seen = Seen::new();
    while let Ok(mut connection) = connect(address, client).await {
        let answer = send(&mut connection, get("/"))
            .await
            .expect("who was let in is answered");
        assert_eq!(answer.status, 200, "{}", answer.text);
        *seen.entry("fresh").or_default() += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    seen
}

/// Streams on one HTTP/2 connection until the gateway sends GOAWAY. A stream that was not sent for it is no failure: the
/// client may send it elsewhere (RFC 9113 section 6.8). That it was not sent, the backend's count shows.
async fn streams(address: SocketAddr, client: u8) -> Seen {
    let mut seen = Seen::new();
    let mut connection = connect_h2(address, client).await;
    while connection.ready().await.is_ok() {
        let request = Request::get(format!("http://{address}/stream"))
            .body(crate::common::empty())
            .unwrap();
        let response = match connection.send_request(request).await {
            Ok(response) => response,
            // The going away arrived between `ready` and here, or the connection had ended by then: never sent.
            Err(error) if error.is_canceled() || format!("{error:?}").contains("NO_ERROR") => break,
            Err(error) => panic!("a stream failed: {error:?}"),
        };
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.expect("to its end");
        *seen.entry("streams").or_default() += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    *seen.entry("told to go away").or_default() += 1;
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_fails_no_request_and_ends_with_the_last_connection() {
    let (backend, streamed) = backend().await;
    let more = "[drain]\nannounce = '1s'\nclose = '20s'\n";
    let gateway = Gateway::with_backends(&[backend.address], more).await;
    let address = gateway.address;
    let mut clients = JoinSet::new();
    for client in 1..=8 {
        clients.spawn(kept(address, client));
        clients.spawn(fresh(address, 100 + client));
        clients.spawn(streams(address, 200 + client));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut slow = gateway.connect(99).await;
    let slow = tokio::spawn(async move { send(&mut slow, get("/slow")).await });
    let signalled = Instant::now();
    gateway.signal("TERM");

    gateway
        .wait_until("readiness goes off first", async || {
            gateway.admin_get("/ready").await.0 == 503
        })
        .await;
    assert_eq!(
        gateway.admin_get("/live").await.0,
        200,
        "it lives, and tells so"
    );
    let answer = gateway.get(98, "/").await;
    assert_eq!(
        answer.status, 200,
        "new connections are still served while announcing"
    );
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(slow.await.unwrap().unwrap().status, 200);

    let (code, told) = gateway.ended().await;
    let took = signalled.elapsed();
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("drained"), "it ends with a report: {told}");
    assert!(
        took >= Duration::from_secs(1),
        "not before it has announced: {took:?}"
    );
    assert!(
        took < Duration::from_secs(10),
        "as soon as the last connection has ended: {took:?}"
    );

    let mut seen = Seen::new();
    while let Some(client) = clients.join_next().await {
        for (what, count) in client.expect("no client saw a failure") {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seen:?} in {took:?}");
    assert_eq!(seen["told to go away"], 8);
    assert_eq!(
        seen["streams"],
        streamed.load(SeqCst),
        "every stream that was sent was answered"
    );
    assert!(seen["told to close"] >= 8, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_has_not_spoken_yet_gets_its_last_chance() {
    let (backend, _) = backend().await;
    let more = "[drain]\nannounce = '0s'\nclose = '10s'\n";
    let gateway = Gateway::with_backends(&[backend.address], more).await;
    let mut virgin = tcp(gateway.address, 1).await.unwrap();
    // Let the accept loop take it, so that it is not merely queued.
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.signal("TERM");
    tokio::time::sleep(Duration::from_millis(50)).await;
    virgin
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(crate::common::PATIENCE, virgin.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    assert!(
        answer.to_lowercase().contains("connection: close"),
        "{answer:?}"
    );
    assert_eq!(gateway.ended().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_forces_the_end_and_the_report_counts_what_was_cut() {
    let backend = Backend::new(|_| std::future::pending()).await;
    let gateway = Gateway::with_backends(&[backend.address], "[drain]\nforce = '0s'\n").await;
    let stuck = Arc::new(AtomicBool::new(true));
    let mut connection = gateway.connect(1).await;
    let still = stuck.clone();
    let request = tokio::spawn(async move {
        let answer = send(&mut connection, get("/")).await;
        still.store(false, SeqCst);
        answer
    });
    gateway
        .wait_until("the request is under way", async || backend.served() == 1)
        .await;
    gateway.signal("TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(stuck.load(SeqCst), "the first signal waits for it");
    let began = Instant::now();
    gateway.signal("TERM");
    let (code, told) = gateway.ended().await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "the second does not"
    );
    assert_eq!(
        code,
        Some(3),
        "an end that cut something is told by the exit code: {told}"
    );
    assert!(told.contains("1 "), "{told}");
    // What is cut is answered 503 if there is time to write it; otherwise the connection breaks.
    if let Ok(answer) = request.await.unwrap() {
        assert_eq!(answer.status, 503, "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_gateway_ends_after_its_announcement() {
    let (backend, _) = backend().await;
    let gateway = Gateway::with_backends(&[backend.address], "[drain]\nannounce = '200ms'\n").await;
    let began = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.0, Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "there was nobody to wait for: {:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_ends_no_gateway_that_has_a_configuration() {
    let (backend, _) = backend().await;
    let gateway = Gateway::with_backends(&[backend.address], "").await;
    let mut connection = gateway.connect(1).await;
    let slow = tokio::spawn(async move { send(&mut connection, get("/slow")).await });
    gateway
        .wait_until("the request is under way", async || backend.served() == 1)
        .await;
    gateway.signal("HUP");
    assert_eq!(slow.await.unwrap().unwrap().status, 200);
    let mut later = gateway.connect(1).await;
    assert_eq!(send(&mut later, get("/")).await.unwrap().status, 200);
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_whose_terminal_is_closed_drains() {
    let gateway = Gateway::demo().await;
    gateway.signal("HUP");
    assert_eq!(gateway.ended().await.0, Some(0));
}
