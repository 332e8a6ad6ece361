//! What the tests share.

use std::net::SocketAddr;

use http::Request;
use tower_outcome::PeerAddr;

pub(crate) fn request() -> Request<String> {
    Request::new(String::new())
}

pub(crate) fn from(peer: &str) -> Request<String> {
    let mut request = request();
    request
        .extensions_mut()
        .insert(PeerAddr(SocketAddr::new(peer.parse().unwrap(), 4711)));
    request
}
