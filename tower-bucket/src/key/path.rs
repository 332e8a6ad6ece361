use std::{
    fmt,
    hash::{Hash, Hasher},
};

use http::{Request, uri::PathAndQuery};

use super::Key;

/// The path of the request's URI, without the query.
///
/// For limits of a few known paths, and best together with the client: `(ProxiedIp, Path)`. Clients can make up paths,
/// so this alone is no limit; and a path can be spelled in many ways (`/a`, `/%61`). For a limit of a route, put
/// the layer on the route, or take the key from what the router matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path;

/// A path as it stands in a URI. Equal and hashed by the path alone.
#[derive(Clone)]
pub struct UriPath(PathAndQuery);

// === impl Path ===

impl<B> Key<Request<B>> for Path {
    type Key = UriPath;

    /// `None` where there is no path: `CONNECT example.com:443`.
    fn key(&self, request: &Request<B>) -> Option<UriPath> {
        request.uri().path_and_query().cloned().map(UriPath)
    }
}

// === impl UriPath ===

impl UriPath {
    /// The path.
    pub fn as_str(&self) -> &str {
        self.0.path()
    }
}

impl From<PathAndQuery> for UriPath {
    fn from(path: PathAndQuery) -> Self {
        Self(path)
    }
}

impl PartialEq for UriPath {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for UriPath {}

impl Hash for UriPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for UriPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UriPath").field(&self.as_str()).finish()
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn a_path_is_a_key_without_its_query() {
        let key = |uri: &str| Path.key(&Request::builder().uri(uri).body(()).unwrap());
        assert_eq!(key("/a?b=1"), key("http://example.com/a?b=2"));
        assert_ne!(key("/a"), key("/b"));
        assert_eq!(key("/a?b").unwrap().as_str(), "/a");
        assert_eq!(key("*").unwrap().as_str(), "*");
        let connect = Request::builder()
            .method(Method::CONNECT)
            .uri("example.com:443")
            .body(())
            .unwrap();
        assert_eq!(Path.key(&connect), None);
    }
}
