//! Whether the tokens of a store fence, told as a type, so that asking for it of a store that cannot does not compile
//!

/// What the tokens of a [`LeaseStore`](crate::LeaseStore) are worth: [`Total`] or [`Absent`].
pub trait Fencing: sealed::Sealed + Send + Sync + 'static {
    /// Whether the tokens of a key strictly increase, always.
    const IS_TOTAL: bool;
}

/// The tokens of a key strictly increase, over deletion and re-creation too: a resource can refuse by them.
#[derive(Clone, Copy, Debug)]
pub enum Total {}

/// Tokens may repeat or go back: nothing to fence with.
#[derive(Clone, Copy, Debug)]
pub enum Absent {}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for super::Total {}
    impl Sealed for super::Absent {}
}

// === impl Total, Absent ===

impl Fencing for Total {
    const IS_TOTAL: bool = true;
}

impl Fencing for Absent {
    const IS_TOTAL: bool = false;
}
