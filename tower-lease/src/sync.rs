//! The atomics of the gate's cell: the standard ones, or loom's in its model.

#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic;

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic;
