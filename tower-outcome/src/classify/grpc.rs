use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};

use super::{AtEnd, Classify, ClassifyEnd, ClassifyResponse, broken, http::retry_after, refused};
use crate::{
    Outcome, Refusal, Verdict,
    body::End,
    header::{GRPC_RETRY_PUSHBACK_MS, GRPC_STATUS},
};

/// Classifies gRPC by status code: 2 `UNKNOWN`, 4 `DEADLINE_EXCEEDED`, 13 `INTERNAL`, 14 `UNAVAILABLE` and 15 `DATA_LOSS`
/// are failures, 8 `RESOURCE_EXHAUSTED` is throttled, all other codes are successes.
///
/// The status is read from the head (trailers-only) or from the trailers. **A stream that ends without a status is a
/// failure**: it was cut. A status that does not parse or is above 16 counts as `UNKNOWN`. An HTTP status other than 200 is
/// mapped as in gRPC's `http-grpc-status-mapping.md`, except that 429 is throttled. The retry hint is read from
/// `grpc-retry-pushback-ms`, or from `Retry-After` with an HTTP status.
///
/// This is the classification for clients. In front of a service that clients call directly, use [`Grpc::server`].
#[derive(Clone, Copy, Debug)]
pub struct Grpc {
    code: fn(u8) -> Verdict,
}

/// Returns whether the content type is gRPC: `application/grpc`, `application/grpc+proto` and so on, in upper or lower case
/// (RFC 9110 section 8.3.1), but not `application/grpc-web`, which is another protocol.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().split_at_checked(GRPC.len()))
        .is_some_and(|(name, rest)| {
            matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
                && name.eq_ignore_ascii_case(GRPC)
        })
}

const GRPC: &[u8] = b"application/grpc";

// === impl Grpc ===

impl Grpc {
    /// 2, 4, 13, 14 and 15 are failures, 8 is throttled.
    #[must_use]
    pub const fn new() -> Self {
        Self { code: by_code }
    }

    /// Like [`new`](Self::new), but ignores 4 `DEADLINE_EXCEEDED` and 13 `INTERNAL`.
    ///
    /// Any client of a healthy server can cause these two: with a short `grpc-timeout`, and with a message that does not
    /// parse, for which tonic responds with `INTERNAL`. So they must not count where one client's calls affect others, such
    /// as in a circuit in front of a server's own handlers.
    #[must_use]
    pub const fn server() -> Self {
        Self {
            code: by_code_at_server,
        }
    }

    /// Classifies status codes with `judge`. A status that does not parse or is above 16 is 2, `UNKNOWN`.
    #[must_use]
    pub const fn code(self, judge: fn(u8) -> Verdict) -> Self {
        Self { code: judge }
    }

    pub(super) fn at_head(self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
        if headers.contains_key(GRPC_STATUS) {
            return Some(self.by_headers(Some(headers)));
        }
        let code = match status {
            StatusCode::OK => return None,
            StatusCode::TOO_MANY_REQUESTS => {
                return Some(Outcome::THROTTLED.with_retry_after(retry_after(headers)));
            }
            StatusCode::BAD_REQUEST => 13,
            StatusCode::UNAUTHORIZED => 16,
            StatusCode::FORBIDDEN => 7,
            StatusCode::NOT_FOUND => 12,
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => 14,
            _ => 2,
        };
        Some(match (self.code)(code) {
            Verdict::Success => Outcome::SUCCESS,
            verdict => Outcome::new(verdict).with_retry_after(retry_after(headers)),
        })
    }

    fn by_headers(self, headers: Option<&HeaderMap>) -> Outcome {
        let Some(status) = headers.and_then(|headers| headers.get(GRPC_STATUS)) else {
            return Outcome::FAILURE;
        };
        // Digits only: `parse` would accept `+0`.
        let digits = status
            .to_str()
            .ok()
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()));
        let code = digits.and_then(|code| code.parse().ok());
        match (self.code)(code.filter(|code| *code <= 16).unwrap_or(2)) {
            Verdict::Success => Outcome::SUCCESS,
            verdict => Outcome::new(verdict).with_retry_after(headers.and_then(pushback)),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> Classify<Request<B>> for Grpc {
    type Classifier = Self;

    fn classify(&self, _: &Request<B>) -> Self {
        *self
    }
}

impl<B, E: 'static> ClassifyResponse<Response<B>, E> for Grpc {
    type Scope = AtEnd;

    fn head(&self, response: &Response<B>) -> Option<Outcome> {
        refused(response.extensions())
            .or_else(|| self.at_head(response.status(), response.headers()))
    }

    fn error(&self, error: &E) -> Outcome {
        broken(Refusal::of(error))
    }
}

impl ClassifyEnd for Grpc {
    fn end(self, end: End<'_>) -> Outcome {
        match end {
            End::Complete(trailers) => self.by_headers(trailers),
            End::Broken(refusal) => broken(refusal),
        }
    }
}

/// The same codes as linkerd, without `PERMISSION_DENIED`, which depends on the caller.
fn by_code(code: u8) -> Verdict {
    match code {
        8 => Verdict::Throttled,
        2 | 4 | 13..=15 => Verdict::Failure,
        _ => Verdict::Success,
    }
}

