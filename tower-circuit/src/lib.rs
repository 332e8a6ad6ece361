//! A circuit breaker for any Tower service: stops calling an upstream that keeps failing.
//!
//! ```
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_circuit::{Circuit, CircuitLayer, Open, State};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let circuit = Circuit::new();
//! let mut client = ServiceBuilder::new()
//!     .layer(CircuitLayer::new(&circuit)) // HTTP: .classify(classify::Auto::new())
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
//! When an upstream is down, every call to it costs a connection, a timeout and a place in a queue, and the upstream gets no
//! chance to recover. A circuit counts failures, rejects calls for a while once there were too many, and then lets a single
//! call probe whether the upstream has recovered.
//!
//! ```text
//!       5 consecutive failures, or half of             10 s, or the server's Retry-After;
//!       at least 20 calls within 10 s failed           longer after each probe that fails, up to 60 s
//!   Closed ───────────────────────► Open ───────────────────────────────────────────► HalfOpen
//!   calls pass      calls are rejected ▲                                              one probe at a time
//!      ▲                               └────── it fails, or takes more than 10 s ─────┘   │
//!      └────────────────────────────────────── it succeeds ───────────────────────────────┘
//! ```
//!
//! It does not help against overload, for which there are rate and concurrency limits. Where calls are rare, there are never
//! 20 within 10 s, and only consecutive failures open the circuit.
//!
//! - **When it opens** is a [`Trip`]: consecutive failures, a failure ratio, a ratio of slow calls, any combination of them, or
//!   a decision of the application ([`Circuit::trip`]). All counts are exact, in constant memory, and include nothing that has
//!   left the window. [`Reason`] is which condition it was.
//! - **How long it stays open** is a [`Cooldown`]: growing with jitter, fixed, or an iterator of durations.
//! - In half-open **there is always a free slot for a probe, or a deadline**: a probe that is abandoned frees its slot; at its
//!   deadline a probe without a response has failed, and one with a good response head whose body goes on has succeeded. If
//!   callers abandon one probe after the other, the circuit opens again once they have waited for the time of one probe (not if
//!   they are clients of a server).
//! - **An outcome from before the last transition has no effect.** Every call carries the generation it was admitted in: a
//!   late success does not close the circuit, and a late failure does not open it again.
//! - **A call that its caller abandons** without a response (because of a timeout further out) has no effect while it is young,
//!   and is a failure from an age of one second, measured from when it was first pending. Clients of a server
//!   ([`respond`](CircuitLayer::respond)) may disconnect at any time: there it is no failure, unless an age is set.
//! - **A good response head is a success**, however its reader uses the body, and a panic of the inner service is a
//!   failure.
//! - What a failure is, is decided by the [classification](classify): by default any `Err`; for HTTP and gRPC
//!   [`classify::Auto`], at the end of the body. Rejections by other layers further in are ignored, in a [`BoxError`] or as a
//!   [`Refusal`]; if an error type of the application contains them, box it further in (`map_err(BoxError::from)`).
//!
//! # A server
//!
//! With [`respond`](CircuitLayer::respond) the layer responds with 503 (or a gRPC status), counts 5xx, and leaves the error
//! type as it is, so that it can be added to an axum `Router` or a tonic `Server`:
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use http::{Request, Response};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_circuit::{Circuit, CircuitLayer, Cooldown, Trip};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Infallible> {
//! let circuit = Circuit::builder()
//!     .name("reports")
//!     .trip(Trip::consecutive(1))
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
//! let rejected = server.ready().await?.call(Request::default()).await?;
//! assert_eq!(rejected.status(), 503);
//! assert_eq!(rejected.headers()["retry-after"], "2");
//! # Ok(())
//! # }
//! ```
//!
//! # State
//!
//! The state is a value that the application owns ([`Circuit`]); layers refer to it, so a layer applied to a hundred routes is
//! one circuit. Give each dependency its own: if one route of a server fails, the circuit rejects all routes behind it. For a
//! circuit for each route, tenant or host there is [`KeyedCircuits`], in bounded memory; for each endpoint of a balancer,
//! [`PerEndpoint`].
//!
//! # Where to put it
//!
//! | | stack, outermost first |
//! |---|---|
//! | client, one upstream | retry, **circuit**, timeout, transport |
//! | client, many endpoints | retry, timeout, balancer, **gate** for each endpoint ([`PerEndpoint`]), transport |
//! | server | **circuit, responding**, timeout, handler |
//!
//! Retries outside, so that a rejection is not retried at once ([`Refusal::find`] recognizes one); timeouts inside, where they
//! are failures at once.
//!
//! **Do not put the rejecting layer inside a balancer**: a rejection is fast, and the endpoint that responds fastest looks
//! idle, so the broken one attracts the traffic. Use the gate there, which is not ready instead; only the gate has a
//! `tower::load::Load`.
//!
//! A tonic client behind a `CircuitLayer` sees a rejection as `Code::Unknown`, because tonic does not know the error. Convert
//! it outside of the circuit with the feature `tonic`: then the code is `Unavailable`, the metadata has the time to retry, and
//! [`Refusal::find`] still finds the rejection.
//!
//! ```text
//! ServiceBuilder::new()
//!     .map_err(refuse::status)
//!     .layer(CircuitLayer::new(&circuit).classify(classify::Grpc::new()))
//!     .service(channel)
//! ```
//!
//! # Costs
//!
//! A call that succeeds: three loads of one atomic word, a reference count, a reading of the clock and a compare-and-swap on a
//! counter; a second reading of the clock if the call is ever pending. No lock, no allocation, no boxed future. The only user
//! code on this path is the classifier. Counters are sharded eight ways. A clone of a handle or service
//! increments a reference count that all clones share, once for each request of a server that clones its service. A failure, a transition and a call that may be a probe
//! take a short lock; a rejection takes none. [`Trip::slow_ratio`] costs a reading of the clock for each call. The README has
//! the figures.
//!
//! # Features
//!
//! - `tower`: `tower::load::Load` for [`CircuitGate`], and `PerEndpoint::discover` for a stream of endpoints.
//! - `tonic`: `refuse::status`, which converts the error of a tonic client.
//!
//! Default: none.
//!
//! # Errors
//!
//! [`Open`], as an error, a response, or the source of [`Unsent`], which hands the request back. Never from `poll_ready`: that
//! would evict an endpoint from a balancer for good. Errors of the inner service pass through.
//!
//! # Panics
//!
//! `call` panics without a successful `poll_ready` of the same clone. A gate that has to wait needs a Tokio runtime with its
//! timer enabled.
//!
//! # Cancel safety
//!
//! A response future or body may be dropped at any time, which ends the call and frees the slot of a probe. A future that is
//! dropped is an abandoned call, or a failure from [some age](CircuitBuilder::abandoned_is_failure_after) on; a body that is
//! dropped after a good head is a success; a panic further in is a failure. Dropping a ready gate returns its reservation.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod builder;
mod circuit;
mod cooldown;
#[cfg(feature = "tower")]
mod discover;
mod error;
mod fast_path;
mod future;
mod gate;
mod handling;
mod keyed;
mod keyed_layer;
mod layer;
#[cfg(feature = "tower")]
mod load;
mod per_endpoint;
mod permit;
mod service;
mod shared;
mod state;
mod sync;
mod trip;

pub use tower_outcome::{
    BoxError, EjectionBudget, Outcome, Refusal, Settle, Unsent, Verdict, classify, refuse,
};

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use self::discover::DiscoverCircuits;
pub use self::{
    builder::CircuitBuilder,
    circuit::Circuit,
    cooldown::Cooldown,
    error::Open,
    future::{GateFuture, ResponseFuture},
    gate::CircuitGate,
    handling::{CustomClassify, DefaultClassify},
    keyed::{KeyedCircuits, KeyedSnapshot, OnFull},
    keyed_layer::{KeyedCircuitLayer, KeyedCircuitService},
    layer::{CircuitGateLayer, CircuitLayer},
    per_endpoint::PerEndpoint,
    permit::Permit,
    service::CircuitService,
    state::{Counts, Mode, Reason, Snapshot, State, Totals},
    trip::{Ratio, Trip},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
