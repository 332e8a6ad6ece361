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

/// The client's address behind proxies of yours: from `X-Forwarded-For`, or from [`forwarded`](Self::forwarded).
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
/// // Whoever has one of these addresses is a proxy; anybody else is a client.
/// let ours = ProxiedIp::trusting(["10.0.0.0/8".parse()?, "fd00::/8".parse()?]);
/// let layer = BucketLayer::keyed(KeyedLimiter::<ClientIp>::new(quota), ours).respond();
/// # let _ = (one, layer);
/// # Ok::<_, tower_bucket::NotANetwork>(())
/// ```
///
/// A request has no key where the place of the client holds no address: `unknown`, a made-up name or junk, which only a
/// proxy of yours can have put there. Then [`OnMissingKey`](super::OnMissingKey) decides.
///
/// The header is the one that **all** your proxies write and none lets through as it came. The other one is never looked at:
/// whoever does not know it passes on what a client wrote there.
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
    /// There are exactly so many proxies before us. The connection comes from the last of them, so the client is the entry of
    /// that number, counted from the right.
    ///
    /// Every way in must lead through all of them: whoever finds a shorter one has as many entries to make up as it saves.
    /// Zero: there is no proxy, and the client is the connection's own address. With fewer entries than that the leftmost counts, and with none the connection's own address.
    #[must_use]
    pub const fn behind(proxies: u8) -> Self {
        Self {
            trust: Trust::Count(proxies),
            forwarded: false,
        }
    }

    /// Whoever is in these networks is a proxy. The client is the first address from the right that is not: the connection's
    /// own, if that is not in them. Where all are in them it is the leftmost.
    ///
    /// A connection without an address (a Unix socket, or nobody told it) has no key.
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
    /// The network of `address` with a common beginning of `length` bits. `None` if it has not so many, or others are set.
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
mod tests {
    use std::net::SocketAddr;

    use http::HeaderValue;
    use proptest::prelude::*;
    use tower_outcome::PeerAddr;

    use super::*;

    const CLIENT: &str = "192.0.2.7";

    fn behind(proxies: u8) -> ProxiedIp {
        ProxiedIp::behind(proxies)
    }

