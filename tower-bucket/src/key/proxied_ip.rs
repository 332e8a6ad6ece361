use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use http::{
    HeaderMap, HeaderName, Request,
    header::{FORWARDED, HeaderValue},
};

use super::{
    ClientIp, Key,
    forwarded::{FromRight, Junk, forwarded, x_forwarded_for},
    peer_ip::peer,
};

/// The client's address behind trusted proxies: from `X-Forwarded-For`, or from [`forwarded`](Self::forwarded).
///
/// Each proxy appends the address that it was called from. So the line is read from its right end, over all lines of that
/// name, and no further left than your own proxies wrote: what stands there a client may have made up.
///
/// ```text
///   X-Forwarded-For: 203.0.113.9, 192.0.2.7, 10.0.0.2        and the connection came from 10.0.0.1
///                    made up      the client  your proxies
/// ```
///
/// ```
/// use tower_bucket::{BucketLayer, ClientIp, KeyedLimiter, ProxiedIp, Quota};
///
/// let quota = Quota::per_second(1);
/// // There is always exactly one proxy before us.
/// let one = ProxiedIp::behind(1);
/// // These addresses are proxies; any other address is one of are clients.
/// let ours = ProxiedIp::trusting(["10.0.0.0/8".parse()?, "fd00::/8".parse()?]);
/// let layer = BucketLayer::keyed(KeyedLimiter::<ClientIp>::new(quota), ours).respond();
/// # let _ = (one, layer);
/// # Ok::<_, tower_bucket::NotANetwork>(())
/// ```
///
/// A request has no key where the place of the client holds no address: `unknown`, a made-up name or junk, which only a
/// trusted proxy can have put there. Then [`OnMissingKey`](super::OnMissingKey) decides.
///
/// The header is the one that **all** your proxies write and none lets through as it came. The other one is never looked at:
/// a proxy that does not know it passes on what a client wrote there.
#[derive(Clone, Debug)]
pub struct ProxiedIp {
    trust: Trust,
    forwarded: bool,
}

/// Addresses with a common beginning, such as `10.0.0.0/8`, `2001:db8::/32`, or a single one.
///
/// An IPv4 network is the same in IPv6's mapped form, `::ffff:10.0.0.0/104`. But no shorter IPv6 network has IPv4 addresses
/// in it: `::/0` is all of IPv6, and not all there is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// IPv4 in mapped form.
    first: u128,
    mask: u128,
}

/// A text does not name a [`Network`]: no address, a length that is too great, or bits beyond the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANetwork(());

#[derive(Clone, Debug)]
enum Trust {
    Count(u8),
    Networks(Arc<[Network]>),
}

// === impl ProxiedIp ===

impl ProxiedIp {
    /// There are exactly `proxies` proxies before this server. The connection comes from the last of them, so the client
    /// is the entry of
    /// that number, counted from the right.
    ///
    /// Every way in must lead through all of them: a client that finds a shorter one can make up as many entries as it saves.
    /// Zero: there is no proxy, and the client is the connection's own address. With fewer entries than that the
    /// leftmost counts, and with none the connection's own address.
    #[must_use]
    pub const fn behind(proxies: u8) -> Self {
        Self {
            trust: Trust::Count(proxies),
            forwarded: false,
        }
    }

    /// Addresses in these networks are proxies. The client is the first address from the right that is not: the connection's
    /// own, if that is not in them. Where all are in them it is the leftmost.
    ///
    /// A connection without an address (a Unix socket, or a server that does not write it) has no key.
    #[must_use]
    pub fn trusting(networks: impl IntoIterator<Item = Network>) -> Self {
        Self {
            trust: Trust::Networks(networks.into_iter().collect()),
            forwarded: false,
        }
    }

