//! The tests are in `tests/`; here the workspace's README is compiled.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
