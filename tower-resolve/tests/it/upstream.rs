//! The pooled upstream against real servers on loopback.

use std::{
    convert::Infallible,
    error::Error,
    future::poll_fn,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Service, ServiceExt};
use tower_outcome::{BoxError, Class, EjectionBudget, Refusal, Unsent};
use tower_resolve::{
    Balance, Endpoint, Generation, Resolve, SourceId, StaticResolver,
    upstream::{Upstream, UpstreamBody},
};

type Body = Full<Bytes>;

/// An echo server that counts its connections. Aborting it closes them all.
struct Server {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

async fn listener(addr: SocketAddr) -> TcpListener {
    // A port that was just closed may take a moment.
    for _ in 0..100 {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("{addr} cannot be bound");
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

async fn serve(addr: SocketAddr) -> Server {
    let listener = listener(addr).await;
    let (addr, accepted) = (
        listener.local_addr().unwrap(),
        Arc::new(AtomicUsize::new(0)),
    );
    let count = accepted.clone();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, SeqCst);
            connections.spawn(
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(echo)),
            );
        }
    });
    Server {
        addr,
        accepted,
        task,
    }
}

/// Answers with the request line, the host and the body.
async fn echo(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let head = format!(
        "{} {} {:?}",
        request.method(),
        request.uri(),
        request.headers()["host"]
    );
    if request.uri().path() == "/slow" {
        sleep(Duration::from_millis(200)).await;
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Ok(Response::new(format!(
        "{head} {}",
        String::from_utf8_lossy(&body)
    )))
}

/// Plays `script` on each connection, with its number.
async fn raw<F: Future<Output = io::Result<()>> + Send + 'static>(
    script: impl Fn(TcpStream, usize) -> F + Send + 'static,
) -> SocketAddr {
    let listener = listener(anywhere()).await;
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(stream, number));
        }
    });
    addr
}

/// Reads a request's head.
async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::default()).unwrap()
}

async fn text(response: Response<UpstreamBody<Body>>) -> String {
    String::from_utf8(
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .to_vec(),
    )
    .unwrap()
}

/// Whether it is ready now.
async fn is_ready(upstream: &mut Upstream<Body>) -> bool {
    tokio::select! {
        biased;
        ready = poll_fn(|cx| upstream.poll_ready(cx)) => { ready.unwrap(); true }
        () = std::future::ready(()) => false,
    }
}

