//! What the crates' tests share.
//!
//! - [`Probe`]: a service that panics when it is called without having said it is ready, answers what the test tells it
//!   to, and counts everything that happens to it.
//! - [`Script`]: a body of scripted frames.
//! - [`contract`]: the rules of `tower-service` that every layer must keep, as functions over a layer.
//! - [`Wakes`]: a waker that counts.
#![forbid(unsafe_code)]

mod body;
pub mod contract;
mod probe;
mod wake;

pub use self::{
    body::{Script, Step},
    probe::{Answer, Broken, Probe, ProbeFuture, ProbeHandle},
    wake::Wakes,
};
