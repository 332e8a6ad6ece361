//! Helpers for the tests of the crates.
//!
//! - [`Probe`]: a service that panics when it is called without having been ready, responds as the test sets, and counts its
//!   calls, polls, clones and drops.
//! - [`Script`]: a body of scripted frames.
//! - [`contract`]: the rules of `tower-service` that every layer must keep, as functions over a layer.
//! - [`Wakes`]: a waker that counts.
//! - [`alone`]: a test that runs in a separate process.
//! - [`Program`]: a program under test: send signals, read its output line by line.
//! - [`Proxy`] (feature `proxy`): a faulty network on loopback that cuts, delays or resets.
//! - [`Etcd`] (feature `etcd`): real etcd members on loopback, which can be paused, killed and restarted.
#![forbid(unsafe_code)]

mod alone;
mod body;
pub mod contract;
#[cfg(feature = "etcd")]
mod etcd;
mod probe;
mod program;
#[cfg(feature = "proxy")]
mod proxy;
mod wake;

#[cfg(feature = "etcd")]
pub use self::etcd::{Etcd, EtcdBuilder, TlsFiles};
#[cfg(feature = "proxy")]
pub use self::proxy::{Proxy, Way};
pub use self::{
    alone::{alone, passes},
    body::{Broken, Script, Step},
    probe::{Answer, Probe, ProbeFuture, ProbeHandle},
    program::Program,
    wake::Wakes,
};
