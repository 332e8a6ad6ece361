//! The health of endpoints that are ready: active checks, and ejection by the outcomes of requests.
//!
//! Readiness is reported by the service of an endpoint: its circuit, its limit, its connection. Health is determined by the
//! balance, for endpoints that accept requests and cannot serve them. Both parts are options of a
//! [`Balance`](crate::Balance), which owns the verdicts:
//!
//! ```text
//!   ActiveCheck ── fails `fall` times, passes `rise` times ───────────────┐
//!                                                                         ├──► out: not picked ──► unless it panics
//!   Outlier ── consecutive failures, or far below the rest ─┐             │
//!                                                           ├── budget ───┘
//!   a circuit in the endpoint's service ────────────────────┘
//! ```
//!
//! - [`Outlier`] ejects by the outcomes of requests, for a time.
//! - [`ActiveCheck`] checks every endpoint periodically, with a [`Probe`]: there are TCP, HTTP and gRPC probes, and a custom
//!   one is a function.
//! - A client has influence on the responses to its requests, and must not take a service down for other clients. So there
//!   is one **budget** ([`EjectionBudget`](tower_outcome::EjectionBudget)) for each priority and zone of how many endpoints
//!   may be out at once because of their responses: half by default ([`max_ejected`](Outlier::max_ejected)), at least one of
//!   two, never the last. Ejections take from it, and so do the circuits of the endpoints, whose services [get a
//!   handle](crate::balance::BalanceBuilder::build) on it.
//! - A broken check must not take a service down either. When fewer than half of a priority and zone are healthy, it
//!   **panics**: health is ignored there, and all ready endpoints are picked
//!   ([`panic_threshold`](crate::balance::BalanceBuilder::panic_threshold)). Not used with fewer than five endpoints in
//!   total.
//! - Both limits hold **only if no other priority or zone can take the load**: while those after it can (5 of 7 of one of
//!   them are ready and healthy), all of one may be out, and it does not panic. So a smaller standby takes over from a
//!   primary that fails, and the primary does not keep half of the requests for ever.
//! - Only endpoints that are meant to serve count: not starting, draining or fenced ones. Only health makes them unhealthy,
//!   never refused connections or lost leases.

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
