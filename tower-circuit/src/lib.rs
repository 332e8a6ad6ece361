//! Stop calling what keeps failing: a circuit breaker for any Tower service.
//!
//! When an upstream is down, every call to it costs a connection, a timeout and a place in somebody's queue, and the
//! upstream gets no chance to recover. A circuit counts failures, refuses calls for a while once there were too many, and
//! then lets a single call try whether things are well again.
//!
//! ```text
//!       5 failures in a row, or half of at             10 s, or what the server asked for;
//!       least 20 calls within 10 s failed              longer after each probe that fails, up to 60 s
//!   Closed ───────────────────────► Open ───────────────────────────────────────────► HalfOpen
//!   calls pass      calls are refused ▲                                              one probe at a time
//!      ▲                              └────── it fails, or takes more than 10 s ──────┘   │
//!      └───────────────────────────────────── it succeeds ────────────────────────────────┘
//! ```
//!
//! - **When it opens** is a [`Trip`]: failures in a row, a failure ratio over time or over the last calls, a ratio of slow
//!   calls, a [policy of your own](TripPolicy), and any combination. All is counted exactly, in constant memory, and
//!   nothing that has left the window counts. [`Reason`] tells which it was.
//! - **How long it stays open** is a [`Cooldown`]: growing with jitter, fixed, or your own iterator of durations.
//! - In half-open **there is always a free place for a probe, or a running deadline**: a probe that is cancelled frees its
//!   place; when its time is up, one that hangs has failed, and one that was answered and whose body goes on has succeeded. Where
//!   callers give up on one probe after the other, it opens again once they have waited for as long as one probe may take;
//!   not so where their patience says nothing, as that of a server's clients.
//! - **A result from before the last transition decides nothing.** Every call carries the generation it was admitted in;
//!   a slow success from before the trip does not close the circuit, a slow failure does not reopen it.
//! - **A call that its caller gave up on**, unanswered (a timeout further out), says nothing while it is young and is a
//!   failure once it is a second old, counted from the first time that it was waited for. Clients of a server
//!   ([`respond`](CircuitLayer::respond)) hang up as they like: there it is no failure, unless you set an age.
//! - **A good head is a success**, whatever its reader does with the body, and a panic of the inner service is a failure.
//! - What a failure is, [`tower_outcome::classify`] says: by default any `Err`; for HTTP and gRPC at the end of the body.
//!   Refusals of our own, further in, are not held against the upstream.
//!
//! # What it costs
//!
//! A call that goes well: three loads of one atomic word, a reference, a reading of the clock and a compare-and-swap on a
//! counter, for the window and the totals alike; a second reading of the clock if the call has to be waited for. No lock,
//! no allocation, no boxed future, no code of yours but the classification, and threads contend for nothing (eight groups
//! of them; more share). A failure, a transition and a call that may be a probe take a short lock. A call that is refused
//! takes none: it is told from two atomic words (unless a policy of yours opened the circuit, whose reason is under the
//! lock). The README has the numbers.
//!
//! Asking for more costs more, and only who asks: [`Trip::slow_ratio`] a reading of the clock for each call,
//! [`Trip::failure_ratio_of_last`] and [`TripPolicy::wants_successes`] the lock.
//!
//! # Which state
//!
//! The state is a value that you own ([`Circuit`]); layers only refer to it, so a layer applied to a hundred routes is
//! still one circuit. For a circuit for each route, tenant or host there is [`KeyedCircuits`], in bounded memory; for one
//! for each endpoint in a balancer, [`PerEndpoint`].
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
//!     .cooldown(Cooldown::fixed(Duration::from_secs(2)))
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
//! | client, many endpoints | retry, timeout, balancer, **gate** for each endpoint ([`PerEndpoint`]), transport |
//! | server | **circuit, responding**, timeout, handler |
//!
//! Retries outside, so that a refusal is not retried in a hurry ([`tower_outcome::Refusal::find`] tells one); timeouts
//! inside, where they are failures at once.
//!
//! **Do not put the refusing layer inside a balancer**: refusing is fast, and what is fast looks idle, so the broken
//! endpoint draws the traffic. That is what the gate is for, and why only the gate has a `tower::load::Load`.
//!
//! # Features
//!
//! `tower`: `tower::load::Load` for [`CircuitGate`], and `PerEndpoint::discover` for a stream of endpoints. Default: none.
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
//! A response future or body may be dropped at any time, which ends the call and frees a probe's place. A future that is
//! dropped is a cancelled call, or a failure from [an age](CircuitBuilder::cancelled_after) on; a body that is dropped after a
//! good head is a success; a panic further in is a failure. Dropping a ready gate gives its reservation back.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod circuit;
mod cooldown;
mod core;
#[cfg(feature = "tower")]
mod discover;
mod error;
mod future;
mod gate;
mod keyed;
mod keyed_layer;
mod layer;
#[cfg(feature = "tower")]
mod load;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod model;
mod per_endpoint;
mod permit;
mod probe;
mod service;
mod state;
mod stripe;
mod sync;
mod trip;
mod window;
mod word;

pub use tower_outcome::{EjectionBudget, classify, refuse};

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use self::discover::DiscoverCircuits;
pub use self::{
    circuit::{Circuit, CircuitBuilder},
    cooldown::Cooldown,
    error::Open,
    future::{GateFuture, ResponseFuture},
    gate::CircuitGate,
    keyed::{KeyedCircuits, KeyedSnapshot, WhenFull},
    keyed_layer::{KeyedCircuitLayer, KeyedCircuitService},
    layer::{CircuitGateLayer, CircuitLayer, Named, Unnamed},
    per_endpoint::PerEndpoint,
    permit::Permit,
    service::CircuitService,
    state::{Counts, LastCalls, Mode, Reason, Snapshot, State, Totals},
    trip::{Evidence, Ratio, Trip, TripPolicy},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
