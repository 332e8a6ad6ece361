//! `Connection: close`, and the responses that get it.

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header::CONNECTION,
};

/// The properties of a request that decide whether its response may carry `Connection: close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closable {
    http1: bool,
    connect: bool,
}

// === impl Closable ===

impl Closable {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self {
            http1: request.version() <= Version::HTTP_11,
            connect: request.method() == Method::CONNECT,
        }
    }

    pub(crate) const fn is_http1(self) -> bool {
        self.http1
    }

    /// Whether this response turns the connection into a tunnel.
    pub(crate) fn is_upgrade<B>(self, response: &Response<B>) -> bool {
        let status = response.status();
        self.http1
            && (status == StatusCode::SWITCHING_PROTOCOLS || self.connect && status.is_success())
    }

    /// Adds `Connection: close` to an HTTP/1 response that does not have it yet.
    pub(crate) fn close<B>(self, response: &mut Response<B>) {
        if self.is_http1() && !self.is_upgrade(response) && !says_close(response.headers()) {
            response
                .headers_mut()
                .append(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let values = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("close"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(version: Version, method: Method, mut response: Response<()>) -> Vec<String> {
        let request = Request::builder()
            .version(version)
            .method(method)
            .body(())
            .unwrap();
        Closable::of(&request).close(&mut response);
        response
            .headers()
            .get_all(CONNECTION)
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    }

    fn response(status: u16) -> Response<()> {
        Response::builder().status(status).body(()).unwrap()
    }

    #[test]
    fn an_http_1_response_gets_close_once() {
        assert_eq!(
            answer(Version::HTTP_11, Method::GET, response(200)),
            ["close"]
        );
        assert_eq!(
            answer(Version::HTTP_10, Method::GET, response(500)),
            ["close"]
        );
        let said = Response::builder()
            .header(CONNECTION, "x-hop, Close")
            .body(())
            .unwrap();
        assert_eq!(
            answer(Version::HTTP_11, Method::GET, said),
            ["x-hop, Close"]
        );
        let hop = Response::builder()
            .header(CONNECTION, "x-hop")
            .body(())
            .unwrap();
        assert_eq!(
            answer(Version::HTTP_11, Method::GET, hop),
            ["x-hop", "close"]
        );
    }

    #[test]
    fn http_2_and_upgrades_never_get_close() {
        assert!(answer(Version::HTTP_2, Method::GET, response(200)).is_empty());
        assert!(answer(Version::HTTP_11, Method::GET, response(101)).is_empty());
        assert!(answer(Version::HTTP_11, Method::CONNECT, response(200)).is_empty());
        assert_eq!(
            answer(Version::HTTP_11, Method::CONNECT, response(405)),
            ["close"]
        );
    }
}
