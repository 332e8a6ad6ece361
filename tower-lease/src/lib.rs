//! Serve only while you hold the right to: lease-gated readiness with fencing tokens, for Tower.
//!
//! A [`Lease`] is a right to a key that one holder has at a time and that ends by itself unless it is renewed. A
//! [`Keeper`], a future that you spawn, acquires it in a [`LeaseStore`] and renews it; a [`LeaseLayer`] lets requests
//! in while it is held. It helps when two replicas that serve at once would do harm: a leader, the owner of a shard, a
//! listener that was moved to another machine.
//!
//! ```text
//!             ┌──► LockDelay ──┐                              closed, after an end that was not clean
//!             │                ▼       renewals fail
//!   Acquiring ──── granted ─► Held ◄─────────────► Jeopardy      requests are let in
//!       ▲                     │ │                  │ │
//!       │ reacquire,          │ └───── step down ──┼─┤
//!       │ a new epoch         │                    │ ▼
//!       └──────── Fenced ◄────┴── lost, expired ◄──┘ Closing ──► Released
//! ```
//!
//! # What it promises
//!
//! - Validity counts from **before** the request was sent, less a margin for clocks that drift, on a clock that counts
//!   suspend. Everyone who asks compares the clock himself, so the gate closes on time though the keeper does not get to
//!   run.
//! - The keeper watches its own record, and closes the gate at once when it is gone or another's. A lost epoch never
//!   comes back; a new one has a greater [`FencingToken`].
//! - Requests are checked in `poll_ready` and in `call`, while they run and when they answer; with
//!   [`http`](LeaseLayer::http) their bodies are too. Giving the lease back waits for them.
//!
//! Code and tests name the rule they hold to, as `R-1` to `R-33`; RULES.md, beside the README, lists them with the tests.
//!
//! # Giving it up, and to whom
//!
//! [`Lease::step_down`] closes the gate, waits for those inside, and releases: any contender gets it next, within
//! milliseconds. [`Lease::hand_over`] gives it to the one that is meant, with no vacancy in between. A keeper that dies, or
//! is dropped, leaves it to the TTL.
//!
//! # What it does not
//!
//! A lease by itself does not exclude two holders for certain: a clock may be worse than believed, a store may forget,
//! an effect may be under way when the lease ends. **The token does**, where the resource remembers the highest one it
//! has seen and refuses lower ones: [`PropagateLayer`] sends it, [`fence`] is the resource's side. Where nothing checks
//! tokens, a [`lock_delay`](LeaseBuilder::lock_delay) is the next best. And losing the store for longer than the TTL closes
//! every gate: that is what an exclusive lease means. A [`membership`](LeaseBuilder::membership) may go on.
//!
//! # What it costs
//!
//! A request that is let in costs three reads of the clock (some 45 ns each: in `call`, at the future's first poll, when it
//! answers), a few plain loads, and two atomic additions to a count that all requests of a lease share. No lock and no allocation, with two exceptions: one that is not ready
//! at its first poll takes a place in a `Notify` and in Tokio's timer (a short lock each), so that it is woken at a loss;
//! and with [`http`](LeaseLayer::http) the token in the request's extensions allocates ([`TokenIn`]). The README has the
//! figures. A lease held costs a renewal every quarter of its TTL.
//!
//! # Which layer
//!
//! | | not held | lost between readiness and `call` | lost while it runs | error type |
//! |---|---|---|---|---|
//! | [`LeaseLayer::new`]: reject | ready; `call` answers [`NotHeld`] | [`NotHeld`] | [`LeaseLost`] | `BoxError` |
//! | [`.respond()`](LeaseLayer::respond): servers | ready; `call` answers 503, or `UNAVAILABLE` | the same | the same; a body breaks off | the inner one |
//! | [`.gate()`](LeaseLayer::gate): inside a balancer | pending | the request back, as `Unsent` | [`LeaseLost`] | `BoxError` |
//!
//! The keeper gone for good is `Err` from a gate's `poll_ready`; nothing else ever is. Every layer works for any request
//! type, a connection too; [`.http()`](LeaseLayer::http), implied by `respond`, adds what HTTP can carry. After an
//! upgrade (101) the connection is out of sight: hold a [`LeaseGuard`] for it.
//!
//! "Lost while it runs" is [`InFlight::Cancel`], the default. With [`InFlight::Finish`] and [`InFlight::FinishWithin`] the
//! work goes on for a while, for effects that carry the token; its answer is withheld all the same. Work that has not begun
//! by then, because its future was not polled since `call`, does not begin. "Not held" is "not for
//! long enough" too, with [`min_remaining`](LeaseLayer::min_remaining) or gRPC [`deadlines`](LeaseLayer::deadlines).
//!
//! # Examples
//!
//! With defaults:
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
//! Tuned, for an HTTP server:
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
//! [`NotHeld`], [`LeaseLost`] and [`WrongInstance`] refuse requests, [`fence::StaleToken`] does at a resource; [`Refusal::find`](tower_outcome::Refusal::find)
//! finds each in any error chain. [`BuildError`] says that durations do not fit together.
//!
//! # Panics
//!
//! None of our own, but for a future polled after it was ready. A store that panics takes its keeper down, and that
//! closes the gate. Waiting needs a Tokio runtime with its timer.
//!
//! # Cancel safety
//!
//! A request's future may be dropped at any time; its place inside is free at once. A keeper may be too: the gate closes
//! in `Drop`, and the store's TTL cleans up.
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
    record::{Claim, ClaimId, Grant, Holder, PayloadTooLong, Record, Revision},
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
