//! The public API of the crate: resolvers, balances and upstreams, over scripted sources, real servers and simulated hosts.

mod allocation;
mod balance;
mod budget;
mod cache;
mod cache_model;
#[cfg(feature = "tower")]
mod discover;
#[cfg(feature = "dns")]
mod dns;
#[cfg(feature = "file")]
mod file;
mod health;
mod model;
mod partition;
mod policies;
mod scenarios;
mod storms;
mod support;
mod tables;
#[cfg(feature = "hyper")]
mod upstream;
mod waiting;
