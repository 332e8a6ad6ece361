//! What the crates' tests share.
//!
//! - [`Probe`]: a service that panics when it is called without having said it is ready, answers what the test tells it
//!   to, and counts everything that happens to it.
//! - [`Script`]: a body of scripted frames.
//! - [`contract`]: the rules of `tower-service` that every layer must keep, as functions over a layer.
//! - [`Wakes`]: a waker that counts.
//! - [`alone`]: a test that runs in a process of its own.
//! - [`Program`]: a program under test, which is told signals and read line by line.
//! - [`Proxy`] (feature `proxy`): a bad network on loopback, which is cut, slow, or resets.
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
    body::{Script, Step},
    probe::{Answer, Broken, Probe, ProbeFuture, ProbeHandle},
    program::Program,
    wake::Wakes,
};
