//! The PROXY protocol as a layer of connections.

use std::{
    fmt,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use tokio::io::{AsyncRead, ReadBuf};
use tower_layer::Layer;
use tower_outcome::BoxError;
use tower_service::Service;

use crate::{
    accepted::Accepted,
    drain::{Drain, bounded},
    listen::Addr,
    patience::Patience,
    proxy::{Header, LONGEST, Parsed, parse},
};

/// Takes the client's address from the PROXY protocol, version 1 or 2, of a load balancer in front.
///
/// A header is read only from trusted sources, and it is required of them: a connection from a trusted source without a
/// header is closed, because a client that reaches the port through it could otherwise send a header itself. Connections
/// from other sources keep their own address, and a header from them is not read: to HTTP it is a bad request.
///
/// The header must arrive within 10 s, and within a second once closing begins; this includes the wait for the inner
/// service to be ready. It is read to its last byte and no further, so the stream needs no wrapper and there is no later
/// cost. Put the layer outside of TLS.
#[derive(Clone)]
pub struct ProxyLayer {
    drain: Drain,
    trusted: Arc<dyn Fn(&Addr) -> bool + Send + Sync>,
    timeout: Duration,
}

/// A connection service that reads the PROXY protocol. Made by [`ProxyLayer`].
#[derive(Clone, Debug)]
pub struct Proxied<S> {
    inner: S,
    layer: ProxyLayer,
}

/// The future of a connection: reads the header, waits for the service, and runs it.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ProxiedFuture<S, Io>
where
    S: Service<Accepted<Io>>,
{
    #[pin]
    stage: Stage<S, Io>,
}

#[pin_project(project = StageProj)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives in the allocation of its task"
)]
enum Stage<S, Io>
where
    S: Service<Accepted<Io>>,
{
    /// -> `Living` when the header is complete and the service is ready.
    Waiting {
        parts: Option<(Accepted<Io>, S)>,
        /// The part of the header that was read so far.
        header: Option<Vec<u8>>,
        #[pin]
        patience: Patience,
    },
    Living(#[pin] S::Future),
}

// === impl ProxyLayer ===

impl ProxyLayer {
    /// Trusts no source yet.
    #[must_use]
    pub fn new(drain: &Drain) -> Self {
        Self {
            drain: drain.clone(),
            trusted: Arc::new(|_| false),
            timeout: HEADER,
        }
    }

    /// Trusts these networks, each an address and how many of its bits count.
    ///
    /// ```
    /// use tower_drain::{Drain, ProxyLayer};
    ///
    /// let layer = ProxyLayer::new(&Drain::new()).trust([("10.0.0.0".parse().unwrap(), 8), ("::1".parse().unwrap(), 128)]);
    /// ```
    #[must_use]
    pub fn trust(self, networks: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        let networks: Vec<_> = networks.into_iter().collect();
        self.trust_if(move |peer| {
            peer.ip()
                .is_some_and(|peer| networks.iter().any(|net| contains(*net, peer.ip())))
        })
    }

    /// Trusts the addresses for which `trusted` returns `true`. For a Unix socket: `|_| true`.
    #[must_use]
    pub fn trust_if(self, trusted: impl Fn(&Addr) -> bool + Send + Sync + 'static) -> Self {
        Self {
            trusted: Arc::new(trusted),
            ..self
        }
    }

    /// How long the header may take. Default: 10 s.
    #[must_use]
    pub fn header_timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: bounded(timeout),
            ..self
        }
    }
}

impl<S> Layer<S> for ProxyLayer {
    type Service = Proxied<S>;

    fn layer(&self, inner: S) -> Proxied<S> {
        Proxied {
            inner,
            layer: self.clone(),
        }
    }
}

impl fmt::Debug for ProxyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyLayer")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// An IPv4 client of an IPv6 socket has a mapped address, and is still in its IPv4 network.
fn contains((network, bits): (IpAddr, u8), peer: IpAddr) -> bool {
    match (network, peer.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(peer)) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(bits.min(32)))
                .unwrap_or(0);
            (network.to_bits() ^ peer.to_bits()) & mask == 0
        }
        (IpAddr::V6(network), IpAddr::V6(peer)) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(bits.min(128)))
                .unwrap_or(0);
            (network.to_bits() ^ peer.to_bits()) & mask == 0
        }
        _ => false,
    }
}

// === impl Proxied ===

