//! The key of a request: which bucket it draws from.

mod client_ip;
mod forwarded;
mod header;
mod path;
mod peer_ip;
mod proxied_ip;

use std::hash::Hash;

pub use self::{
    client_ip::ClientIp,
    header::Header,
    path::{Path, UriPath},
    peer_ip::PeerIp,
    proxied_ip::{Network, NotANetwork, ProxiedIp},
};

/// Finds the key of a request, which selects its bucket.
///
/// A function does as well: `|request: &Request<_>| -> Option<K>`. A key must come from what the client cannot make
/// up, or each request brings a fresh bucket.
///
/// Two or three together, `(ProxiedIp, Path)`, are one key: a bucket for each client *and* path. A request has that key if
/// it has each of its parts.
pub trait Key<Req> {
    /// The type of the key. Cheap to make, because it is made for each request; only its hash is kept.
    type Key: Hash;

    /// The key, or `None` if the request has none; then [`OnMissingKey`] decides.
    fn key(&self, request: &Req) -> Option<Self::Key>;
}

/// What becomes of a request that has no key.
///
/// It is never a 500: that a header or a peer address is missing is the server's mistake or the client's choice, and
/// neither should turn a site off. Each such request is counted ([`Snapshot::keyless`](crate::Snapshot)), and a warning
/// is given once a minute at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnMissingKey {
    /// All of them share one bucket of the same quota. The default: leaving the key out is no way round the limit, and
    /// a server that forgot to pass addresses on still answers, at one client's rate.
    #[default]
    Shared,
    /// It passes, unlimited. For keys that only some must have, such as a header of free accounts.
    Allow,
    /// It is refused, without a time to come back. For keys that all must have, such as an API key.
    Deny,
}

// === impl Key ===

impl<F, Req, K> Key<Req> for F
where
    F: Fn(&Req) -> Option<K>,
    K: Hash,
{
    type Key = K;

    fn key(&self, request: &Req) -> Option<K> {
        self(request)
    }
}

impl<Req, A: Key<Req>, B: Key<Req>> Key<Req> for (A, B) {
    type Key = (A::Key, B::Key);

    fn key(&self, request: &Req) -> Option<Self::Key> {
        Some((self.0.key(request)?, self.1.key(request)?))
    }
}

impl<Req, A: Key<Req>, B: Key<Req>, C: Key<Req>> Key<Req> for (A, B, C) {
    type Key = (A::Key, B::Key, C::Key);

    fn key(&self, request: &Req) -> Option<Self::Key> {
        Some((
            self.0.key(request)?,
            self.1.key(request)?,
            self.2.key(request)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::{HeaderName, Request};
    use tower_outcome::PeerAddr;

    use super::*;

    #[test]
    fn a_tuple_is_a_key_if_each_part_is() {
        let tenant = Header::new(HeaderName::from_static("x-tenant"));
        let key = (PeerIp, tenant, |request: &Request<()>| {
            Some(request.method().clone())
        });
        let mut request = Request::builder()
            .header("x-tenant", "one")
            .body(())
            .unwrap();
        assert_eq!(key.key(&request), None);
        let peer = SocketAddr::from(([192, 0, 2, 1], 4711));
        request.extensions_mut().insert(PeerAddr(peer));
        let (client, tenant, method) = key.key(&request).unwrap();
        assert_eq!(
            (client, method),
            (ClientIp::from(peer.ip()), http::Method::GET)
        );
        assert_eq!(tenant, "one");
        assert!((PeerIp, Path).key(&request).is_some());
    }
}
