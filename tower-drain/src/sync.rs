//! The atomics of `count.rs` and `slots.rs`, in a room of their own so that `tests/loom.rs` can put loom's in their place.

pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
