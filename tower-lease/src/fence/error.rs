use std::{error::Error, fmt, num::NonZeroU64, time::Duration};

use tower_outcome::{Class, Refusal, Refused};

/// A fence did not let the request pass: its token is not the current one, or not known to be.
///
/// | code | class | what it means |
/// |---|---|---|
/// | `token-stale` | `Stale`: 412, `FAILED_PRECONDITION` | a later holder has been here, or the key is vacant |
/// | `token-ahead` | `Stale` | the mark knows of no such token: made up, or the store was rewound (R-24) |
/// | `token-missing`, `token-malformed`, `token-of-another-key` | `BadRequest`: 400, `INTERNAL` | |
/// | `floor-unknown` | `Unavailable`: 503, `UNAVAILABLE` | the mark did not answer |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleToken {
    refusal: Refusal,
    pub(super) reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Stale { epoch: u64, floor: Option<u64> },
    Ahead { epoch: u64, floor: u64 },
    Missing,
    Malformed,
    OtherKey,
    FloorUnknown,
}

/// A mark that did not answer may answer soon.
const RETRY_AFTER: Duration = Duration::from_secs(1);

// === impl StaleToken ===

impl StaleToken {
    pub(super) const fn stale(epoch: u64, floor: Option<u64>) -> Self {
        Self {
            refusal: Refusal::new(Class::Stale, "token-stale"),
            reason: Reason::Stale { epoch, floor },
        }
    }

    pub(super) const fn ahead(epoch: u64, floor: u64) -> Self {
        Self {
            refusal: Refusal::new(Class::Stale, "token-ahead"),
            reason: Reason::Ahead { epoch, floor },
        }
    }

    pub(super) const fn missing() -> Self {
        Self {
            refusal: Refusal::new(Class::BadRequest, "token-missing"),
            reason: Reason::Missing,
        }
    }

    pub(super) const fn malformed() -> Self {
        Self {
            refusal: Refusal::new(Class::BadRequest, "token-malformed"),
            reason: Reason::Malformed,
        }
    }

    pub(super) const fn other_key() -> Self {
        Self {
            refusal: Refusal::new(Class::BadRequest, "token-of-another-key"),
            reason: Reason::OtherKey,
        }
    }

    pub(super) const fn floor_unknown() -> Self {
        let refusal =
            Refusal::new(Class::Unavailable, "floor-unknown").with_retry_after(Some(RETRY_AFTER));
        Self {
            refusal,
            reason: Reason::FloorUnknown,
        }
    }

    /// The highest epoch that is known of the key, if that is why.
    #[must_use]
    pub const fn floor(&self) -> Option<NonZeroU64> {
        match self.reason {
            Reason::Stale {
                floor: Some(floor), ..
            }
            | Reason::Ahead { floor, .. } => NonZeroU64::new(floor),
            _ => None,
        }
    }
}

impl fmt::Display for StaleToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Stale {
                epoch,
                floor: Some(floor),
            } => {
                write!(
                    f,
                    "the fencing token (epoch {epoch}) is older than the highest seen (epoch {floor})"
                )
            }
            Reason::Stale { epoch, floor: None } => {
                write!(
                    f,
                    "the fencing token (epoch {epoch}) is of a lease that is not held now"
                )
            }
            Reason::Ahead { epoch, floor } => {
                write!(
                    f,
                    "the fencing token (epoch {epoch}) is ahead of the last that was given out (epoch {floor})"
                )
            }
            Reason::Missing => f.write_str("the request carries no fencing token"),
            Reason::Malformed => {
                f.write_str("the request's fencing token is malformed: expected `<key>;<epoch>`")
            }
            Reason::OtherKey => f.write_str("the request's fencing token is of another key"),
            Reason::FloorUnknown => f.write_str("the highest fencing token is not known just now"),
        }
    }
}

impl Error for StaleToken {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for StaleToken {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}
