//! The per-client limit, and the circuit round a backend that fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::common::{Backend, Gateway, PATIENCE, get, send, status, tcp};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_past_its_limit_gets_retry_after_and_other_clients_are_not_affected() {
    let backend = Backend::named("backend").await;
    let gateway =
        Gateway::with_backends(&[backend.address], "[per_client]\nrate = 5\nburst = 5\n").await;
    let mut connection = gateway.connect(1).await;
    let mut refused = 0;
    for _ in 0..8 {
        let answer = send(&mut connection, get("/")).await.unwrap();
        match answer.status.as_u16() {
            200 => {}
            429 => {
                refused += 1;
                assert_eq!(
                    answer.headers["retry-after"], "1",
                    "a fifth of a second, rounded up"
                );
                assert_eq!(answer.headers["content-type"], "application/problem+json");
            }
            other => panic!("{other}"),
        }
    }
    assert!(
        (2..=3).contains(&refused),
        "{refused} of 8 refused at 5 a second with a burst of 5"
    );
    assert_eq!(gateway.get(2, "/").await.status, 200, "another client");
    assert_eq!(
        gateway
            .metric("gateway_responses_total{code=\"429\"}")
            .await as usize,
        refused
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        send(&mut connection, get("/")).await.unwrap().status,
        200,
        "told 1 s, served after 1 s"
    );
}

/// A backend that answers with a status the test sets; 0 is no answer at all.
async fn moody(mood: &Arc<AtomicU16>) -> Backend {
    let mood = mood.clone();
    Backend::new(move |_| {
        let mood = mood.load(SeqCst);
        async move {
            if mood == 0 {
                std::future::pending::<()>().await;
            }
            status(mood)
        }
    })
    .await
}

