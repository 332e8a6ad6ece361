//! The parser of the PROXY protocol: bytes in, the client's addresses out.
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The proxy's own connection (a health check), or one of an unknown client: keep the connection's addresses.
    Local,
    /// The connection of the client `source` to `destination`.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// The address that the client has connected to.
        destination: SocketAddr,
    },
}

/// The result of parsing the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The header has at least this many more bytes.
    Needs(usize),
    /// The header, and its length.
    Done(Header, usize),
    /// Not a header.
    Invalid,
}

/// Reads a header of version 1 or 2 from the beginning of `bytes`.
///
/// It never asks for a byte beyond the header, so a caller that reads no more than asked for leaves the stream exactly
/// after it. Unix addresses count as [`Header::Local`], and extensions (TLVs) are skipped.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    if bytes.is_empty() {
        // The shortest possible header.
        return Parsed::Needs(V1_SHORTEST);
    }
    let common = bytes.len().min(SIGNATURE.len());
    if bytes[..common] == SIGNATURE[..common] {
        return parse_v2(bytes);
    }
    let common = bytes.len().min(V1.len());
    if bytes[..common] == V1[..common] {
        parse_v1(bytes)
    } else {
        Parsed::Invalid
    }
}

/// The longest header that is read: far more than version 1 may have, and enough for all usual extensions.
pub(crate) const LONGEST: usize = 4096;

fn parse_v1(bytes: &[u8]) -> Parsed {
    if bytes.len() < V1_SHORTEST {
        return Parsed::Needs(V1_SHORTEST - bytes.len());
    }
    let window = &bytes[..bytes.len().min(V1_LONGEST)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.last() {
            _ if bytes.len() >= V1_LONGEST => Parsed::Invalid,
            Some(b'\r') => Parsed::Needs(1),
            _ => Parsed::Needs(2.min(V1_LONGEST - bytes.len())),
        };
    };
    match std::str::from_utf8(&bytes[V1.len()..end])
        .ok()
        .and_then(parse_line)
    {
        Some(header) => Parsed::Done(header, end + 2),
        None => Parsed::Invalid,
    }
}

/// The text between `PROXY ` and the end of the line.
fn parse_line(line: &str) -> Option<Header> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(Header::Local);
    }
    let (source, destination) = (
        parse_ip(family, words.next()?)?,
        parse_ip(family, words.next()?)?,
    );
    let (from, to) = (parse_port(words.next()?)?, parse_port(words.next()?)?);
    let header = Header::Proxied {
        source: SocketAddr::new(source, from),
        destination: SocketAddr::new(destination, to),
    };
    words.next().is_none().then_some(header)
}

fn parse_ip(family: &str, word: &str) -> Option<IpAddr> {
    match family {
        "TCP4" => word.parse().map(IpAddr::V4).ok(),
        "TCP6" => word.parse().map(IpAddr::V6).ok(),
        _ => None,
    }
}

/// Digits without a leading zero (2.1); `parse` alone would accept one, and a sign.
fn parse_port(word: &str) -> Option<u16> {
    word.parse()
        .ok()
        .filter(|port: &u16| port.to_string() == word)
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    if bytes.len() < V2_HEAD {
        return Parsed::Needs(V2_HEAD - bytes.len());
    }
    let (version, family) = (bytes[12], bytes[13]);
    let length = V2_HEAD + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if !matches!(version, 0x20 | 0x21) || length > LONGEST {
        return Parsed::Invalid;
    }
    if bytes.len() < length {
        return Parsed::Needs(length - bytes.len());
    }
    let addresses = &bytes[V2_HEAD..length];
    let header = match (version, family) {
        (0x20, _) => Some(Header::Local),
        (_, 0x11) => parse_v4(addresses),
        (_, 0x21) => parse_v6(addresses),
        (_, 0x00 | 0x31 | 0x32) => Some(Header::Local),
        _ => None,
    };
    header.map_or(Parsed::Invalid, |header| Parsed::Done(header, length))
}

fn parse_v4(bytes: &[u8]) -> Option<Header> {
    let (source, rest) = bytes.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    let (from, to) = parse_ports(rest)?;
    Some(Header::Proxied {
        source: SocketAddr::new(Ipv4Addr::from(*source).into(), from),
        destination: SocketAddr::new(Ipv4Addr::from(*destination).into(), to),
    })
}

fn parse_v6(bytes: &[u8]) -> Option<Header> {
    let (source, rest) = bytes.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let (from, to) = parse_ports(rest)?;
    Some(Header::Proxied {
        source: SocketAddr::new(Ipv6Addr::from(*source).into(), from),
        destination: SocketAddr::new(Ipv6Addr::from(*destination).into(), to),
    })
}

