//! What the tests share.

use std::{net::SocketAddr, num::NonZeroU32};

use http::Request;
use tower_outcome::PeerAddr;

pub(crate) const fn n(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

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
