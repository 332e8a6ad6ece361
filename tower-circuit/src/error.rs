use std::{error::Error, fmt, time::Duration};

use tower_outcome::{Class, Refusal, Refused};

use crate::Reason;

/// The circuit rejected the call: it is open, or half-open with as many probes in flight as allowed. The inner service was
/// not called.
///
/// Its class is [`Class::Unavailable`], its code `circuit-open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    refusal: Refusal,
    reason: Option<Reason>,
}

// === impl Open ===

impl Open {
    pub(crate) fn new(retry_after: Option<Duration>, reason: Option<Reason>) -> Self {
        Self {
            refusal: Refusal::new(Class::Unavailable, "circuit-open").with_retry_after(retry_after),
            reason,
        }
    }

    /// The time to the next possible probe; the circuit may close sooner. `None` while it is forced open.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }

    /// Why the circuit opened last.
    pub const fn reason(&self) -> Option<Reason> {
        self.reason
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the circuit is open")
    }
}

impl Error for Open {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

impl Refused for Open {
    fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}
