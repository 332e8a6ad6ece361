//! A cloneable balancer over a living set of endpoints.
//!
//! ```text
//!   updates ──► Driver ── builds, watches, drops ──► endpoint services
//!                 │ publishes                              ▲
//!                 ▼                                        │ clone, ask once, call
//!            one snapshot ◄── load ── Balance::call ── pick ── not ready? the next, and the driver watches it
//! ```
//!
//! # What `poll_ready` and `call` say
//!
//! - `poll_ready` is `Ready`, at once, as long as the driver lives: endpoints are chosen in `call`, when the request is
//!   there, so no reservation can go stale and clones never hold what they do not use. It is `Err` only when the driver
//!   is gone; that is terminal.
//! - `call` loads one snapshot, picks among the eligible endpoints, clones the service of the picked one and asks it
//!   **once** whether it is ready. One that is not leaves the eligible set until the driver has seen it ready, and the
//!   next one is asked. One whose `poll_ready` *fails* has its service made anew by the driver, after a backoff.
//! - An endpoint that hands the request back ([`Unsent`](tower_outcome::Unsent)) never sent a byte of it: the request
//!   goes to another endpoint. That is failover, not a retry, and happens at most
//!   [`max_endpoints`](BalanceBuilder::max_endpoints) − 1 times.
//! - With nothing eligible the request waits: [`max_waiting`](BalanceBuilder::max_waiting) requests at most, for
//!   [`max_wait`](BalanceBuilder::max_wait) at most. Then, or at once when the set is known to be empty, the answer is
//!   [`NoEndpoints`](crate::NoEndpoints).
//! - With [`max_in_flight`](BalanceBuilder::max_in_flight), an endpoint that has as many as it may is passed over, without
//!   the driver's being involved.
//!
//! # Who waits
//!
//! A place that becomes free goes to the request that waits longest. A request that comes while others wait queues behind
//! them and looks at no endpoint, so it cannot overtake them, and a rejection because the queue is full costs the same
//! for any number of endpoints. (Where [none may wait](BalanceBuilder::max_waiting), a request tries 128 that are full.) A request has 50 ms to take its turn; one that is not polled meanwhile keeps its place in
//! the queue, but the turn goes to the next, so a future that its caller forgot holds up no other request. One that an
//! endpoint handed back does not queue again, unless there is nothing for it.
//!
//! # Which endpoints
//!
//! Draining endpoints are eligible only while nothing else is. Starting and fenced ones never are. Those out for their
//! [health](crate::health) are not, unless too many of a priority and zone are and no other can take the load. Of those
//! left, the lowest [priority](crate::Endpoint::priority) and the own [zone](BalanceBuilder::zone) come first, and spill
//! over to the next as they shrink: to a smaller standby too, which is taken to be made for all of the load. With a
//! [`Subset`] only a part is known at all: `NoEndpoints` and snapshots then tell of that part.
//!
//! # What a change costs
//!
//! A delta of the source that changes one endpoint costs the driver that endpoint, two pieces of 64 pointers, and the list
//! of pieces: some microseconds for ten thousand endpoints. A snapshot of all costs a comparison of all, but of the pieces
//! only that it does not share with the last.
//!
//! The tables of [`RingHash`](crate::policy::RingHash) and [`Maglev`](crate::policy::Maglev) are built anew in full, but
//! only when the set changes, not when readiness does. A [large](crate::policy::LARGE_TABLE) one is built on a thread for
//! blocking work, one at a time; what changes meanwhile goes into the next. Until it is there, requests use the one before:
//! they go round what was removed, and do not know yet what was added.
//!
//! # What an endpoint costs
//!
//! Below 350 bytes, the name and address included, and what its own service needs besides; a table of hashes comes on top
//! ([`RingHash`](crate::policy::RingHash), [`Maglev`](crate::policy::Maglev) tell how much), and with
//! [`outlier`](BalanceBuilder::outlier) or [`active_check`](BalanceBuilder::active_check) some hundred bytes.
//!
//! # Panics
//!
//! `call` does outside of a Tokio runtime, when the request has to wait.
//!
//! # Cancel safety
//!
//! A dropped response future drops the endpoint's future and gives up its place in flight, or its place in the queue; a
//! turn that it had goes to the next one. The same when it panics.

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
