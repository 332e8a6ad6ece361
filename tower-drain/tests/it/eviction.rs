//! At the limit idle connections make room for new ones, in paused time on a network of the test's own.

use std::{num::NonZeroUsize, time::Duration};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    net::TcpStream,
    time::{Instant, sleep},
};
use tower_drain::{ConnectionLimit, Drain, Http, Server};

use crate::support::{
    peer::{GOAWAY, HEADERS, Peer, last_stream},
    *,
};

struct Limited {
    drain: Drain,
    limit: ConnectionLimit,
    dial: Dial,
}

impl Limited {
    fn to(max: usize) -> Self {
        let (drain, (dial, listener)) = (Drain::new(), wire());
        let limit = ConnectionLimit::new(NonZeroUsize::new(max).unwrap());
        let slow = get(async || sleep(Duration::from_secs(10)).await);
        let app: Router = app().route("/slow", slow);
        let http = Http::new(&drain, app);
        tokio::spawn(Server::new(&drain, listener).limit(&limit).run(http));
        Self { drain, limit, dial }
    }

    /// Clients that have had a response.
    async fn idle(&self, count: usize) -> Vec<Client<DuplexStream>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = self.dial.connect();
            assert!(client.ask(GET).await.ok());
            clients.push(client);
        }
        clients
    }

    /// Sends a request on a new connection; whether it was served, and after how many milliseconds.
    async fn new_client(&self) -> (bool, u128) {
        let start = Instant::now();
        let head = self.dial.connect().ask(GET).await.head;
        let served = head.starts_with("HTTP/1.1 200 ");
        assert!(served || head.starts_with("HTTP/1.1 503 "), "{head}");
        (served, start.elapsed().as_millis())
    }
}

const SLOW: &str = "GET /slow HTTP/1.1\r\nhost: test\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn at_a_limit_of_idle_connections_a_new_one_is_served() {
    let server = Limited::to(100);
    let mut clients = server.idle(100).await;
    sleep(ms(1000)).await;
    let (served, after) = server.new_client().await;
    assert!(served && after <= 101, "{after} ms");
    assert_eq!(server.limit.refused(), 0);
    let mut closed = 0;
    for client in &mut clients {
        // All that were not asked are served as before.
        let mut byte = [0];
        let asked = tokio::time::timeout(ms(1), client.0.read(&mut byte)).await;
        match asked {
            Ok(read) => {
                assert_eq!(read.unwrap(), 0);
                closed += 1;
            }
            Err(_) => assert_eq!(client.ask(GET).await.closes(), 0),
        }
    }
    assert_eq!(closed, 1);
}

