//! Let no more through than was agreed: token buckets, one for all or one for each client.
//!
//! Put it where requests come in, so that one client cannot take what is meant for all; or before an upstream that
//! allows only so much. It refuses, it does not wait: a request beyond the quota is answered at once, and told when to
//! come back. It guards a rate; against too many requests *at a time* a concurrency limit is the means.
//!
//! ```text
//!                                    ┌ token there ──► inner service
//!   request ──► whose bucket? ──► call
//!                    │               └ bucket empty ─► Err(Exhausted), or 429 / RESOURCE_EXHAUSTED: come back in …
//!                    └ no key: share a bucket (default), allow, or deny
//! ```
//!
//! The price of a request that passes: one clock reading and one or two atomic additions, and per client a hash and a
//! look-up; no lock, no allocation, no boxed future. Per-client buckets take 21 bytes for each client they have room
//! for, at the start, and nothing after that.
//!
//! # Examples
//!
//! With defaults, for an upstream: beyond 100 a second the error is an [`Exhausted`], boxed.
//!
//! ```
//! use std::num::NonZeroU32;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_bucket::{BucketLayer, Exhausted, Limiter, Quota};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let limiter = Limiter::new(Quota::per_hour(NonZeroU32::MIN));
//! let mut service = ServiceBuilder::new()
//!     .layer(BucketLayer::new(limiter.clone()))
//!     .service_fn(async |name: &'static str| Ok::<_, tower::BoxError>(format!("hello {name}")));
//!
//! assert_eq!(service.ready().await.unwrap().call("alice").await.unwrap(), "hello alice");
//! let error = service.ready().await.unwrap().call("bob").await.unwrap_err();
//! assert!(error.downcast_ref::<Exhausted>().unwrap().retry_after().is_some());
//! assert_eq!(limiter.snapshot().refused, 1);
//! # }
//! ```
//!
//! Tuned, for a server: 100 a second for each client with at most 20 at once, told as an answer, up to a million
//! clients, and those that come without an address are refused.
//!
//! ```
//! use std::num::NonZeroU32;
//! use tower_bucket::{BucketLayer, ClientIp, KeyedLimiter, OnMissingKey, PeerIp, Quota};
//!
//! const fn n(number: u32) -> NonZeroU32 {
//!     NonZeroU32::new(number).expect("not zero")
//! }
//!
//! let quota = Quota::per_second(n(100)).burst(n(20));
//! let limiter = KeyedLimiter::<ClientIp>::new(quota).capacity(n(1_000_000));
//! let layer = BucketLayer::keyed(limiter.clone(), PeerIp).on_missing_key(OnMissingKey::Deny).respond();
//! let app: axum::Router = axum::Router::new().layer(layer); // and `limiter` for its numbers
//! ```
//!
//! # Errors
//!
//! [`Exhausted`], and the inner service's own. `poll_ready` fails only if the inner service does. With
//! [`respond`](BucketLayer::respond) the error type is the inner service's, so that axum's stays `Infallible`.
//!
//! # Cancel safety
//!
//! A call that is dropped has spent its token; see [`ResponseFuture`].
//!
//! # Features
//!
//! - `axum`: [`PeerIp`] also reads axum's `ConnectInfo<SocketAddr>`. Off by default.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod connect_info;
mod error;
mod future;
mod gcra;
mod key;
mod keyed;
mod layer;
mod limiter;
mod quota;
mod service;
mod store;
mod sync;

pub use self::{
    error::Exhausted,
    future::ResponseFuture,
    key::{ClientIp, Header, Key, OnMissingKey, PeerIp},
    keyed::KeyedLimiter,
    layer::{BucketLayer, Keyed, Limit},
    limiter::{Admitted, Limiter, Snapshot},
    quota::Quota,
    service::Bucket,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