fn by_code_at_server(code: u8) -> Verdict {
    match code {
        4 | 13 => Verdict::Ignore,
        code => by_code(code),
    }
}

/// gRFC A6: milliseconds. A negative or invalid value means "do not retry", which is not a delay.
fn pushback(headers: &HeaderMap) -> Option<Duration> {
    let millis = headers
        .get(GRPC_RETRY_PUSHBACK_MS)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        HeaderMap::from_iter(
            pairs
                .iter()
                .map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())),
        )
    }

    fn end(pairs: &[(&'static str, &'static str)]) -> Outcome {
        Grpc::new().end(End::Complete(Some(&headers(pairs))))
    }

    #[test]
    fn each_code_has_its_verdict() {
        for code in 0..=16 {
            let expected = match code {
                8 => Verdict::Throttled,
                2 | 4 | 13 | 14 | 15 => Verdict::Failure,
                _ => Verdict::Success,
            };
            assert_eq!(by_code(code), expected, "{code}");
        }
    }

    #[test]
    fn a_stream_that_ends_without_a_status_has_failed() {
        assert_eq!(Grpc::new().end(End::Complete(None)), Outcome::FAILURE);
        assert_eq!(end(&[("x-other", "1")]), Outcome::FAILURE);
        assert_eq!(end(&[("grpc-status", "zero")]), Outcome::FAILURE);
        assert_eq!(end(&[("grpc-status", "999")]), Outcome::FAILURE);
        assert_eq!(end(&[("grpc-status", "+0")]), Outcome::FAILURE);
        assert_eq!(end(&[("grpc-status", "0")]), Outcome::SUCCESS);
    }

    #[test]
    fn pushback_is_a_retry_hint_and_do_not_retry_is_none() {
        let outcome = |value| end(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", value)]);
        assert_eq!(
            outcome("250"),
            Outcome::FAILURE.with_retry_after(Some(Duration::from_millis(250)))
        );
        assert_eq!(outcome("-1"), Outcome::FAILURE);
        assert_eq!(outcome("soon"), Outcome::FAILURE);
    }

    #[test]
    fn a_head_without_a_grpc_status_is_classified_by_its_http_status() {
        let head = |status: StatusCode| {
            Grpc::new()
                .at_head(status, &HeaderMap::new())
                .map(|outcome| outcome.verdict())
        };
        assert_eq!(head(StatusCode::OK), None);
        assert_eq!(head(StatusCode::BAD_GATEWAY), Some(Verdict::Failure));
        assert_eq!(
            head(StatusCode::TOO_MANY_REQUESTS),
            Some(Verdict::Throttled)
        );
        assert_eq!(head(StatusCode::NOT_FOUND), Some(Verdict::Success));
        assert_eq!(head(StatusCode::IM_A_TEAPOT), Some(Verdict::Failure));
        let trailers_only = Grpc::new().at_head(StatusCode::OK, &headers(&[("grpc-status", "5")]));
        assert_eq!(trailers_only, Some(Outcome::SUCCESS));
    }

    #[test]
    fn a_head_without_a_grpc_status_has_the_hint_of_retry_after() {
        let hint = headers(&[("retry-after", "7")]);
        for (status, outcome) in [(429, Outcome::THROTTLED), (503, Outcome::FAILURE)] {
            let status = StatusCode::from_u16(status).unwrap();
            let expected = outcome.with_retry_after(Some(Duration::from_secs(7)));
            assert_eq!(Grpc::new().at_head(status, &hint), Some(expected));
        }
    }

    #[test]
    fn what_any_client_can_cause_is_ignored_at_a_server() {
        for code in 0..=16 {
            let trailers = HeaderMap::from_iter([(GRPC_STATUS, u16::from(code).into())]);
            let end = End::Complete(Some(&trailers));
            let expected = match code {
                4 | 13 => Verdict::Ignore,
                code => by_code(code),
            };
            assert_eq!(Grpc::server().end(end).verdict(), expected, "{code}");
        }
    }

    #[test]
    fn a_function_for_codes_replaces_the_preset_and_gets_unknown_for_invalid_ones() {
        let grpc = Grpc::new().code(|code| match code {
            2 => Verdict::Ignore,
            _ => Verdict::Success,
        });
        for (status, expected) in [
            ("14", Verdict::Success),
            ("17", Verdict::Ignore),
            ("x", Verdict::Ignore),
        ] {
            let trailers = headers(&[("grpc-status", status)]);
            assert_eq!(grpc.end(End::Complete(Some(&trailers))).verdict(), expected);
        }
    }

    #[test]
    fn grpc_web_is_another_protocol() {
        let is_grpc_type = |value| is_grpc(&headers(&[("content-type", value)]));
        assert!(
            is_grpc_type("application/grpc")
                && is_grpc_type("application/grpc+proto")
                && is_grpc_type("application/grpc;x=y")
        );
        assert!(
            is_grpc_type("Application/GRPC") && is_grpc_type("application/grpc ; charset=utf-8")
        );
        assert!(
            !is_grpc_type("application/grpcx")
                && !is_grpc_type("application")
                && !is_grpc_type("application/grp")
        );
        assert!(
            !is_grpc_type("application/grpc-web")
                && !is_grpc_type("application/grpc-web+proto")
                && !is_grpc_type("text/html")
        );
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