    fn ours() -> ProxiedIp {
        ProxiedIp::trusting(
            ["10.0.0.0/8", "fd00::/8", "::1"].map(|network| network.parse().unwrap()),
        )
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn request(peer: &str, name: &'static str, lines: &[&str]) -> Request<()> {
        let mut request = Request::new(());
        if !peer.is_empty() {
            request
                .extensions_mut()
                .insert(PeerAddr(SocketAddr::new(ip(peer), 4711)));
        }
        for line in lines {
            request
                .headers_mut()
                .append(name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        request
    }

    fn client(key: &ProxiedIp, peer: &str, lines: &[&str]) -> Option<String> {
        let name = if key.forwarded {
            "forwarded"
        } else {
            "x-forwarded-for"
        };
        key.key(&request(peer, name, lines))
            .map(|client| client.to_string())
    }

    fn is(key: &ProxiedIp, peer: &str, lines: &[&str], expected: &str) {
        assert_eq!(
            client(key, peer, lines).as_deref(),
            Some(expected),
            "{key:?} from {peer}: {lines:?}"
        );
    }

    #[test]
    fn behind_so_many_proxies_the_client_is_the_entry_of_that_number_from_the_right() {
        is(&behind(1), "10.0.0.1", &[CLIENT], CLIENT);
        is(&behind(1), "10.0.0.1", &["203.0.113.9, 192.0.2.7"], CLIENT);
        is(
            &behind(2),
            "10.0.0.1",
            &["203.0.113.9, 192.0.2.7, 10.0.0.2"],
            CLIENT,
        );
        is(
            &behind(2),
            "10.0.0.1",
            &["203.0.113.9, 192.0.2.7", "10.0.0.2"],
            CLIENT,
        );
        is(&behind(2), "10.0.0.1", &["192.0.2.7, unknown"], CLIENT);
        is(&behind(1), "", &[CLIENT], CLIENT);
    }

    #[test]
    fn where_entries_are_missing_it_is_the_farthest_that_is_there() {
        is(&behind(3), "10.0.0.1", &[CLIENT], CLIENT);
        is(&behind(3), "10.0.0.1", &[], "10.0.0.1");
        is(&behind(3), "10.0.0.1", &["unknown"], "10.0.0.1");
        assert_eq!(client(&behind(1), "", &[]), None);
    }

    #[test]
    fn of_trusted_networks_the_client_is_the_first_who_is_not_in_them() {
        is(
            &ours(),
            "10.0.0.1",
            &["203.0.113.9, 192.0.2.7, 10.0.0.2"],
            CLIENT,
        );
        is(
            &ours(),
            "10.0.0.1",
            &["10.6.6.6, 192.0.2.7, 10.0.0.3", "10.0.0.2"],
            CLIENT,
        );
        is(
            &ours(),
            "::ffff:10.0.0.1",
            &["2001:db8::7, ::ffff:10.0.0.2, [fd00::1]:80"],
            "2001:db8::/64",
        );
        is(&ours(), CLIENT, &["203.0.113.9", "10.0.0.1"], CLIENT);
        is(&ours(), "10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        is(&ours(), "10.0.0.1", &[], "10.0.0.1");
        assert_eq!(
            client(&ours(), "", &[CLIENT]),
            None,
            "who cannot be told to be a proxy is not believed"
        );
    }

    #[test]
    fn a_place_without_an_address_is_no_key_and_is_not_passed_over() {
        for junk in ["unknown", "_hidden", "192.0.2", "\"", "[::1"] {
            let line = format!("203.0.113.9, {junk}");
            assert_eq!(client(&behind(1), "10.0.0.1", &[&line]), None);
            assert_eq!(
                client(&ours(), "10.0.0.1", &[&format!("{line}, 10.0.0.2")]),
                None
            );
        }
    }

    #[test]
    fn the_other_header_is_not_looked_at() {
        let request = request("10.0.0.1", "forwarded", &["for=203.0.113.9"]);
        assert_eq!(behind(1).key(&request).unwrap().to_string(), "10.0.0.1");
        let forwarded = behind(1).forwarded();
        is(
            &forwarded,
            "10.0.0.1",
            &["for=203.0.113.9, for=192.0.2.7;proto=https"],
            CLIENT,
        );
        is(
            &forwarded,
            "10.0.0.1",
            &["for=\"evil, for=192.0.2.7"],
            CLIENT,
        );
        is(
            &ours().forwarded(),
            "10.0.0.1",
            &[
                "for=203.0.113.9",
                "for=\"[2001:db8::7]:80\"",
                "for=10.0.0.2",
            ],
            "2001:db8::/64",
        );
    }

    #[test]
    fn a_thousand_entries_are_not_walked() {
        let spoofed = ["203.0.113.9"; 1_000].join(", ");
        is(
            &ours(),
            "10.0.0.1",
            &[&format!("{spoofed}, {CLIENT}")],
            CLIENT,
        );
        is(&behind(255), "10.0.0.1", &[&spoofed], "203.0.113.9");
        let proxies = ["10.0.0.2"; 1_000].join(",");
        assert_eq!(
            client(&ours(), "10.0.0.1", &[&proxies]),
            None,
            "a loop, or a trusted one who plays tricks"
        );
        let lines = vec!["10.0.0.2"; 1_000];
        assert_eq!(client(&ours(), "10.0.0.1", &lines), None);
        is(
            &ours(),
            "10.0.0.1",
            &[&lines[..999], &[CLIENT]].concat(),
            CLIENT,
        );
        assert_eq!(
            client(&ours(), "10.0.0.1", &[&",".repeat(100_000)]).as_deref(),
            Some("10.0.0.1")
        );
    }

    #[test]
    fn networks_are_read_and_written() {
        for text in [
            "10.0.0.0/8",
            "192.0.2.1/32",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::/0",
            "::1/128",
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        assert_eq!(
            "::ffff:10.0.0.0/104".parse::<Network>(),
            "10.0.0.0/8".parse()
        );
        assert_eq!(
            "192.0.2.1".parse::<Network>().unwrap().to_string(),
            "192.0.2.1/32"
        );
        for text in [
            "",
            "/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::/129",
            "::1/64",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "ten/8",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(ip("203.0.113.9")) && all.contains(ip("::ffff:203.0.113.9")));
        assert!(!all.contains(ip("2001:db8::1")) && !all.contains(ip("::")));
        let one: Network = "192.0.2.1/32".parse().unwrap();
        assert!(
            one.contains(ip("192.0.2.1"))
                && !one.contains(ip("192.0.2.2"))
                && !one.contains(ip("192.0.2.0"))
        );
        let one: Network = "2001:db8::1/128".parse().unwrap();
        assert!(one.contains(ip("2001:db8::1")) && !one.contains(ip("2001:db8::2")));
    }

    /// Who trusts all of IPv6 did trust all of IPv4 as well, which stands in it in mapped form.
    #[test]
    fn a_network_of_ipv6_has_no_ipv4_in_it() {
        for text in ["::/0", "::/64", "::/80"] {
            let network: Network = text.parse().unwrap();
            assert!(
                network.contains(ip("::1")) && !network.contains(ip("192.0.2.1")),
                "{text}"
            );
            assert!(!network.contains(ip("::ffff:192.0.2.1")), "{text}");
        }
        assert!(
            "::/0"
                .parse::<Network>()
                .unwrap()
                .contains(ip("2001:db8::1"))
        );
        assert!(
            "::ffff:0:0/96"
                .parse::<Network>()
                .unwrap()
                .contains(ip("192.0.2.1"))
        );
    }

    proptest! {
        /// A client writes what it likes into as many lines as it likes; its own address is appended behind it.
        #[test]
        fn nothing_that_a_client_writes_selects_another_clients_bucket(
            spoofed in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..6),
            entries in prop::collection::vec("(for=)?\"?\\[?(10\\.0\\.0\\.[0-9]|203\\.0\\.113\\.[0-9]|fd00::[0-9]|unknown)\\]?\"?(:[0-9]{1,6})?", 0..30),
            proxies in 1_u8..4,
            same_line in any::<bool>(),
            as_forwarded in any::<bool>(),
        ) {
            let node = |address: &str| if as_forwarded { format!("for={address}") } else { address.to_owned() };
            let mut lines: Vec<Vec<u8>> = spoofed;
            lines.push(entries.join(", ").into_bytes());
            let appended = (1..proxies).map(|hop| node(&format!("10.0.0.{hop}")));
            for entry in [node(CLIENT)].into_iter().chain(appended) {
                match lines.last_mut() {
                    Some(line) if same_line && HeaderValue::from_bytes(line).is_ok() => {
                        line.extend_from_slice(format!(", {entry}").as_bytes());
                    }
                    _ => lines.push(entry.into_bytes()),
                }
            }
            for key in [behind(proxies), ours()] {
                let key = if as_forwarded { key.forwarded() } else { key };
                let mut request = request("10.0.0.9", "x-unused", &[]);
                for line in lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok()) {
                    let name = if as_forwarded { FORWARDED } else { X_FORWARDED_FOR };
                    request.headers_mut().append(name, line);
                }
                prop_assert_eq!(key.key(&request).map(|client| client.to_string()), Some(CLIENT.to_owned()));
            }
        }
    }
}
