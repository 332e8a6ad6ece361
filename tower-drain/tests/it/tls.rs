//! TLS on loopback: ALPN, certificates that are replaced, silent peers.

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_drain::{ConnectionLimit, Drain, Http, Overloaded, Server, Tls, TlsLayer};
use tower_layer::Layer;

use crate::support::*;

/// A certificate for itself.
struct Identity {
    cert: rcgen::Certificate,
    chain: String,
    key: String,
}

impl Identity {
    fn new() -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let chain = cert.pem();
        Self {
            cert,
            chain,
            key: signing_key.serialize_pem(),
        }
    }

    fn tls(&self) -> Tls {
        Tls::from_pem(self.chain.as_bytes(), self.key.as_bytes()).unwrap()
    }

    /// A client that trusts this one alone.
    async fn shake(
        &self,
        stream: TcpStream,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), stream)
            .await
    }

    async fn connect(
        &self,
        server: &Running,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.shake(TcpStream::connect(server.addr).await?, alpn)
            .await
    }
}

async fn serve_tls(
    drain: &Drain,
    tls: &Tls,
    limit: &ConnectionLimit,
    timeout: Duration,
) -> Running {
    let (listener, addr) = listen().await;
    let layer = TlsLayer::new(drain, tls).handshake_timeout(timeout);
    let server = Server::new(drain, listener)
        .limit(limit)
        .refuse_overloaded(Overloaded::silent());
    Running {
        addr,
        task: tokio::spawn(server.run(layer.layer(Http::new(drain, app())))),
    }
}

#[tokio::test]
async fn what_the_inner_service_has_reserved_is_used() {
    let (identity, drain) = (Identity::new(), Drain::new());
    let (listener, addr) = listen().await;
    let one = tower::limit::ConcurrencyLimit::new(Http::new(&drain, app()), 1);
    let server =
        Server::new(&drain, listener).run(TlsLayer::new(&drain, &identity.tls()).layer(one));
    let server = Running {
        addr,
        task: tokio::spawn(server),
    };
    for _ in 0..3 {
        let mut client = Client(identity.connect(&server, &["http/1.1"]).await.unwrap());
        assert!(soon(client.ask(GET)).await.ok());
    }
}

async fn serve(drain: &Drain, tls: &Tls) -> Running {
    serve_tls(
        drain,
        tls,
        &ConnectionLimit::default(),
        Duration::from_secs(10),
    )
    .await
}

#[tokio::test]
async fn http_1_and_http_2_are_agreed_on() {
    let (drain, identity) = (quick(), Identity::new());
    let server = serve(&drain, &identity.tls()).await;
    let stream = identity.connect(&server, &["http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut http1 = Client(stream);
    assert_eq!(http1.ask(GET).await.body, "hello");

    let stream = identity
        .connect(&server, &["h2", "http/1.1"])
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut http2, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::builder()
        .uri("https://localhost/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = http2.send_request(request).await.unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );

    drain.shutdown();
    sleep(ms(20)).await;
    assert_eq!(
        http1.ask(GET).await.closes(),
        1,
        "an idle connection has its last chance under TLS too"
    );
    assert!(http1.is_closed().await);
    soon(connection).await.unwrap().unwrap();
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn certificates_change_while_connections_live_and_a_wrong_pair_changes_nothing() {
    let (drain, old, new) = (quick(), Identity::new(), Identity::new());
    let tls = old.tls();
    let server = serve(&drain, &tls).await;
    let mut kept = Client(old.connect(&server, &[]).await.unwrap());
    assert!(kept.ask(GET).await.ok());

    assert!(
        tls.reload_pem(new.chain.as_bytes(), old.key.as_bytes())
            .is_err(),
        "they do not belong together"
    );
    assert!(tls.reload_pem(b"nothing", b"at all").is_err());
    assert!(old.connect(&server, &[]).await.is_ok());

    tls.reload_pem(new.chain.as_bytes(), new.key.as_bytes())
        .unwrap();
    assert!(old.connect(&server, &[]).await.is_err());
    assert!(
        Client(new.connect(&server, &[]).await.unwrap())
            .ask(GET)
            .await
            .ok()
    );
    assert!(kept.ask(GET).await.ok(), "open connections stay open");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_has_ten_seconds_and_waiting_for_the_service_behind_is_part_of_them() {
    let (drain, tls) = (Drain::new(), Identity::new().tls());
    let (dial, listener) = wire();
    let http = Http::new(&drain, app());
    tokio::spawn(Server::new(&drain, listener).run(TlsLayer::new(&drain, &tls).layer(http)));
    let start = Instant::now();
    assert!(dial.connect().is_closed().await);
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn a_service_that_is_not_ready_after_the_handshake_does_not_hold_the_drain_up() {
    let (drain, identity) = (quick(), Identity::new());
    let (listener, addr) = listen().await;
    let (gate, http) = revocable(Http::new(&drain, app()));
    let server =
        Server::new(&drain, listener).run(TlsLayer::new(&drain, &identity.tls()).layer(http));
    let server = Running {
        addr,
        task: tokio::spawn(server),
    };
    let stream = TcpStream::connect(addr).await.unwrap();
    guests(&drain, 1).await;
    gate.revoke();
    let _client = identity.shake(stream, &[]).await.unwrap();
    drain.shutdown();
    let report = server.report().await;
    assert!(report.is_clean() && report.took < ms(2500), "{report}");
}

#[tokio::test]
async fn a_silent_peer_has_the_handshake_time_and_no_more() {
    let (drain, identity) = (quick(), Identity::new());
    let server = serve_tls(
        &drain,
        &identity.tls(),
        &ConnectionLimit::default(),
        ms(100),
    )
    .await;
    let start = Instant::now();
    let mut silent = server.client().await;
    assert!(silent.is_closed().await);
    assert!(
        (ms(90)..ms(2000)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_silent_peer_does_not_hold_the_drain_up() {
    let (drain, identity) = (quick(), Identity::new());
    let server = serve(&drain, &identity.tls()).await;
    let silent = server.client().await;
    guests(&drain, 1).await;
    drain.shutdown();
    let report = server.report().await;
    assert!(report.is_clean() && report.took < ms(2000), "{report}");
    drop(silent);
}

#[tokio::test]
async fn a_handshake_that_is_under_way_when_closing_begins_is_served() {
    let (drain, identity) = (quick(), Identity::new());
    let server = serve(&drain, &identity.tls()).await;
    // Accepted, and not a byte of the handshake so far.
    let stream = TcpStream::connect(server.addr).await.unwrap();
    guests(&drain, 1).await;
    drain.shutdown();
    sleep(ms(100)).await;
    let mut client = Client(identity.shake(stream, &[]).await.unwrap());
    assert_eq!(client.ask(GET).await.closes(), 1);
    assert!(client.is_closed().await);
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_closed_without_a_response() {
    let (drain, identity) = (quick(), Identity::new());
    let limit = ConnectionLimit::new(std::num::NonZeroUsize::MIN);
    let server = serve_tls(&drain, &identity.tls(), &limit, Duration::from_secs(10)).await;
    let mut first = Client(identity.connect(&server, &[]).await.unwrap());
    assert!(first.ask(GET).await.ok());
    let mut second = server.client().await;
    assert!(second.is_closed().await);
    assert_eq!(limit.refused(), 1);
}
