//! The crate as its users see it: keepers, gates and fences, over stores that behave and stores that do not.

mod allocation;
mod common;
#[cfg(feature = "testing")]
mod conformance;
#[cfg(feature = "testing")]
mod faulty;
mod fence;
mod http;
mod keeper;
mod layers;
mod memory;
mod propagate;
mod readiness;
mod rules;
#[cfg(all(feature = "testing", not(loom)))]
mod simulation;
