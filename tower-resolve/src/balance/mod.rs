//! A cloneable balancer over a changing set of endpoints.
//!
//! ```text
//!   updates ──► Driver ── builds, watches, drops ──► endpoint services
//!                 │ publishes                              ▲
//!                 ▼                                        │ clone, ask once, call
//!            one snapshot ◄── load ── Balance::call ── pick ── not ready? the next, and the driver watches it
//! ```
//!
//! # Contract of `poll_ready` and `call`
//!
//! - `poll_ready` is `Ready` at once, as long as the driver lives: endpoints are chosen in `call`, when the request is
//!   known, so no reservation can become stale, and clones hold no capacity that they do not use. It is `Err` only when the
//!   driver is gone; that is terminal.
//! - `call` loads one snapshot, picks among the eligible endpoints, clones the service of the picked one and polls its
//!   readiness **once**. An endpoint that is not ready leaves the eligible set until the driver has seen it ready, and the
//!   next one is tried. If its `poll_ready` *fails*, the driver creates its service again, after a backoff.
//! - If an endpoint returns the request unsent ([`Unsent`](tower_outcome::Unsent)), no byte of it was written: the request
//!   goes to another endpoint. That is failover, not a retry, and happens at most
//!   [`max_endpoints`](BalanceBuilder::max_endpoints) − 1 times.
//! - If no endpoint is eligible the request waits: at most [`max_waiting`](BalanceBuilder::max_waiting) requests, each for
//!   at most [`max_wait`](BalanceBuilder::max_wait). After that, or at once when the set is known to be empty, the error is
//!   [`NoEndpoints`](crate::NoEndpoints).
//! - With [`max_in_flight`](BalanceBuilder::max_in_flight), a full endpoint is skipped, without involving the driver.
//!
//! # The queue
//!
//! Free capacity goes to the request that has waited longest. A request that arrives while requests wait is queued behind
//! them and tries no endpoint, so it cannot overtake, and a rejection because the queue is full costs the same for any
//! number of endpoints. (If [no request may wait](BalanceBuilder::max_waiting), a request tries 128 full endpoints.) A
//! request has 50 ms to take its turn. If it is not polled within that time it keeps its position in the queue, but the turn
//! goes to the next request, so a future that is not polled does not block the queue. A request that an endpoint returned
//! unsent does not queue again, unless no endpoint can take it.
//!
//! # Eligible endpoints
//!
//! Draining endpoints are eligible only while no other endpoint is. Starting and fenced ones never are. Endpoints that are
//! out because of their [health](crate::health) are not, unless too many of a priority and zone are out and no other can
//! take the load. Among the rest, the lowest [priority](crate::Endpoint::priority) and the own [zone](BalanceBuilder::zone)
//! come first, and spill over to the next as they shrink; the next may be a smaller standby, which is assumed to be sized
//! for the full load. With a [`Subset`] the balance sees only a part of the endpoints, and `NoEndpoints` and snapshots refer
//! to that part.
//!
//! # Cost of a change
//!
//! For a delta that changes one endpoint the driver updates that endpoint, two chunks of 64 pointers, and the list of
//! chunks: some microseconds with ten thousand endpoints. A full snapshot is compared with the last one, except for the
//! chunks that both share.
//!
//! The tables of [`RingHash`](crate::policy::RingHash) and [`Maglev`](crate::policy::Maglev) are rebuilt in full, but only
//! when the set changes, not when readiness does. A [large](crate::policy::LARGE_TABLE) table is built on a thread for
//! blocking work, one at a time; changes during a build go into the next one. Until it is complete, requests use the
//! previous table: they skip removed endpoints, and do not see added ones.
//!
//! # Memory of an endpoint
//!
//! Below 350 bytes, including its id and address, plus its service. A hash table adds to that (see
//! [`RingHash`](crate::policy::RingHash) and [`Maglev`](crate::policy::Maglev)), and [`outlier`](BalanceBuilder::outlier) or
//! [`active_check`](BalanceBuilder::active_check) add some hundred bytes.
//!
//! # Panics
//!
//! `call` panics outside of a Tokio runtime if the request has to wait.
//!
//! # Cancel safety
//!
//! Dropping the response future drops the endpoint's future and releases its in-flight slot, or its place in the queue; a
//! turn that it had goes to the next request. The same holds if it panics.

mod builder;
mod driver;
mod ease;
mod future;
mod latency;
mod queue;
mod service;
mod shared;
mod shelf;
mod slot;
mod snapshot;
mod subset;
mod tier;
mod view;
mod watch;

pub use self::{
    builder::BalanceBuilder,
    driver::Driver,
    future::ResponseFuture,
    service::{Balance, Stamp},
    slot::InFlight,
    snapshot::{BalanceSnapshot, EndpointSnapshot},
    subset::Subset,
};
