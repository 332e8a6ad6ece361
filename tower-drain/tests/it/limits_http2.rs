//! The same for HTTP/2, with peers that write frames by hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Bytes, routing::get};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep},
};
use tower::service_fn;
use tower_drain::{Drain, Http, RequestBody, Server};

use crate::support::{peer::*, *};

fn serve(drain: &Drain, app: Router, knobs: impl FnOnce(Http<Router>) -> Http<Router>) -> Dial {
    let (dial, listener) = wire();
    tokio::spawn(Server::new(drain, listener).run(knobs(Http::new(drain, app))));
    dial
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
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
    let second = peer
        .wait_for(GOAWAY)
        .await
        .expect("a second GOAWAY has the last id");
    assert_eq!((last_stream(&second), start.elapsed().as_secs()), (1, 1));
    assert!(peer.read().await.is_none(), "and it ends");
    drop(peer);
    let report = drain.done().await;
    assert!(report.is_clean() && report.took < secs(3), "{report}");
}

#[tokio::test(start_paused = true)]
async fn without_that_timer_it_stays_until_its_own_keep_alive_ends_it() {
    // The negative control of the test above: the behaviour of hyper.
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
    // `REFUSED_STREAM`: it was not processed, and may be repeated elsewhere.
    assert_eq!((refused.stream, refused.payload), (201, vec![0, 0, 0, 7]));
    assert_eq!(drain.snapshot().guests, 1);
}

/// The reason of a GOAWAY.
fn reason(goaway: &Frame) -> u32 {
    u32::from_be_bytes(goaway.payload[4..8].try_into().unwrap())
}

