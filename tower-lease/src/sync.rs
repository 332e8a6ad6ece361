//! What threads meet in: the standard atomics and Tokio's `Notify`, or loom's and a model in its tests.

#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic;
#[cfg(not(all(test, loom)))]
pub(crate) use tokio::sync::{Notify, futures::OwnedNotified};

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic;

#[cfg(all(test, loom))]
pub(crate) use self::model::{Notify, OwnedNotified, block_on};

#[cfg(all(test, loom))]
mod model;
