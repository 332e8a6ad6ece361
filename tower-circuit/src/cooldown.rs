use std::time::Duration;

/// How long an open circuit stays open before it lets a probe through.
///
/// Default: 10 s, or as long as the server asked for, up to 60 s.
#[derive(Clone, Debug)]
pub struct Cooldown {
    base: Duration,
    cap: Duration,
}

// === impl Cooldown ===

impl Cooldown {
    /// Stays open this long. Default: 10 s, which gives a restarting process time to come back.
    ///
    /// Zero lets a probe through at once, so only the number of calls at a time is limited.
    #[must_use]
    pub const fn new(base: Duration) -> Self {
        Self { base, cap: CAP }
    }

    /// A server's hint (`Retry-After`, `grpc-retry-pushback-ms`) on the failure that opens the circuit may raise the
    /// open time to this at most. Default: 60 s, so that no answer can switch a client off for a day.
    ///
    /// A cap below the base leaves the base as it is; hints then have no effect.
    #[must_use]
    pub const fn cap(self, cap: Duration) -> Self {
        Self { cap, ..self }
    }

    pub(crate) fn open_for(&self, hint: Option<Duration>) -> Duration {
        self.base.max(hint.unwrap_or_default().min(self.cap))
    }
}

impl Default for Cooldown {
    fn default() -> Self {
        Self::new(BASE)
    }
}

const BASE: Duration = Duration::from_secs(10);
const CAP: Duration = Duration::from_secs(60);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_hint_raises_the_open_time_up_to_the_cap_and_never_lowers_it() {
        let open_for = |hint| Cooldown::default().open_for(hint);
        assert_eq!(open_for(None), BASE);
        assert_eq!(open_for(Some(Duration::ZERO)), BASE);
        assert_eq!(open_for(Some(Duration::from_secs(30))), Duration::from_secs(30));
        assert_eq!(open_for(Some(Duration::MAX)), CAP);
        let low_cap = Cooldown::new(Duration::from_secs(90)).cap(CAP);
        assert_eq!(low_cap.open_for(Some(Duration::MAX)), Duration::from_secs(90));
    }
}
