//! The peer's address as web frameworks tell it.

#[cfg(feature = "axum")]
mod axum;
#[cfg(not(feature = "axum"))]
mod none;

#[cfg(feature = "axum")]
pub(crate) use self::axum::connect_info;
#[cfg(not(feature = "axum"))]
pub(crate) use self::none::connect_info;
