//! Leave without dropping anyone: graceful shutdown in phases, and an accept loop that keeps to it.
//!
//! A server that stops at once drops its requests; one that stops accepting drops those on their way; one that waits
//! for the last client waits for ever. So leaving has phases, each with a time that may be zero:
//!
//! ```text
//!             begin_drain()            5 s                   20 s                  2 s
//!   Serving ───────────────► Announcing ───────► Closing ───────────► Forced ───────────► Done(report)
//!      │                        │  │                │  └─ last one gone ─► Done    │           ▲
//!      │      shutdown()        │  │                │                              └───────────┘
//!      ├────────────────────────┼──────────────────►│                        last one gone, or time up
//!      │      force()           └─────── force() ───┴────────► Forced
//!      └─────────────────────────────────────────────────────► Forced
//!
//!   readiness     yes    │  no          │ no              │ no
//!   new clients   served │  served      │ the queue only  │ none
//!   HTTP/1        as is  │  Connection: close on every answer
//!   HTTP/2        as is  │  as is       │ GOAWAY          │ streams under way end
//! ```
//!
//! The end comes the moment the last guest leaves, by event, but never before the announce time: whoever still comes
//! then was not told yet. The defaults fit into the 30 s of Kubernetes.
//!
//! # Example
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use tokio::net::TcpListener;
//! use tower_drain::Drain;
//!
//! # async fn run() -> std::io::Result<()> {
//! let drain = Drain::new();
//! let ready = drain.clone();
//! let app = Router::new().route("/", get(|| async { "hello" })).route(
//!     "/ready",
//!     get(move || async move {
//!         if ready.is_ready() { Ok("ready") } else { Err(http::StatusCode::SERVICE_UNAVAILABLE) }
//!     }),
//! );
//! # #[cfg(feature = "signal")]
//! tokio::spawn(drain.on_signals()); // feature `signal`: SIGTERM begins, a second one forces
//! println!("{}", drain.serve(TcpListener::bind("0.0.0.0:8080").await?, app).await?);
//! # Ok(()) }
//! ```
//!
//! Tuned, with the knobs of the connections:
//!
//! ```no_run
//! use std::{num::NonZeroUsize, time::Duration};
//! use tower_drain::{ConnectionLimit, Drain, Http, Server};
//!
//! # async fn run(listener: tokio::net::TcpListener, app: axum::Router) -> std::io::Result<()> {
//! let drain = Drain::builder().announce(Duration::from_secs(10)).close(Duration::from_secs(15)).build();
//! let limit = ConnectionLimit::new(NonZeroUsize::new(2_000).unwrap());
//! let http = Http::new(&drain, app).header_timeout(Duration::from_secs(5)).last_chance(Duration::from_secs(2));
//! let report = Server::new(&drain, listener).limit(&limit).run(http).await?;
//! assert!(report.is_clean(), "{report}");
//! # Ok(()) }
//! ```
//!
//! # With another's server
//!
//! [`Drain::closing`] is the signal for `axum::serve(..).with_graceful_shutdown(..)` and tonic's
//! `serve_with_shutdown(..)`, [`Drain::done`] the deadline that those have not, and [`DrainLayer`] tells and counts the
//! requests. Tasks and upgraded connections hold a [`Guard`].
//!
//! # What it costs
//!
//! The accept loop: one task, and one small shared allocation, per connection; nothing is boxed. A request under
//! [`Drain::serve`]: one atomic load and two flags. [`DrainLayer`]: two atomic additions and one clone of an `Arc`.
//!
//! # What it does not do yet
//!
//! TLS, the PROXY protocol, handing the socket to a new process, and time limits on bodies and writes. An HTTP/2 peer
//! that does not answer the ping of the GOAWAY keeps its connection until the keep-alive ping or the close time ends it.
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod accept;
mod accepted;
mod bell;
mod close;
mod count;
mod drain;
mod fault;
mod future;
mod guard;
#[cfg(feature = "http")]
mod http;
mod layer;
mod limit;
mod listen;
mod phase;
mod report;
mod server;
mod service;
#[cfg(feature = "signal")]
mod signal;
mod wait;

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use self::http::{Connection, Http};
pub use self::{
    accepted::Accepted,
    drain::{Builder, Drain},
    future::ResponseFuture,
    guard::Guard,
    layer::DrainLayer,
    limit::{ConnectionLimit, ConnectionLimitLayer, Limited, LimitedFuture},
    listen::{Addr, Listen},
    phase::Phase,
    report::{Report, Requests, Snapshot},
    server::Server,
    service::Guarded,
    wait::{Done, Reached},
};

#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../README.md")]
struct Readme;
