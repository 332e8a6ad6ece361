//! A pooled HTTP/1 service for one address, ready to be an endpoint of a [`Balance`](crate::Balance).
//!
//! ```
//! use std::num::NonZeroUsize;
//! use tower_resolve::{Balance, Endpoint, Resolve, StaticResolver, upstream::Upstream};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let names = StaticResolver::new().with("echo", [Endpoint::new("echo-1", "127.0.0.1:8081".parse().unwrap())]);
//! let (balance, driver) = Balance::builder().http().build(names.resolve("echo"), |endpoint, _| {
//!     Upstream::builder(endpoint.addr()).max_connections(NonZeroUsize::new(256).unwrap()).build()
//! });
//! tokio::spawn(driver);
//! # let mut balance = balance;
//! # use tower_service::Service;
//! # let _answer = balance.call(http::Request::new(String::new()));
//! # }
//! ```
//!
//! # Readiness is connection readiness
//!
//! - `poll_ready` is `Ready` while the last attempt to connect to the address succeeded. After a failed one it is `Pending`,
//!   and *the task that polls it* connects again, after 50 ms, doubling to 2 s, with jitter; in a balance that is the
//!   driver. It is `Ready` again as soon as a connection is established. It is also `Pending` while all connections are in
//!   use.
//! - `call` takes an idle connection that is still open, the most recently used first, or opens one.
//! - A request of which nothing was written is returned as [`Unsent`](tower_outcome::Unsent): the address refused, did not
//!   answer in time, or all connections are in use. A pooled connection that turns out to be closed before anything was
//!   written to it is replaced by the next, without an error.
//! - Any other failure is an error of the upstream, as hyper's error: the request may have been seen, so it is not sent
//!   again.
//! - A connection returns to the pool at the end of the response body. A body that is dropped before that closes it.
//!
//! # Costs
//!
//! On a reused connection: one short lock to take it and one to return it (a few instructions on a list of idle connections,
//! never held while waiting), and no allocation by this crate. A new connection costs a task, and a box for the exchange
//! that stays with it. One more task per address closes connections that were idle for too long.

mod body;
mod connection;
mod future;
mod pool;
mod service;

pub use self::{
    body::UpstreamBody,
    future::ResponseFuture,
    pool::UpstreamSnapshot,
    service::{Upstream, UpstreamBuilder},
};
