use std::net::SocketAddr;

use http::Extensions;

/// The framework is not known: nothing.
#[inline]
pub(super) fn connect_info(_: &Extensions) -> Option<SocketAddr> {
    None
}