const CANCEL: &[u8] = &[0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;

fn slow(time: Duration) -> Router {
    Router::new().route("/", get(move || sleep(time)))
}

/// No pings, so that a peer need not answer them.
fn unasked(http: Http<Router>) -> Http<Router> {
    http.ping(Duration::MAX, secs(10))
}

#[tokio::test(start_paused = true)]
async fn rapid_reset_ends_the_connection_with_a_goaway() {
    let drain = Drain::new();
    let dial = serve(&drain, slow(secs(1000)), unasked);
    let mut peer = Peer::open(&dial).await;
    for request in 0..400 {
        let stream = request * 2 + 1;
        if !peer.get(stream).await || !peer.try_send(RESET, 0, stream, CANCEL).await {
            break;
        }
        tokio::task::yield_now().await;
    }
    let goaway = peer.wait_for(GOAWAY).await.expect("a reason");
    assert_eq!(
        (reason(&goaway), last_stream(&goaway), &goaway.payload[8..]),
        (
            ENHANCE_YOUR_CALM,
            2 * 250 + 1,
            &b"too many streams reset"[..]
        )
    );
    drop(peer);
    sleep(secs(2)).await;
    assert_eq!(drain.snapshot().guests, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cancels_some_of_its_requests_is_served() {
    // A map that is panned: 55 requests a second, 15 of them cancelled.
    let drain = Drain::new();
    let dial = serve(&drain, slow(ms(100)), unasked);
    let mut peer = Peer::open(&dial).await;
    for request in 0..55 * 60 {
        let stream = request * 2 + 1;
        assert!(peer.get(stream).await, "cut after {request} requests");
        sleep(ms(18)).await;
        if request % 11 < 3 {
            peer.send(RESET, 0, stream, CANCEL).await;
        }
    }
    assert_eq!(drain.snapshot().guests, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_deadlines_pass_is_served() {
    let drain = Drain::new();
    let dial = serve(&drain, slow(secs(1000)), unasked);
    let mut peer = Peer::open(&dial).await;
    for request in 0..50 * 60 {
        assert!(
            peer.get(request * 2 + 1).await,
            "cut after {request} requests"
        );
        sleep(ms(20)).await;
        if request >= 60 {
            peer.send(RESET, 0, (request - 60) * 2 + 1, CANCEL).await;
        }
    }
    assert_eq!(drain.snapshot().guests, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_a_ping_for_each_response_is_served() {
    // grpc-go measures its bandwidth like that.
    for pause in [ms(5), ms(0)] {
        let drain = Drain::new();
        let dial = serve(&drain, app(), unasked);
        let mut peer = Peer::open(&dial).await;
        for call in 0..3000 {
            assert!(peer.get(call * 2 + 1).await, "cut after {call} calls");
            let data = peer.wait_for(DATA).await;
            assert!(data.is_some(), "cut after {call} calls");
            assert!(peer.try_send(PING, 0, 0, &[7; 8]).await);
            sleep(pause).await;
        }
        assert_eq!(drain.snapshot().guests, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_of_frames_we_sent_cost_nothing() {
    let drain = Drain::new();
    let dial = serve(&drain, slow(Duration::MAX), |http| {
        http.ping(secs(1), secs(10)).max_control_frames(2)
    });
    let mut peer = Peer::open(&dial).await;
    assert!(peer.get(1).await);
    for _ in 0..100 {
        let ping = peer.wait_for(PING).await.expect("not cut");
        peer.send(PING, ACK, 0, &ping.payload).await;
    }
    // Acknowledgements of frames that were not sent do.
    for _ in 0..3 {
        peer.send(PING, ACK, 0, &[7; 8]).await;
    }
    let goaway = peer.wait_for(GOAWAY).await.expect("a reason");
    assert_eq!(reason(&goaway), ENHANCE_YOUR_CALM);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_frames_that_cost_nothing_ends_the_connection_with_a_goaway() {
    const PRIORITY: u8 = 2;
    for (flood, at_most) in [
        ((PING, 0, &[7; 8][..]), 60),
        ((SETTINGS, 0, &[]), 60),
        ((PRIORITY, 1, &[0, 0, 0, 3, 7]), 60),
        ((0xbe, 0, b"unknown"), 60),
        ((WINDOW_UPDATE, 0, &[0, 0, 0, 1]), 600),
    ] {
        let drain = Drain::new();
        let dial = serve(&drain, slow(Duration::MAX), |http| {
            http.max_control_frames(50)
        });
        let mut peer = Peer::open(&dial).await;
        assert!(peer.get(1).await && peer.get(3).await);
        let (kind, stream, payload) = flood;
        for _ in 0..at_most {
            if !peer.try_send(kind, 0, stream, payload).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        let goaway = peer.wait_for(GOAWAY).await.expect("a reason");
        assert_eq!(
            (reason(&goaway), last_stream(&goaway)),
            (ENHANCE_YOUR_CALM, 3),
            "{kind}"
        );
        assert!(peer.read().await.is_none(), "and the end");
        drop(peer);
        sleep(secs(2)).await;
        assert_eq!(drain.snapshot().guests, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn window_updates_in_proportion_to_the_data_are_no_flood() {
    let drain = Drain::new();
    let pieces = || {
        let pieces = (0..3000).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 100])));
        axum::body::Body::from_stream(futures_util::stream::iter(pieces))
    };
    let app = Router::new().route("/", get(async move || pieces()));
    let dial = serve(&drain, app, |http| http.max_control_frames(200));
    let mut peer = Peer::open(&dial).await;
    assert!(peer.get(1).await);
    loop {
        let data = peer.wait_for(DATA).await.expect("not cut");
        if data.flags & END_STREAM != 0 {
            break;
        }
        let length = (data.payload.len() as u32).to_be_bytes();
        peer.send(WINDOW_UPDATE, 0, 0, &length).await;
        peer.send(WINDOW_UPDATE, 0, 1, &length).await;
    }
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

/// How many bytes of responses there are.
#[derive(Clone, Default)]
struct Held(Arc<AtomicUsize>);

struct Counted(Held, Vec<u8>);

impl Held {
    fn response(&self, length: usize) -> Bytes {
        self.0.fetch_add(length, SeqCst);
        Bytes::from_owner(Counted(self.clone(), vec![b'x'; length]))
    }

    fn bytes(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(self.1.len(), SeqCst);
    }
}

/// Responses in one piece each, which is what most are.
fn pieces(length: usize) -> (Router, Held) {
    let held = Held::default();
    let counted = held.clone();
    let handler = async move || counted.response(length);
    (Router::new().route("/", get(handler)), held)
}

const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test(start_paused = true)]
async fn responses_in_one_piece_that_are_not_taken_are_given_up() {
    let drain = Drain::new();
    let (app, held) = pieces(1 << 20);
    let dial = serve(&drain, app, |http| http);
    let mut peer = Peer::open_with(&dial, &[(INITIAL_WINDOW_SIZE, 1)]).await;
    for request in 0..100 {
        assert!(peer.get(request * 2 + 1).await);
    }
    let start = Instant::now();
    let peer = tokio::spawn(async move {
        // It acknowledges pings and settings, and takes no data.
        while let Some(frame) = peer.read().await {
            if frame.kind == PING && frame.flags & ACK == 0 {
                peer.send(PING, ACK, 0, &frame.payload).await;
            }
        }
        start.elapsed()
    });
    sleep(secs(29)).await;
    assert_eq!(held.bytes(), 100 << 20);
    sleep(secs(9)).await;
    assert_eq!((held.bytes(), drain.snapshot().guests), (0, 1));
    let ended = peer.await.unwrap();
    assert!((75..120).contains(&ended.as_secs()), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn small_responses_that_are_not_taken_end_their_connection() {
    let drain = Drain::new();
    let (app, held) = pieces(10_000);
    let dial = serve(&drain, app, unasked);
    let mut peer = Peer::open_with(&dial, &[(INITIAL_WINDOW_SIZE, 1)]).await;
    for request in 0..100 {
        assert!(peer.get(request * 2 + 1).await);
    }
    let start = Instant::now();
    let goaway = peer.wait_for(GOAWAY).await.expect("a reason");
    assert_eq!((reason(&goaway), start.elapsed().as_secs()), (0, 30));
    assert_eq!(held.bytes(), 0);
    drop(peer);
    sleep(secs(2)).await;
    assert_eq!(drain.snapshot().guests, 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_its_responses_slowly_gets_them() {
    for length in [10_000, 200_000] {
        let drain = Drain::new();
        let (app, held) = pieces(length);
        let dial = serve(&drain, app, unasked);
        let mut peer = Peer::open_with(&dial, &[(INITIAL_WINDOW_SIZE, 1000)]).await;
        for stream in [1, 3, 5, 7] {
            assert!(peer.get(stream).await);
        }
        let (mut ended, mut read) = (0, 0);
        while ended < 4 {
            let frame = peer.read().await.expect("not cut");
            assert_ne!(frame.kind, RESET, "after {read} bytes");
            if frame.kind == DATA {
                read += frame.payload.len();
                ended += u32::from(frame.flags & END_STREAM);
                sleep(secs(5)).await;
                // It opens the window of one after the other, by little.
                for stream in [0, frame.stream] {
                    peer.try_send(WINDOW_UPDATE, 0, stream, &[0, 0, 39, 16])
                        .await;
                }
            }
        }
        assert_eq!((read, held.bytes()), (4 * length, 0));
    }
}

/// A client on a slow line, with many requests at once: a stream has its turn only now and then.
async fn slow_line(app: Router, window: impl Fn(usize) -> Option<u32>) {
    let drain = Drain::new();
    let dial = serve(&drain, app, unasked);
    let mut peer = Peer::open_with(&dial, &[(INITIAL_WINDOW_SIZE, 1 << 20)]).await;
    for request in 0..100 {
        assert!(peer.get(request * 2 + 1).await);
    }
    if let Some(all) = window(0) {
        peer.send(WINDOW_UPDATE, 0, 0, &all.to_be_bytes()).await;
    }
    let (start, mut ended) = (Instant::now(), 0);
    while ended < 100 {
        let frame = peer.read().await.expect("not cut");
        assert_ne!(frame.kind, RESET, "after {:?}", start.elapsed());
        if frame.kind == DATA {
            ended += u32::from(frame.flags & END_STREAM);
            let length = frame.payload.len();
            sleep(Duration::from_millis(length as u64 / 16)).await;
            if let Some(more) = window(length).filter(|_| length > 0) {
                peer.try_send(WINDOW_UPDATE, 0, 0, &more.to_be_bytes())
                    .await;
            }
        }
    }
    assert!(start.elapsed() > secs(1500), "{:?}", start.elapsed());
}

/// Of 256 KiB, in one piece and in many: more than hyper takes at once.
fn downloads() -> [Router; 2] {
    let pieces = || (0..32).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 8 * 1024])));
    let stream = move || axum::body::Body::from_stream(futures_util::stream::iter(pieces()));
    [
        Router::new().route("/", get(async || vec![0; 256 * 1024])),
        Router::new().route("/", get(async move || stream())),
    ]
}

#[tokio::test(start_paused = true)]
async fn streams_that_wait_for_a_slow_line_are_not_reset() {
    for app in downloads() {
        slow_line(app, |length| (length == 0).then_some(64 << 20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_wait_for_the_connections_window_are_not_reset() {
    for app in downloads() {
        slow_line(app, |length| (length > 0).then_some(length as u32)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_in_the_middle_of_a_frame_does_not_hold_the_drain_up() {
    let head = [0, 0, 9, HEADERS, 0, 0, 0, 0, 3];
    for middle in [&[0, 0, 8, 6, 0][..], &head, b"\0\0\x01\x01\0\0\0\0\x03\x82"] {
        let drain = Drain::builder().announce(secs(0)).build();
        let dial = serve(&drain, app(), |http| http);
        let mut peer = Peer::open(&dial).await;
        assert!(peer.get(1).await);
        peer.wait_for(DATA).await.expect("served");
        peer.0.write_all(middle).await.unwrap();
        sleep(ms(1)).await;
        drain.shutdown();
        let first = peer.wait_for(GOAWAY).await.unwrap();
        assert_eq!(last_stream(&first), 0x7fff_ffff);
        let last = peer.wait_for(GOAWAY).await.expect("what it has done");
        assert_eq!((last_stream(&last), reason(&last)), (1, 0));
        let report = drain.done().await;
        assert!(report.is_clean() && report.took < secs(3), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_in_the_middle_of_a_frame_gets_the_responses_under_way() {
    let drain = Drain::builder().announce(secs(0)).build();
    let dial = serve(&drain, slow(secs(10)), |http| http);
    let mut peer = Peer::open(&dial).await;
    assert!(peer.get(1).await);
    sleep(secs(1)).await;
    peer.0.write_all(&[0, 0, 8, 6, 0]).await.unwrap();
    drain.shutdown();
    assert_eq!(peer.wait_for(HEADERS).await.expect("its answer").stream, 1);
    let report = drain.done().await;
    assert!(report.is_clean() && report.took < secs(11), "{report}");
}

/// Answers every request with a tunnel that sends back what it gets.
async fn tunnel(
    mut request: http::Request<RequestBody>,
) -> Result<http::Response<Empty<Bytes>>, std::convert::Infallible> {
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    Ok(http::Response::new(Empty::new()))
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_not_idle_however_silent_it_is() {
    let drain = Drain::builder().announce(secs(0)).build();
    let (dial, listener) = wire();
    let http = Http::new(&drain, service_fn(tunnel)).ping(Duration::MAX, secs(10));
    tokio::spawn(Server::new(&drain, listener).run(http));
    let mut peer = Peer::open(&dial).await;
    let connect = *b"\x02\x07CONNECT\x41\x04test";
    peer.send(HEADERS, END_HEADERS, 1, &connect).await;
    assert_eq!(peer.wait_for(HEADERS).await.unwrap().stream, 1);
    for _ in 0..10 {
        sleep(secs(100)).await;
        peer.send(DATA, 0, 1, b"ping").await;
        let frame = peer.read().await.expect("no GOAWAY");
        assert_eq!((frame.kind, &frame.payload[..]), (DATA, &b"ping"[..]));
        // The connection's window update, or none.
    }
    drain.shutdown();
    assert_eq!(
        last_stream(&peer.wait_for(GOAWAY).await.unwrap()),
        0x7fff_ffff
    );
    sleep(secs(5)).await;
    assert_eq!(drain.snapshot().guests, 1, "and a drain waits for it");
    peer.send(DATA, END_STREAM, 1, b"end").await;
    assert_eq!(peer.wait_for(DATA).await.unwrap().payload, b"end");
    assert!(drain.done().await.is_clean());
}
