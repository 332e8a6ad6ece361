//! The primitives of the standard library, or those of loom in its tests.

#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU64};

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicU64};
#[cfg(all(test, loom))]
pub(crate) use std::sync::PoisonError;
