//! The public API: circuits by themselves, and their layers around services that check the contract.

mod allocation;
mod auto_traits;
mod common;
#[cfg(feature = "tower")]
mod endpoints;
mod events;
mod faults;
mod gate;
mod keyed;
mod load;
mod service;
mod trips;
