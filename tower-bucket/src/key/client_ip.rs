use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A client by its address: one IPv4 address, or one IPv6 network of 64 bits.
///
/// A /64 is what one IPv6 subscriber gets, at the least; by single addresses anyone has 2^64 buckets. An IPv4 address
/// written as IPv6 (`::ffff:192.0.2.1`, which a dual-stack socket reports) is the IPv4 address. What a translator writes for
/// an IPv4 client (`64:ff9b::192.0.2.1`, RFC 6052) is one client, too: by networks all of IPv4 would be one.
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

// === impl ClientIp ===

impl From<IpAddr> for ClientIp {
    fn from(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
            IpAddr::V6(addr) if addr.to_bits() & TRANSLATED == TRANSLATOR => addr.to_bits(),
            IpAddr::V6(addr) => addr.to_bits() & NETWORK,
        })
    }
}

impl fmt::Display for ClientIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match IpAddr::from(Ipv6Addr::from_bits(self.0)).to_canonical() {
            IpAddr::V4(addr) => addr.fmt(f),
            IpAddr::V6(client) if self.0 & !NETWORK != 0 => client.fmt(f),
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

/// RFC 6052's well-known prefix, of 96 bits.
const TRANSLATOR: u128 = 0x0064_ff9b << 96;
const TRANSLATED: u128 = !0 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> ClientIp {
        ClientIp::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        assert_eq!(
            client("2001:db8:1:2::1"),
            client("2001:db8:1:2:ffff:ffff:ffff:ffff")
        );
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
    }

    #[test]
    fn an_ipv4_address_written_as_ipv6_is_the_same_client_and_no_network_is() {
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("::ffff:192.0.2.1"), client("::ffff:192.0.2.2"));
        for other in [
            "::1",
            "::",
            "::192.0.2.1",
            "64:ff9b::192.0.2.1",
            "2002:c000:0201::1",
        ] {
            assert_ne!(client(other), client("192.0.2.1"), "{other}");
        }
    }

    /// A server that has only IPv6 sees all of IPv4 in one /64.
    #[test]
    fn clients_behind_a_translator_are_not_one() {
        assert_ne!(client("64:ff9b::192.0.2.1"), client("64:ff9b::192.0.2.2"));
        assert_eq!(client("64:ff9b::192.0.2.1"), client("64:ff9b::c000:201"));
        assert_eq!(
            client("64:ff9b::192.0.2.1").to_string(),
            "64:ff9b::c000:201"
        );
        assert_eq!(
            client("64:ff9b:0:0:1::1"),
            client("64:ff9b:0:0:2::1"),
            "only what the prefix says"
        );
        assert_eq!(
            client("64:ff9b:1::1"),
            client("64:ff9b:1::2"),
            "a network like any other"
        );
    }

    #[test]
    fn a_client_reads_as_what_it_stands_for() {
        assert_eq!(client("::ffff:192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(client("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(format!("{:?}", client("::1")), "ClientIp(::/64)");
    }
}
