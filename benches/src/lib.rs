//! What the benchmark programs share. Nothing here is published.
//!
//! - [`rig`]: a loopback listener, a runtime and an end, for the programs that are measured over sockets.
//! - [`drive`]: a closed loop of calls polled by hand, for the layers.
//! - [`contend`]: the same on several threads at once, in time.
//! - [`balanced`]: a balance whose source and driver are in hand.
#![forbid(unsafe_code)]

pub mod balanced;
pub mod contend;
pub mod drive;
pub mod rig;
