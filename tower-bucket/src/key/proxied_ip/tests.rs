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
    ProxiedIp::trusting(["10.0.0.0/8", "fd00::/8", "::1"].map(|network| network.parse().unwrap()))
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
fn behind_n_proxies_the_client_is_the_entry_of_that_number_from_the_right() {
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
fn of_trusted_networks_the_client_is_the_first_address_outside() {
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

/// Trusting all of IPv6 meant to trust all of IPv4 as well, which stands in it in mapped form.
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
