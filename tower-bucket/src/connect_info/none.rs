use std::net::SocketAddr;

use http::Extensions;

/// No framework is known: nothing.
pub(crate) fn connect_info(_: &Extensions) -> Option<SocketAddr> {
    None
}
