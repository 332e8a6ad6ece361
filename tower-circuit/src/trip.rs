use std::num::NonZeroU32;

use crate::Reason;

/// When a closed circuit opens.
///
/// Default: five failures in a row, as Finagle, linkerd and Envoy have it: enough to forgive a stray error, and at any
/// rate of traffic a dead upstream is found in five calls.
///
/// What counts as a failure is the classification's business. A soft answer (`429`) neither counts nor resets the row.
#[derive(Clone, Debug)]
pub struct Trip {
    consecutive: NonZeroU32,
}

/// What the calls since the last transition have shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence {
    pub(crate) failures_in_row: u32,
}

// === impl Trip ===

impl Trip {
    /// Opens after this many failures with no success between them.
    #[must_use]
    pub const fn consecutive(failures: NonZeroU32) -> Self {
        Self { consecutive: failures }
    }

    /// Is asked after each failure, never about a success.
    pub(crate) fn judge(&self, evidence: &Evidence) -> Option<Reason> {
        (evidence.failures_in_row >= self.consecutive.get()).then_some(Reason::ConsecutiveFailures)
    }
}

impl Default for Trip {
    fn default() -> Self {
        Self::consecutive(FAILURES)
    }
}

const FAILURES: NonZeroU32 = NonZeroU32::new(5).unwrap();
