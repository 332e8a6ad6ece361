//! What passes through on the wire, byte by byte where a client library would not send it.

use std::sync::{Arc, Mutex};

use http::{Request, Response, request::Parts};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::common::{Backend, Gateway, PATIENCE, connect_h2, empty, full, get, send, tcp};

/// What a backend was sent: heads and bodies.
type Sent = Arc<Mutex<Vec<(Parts, String)>>>;

/// A backend that remembers what it was sent, and answers `ok`.
async fn recorder() -> (Backend, Sent) {
    let sent = Sent::default();
    let record = sent.clone();
    let backend = Backend::new(move |request| {
        let record = record.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            record
                .lock()
                .unwrap()
                .push((head, String::from_utf8(body.to_vec()).unwrap()));
            Response::new(full("ok"))
        }
    });
    (backend.await, sent)
}

async fn recorded() -> (Gateway, Sent, Backend) {
    let (backend, sent) = recorder().await;
    (
        Gateway::with_backends(&[backend.address], "").await,
        sent,
        backend,
    )
}

/// Writes this and reads until the gateway closes: the last request should ask for that.
async fn talk(gateway: &Gateway, bytes: &str) -> String {
    let mut stream = tcp(gateway.address, 1).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    to_the_end(&mut stream).await
}

async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the gateway closes")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

