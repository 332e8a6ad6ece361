//! What a gateway must do to the heads that pass through it (RFC 9110 section 7.6, RFC 9112 section 3.2).
//!
//! Pure functions over heads: no clock, no socket.

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{
        CONNECTION, COOKIE, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
        VIA,
    },
    request, response,
    uri::Authority,
};

/// A request that is not passed on, by the status that says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unacceptable {
    pub(crate) status: StatusCode,
    pub(crate) why: &'static str,
}

/// Makes a client's request into one for an upstream that speaks HTTP/1.1.
///
/// Strips what belongs to the client's connection first and adds our own fields after, so that a client that nominates
/// one of ours in `Connection` strips nothing.
pub(crate) fn request(head: &mut request::Parts, peer: Option<SocketAddr>) -> Result<(), Unacceptable> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(METHOD);
    }
    let host = host(head)?;
    if !is_plain(&head.headers) {
        return Err(CODING);
    }
    head.uri = origin_form(&head.uri);
    strip_hop_by_hop(&mut head.headers);
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    let via = via(head.version);
    head.version = Version::HTTP_11;
    if let Some(host) = host {
        head.headers.insert(HOST, host);
    }
    head.headers.append(VIA, via);
    for name in &CLAIMS {
        head.headers.remove(name);
    }
    if let Some(peer) = peer {
        append_forwarded_for(&mut head.headers, peer);
    }
    head.headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    Ok(())
}

/// Makes an upstream's response into one for the client, whose connection frames it anew.
///
/// A coding other than `chunked` would be lost with its field, and a switch of protocols was never asked for.
pub(crate) fn response(head: &mut response::Parts) -> Result<(), &'static str> {
    if !is_plain(&head.headers) {
        return Err("the upstream used a transfer coding other than chunked");
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("the upstream switched protocols unasked");
    }
    strip_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    Ok(())
}

/// Whether the body is coded as this gateway can pass it on: not at all, or chunked (RFC 9112 section 6.1).
fn is_plain(headers: &HeaderMap) -> bool {
    headers.get_all(TRANSFER_ENCODING).iter().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// The host the request is for, if it has to be written: the target's authority replaces `Host` (RFC 9112 section 3.2.2).
fn host(head: &request::Parts) -> Result<Option<HeaderValue>, Unacceptable> {
    let mut named = head.headers.get_all(HOST).iter();
    let (first, more) = (named.next(), named.next().is_some());
    if more {
        return Err(HOSTS);
    }
    let Some(authority) = head.uri.authority() else {
        let needs_host = head.version != Version::HTTP_10;
        return match first {
            None if needs_host => Err(NO_HOST),
            Some(host) if !is_host(host) => Err(NO_HOST),
            _ => Ok(None),
        };
    };
    if authority.as_str().contains('@') {
        return Err(USERINFO);
    }
    if head.version == Version::HTTP_2 && first.is_some_and(|host| !same_host(host, authority.as_str())) {
        return Err(HOSTS);
    }
    HeaderValue::from_str(authority.as_str()).map(Some).map_err(|_| NO_HOST)
}

/// A host and perhaps a port, and nothing else. Empty is allowed where there is no authority (RFC 9112 section 3.2).
fn is_host(host: &HeaderValue) -> bool {
    host.is_empty() || (Authority::try_from(host.as_bytes()).is_ok() && !host.as_bytes().contains(&b'@'))
}

fn same_host(host: &HeaderValue, authority: &str) -> bool {
    host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())
}

fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() && uri.scheme().is_none() {
        return uri.clone();
    }
    let path = uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    Uri::from(path)
}

/// Removes the fields that belong to one connection: those named in `Connection`, and those that always do.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // Nobody may nominate away the host we route by.
            .filter(|name| name != HOST)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    // One walk over the few fields there are is cheaper than a look-up for each that there mostly is not.
    while let Some(name) = headers.keys().find(|name| HOP_BY_HOP.contains(name)).cloned() {
        headers.remove(name);
    }
}

/// HTTP/2 may split cookies; HTTP/1.1 must get them in one field (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, whole);
    }
}

/// Adds the peer at the end of the list: the rightmost entry is the one we vouch for.
fn append_forwarded_for(headers: &mut HeaderMap, peer: SocketAddr) {
    let peer = peer.ip().to_canonical().to_string();
    let mut list = Vec::with_capacity(64);
    for value in headers.get_all(X_FORWARDED_FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(peer.as_bytes());
    if let Ok(list) = HeaderValue::from_bytes(&list) {
        headers.insert(X_FORWARDED_FOR, list);
    }
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_2 => "2 gateway",
        Version::HTTP_10 => "1.0 gateway",
        _ => "1.1 gateway",
    })
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What only a proxy in front of us could know, and there is none that we trust.
const CLAIMS: [HeaderName; 5] = [
    FORWARDED,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-real-ip"),
];

/// RFC 9110 section 7.6.1, with the older fields that clients still send.
const HOP_BY_HOP: [HeaderName; 7] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

const METHOD: Unacceptable =
    Unacceptable { status: StatusCode::METHOD_NOT_ALLOWED, why: "CONNECT and TRACE are not passed on" };
const NO_HOST: Unacceptable = Unacceptable { status: StatusCode::BAD_REQUEST, why: "the request names no host" };
const HOSTS: Unacceptable = Unacceptable { status: StatusCode::BAD_REQUEST, why: "the request names two hosts" };
const CODING: Unacceptable =
    Unacceptable { status: StatusCode::NOT_IMPLEMENTED, why: "the only transfer coding is chunked" };
