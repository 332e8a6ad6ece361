use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};

use super::{AtEnd, Classify, ClassifyEnd, ClassifyResponse, broken, refused};
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
/// mapped as in gRPC's `http-grpc-status-mapping.md`. The retry hint is read from `grpc-retry-pushback-ms`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

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

impl<B> Classify<Request<B>> for Grpc {
    type Classifier = Self;

    fn classify(&self, _: &Request<B>) -> Self {
        Self
    }
}

impl Grpc {
    pub(super) fn at_head(status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
        if headers.contains_key(GRPC_STATUS) {
            return Some(by_headers(Some(headers)));
        }
        let code = match status {
            StatusCode::OK => return None,
            StatusCode::BAD_REQUEST => 13,
            StatusCode::UNAUTHORIZED => 16,
            StatusCode::FORBIDDEN => 7,
            StatusCode::NOT_FOUND => 12,
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => 14,
            _ => 2,
        };
        Some(by_code(code).into())
    }
}

impl<B, E: 'static> ClassifyResponse<Response<B>, E> for Grpc {
    type Scope = AtEnd;

    fn head(&self, response: &Response<B>) -> Option<Outcome> {
        refused(response.extensions())
            .or_else(|| Self::at_head(response.status(), response.headers()))
    }

    fn error(&self, error: &E) -> Outcome {
        broken(Refusal::of(error))
    }
}

impl ClassifyEnd for Grpc {
    fn end(self, end: End<'_>) -> Outcome {
        match end {
            End::Complete(trailers) => by_headers(trailers),
            End::Broken(refusal) => broken(refusal),
        }
    }
}

fn by_headers(headers: Option<&HeaderMap>) -> Outcome {
    let Some(status) = headers.and_then(|headers| headers.get(GRPC_STATUS)) else {
        return Outcome::FAILURE;
    };
    // Digits only: `parse` would accept `+0`.
    let digits = status
        .to_str()
        .ok()
        .filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()));
    let code = digits.and_then(|code| code.parse().ok()).unwrap_or(2);
    match by_code(code) {
        Verdict::Success => Outcome::SUCCESS,
        verdict => Outcome::new(verdict).with_retry_after(headers.and_then(pushback)),
    }
}

/// The same codes as linkerd, without `PERMISSION_DENIED`, which depends on the caller.
fn by_code(code: u8) -> Verdict {
    match code {
        8 => Verdict::Throttled,
        2 | 4 | 13..=15 | 17.. => Verdict::Failure,
        _ => Verdict::Success,
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
        Grpc.end(End::Complete(Some(&headers(pairs))))
    }

    #[test]
    fn each_code_has_its_verdict() {
        for code in 0..=20_u8 {
            let expected = match code {
                8 => Verdict::Throttled,
                2 | 4 | 13 | 14 | 15 | 17.. => Verdict::Failure,
                _ => Verdict::Success,
            };
            assert_eq!(by_code(code), expected, "{code}");
        }
    }

    #[test]
    fn a_stream_that_ends_without_a_status_has_failed() {
        assert_eq!(Grpc.end(End::Complete(None)), Outcome::FAILURE);
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
            Grpc::at_head(status, &HeaderMap::new()).map(|outcome| outcome.verdict())
        };
        assert_eq!(head(StatusCode::OK), None);
        assert_eq!(head(StatusCode::BAD_GATEWAY), Some(Verdict::Failure));
        assert_eq!(head(StatusCode::TOO_MANY_REQUESTS), Some(Verdict::Failure));
        assert_eq!(head(StatusCode::NOT_FOUND), Some(Verdict::Success));
        assert_eq!(head(StatusCode::IM_A_TEAPOT), Some(Verdict::Failure));
        let trailers_only = Grpc::at_head(StatusCode::OK, &headers(&[("grpc-status", "5")]));
        assert_eq!(trailers_only, Some(Outcome::SUCCESS));
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
