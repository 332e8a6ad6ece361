//! Whatever a client writes into `X-Forwarded-For` or `Forwarded`, over however many lines: nothing panics, and what the
//! proxy appends behind it is the client.
#![no_main]

use std::{
    net::{IpAddr, SocketAddr},
    };

use http::{HeaderValue, Request};
use libfuzzer_sys::fuzz_target;
use tower_bucket::{ClientIp, Key, ProxiedIp};
use tower_outcome::PeerAddr;

fuzz_target!(|written: &[u8]| {
    let client = IpAddr::from([192, 0, 2, 7]);
    let networks = || ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network"));
    for (name, entry) in [
        ("x-forwarded-for", "192.0.2.7"),
        ("forwarded", "for=192.0.2.7"),
    ] {
        let keys = [
            ProxiedIp::behind(1),
            ProxiedIp::trusting(networks()),
        ];
        for key in keys.map(|key| {
            if name == "forwarded" {
                key.forwarded()
            } else {
                key
            }
        }) {
            let mut request = Request::new(());
            request
                .extensions_mut()
                .insert(PeerAddr(SocketAddr::from(([10, 0, 0, 1], 4711))));
            // The client's lines are the parts between zero bytes. The proxy appends to the last one, or adds a line.
            let mut lines: Vec<Vec<u8>> = written
                .split(|&byte| byte == 0)
                .map(<[u8]>::to_vec)
                .collect();
            if written.len() % 2 == 0 {
                lines.push(entry.into());
            } else if let Some(last) = lines.last_mut() {
                last.extend_from_slice(format!(", {entry}").as_bytes());
            }
            let mut lines: Vec<_> = lines
                .iter()
                .map(|line| HeaderValue::from_bytes(line))
                .collect();
            let last = lines.pop().expect("split gives one part at least");
            for line in lines.into_iter().flatten() {
                request.headers_mut().append(name, line);
            }
            // As it is, without the proxy, it may name anybody; it only must not panic.
            let _ = key.key(&request);
            if let Ok(last) = last {
                request.headers_mut().append(name, last);
                assert_eq!(
                    key.key(&request),
                    Some(ClientIp::from(client)),
                    "{request:?}"
                );
            }
        }
    }
});
