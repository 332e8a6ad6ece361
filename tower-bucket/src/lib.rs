//! Rate limits for Tower: token buckets, one shared by all requests or one for each client.
//!
//! Put it where requests come in, so that one client cannot take what is meant for all; or before an upstream that
//! has a rate limit itself. A request beyond the quota is rejected at once, with the time to retry; or it waits for its turn,
//! as an option. It limits a rate; to limit how many requests run *at a time*, use a concurrency limit.
//!
//! ```text
//!                                    ┌ token there ──► inner service
//!   request ──► whose bucket? ──► call ┼ bucket empty ─► Err(Exhausted), or 429 / RESOURCE_EXHAUSTED: come back in …
//!                    │               └ with `wait` ──► its turn comes soon enough ──► sleeps, then the inner service
//!                    └ no key: share a bucket (default), allow, or deny
//! ```
//!
//! | purpose | call |
//! |---|---|
//! | one bucket for all, or for one upstream | [`BucketLayer::new`] with a [`Limiter`] |
//! | one for each client | [`BucketLayer::per_client`]; behind proxies [`BucketLayer::keyed`] with [`ProxiedIp`] |
//! | one for each API key, path, tenant or pair of these | [`BucketLayer::keyed`] with [`Header`], [`Path`], a function, a tuple |
//! | another quota for some keys | [`quota_fn`](BucketLayer::quota_fn) |
//! | requests that cost more | [`cost`](BucketLayer::cost) |
//! | several limits at once | [`and`](BucketLayer::and) |
//! | to wait instead of failing | [`wait`](BucketLayer::wait) |
//! | to try a quota without refusing | [`shadow`](BucketLayer::shadow) |
//! | responses with the tokens that are left | [`rate_limit_headers`](BucketLayer::rate_limit_headers) |
//! | another quota while it runs | [`Limiter::set_quota`], [`KeyedLimiter::set_quota`] |
//!
//! The price of a request that passes: one clock reading and one or two atomic additions, and per client a hash and a
//! look-up; no lock, no allocation, no boxed future. Per-client buckets take 21 bytes for each client they have room
//! for, at the start, and nothing after that.
//!
//! What is kept is the generic cell rate algorithm: over any stretch of time *t* a bucket lets no more through than its
//! `burst + rate * t`, regardless of concurrency, costs and quota changes. Each process counts for
//! itself; for one quota over many machines there is the crate `tower-bucket-redis`.
//!
//! # Examples
//!
//! With defaults, for an upstream: beyond 100 a second the error is an [`Exhausted`], boxed.
//!
//! ```
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_bucket::{BucketLayer, Exhausted, Limiter, Quota};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let limiter = Limiter::new(Quota::per_hour(1));
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
//! With options, for a server: 100 a second for each client with at most 20 at once, rejected with a response, up to a million
//! clients; those without an address are rejected.
//!
//! ```
//! use tower_bucket::{BucketLayer, ClientIp, KeyedLimiter, OnMissingKey, PeerIp, Quota};
//!
//! let quota = Quota::per_second(100).burst(20);
//! let limiter = KeyedLimiter::<ClientIp>::new(quota).capacity(1_000_000);
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
//! A call that is dropped has spent its token; see [`ResponseFuture`]. One that is dropped while it waits has spent none: those
//! that wait behind it move up; see [`WaitFuture`].
//!
//! # Features
//!
//! All are off by default.
//!
//! - `axum`: [`PeerIp`] also reads axum's `ConnectInfo<SocketAddr>`.
//! - `tonic`: [`PeerIp`] also reads tonic's `TcpConnectInfo`.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod adapter;
mod clock;
mod connect_info;
mod error;
mod future;
mod gcra;
mod hash;
mod headers;
mod key;
mod keyed;
mod layer;
mod limit;
mod limiter;
mod queue;
mod quota;
mod quota_cell;
mod service;
mod slot;
mod snapshot;
mod store;
mod sync;
mod wait;
mod waiters;

pub use self::{
    error::Exhausted,
    future::ResponseFuture,
    headers::{PolicyName, RateLimitHeaders},
    key::{
        ClientIp, Header, Key, Network, NotANetwork, OnMissingKey, Path, PeerIp, ProxiedIp, UriPath,
    },
    keyed::KeyedLimiter,
    layer::BucketLayer,
    limit::{And, Cost, Keyed, Limit, QuotaFn, Shadow, Tuned, WithHeaders},
    limiter::{Admitted, Limiter},
    quota::Quota,
    service::{BucketService, Reject},
    snapshot::Snapshot,
    wait::{Queue, WaitFuture},
    waiters::Share,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// A second `wait` would drop what was set for the first.
///
/// ```compile_fail,E0599
/// use std::time::Duration;
/// use tower_bucket::{BucketLayer, Quota};
///
/// let layer = BucketLayer::per_client(Quota::per_second(1)).wait(Duration::from_secs(1));
/// layer.waiters(1).wait(Duration::from_secs(2));
/// ```
#[cfg(doctest)]
struct WaitsTwice;
