//! The crate as its users see it: limits around strict services and in a router.

mod auto_traits;
mod axum;
mod common;
mod limits;
mod service;
mod wait;
