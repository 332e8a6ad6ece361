//! What is said against an endpoint that claims to be ready: checks that it fails, and answers that go wrong.
//!
//! Readiness is the endpoint's own word: its circuit, its limit, its connection. Health is ours, for those that accept
//! requests and cannot serve them. Both are options of a [`Balance`](crate::Balance), which is the one owner of the verdicts:
//!
//! ```text
//!   ActiveCheck ── fails `fall` times, passes `rise` times ───────────────┐
//!                                                                         ├──► out: not picked ──► unless it panics
//!   Outlier ── failures in a row, or far below the others ──┐             │
//!                                                           ├── budget ───┘
//!   a circuit in the endpoint's service ────────────────────┘
//! ```
//!
//! - [`Outlier`] ejects by the answers themselves, for a time.
//! - [`ActiveCheck`] asks every endpoint now and then, with a [`Probe`]: TCP, HTTP and gRPC are here, and one of your own
//!   is a function.
//! - What a client can cause, the answers to its requests, must not turn a service off for the others. So there is one
//!   **budget** ([`EjectionBudget`](tower_outcome::EjectionBudget)) for each priority and zone of how many may be out at
//!   once for their answers: half by default ([`max_ejected`](Outlier::max_ejected)), at least one of two, never the last.
//!   Ejections ask it, and so do the circuits of the endpoints, to whose services it is [handed](crate::balance::BalanceBuilder::build).
//! - A broken check must not turn it off either. When fewer than half of a priority and zone are well, it **panics**: health
//!   is ignored there, and all that are ready are picked
//!   ([`panic_threshold`](crate::balance::BalanceBuilder::panic_threshold)). Off below five endpoints in all.
//! - Both hold **only where no other can take the load**: while the priorities and zones after it can (5 of 7 of one of them
//!   are ready and well), all of one may be out, and it does not panic. So a smaller standby takes over from a primary
//!   that fails, instead of half of the requests being sent to it for ever.
//! - Those count that are meant to serve: not the starting, draining or fenced. Against them counts health alone, never
//!   refused connections or lost leases.

mod active;
#[cfg(feature = "http2")]
mod grpc;
mod outlier;
mod probe;
#[cfg(feature = "hyper")]
mod probes;

#[cfg(feature = "http2")]
#[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
pub use self::grpc::GrpcProbe;
#[cfg(feature = "hyper")]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper")))]
pub use self::probes::{HttpProbe, TcpProbe};
pub use self::{
    active::ActiveCheck,
    outlier::Outlier,
    probe::{FromFn, Probe, from_fn},
};
pub(crate) use self::{
    active::{Checkup, Checkups},
    outlier::{Seen, Ward},
};