fn parse_ports(bytes: &[u8]) -> Option<(u16, u16)> {
    let (from, rest) = bytes.split_first_chunk::<2>()?;
    let to = rest.first_chunk::<2>()?;
    Some((u16::from_be_bytes(*from), u16::from_be_bytes(*to)))
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8; 6] = b"PROXY ";
/// `PROXY UNKNOWN\r\n`.
const V1_SHORTEST: usize = 15;
const V1_LONGEST: usize = 107;
const V2_HEAD: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxied(source: &str, destination: &str) -> Header {
        Header::Proxied {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn v2(version: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version, family]);
        bytes.extend((addresses.len() as u16).to_be_bytes());
        bytes.extend(addresses);
        bytes
    }

    #[test]
    fn version_1_in_all_its_forms() {
        for (line, header) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
                proxied("192.0.2.1:56324", "198.51.100.2:443"),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::1 0 65535\r\n",
                proxied("[2001:db8::1]:0", "[::1]:65535"),
            ),
            ("PROXY UNKNOWN\r\n", Header::Local),
            (
                "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
                Header::Local,
            ),
        ] {
            assert_eq!(parse(line.as_bytes()), Parsed::Done(header, line.len()));
            assert_eq!(
                parse(format!("{line}GET /").as_bytes()),
                Parsed::Done(header, line.len()),
                "what follows stays"
            );
        }
    }

    #[test]
    fn what_is_not_quite_version_1_is_refused() {
        for line in [
            "GET / HTTP/1.1\r\nhost: test\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 0443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.2 1 443\r\n",
            "PROXY TCP4 ::1 ::1 1 1\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.1 1 1\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.2 1 1\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 1 1\r\n",
            "PROXY \r\n             ",
            "proxy unknown\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Parsed::Invalid, "{line}");
        }
        let endless = format!("PROXY TCP4 {}", "1".repeat(200));
        assert_eq!(parse(endless.as_bytes()), Parsed::Invalid);
    }

    #[test]
    fn version_2_in_all_its_forms() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 1, 0xbb];
        let header = proxied("192.0.2.1:56324", "198.51.100.2:443");
        assert_eq!(parse(&v2(0x21, 0x11, &v4)), Parsed::Done(header, 28));
        let with_extensions = [&v4[..], &[4, 0, 1, 0]].concat();
        assert_eq!(
            parse(&v2(0x21, 0x11, &with_extensions)),
            Parsed::Done(header, 32)
        );
        let v6 = [&[0; 15][..], &[1], &[0; 15], &[2], &[0, 80, 0, 81]].concat();
        assert_eq!(
            parse(&v2(0x21, 0x21, &v6)),
            Parsed::Done(proxied("[::1]:80", "[::2]:81"), 52)
        );
        assert_eq!(parse(&v2(0x20, 0x11, &v4)), Parsed::Done(Header::Local, 28));
        assert_eq!(parse(&v2(0x20, 0, &[])), Parsed::Done(Header::Local, 16));
        assert_eq!(
            parse(&v2(0x21, 0x31, &[0; 216])),
            Parsed::Done(Header::Local, 232)
        );
    }

    #[test]
    fn what_is_not_quite_version_2_is_refused() {
        assert_eq!(
            parse(&v2(0x11, 0x11, &[0; 12])),
            Parsed::Invalid,
            "another version"
        );
        assert_eq!(
            parse(&v2(0x22, 0x11, &[0; 12])),
            Parsed::Invalid,
            "another command"
        );
        assert_eq!(
            parse(&v2(0x21, 0x12, &[0; 12])),
            Parsed::Invalid,
            "datagrams on a stream"
        );
        assert_eq!(
            parse(&v2(0x21, 0x11, &[0; 11])),
            Parsed::Invalid,
            "too short for its addresses"
        );
        assert_eq!(parse(&v2(0x21, 0x21, &[0; 35])), Parsed::Invalid);
        assert_eq!(
            parse(&v2(0x21, 0x11, &[0; 5000])),
            Parsed::Invalid,
            "longer than is read"
        );
    }

    fn headers() -> impl Strategy<Value = Vec<u8>> {
        let v1 =
            any::<(Ipv4Addr, Ipv4Addr, u16, u16)>().prop_map(|(from, to, source, destination)| {
                format!("PROXY TCP4 {from} {to} {source} {destination}\r\n").into_bytes()
            });
        let v2 =
            proptest::collection::vec(any::<u8>(), 12..200).prop_map(|rest| v2(0x21, 0x11, &rest));
        prop_oneof![v1, v2, Just(b"PROXY UNKNOWN\r\n".to_vec())]
    }

    proptest! {
        #[test]
        fn anything_is_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&[&SIGNATURE[..], &bytes].concat());
            let _ = parse(&[&V1[..], &bytes].concat());
        }

        #[test]
        fn a_reader_that_takes_what_is_asked_for_ends_exactly_behind_the_header(header in headers()) {
            let stream = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let mut read = 0;
            loop {
                match parse(&stream[..read]) {
                    Parsed::Needs(more) => {
                        prop_assert!(more > 0);
                        read += more;
                        prop_assert!(read <= header.len());
                    }
                    Parsed::Done(_, length) => {
                        prop_assert_eq!((length, read), (header.len(), header.len()));
                        break;
                    }
                    Parsed::Invalid => prop_assert!(false),
                }
            }
        }
    }
}
