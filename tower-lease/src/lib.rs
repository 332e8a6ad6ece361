//! Lease-gated readiness with fencing tokens, for Tower: requests are served only while this process holds a lease.
//!
//! A [`Lease`] is a right to a key that one holder has at a time and that expires unless it is renewed. A [`Keeper`], a
//! future that you spawn, acquires it in a [`LeaseStore`] and renews it; a [`LeaseLayer`] admits requests while it is held.
//! It helps when two replicas that serve at the same time would do harm: a leader, the owner of a shard, a listener that
//! was moved to another machine.
//!
//! ```
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_lease::{Holder, Lease, LeaseKey, LeaseLayer, MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_outcome::BoxError> {
//! let store = MemoryStore::new();
//! let (lease, keeper) = Lease::builder(store, LeaseKey::new("leader")?, Holder::new("node-1")).build()?;
//! tokio::spawn(keeper.run());
//!
//! let double = service_fn(|n: u32| async move { Ok::<_, std::io::Error>(2 * n) });
//! let service = LeaseLayer::new(&lease).layer(double);
//!
//! let token = lease.held().await?;
//! println!("we lead, epoch {}", token.epoch());
//! assert_eq!(service.oneshot(21).await?, 42);
//!
//! lease.step_down().await;
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//!             ┌──► LockDelay ──┐                              closed, after an unclean end
//!             │                ▼       renewals fail
//!   Acquiring ──── granted ─► Held ◄─────────────► Jeopardy      requests are admitted
//!       ▲                     │ │                  │ │
//!       │ reacquire,          │ └───── step down ──┼─┤
//!       │ a new epoch         │                    │ ▼
//!       └──────── Fenced ◄────┴── lost, expired ◄──┘ Closing ──► Released
//! ```
//!
//! # Guarantees
//!
//! - Validity counts from **before** the request to the store was sent, less a margin for clock drift, on a clock that
//!   counts suspend. Every check compares the clock, so the gate closes on time even if the keeper does not get to run.
//! - The keeper watches its own record, and closes the gate at once when the record is deleted or replaced. A lost epoch
//!   never comes back; a new one has a greater [`FencingToken`].
//! - Requests are checked in `poll_ready` and in `call`, while they run, and when they complete; with
//!   [`http`](LeaseLayer::http) their response bodies are checked too. The lease is released after they have ended.
//!
//! Code and tests cite the rules that they implement as `R-1` to `R-33`; RULES.md, beside the README, lists them with the
//! tests.
//!
//! # Ending a lease
//!
//! [`Lease::step_down`] closes the gate, waits for requests in flight, and releases: any contender acquires the lease
//! within milliseconds. [`Lease::hand_over`] transfers it to a chosen successor, with no vacancy in between. If a keeper
//! dies or is dropped, the lease ends with its TTL.
//!
//! # Limits
//!
//! A lease alone does not exclude two holders with certainty: a clock may drift more than the margin covers, a store may
//! lose data, a write may still be on its way when the lease ends. **The token does**, if the resource remembers the
//! highest token it has seen and rejects lower ones: [`PropagateLayer`] sends the token, [`fence`] checks it at the
//! resource. If nothing checks tokens, use a [`lock_delay`](LeaseBuilder::lock_delay). An outage of the store that lasts
//! longer than the TTL closes every gate; that is inherent in an exclusive lease. A
//! [`membership`](LeaseBuilder::membership) may go on.
//!
//! # Costs
//!
//! An admitted request costs three readings of the clock (about 45 ns each: in `call`, at the first poll of its future, at
//! its completion), a few plain loads, and two atomic additions to a counter that all requests of a lease share. It takes
//! no lock and does not allocate, with two exceptions: a request that is pending at its first poll registers with a
//! `Notify` and with Tokio's timer (a short lock each), so that it wakes when the lease is lost; and with
//! [`http`](LeaseLayer::http) the token in the request's extensions allocates ([`TokenIn`]). The README has figures. A held
//! lease costs one renewal per quarter of its TTL.
//!
//! # Choosing a layer
//!
//! | | not held | lost between readiness and `call` | lost in flight | error type |
//! |---|---|---|---|---|
//! | [`LeaseLayer::new`] rejects with an error | ready; `call` returns [`NotHeld`] | [`NotHeld`] | [`LeaseLost`] | `BoxError` |
//! | [`.respond()`](LeaseLayer::respond) for servers | ready; 503, or `UNAVAILABLE` in gRPC | the same | the same; a body is cut off | that of the inner service |
//! | [`.gate()`](LeaseLayer::gate) inside a balancer | pending | the request is returned in `Unsent` | [`LeaseLost`] | `BoxError` |
//!
//! A gate's `poll_ready` fails once the keeper has ended for good; no other `poll_ready` fails because of the lease. Every
//! layer works for any request type, including connections; [`.http()`](LeaseLayer::http), implied by `respond`, adds what
//! HTTP can carry. After an upgrade (101) the layer no longer sees the connection: hold a [`LeaseGuard`] for it.
//!
//! In-flight requests are cancelled at a loss by default ([`InFlight::Cancel`]). With [`InFlight::Finish`] and
//! [`InFlight::FinishWithin`] the work goes on for a time, for writes that carry the token; its response is replaced all
//! the same. A future that was not polled before the loss does not start. A lease also counts as not held if too little
//! validity remains, with [`min_remaining`](LeaseLayer::min_remaining) or gRPC [`deadlines`](LeaseLayer::deadlines).
//!
//! # An HTTP server
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//!
//! use http::{Request, Response};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_lease::{FencingToken, Holder, Lease, LeaseKey, LeaseLayer, MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_outcome::BoxError> {
//! let holder = Holder::new("echo-0").with_payload("10.0.0.7:8080")?;
//! let (lease, keeper) = Lease::builder(MemoryStore::new(), LeaseKey::new("svc/echo/0")?, holder)
//!     .ttl(Duration::from_secs(5))
//!     .reacquire(true)
//!     .drain_within(Duration::from_secs(20))
//!     .build()?;
//! tokio::spawn(keeper.run());
//!
//! let app = service_fn(|request: Request<String>| async move {
//!     let token: &FencingToken = request.extensions().get().expect("the layer puts it there");
//!     Ok::<_, Infallible>(Response::new(format!("epoch {}", token.epoch())))
//! });
//! let app = LeaseLayer::new(&lease).min_remaining(Duration::from_secs(1)).respond().layer(app);
//! # lease.held().await?;
//! # let response = app.oneshot(Request::new(String::new())).await?;
//! # assert_eq!(response.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! [`NotHeld`], [`LeaseLost`] and [`WrongInstance`] reject requests, [`fence::StaleToken`] rejects them at a resource; [`Refusal::find`](tower_outcome::Refusal::find)
//! finds each in any error chain. [`BuildError`] means that durations do not fit together.
//!
//! # Panics
//!
//! Only a future that is polled after it was ready panics. A store that panics takes its keeper down, and that
//! closes the gate. Waiting needs a Tokio runtime with its timer.
//!
//! # Cancel safety
//!
//! A request's future may be dropped at any time; the request then no longer counts as in flight. A keeper may be dropped
//! too: the gate closes in `Drop`, and the record ends with its TTL.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
mod builder;
mod change_or_deadline;
mod clock;
mod counters;
mod document;
mod document_store;
mod error;
pub mod fence;
pub mod fencing;
mod future;
mod handle;
mod keeper;
mod layer;
mod lease;
mod lease_cell;
#[cfg(feature = "tower")]
mod load;
mod memory;
mod propagate;
pub mod protocol;
mod readiness;
mod record;
mod service;
mod settings;
mod snapshot;
mod state;
mod store;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;
mod timing;
mod token;

pub use self::{
    body::LeaseBody,
    builder::{LeaseBuilder, OnStoreOutage},
    clock::{BootClock, BootInstant, Clock, TokioClock},
    counters::RequestCounts,
    document::{Document, Swap, Swapped},
    document_store::{DocumentStore, Listing},
    error::{BuildError, LeaseLost, NotHeld, WrongInstance},
    future::{GateFuture, ResponseFuture},
    handle::{Lease, LeaseGuard, NotHandedOver},
    keeper::Keeper,
    layer::{LeaseGateLayer, LeaseLayer},
    memory::{MemoryStore, MemoryWatch},
    propagate::{PropagateFuture, PropagateLayer, PropagateService},
    record::{Claim, ClaimId, Grant, Holder, InvalidClaim, PayloadTooLong, Record, Revision},
    service::{LeaseGate, LeaseService},
    settings::{InFlight, TokenIn},
    snapshot::{Failures, Histogram, Losses, Snapshot},
    state::{Lost, State},
    store::{Acquired, Capabilities, Fault, LeaseStore, StoreError, Watch, WatchEvent},
    token::{FencingToken, InvalidKey, InvalidToken, LeaseKey, OtherKey},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
