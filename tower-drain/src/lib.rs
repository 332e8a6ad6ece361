//! Graceful shutdown in phases for any Tower server, and an accept loop with connection limits that follows them.
//!
//! A server that stops at once drops the requests under way; one that only stops accepting loses those of clients that
//! still connect; one that waits for all clients to disconnect waits for ever. So the shutdown has phases, each with a
//! duration that may be zero:
//!
//! ```text
//!             begin_drain()            5 s                   20 s                  2 s
//!   Serving ───────────────► Announcing ───────► Closing ───────────► Forced ───────────► Done(report)
//!      │                        │  │                │  └─ all ended ─────► Done    │           ▲
//!      │      shutdown()        │  │                │                              └───────────┘
//!      ├────────────────────────┼──────────────────►│                        all ended, or time up
//!      │      force()           └─────── force() ───┴────────► Forced
//!      └─────────────────────────────────────────────────────► Forced
//!
//!   readiness     yes    │  no          │ no              │ no
//!   new clients   served │  served      │ the queue only  │ none
//!   HTTP/1        as is  │  Connection: close on each response
//!   HTTP/2        as is  │  as is       │ GOAWAY          │ streams under way end
//! ```
//!
//! The drain is over as soon as the last connection or task has ended, by event, without polling, but not before the
//! announce time: clients that connect during it have not yet seen the change of readiness. The defaults fit within the
//! 30 s of Kubernetes.
//!
//! # Example
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use tokio::net::TcpListener;
//! use tower_drain::Drain;
//!
//! # #[cfg(feature = "http")]
//! # async fn run() -> std::io::Result<()> {
//! let drain = Drain::new();
//! let app = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .route_service("/ready", drain.readiness());
//! # #[cfg(feature = "signal")]
//! tokio::spawn(drain.on_signals()); // SIGTERM begins the drain, a second one forces it
//! println!("{}", drain.serve(TcpListener::bind("0.0.0.0:8080").await?, app).await?);
//! # Ok(()) }
//! ```
//!
//! With settings:
//!
//! ```no_run
//! use std::{num::NonZeroUsize, time::Duration};
//! # #[cfg(feature = "http")]
//! use tower_drain::{ConnectionLimit, Drain, Http, Server};
//!
//! # #[cfg(feature = "http")]
//! # async fn run(listener: tokio::net::TcpListener, app: axum::Router) -> std::io::Result<()> {
//! let drain = Drain::builder().announce(Duration::from_secs(10)).close(Duration::from_secs(15)).build();
//! let limit = ConnectionLimit::new(NonZeroUsize::new(2_000).unwrap());
//! let http = Http::new(&drain, app).header_timeout(Duration::from_secs(5)).last_chance(Duration::from_secs(2));
//! let report = Server::new(&drain, listener).limit(&limit).run(http).await?;
//! assert!(report.is_clean(), "{report}");
//! # Ok(()) }
//! ```
//!
//! # With another server
//!
//! [`Drain::closing`] is the signal for `axum::serve(..).with_graceful_shutdown(..)` and tonic's
//! `serve_with_shutdown(..)`. [`Drain::around`] adds the deadline that those do not have. [`DrainLayer`] counts the
//! requests, adds `Connection: close` to their responses, and cuts them when the drain is over. Tasks and upgraded
//! connections hold a [`Guard`].
//!
//! ```no_run
//! # async fn run(addr: std::net::SocketAddr, routes: tonic::service::Routes) -> Result<(), tonic::transport::Error> {
//! use tonic::transport::Server;
//! use tower_drain::{Drain, DrainLayer};
//!
//! let drain = Drain::new();
//! let server = Server::builder().layer(DrainLayer::new(&drain)).add_routes(routes);
//! drain.around(server.serve_with_shutdown(addr, drain.closing())).await.transpose()?;
//! println!("{}", drain.done().await);
//! # Ok(()) }
//! ```
//!
//! Under [`Drain::serve`] a tonic server has the limits of [`Http`] too, and with a [`StreamingLayer`] its calls may be
//! silent for any time: `drain.serve(listener, StreamingLayer::new().layer(routes.prepare()))`. That needs the feature
//! `tonic`, or `http2`: without them the server supports HTTP/1 only.
//!
//! # WebSocket, `CONNECT`, and streams without end
//!
//! Under an accept loop of this crate the drain waits for an upgraded connection until it ends, or until the drain is
//! over; its task needs no guard. The server cannot close such a connection gracefully, so its task should: let it await
//! [`Drain::closing`] beside its messages, and send a close frame (1001, or 1012 for a restart). The same holds for a
//! server-sent or gRPC stream that would never end by itself. Streams that are still open are cut when the drain is over.
//!
//! # In Kubernetes
//!
//! - A pod gets `SIGTERM` while its address is still in the endpoint lists; the announce time covers that, so no `preStop`
//!   hook that sleeps is needed. If there is one, its time counts too.
//! - The readiness probe is [`Drain::readiness`]. Serve it from an admin listener with a separate [`Drain`], so that it
//!   outlives the data listeners; the liveness probe must not fail while draining.
//! - `terminationGracePeriodSeconds` is 30 by default and covers everything. 5 + 20 + 2 s fit; with longer durations, raise
//!   it too.
//! - Process 1 of a container has no default signal handlers: without `on_signals` it ignores `SIGTERM` until it is killed.
//!
//! # From one process to the next
//!
//! With the feature `handoff`, on Linux, a new process takes over the listening sockets, and no connection in their queues
//! is lost: see the module `handoff`. `SO_REUSEPORT` alone loses them. On other systems there is only the drain.
//!
//! # Costs
//!
//! The accept loop: one task, one small shared allocation, and an entry in a list per connection; an HTTP/1 connection is
//! not boxed, an HTTP/2 connection is boxed once. Ten thousand idle connections take some 7 % more memory than with hyper
//! alone.
//!
//! A request under [`Drain::serve`], with any limits, takes 13,084<!-- =serve/drain.request_instructions --> instructions and
//! 15<!-- =serve/drain.request_allocations --> allocations, beside 10,609<!-- =serve/hyper.request_instructions --> and 11.9<!-- =serve/hyper.request_allocations --> with hyper-util: mostly
//! for the peer's address and the cancellation in its extensions and the `Keep-Alive` field of its response; a body costs
//! one more allocation. [`DrainLayer`]: two atomic additions, one clone of an `Arc`, 1,148<!-- =layers/drain.instructions --> instructions in all. The
//! README has the figures and the commands.
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod accept;
mod accepted;
mod bell;
mod body;
mod bound;
mod cancel;
mod close;
mod count;
#[cfg(test)]
mod count_tests;
mod cut;
mod drain;
mod eviction;
mod fault;
mod future;
mod guard;
#[cfg(all(feature = "handoff", target_os = "linux"))]
#[cfg_attr(docsrs, doc(cfg(feature = "handoff")))]
pub mod handoff;
#[cfg(feature = "http")]
mod http;
mod layer;
mod limit;
mod listen;
mod lives;
mod patience;
mod phase;
mod places;
mod proxied;
pub mod proxy;
#[cfg(target_os = "linux")]
mod raw;
mod readiness;
mod report;
mod reserve;
mod server;
mod service;
#[cfg(feature = "signal")]
mod signal;
mod slots;
mod sync;
#[cfg(feature = "tls")]
mod tls;
mod wait;

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use self::http::{Connection, Http, RequestBody, StreamingLayer, StreamingService, TooSlow};
pub use self::{
    accepted::Accepted,
    body::DrainBody,
    bound::BoundListener,
    cancel::Cancellation,
    drain::{Drain, DrainBuilder},
    future::ResponseFuture,
    guard::Guard,
    layer::DrainLayer,
    limit::{ConnectionLimit, ConnectionLimitLayer, Limited, LimitedFuture, Overloaded, Refusing},
    listen::{Addr, Listen},
    phase::Phase,
    proxied::{Proxied, ProxiedFuture, ProxyLayer},
    report::{Report, Requests, Snapshot},
    server::{ListenerConfig, Server},
    service::Guarded,
    wait::{Done, Reached},
};

/// The peer's address in the extensions of each request, for per-client limits: the type of
/// [`tower_outcome`](tower_outcome::PeerAddr).
#[doc(no_inline)]
pub use tower_outcome::PeerAddr;

#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use self::tls::{Tls, TlsFuture, TlsLayer, TlsService};

#[cfg(all(doctest, feature = "http", feature = "signal"))]
#[doc = include_str!("../README.md")]
struct Readme;
