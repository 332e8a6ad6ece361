//! What the benchmark programs share. Nothing here is published.
//!
//! - [`rig`]: a loopback listener, a runtime and an end, for the programs that are measured over sockets.
//! - [`drive`]: a closed loop of calls polled by hand, for the layers.
#![forbid(unsafe_code)]

pub mod drive;
pub mod rig;
