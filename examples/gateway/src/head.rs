//! What a gateway must do to the heads that pass through it (RFC 9110 section 7.6, RFC 9112 section 3.2).
//!
//! Pure functions over heads: no clock, no socket.

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, MAX_FORWARDS, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
    },
    request, response,
    uri::Authority,
};
use tower_outcome::header::{LEASE_EPOCH, LEASE_TOKEN};

/// A request that is not forwarded, and the response to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) why: &'static str,
}

/// Makes a client's request into one for an upstream that speaks HTTP/1.1.
///
/// Strips what belongs to the client's connection first and adds our own fields after, so that a client that nominates
/// one of this gateway's in `Connection` strips nothing. `has_body`: whether a body follows the head.
pub(crate) fn request(
    head: &mut request::Parts,
    peer: Option<SocketAddr>,
    has_body: bool,
) -> Result<(), Stopped> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(METHOD);
    }
    if !is_target(head) {
        return Err(TARGET);
    }
    let host = host(head)?;
    if head.method == Method::OPTIONS {
        count_forward(&mut head.headers)?;
    }
    if !is_plain(&head.headers) {
        return Err(CODING);
    }
    one_length(&mut head.headers).map_err(|TwoLengths| LENGTHS)?;
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
    remove_where(&mut head.headers, is_untrusted);
    if let Some(peer) = peer {
        append_forwarded_for(&mut head.headers, peer);
    }
    head.headers
        .insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    if has_body && !head.headers.contains_key(CONTENT_LENGTH) {
        // Without it hyper takes a `GET` for one without a body.
        head.headers
            .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(())
}

/// Whether a client may go on in another protocol after this request. If we do not, what follows is not ours to read:
/// taken for requests, it would be a way to smuggle requests past a proxy in front of this one.
///
/// `h2c` is no such case, as its clients wait for the answer (RFC 7540 section 3.2).
pub(crate) fn may_leave_http<B>(request: &Request<B>) -> bool {
    let is_other = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"h2c");
    request.version() == Version::HTTP_11
        && (request.method() == Method::CONNECT
            || request.headers().get_all(UPGRADE).iter().any(is_other))
}

/// Makes an upstream's response into one for the client, whose connection frames it anew.
///
/// A coding other than `chunked` would be lost with its field, and a switch of protocols was never asked for.
pub(crate) fn response(head: &mut response::Parts) -> Result<(), &'static str> {
    if !is_plain(&head.headers) {
        return Err("the upstream used a transfer coding other than chunked");
    }
    if head.headers.contains_key(TRANSFER_ENCODING) && head.headers.contains_key(CONTENT_LENGTH) {
        return Err("the upstream framed its answer in two ways");
    }
    one_length(&mut head.headers)
        .map_err(|TwoLengths| "the upstream gave its answer two lengths")?;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("the upstream switched protocols unasked");
    }
    strip_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    Ok(())
}

/// Takes out of a request's trailers what must not be there, and what a client must not send in its head either: an
/// application may merge them with that.
pub(crate) fn request_trailers(fields: &mut HeaderMap) {
    trailers(fields);
    remove_where(fields, |name| {
        is_untrusted(name) || name == X_FORWARDED_FOR || READ_BY_PROXIES.contains(name)
    });
}

/// Takes out of trailers what must not be there (RFC 9110 section 6.5.1); HTTP/2 would refuse to send it.
pub(crate) fn trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in [CONTENT_LENGTH, HOST, TRAILER] {
        trailers.remove(name);
    }
}

/// Whether the body is coded as this gateway can pass it on: not at all, or chunked, once (RFC 9112 section 6.1).
fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

struct TwoLengths;

/// Makes one value of several equal ones, in several fields or in a list (RFC 9110 section 8.6): HTTP/2 refuses to send
/// them, and recipients differ in which they believe.
fn one_length(headers: &mut HeaderMap) -> Result<(), TwoLengths> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(first), more) = (lengths.next(), lengths.next().is_some()) else {
        return Ok(());
    };
    if !more && !first.as_bytes().contains(&b',') {
        return Ok(());
    }
    let mut all = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii);
    let first = all.next().unwrap_or_default();
    if first.is_empty() || !first.iter().all(u8::is_ascii_digit) || all.any(|next| next != first) {
        return Err(TwoLengths);
    }
    let one = HeaderValue::from_bytes(first).map_err(|_| TwoLengths)?;
    headers.insert(CONTENT_LENGTH, one);
    Ok(())
}

