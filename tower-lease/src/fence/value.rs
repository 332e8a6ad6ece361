use std::{
    cmp::Ordering,
    ops::{Deref, DerefMut},
};

use super::StaleToken;
use crate::FencingToken;

/// A value that only the holder of the highest token seen may change (R-21).
///
/// Where the check and its effect must be one step, this is the tool: a request that passed a
/// [`FenceLayer`](super::FenceLayer) may still be on its way when a higher token comes, but a [`FenceGuard`] borrows
/// the value until the change is done. No I/O, no clock, any protocol; put it behind a lock, or into the task that owns
/// the resource. To survive a restart, write [`floor`](Self::floor) with the value, in one step.
///
/// ```
/// use std::num::NonZeroU64;
/// use tower_lease::{FencingToken, LeaseKey, fence::Fenced};
///
/// let token = |epoch| FencingToken::new(LeaseKey::new("ledger").unwrap(), NonZeroU64::new(epoch).unwrap());
/// // As it was loaded, with the floor that was written beside it.
/// let mut ledger = Fenced::new(token(7), vec!["opened"]);
/// ledger.write(&token(9)).unwrap().push("by the new leader");
/// assert!(ledger.write(&token(7)).is_err(), "the old one does not know yet that it was replaced");
/// assert_eq!((ledger.len(), ledger.floor()), (2, &token(9)));
/// ```
#[derive(Clone, Debug)]
pub struct Fenced<T> {
    floor: FencingToken,
    value: T,
}

/// The right to change a [`Fenced`] value, as long as it is borrowed.
#[derive(Debug)]
#[must_use = "a token that was accepted and not used has raised the floor all the same"]
pub struct FenceGuard<'a, T>(&'a mut Fenced<T>);

// === impl Fenced ===

impl<T> Fenced<T> {
    /// Guards `value`. `floor` is the highest token that was accepted for it so far, from where it is kept; for a value
    /// that is new, the key with epoch 1, which is below every other.
    #[must_use]
    pub const fn new(floor: FencingToken, value: T) -> Self {
        Self { floor, value }
    }

    /// Lets the bearer of `token` change the value, and refuses all lower ones from now on.
    ///
    /// # Errors
    ///
    /// It is lower than the floor, or a token of another key (R-25).
    pub fn write(&mut self, token: &FencingToken) -> Result<FenceGuard<'_, T>, StaleToken> {
        match token.compare(&self.floor) {
            Err(_) => return Err(StaleToken::other_key()),
            Ok(Ordering::Less) => {
                return Err(StaleToken::stale(
                    token.epoch().get(),
                    Some(self.floor.epoch().get()),
                ));
            }
            Ok(Ordering::Equal) => {}
            Ok(Ordering::Greater) => self.floor.clone_from(token),
        }
        Ok(FenceGuard(self))
    }

    /// The highest token that was accepted, to be written with the value.
    #[must_use]
    pub const fn floor(&self) -> &FencingToken {
        &self.floor
    }

    /// The floor and the value.
    #[must_use]
    pub fn into_parts(self) -> (FencingToken, T) {
        (self.floor, self.value)
    }
}

impl<T> Deref for Fenced<T> {
    type Target = T;

    /// Reading needs no token.
    fn deref(&self) -> &T {
        &self.value
    }
}

// === impl FenceGuard ===

impl<T> FenceGuard<'_, T> {
    /// The token that was accepted: the floor now.
    #[must_use]
    pub const fn token(&self) -> &FencingToken {
        &self.0.floor
    }
}

impl<T> Deref for FenceGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> DerefMut for FenceGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.value
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;
    use tower_outcome::{Class, Refused};

    use super::*;
    use crate::LeaseKey;

    fn token(key: &str, epoch: u64) -> FencingToken {
        FencingToken::new(LeaseKey::new(key).unwrap(), NonZeroU64::new(epoch).unwrap())
    }

    #[test]
    fn i2_a_lower_token_is_refused_once_a_higher_one_was_accepted() {
        let mut fenced = Fenced::new(token("a", 1), 0);
        *fenced.write(&token("a", 5)).unwrap() = 5;
        *fenced.write(&token("a", 5)).unwrap() += 1;
        let refused = fenced.write(&token("a", 4)).unwrap_err();
        assert_eq!(
            (
                refused.refusal().class(),
                refused.floor().map(NonZeroU64::get)
            ),
            (Class::Stale, Some(5))
        );
        assert_eq!(
            fenced.write(&token("a", 6)).unwrap().token(),
            &token("a", 6)
        );
        assert_eq!(fenced.into_parts(), (token("a", 6), 6));
    }

    #[test]
    fn r25_a_token_of_another_key_is_no_token() {
        let mut fenced = Fenced::new(token("a", 1), ());
        let refused = fenced.write(&token("b", 9)).unwrap_err();
        assert_eq!(
            (refused.refusal().class(), refused.floor()),
            (Class::BadRequest, None)
        );
        assert_eq!(fenced.floor(), &token("a", 1));
    }

    /// R-24: tokens that were rewound are refused, so a restore shows instead of corrupting.
    #[test]
    fn r24_a_rewound_token_is_refused() {
        let mut fenced = Fenced::new(token("a", 40), ());
        assert!(fenced.write(&token("a", 12)).is_err());
    }

    proptest! {
        /// I2, over any history with restarts in between: what is accepted never goes down.
        #[test]
        fn i2_accepted_tokens_never_go_down(history in prop::collection::vec((1..20_u64, any::<bool>()), 0..60)) {
            let mut fenced = Fenced::new(token("a", 1), 0);
            let mut highest = 1;
            for (epoch, restarts) in history {
                if restarts {
                    let (floor, value) = fenced.into_parts();
                    fenced = Fenced::new(floor, value);
                }
                let accepted = fenced.write(&token("a", epoch)).map(|mut value| *value = epoch).is_ok();
                prop_assert_eq!(accepted, epoch >= highest);
                highest = highest.max(epoch);
                prop_assert_eq!(fenced.floor().epoch().get(), highest);
            }
        }
    }
}
