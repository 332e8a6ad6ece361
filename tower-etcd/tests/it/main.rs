//! The crate over real members of etcd.

mod auth;
mod conformance;
mod faults;
#[cfg(feature = "resolve")]
mod resolve;
mod store;
mod support;
#[cfg(feature = "tls")]
mod tls;
