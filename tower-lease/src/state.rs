use std::{fmt, num::NonZeroU64};

/// The state of a lease, as last reported by its keeper.
///
/// ```text
///                  ┌──► LockDelay ──┐
///   Idle ──► Acquiring ──────────► Held ⇄ Jeopardy ──► Fenced ──► Acquiring (with `reacquire`, a new epoch)
///                                   └────────┴──► Closing ──► Released
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// The keeper has not run yet.
    Idle,
    /// Trying to get it.
    Acquiring,
    /// Held, but no request is admitted yet: the holder before may still be at work (R-18).
    LockDelay {
        /// Which acquisition.
        epoch: NonZeroU64,
    },
    /// Held.
    Held {
        /// Which acquisition.
        epoch: NonZeroU64,
    },
    /// Held, but renewals fail or the own record cannot be watched (R-13): prefer another replica.
    Jeopardy {
        /// Which acquisition.
        epoch: NonZeroU64,
    },
    /// Held for the requests in flight; new ones are rejected, and then the lease is released.
    Closing {
        /// Which acquisition.
        epoch: NonZeroU64,
    },
    /// Lost. This epoch does not come back (R-26).
    Fenced {
        /// Which acquisition.
        epoch: NonZeroU64,
        /// Why.
        cause: Lost,
    },
    /// Given back, or never got: the keeper has ended.
    Released,
}

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lost {
    /// It was not renewed in time.
    Expired,
    /// The store no longer has it: revoked, or deleted before its time.
    Gone,
    /// The store has another holder.
    Replaced,
    /// The store's history went back behind the acquisition: it was restored from a backup (R-24). Raise the floors of the
    /// resources by hand, or restore it so that its revision goes on.
    Rewound,
    /// The keeper was dropped.
    KeeperGone,
}

// === impl State ===

impl State {
    /// Whether it is held and new work may begin: [`Held`](Self::Held) or [`Jeopardy`](Self::Jeopardy).
    #[must_use]
    pub const fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. } | Self::Jeopardy { .. })
    }

    /// The epoch this state is about.
    #[must_use]
    pub const fn epoch(&self) -> Option<NonZeroU64> {
        match self {
            Self::LockDelay { epoch }
            | Self::Held { epoch }
            | Self::Jeopardy { epoch }
            | Self::Closing { epoch }
            | Self::Fenced { epoch, .. } => Some(*epoch),
            Self::Idle | Self::Acquiring | Self::Released => None,
        }
    }

    pub(crate) const fn lasts(&self) -> bool {
        self.is_held() || matches!(self, Self::Closing { .. })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Acquiring => "acquiring",
            Self::LockDelay { .. } => "lock delay",
            Self::Held { .. } => "held",
            Self::Jeopardy { .. } => "jeopardy",
            Self::Closing { .. } => "closing",
            Self::Fenced { .. } => "fenced",
            Self::Released => "released",
        })
    }
}

// === impl Lost ===

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "not renewed in time",
            Self::Gone => "gone from the store",
            Self::Replaced => "held by another",
            Self::Rewound => "the store was rewound",
            Self::KeeperGone => "the keeper was dropped",
        })
    }
}