async fn circuit(gateway: &Gateway, backend: &str) -> String {
    let topology = gateway.topology().await;
    let endpoints = topology["endpoints"].as_array().unwrap();
    let endpoint = endpoints
        .iter()
        .find(|endpoint| endpoint["id"] == backend)
        .unwrap();
    endpoint["circuit"]["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_failures_open_the_circuit_the_balance_goes_round_it_and_one_probe_closes_it() {
    let mood = Arc::new(AtomicU16::new(500));
    let (bad, good) = (moody(&mood).await, Backend::named("good").await);
    // Long enough that nothing below takes it for over, however busy the machine.
    let more = "[circuit]\nopen_for = '3s'\n[balance]\npolicy = 'round-robin'\n";
    let gateway = Gateway::with_backends(&[bad.address, good.address], more).await;
    let mut connection = gateway.connect(1).await;
    let mut failures = 0;
    // More than ten: while the gateway connects to one, the other one gets its turns.
    for _ in 0..30 {
        failures += usize::from(send(&mut connection, get("/")).await.unwrap().status == 500);
    }
    assert_eq!(
        (failures, bad.served()),
        (5, 5),
        "the circuit opens at the fifth failure in a row"
    );
    assert_eq!(circuit(&gateway, "b0").await, "open");
    for _ in 0..10 {
        assert_eq!(send(&mut connection, get("/")).await.unwrap().text, "good");
    }
    assert_eq!(
        bad.served(),
        5,
        "nothing reaches it while the circuit is open"
    );

    mood.store(200, SeqCst);
    gateway
        .wait_until("a probe closes it", async || {
            assert_eq!(gateway.get(1, "/").await.status, 200);
            circuit(&gateway, "b0").await == "closed"
        })
        .await;
    let before = bad.served();
    for _ in 0..10 {
        assert_eq!(send(&mut connection, get("/")).await.unwrap().status, 200);
    }
    assert!(bad.served() > before, "it gets its share again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_whose_client_hangs_up_does_not_wedge_the_circuit() {
    // The last backend never goes out, so there is another one.
    let mood = Arc::new(AtomicU16::new(500));
    let (backend, other) = (
        moody(&mood).await,
        moody(&Arc::new(AtomicU16::new(200))).await,
    );
    let more = "[circuit]\nopen_for = '200ms'\n[balance]\nmax_wait = '5s'\n";
    let gateway = Gateway::with_backends(&[backend.address, other.address], more).await;
    gateway
        .wait_until("it opens", async || {
            gateway.get(1, "/").await;
            circuit(&gateway, "b0").await == "open"
        })
        .await;

    mood.store(0, SeqCst);
    let served = backend.served();
    let probe = loop {
        let mut connection = gateway.connect(1).await;
        let request = tokio::spawn(async move { send(&mut connection, get("/")).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        if backend.served() > served {
            break request;
        }
        assert_eq!(request.await.unwrap().unwrap().status, 200, "the other one");
    };
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());

    mood.store(200, SeqCst);
    gateway
        .wait_until("a later caller probes it", async || {
            assert_eq!(gateway.get(1, "/").await.status, 200);
            circuit(&gateway, "b0").await == "closed"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_does_not_respond_is_a_timeout() {
    let backend = moody(&Arc::new(AtomicU16::new(0))).await;
    let gateway =
        Gateway::with_backends(&[backend.address], "[timeouts]\nresponse = '200ms'\n").await;
    let answer = gateway.get(1, "/").await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
}

/// What its clients do wrong is not a backend's failure: five of each would open its circuit otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_break_off_or_send_nonsense_open_no_circuit() {
    let backend = Backend::new(|request| async move {
        let streams = request.uri().path() == "/stream";
        let _ = request.into_body().collect().await;
        if !streams {
            return status(200);
        }
        let first = futures_util::stream::iter([Ok(http_body::Frame::data(
            bytes::Bytes::from_static(b"event"),
        ))]);
        let body = StreamBody::new(first.chain(futures_util::stream::pending()));
        http::Response::new(BodyExt::boxed(body))
    })
    .await;
    let gateway = Gateway::with_backends(&[backend.address], "").await;
    let head = "POST / HTTP/1.1\r\nhost: test\r\n";
    for _ in 0..7 {
        for request in [
            format!("{head}content-length: 100\r\n\r\nhalf"),
            format!("{head}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nZZZ\r\n"),
            format!("{head}content-type: application/grpc\r\ncontent-length: 0\r\n\r\n"),
            "GET /stream HTTP/1.1\r\nhost: test\r\n\r\n".to_owned(),
        ] {
            let mut stream = tcp(gateway.address, 1).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    gateway
        .wait_until("all of them are over", async || {
            gateway.metric("gateway_requests_in_flight").await == 0.0
        })
        .await;
    assert_eq!(circuit(&gateway, "b0").await, "closed");
    assert_eq!(gateway.get(1, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_may_take_longer_than_an_answer_and_one_that_stops_is_the_clients_business() {
    const LIMIT: Duration = Duration::from_secs(1);
    let backend = Backend::named("thanks").await;
    let gateway = Gateway::with_backends(&[backend.address], "[timeouts]\nresponse = '1s'\n").await;
    // Sends for longer than the limit, and returns the longest pause between two bytes.
    let upload = async || {
        let mut slow = tcp(gateway.address, 1).await.unwrap();
        slow.write_all(
            b"POST / HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 15\r\n\r\n",
        )
        .await
        .unwrap();
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        for _ in 0..15 {
            // The gateway may have given up on a client that paused.
            let _ = slow.write_all(b"x").await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            tokio::time::sleep(LIMIT / 10).await;
        }
        let mut answer = String::new();
        let _ = tokio::time::timeout(PATIENCE, slow.read_to_string(&mut answer))
            .await
            .expect("the gateway closes");
        (answer, longest)
    };
    // On a busy machine this client may pause by itself: then the gateway was right to give up.
    let mut uploaded = upload().await;
    for _ in 0..10 {
        if uploaded.1 < LIMIT / 2 {
            break;
        }
        uploaded = upload().await;
    }
    let (answer, longest) = uploaded;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("thanks"),
        "{longest:?} {answer}"
    );

    let mut stalled = Vec::new();
    for _ in 0..6 {
        let mut stream = tcp(gateway.address, 1).await.unwrap();
        stream
            .write_all(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nx")
            .await
            .unwrap();
        stalled.push(stream);
    }
    for mut stream in stalled {
        let mut answer = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&answer, b"HTTP/1.1 504");
    }
    assert_eq!(circuit(&gateway, "b0").await, "closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_hangs_opens_its_circuit_and_the_last_one_stays() {
    let hanging = Arc::new(AtomicU16::new(0));
    let (first, second) = (moody(&hanging).await, moody(&hanging).await);
    let more = "[timeouts]\nresponse = '100ms'\n[balance]\nmax_wait = '100ms'\n";
    let gateway = Gateway::with_backends(&[first.address, second.address], more).await;
    for _ in 0..14 {
        assert_eq!(gateway.get(1, "/").await.status, 504);
    }
    let states = [circuit(&gateway, "b0").await, circuit(&gateway, "b1").await];
    assert!(
        states.contains(&"open".into()) && states.contains(&"closed".into()),
        "{states:?}"
    );
    hanging.store(200, SeqCst);
    assert_eq!(
        gateway.get(1, "/").await.status,
        200,
        "it is asked all the time"
    );
}
