use std::{
    convert::Infallible,
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header::HOST, uri::PathAndQuery};
use http_body::{Body, Frame};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_outcome::BoxError;

use super::{Probe, probe::BoxProbing};
use crate::Endpoint;

/// Healthy if a connection is accepted.
///
/// It only shows that a socket is listening: the kernel accepts for a process that hangs.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpProbe;

/// Healthy if a `GET` over HTTP/1 is answered with a status of 200 to 399, on a separate connection.
///
/// ```
/// use tower_resolve::health::{ActiveCheck, HttpProbe};
///
/// let check = ActiveCheck::new(HttpProbe::new("/ready".parse().unwrap()));
/// # let _ = check;
/// ```
#[derive(Clone, Debug)]
pub struct HttpProbe {
    target: PathAndQuery,
    host: Option<HeaderValue>,
}

/// A body of one frame, or of none.
pub(super) struct Whole(Option<Bytes>);

// === impl TcpProbe ===

impl Probe for TcpProbe {
    type Future = BoxProbing;

    fn probe(&self, endpoint: &Endpoint) -> BoxProbing {
        let addr = endpoint.addr();
        Box::pin(async move {
            TcpStream::connect(addr).await?;
            Ok(())
        })
    }
}

// === impl HttpProbe ===

impl HttpProbe {
    /// Requests this path and query.
    #[must_use]
    pub const fn new(target: PathAndQuery) -> Self {
        Self { target, host: None }
    }

    /// The value of `Host`. Default: the address of the endpoint.
    #[must_use]
    pub fn host(self, host: HeaderValue) -> Self {
        Self {
            host: Some(host),
            ..self
        }
    }
}

impl Probe for HttpProbe {
    type Future = BoxProbing;

    fn probe(&self, endpoint: &Endpoint) -> BoxProbing {
        let addr = endpoint.addr();
        let mut request = Request::new(Whole(None));
        *request.uri_mut() = Uri::from(self.target.clone());
        let host = self.host.clone();
        Box::pin(async move {
            let host = host.map_or_else(|| HeaderValue::try_from(addr.to_string()), Ok)?;
            request.headers_mut().insert(HOST, host);
            let stream = TcpStream::connect(addr).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let mut answer =
                pin!(async { Ok::<_, BoxError>(sender.send_request(request).await?.status()) });
            // Driven here and dropped with the check, so that none outlives it.
            judged(tokio::select! {
                biased;
                status = &mut answer => status?,
                ended = connection => {
                    ended?;
                    // Closed right behind the answer, if there was one.
                    answer.await?
                }
            })
        })
    }
}

fn judged(status: StatusCode) -> Result<(), BoxError> {
    match status.is_success() || status.is_redirection() {
        true => Ok(()),
        false => Err(format!("answered {status}").into()),
    }
}

// === impl Whole ===

impl Whole {
    #[cfg(feature = "http2")]
    pub(super) const fn new(bytes: Bytes) -> Self {
        Self(Some(bytes))
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
