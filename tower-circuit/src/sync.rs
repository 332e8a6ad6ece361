//! The standard library's primitives, or loom's where its tests look at every interleaving.

#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU64};

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicU64};
#[cfg(all(test, loom))]
pub(crate) use std::sync::PoisonError;
