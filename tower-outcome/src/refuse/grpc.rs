use std::fmt::Display;

use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};

use super::Refuse;
use crate::{
    Refusal, Refused,
    body::RespondBody,
    header::{GRPC_MESSAGE, GRPC_RETRY_PUSHBACK_MS, GRPC_STATUS},
};

/// Responds with a gRPC trailers-only response: HTTP 200, `grpc-status` and `grpc-message` in the head, no body.
///
/// The retry hint is sent as `grpc-retry-pushback-ms` (gRFC A6), rounded up to a whole millisecond.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

// === impl Grpc ===

impl Grpc {
    /// Creates the response, for code outside of a layer. `detail` is its message. The refusal is in its extensions.
    pub fn response<B>(&self, refusal: &Refusal, detail: impl Display) -> Response<RespondBody<B>> {
        let mut response = Response::new(RespondBody::refusal(""));
        response.extensions_mut().insert(*refusal);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(
            GRPC_STATUS,
            HeaderValue::from(u16::from(refusal.class().grpc_status())),
        );
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&detail.to_string())) {
            headers.insert(GRPC_MESSAGE, message);
        }
        if let Some(millis) = pushback_millis(refusal) {
            headers.insert(GRPC_RETRY_PUSHBACK_MS, HeaderValue::from(millis));
        }
        response
    }
}

impl<A, B, E> Refuse<Request<A>, Response<B>, E> for Grpc {
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

/// The retry hint, rounded up. Java and Go clients parse a signed 32-bit or 64-bit number, so it is limited to one day.
pub(super) fn pushback_millis(refusal: &Refusal) -> Option<u64> {
    let millis = refusal.retry_after()?.as_nanos().div_ceil(1_000_000);
    Some(u64::try_from(millis).unwrap_or(u64::MAX).min(86_400_000))
}

/// The encoding of `grpc-message` (gRPC's PROTOCOL-HTTP2.md): escapes `%` and everything but printable ASCII.
fn percent_encoded(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body::Body;

    use super::*;
    use crate::Class;

    #[test]
    fn a_response_is_trailers_only() {
        let refusal = Refusal::new(Class::Limited, "rate")
            .with_retry_after(Some(Duration::from_micros(1500)));
        let response = Grpc.response::<String>(&refusal, refusal);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(
            response.headers()["grpc-message"],
            "too many requests (rate)"
        );
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "2");
        assert!(response.body().is_end_stream());
    }

    #[test]
    fn a_message_is_percent_encoded() {
        assert_eq!(percent_encoded("100% ü\n"), "100%25 %C3%BC%0A");
    }
}
