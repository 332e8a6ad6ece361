use std::{future::poll_fn, pin::pin};

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    header::{CONTENT_TYPE, TE},
};
use http_body::Body;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tower_outcome::{BoxError, header::GRPC_STATUS};

use super::{Probe, probe::BoxProbing, probes::Whole};
use crate::Endpoint;

/// Healthy if `grpc.health.v1.Health/Check` answers `SERVING`, over HTTP/2 without TLS, on a separate connection.
///
/// A server without the health service (`UNIMPLEMENTED`) counts as healthy, as in gRPC's own clients (gRFC A17).
#[derive(Clone, Debug, Default)]
pub struct GrpcProbe {
    service: String,
}

// === impl GrpcProbe ===

impl GrpcProbe {
    /// Checks this service; an empty name is the server as a whole.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
        }
    }
}

impl Probe for GrpcProbe {
    type Future = BoxProbing;

    fn probe(&self, endpoint: &Endpoint) -> BoxProbing {
        let (addr, message) = (endpoint.addr(), request(&self.service));
        Box::pin(async move {
            let mut request = Request::new(Whole::new(message));
            *request.method_mut() = Method::POST;
            *request.uri_mut() =
                Uri::try_from(format!("http://{addr}/grpc.health.v1.Health/Check"))?;
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            request
                .headers_mut()
                .insert(TE, HeaderValue::from_static("trailers"));
            let stream = TcpStream::connect(addr).await?;
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            let mut answer = pin!(async { answered(sender.send_request(request).await?).await });
            tokio::select! {
                biased;
                answer = &mut answer => answer,
                ended = connection => {
                    ended?;
                    answer.await
                }
            }
        })
    }
}

/// `HealthCheckRequest { service: string = 1 }` in gRPC's frame: a flag, a length of four bytes, the message.
fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.unsplit(message);
    frame.freeze()
}

async fn answered<B>(response: http::Response<B>) -> Result<(), BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        return Err(format!("answered HTTP {}", head.status).into());
    }
    let (mut status, mut data) = (grpc_status(&head.headers), BytesMut::new());
    let mut body = pin!(body);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map_err(Into::into)?.into_data() {
            Ok(bytes) if data.len() + bytes.len() <= LONGEST => data.extend_from_slice(&bytes),
            Ok(_) => return Err("a health answer that does not end".into()),
            Err(frame) => status = status.or_else(|| grpc_status(frame.trailers_ref()?)),
        }
    }
    match status {
        Some(0) if is_serving(&data) => Ok(()),
        Some(0) => Err("not serving".into()),
        Some(UNIMPLEMENTED) => Ok(()),
        Some(code) => Err(format!("gRPC status {code}").into()),
        None => Err("no gRPC status".into()),
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// `HealthCheckResponse { status: enum = 1 }`, where `SERVING` is 1. The message has no other field.
fn is_serving(frame: &[u8]) -> bool {
    matches!(frame, [0, 0, 0, 0, 2, 0x08, 1])
}

const UNIMPLEMENTED: u8 = 12;

/// An answer has seven bytes.
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_framed_as_grpc_wants_it() {
        assert_eq!(&request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = request(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn only_serving_is_healthy() {
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 8, 2]));
        assert!(
            !is_serving(&[0, 0, 0, 0, 0]),
            "UNKNOWN, which is left out on the wire"
        );
    }
}
