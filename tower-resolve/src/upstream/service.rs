use std::{
    fmt,
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, Version, header::HOST};
use http_body::Body;
use tower_outcome::BoxError;
use tower_service::Service;

use super::{
    ResponseFuture, UpstreamBody, UpstreamSnapshot,
    connection::Dial,
    pool::{Limits, Pool},
};
use crate::backoff::FOR_EVER;

/// Sends requests to one address, over pooled HTTP/1 connections. See the [module](super).
///
/// Clones share the pool. Requests are sent in origin form as HTTP/1.1; `Host` is kept, or else taken from the URI of the
/// request, or else the address. All other fields are left alone: hop-by-hop fields are the task of a proxy. Upgrades work
/// through [`hyper::upgrade::on`].
pub struct Upstream<B> {
    pool: Arc<Pool<B>>,
    /// What this clone waits for, while it is not ready. Never locked: it makes the service `Sync`.
    waits: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

/// The settings of an [`Upstream`].
#[derive(Clone, Debug)]
pub struct UpstreamBuilder {
    dial: Dial,
    limits: Limits,
    max_connections: NonZeroUsize,
}

// === impl Upstream ===

impl<B> Upstream<B> {
    /// An upstream at `addr` with the defaults.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        UpstreamBuilder::new(addr).build()
    }

    /// Whether it is up, and the number of connections.
    #[must_use]
    pub fn snapshot(&self) -> UpstreamSnapshot {
        self.pool.snapshot()
    }
}

impl Upstream<()> {
    /// Starts with the defaults.
    #[must_use]
    pub fn builder(addr: SocketAddr) -> UpstreamBuilder {
        UpstreamBuilder::new(addr)
    }
}

impl<B> Service<Request<B>> for Upstream<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UpstreamBody<B>>;
    type Error = BoxError;
    type Future = ResponseFuture<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let waits = self.waits.get_mut().unwrap_or_else(PoisonError::into_inner);
        while !self.pool.is_ready() {
            let wait = waits.get_or_insert_with(|| Box::pin(self.pool.clone().changed()));
            ready!(wait.as_mut().poll(cx));
            *waits = None;
        }
        *waits = None;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> ResponseFuture<B> {
        to_origin_form(&mut request, &self.pool.host);
        ResponseFuture::new(self.pool.clone(), request)
    }
}

impl<B> Clone for Upstream<B> {
    /// A clone shares the pool, and waits separately.
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            waits: Mutex::new(None),
        }
    }
}

impl<B> fmt::Debug for Upstream<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

// === impl UpstreamBuilder ===

impl UpstreamBuilder {
    fn new(addr: SocketAddr) -> Self {
        Self {
            dial: Dial {
                addr,
                timeout: Duration::from_secs(1),
            },
            limits: Limits {
                idle_timeout: Duration::from_secs(4),
                max_idle: 1024,
            },
            max_connections: const { NonZeroUsize::new(1024).unwrap() },
        }
    }

    /// The maximum time to connect. Default: 1 s, which allows for two lost packets in a data centre.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.dial.timeout = timeout;
        self
    }

    /// The time after which an idle connection is closed. Default: 4 s, less than the timeouts of the usual servers
    /// (Node.js: 5 s), so that the client closes it and not the server, during a request.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle_timeout = timeout.min(FOR_EVER);
        self
    }

    /// The maximum number of idle connections; 0 keeps none. Default: 1 024, the same as of open ones: with fewer, each wave
    /// of responses closes connections that the next wave of requests opens again. The idle timeout closes unused ones.
    #[must_use]
    pub fn max_idle(mut self, connections: usize) -> Self {
        self.limits.max_idle = connections;
        self
    }

    /// The maximum number of open connections, in use or idle. Default: 1 024.
    #[must_use]
    pub fn max_connections(mut self, connections: NonZeroUsize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Creates the upstream. It connects on use.
    #[must_use]
    pub fn build<B>(self) -> Upstream<B> {
        let host = HeaderValue::try_from(self.dial.addr.to_string())
            .expect("an address is a valid field value");
        let pool = Pool::new(self.dial, host, self.limits, self.max_connections.get());
        Upstream {
            pool: Arc::new(pool),
            waits: Mutex::new(None),
        }
    }
}

/// RFC 9112 section 3.2.1: the path and query in the request line, the authority in `Host`.
fn to_origin_form<B>(request: &mut Request<B>, addr: &HeaderValue) {
    *request.version_mut() = Version::HTTP_11;
    if !request.headers().contains_key(HOST) {
        let authority = request.uri().authority().map(|authority| {
            // Without user and password, which are not part of it (RFC 9110 section 7.2).
            let text = authority.as_str();
            text.rsplit_once('@').map_or(text, |(_, host)| host)
        });
        let host = authority
            .and_then(|text| HeaderValue::try_from(text).ok())
            .unwrap_or_else(|| addr.clone());
        request.headers_mut().insert(HOST, host);
    }
    if request.uri().authority().is_some() && request.method() != Method::CONNECT {
        let target = request.uri().path_and_query().cloned();
        *request.uri_mut() = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(uri: &str, host: Option<&str>) -> (String, String) {
        let mut request = Request::builder().uri(uri).version(Version::HTTP_2);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        let mut request = request.body(()).unwrap();
        to_origin_form(&mut request, &HeaderValue::from_static("127.0.0.1:80"));
        assert_eq!(request.version(), Version::HTTP_11);
        (
            request.uri().to_string(),
            request.headers()[HOST].to_str().unwrap().to_owned(),
        )
    }

    #[test]
    fn the_target_is_in_origin_form_and_the_host_is_kept_or_set() {
        let pair = |target: &str, host: &str| (target.to_owned(), host.to_owned());
        assert_eq!(sent("/a?b=c", None), pair("/a?b=c", "127.0.0.1:80"));
        assert_eq!(sent("/a", Some("example.com")), pair("/a", "example.com"));
        assert_eq!(
            sent("http://example.com:8080/a?b", None),
            pair("/a?b", "example.com:8080")
        );
        assert_eq!(
            sent("http://user:secret@example.com", None),
            pair("/", "example.com")
        );
        assert_eq!(sent("http://example.com/", Some("kept")), pair("/", "kept"));
    }
}
