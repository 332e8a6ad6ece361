//! Stop calling what keeps failing: a circuit breaker for any Tower service.
//!
//! When an upstream is down, every call to it costs a connection, a timeout and a place in somebody's queue, and the
//! upstream gets no chance to recover. A circuit counts failures, refuses calls for a while once there were too many, and
//! then lets a single call try whether things are well again.
//!
//! ```text
//!            5 failures in a row                 10 s, or what the server asked for
//!   Closed ───────────────────────► Open ───────────────────────────────────────────► HalfOpen
//!   calls pass      calls are refused ▲                                              one probe at a time
//!      ▲                              └────── it fails, or takes more than 10 s ──────┘   │
//!      └───────────────────────────────────── it succeeds ────────────────────────────────┘
//! ```
//!
//! - In half-open **there is always a free place for a probe, or a running deadline**: a probe that is cancelled frees its
//!   place, one that hangs has failed when its time is up.
//! - **A result from before the last transition decides nothing.** Every call carries the generation it was admitted in;
//!   a slow success from before the trip does not close the circuit, a slow failure does not reopen it.
//! - **A call that its caller gave up on** (a timeout further out, a client that hung up) says nothing while it is young
//!   and is a failure once it is a second old.
//! - What a failure is, [`tower_outcome::classify`] says: by default any `Err`; for HTTP and gRPC at the end of the body.
//!   Refusals of our own, further in, are not held against the upstream.
//!
//! It costs a load of one atomic word, a clock reading, a reference and a counter for each call that goes well: no lock,
//! no allocation, no boxed future. Threads do not contend for the counter or the reference. A failure, a transition and
//! every call that is not in the closed state take a short lock. A circuit is about 2 KiB.
//!
//! The state is a value that you own ([`Circuit`]); layers only refer to it, so a layer applied to a hundred routes is
//! still one circuit.
//!
//! # Examples
//!
//! A client with the defaults:
//!
//! ```
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_circuit::{Circuit, CircuitLayer, Open, State};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let circuit = Circuit::new();
//! let mut client = ServiceBuilder::new()
//!     .layer(CircuitLayer::new(&circuit))
//!     .service(service_fn(async |_: ()| Err::<(), _>("connection refused")));
//!
//! for _ in 0..5 {
//!     assert!(client.ready().await.unwrap().call(()).await.is_err());
//! }
//! assert!(matches!(circuit.state(), State::Open { .. }));
//! let error = client.ready().await.unwrap().call(()).await.unwrap_err();
//! assert!(error.is::<Open>());
//! # }
//! ```
//!
//! A server, tuned, that answers 503 (or a gRPC status) and counts 5xx; its error type stays as it is, so the same layer
//! goes on an axum `Router` or a tonic `Server`:
//!
//! ```
//! use std::{convert::Infallible, num::NonZeroU32, time::Duration};
//! use http::{Request, Response};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_circuit::{Circuit, CircuitLayer, Cooldown, Trip};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Infallible> {
//! let circuit = Circuit::builder()
//!     .name("reports")
//!     .trip(Trip::consecutive(NonZeroU32::new(1).unwrap()))
//!     .cooldown(Cooldown::new(Duration::from_secs(2)))
//!     .probe_deadline(Duration::from_secs(5))
//!     .build();
//! let mut server = ServiceBuilder::new()
//!     .layer(CircuitLayer::new(&circuit).respond())
//!     .service(service_fn(async |_: Request<String>| {
//!         let mut response = Response::new(String::new());
//!         *response.status_mut() = http::StatusCode::BAD_GATEWAY;
//!         Ok::<_, Infallible>(response)
//!     }));
//!
//! assert_eq!(server.ready().await?.call(Request::default()).await?.status(), 502);
//! let refused = server.ready().await?.call(Request::default()).await?;
//! assert_eq!(refused.status(), 503);
//! assert_eq!(refused.headers()["retry-after"], "2");
//! # Ok(())
//! # }
//! ```
//!
//! # Where to put it
//!
//! | | stack, outermost first |
//! |---|---|
//! | client, one upstream | retry, **circuit**, timeout, transport |
//! | client, many endpoints | retry, timeout, balancer, **gate** for each endpoint, transport |
//! | server | **circuit, responding**, timeout, handler |
//!
//! Retries outside, so that a refusal is not retried in a hurry ([`tower_outcome::Refusal::find`] tells one); timeouts
//! inside, where they are failures at once.
//!
//! **Do not put the refusing layer inside a balancer**: refusing is fast, and what is fast looks idle, so the broken
//! endpoint draws the traffic. That is what the gate is for.
//!
//! # Errors
//!
//! [`Open`], as an error, an answer, or the cause of a request handed back ([`tower_outcome::Unsent`]). Never from
//! `poll_ready`: that would evict an endpoint from a balancer for good. Errors of the inner service pass through.
//!
//! # Panics
//!
//! `call` panics if `poll_ready` has not said ready on that very clone. A gate that has to wait needs a Tokio runtime with
//! its timer enabled.
//!
//! # Cancel safety
//!
//! Dropping a response future or body at any time, or a panic further in, ends the call in the eyes of the circuit: it is
//! cancelled, and a probe's place is free again. Dropping a ready gate gives its reservation back.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod circuit;
mod cooldown;
mod core;
mod error;
mod future;
mod gate;
mod layer;
#[cfg(all(test, not(loom)))]
mod model;
mod permit;
mod service;
mod state;
mod stripe;
mod sync;
mod trip;
mod word;

pub use tower_outcome::{classify, refuse};

pub use self::{
    circuit::{Circuit, CircuitBuilder},
    cooldown::Cooldown,
    error::Open,
    future::{GateFuture, ResponseFuture},
    gate::CircuitGate,
    layer::{CircuitGateLayer, CircuitLayer},
    permit::Permit,
    service::CircuitService,
    state::{Mode, Reason, Snapshot, State, Totals},
    trip::Trip,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