impl<S, Io> Service<Accepted<Io>> for Proxied<S>
where
    S: Service<Accepted<Io>, Response = (), Error: Into<BoxError>> + Clone,
    Io: AsyncRead + Unpin,
{
    type Response = ();
    type Error = BoxError;
    type Future = ProxiedFuture<S, Io>;

    /// The reservation of the inner service moves into the connection's future, which polls readiness again after the
    /// header.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, accepted: Accepted<Io>) -> ProxiedFuture<S, Io> {
        let trusted = (self.layer.trusted)(accepted.peer());
        // The service that is ready moves into the future; a clone would not have its reservation.
        let next = self.inner.clone();
        let parts = Some((accepted, std::mem::replace(&mut self.inner, next)));
        let patience = Patience::new(&self.layer.drain, self.layer.timeout);
        ProxiedFuture {
            stage: Stage::Waiting {
                parts,
                header: trusted.then(Vec::new),
                patience,
            },
        }
    }
}

// === impl ProxiedFuture ===

impl<S, Io> Future for ProxiedFuture<S, Io>
where
    S: Service<Accepted<Io>, Response = (), Error: Into<BoxError>>,
    Io: AsyncRead + Unpin,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            let next = match stage.as_mut().project() {
                StageProj::Waiting {
                    parts,
                    header,
                    patience,
                } => {
                    let (accepted, service) = parts.as_mut().expect("called once");
                    if poll_known(accepted, header, cx)?.is_pending()
                        || service.poll_ready(cx).map_err(Into::into)?.is_pending()
                    {
                        ready!(patience.poll(cx));
                        return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
                    }
                    let (accepted, mut service) = parts.take().expect("called once");
                    Stage::Living(service.call(accepted))
                }
                StageProj::Living(life) => return life.poll(cx).map_err(Into::into),
            };
            stage.set(next);
        }
    }
}

impl<S, Io> fmt::Debug for ProxiedFuture<S, Io>
where
    S: Service<Accepted<Io>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxiedFuture")
            .field("waiting", &matches!(self.stage, Stage::Waiting { .. }))
            .finish()
    }
}

/// Ready when the client's address is known.
fn poll_known<Io>(
    accepted: &mut Accepted<Io>,
    header: &mut Option<Vec<u8>>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>>
where
    Io: AsyncRead + Unpin,
{
    if let Some(bytes) = header {
        let read = ready!(poll_header(accepted.io_mut(), bytes, cx))?;
        *header = None;
        if let Header::Proxied {
            source,
            destination,
        } = read
        {
            accepted.readdress(source.into(), destination.into());
        }
    }
    Poll::Ready(Ok(()))
}

fn poll_header<Io>(
    io: &mut Io,
    bytes: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Header>>
where
    Io: AsyncRead + Unpin,
{
    loop {
        let needs = match parse(bytes) {
            Parsed::Done(header, _) => return Poll::Ready(Ok(header)),
            Parsed::Invalid => {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "no PROXY header",
                )));
            }
            Parsed::Needs(needs) => needs.min(LONGEST),
        };
        let mut space = [0; PIECE];
        let mut buf = ReadBuf::new(&mut space[..needs.min(PIECE)]);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        bytes.extend_from_slice(buf.filled());
    }
}

const HEADER: Duration = Duration::from_secs(10);
const PIECE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_they_should() {
        let net = |ip: &str, bits| (ip.parse::<IpAddr>().unwrap(), bits);
        let ip = |ip: &str| ip.parse::<IpAddr>().unwrap();
        assert!(contains(net("10.0.0.0", 8), ip("10.255.1.2")));
        assert!(!contains(net("10.0.0.0", 8), ip("11.0.0.1")));
        assert!(
            contains(net("10.0.0.0", 8), ip("::ffff:10.1.1.1")),
            "over an IPv6 socket"
        );
        assert!(contains(net("192.0.2.7", 32), ip("192.0.2.7")));
        assert!(!contains(net("192.0.2.7", 32), ip("192.0.2.6")));
        assert!(contains(net("0.0.0.0", 0), ip("203.0.113.9")));
        assert!(!contains(net("0.0.0.0", 0), ip("2001:db8::1")));
        assert!(contains(net("2001:db8::", 32), ip("2001:db8:1::9")));
        assert!(contains(net("::", 0), ip("2001:db8::1")));
    }
}
