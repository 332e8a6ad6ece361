//! One rate limit over many machines: the quotas of [`tower_bucket`] with the buckets in Redis.
//!
//! ```no_run
//! use tower_bucket::{ClientIp, PeerIp, Quota};
//! use tower_bucket_redis::{RedisLayer, RedisLimiter};
//!
//! # async fn connect() -> redis::RedisResult<()> {
//! let connection = redis::Client::open("redis://127.0.0.1/")?.get_connection_manager().await?;
//! let quota = Quota::per_minute(600);
//! let limiter = RedisLimiter::<ClientIp, _>::new(connection, "shop", quota);
//! let app: axum::Router = axum::Router::new().layer(RedisLayer::new(&limiter, PeerIp).respond());
//! # let _ = app;
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//!   request ──► the local bucket ── empty ────────────────────────────────────► rejected, no round trip
//!                    │ holds a token
//!                    ▼
//!              one script on the server ── passes ────────────────────────────► inner service
//!                    │                  ├─ empty ─► remembered here until then ► rejected
//!                    │                  └─ an error reply ─► OnFailure, for this request only
//!                    └─ no reply: a timeout, an I/O error ─► OnFailure: local, open or closed; for a second the server
//!                                   is not asked, then by one request at a time until it replies
//! ```
//!
//! A decision is one script and one round trip. The script reads the server's clock, so the machines' clocks need not agree,
//! and its key expires when the bucket is full again. Requests that exceed the quota on this machine alone are rejected without
//! a round trip, and so are requests of a key that Redis has rejected, until the time that it returned.
//!
//! An error reply is a reply: a key that holds another type (`WRONGTYPE`), or a server that refuses to write, costs a round
//! trip and affects the requests that receive it. It does not stop requests for other keys.
//!
//! # Connections
//!
//! Use a connection that reconnects by itself: a `redis::aio::ConnectionManager`, or a cluster's. A
//! `MultiplexedConnection` does not: after a restart of the server, each machine would decide by itself for ever. A
//! manager made by `Client::get_connection_manager_lazy` lets an application start while Redis is down.
//!
//! # Limits of the server
//!
//! Redis 5 or newer, or a server that is compatible with it. After a restart without its data all buckets are full; the local
//! buckets bound what that lets through. The script is loaded again by itself.
//!
//! The server counts in whole microseconds, rounded up: a quota is never exceeded, and a rate above a million a second is kept
//! as a million. The local buckets keep the same quota by the local clock; where clocks drift apart, the stricter one wins.
//!
//! # Errors
//!
//! [`Exhausted`](tower_bucket::Exhausted), and those of the inner service. With [`RedisLayer::respond`] the error type is the
//! inner service's.
//!
//! # Cancel safety
//!
//! A call that is dropped while Redis is asked may have spent its token there, and has spent the local one. It is counted as
//! [`abandoned`](tower_bucket::Snapshot::abandoned).
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod future;
mod key;
mod layer;
mod limiter;
pub mod modifiers;
mod server;
mod service;

pub use self::{
    future::ResponseFuture,
    key::RedisKey,
    layer::RedisLayer,
    limiter::{OnFailure, RedisLimiter},
    service::RedisService,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