/// A connection is counted until its socket is closed, which its task does.
async fn open_are(upstream: &Upstream<Body>, open: usize) {
    within(async {
        while upstream.snapshot().open != open {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(10), future)
        .await
        .expect("within ten seconds")
}

#[tokio::test]
async fn a_connection_is_reused_and_the_request_arrives_whole() {
    let server = serve(anywhere()).await;
    let mut upstream = Upstream::new(server.addr);
    for turn in 0..20 {
        let body = format!("body {turn}");
        let uri = format!("http://example.com/path?{turn}");
        let request = Request::post(uri).body(Body::from(body.clone())).unwrap();
        let answer = text(
            within(upstream.ready().await.unwrap().call(request))
                .await
                .unwrap(),
        )
        .await;
        assert_eq!(answer, format!("POST /path?{turn} \"example.com\" {body}"));
    }
    assert_eq!(server.accepted.load(SeqCst), 1);
    let now = upstream.snapshot();
    assert_eq!((now.up, now.open, now.idle), (true, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_share_the_pool_on_several_threads() {
    let server = serve(anywhere()).await;
    let upstream = Upstream::<Body>::new(server.addr);
    let mut load = JoinSet::new();
    for _ in 0..16 {
        let mut upstream = upstream.clone();
        load.spawn(async move {
            for _ in 0..100 {
                text(upstream.ready().await?.call(get("/")).await?).await;
            }
            Ok::<_, BoxError>(())
        });
    }
    within(async {
        while let Some(task) = load.join_next().await {
            task.unwrap().unwrap();
        }
    })
    .await;
    // Not one for each request: a connection that is not ready again yet is skipped now and then.
    assert!(
        server.accepted.load(SeqCst) <= 64,
        "{}",
        server.accepted.load(SeqCst)
    );
}

#[tokio::test]
async fn a_closed_idle_connection_is_replaced_without_an_error() {
    let closes_after_a_while = |mut stream: TcpStream, number: usize| async move {
        read_head(&mut stream).await?;
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}").as_bytes())
            .await?;
        sleep(Duration::from_millis(10)).await;
        Ok(())
    };
    // With a limit of one: the closed one has to be replaced by the next.
    let addr = raw(closes_after_a_while).await;
    let mut upstream = Upstream::<()>::builder(addr)
        .max_connections(NonZeroUsize::MIN)
        .build();
    for number in 0..5 {
        assert_eq!(
            text(within(upstream.call(get("/"))).await.unwrap()).await,
            number.to_string()
        );
        // Until the close has been seen here: before that, a request is written to a connection that seems open.
        open_are(&upstream, 0).await;
    }
}

#[tokio::test]
async fn a_connection_found_closed_at_the_moment_of_use_is_replaced_too() {
    // On a separate thread, so that it can close while the only thread of the client is busy.
    let listener = std::net::TcpListener::bind(anywhere()).unwrap();
    let mut upstream = Upstream::new(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for number in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
            stream.write_all(answer.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(
        text(within(upstream.call(get("/"))).await.unwrap()).await,
        "0"
    );
    assert_eq!(upstream.snapshot().idle, 1);
    // The FIN arrives while the only thread is busy. Then the reactor sees it and wakes the task of the connection, but the
    // request is passed on before that task has run: it finds both.
    std::thread::sleep(Duration::from_millis(200));
    tokio::task::yield_now().await;
    let call = upstream.call(get("/"));
    assert_eq!(upstream.snapshot().idle, 0, "the dead one was taken");
    assert_eq!(text(within(call).await.unwrap()).await, "1");
}

#[tokio::test]
async fn a_refused_request_is_returned_and_readiness_is_connection_readiness() {
    let addr = listener(anywhere()).await.local_addr().unwrap();
    let mut upstream = Upstream::new(addr);
    assert!(is_ready(&mut upstream).await, "nothing bad is known yet");
    let request = Request::post("/path").body(Body::from("body")).unwrap();
    let error = within(upstream.call(request)).await.unwrap_err();
    assert!(
        Refusal::find(&*error).is_none(),
        "it counts as the upstream's failure"
    );
    let (request, cause) = Unsent::<Request<Body>>::recover(error).unwrap();
    assert_eq!(
        request.into_body().collect().await.unwrap().to_bytes(),
        "body"
    );
    assert_eq!(
        cause.downcast_ref::<io::Error>().unwrap().kind(),
        io::ErrorKind::ConnectionRefused
    );
    assert!(!is_ready(&mut upstream).await);
    let (mut other, mut third) = (upstream.clone(), upstream.clone());
    let waits = tokio::spawn(async move { poll_fn(|cx| other.poll_ready(cx)).await });
    sleep(Duration::from_millis(300)).await;
    assert!(!waits.is_finished() && !is_ready(&mut third).await);
    let server = serve(addr).await;
    within(waits).await.unwrap().unwrap();
    assert_eq!(upstream.snapshot().idle, 1, "a connection stands");
    assert!(is_ready(&mut third).await);
    text(within(upstream.call(get("/"))).await.unwrap()).await;
    assert_eq!(
        server.accepted.load(SeqCst),
        1,
        "and is the one that is used"
    );
}

#[tokio::test]
async fn a_connection_that_takes_too_long_counts_as_refused() {
    // There is no accept and the queue is full, so the kernel does not answer.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(anywhere()).unwrap();
    let listener = socket.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queue = JoinSet::new();
    for _ in 0..4 {
        queue.spawn(TcpStream::connect(addr));
    }
    sleep(Duration::from_millis(50)).await;
    let mut upstream = Upstream::<()>::builder(addr)
        .connect_timeout(Duration::from_millis(100))
        .build();
    let error = within(upstream.call(get("/"))).await.unwrap_err();
    let (_, cause) = Unsent::<Request<Body>>::recover(error).unwrap();
    assert_eq!(
        cause.downcast_ref::<io::Error>().unwrap().kind(),
        io::ErrorKind::TimedOut
    );
    assert!(!is_ready(&mut upstream).await);
}

#[tokio::test]
async fn a_truncated_response_is_an_error_and_not_a_clean_end() {
    for head in ["content-length: 20", "transfer-encoding: chunked"] {
        let breaks_off = move |mut stream: TcpStream, _| async move {
            read_head(&mut stream).await?;
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n").as_bytes())
                .await
        };
        let mut upstream = Upstream::new(raw(breaks_off).await);
        let response = within(upstream.call(get("/"))).await.unwrap();
        // The promised bytes, or the last chunk, never arrive.
        within(response.into_body().collect())
            .await
            .map(|body| body.to_bytes())
            .unwrap_err();
        assert_eq!(upstream.snapshot().idle, 0);
        assert!(
            is_ready(&mut upstream).await,
            "one broken answer does not take the address down"
        );
    }
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_was_written_is_not_unsent() {
    let hangs_up = |mut stream: TcpStream, _| async move { read_head(&mut stream).await.map(drop) };
    let mut upstream = Upstream::new(raw(hangs_up).await);
    let error = within(upstream.call(get("/"))).await.unwrap_err();
    let error = Unsent::<Request<Body>>::recover(error).unwrap_err();
    assert!(
        error.is::<hyper::Error>() && Refusal::find(&*error).is_none(),
        "{error}"
    );
}

#[tokio::test]
async fn a_body_dropped_halfway_and_an_abandoned_call_close_their_connections() {
    let hangs = |mut stream: TcpStream, _| async move {
        read_head(&mut stream).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
            .await?;
        let closed = stream.read_u8().await;
        closed.map(drop)
    };
    let mut upstream = Upstream::new(raw(hangs).await);
    let mut body = within(upstream.call(get("/"))).await.unwrap().into_body();
    within(body.frame()).await.unwrap().unwrap();
    assert_eq!(upstream.snapshot().open, 1);
    drop(body);
    open_are(&upstream, 0).await;
    drop(upstream.call(get("/")));
    let server = serve(anywhere()).await;
    let mut upstream = Upstream::new(server.addr);
    assert!(
        timeout(Duration::from_millis(50), upstream.call(get("/slow")))
            .await
            .is_err()
    );
    open_are(&upstream, 0).await;
}

#[tokio::test]
async fn at_the_limit_of_connections_requests_are_returned_and_readiness_waits() {
    let server = serve(anywhere()).await;
    let mut upstream = Upstream::<()>::builder(server.addr)
        .max_connections(NonZeroUsize::MIN)
        .build::<Body>();
    let held = within(upstream.call(get("/"))).await.unwrap();
    assert!(!is_ready(&mut upstream).await);
    let error = within(upstream.call(get("/"))).await.unwrap_err();
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::Exhausted, "upstream-connections")
    );
    assert!(Unsent::<Request<Body>>::recover(error).is_ok());
    assert!(
        upstream.snapshot().up,
        "a local limit is no failure of the other side"
    );
    let mut other = upstream.clone();
    let waits = tokio::spawn(async move { poll_fn(|cx| other.poll_ready(cx)).await });
    sleep(Duration::from_millis(20)).await;
    assert!(!waits.is_finished());
    text(held).await;
    within(waits).await.unwrap().unwrap();
    // Once more, with a connection that is closed.
    let held = within(upstream.call(get("/"))).await.unwrap();
    let mut other = upstream.clone();
    let waits = tokio::spawn(async move { poll_fn(|cx| other.poll_ready(cx)).await });
    sleep(Duration::from_millis(20)).await;
    assert!(!waits.is_finished());
    drop(held);
    within(waits).await.unwrap().unwrap();
}

/// One connection for two dozen clients: they wait for it, and none gets an error about the address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_connection_in_use_a_request_waits_for_one() {
    let server = serve(anywhere()).await;
    let resolver = StaticResolver::new().with("one", [Endpoint::new("only", server.addr)]);
    let (balance, driver) = Balance::builder()
        .http()
        .max_wait(Duration::from_secs(10))
        .build(resolver.resolve("one"), |endpoint, _| {
            Upstream::<()>::builder(endpoint.addr())
                .max_connections(NonZeroUsize::MIN)
                .build::<Body>()
        });
    tokio::spawn(driver);
    let mut clients = JoinSet::new();
    for _ in 0..24 {
        let mut balance = balance.clone();
        clients.spawn(async move {
            for _ in 0..20 {
                let response = within(balance.call(get("/")))
                    .await
                    .expect("a connection is free");
                response.into_body().collect().await.unwrap();
            }
        });
    }
    within(async { while clients.join_next().await.transpose().unwrap().is_some() {} }).await;
    assert_eq!(server.accepted.load(SeqCst), 1);
}

/// A response may come before its request has been sent: then its connection is free when the upload ends.
#[tokio::test]
async fn a_waiting_request_gets_a_connection_whose_upload_ends_after_its_response() {
    let addr = raw(|mut stream, number| async move {
        read_head(&mut stream).await?;
        if number == 0 {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await?;
        }
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    })
    .await;
    let mut upstream = Upstream::<()>::builder(addr)
        .max_connections(NonZeroUsize::new(2).unwrap())
        .idle_timeout(Duration::from_secs(600))
        .build();
    let upload = || {
        let (frames, body) = mpsc::unbounded_channel::<Result<http_body::Frame<Bytes>, BoxError>>();
        let body = StreamBody::new(UnboundedReceiverStream::new(body));
        (frames, Request::post("/").body(body).unwrap())
    };
    let (frames, request) = upload();
    within(upstream.call(request)).await.unwrap();
    // The other connection stays in use.
    let held = tokio::spawn(upstream.call(upload().1));
    within(async {
        while upstream.snapshot().open < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let waits = tokio::spawn(async move { poll_fn(|cx| upstream.poll_ready(cx)).await });
    sleep(Duration::from_millis(20)).await;
    assert!(!waits.is_finished());
    drop(frames);
    within(waits).await.unwrap().unwrap();
    held.abort();
}

/// A failed upload is on the side of the client, and must not open a circuit.
#[tokio::test]
async fn a_request_body_that_fails_is_no_failure_of_the_upstream() {
    let server = serve(anywhere()).await;
    let mut upstream = Upstream::new(server.addr);
    let frames = [
        Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
        Err(io::Error::other("the client is gone")),
    ];
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    let error = within(upstream.call(Request::post("/").body(body).unwrap()))
        .await
        .unwrap_err();
    let refusal = Refusal::find(&*error).expect("a refusal, which every classification ignores");
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::BadRequest, "request-body")
    );
}

#[tokio::test]
async fn idle_connections_are_bounded_in_number_and_time() {
    let server = serve(anywhere()).await;
    let mut upstream = Upstream::<()>::builder(server.addr)
        .max_idle(2)
        .idle_timeout(Duration::from_millis(300))
        .build::<Body>();
    let calls: Vec<_> = (0..5).map(|_| upstream.call(get("/slow"))).collect();
    let responses = within(futures_util::future::try_join_all(calls))
        .await
        .unwrap();
    for response in responses {
        text(response).await;
    }
    open_are(&upstream, 2).await;
    assert_eq!(upstream.snapshot().idle, 2);
    open_are(&upstream, 0).await;
    text(within(upstream.call(get("/"))).await.unwrap()).await;
}

#[tokio::test]
async fn an_upgrade_gives_the_connection_away() {
    let switches = |mut stream: TcpStream, _| async move {
        read_head(&mut stream).await?;
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhi",
            )
            .await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte + 1).await
    };
    let mut upstream = Upstream::new(raw(switches).await);
    let request = Request::get("/")
        .header("upgrade", "x")
        .header("connection", "upgrade");
    let response = within(upstream.call(request.body(Body::default()).unwrap()))
        .await
        .unwrap();
    assert_eq!(response.status(), 101);
    let mut io = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
    let mut hi = [0; 2];
    within(io.read_exact(&mut hi)).await.unwrap();
    io.write_u8(7).await.unwrap();
    assert_eq!((&hi, within(io.read_u8()).await.unwrap()), (b"hi", 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_killed_under_load_fails_only_requests_written_to_it() {
    let (mut one, two) = (serve(anywhere()).await, serve(anywhere()).await);
    let endpoints =
        [("one", one.addr), ("two", two.addr)].map(|(id, addr)| Endpoint::new(id, addr));
    let names = StaticResolver::new().with("echo", endpoints);
    let make = |endpoint: &Endpoint, _: &EjectionBudget| Upstream::<Body>::new(endpoint.addr());
    let (balance, driver) = Balance::builder().http().build(names.resolve("echo"), make);
    tokio::spawn(driver);
    let mut load = JoinSet::new();
    for _ in 0..16 {
        let mut balance = balance.clone();
        load.spawn(async move {
            let (mut lost, end) = (
                0,
                tokio::time::Instant::now() + Duration::from_millis(1_500),
            );
            while tokio::time::Instant::now() < end {
                let answer = async {
                    Ok::<_, BoxError>(
                        balance
                            .call(get("/"))
                            .await?
                            .into_body()
                            .collect()
                            .await
                            .map(drop)?,
                    )
                };
                match answer.await {
                    Ok(()) => {}
                    Err(error) if broke_in_the_middle(&*error) => lost += 1,
                    Err(error) => panic!("{error}: {:?}", error.source()),
                }
            }
            lost
        });
    }
    sleep(Duration::from_millis(300)).await;
    one.task.abort();
    sleep(Duration::from_millis(300)).await;
    let endpoint = |index: usize| balance.snapshot().endpoints[index].clone();
    assert!(!endpoint(0).ready && endpoint(1).ready);
    one = serve(one.addr).await;
    let mut lost = 0;
    while let Some(task) = within(load.join_next()).await {
        lost += task.unwrap();
    }
    assert!(lost <= 16, "one for each client at most: {lost}");
    assert!(endpoint(0).ready, "and it is used again when it is back");
    assert!(one.accepted.load(SeqCst) > 0);
    assert!((0..2).all(|index| endpoint(index).in_flight == 0));
}

/// An error of hyper: the request was written, the response never came.
fn broke_in_the_middle(error: &(dyn Error + 'static)) -> bool {
    error.is::<hyper::Error>()
}

#[tokio::test]
async fn with_all_replicas_gone_requests_are_rejected_within_a_second() {
    let addr = listener(anywhere()).await.local_addr().unwrap();
    let names = StaticResolver::new().with("echo", [Endpoint::new("one", addr)]);
    let make = |endpoint: &Endpoint, _: &EjectionBudget| Upstream::<Body>::new(endpoint.addr());
    let (mut balance, driver) = Balance::builder().http().build(names.resolve("echo"), make);
    tokio::spawn(driver);
    for _ in 0..3 {
        let start = tokio::time::Instant::now();
        let error = within(balance.call(get("/"))).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(1_300));
        assert_eq!(Refusal::find(&*error).unwrap().class(), Class::Unavailable);
        assert!(
            error.to_string().starts_with("no healthy replica"),
            "{error}"
        );
    }
    assert_eq!(
        balance.snapshot().generation.map(|now| now.value),
        Some(Generation::new(SourceId::new(0), 1).value)
    );
}

#[test]
fn an_upstream_is_shareable_and_its_future_can_be_sent() {
    fn check<S: Service<Request<Body>, Future: Send + Unpin> + Clone + Send + Sync + 'static>(
        _: &S,
    ) {
    }
    check(&Upstream::<Body>::new(anywhere()));
    fn sendable<T: Send + Sync + Unpin>() {}
    sendable::<UpstreamBody<Body>>();
}
