//! The parts that the stacks are made of.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_bucket::Quota;
use tower_circuit::{Circuit, Cooldown, Trip};
use tower_lease::{Holder, Lease, LeaseKey, MemoryStore};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) type AnyBody = BoxBody<Bytes, Infallible>;

/// Opens at the second failure in a row, for a minute.
pub(crate) fn circuit() -> Circuit {
    Circuit::builder()
        .trip(Trip::consecutive(2))
        .cooldown(Cooldown::fixed(Duration::from_secs(60)))
        .build()
}

/// Twenty at once, and then one a minute.
pub(crate) fn twenty() -> Quota {
    Quota::per_minute(1).burst(20)
}

/// A lease that is held, and what ends it: dropping the keeper's task.
pub(crate) async fn held_lease() -> (Lease, tokio::task::JoinHandle<()>) {
    let key = LeaseKey::new("tests/one").unwrap();
    let (lease, keeper) = Lease::builder(MemoryStore::new(), key, Holder::new("one"))
        .build()
        .unwrap();
    let keeper = tokio::spawn(async { _ = keeper.run().await });
    lease.held().await.unwrap();
    (lease, keeper)
}

pub(crate) async fn connect(address: SocketAddr) -> io::Result<SendRequest<AnyBody>> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

pub(crate) async fn get(connection: &mut SendRequest<AnyBody>, path: &str) -> Response<String> {
    let request = Request::get(path)
        .header("host", "test")
        .body(full(""))
        .unwrap();
    let sending = async {
        connection.ready().await.unwrap();
        let (head, body) = connection.send_request(request).await.unwrap().into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        Response::from_parts(head, String::from_utf8_lossy(&text).into_owned())
    };
    tokio::time::timeout(PATIENCE, sending)
        .await
        .expect("an answer in time")
}

pub(crate) fn full(text: impl Into<Bytes>) -> AnyBody {
    Full::new(text.into()).boxed()
}
