use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, Request, Response, StatusCode, header::RETRY_AFTER};

use super::{AtEnd, Classify, ClassifyEnd, ClassifyResponse, broken, refused};
use crate::{Outcome, Refusal, Verdict, body::End};

/// Classifies HTTP by status code: 5xx and broken bodies are failures, 429 is throttled, all other codes are successes. A status
/// above 599 is invalid and counts as 5xx (RFC 9110 section 15).
///
/// Three of the 5xx are ignored, because any client can cause them on a healthy server: 501 (method not implemented, RFC 9110
/// section 15.6.2), 505 (version not supported, section 15.6.6) and 511 (sent by a captive portal, RFC 6585 section 6). They
/// are no successes either, so they do not reset consecutive failures.
///
/// A success is recorded at the end of the body, because a download that breaks off is a failure. Responses without a body
/// (to `HEAD`, to a `CONNECT` that succeeded, 101, 204, 304; RFC 9110 section 6.4.1) are recorded at the head. The retry hint
/// is read from `Retry-After` (seconds or a date, RFC 9110 section 10.2.3) of responses that are not successes.
#[derive(Clone, Copy, Debug)]
pub struct Http {
    status: fn(StatusCode) -> Verdict,
}

/// The classifier of one request, created by [`Http`].
#[derive(Clone, Copy, Debug)]
pub struct HttpClassifier {
    status: fn(StatusCode) -> Verdict,
    is_head: bool,
    is_connect: bool,
}

// === impl Http ===

impl Http {
    /// 5xx are failures except for 501, 505 and 511, which are ignored; 429 is throttled.
    #[must_use]
    pub const fn new() -> Self {
        Self { status: by_status }
    }

    /// Classifies status codes with `judge`, for example to accept `500` from a server whose clients can cause it.
    #[must_use]
    pub const fn status(self, judge: fn(StatusCode) -> Verdict) -> Self {
        Self { status: judge }
    }

    pub(super) fn classifier(self, method: &Method) -> HttpClassifier {
        HttpClassifier {
            status: self.status,
            is_head: method == Method::HEAD,
            is_connect: method == Method::CONNECT,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> Classify<Request<B>> for Http {
    type Classifier = HttpClassifier;

    fn classify(&self, request: &Request<B>) -> HttpClassifier {
        self.classifier(request.method())
    }
}

// === impl HttpClassifier ===

impl HttpClassifier {
    pub(super) fn at_head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
        match (self.status)(status) {
            Verdict::Success if self.may_have_body(status) => None,
            Verdict::Success => Some(Outcome::SUCCESS),
            verdict => Some(Outcome::new(verdict).with_retry_after(retry_after(headers))),
        }
    }

    fn may_have_body(&self, status: StatusCode) -> bool {
        let never = matches!(
            status,
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        !(never || self.is_head || self.is_connect && status.is_success())
    }
}

impl<B, E: 'static> ClassifyResponse<Response<B>, E> for HttpClassifier {
    type Scope = AtEnd;

    fn head(&self, response: &Response<B>) -> Option<Outcome> {
        refused(response.extensions())
            .or_else(|| self.at_head(response.status(), response.headers()))
    }

    fn error(&self, error: &E) -> Outcome {
        broken(Refusal::of(error))
    }
}

impl ClassifyEnd for HttpClassifier {
    fn end(self, end: End<'_>) -> Outcome {
        match end {
            End::Complete(_) => Outcome::SUCCESS,
            End::Broken(refusal) => broken(refusal),
        }
    }
}

fn by_status(status: StatusCode) -> Verdict {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Verdict::Throttled,
        StatusCode::NOT_IMPLEMENTED
        | StatusCode::HTTP_VERSION_NOT_SUPPORTED
        | StatusCode::NETWORK_AUTHENTICATION_REQUIRED => Verdict::Ignore,
        status if status.as_u16() >= 500 => Verdict::Failure,
        _ => Verdict::Success,
    }
}

/// `Retry-After` in either form. A date in the past is a delay of zero; an invalid value is no hint.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    retry_after_at(headers, SystemTime::now)
}

fn retry_after_at(headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit is valid and very long.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: Method, status: u16) -> Option<Verdict> {
        let request = Request::builder().method(method).body(()).unwrap();
        let response = Response::builder().status(status).body(()).unwrap();
        let classifier = Http::new().classify(&request);
        ClassifyResponse::<_, std::io::Error>::head(&classifier, &response)
            .map(|outcome| outcome.verdict())
    }

    #[test]
    fn only_a_success_with_a_body_waits_for_its_end() {
        for status in [200, 201, 301, 404, 499] {
            assert_eq!(head(Method::GET, status), None, "{status}");
            assert_eq!(
                head(Method::HEAD, status),
                Some(Verdict::Success),
                "{status}"
            );
        }
        for status in [101, 204, 304] {
            assert_eq!(
                head(Method::GET, status),
                Some(Verdict::Success),
                "{status}"
            );
        }
        assert_eq!(
            head(Method::CONNECT, 200),
            Some(Verdict::Success),
            "a tunnel"
        );
        assert_eq!(head(Method::CONNECT, 407), None);
        for status in [500, 502, 503, 504, 599, 600, 999] {
            assert_eq!(
                head(Method::GET, status),
                Some(Verdict::Failure),
                "{status}"
            );
        }
        assert_eq!(head(Method::GET, 429), Some(Verdict::Throttled));
    }

    #[test]
    fn statuses_that_any_client_can_cause_are_ignored() {
        for status in [501, 505, 511] {
            assert_eq!(
                head(Method::POST, status),
                Some(Verdict::Ignore),
                "{status}"
            );
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_an_invalid_value_is_no_hint() {
        let now = || httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let read = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            retry_after_at(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(
            read("99999999999999999999999"),
            Some(Duration::from_secs(u64::MAX))
        );
        assert_eq!(
            read("Sun, 06 Nov 1994 08:50:37 GMT"),
            Some(Duration::from_secs(60))
        );
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for invalid in ["", "-1", "1.5", "soon", "Sun, 99 Nov 1994 08:00:00 GMT"] {
            assert_eq!(read(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn a_function_for_status_codes_replaces_the_preset() {
        let lenient = Http::new().status(|status| {
            if status == 500 {
                Verdict::Success
            } else {
                by_status(status)
            }
        });
        let classifier = lenient.classifier(&Method::GET);
        assert_eq!(
            classifier.at_head(StatusCode::INTERNAL_SERVER_ERROR, &HeaderMap::new()),
            None
        );
        assert_eq!(
            classifier.at_head(StatusCode::BAD_GATEWAY, &HeaderMap::new()),
            Some(Outcome::FAILURE)
        );
    }
}
