//! The atomics of `count.rs` and `slots.rs`, in a separate module so that `tests/loom.rs` can replace them by loom's.

pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