/// A path, `*` for `OPTIONS`, or a whole URI of this gateway (RFC 9112 section 3.2).
fn is_target(head: &request::Parts) -> bool {
    match (head.uri.scheme_str(), head.uri.authority()) {
        (None, Some(_)) => false,
        (Some(scheme), _)
            if !["http", "https"]
                .iter()
                .any(|ours| scheme.eq_ignore_ascii_case(ours)) =>
        {
            false
        }
        _ => head.uri.path() != "*" || head.method == Method::OPTIONS,
    }
}

/// Counts this hop down, if they are to be counted (RFC 9110 section 7.6.2).
fn count_forward(headers: &mut HeaderMap) -> Result<(), Stopped> {
    let left = headers
        .get(MAX_FORWARDS)
        .and_then(|left| left.to_str().ok()?.parse::<u32>().ok());
    match left.map(|left| left.checked_sub(1)) {
        None => {}
        Some(None) => return Err(LAST_HOP),
        Some(Some(left)) => _ = headers.insert(MAX_FORWARDS, HeaderValue::from(left)),
    }
    Ok(())
}

/// The host the request is for, if it has to be written: the target's authority replaces `Host` (RFC 9112 section 3.2.2).
fn host(head: &request::Parts) -> Result<Option<HeaderValue>, Stopped> {
    let mut named = head.headers.get_all(HOST).iter();
    let (first, more) = (named.next(), named.next().is_some());
    let authority = head.uri.authority();
    match first {
        _ if more => return Err(HOSTS),
        Some(host) if !is_host(host) => return Err(NO_HOST),
        None if head.version == Version::HTTP_11 => return Err(NO_HOST),
        None if head.version == Version::HTTP_2 && authority.is_none() => return Err(NO_HOST),
        _ => {}
    }
    let Some(authority) = authority else {
        return Ok(None);
    };
    if authority.as_str().contains('@') {
        return Err(USERINFO);
    }
    if head.version == Version::HTTP_2
        && first.is_some_and(|host| !same_host(host, authority.as_str()))
    {
        return Err(HOSTS);
    }
    HeaderValue::from_str(authority.as_str())
        .map(Some)
        .map_err(|_| NO_HOST)
}

/// A host and perhaps a port, and nothing else. Empty is allowed where there is no authority (RFC 9112 section 3.2).
fn is_host(host: &HeaderValue) -> bool {
    host.is_empty()
        || (Authority::try_from(host.as_bytes()).is_ok() && !host.as_bytes().contains(&b'@'))
}

fn same_host(host: &HeaderValue, authority: &str) -> bool {
    host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())
}

fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() && uri.scheme().is_none() {
        return uri.clone();
    }
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    Uri::from(path)
}

/// Removes the fields that belong to one connection: those named in `Connection`, and those that always do.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            // Fields that frame the message cannot be nominated for removal.
            .filter(|name| name != HOST && name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    remove_where(headers, |name| HOP_BY_HOP.contains(name));
}

/// One walk over the few fields there are is cheaper than a look-up for each that there mostly is not.
fn remove_where(headers: &mut HeaderMap, is_wrong: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| is_wrong(name)).cloned() {
        headers.remove(name);
    }
}

/// Whether a client must not send this field, or one that an application may take for it: CGI and WSGI make one name of
/// `X-Real-IP` and `X_Real_IP` (RFC 3875 section 4.1.18), and what is behind us may do the same.
fn is_untrusted(name: &HeaderName) -> bool {
    let name = name.as_str();
    if name.contains('_') {
        let twin = name.replace('_', "-");
        let twin = twin.as_str();
        return is_claim(twin)
            || twin == X_FORWARDED_FOR
            || READ_BY_PROXIES.iter().any(|read| twin == *read);
    }
    is_claim(name) && name != X_FORWARDED_FOR
}

/// Every `X-Forwarded-*` is one, as there are too many in use to list (`-Ssl`, `-Scheme`, `-Server`, `-By` …).
fn is_claim(name: &str) -> bool {
    name.starts_with("x-forwarded-") || CLAIMS.iter().any(|claim| name == *claim)
}

