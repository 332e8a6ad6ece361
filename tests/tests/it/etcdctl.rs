//! Debian's etcdctl, a grpc-go client, through an HTTP/2 server of tower-drain: a busy watch stays on one connection.
//!
//! grpc-go sends a PING for the bandwidth estimate with about every message that it receives, so this fails if the server's budget
//! of control frames does not grow with useful traffic.

use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use ::axum::body::Body;
use http::{Request, Uri};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use testkit::Etcd;
use tokio::{net::TcpListener, time::MissedTickBehavior};
use tower::service_fn;
use tower_drain::Drain;
use tower_outcome::PeerAddr;

/// Events per second, as in the report of the first server that was cut.
const RATE: u32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd and etcdctl; ETCDCTL_SECONDS sets the duration, 5 by default"]
async fn a_watch_with_300_events_a_second_stays_on_one_connection() {
    let seconds = std::env::var("ETCDCTL_SECONDS").map_or(5, |text| text.parse().unwrap());
    let etcd = Etcd::start().await;
    let (server, drain, connections) = serve(etcd.addr(0)).await;

    let mut watch = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints=http://{server}"))
        .args(["watch", "--prefix", "key"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("etcdctl is installed");
    let output = BufReader::new(watch.stdout.take().unwrap());
    // Each event is three lines: PUT, the key, the value.
    let values = std::thread::spawn(move || {
        let lines = output.lines().map_while(Result::ok);
        lines
            .skip(2)
            .step_by(3)
            .map(|line| line.parse::<u32>().unwrap())
            .collect::<Vec<_>>()
    });
    while connections.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The request for the watch has arrived at the server; etcd needs some time to register it.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let events = RATE * seconds;
    let put = Client::builder(TokioExecutor::new()).build_http::<String>();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..events {
        tick.tick().await;
        let body = format!(
            r#"{{"key":"{}","value":"{}"}}"#,
            base64("key"),
            base64(&number.to_string())
        );
        let request = Request::post(format!("http://{}/v3/kv/put", etcd.addr(0)));
        let response = put.request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        drain.snapshot().guests,
        connections.lock().unwrap().len(),
        "none was cut"
    );
    watch.kill().unwrap();
    watch.wait().unwrap();
    let values = values.join().unwrap();
    assert!(
        values.iter().copied().eq(0..events),
        "{} of {events} events",
        values.len()
    );
    let connections = connections.lock().unwrap();
    println!(
        "{events} events in order, {} connection(s)",
        connections.len()
    );
    assert_eq!(connections.len(), 1);
}

/// A server that forwards each request to `etcd`, body and trailers included, and notes the address of each client connection.
async fn serve(etcd: SocketAddr) -> (SocketAddr, Drain, Arc<Mutex<HashSet<SocketAddr>>>) {
    let client = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_only(true)
        .build_http::<Body>();
    let connections = Arc::new(Mutex::new(HashSet::new()));
    let peers = connections.clone();
    let forward = service_fn(move |request: Request<_>| {
        let (client, peers) = (client.clone(), peers.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            let PeerAddr(peer) = *parts.extensions.get().expect("set by the server");
            peers.lock().unwrap().insert(peer);
            let path = parts.uri.path_and_query().expect("not CONNECT");
            let uri = format!("http://{etcd}{path}")
                .parse::<Uri>()
                .expect("a valid URI");
            parts.uri = uri;
            client
                .request(Request::from_parts(parts, Body::new(body)))
                .await
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let drain = Drain::new();
    let serving = drain.clone();
    tokio::spawn(async move { serving.serve(listener, forward).await });
    (address, drain, connections)
}

/// For etcd's JSON gateway.
fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32, shift: u32| char::from(ALPHABET[(bits >> shift & 63) as usize]);
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digits = [18, 12, 6, 0].map(|shift| digit(bits, shift));
        encoded.extend(&digits[..=chunk.len()]);
        encoded.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    encoded
}
