//! The atomics and locks, or loom's, which try every order in which threads can meet:
//! `RUSTFLAGS="--cfg loom" cargo test -p tower-bucket --lib loom`.

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{
    Mutex,
    atomic::{AtomicU64, AtomicUsize, fence},
};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{
    Mutex,
    atomic::{AtomicU64, AtomicUsize, fence},
};