/// HTTP/2 may split cookies; HTTP/1.1 must get them in one field (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
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

/// What only a proxy in front of us could know, and there is none that we trust; or, of a lease, only one of us: a forged
/// token would have a resource refuse the holder's own. (The epoch is the balance's, which sets or removes it.)
const CLAIMS: [HeaderName; 8] = [
    FORWARDED,
    LEASE_TOKEN,
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("fastly-client-ip"),
];

/// What we read or write ourselves: a twin with `_` has passed unseen, and must not mean it to what is behind us.
const READ_BY_PROXIES: [HeaderName; 14] = [
    HOST,
    CONTENT_LENGTH,
    CONNECTION,
    TRANSFER_ENCODING,
    TE,
    TRAILER,
    UPGRADE,
    VIA,
    MAX_FORWARDS,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    LEASE_EPOCH,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
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

const METHOD: Stopped = Stopped {
    status: StatusCode::METHOD_NOT_ALLOWED,
    code: "method-not-allowed",
    why: "CONNECT and TRACE are not passed on",
};
const TARGET: Stopped = bad("request-target", "the target must be a path or an http URI");
const NO_HOST: Stopped = bad("no-host", "the request names no host that could be one");
const HOSTS: Stopped = bad("two-hosts", "the request names two hosts");
const LENGTHS: Stopped = bad("content-length", "the request has two lengths");
const USERINFO: Stopped = bad(
    "user-information",
    "the target must not carry user information",
);
const CODING: Stopped = Stopped {
    status: StatusCode::NOT_IMPLEMENTED,
    code: "transfer-coding",
    why: "the only transfer coding is chunked, once",
};
/// Not for the upstream, so the gateway responds.
const LAST_HOP: Stopped = Stopped {
    status: StatusCode::OK,
    code: "",
    why: "",
};

const fn bad(code: &'static str, why: &'static str) -> Stopped {
    Stopped {
        status: StatusCode::BAD_REQUEST,
        code,
        why,
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn passed(builder: request::Builder) -> Result<request::Parts, Stopped> {
        passed_with(builder, false)
    }

    fn passed_with(builder: request::Builder, has_body: bool) -> Result<request::Parts, Stopped> {
        let mut head = builder.body(()).unwrap().into_parts().0;
        request(
            &mut head,
            Some("[::ffff:192.0.2.7]:4711".parse().unwrap()),
            has_body,
        )?;
        Ok(head)
    }

    fn answered(builder: response::Builder) -> Result<response::Parts, &'static str> {
        let mut head = builder.body(()).unwrap().into_parts().0;
        response(&mut head)?;
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
        for name in [
            "connection",
            "x-mine",
            "keep-alive",
            "te",
            "upgrade",
            "proxy-authorization",
        ] {
            assert!(!head.headers.contains_key(name), "{name}");
        }
        assert_eq!(head.headers["x-kept"], "1");
        assert_eq!(head.headers["host"], "example.org");
        assert_eq!(
            head.headers["via"], "1.1 gateway",
            "what we add cannot be nominated away"
        );
        assert_eq!(head.headers["x-forwarded-for"], "192.0.2.7");
    }

    #[test]
    fn one_name_that_is_none_keeps_no_other_field_of_the_connection() {
        let connection = HeaderValue::from_bytes(b"x-mine, \xff\xfe, a b").unwrap();
        let sent = get("/")
            .header("connection", connection)
            .header("x-mine", "1");
        assert!(!passed(sent).unwrap().headers.contains_key("x-mine"));
    }

    #[test]
    fn several_equal_lengths_are_one_and_two_are_refused() {
        let sent = |lengths: &[&str]| {
            let sent = lengths.iter().fold(get("/"), |head, length| {
                head.header("content-length", *length)
            });
            let answer = lengths.iter().fold(Response::builder(), |head, length| {
                head.header("content-length", *length)
            });
            let (head, answer) = (passed_with(sent, true), answered(answer));
            assert_eq!(head.is_ok(), answer.is_ok());
            head.map(|head| {
                let lengths = |headers: HeaderMap| {
                    headers
                        .get_all("content-length")
                        .iter()
                        .cloned()
                        .collect::<Vec<_>>()
                };
                assert_eq!(
                    lengths(head.headers.clone()),
                    lengths(answer.unwrap().headers)
                );
                lengths(head.headers)
            })
        };
        assert_eq!(sent(&["5"]), Ok(vec!["5".parse().unwrap()]));
        for equal in [&["5", "5"][..], &["5, 5"], &["5,5", "5"]] {
            assert_eq!(sent(equal), Ok(vec!["5".parse().unwrap()]), "{equal:?}");
        }
        for two in [&["5", "6"][..], &["5, 6"], &["5,"], &["5, +5"], &["a, a"]] {
            assert_eq!(sent(two), Err(LENGTHS), "{two:?}");
        }
    }

    #[test]
    fn a_trailer_claims_no_more_than_a_head_may() {
        let names = [
            "x-checksum",
            "x-lease-token",
            "x-lease-epoch",
            "x_real_ip",
            "x-forwarded-for",
            "x-forwarded-proto",
            "host",
            "via",
        ];
        let pair = |name| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static("forged"),
            )
        };
        let mut fields = HeaderMap::from_iter(names.map(pair));
        request_trailers(&mut fields);
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["x-checksum"]);
    }

    #[test]
    fn the_peer_is_added_at_the_right_end_of_what_the_client_claims() {
        let head = passed(
            get("/")
                .header("x-forwarded-for", "10.0.0.1")
                .header("x-forwarded-for", "junk"),
        )
        .unwrap();
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
        assert_eq!(
            passed(get("http://user:pass@example.org/")).unwrap_err(),
            USERINFO
        );
        assert!(passed(Request::get("/").version(Version::HTTP_10)).is_ok());
        assert_eq!(
            passed(Request::get("http://a.example/")).unwrap_err(),
            NO_HOST,
            "RFC 9112 section 3.2"
        );
        assert_eq!(
            passed(Request::get("http://a.example/").header("host", "a b")).unwrap_err(),
            NO_HOST
        );
        assert!(passed(Request::get("http://a.example/").version(Version::HTTP_2)).is_ok());
        let two = Request::get("http://a.example/")
            .version(Version::HTTP_2)
            .header("host", "b.example");
        assert_eq!(passed(two).unwrap_err(), HOSTS);
    }

    #[test]
    fn http_2_becomes_http_1() {
        let head = passed(
            Request::get("http://a.example/x")
                .version(Version::HTTP_2)
                .header("cookie", "a=1")
                .header("cookie", "b=2"),
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
        assert_eq!(
            (coded("gzip, chunked"), coded("gzip")),
            (Some(CODING), Some(CODING))
        );
        let twice = get("/")
            .header("transfer-encoding", "chunked")
            .header("transfer-encoding", "chunked");
        assert_eq!(passed(twice).err(), Some(CODING));
        let coded = Response::builder().header("transfer-encoding", "gzip, chunked");
        assert!(answered(coded).is_err());
        assert!(answered(Response::builder().status(101)).is_err());
    }

    #[test]
    fn an_answer_that_is_framed_in_two_ways_is_not_passed_on() {
        let framed = || Response::builder().header("transfer-encoding", "chunked");
        assert!(answered(framed()).is_ok());
        assert!(answered(framed().header("content-length", "3")).is_err());
    }

    #[test]
    fn a_body_is_framed_for_every_method_and_any_nominated_field() {
        let head = passed_with(get("/").header("transfer-encoding", "chunked"), true).unwrap();
        assert_eq!(head.headers["transfer-encoding"], "chunked");
        let head = passed_with(
            get("/")
                .header("connection", "content-length")
                .header("content-length", "5"),
            true,
        );
        let head = head.unwrap();
        assert_eq!(head.headers["content-length"], "5");
        assert!(!head.headers.contains_key("transfer-encoding"));
        assert!(
            !passed(get("/"))
                .unwrap()
                .headers
                .contains_key("transfer-encoding")
        );
    }

    #[test]
    fn a_target_is_a_path_or_a_uri_of_this_gateway() {
        for target in ["example.org:80", "*", "ftp://example.org/"] {
            assert_eq!(passed(get(target)).unwrap_err(), TARGET, "{target}");
        }
        for target in ["/", "HTTPS://example.org/", "http://example.org"] {
            assert!(passed(get(target)).is_ok(), "{target}");
        }
        assert_eq!(passed(get("*").method("OPTIONS")).unwrap().uri, "*");
    }

    #[test]
    fn options_count_their_hops() {
        let options = |left: &str| passed(get("*").method("OPTIONS").header("max-forwards", left));
        assert_eq!(options("0").unwrap_err(), LAST_HOP);
        assert_eq!(options("3").unwrap().headers["max-forwards"], "2");
        assert_eq!(options("many").unwrap().headers["max-forwards"], "many");
        assert_eq!(
            passed(get("/").header("max-forwards", "0"))
                .unwrap()
                .headers["max-forwards"],
            "0"
        );
    }

    #[test]
    fn only_a_client_that_may_switch_protocols_is_disconnected() {
        let may_leave = |builder: request::Builder| may_leave_http(&builder.body(()).unwrap());
        assert!(may_leave(get("/").header("upgrade", "websocket")));
        assert!(may_leave(
            get("/").header("upgrade", "h2c").header("upgrade", "other")
        ));
        assert!(may_leave(get("/").header("upgrade", "h2c, websocket")));
        assert!(may_leave(get("a.example:1").method("CONNECT")));
        assert!(!may_leave(get("/").header("upgrade", "h2c")));
        assert!(!may_leave(get("/")));
        assert!(!may_leave(
            get("/")
                .version(Version::HTTP_10)
                .header("upgrade", "websocket")
        ));
        assert!(!may_leave(
            get("http://a.example")
                .version(Version::HTTP_2)
                .method("CONNECT")
        ));
    }

    #[test]
    fn trailers_carry_nothing_of_the_connection_or_the_framing() {
        let pairs = [
            ("x-checksum", "1"),
            ("connection", "x-a"),
            ("x-a", "1"),
            ("content-length", "9"),
            ("te", "x"),
        ];
        let pairs = pairs.map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let mut fields = HeaderMap::from_iter(pairs);
        trailers(&mut fields);
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["x-checksum"]);
    }

    #[test]
    fn what_a_client_claims_to_know_of_proxies_is_not_passed_on() {
        let claims = [
            "forwarded",
            "x-real-ip",
            "true-client-ip",
            "x-forwarded-host",
            "x-forwarded-ssl",
            "x-forwarded-scheme",
            "x-forwarded-client-cert",
            "x-lease-token",
        ];
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let sent = get("http://example.org/").version(version);
            let head = passed(
                claims
                    .iter()
                    .fold(sent, |head, name| head.header(*name, "echo/1;9")),
            )
            .unwrap();
            for name in claims {
                assert!(!head.headers.contains_key(name), "{name}");
            }
        }
    }

    #[test]
    fn a_field_that_an_application_reads_as_one_of_the_gateways_is_not_passed_on() {
        let twins = [
            "x_lease_token",
            "x_lease_epoch",
            "x_real_ip",
            "x-real_ip",
            "x_forwarded_for",
            "x_forwarded-proto",
            "x_forwarded_ssl",
            "transfer_encoding",
            "content_length",
            "proxy_authorization",
        ];
        let head = passed(
            twins
                .iter()
                .fold(get("/"), |head, name| head.header(*name, "forged")),
        )
        .unwrap();
        for name in twins {
            assert!(!head.headers.contains_key(name), "{name}");
        }
        assert_eq!(head.headers["x-forwarded-for"], "192.0.2.7");
        let own = passed(get("/").header("session_id", "7").header("x_mine", "8")).unwrap();
        assert_eq!(
            (&own.headers["session_id"], &own.headers["x_mine"]),
            (&"7".parse().unwrap(), &"8".parse().unwrap())
        );
    }

    #[test]
    fn a_host_is_a_host() {
        for host in ["user@example.org", "example.org/path", "a b"] {
            assert_eq!(
                passed(Request::get("/").header("host", host)).unwrap_err(),
                NO_HOST,
                "{host}"
            );
        }
        for host in ["example.org:81", "[::1]:80", ""] {
            assert!(
                passed(Request::get("/").header("host", host)).is_ok(),
                "{host}"
            );
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
        let response = Response::builder()
            .version(Version::HTTP_10)
            .header("connection", "close, x-a");
        let head = answered(
            response
                .header("x-a", "1")
                .header("transfer-encoding", "chunked"),
        )
        .unwrap();
        assert!(head.headers.is_empty());
        assert_eq!(head.version, Version::HTTP_11);
    }
}