const LAST: &str = "GET /last HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_refused_upgrade_or_tunnel_is_never_taken_for_requests() {
    let (gateway, sent, _backend) = recorded().await;
    for asking in [
        "GET /first HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "CONNECT a.example:1 HTTP/1.1\r\nhost: a.example:1\r\n\r\n",
    ] {
        let answer = talk(
            &gateway,
            &format!("{asking}GET /smuggled HTTP/1.1\r\nhost: test\r\n\r\n"),
        )
        .await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    // Clients that offer h2c wait for the answer, and their connections are kept.
    let offer = "GET /first HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
    let answer = talk(&gateway, &format!("{offer}{LAST}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    let paths: Vec<String> = sent
        .lock()
        .unwrap()
        .iter()
        .map(|(head, _)| head.uri.to_string())
        .collect();
    assert_eq!(paths, ["/first", "/first", "/last"]);
}

/// The same for a refusal that comes before the request is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limited_upgrade_ends_its_connection_too() {
    let (backend, _) = recorder().await;
    let gateway =
        Gateway::with_backends(&[backend.address], "[per_client]\nrate = 1\nper = 'hour'\n").await;
    assert_eq!(gateway.get(1, "/").await.status, 200);
    let upgrade =
        "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let answer = talk(&gateway, &format!("{upgrade}{upgrade}")).await;
    assert!(
        answer.starts_with("HTTP/1.1 429") && answer.matches("HTTP/1.1 ").count() == 1,
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_arrives_with_every_method_however_it_was_framed() {
    let (gateway, sent, _backend) = recorded().await;
    let (mut h1, mut h2) = (
        gateway.connect(1).await,
        connect_h2(gateway.address, 2).await,
    );
    let methods = ["GET", "HEAD", "DELETE", "OPTIONS", "POST"];
    for method in methods {
        // Of unknown length: chunked over HTTP/1, and without a content-length over HTTP/2.
        let body = || {
            let frames = futures_util::stream::iter(
                ["he", "llo"].map(|text| Ok(http_body::Frame::data(text.into()))),
            );
            BodyExt::boxed(http_body_util::StreamBody::new(frames))
        };
        let request = Request::builder().method(method);
        let over_h1 = request
            .uri("/h1")
            .header("host", "test")
            .header("transfer-encoding", "chunked");
        assert_eq!(
            send(&mut h1, over_h1.body(body()).unwrap())
                .await
                .unwrap()
                .status,
            200
        );
        let over_h2 = Request::builder()
            .method(method)
            .uri(format!("http://{}/h2", gateway.address));
        let response = h2
            .send_request(over_h2.body(body()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
    }
    for (head, body) in sent.lock().unwrap().iter() {
        assert_eq!(body, "hello", "{} {}", head.method, head.uri);
    }
    assert_eq!(sent.lock().unwrap().len(), 2 * methods.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cannot_send_the_token_of_a_lease() {
    let (gateway, sent, _backend) = recorded().await;
    talk(&gateway, "GET / HTTP/1.1\r\nhost: test\r\nx-lease-token: echo/1;99\r\nx-lease-epoch: 99\r\nx-lease-epoch: 1\r\nconnection: close\r\n\r\n").await;
    let (head, _) = sent.lock().unwrap().pop().unwrap();
    assert!(
        head.headers
            .keys()
            .all(|name| !name.as_str().starts_with("x-lease")),
        "{head:?}"
    );
}

/// Nor in trailers, which some applications merge with the head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_trailer_cannot_carry_a_token_or_an_address() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let backend = Backend::new(move |request| {
        let record = record.clone();
        async move {
            let body = request.into_body().collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap_or_default();
            record.lock().unwrap().push(trailers);
            Response::new(full("ok"))
        }
    })
    .await;
    let gateway = Gateway::with_backends(&[backend.address], "").await;
    let upload = "POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\
        trailer: x-lease-token, x-forwarded-for, x-check\r\n\r\n\
        2\r\nhi\r\n0\r\nx-lease-token: echo/1;9\r\nx-forwarded-for: 10.0.0.1\r\nx-check: 1\r\n\r\n";
    let answer = talk(&gateway, &format!("{upload}{LAST}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen[0].keys().collect::<Vec<_>>(),
        ["x-check"],
        "and what is no claim arrives"
    );
}

/// HTTP/2 refuses to send it, and HTTP/1 clients differ in what they make of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_length_that_is_given_twice_is_passed_on_once() {
    const TWICE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok";
    let gateway = Gateway::with_backends(&[scripted(&[TWICE; 2]).await], "").await;
    let answer = gateway.get(1, "/").await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "ok"));
    assert_eq!(answer.headers["content-length"], "2");
    let mut h2 = connect_h2(gateway.address, 2).await;
    let request = Request::get(format!("http://{}/", gateway.address));
    let answer = h2
        .send_request(request.body(empty()).unwrap())
        .await
        .unwrap();
    let body = timeout(PATIENCE, answer.into_body().collect())
        .await
        .unwrap();
    assert_eq!(body.unwrap().to_bytes(), "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_request_gets_a_problem_document_and_is_not_forwarded() {
    let (gateway, sent, _backend) = recorded().await;
    let close = "connection: close\r\n\r\n";
    for (request, status, code) in [
        ("GET / HTTP/1.1\r\n", 400, "no-host"),
        ("GET http://a.example/ HTTP/1.1\r\n", 400, "no-host"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400, "two-hosts"),
        ("GET * HTTP/1.1\r\nhost: a\r\n", 400, "request-target"),
        (
            "GET ftp://a.example/ HTTP/1.1\r\nhost: a\r\n",
            400,
            "request-target",
        ),
        (
            "GET a.example:80 HTTP/1.1\r\nhost: a\r\n",
            400,
            "request-target",
        ),
        ("TRACE / HTTP/1.1\r\nhost: a\r\n", 405, "method-not-allowed"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n",
            501,
            "transfer-coding",
        ),
    ] {
        let answer = talk(&gateway, &format!("{request}{close}")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        assert!(
            head.contains("content-type: application/problem+json"),
            "{request}: {answer}"
        );
        assert_eq!(
            head.contains("allow: "),
            status == 405,
            "{request}: {answer}"
        );
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&problem["status"], &problem["code"]),
            (&status.into(), &code.into()),
            "{request}"
        );
    }
    let answer = talk(
        &gateway,
        &format!("OPTIONS * HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n{close}"),
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("allow: "),
        "{answer}"
    );
    assert!(sent.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order_with_a_refusal_among_them() {
    let (backend, sent) = recorder().await;
    let gateway = Gateway::with_backends(
        &[backend.address],
        "[per_client]\nrate = 1\nper = 'hour'\nburst = 2\n",
    )
    .await;
    let one = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nGET ";
    let answer = talk(&gateway, &format!("{one}{one}{one}{LAST}")).await;
    let statuses: Vec<&str> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "200", "429", "429"], "{answer}");
    assert_eq!(sent.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_gets_it_before_its_answer_and_not_before_a_refusal() {
    let (backend, sent) = recorder().await;
    let gateway =
        Gateway::with_backends(&[backend.address], "[per_client]\nrate = 1\nper = 'hour'\n").await;
    let head = "POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 2\r\n\r\n";
    let mut stream = tcp(gateway.address, 1).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut interim))
        .await
        .expect("it is told to go on")
        .unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").await.unwrap();
    assert!(to_the_end(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(sent.lock().unwrap()[0].1, "hi");
    assert!(
        talk(&gateway, head).await.starts_with("HTTP/1.1 429 "),
        "it never sends its body"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_half_gets_a_response_if_that_is_configured() {
    let half_closed = async |more: &str| {
        let slow = Backend::new(|_| async {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            Response::new(full("slow"))
        })
        .await;
        let config = format!("{more}\n{}", crate::common::config(&[slow.address], ""));
        let gateway = Gateway::configured(&config).await;
        let mut stream = tcp(gateway.address, 1).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        to_the_end(&mut stream).await
    };
    let answer = half_closed("half_close = true").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("slow"),
        "{answer}"
    );
    assert_eq!(
        half_closed("").await,
        "",
        "it has left, as far as anybody can tell"
    );
}

/// A backend that answers each request with the next of these, and keeps its connections.
async fn scripted(answers: &'static [&'static str]) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let answers = Arc::new(Mutex::new(answers.iter()));
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let Some(answer) = answers.lock().unwrap().next() else {
                        return;
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_a_backend_should_not_have_sent_are_nobodys_answer() {
    let backend = scripted(&[
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood",
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood",
    ])
    .await;
    let gateway = Gateway::with_backends(&[backend], "").await;
    let mut connection = gateway.connect(1).await;
    let mut seen = Vec::new();
    for _ in 0..8 {
        let answer = send(&mut connection, get("/")).await.unwrap();
        seen.push(answer.status.as_u16());
        assert!(!answer.text.contains("evil"), "{seen:?}");
    }
    assert_eq!(seen, [304, 200, 204, 200, 200, 200, 502, 200]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_reach_an_http_2_client_without_what_would_break_its_stream() {
    let backend = scripted(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
        2\r\nok\r\n0\r\nx-checksum: 1\r\nconnection: x-a\r\ncontent-length: 9\r\n\r\n"])
    .await;
    let gateway = Gateway::with_backends(&[backend], "").await;
    let mut connection = connect_h2(gateway.address, 1).await;
    let request = Request::get(format!("http://{}/", gateway.address))
        .body(empty())
        .unwrap();
    let body = connection
        .send_request(request)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    let trailers = body.trailers().unwrap();
    assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-checksum"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_takes_get_and_head_and_lists_the_allowed_methods() {
    let (gateway, _, _backend) = recorded().await;
    for path in ["/live", "/ready", "/metrics", "/topology"] {
        let mut operator = crate::common::connect(gateway.admin, 0).await.unwrap();
        for (method, status) in [("GET", 200), ("HEAD", 200), ("POST", 405)] {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "admin")
                .body(empty())
                .unwrap();
            let answer = send(&mut operator, request).await.unwrap();
            assert_eq!(answer.status, status, "{method} {path}");
            assert_eq!(
                answer.headers.get("allow").is_some(),
                status == 405,
                "{method} {path}"
            );
            assert_eq!(answer.text.is_empty(), method == "HEAD", "{method} {path}");
        }
    }
    assert_eq!(
        gateway.admin_post("/replicas/echo-1/kill").await.0,
        404,
        "only the demo has replicas"
    );
}
