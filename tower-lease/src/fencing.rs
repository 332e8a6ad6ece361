//! Whether the tokens of a store fence, as a type: requiring it of a store that cannot does not compile.

/// What the tokens of a [`LeaseStore`](crate::LeaseStore) are worth: [`Monotonic`] or [`NoFencing`].
pub trait Fencing: sealed::Sealed + Send + Sync + 'static {
    /// Whether the tokens of a key strictly increase, always.
    const IS_MONOTONIC: bool;
}

/// The tokens of a key strictly increase, over deletion and re-creation too: a resource can refuse by them.
#[derive(Clone, Copy, Debug)]
pub enum Monotonic {}

/// Tokens may repeat or go back: nothing to fence with.
#[derive(Clone, Copy, Debug)]
pub enum NoFencing {}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for super::Monotonic {}
    impl Sealed for super::NoFencing {}
}

// === impl Monotonic, NoFencing ===

impl Fencing for Monotonic {
    const IS_MONOTONIC: bool = true;
}

impl Fencing for NoFencing {
    const IS_MONOTONIC: bool = false;
}
