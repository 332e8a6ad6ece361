//! A reverse proxy of a user's own: uploads that clients break off are not failures of the upstream.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, body::Bytes, routing::post};
use http::{Request, Uri};
use http_body::{Body, Frame};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_circuit::{Circuit, CircuitLayer, State, classify};
use tower_outcome::{BoxError, body::ClientBody};

/// Some bytes, and then the client is gone.
struct BreaksOff(u8);

impl Body for BreaksOff {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0 += 1;
        match self.0 {
            1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half a"))))),
            // Not at once, so that hyper has sent the head.
            2..20 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into()))),
        }
    }
}

async fn upstream() -> Uri {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/", post(|body: Bytes| async move { body }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}/").parse().unwrap()
}

fn upload(uri: &Uri) -> Request<BreaksOff> {
    Request::post(uri.clone()).body(BreaksOff(0)).unwrap()
}

#[tokio::test]
async fn uploads_that_clients_break_off_do_not_open_the_circuit_of_a_healthy_upstream() {
    let uri = upstream().await;
    let circuit = Circuit::new();
    let mut proxy = ServiceBuilder::new()
        .layer(CircuitLayer::new(&circuit).classify(classify::Http::new()))
        // A classification looks for refusals in boxed errors.
        .map_err(BoxError::from)
        .map_request(|request: Request<BreaksOff>| request.map(ClientBody::new))
        .service(Client::builder(TokioExecutor::new()).build_http());
    for _ in 0..20 {
        let sent = proxy.ready().await.unwrap().call(upload(&uri)).await;
        assert!(sent.is_err());
    }
    let snapshot = circuit.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.totals.ignored),
        (State::Closed, 20)
    );
}

/// The same without the mark, so that the test above is known to test something.
#[tokio::test]
async fn unmarked_they_would() {
    let uri = upstream().await;
    let circuit = Circuit::new();
    let mut proxy = ServiceBuilder::new()
        .layer(CircuitLayer::new(&circuit).classify(classify::Http::new()))
        .service(Client::builder(TokioExecutor::new()).build_http::<BreaksOff>());
    for _ in 0..5 {
        let sent = proxy.ready().await.unwrap().call(upload(&uri)).await;
        assert!(sent.is_err());
    }
    assert!(matches!(circuit.state(), State::Open { .. }));
}
