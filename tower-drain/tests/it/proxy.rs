//! The PROXY protocol in front of HTTP, on a simulated network.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{Router, extract::Extension, routing::get};
use tokio::time::{Instant, sleep};
use tower_drain::{Drain, Http, ProxyLayer, Server};
use tower_layer::Layer;
use tower_outcome::PeerAddr;

use crate::support::*;

fn whoami() -> Router {
    async fn who(peer: Option<Extension<PeerAddr>>) -> String {
        peer.map_or("unknown".into(), |Extension(PeerAddr(addr))| {
            addr.to_string()
        })
    }
    Router::new().route("/", get(who))
}

fn serve(drain: &Drain, layer: ProxyLayer) -> Dial {
    let (dial, listener) = wire();
    tokio::spawn(Server::new(drain, listener).run(layer.layer(Http::new(drain, whoami()))));
    dial
}

fn trusting(drain: &Drain) -> ProxyLayer {
    ProxyLayer::new(drain).trust_if(|_| true)
}

#[tokio::test(start_paused = true)]
async fn both_versions_carry_the_address_of_the_client() {
    let drain = Drain::new();
    let dial = serve(&drain, trusting(&drain));
    let mut client = dial.connect();
    assert_eq!(
        client
            .ask(&format!(
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n{GET}"
            ))
            .await
            .body,
        "192.0.2.1:56324"
    );
    assert_eq!(
        client.ask(GET).await.body,
        "192.0.2.1:56324",
        "for the whole connection"
    );

    let mut client = dial.connect();
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([192, 0, 2, 7, 198, 51, 100, 2, 0, 80, 1, 0xbb]);
    for byte in header {
        tokio::io::AsyncWriteExt::write_all(&mut client.0, &[byte])
            .await
            .unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(
        client.ask(GET).await.body,
        "192.0.2.7:80",
        "though it came byte by byte"
    );
    let unknown = dial.connect().ask(&format!("PROXY UNKNOWN\r\n{GET}")).await;
    assert_eq!(
        unknown.body, "unknown",
        "the connection's address stays: {unknown:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_inner_service_has_reserved_is_used() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let one = tower::limit::ConcurrencyLimit::new(Http::new(&drain, whoami()), 1);
    tokio::spawn(Server::new(&drain, listener).run(trusting(&drain).layer(one)));
    for _ in 0..3 {
        let mut client = dial.connect();
        assert!(
            soon(client.ask(&format!("PROXY UNKNOWN\r\n{GET}")))
                .await
                .ok()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_after_the_header_delays_no_connection_for_long() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let (gate, http) = revocable(Http::new(&drain, whoami()));
    tokio::spawn(Server::new(&drain, listener).run(trusting(&drain).layer(http)));
    let start = Instant::now();
    let (mut first, mut second) = (dial.connect(), None);
    guests(&drain, 1).await;
    sleep(ms(9_000)).await;
    second.insert(dial.connect()).send("PROXY ").await;
    guests(&drain, 2).await;
    gate.revoke();
    first.send(&format!("PROXY UNKNOWN\r\n{GET}")).await;
    assert!(first.is_closed().await, "it is not ready, and will not be");
    assert_eq!(start.elapsed().as_secs(), 10);
    second
        .as_mut()
        .unwrap()
        .send(&format!("UNKNOWN\r\n{GET}"))
        .await;
    sleep(ms(1)).await;
    drain.shutdown();
    let report = drain.done().await;
    assert!(
        report.is_clean() && report.took <= Duration::from_secs(2),
        "{report}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_trusted_source_without_a_header_is_closed() {
    let drain = Drain::new();
    let mut client = serve(&drain, trusting(&drain)).connect();
    client.send(GET).await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_header_from_an_untrusted_source_is_not_read() {
    for (trusted, answered) in [("203.0.113.0", false), ("127.0.0.0", true)] {
        let drain = quick();
        let (listener, addr) = listen().await;
        let layer = ProxyLayer::new(&drain).trust([(trusted.parse::<IpAddr>().unwrap(), 8)]);
        let server = Server::new(&drain, listener).run(layer.layer(Http::new(&drain, whoami())));
        let server = Running {
            addr,
            task: tokio::spawn(server),
        };
        let mut client = server.client().await;
        client
            .send(&format!(
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n{GET}"
            ))
            .await;
        assert_eq!(client.head().await.starts_with("HTTP/1.1 200 "), answered);

        let mut honest = server.client().await;
        let own: SocketAddr = honest.0.local_addr().unwrap();
        if !answered {
            assert_eq!(honest.ask(GET).await.body, own.to_string());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_has_ten_seconds_and_a_drain_waits_one() {
    let drain = Drain::new();
    let dial = serve(&drain, trusting(&drain));
    let start = Instant::now();
    let mut silent = dial.connect();
    silent.send("PROXY TCP").await;
    assert!(silent.is_closed().await);
    assert_eq!(start.elapsed().as_secs(), 10);

    let _silent = dial.connect();
    guests(&drain, 1).await;
    drain.shutdown();
    let report = drain.done().await;
    assert!(report.took < Duration::from_secs(2), "{report}");
    sleep(ms(1)).await;
}
