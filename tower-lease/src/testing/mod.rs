//! For tests: a [`Conformance`] suite for stores, a [`FaultyStore`] that loses and delays, a [`SkewedClock`] that drifts.

mod clock;
mod conformance;
mod faulty;

pub use self::{
    clock::SkewedClock,
    conformance::Conformance,
    faulty::{Calls, Faults, FaultyStore, FaultyWatch},
};
