//! The same for HTTP/2, with peers that speak it by hand.

use std::time::Duration;

use axum::{Router, body::Bytes, routing::get};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{Instant, sleep},
};
use tower_drain::{Drain, Http, Server};

use crate::support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A peer that sends the frames it is told to, and answers nothing by itself.
struct Peer(DuplexStream);

struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Peer {
    async fn open(dial: &Dial) -> Self {
        let mut peer = Self(dial.connect().0);
        peer.0.write_all(PREFACE).await.unwrap();
        peer.send(SETTINGS, 0, 0, &[]).await;
        peer
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        assert!(
            self.try_send(kind, flags, stream, payload).await,
            "the connection is there"
        );
    }

    async fn try_send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.is_ok()
    }

    /// `GET /` on `http://test`, with a header block of indexed fields.
    async fn get(&mut self, stream: u32) -> bool {
        let fields = [0x82, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];
        self.try_send(HEADERS, END_STREAM | END_HEADERS, stream, &fields)
            .await
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind: head[3],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()),
            payload,
        })
    }

    async fn wait_for(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.read().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}

fn serve(drain: &Drain, app: Router, knobs: impl FnOnce(Http<Router>) -> Http<Router>) -> Dial {
    let (dial, listener) = wire();
    tokio::spawn(Server::new(drain, listener).run(knobs(Http::new(drain, app))));
    dial
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn last_stream(goaway: &Frame) -> u32 {
    u32::from_be_bytes(goaway.payload[..4].try_into().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_the_goaway_is_gone_after_a_second() {
    let drain = Drain::builder().announce(secs(0)).build();
    let dial = serve(&drain, app(), |http| http);
    let mut peer = Peer::open(&dial).await;
    assert!(peer.get(1).await);
    peer.wait_for(DATA).await.expect("served");
    let start = Instant::now();
    drain.shutdown();
    let first = peer.wait_for(GOAWAY).await.unwrap();
    assert_eq!(
        (last_stream(&first), start.elapsed().as_secs()),
        (0x7fff_ffff, 0)
    );
    let second = peer.wait_for(GOAWAY).await.expect("the last id is told");
    assert_eq!((last_stream(&second), start.elapsed().as_secs()), (1, 1));
    assert!(peer.read().await.is_none(), "and it ends");
    drop(peer);
    let report = drain.done().await;
    assert!(report.is_clean() && report.took < secs(3), "{report}");
}

#[tokio::test(start_paused = true)]
async fn without_that_timer_it_stays_until_its_own_keep_alive_ends_it() {
    // The negative control of the test above: what hyper does.
    let drain = Drain::builder().announce(secs(0)).build();
    let dial = serve(&drain, app(), |http| http.goaway_timeout(Duration::MAX));
    let _peer = Peer::open(&dial).await;
    guests(&drain, 1).await;
    drain.shutdown();
    assert!(drain.done().await.took >= secs(19));
}

#[tokio::test(start_paused = true)]
async fn its_streams_under_way_complete() {
    let drain = Drain::builder().announce(secs(0)).build();
    let slow = Router::new().route("/", get(async || sleep(secs(10)).await));
    let dial = serve(&drain, slow, |http| http);
    let mut peer = Peer::open(&dial).await;
    assert!(peer.get(1).await);
    sleep(secs(1)).await;
    drain.shutdown();
    assert_eq!(peer.wait_for(HEADERS).await.expect("its answer").stream, 1);
    drop(peer);
    assert!(drain.done().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_hundred_streams_may_be_open_and_the_next_one_is_refused() {
    let drain = Drain::new();
    let slow = Router::new().route("/", get(async || sleep(secs(1000)).await));
    let dial = serve(&drain, slow, |http| http);
    let mut peer = Peer::open(&dial).await;
    for request in 0..101 {
        assert!(peer.get(request * 2 + 1).await);
    }
    let refused = peer.wait_for(RESET).await.unwrap();
    // `REFUSED_STREAM`: it was not begun, and may be asked for elsewhere.
    assert_eq!((refused.stream, refused.payload), (201, vec![0, 0, 0, 7]));
    assert_eq!(drain.snapshot().guests, 1);
}

#[tokio::test(start_paused = true)]
async fn rapid_reset_ends_the_connection() {
    let drain = Drain::new();
    let slow = Router::new().route("/", get(async || sleep(secs(1000)).await));
    let dial = serve(&drain, slow, |http| http);
    let mut peer = Peer::open(&dial).await;
    let mut sent = 0;
    while sent < 300 {
        let stream = sent * 2 + 1;
        if !peer.get(stream).await || !peer.try_send(RESET, 0, stream, &[0, 0, 0, 8]).await {
            break;
        }
        sent += 1;
        tokio::task::yield_now().await;
    }
    sleep(secs(2)).await;
    assert_eq!(drain.snapshot().guests, 0);

    // An honest client that cancels now and then lives.
    let mut peer = Peer::open(&dial).await;
    for request in 0..300 {
        assert!(peer.get(request * 2 + 1).await);
        peer.send(RESET, 0, request * 2 + 1, &[0, 0, 0, 8]).await;
        sleep(ms(200)).await;
    }
    assert_eq!(drain.snapshot().guests, 1);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_ends_the_connection() {
    let drain = Drain::new();
    let dial = serve(&drain, app(), |http| http.max_control_frames(50));
    let mut peer = Peer::open(&dial).await;
    for _ in 0..60 {
        if !peer.try_send(PING, 0, 0, &[7; 8]).await {
            break;
        }
        tokio::task::yield_now().await;
    }
    sleep(secs(2)).await;
    assert_eq!(drain.snapshot().guests, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_taken_is_reset_and_its_siblings_live() {
    async fn download() -> axum::body::Body {
        let pieces = futures_util::stream::iter(
            (0..64).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 16 * 1024]))),
        );
        axum::body::Body::from_stream(pieces)
    }
    let drain = Drain::new();
    let dial = serve(&drain, app().route("/download", get(download)), |http| {
        http.ping(secs(1000), secs(1000))
    });
    let mut peer = Peer::open(&dial).await;
    let path = [
        0x82, 0x86, 0x44, 9, b'/', b'd', b'o', b'w', b'n', b'l', b'o', b'a', b'd', 0x41, 1, b't',
    ];
    peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &path).await;
    let start = Instant::now();
    // It reads the connection, but opens no window: the stream stalls, the connection does not.
    let reset = peer.wait_for(RESET).await.unwrap();
    assert_eq!(reset.stream, 1);
    assert!(
        (30..=40).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
    peer.send(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]).await;
    assert!(peer.get(3).await);
    assert_eq!(peer.wait_for(HEADERS).await.unwrap().stream, 3);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_with_a_goaway() {
    let drain = Drain::new();
    let dial = serve(&drain, app(), |http| http);
    let (mut requests, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(dial.connect().0))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let request = || {
        http::Request::builder()
            .uri("http://test/")
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    for _ in 0..3 {
        let answer = requests.send_request(request()).await.unwrap();
        assert_eq!(
            answer.into_body().collect().await.unwrap().to_bytes(),
            "hello"
        );
        sleep(secs(60)).await;
    }
    let start = Instant::now();
    connection.await.unwrap().unwrap();
    assert!(
        (14..=16).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
}
