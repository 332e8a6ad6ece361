//! Service discovery and a cloneable load balancer for Tower: turns a name into a changing set of endpoints.
//!
//! It is for clients of a service with several replicas, which come and go: requests skip replicas that are not ready, a
//! request that was never written goes to another replica, and if there is none the request is rejected explicitly and in
//! bounded time.
//!
//! ```text
//!   Resolve ── Update ──► CachedResolver ── Update ──► Driver ──► Balance ──► endpoint services
//!   (a source)            caches, one subscription    follows     picks,      one for each
//!                         for all followers           and watches fails over  instance
//! ```
//!
//! - [`Resolve`] turns a name into an endless stream of [`Update`]s. [`StaticResolver`] is the simplest one; there are
//!   `FileResolver` (feature `file`: TOML or JSON, followed while it changes), `DnsResolver` (feature `dns`: A, AAAA and
//!   SRV, for their time to live), and a custom one is a stream. [`diff`] applies updates to a [`Topology`]: it never goes
//!   back inside a source, and keeps the last set while the source is degraded.
//! - [`CachedResolver`] caches: one subscription for all followers of a name, and the last good set on errors.
//!   `DiscoverEndpoints` (feature `tower`) provides it to Tower's own p2c balance.
//! - [`Balance`] sends each request to one of the ready endpoints; see [`balance`] for its contract, and [`policy`] for how
//!   it picks.
//! - [`health`] checks endpoints and ejects them by their responses.
//! - `upstream::Upstream` (feature `hyper`) is a pooled HTTP/1 endpoint.
//!
//! # Costs
//!
//! A request loads one snapshot, picks (at the same cost for two endpoints and for ten thousand), clones the service of the
//! endpoint and increments its in-flight count: no lock, no allocation, no boxed future and no task switch besides those of
//! the endpoint. No `Buffer` is needed to share it. In exchange each balance has one task, the driver. A change of one
//! endpoint has a cost that hardly depends on the number of endpoints (see [`balance`]).
//!
//! # Example
//!
//! ```
//! use http::{Request, Response};
//! use tower::{BoxError, ServiceExt, service_fn};
//! use tower_resolve::{Balance, CachedResolver, Endpoint, Resolve, StaticResolver};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let names = CachedResolver::new(StaticResolver::new().with("echo", [
//!     Endpoint::new("echo-1", "127.0.0.1:8081".parse()?),
//!     Endpoint::new("echo-2", "127.0.0.1:8082".parse()?),
//! ]));
//! let (balance, driver) = Balance::builder().build(names.resolve("echo"), |endpoint, _| {
//!     let id = endpoint.id().clone();
//!     service_fn(move |_: Request<String>| {
//!         let id = id.clone();
//!         async move { Ok::<_, BoxError>(Response::new(id.to_string())) }
//!     })
//! });
//! tokio::spawn(driver);
//!
//! let response = balance.clone().oneshot(Request::new(String::new())).await?;
//! assert!(response.body().starts_with("echo-"));
//! # Ok(())
//! # }
//! ```
//!
//! With settings: for HTTP, by latency, in a zone, with outlier ejection, and a shorter wait.
//!
//! ```
//! use std::time::Duration;
//! use tower_resolve::{Balance, health::Outlier, policy::PeakEwma};
//!
//! let builder = Balance::builder()
//!     .http()                                // in flight to the end of the body; the epoch is sent in a header
//!     .policy(PeakEwma::new())
//!     .zone("eu-1")
//!     .slow_start(Duration::from_secs(30))
//!     .outlier(Outlier::new())
//!     .max_wait(Duration::from_millis(300))
//!     .max_waiting(200);
//! # let _ = builder;
//! ```
//!
//! # Errors
//!
//! | error | when | rendered as |
//! |---|---|---|
//! | [`NoEndpoints`] | none is known, or none became ready in time | 503, gRPC `UNAVAILABLE` |
//! | [`Unreachable`] | the maximum number of endpoints returned the request unsent | 503, gRPC `UNAVAILABLE` |
//! | [`Stopped`] | the driver is gone; also from `poll_ready` | 503, gRPC `UNAVAILABLE` |
//! | the error of the endpoint | it failed after the request may have been seen | up to the application: 502 |
//!
//! The first three are local rejections ([`Refusal::find`](tower_outcome::Refusal::find)): nothing was sent.
//!
//! # When not to use it
//!
//! For one upstream at one address there is nothing to balance.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
pub mod balance;
mod cache;
mod chunks;
pub mod diff;
#[cfg(feature = "tower")]
mod discover;
#[cfg(feature = "dns")]
mod dns;
mod endpoint;
mod error;
#[cfg(feature = "file")]
mod file;
mod fixed;
mod generation;
pub mod health;
pub mod policy;
mod resolve;
mod stripe;
mod sync;
mod topology;
#[cfg(feature = "hyper")]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper")))]
pub mod upstream;

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use self::discover::DiscoverEndpoints;
#[cfg(feature = "dns")]
#[cfg_attr(docsrs, doc(cfg(feature = "dns")))]
pub use self::dns::{DnsError, DnsResolver, DnsUpdates};
#[cfg(feature = "file")]
#[cfg_attr(docsrs, doc(cfg(feature = "file")))]
pub use self::file::{FileError, FileResolver, FileUpdates};
pub use self::{
    balance::Balance,
    cache::{Cached, CachedResolver, CachedUpdates},
    endpoint::{Endpoint, EndpointId, Phase},
    error::{NoEndpoints, Stopped, Unreachable},
    fixed::{StaticResolver, StaticUpdates},
    generation::{Generation, SourceId},
    resolve::{Cause, Resolve, Update},
    topology::Topology,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