#[tokio::test]
async fn at_a_limit_of_idle_connections_over_tcp_too() {
    let (drain, limit) = (
        quick(),
        ConnectionLimit::new(NonZeroUsize::new(100).unwrap()),
    );
    let (listener, addr) = listen().await;
    tokio::spawn(Server::new(&drain, listener).limit(&limit).serve(app()));
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = Client(TcpStream::connect(addr).await.unwrap());
        assert!(client.ask(GET).await.ok());
        clients.push(client);
    }
    sleep(ms(1100)).await;
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    let answer = client.ask(GET).await;
    assert!(answer.ok(), "{}", answer.head);
    assert_eq!((limit.open(), limit.refused()), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn the_connection_that_is_idle_longest_goes_first() {
    let server = Limited::to(4);
    let mut clients = server.idle(4).await;
    for used in [2, 0, 3] {
        sleep(ms(300)).await;
        assert!(clients[used].ask(GET).await.ok());
    }
    sleep(ms(1000)).await;
    let (served, _) = server.new_client().await;
    assert!(served && clients[1].is_closed().await);
    for kept in [0, 2, 3] {
        assert_eq!(clients[kept].ask(GET).await.closes(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_gets_a_goaway_and_makes_room() {
    let server = Limited::to(2);
    let mut senders = Vec::new();
    for _ in 0..2 {
        let io = TokioIo::new(server.dial.connect().0);
        let (mut requests, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("http://test/")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = requests.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        drop(answer);
        senders.push((requests, connection));
        sleep(ms(100)).await;
    }
    sleep(ms(1000)).await;
    let (served, after) = server.new_client().await;
    assert!(served && after <= 201, "{after} ms");
    let (requests, _) = &senders[0];
    assert!(requests.is_closed());
    let (requests, _) = &mut senders[1];
    requests.ready().await.expect("it stays");
}

#[tokio::test(start_paused = true)]
async fn an_http2_peer_that_answers_no_goaway_makes_room_too() {
    let server = Limited::to(1);
    let mut peer = Peer::open(&server.dial).await;
    assert!(peer.get(1).await);
    peer.wait_for(HEADERS).await.unwrap();
    let reader = tokio::spawn(async move {
        let first = peer.wait_for(GOAWAY).await.unwrap();
        let second = peer.wait_for(GOAWAY).await.unwrap();
        (last_stream(&first), last_stream(&second))
    });
    sleep(ms(1000)).await;
    let (served, after) = server.new_client().await;
    assert!(served && after <= 350, "{after} ms");
    assert_eq!(reader.await.unwrap(), ((1 << 31) - 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_is_not_asked() {
    let server = Limited::to(3);
    let mut busy = server.idle(3).await;
    for client in &mut busy {
        client.send(SLOW).await;
    }
    sleep(ms(1000)).await;
    for _ in 0..10 {
        assert_eq!(server.new_client().await, (false, 0), "at once");
    }
    for client in &mut busy {
        let answer = client.answer().await;
        assert!(answer.ok() && answer.closes() == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_http2_connection_is_not_asked() {
    let server = Limited::to(1);
    let io = TokioIo::new(server.dial.connect().0);
    let (mut requests, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let slow = Request::get("http://test/slow")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let slow = tokio::spawn(requests.send_request(slow));
    sleep(ms(2000)).await;
    assert_eq!(server.new_client().await, (false, 0));
    assert_eq!(slow.await.unwrap().unwrap().status(), 200);
    requests.ready().await.expect("it stays");
}

#[tokio::test(start_paused = true)]
async fn a_request_in_the_moment_of_an_eviction_is_answered() {
    for offset in [0, 1, 10, 25, 49] {
        let server = Limited::to(100);
        let clients = server.idle(100).await;
        sleep(ms(1000)).await;
        let new: Vec<_> = (0..10).map(|_| server.dial.connect()).collect();
        let requests = clients.into_iter().map(|mut client| {
            tokio::spawn(async move {
                sleep(ms(offset)).await;
                let answer = client.ask(GET).await;
                assert!(answer.ok());
                answer.closes()
            })
        });
        let mut closed = 0;
        for request in requests.collect::<Vec<_>>() {
            closed += request.await.unwrap();
        }
        assert!((1..=10).contains(&closed) || offset == 0, "{closed}");
        for mut client in new {
            assert!(client.ask(GET).await.ok());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_connection_is_asked_when_the_first_has_become_busy() {
    let server = Limited::to(3);
    let mut clients = server.idle(1).await;
    sleep(ms(100)).await;
    clients.extend(server.idle(2).await);
    sleep(ms(1000)).await;
    let mut new = server.dial.connect();
    new.send(GET).await;
    sleep(ms(10)).await;
    clients[0].send(SLOW).await;
    let start = Instant::now();
    assert!(new.answer().await.ok());
    let after = start.elapsed().as_millis();
    assert!((125..=280).contains(&after), "{after} ms");
    let answer = clients[0].answer().await;
    assert!(answer.ok() && answer.closes() == 1, "after its response");
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_waits_half_a_second_at_most() {
    let server = Limited::to(1);
    let mut clients = server.idle(1).await;
    sleep(ms(1000)).await;
    let start = Instant::now();
    let mut new = server.dial.connect();
    new.send(GET).await;
    sleep(ms(10)).await;
    clients[0].send(SLOW).await;
    let head = new.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(start.elapsed().as_millis(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_tenth_of_the_limit_may_wait() {
    let server = Limited::to(20);
    let _clients = server.idle(20).await;
    sleep(ms(1000)).await;
    let mut waiting = [server.dial.connect(), server.dial.connect()];
    sleep(ms(1)).await;
    assert_eq!(server.new_client().await, (false, 0));
    for client in &mut waiting {
        assert!(client.ask(GET).await.ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_sent_nothing_makes_room_after_a_second_without_an_answer() {
    for bytes in ["", "PRI * HTT"] {
        let server = Limited::to(1);
        let mut silent = server.dial.connect();
        silent.send(bytes).await;
        sleep(ms(999)).await;
        assert_eq!(server.new_client().await, (false, 0));
        sleep(ms(1)).await;
        let (served, after) = server.new_client().await;
        assert!(served && after <= 101, "{after} ms");
        assert!(silent.is_closed().await);
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_head_is_not_idle() {
    let server = Limited::to(1);
    let mut half = server.dial.connect();
    half.send("GET / HT").await;
    sleep(ms(5000)).await;
    assert_eq!(server.new_client().await, (false, 0));
    half.send("TP/1.1\r\nhost: test\r\n\r\n").await;
    assert!(half.answer().await.ok());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_new_connections_leaves_those_that_are_in_use() {
    let server = Limited::to(20);
    let mut honest = server.idle(5).await;
    let (dial, drain) = (server.dial.clone(), server.drain.clone());
    let flood = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(dial.connect());
            sleep(ms(5)).await;
        }
    });
    for _ in 0..40 {
        sleep(ms(500)).await;
        for client in &mut honest {
            let answer = client.ask(GET).await;
            assert!(answer.ok() && answer.closes() == 0, "{}", answer.head);
        }
    }
    flood.abort();
    assert!(server.limit.refused() > 0 && drain.snapshot().guests > 0);
}

#[tokio::test(start_paused = true)]
async fn below_the_limit_no_connection_is_asked() {
    let server = Limited::to(100);
    let mut clients = server.idle(50).await;
    sleep(ms(5000)).await;
    let more = server.idle(50).await;
    for client in &mut clients {
        assert_eq!(client.ask(GET).await.closes(), 0);
    }
    drop(more);
}
