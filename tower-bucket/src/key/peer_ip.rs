use std::net::SocketAddr;

use http::{Extensions, Request};
use tower_outcome::PeerAddr;

use super::{ClientIp, Key};
use crate::connect_info::connect_info;

/// The address that the connection came from: [`PeerAddr`] in the request's extensions, as `tower-drain` writes it.
///
/// Behind a proxy that is the proxy, so all its clients share one bucket: there use [`ProxiedIp`](super::ProxiedIp).
///
/// Where there is no `PeerAddr`, what the frameworks write is looked at: with feature `axum` its `ConnectInfo<SocketAddr>`
/// (serve with `into_make_service_with_connect_info::<SocketAddr>()`), with feature `tonic` its `TcpConnectInfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerIp;

// === impl PeerIp ===

impl<B> Key<Request<B>> for PeerIp {
    type Key = ClientIp;

    #[inline]
    fn key(&self, request: &Request<B>) -> Option<ClientIp> {
        peer(request.extensions()).map(|addr| addr.ip().into())
    }
}

#[inline]
pub(super) fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    match extensions.get() {
        Some(&PeerAddr(addr)) => Some(addr),
        None => connect_info(extensions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_found_in_the_extensions() {
        let mut request = Request::new(());
        assert_eq!(PeerIp.key(&request), None);
        request
            .extensions_mut()
            .insert(PeerAddr(SocketAddr::from(([192, 0, 2, 1], 4711))));
        assert_eq!(
            PeerIp.key(&request),
            Some(ClientIp::from(std::net::IpAddr::from([192, 0, 2, 1])))
        );
    }
}