const USERINFO: Unacceptable =
    Unacceptable { status: StatusCode::BAD_REQUEST, why: "the target must not carry user information" };

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    fn passed(builder: request::Builder) -> Result<request::Parts, Unacceptable> {
        let mut head = builder.body(()).unwrap().into_parts().0;
        request(&mut head, Some("[::ffff:192.0.2.7]:4711".parse().unwrap()))?;
        Ok(head)
    }

    fn get(uri: &str) -> request::Builder {
        Request::get(uri).header("host", "example.org")
    }

    #[test]
    fn fields_of_the_clients_connection_stay_there() {
        let head = passed(
            get("/")
                .header("connection", "close, X-Mine, host")
                .header("connection", "via,x-forwarded-for")
                .header("x-mine", "1")
                .header("keep-alive", "timeout=5")
                .header("te", "trailers")
                .header("upgrade", "h2c")
                .header("proxy-authorization", "secret")
                .header("x-kept", "1"),
        )
        .unwrap();
        for name in ["connection", "x-mine", "keep-alive", "te", "upgrade", "proxy-authorization"] {
            assert!(!head.headers.contains_key(name), "{name}");
        }
        assert_eq!(head.headers["x-kept"], "1");
        assert_eq!(head.headers["host"], "example.org");
        assert_eq!(head.headers["via"], "1.1 gateway", "what we add cannot be nominated away");
        assert_eq!(head.headers["x-forwarded-for"], "192.0.2.7");
    }

    #[test]
    fn the_peer_is_added_at_the_right_end_of_what_the_client_claims() {
        let head = passed(get("/").header("x-forwarded-for", "10.0.0.1").header("x-forwarded-for", "junk")).unwrap();
        assert_eq!(head.headers["x-forwarded-for"], "10.0.0.1, junk, 192.0.2.7");
        assert_eq!(head.headers.get_all("x-forwarded-for").iter().count(), 1);
    }

    #[test]
    fn the_targets_authority_replaces_host() {
        let head = passed(get("http://real.example:81/a?b=c")).unwrap();
        assert_eq!(
            (head.uri.to_string().as_str(), &head.headers["host"]),
            ("/a?b=c", &"real.example:81".parse().unwrap())
        );
    }

    #[test]
    fn a_request_for_no_host_or_two_is_refused() {
        assert_eq!(passed(Request::get("/")).unwrap_err(), NO_HOST);
        assert_eq!(passed(get("/").header("host", "other")).unwrap_err(), HOSTS);
        assert_eq!(passed(get("http://user:pass@example.org/")).unwrap_err(), USERINFO);
        assert!(passed(Request::get("/").version(Version::HTTP_10)).is_ok());
        let two = Request::get("http://a.example/").version(Version::HTTP_2).header("host", "b.example");
        assert_eq!(passed(two).unwrap_err(), HOSTS);
    }

    #[test]
    fn http_2_becomes_http_1() {
        let head = passed(
            Request::get("http://a.example/x").version(Version::HTTP_2).header("cookie", "a=1").header("cookie", "b=2"),
        )
        .unwrap();
        assert_eq!(head.version, Version::HTTP_11);
        assert_eq!(head.headers["host"], "a.example");
        assert_eq!(head.headers["cookie"], "a=1; b=2");
        assert_eq!(head.headers["via"], "2 gateway");
    }

    #[test]
    fn a_coding_that_would_be_lost_is_refused_both_ways() {
        let coded = |coding: &str| passed(get("/").header("transfer-encoding", coding)).err();
        assert_eq!((coded("chunked"), coded("Chunked")), (None, None));
        assert_eq!((coded("gzip, chunked"), coded("gzip")), (Some(CODING), Some(CODING)));
        let mut head =
            Response::builder().header("transfer-encoding", "gzip, chunked").body(()).unwrap().into_parts().0;
        assert!(super::response(&mut head).is_err());
        let mut head = Response::builder().status(101).body(()).unwrap().into_parts().0;
        assert!(super::response(&mut head).is_err());
    }

    #[test]
    fn what_a_client_claims_to_know_of_proxies_is_not_passed_on() {
        let head = passed(get("/").header("forwarded", "for=10.0.0.1").header("x-real-ip", "10.0.0.1")).unwrap();
        assert!(!head.headers.contains_key("forwarded") && !head.headers.contains_key("x-real-ip"));
    }

    #[test]
    fn a_host_is_a_host() {
        for host in ["user@example.org", "example.org/path", "a b"] {
            assert_eq!(passed(Request::get("/").header("host", host)).unwrap_err(), NO_HOST, "{host}");
        }
        for host in ["example.org:81", "[::1]:80", ""] {
            assert!(passed(Request::get("/").header("host", host)).is_ok(), "{host}");
        }
    }

    #[test]
    fn tunnels_and_traces_are_refused() {
        for method in ["CONNECT", "TRACE"] {
            assert_eq!(passed(get("/").method(method)).unwrap_err(), METHOD);
        }
    }

    #[test]
    fn a_response_is_framed_anew() {
        let response = Response::builder().version(Version::HTTP_10).header("connection", "close, x-a");
        let mut head =
            response.header("x-a", "1").header("transfer-encoding", "chunked").body(()).unwrap().into_parts().0;
        super::response(&mut head).unwrap();
        assert!(head.headers.is_empty());
        assert_eq!(head.version, Version::HTTP_11);
    }
}
