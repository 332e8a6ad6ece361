//! Over a real connection: what a client sees of an answer that was under way when the lease was lost.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep, timeout},
};
use tower_lease::{Holder, Lease, LeaseLayer, LeaseStore, MemoryStore};

use crate::common::key;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A frame every ten milliseconds, for ever.
struct Ticking(Pin<Box<Sleep>>);

impl http_body::Body for Ticking {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::ready!(self.0.as_mut().poll(cx));
        self.0 = Box::pin(sleep(Duration::from_millis(10)));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"tick")))))
    }
}

async fn send(to: std::net::SocketAddr, path: &str) -> TcpStream {
    let mut connection = TcpStream::connect(to).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}

/// I3: it must not look whole. An HTTP/1 answer of unknown length is whole when its last chunk has come.
#[tokio::test]
async fn i3_an_answer_under_way_breaks_off_and_does_not_look_whole() {
    let store = MemoryStore::new();
    let (lease, keeper) = Lease::builder(store.clone(), key(), Holder::new("echo-0"))
        .build()
        .unwrap();
    let keeper = tokio::spawn(keeper.run());
    timeout(PATIENCE, lease.held()).await.unwrap().unwrap();
    let app = Router::new()
        .route(
            "/ticks",
            get(|| async { Body::new(Ticking(Box::pin(sleep(Duration::ZERO)))) }),
        )
        .layer(LeaseLayer::new(&lease).respond());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let mut connection = send(address, "/ticks").await;
    let mut got = Vec::new();
    while !got.windows(4).any(|four| four == b"tick") {
        let read = timeout(PATIENCE, connection.read_buf(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert!(read > 0, "it is still held");
    }
    assert!(got.starts_with(b"HTTP/1.1 200"));
    store.revoke(&key(), None).await.unwrap();
    // The rest ends by itself, with an error or without; what counts is what it lacks.
    let _ = timeout(PATIENCE, connection.read_to_end(&mut got))
        .await
        .expect("it ends");
    assert!(
        !got.ends_with(b"0\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&got)
    );
    assert_eq!(
        (lease.requests().broken_off, lease.requests().inside),
        (1, 0)
    );

    let mut refused = String::new();
    timeout(
        PATIENCE,
        send(address, "/ticks").await.read_to_string(&mut refused),
    )
    .await
    .unwrap()
    .unwrap();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        refused.contains("fenced at epoch 1: gone from the store"),
        "{refused}"
    );
    timeout(PATIENCE, keeper).await.unwrap().unwrap();
    server.abort();
}
