//! Who is asking.

use std::{
    fmt,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
};

use http::{HeaderName, HeaderValue, Request};
use tower_outcome::PeerAddr;

use crate::connect_info::connect_info;

/// Tells from a request whose bucket it draws from.
///
/// A function does as well: `|request: &Request<_>| -> Option<K>`. A key must come from what the client cannot make
/// up, or each request brings a fresh bucket.
pub trait Key<Req> {
    /// What tells one from another. Cheap to make, because it is made for each request; only its hash is kept.
    type Key: Hash;

    /// The key, or `None` if the request has none; then [`OnMissingKey`] decides.
    fn key(&self, request: &Req) -> Option<Self::Key>;
}

/// The address that the connection came from: [`PeerAddr`] in the request's extensions, as `tower-drain` writes it.
///
/// Behind a proxy that is the proxy, so all its clients share one bucket. With feature `axum`, axum's
/// `ConnectInfo<SocketAddr>` is looked at where there is no `PeerAddr`; serve with
/// `into_make_service_with_connect_info::<SocketAddr>()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerIp;

/// The value of a header, such as an API key or a tenant, told apart by its bytes. Of several lines it is the first.
///
/// Use it only for what was checked before it came here, or was written by a proxy of yours: clients can send any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header(HeaderName);

/// A client by its address: one IPv4 address, or one IPv6 network of 64 bits.
///
/// A /64 is what one IPv6 subscriber gets, at the least; by single addresses anyone has 2^64 buckets. An IPv4 address
/// written as IPv6 (`::ffff:192.0.2.1`, which a dual-stack socket reports) is the IPv4 address.
///
/// ```
/// use std::net::IpAddr;
/// use tower_bucket::ClientIp;
///
/// let client = |text: &str| ClientIp::from(text.parse::<IpAddr>().unwrap());
/// assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:2"));
/// assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
/// assert_eq!(client("2001:db8::1").to_string(), "2001:db8::/64");
/// ```
// One number, as it hashes fastest: a network's, or an IPv4 address in its mapped form, which no /64 has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientIp(u128);

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

impl<B> Key<Request<B>> for PeerIp {
    type Key = ClientIp;

    fn key(&self, request: &Request<B>) -> Option<ClientIp> {
        let extensions = request.extensions();
        let peer = extensions.get().map(|&PeerAddr(addr)| addr).or_else(|| connect_info(extensions));
        peer.map(|addr| addr.ip().into())
    }
}

impl<B> Key<Request<B>> for Header {
    type Key = HeaderValue;

    fn key(&self, request: &Request<B>) -> Option<HeaderValue> {
        request.headers().get(&self.0).cloned()
    }
}

// === impl Header ===

impl Header {
    /// The header of this name.
    #[must_use]
    pub const fn new(name: HeaderName) -> Self {
        Self(name)
    }
}

// === impl ClientIp ===

impl From<IpAddr> for ClientIp {
    fn from(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
            IpAddr::V6(addr) => addr.to_bits() & NETWORK,
        })
    }
}

impl fmt::Display for ClientIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match IpAddr::from(Ipv6Addr::from_bits(self.0)).to_canonical() {
            IpAddr::V4(addr) => addr.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

impl fmt::Debug for ClientIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientIp({self})")
    }
}

const NETWORK: u128 = !0 << 64;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn client(text: &str) -> ClientIp {
        ClientIp::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
    }

    #[test]
    fn an_ipv4_address_written_as_ipv6_is_the_same_client_and_no_network_is() {
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("::ffff:192.0.2.1"), client("::ffff:192.0.2.2"));
        for other in ["::1", "::", "::192.0.2.1", "64:ff9b::192.0.2.1", "2002:c000:0201::1"] {
            assert_ne!(client(other), client("192.0.2.1"), "{other}");
        }
    }

    #[test]
    fn a_client_reads_as_what_it_stands_for() {
        assert_eq!(client("::ffff:192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(client("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(format!("{:?}", client("::1")), "ClientIp(::/64)");
    }

    #[test]
    fn a_peer_is_found_in_the_extensions() {
        let mut request = Request::new(());
        assert_eq!(PeerIp.key(&request), None);
        request.extensions_mut().insert(PeerAddr(SocketAddr::from(([192, 0, 2, 1], 4711))));
        assert_eq!(PeerIp.key(&request), Some(client("192.0.2.1")));
    }

    #[test]
    fn a_header_is_a_key_by_its_first_line() {
        let key = Header::new(HeaderName::from_static("x-api-key"));
        let request = Request::builder().header("x-api-key", "one").header("x-api-key", "two").body(()).unwrap();
        assert_eq!(key.key(&request).unwrap(), "one");
        assert_eq!(key.key(&Request::new(())), None);
    }
}
