//! The peer's address from the extensions of web frameworks.

#[cfg(feature = "axum")]
mod axum;
#[cfg(not(all(feature = "axum", feature = "tonic")))]
mod none;
#[cfg(feature = "tonic")]
mod tonic;

use std::net::SocketAddr;

use http::Extensions;

#[cfg(not(feature = "axum"))]
use self::none as axum;
#[cfg(not(feature = "tonic"))]
use self::none as tonic;

#[inline]
pub(crate) fn connect_info(extensions: &Extensions) -> Option<SocketAddr> {
    axum::connect_info(extensions).or_else(|| tonic::connect_info(extensions))
}
