//! A name in, a living set of endpoints out: discovery and a cloneable load balancer for Tower.
//!
//! It helps a client that talks to several replicas of a service, which come and go: requests go round those that are
//! not ready, a request that was never written goes to another replica, and when there is none the answer is explicit
//! and soon.
//!
//! ```text
//!   Resolve ── Update ──► CachedResolver ── Update ──► Driver ──► Balance ──► endpoint services
//!   (a source)            remembers, one question     follows     picks,      yours, one for each
//!                         for all who follow          and watches fails over  instance
//! ```
//!
//! - [`Resolve`] is a name in and an endless stream of [`Update`]s out. [`StaticResolver`] is the simplest one; there are
//!   `FileResolver` (feature `file`: TOML or JSON, followed while it changes), `DnsResolver` (feature `dns`: A, AAAA and
//!   SRV, as long as their time to live), and one of your own is a stream.
//!   [`diff`] folds updates into a [`Topology`]: never back inside a source, nothing lost while it is in trouble.
//! - [`CachedResolver`] remembers: one question for all who follow a name, the last good set on errors.
//!   `DiscoverEndpoints` (feature `tower`) gives it to Tower's own p2c balance.
//! - [`Balance`] sends each request to one of the endpoints that are ready; see [`balance`] for what it promises, and
//!   [`policy`] for how it picks.
//! - [`health`] checks endpoints and ejects them by their answers.
//! - `upstream::Upstream` (feature `hyper`) is a pooled HTTP/1 endpoint.
//!
//! # What it costs
//!
//! A request loads one snapshot, picks (the same cost for two endpoints and for ten thousand), clones the endpoint's
//! service and counts itself in: no lock, no allocation, no boxed future and no task hop besides the endpoint's own. It
//! is shareable as it is, without a `Buffer`. In exchange there is one task for each balance, the driver. A change of one
//! endpoint costs about that endpoint, however many there are ([`balance`] has the rest).
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
//! Tuned: for HTTP, by latency, in a zone, with an eye on the answers, and less patience.
//!
//! ```
//! use std::time::Duration;
//! use tower_resolve::{Balance, health::Outlier, policy::PeakEwma};
//!
//! let builder = Balance::builder()
//!     .http()                                // in flight to the body's end; the epoch goes along in a header
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
//! | error | when | told as |
//! |---|---|---|
//! | [`NoEndpoints`] | none is known, or none became ready in time | 503, gRPC `UNAVAILABLE` |
//! | [`Unreachable`] | as many as allowed handed the request back unsent | 503, gRPC `UNAVAILABLE` |
//! | [`Stopped`] | the driver is gone; also from `poll_ready` | 503, gRPC `UNAVAILABLE` |
//! | the endpoint's own | it failed after the request may have been seen | as you like: 502 |
//!
//! The first three are refusals of our own ([`Refusal::find`](tower_outcome::Refusal::find)): nothing was sent.
//!
//! # When not
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
