use std::{error::Error, fmt, num::NonZeroU64, time::Duration};

use tower_outcome::{Class, Refusal, Refused};

use crate::State;

/// The request was rejected because the lease is not held, or not for long enough.
///
/// Found in an error chain with `downcast_ref`, or as a [`Refusal`] with code `lease-not-held`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHeld {
    refusal: Refusal,
    state: State,
}

/// The request was admitted, and then the lease was lost: its response is replaced or cut off.
///
/// The work may have been done or not. Code `lease-lost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseLost {
    refusal: Refusal,
    epoch: NonZeroU64,
}

/// The request names another epoch than ours: it was meant for an instance that had this address before.
///
/// Code `wrong-instance`; a balancer that meets it should look the endpoint up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongInstance {
    refusal: Refusal,
    epoch: NonZeroU64,
}

/// The values given to a builder do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// The safety margin is half the TTL or more: use a longer TTL, or a smaller drift or guard.
    MarginTooWide {
        /// `ttl × 2 × drift + guard`.
        margin: Duration,
        /// What was asked for.
        ttl: Duration,
    },
    /// Renewals are so far apart that two do not fit into the validity.
    RenewTooSlow {
        /// What was asked for.
        every: Duration,
        /// It must be below this, and not zero.
        limit: Duration,
    },
    /// The store does not grant so short a TTL.
    TtlTooShort {
        /// What was asked for.
        ttl: Duration,
        /// The shortest.
        min: Duration,
    },
}

// === impl NotHeld ===

impl NotHeld {
    pub(crate) const REFUSAL: Refusal = Refusal::new(Class::Unavailable, "lease-not-held");

    pub(crate) const fn new(state: State, retry_after: Option<Duration>) -> Self {
        let refusal = Self::REFUSAL.with_retry_after(retry_after);
        Self { refusal, state }
    }

    /// What had become of the lease. It may be held, but not for as long as was asked for.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// When this instance tries again to get it, where that is known.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            State::Fenced { epoch, cause } => write!(
                f,
                "the lease is not held (fenced at epoch {epoch}: {cause})"
            ),
            state if state.is_held() => f.write_str("the lease is not held for long enough"),
            state => write!(f, "the lease is not held ({state})"),
        }
    }
}

impl Error for NotHeld {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for NotHeld {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

// === impl LeaseLost ===

impl LeaseLost {
    pub(crate) const fn new(epoch: NonZeroU64) -> Self {
        Self {
            refusal: Refusal::new(Class::Unavailable, "lease-lost"),
            epoch,
        }
    }

    /// The epoch that was lost.
    #[must_use]
    pub const fn epoch(&self) -> NonZeroU64 {
        self.epoch
    }
}

impl fmt::Display for LeaseLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lease was lost (epoch {})", self.epoch)
    }
}

impl Error for LeaseLost {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for LeaseLost {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

// === impl WrongInstance ===

impl WrongInstance {
    pub(crate) const fn new(epoch: NonZeroU64) -> Self {
        Self {
            refusal: Refusal::new(Class::Misdirected, "wrong-instance"),
            epoch,
        }
    }

    /// The epoch of the instance that is here.
    #[must_use]
    pub const fn epoch(&self) -> NonZeroU64 {
        self.epoch
    }
}

impl fmt::Display for WrongInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the request is meant for another instance than this (epoch {})",
            self.epoch
        )
    }
}

impl Error for WrongInstance {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for WrongInstance {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

// === impl BuildError ===

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MarginTooWide { margin, ttl } => {
                write!(
                    f,
                    "a safety margin of {margin:?} is half of the TTL of {ttl:?} or more"
                )
            }
            Self::RenewTooSlow { every, limit } => {
                write!(
                    f,
                    "renewals every {every:?} are not in the range above zero and below {limit:?}"
                )
            }
            Self::TtlTooShort { ttl, min } => {
                write!(
                    f,
                    "a TTL of {ttl:?} is shorter than the store's shortest, {min:?}"
                )
            }
        }
    }
}

impl Error for BuildError {}
