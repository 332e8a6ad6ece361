//! What is said against an endpoint that claims to be ready: checks that it fails, and answers that go wrong.
//!
//! Readiness is the endpoint's own word: its circuit, its limit, its connection. Health is ours, for those that accept
//! requests and cannot serve them. Both are options of a [`Balance`](crate::Balance), which is the one owner of the verdicts:
//!
//! ```text
//!   ActiveCheck ── fails `fall` times, passes `rise` times ──┐
//!                                                            ├──► out: not picked ──► unless too many are out
//!   Outlier ── failures in a row, or far below the others ───┘
//! ```
//!
//! - [`Outlier`] ejects by the answers themselves, for a time; no more than a share of all endpoints
//!   ([`max_ejected`](Outlier::max_ejected)).
//! - [`ActiveCheck`] asks every endpoint now and then, with a [`Probe`]: TCP, HTTP and gRPC are here, and one of your own
//!   is a function.
//! - When fewer than half of all endpoints are left, nobody believes it any more, and health is ignored
//!   ([`panic_threshold`](crate::balance::BalanceBuilder::panic_threshold)): a broken check must not take a whole service
//!   down. What counts is health alone, never refused connections or lost leases.
//! - With fewer than five endpoints neither share means anything, so both are off: each may be ejected, but by its answers
//!   never the last that is left.

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
