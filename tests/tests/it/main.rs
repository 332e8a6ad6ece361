//! The crates together, in other people's servers.
#![forbid(unsafe_code)]

mod axum;
mod client;
mod discovery;
mod etcdctl;
mod order;
mod pairs;
mod parts;
mod tonic;
mod uploads;
