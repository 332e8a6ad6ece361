use http::{HeaderName, HeaderValue, Request};

use super::Key;

/// The value of a header, such as an API key or a tenant, compared by its bytes. Of several lines it is the first.
///
/// Use it only for what was checked before it came here, or was written by a trusted proxy: clients can send any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header(HeaderName);

// === impl Header ===

impl Header {
    /// The header of this name.
    #[must_use]
    pub const fn new(name: HeaderName) -> Self {
        Self(name)
    }
}

impl<B> Key<Request<B>> for Header {
    type Key = HeaderValue;

    fn key(&self, request: &Request<B>) -> Option<HeaderValue> {
        request.headers().get(&self.0).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_key_by_its_first_line() {
        let key = Header::new(HeaderName::from_static("x-api-key"));
        let request = Request::builder()
            .header("x-api-key", "one")
            .header("x-api-key", "two")
            .body(())
            .unwrap();
        assert_eq!(key.key(&request).unwrap(), "one");
        assert_eq!(key.key(&Request::new(())), None);
    }
}
