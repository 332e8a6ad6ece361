//! How a lease goes along with a request and its answer: not at all, or as HTTP can.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Body;
use tower_outcome::{
    classify::is_grpc,
    header::{LEASE_EPOCH, LEASE_TOKEN},
};

pub use crate::settings::Settings;
use crate::{Clock, LeaseBody, LeaseGuard, LeaseKey, TokenIn, WrongInstance};

/// What is done to a request that is let in, and to its answer. The two ways are [`Opaque`] and [`Http`].
pub trait Protocol<Req, Res, C: Clock>: sealed::Sealed {
    /// The response, with the guard attached where there is a place for it.
    type Response;

    /// How much validity this request wants before it.
    fn min_validity(request: &Req, settings: &Settings) -> Duration;

    /// Looks at a request that is about to be let in, and gives it the token.
    ///
    /// # Errors
    ///
    /// It is meant for another instance.
    fn on_request(
        request: &mut Req,
        guard: &LeaseGuard<C>,
        settings: &Settings,
    ) -> Result<(), WrongInstance>;

    /// Attaches the guard to the response.
    fn on_response(response: Res, guard: LeaseGuard<C>) -> Self::Response;
}

/// Any protocol: the request and the answer stay as they are, and the answer itself is the end. For a connection
/// service, whose answer is the end of the connection, that is exact.
#[derive(Clone, Copy, Debug)]
pub enum Opaque {}

/// HTTP, and so gRPC: the request is refused when its `x-lease-epoch` header names another epoch, and gets the
/// [`FencingToken`](crate::FencingToken); the answer's body breaks off when the lease is lost (R-28, I3).
#[derive(Clone, Copy, Debug)]
pub enum Http {}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for super::Opaque {}
    impl Sealed for super::Http {}
}

// === impl Opaque ===

impl<Req, Res, C: Clock> Protocol<Req, Res, C> for Opaque {
    type Response = Res;

    fn min_validity(_: &Req, settings: &Settings) -> Duration {
        settings.min_remaining
    }

    fn on_request(_: &mut Req, _: &LeaseGuard<C>, _: &Settings) -> Result<(), WrongInstance> {
        Ok(())
    }

    fn on_response(response: Res, _: LeaseGuard<C>) -> Res {
        response
    }
}

// === impl Http ===

impl<A, B: Body, C: Clock> Protocol<Request<A>, Response<B>, C> for Http {
    type Response = Response<LeaseBody<B, C>>;

    fn min_validity(request: &Request<A>, settings: &Settings) -> Duration {
        let own = settings
            .deadlines
            .and_then(|at_most| Some(grpc_timeout(request)?.min(at_most)));
        own.map_or(settings.min_remaining, |own| {
            own.max(settings.min_remaining)
        })
    }

    fn on_request(
        request: &mut Request<A>,
        guard: &LeaseGuard<C>,
        settings: &Settings,
    ) -> Result<(), WrongInstance> {
        if !names_us(request.headers(), guard.epoch().get()) {
            return Err(WrongInstance::new(guard.epoch()));
        }
        // It was meant for us. Passed on, the next instance would take it for its own.
        request.headers_mut().remove(LEASE_EPOCH);
        match settings.token_in {
            TokenIn::Extensions => {
                into_extensions(request, guard);
                drop_forged(request.headers_mut(), guard.key());
            }
            TokenIn::Header => into_headers(request, guard),
            TokenIn::Both => {
                into_extensions(request, guard);
                into_headers(request, guard);
            }
            TokenIn::Nowhere => drop_forged(request.headers_mut(), guard.key()),
        }
        Ok(())
    }

    fn on_response(response: Response<B>, guard: LeaseGuard<C>) -> Self::Response {
        response.map(|body| LeaseBody::new(body, guard))
    }
}

fn into_extensions<A, C: Clock>(request: &mut Request<A>, guard: &LeaseGuard<C>) {
    request.extensions_mut().insert(guard.token());
}

fn into_headers<A, C: Clock>(request: &mut Request<A>, guard: &LeaseGuard<C>) {
    request
        .headers_mut()
        .insert(LEASE_TOKEN, HeaderValue::from(&guard.token()));
}

fn drop_forged(headers: &mut HeaderMap, ours: &LeaseKey) {
    let is_ours = |value: &HeaderValue| {
        let rest = value
            .as_bytes()
            .trim_ascii_start()
            .strip_prefix(ours.as_str().as_bytes());
        rest.is_some_and(|rest| rest.starts_with(b";"))
    };
    if headers.get_all(LEASE_TOKEN).iter().any(is_ours) {
        headers.remove(LEASE_TOKEN);
    }
}

/// A request without the header is for any instance; a malformed header matches none.
fn names_us(headers: &HeaderMap, epoch: u64) -> bool {
    let mut named = headers.get_all(LEASE_EPOCH).iter();
    named.all(|value| value.to_str().ok().and_then(|value| value.parse().ok()) == Some(epoch))
}

/// The deadline of a gRPC request. A malformed one is ignored here: the server rejects it.
fn grpc_timeout<A>(request: &Request<A>) -> Option<Duration> {
    if request.method() != Method::POST || !is_grpc(request.headers()) {
        return None;
    }
    parse_timeout(request.headers().get("grpc-timeout")?.as_bytes())
}

/// At most eight digits and a unit (gRPC's PROTOCOL-HTTP2.md).
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0, |number, digit| 10 * number + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(3_600 * number),
        b'M' => Duration::from_secs(60 * number),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_us_by_our_epoch_or_by_none() {
        let headers = |values: &[&'static str]| {
            values
                .iter()
                .map(|value| (LEASE_EPOCH, HeaderValue::from_static(value)))
                .collect::<HeaderMap>()
        };
        assert!(names_us(&headers(&[]), 7));
        assert!(names_us(&headers(&["7"]), 7));
        for other in [&["6"][..], &["8"], &[""], &["x"], &["-7"], &["7", "8"]] {
            assert!(!names_us(&headers(other), 7), "{other:?}");
        }
    }

    #[test]
    fn a_grpc_timeout_is_parsed_as_the_protocol_defines() {
        let read = |value: &str| parse_timeout(value.as_bytes());
        assert_eq!(read("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("99999999u"), Some(Duration::from_micros(99_999_999)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for nonsense in [
            "",
            "S",
            "5",
            "5s",
            "-5S",
            "+5S",
            "123456789S",
            "5 S",
            "5.5S",
        ] {
            assert_eq!(read(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn only_a_grpc_request_has_a_grpc_timeout() {
        let request = |method, kind: &str| {
            let request = Request::builder()
                .method(method)
                .header("content-type", kind)
                .header("grpc-timeout", "1S");
            grpc_timeout(&request.body(()).unwrap())
        };
        assert_eq!(
            request(Method::POST, "application/grpc+proto"),
            Some(Duration::from_secs(1))
        );
        assert_eq!(request(Method::GET, "application/grpc"), None);
        assert_eq!(request(Method::POST, "application/json"), None);
    }
}
