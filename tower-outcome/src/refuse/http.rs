use std::{
    fmt::{Display, Write as _},
    time::Duration,
};

use http::{
    HeaderValue, Request, Response,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use super::Refuse;
use crate::{Refusal, Refused, body::RespondBody};

/// Responds with an HTTP response: the status of the class, `Retry-After`, and a line of text or problem+json.
///
/// `Retry-After` is in seconds, rounded **up** and at least 1 (RFC 9110 section 10.2.3), because a client that receives 0
/// retries at once and is rejected again. Without a retry hint the header is omitted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http {
    problem_json: bool,
}

// === impl Http ===

impl Http {
    /// Plain text.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            problem_json: false,
        }
    }

    /// Responds with `application/problem+json` (RFC 9457) instead of a line of text. Default: off.
    ///
    /// ```json
    /// {"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the circuit is open","code":"circuit-open"}
    /// ```
    #[must_use]
    pub const fn problem_json(self) -> Self {
        Self { problem_json: true }
    }

    /// Creates the response, for code outside of a layer. `detail` is its text. The refusal is in its extensions.
    pub fn response<B>(&self, refusal: &Refusal, detail: impl Display) -> Response<RespondBody<B>> {
        let status = refusal.class().status();
        let (content_type, text) = if self.problem_json {
            (
                "application/problem+json",
                problem(refusal, &detail.to_string()),
            )
        } else {
            ("text/plain; charset=utf-8", format!("{detail}\n"))
        };
        let mut response = Response::new(RespondBody::refusal(text));
        *response.status_mut() = status;
        response.extensions_mut().insert(*refusal);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(after) = refusal.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }
}

impl<A, B, E> Refuse<Request<A>, Response<B>, E> for Http {
    type Response = Response<RespondBody<B>>;
    type Error = E;
    type Context = ();

    fn context(&self, _: &Request<A>) {}

    fn refuse<X: Refused>(&self, (): (), refused: X) -> Result<Self::Response, E> {
        Ok(self.response(refused.refusal(), &refused))
    }

    fn pass(result: Result<Response<B>, E>) -> Result<Self::Response, E> {
        result.map(|response| response.map(RespondBody::inner))
    }
}

fn whole_seconds(after: Duration) -> u64 {
    after
        .as_secs()
        .saturating_add(u64::from(after.subsec_nanos() > 0))
        .max(1)
}

fn problem(refusal: &Refusal, detail: &str) -> String {
    let status = refusal.class().status();
    let title = status.canonical_reason().unwrap_or_default();
    let (status, code) = (status.as_u16(), refusal.code());
    let mut text =
        format!(r#"{{"type":"about:blank","title":"{title}","status":{status},"detail":""#);
    escape_into(&mut text, detail);
    text.push_str(r#"","code":""#);
    escape_into(&mut text, code);
    text.push_str("\"}");
    text
}

/// The escapes of a JSON string (RFC 8259 section 7).
fn escape_into(text: &mut String, value: &str) {
    for char in value.chars() {
        match char {
            '"' | '\\' => text.extend(['\\', char]),
            '\0'..='\x1f' => {
                let _ = write!(text, "\\u{:04x}", u32::from(char));
            }
            _ => text.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        for (millis, seconds) in [(0, 1), (1, 1), (400, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            assert_eq!(
                whole_seconds(Duration::from_millis(millis)),
                seconds,
                "{millis} ms"
            );
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_response_has_the_status_of_its_class_and_the_retry_hint() {
        let refusal =
            Refusal::new(Class::Limited, "rate").with_retry_after(Some(Duration::from_millis(200)));
        let response = Http::new().response::<String>(&refusal, "slow down");
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        let response = Http::new()
            .response::<String>(&Refusal::new(Class::Unavailable, "circuit-open"), "open");
        assert_eq!(response.status(), 503);
        assert!(!response.headers().contains_key("retry-after"));
    }

    #[test]
    fn a_problem_document_follows_rfc_9457() {
        assert_eq!(
            problem(
                &Refusal::new(Class::Unavailable, "circuit-open"),
                "the circuit \"ü\\\" is\nopen"
            ),
            r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the circuit \"ü\\\" is\u000aopen","code":"circuit-open"}"#
        );
    }
}
