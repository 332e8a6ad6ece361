//! For tests: a [`Conformance`] suite for stores, a [`FaultyStore`] that loses and delays, a [`SkewedClock`] that drifts.

pub mod conformance;

pub use self::conformance::Conformance;
