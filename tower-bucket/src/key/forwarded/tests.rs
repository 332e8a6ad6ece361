use proptest::prelude::*;

use super::*;

fn from_right(line: &str, quotes: bool) -> Vec<Result<&str, Junk>> {
    FromRight::new(line.as_bytes(), quotes)
        .map(|element| element.map(|bytes| str::from_utf8(bytes).unwrap()))
        .collect()
}

fn address(text: &str) -> Result<IpAddr, Junk> {
    Ok(text.parse().unwrap())
}

#[test]
fn a_line_is_read_backwards_and_what_is_empty_is_no_element() {
    assert_eq!(from_right("a, b ,c", false), [Ok("c"), Ok("b"), Ok("a")]);
    assert_eq!(from_right(" ,, a,\t, ", false), [Ok("a")]);
    assert_eq!(from_right("", false), []);
}

#[test]
fn a_comma_in_quotes_is_part_of_its_element() {
    assert_eq!(
        from_right(r#"for="a,b", for=c"#, true),
        [Ok("for=c"), Ok(r#"for="a,b""#)]
    );
    assert_eq!(
        from_right(r#"for="a\",b", for=c"#, true),
        [Ok("for=c"), Ok(r#"for="a\",b""#)]
    );
    assert_eq!(
        from_right(r#"a", b"#, false),
        [Ok("b"), Ok("a\"")],
        "without quotes a quote is like any other"
    );
}

#[test]
fn a_quote_that_is_left_open_on_the_left_swallows_nothing_on_the_right() {
    for open in [r#"for="evil"#, r#"""#, r#"for="evil\"#, r#"for=a;x="""#] {
        let line = format!(r#"{open}, for=192.0.2.1, for="[2001:db8::1]:80""#);
        let elements: Vec<_> = FromRight::new(line.as_bytes(), true)
            .take(2)
            .map(|one| forwarded(one.unwrap()))
            .collect();
        assert_eq!(
            elements,
            [address("2001:db8::1"), address("192.0.2.1")],
            "{line}"
        );
    }
    assert_eq!(from_right(r#"for=b""#, true), [Err(Junk)]);
}

/// A client names the host, and must not be able to make its own proxy's element unreadable by a long one.
#[test]
fn the_longest_host_name_leaves_an_element_readable() {
    let host = [
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(61),
    ]
    .join(".");
    let line = format!(
        "for=192.0.2.1, by=\"[2001:db8::1]:443\";for=\"[2001:db8::2]:65535\";host=\"{host}:65535\";proto=https"
    );
    let elements: Vec<_> = FromRight::new(line.as_bytes(), true)
        .map(|one| one.and_then(forwarded))
        .collect();
    assert_eq!(elements, [address("2001:db8::2"), address("192.0.2.1")]);
}

#[test]
fn an_element_beyond_measure_ends_the_reading() {
    let line = format!("{}, 192.0.2.1", "x".repeat(100_000));
    assert_eq!(from_right(&line, false), [Ok("192.0.2.1"), Err(Junk)]);
    let line = format!("{}, 192.0.2.1", "\"".repeat(100_000));
    assert_eq!(from_right(&line, true), [Ok("192.0.2.1"), Err(Junk)]);
}

#[test]
fn addresses_are_read_in_every_shape() {
    for text in [
        "192.0.2.1",
        "192.0.2.1:80",
        "192.0.2.1:_port",
        "\"192.0.2.1:80\"",
    ] {
        assert_eq!(
            x_forwarded_for(text.as_bytes()),
            address("192.0.2.1"),
            "{text}"
        );
    }
    for text in [
        "2001:db8::1",
        "[2001:db8::1]",
        "[2001:db8::1]:80",
        "\"[2001:db8::1]:65535\"",
        "[2001:DB8::1]",
    ] {
        assert_eq!(
            x_forwarded_for(text.as_bytes()),
            address("2001:db8::1"),
            "{text}"
        );
    }
}

#[test]
fn junk_is_no_address() {
    for text in [
        "unknown",
        "_hidden",
        "",
        "[",
        "]",
        "[]",
        "[]:80",
        "[2001:db8::1",
        "[2001:db8::1]80",
        "[2001:db8::1]:",
        "[2001:db8::1]:123456",
        "[192.0.2.1]",
        "192.0.2",
        "192.0.2.1.1",
        "192.0.2.256",
        "010.0.0.1",
        "192.0.2.1:",
        "192.0.2.1:x",
        "192.0.2.1:80:80",
        "192.0.2.1 192.0.2.2",
        "fe80::1%eth0",
        "\"192.0.2.1",
        "1",
        "localhost",
        "192.0.2.1\u{a0}",
        "http://192.0.2.1",
        "::1::",
    ] {
        assert_eq!(x_forwarded_for(text.as_bytes()), Err(Junk), "{text}");
    }
    assert_eq!(x_forwarded_for(b"\xff\xfe"), Err(Junk));
}

#[test]
fn forwarded_is_read_as_in_rfc_7239() {
    for text in [
        "for=192.0.2.43",
        "For=\"192.0.2.43\"",
        "FOR=\"192.0.2.43:47011\"",
        "for=192.0.2.43;proto=http;by=203.0.113.43",
        "by=203.0.113.43; for=192.0.2.43 ;host=\"a;b,c\"",
        "secret=\"for=10.0.0.1;\\\"\";for=192.0.2.43",
    ] {
        assert_eq!(forwarded(text.as_bytes()), address("192.0.2.43"), "{text}");
    }
    assert_eq!(
        forwarded(b"for=\"[2001:db8:cafe::17]:4711\""),
        address("2001:db8:cafe::17")
    );
    for text in [
        "for=unknown",
        "for=_SEVKISEK",
        "for",
        "proto=http",
        "for=192.0.2.1;for=192.0.2.2",
        "192.0.2.1",
        "for=",
        "for=192.0.2.1;x",
        "=192.0.2.1",
    ] {
        assert_eq!(forwarded(text.as_bytes()), Err(Junk), "{text}");
    }
}

proptest! {
    #[test]
    fn nothing_panics_and_what_a_proxy_appends_is_read_first(
        left in prop::collection::vec(any::<u8>(), 0..600),
        client in any::<IpAddr>(),
        port in prop::option::of(any::<u16>()),
    ) {
        let bare = match (client, port) {
            (client, None) => client.to_string(),
            (IpAddr::V4(client), Some(port)) => format!("{client}:{port}"),
            (IpAddr::V6(client), Some(port)) => format!("[{client}]:{port}"),
        };
        let line = [&left[..], b", ", bare.as_bytes()].concat();
        let mut elements = FromRight::new(&line, false);
        prop_assert_eq!(x_forwarded_for(elements.next().unwrap().unwrap()), Ok(client));
        prop_assert!(elements.filter(|element| element.and_then(x_forwarded_for).is_ok()).count() <= left.len());

        let node = if client.is_ipv6() && port.is_none() { format!("[{client}]") } else { bare };
        let line = [&left[..], b",for=\"", node.as_bytes(), b"\";proto=https"].concat();
        let mut elements = FromRight::new(&line, true);
        prop_assert_eq!(forwarded(elements.next().unwrap().unwrap()), Ok(client));
        prop_assert!(elements.filter(|element| element.and_then(forwarded).is_ok()).count() <= left.len());
    }
}