    /// Reads `Forwarded` (RFC 7239) instead of `X-Forwarded-For`.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self {
            forwarded: true,
            ..self
        }
    }

    /// The address that is the client's.
    fn client(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        match &self.trust {
            Trust::Count(proxies) => nth(*proxies, peer, self.entries(headers)),
            Trust::Networks(networks) => first_untrusted(networks, peer?, self.entries(headers)),
        }
    }

    /// Of all lines, from right to left.
    fn entries(&self, headers: &HeaderMap) -> impl Iterator<Item = Result<IpAddr, Junk>> {
        let (name, parse): (_, fn(&[u8]) -> _) = if self.forwarded {
            (FORWARDED, forwarded)
        } else {
            (X_FORWARDED_FOR, x_forwarded_for)
        };
        let lines = headers
            .get_all(name)
            .into_iter()
            .rev()
            .map(HeaderValue::as_bytes);
        let elements = lines.flat_map(|line| FromRight::new(line, self.forwarded));
        elements.map(move |element| element.and_then(parse))
    }
}

impl<B> Key<Request<B>> for ProxiedIp {
    type Key = ClientIp;

    fn key(&self, request: &Request<B>) -> Option<ClientIp> {
        let peer = peer(request.extensions()).map(|addr| addr.ip());
        self.client(peer, request.headers()).map(ClientIp::from)
    }
}

fn nth(
    proxies: u8,
    peer: Option<IpAddr>,
    entries: impl Iterator<Item = Result<IpAddr, Junk>>,
) -> Option<IpAddr> {
    // What an inner proxy calls its neighbour does not matter; only at the client's place an address must stand.
    let mut client = peer.ok_or(Junk);
    for (entry, at) in entries.zip(1..=proxies) {
        client = if at < proxies {
            entry.or(client)
        } else {
            entry
        };
    }
    client.ok()
}

fn first_untrusted(
    networks: &[Network],
    peer: IpAddr,
    mut entries: impl Iterator<Item = Result<IpAddr, Junk>>,
) -> Option<IpAddr> {
    let mut client = peer;
    for _ in 0..MOST_PROXIES {
        if !networks.iter().any(|network| network.contains(client)) {
            return Some(client);
        }
        match entries.next() {
            Some(entry) => client = entry.ok()?,
            None => return Some(client),
        }
    }
    None
}

// === impl Network ===

impl Network {
    /// The network of `address` with a common beginning of `length` bits. `None` if it has fewer, or later bits are set.
    #[must_use]
    pub const fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (first, length) = match address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().to_bits(), 96 + length as u32),
            IpAddr::V6(v6) => (v6.to_bits(), length as u32),
        };
        if length > 128 {
            return None;
        }
        let mask = if length == 0 {
            0
        } else {
            u128::MAX << (128 - length)
        };
        if first & !mask == 0 {
            Some(Self { first, mask })
        } else {
            None
        }
    }

    /// Whether `address` is one of them.
    #[must_use]
    pub const fn contains(&self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let may_be = address >> 32 != MAPPED || self.mask.leading_ones() >= 96;
        may_be && address & self.mask == self.first
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => {
                (address, Some(length.parse().map_err(|_| NotANetwork(()))?))
            }
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork(()))?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        Self::new(address, length.unwrap_or(whole)).ok_or(NotANetwork(()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, length) = (Ipv6Addr::from_bits(self.first), self.mask.leading_ones());
        match first.to_ipv4_mapped() {
            Some(v4) if length >= 96 => write!(f, "{v4}/{}", length - 96),
            _ => write!(f, "{first}/{length}"),
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({self})")
    }
}

// === impl NotANetwork ===

impl fmt::Display for NotANetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a network address such as 10.0.0.0/8 or fd00::/8")
    }
}

impl Error for NotANetwork {}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What IPv6's form of IPv4 addresses begins with: the upper 96 bits of `::ffff:0:0/96`.
const MAPPED: u128 = 0xffff;

/// In a row, our own; more is a loop.
const MOST_PROXIES: usize = 64;

#[cfg(test)]
mod tests;
