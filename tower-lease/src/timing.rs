use std::time::Duration;

use crate::{BootInstant, BuildError, Capabilities};

#[cfg(test)]
mod tests;

/// How long, how often, how careful. Everything that follows from the TTL is computed from the one the store *granted*.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    pub(crate) ttl: Duration,
    pub(crate) drift_ppm: u32,
    pub(crate) guard: Option<Duration>,
    pub(crate) renew_every: Option<Duration>,
    pub(crate) drain_within: Duration,
    pub(crate) reacquire: bool,
    /// For how long a new holder's gate stays closed after an unclean end.
    pub(crate) lock_delay: Duration,
    /// Whether the gate stays open while the store cannot be reached, past the end of validity.
    pub(crate) keeps_serving: bool,
}

const TTL: Duration = Duration::from_secs(10);
const DRIFT_PPM: u32 = 10_000;
const MIN_GUARD: Duration = Duration::from_millis(250);
const MAX_ATTEMPT: Duration = Duration::from_secs(1);
/// As the shortest pause after a failure.
const MIN_PERIOD: Duration = Duration::from_millis(100);

// === impl Timing ===

impl Timing {
    /// What must hold between the values, for the TTL that is asked for.
    pub(crate) fn check(&self, store: &Capabilities) -> Result<(), BuildError> {
        if self.ttl < store.min_ttl() {
            return Err(BuildError::TtlTooShort {
                ttl: self.ttl,
                min: store.min_ttl(),
            });
        }
        let margin = self.margin(self.ttl);
        if margin >= self.ttl / 2 {
            return Err(BuildError::MarginTooWide {
                margin,
                ttl: self.ttl,
            });
        }
        let limit = (self.ttl - margin) / 2;
        match self.renew_every {
            Some(every) if every >= limit || every.is_zero() => {
                Err(BuildError::RenewTooSlow { every, limit })
            }
            _ => Ok(()),
        }
    }

    /// `ttl × 2ρ + guard`: a slow clock here and a fast one there, and the gap between a check and its effect.
    pub(crate) fn margin(&self, ttl: Duration) -> Duration {
        let guard = self.guard.unwrap_or_else(|| MIN_GUARD.max(ttl / 20));
        let drift = (ttl.as_nanos() * 2 * u128::from(self.drift_ppm)).div_ceil(1_000_000);
        guard.saturating_add(Duration::from_nanos(
            u64::try_from(drift).unwrap_or(u64::MAX),
        ))
    }

    /// The part of the margin that is for the gap between a check and its effect, at least: it is not known yet which
    /// TTL will be granted.
    pub(crate) fn guard(&self) -> Duration {
        self.guard.unwrap_or(MIN_GUARD)
    }

    /// Until when a request sent at `sent` and granted for `ttl` is good. Not at all, if `ttl` is too short.
    pub(crate) fn valid_until(&self, sent: BootInstant, ttl: Duration) -> BootInstant {
        sent.after(ttl.saturating_sub(self.margin(ttl)))
    }

    /// A quarter of the TTL, or the configured period; at least two attempts always fit.
    pub(crate) fn renew_every(&self, ttl: Duration) -> Duration {
        let limit = ttl.saturating_sub(self.margin(ttl)) / 2;
        self.renew_every.unwrap_or(ttl / 4).min(limit)
    }

    /// A store may grant a TTL that is shorter than its margin, though never asked for one. It is not asked more often than
    /// after a failure because of that; but for a TTL that was asked for, its own period counts.
    pub(crate) fn least_period(&self) -> Duration {
        self.renew_every(self.ttl).min(MIN_PERIOD)
    }

    /// How long one attempt may take.
    pub(crate) fn attempt(&self, ttl: Duration) -> Duration {
        (ttl / 10).min(MAX_ATTEMPT)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ttl: TTL,
            drift_ppm: DRIFT_PPM,
            guard: None,
            renew_every: None,
            drain_within: TTL,
            reacquire: false,
            lock_delay: Duration::ZERO,
            keeps_serving: false,
        }
    }
}
