//! The crate as its users see it: limits around strict services, in a router, and over a real redis-server.

mod auto_traits;
mod axum;
mod common;
mod limits;
#[cfg(feature = "redis")]
mod redis;
mod service;
mod wait;
