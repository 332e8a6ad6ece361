use std::time::Duration;

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) cap: Duration,
}

// === impl Backoff ===

impl Backoff {
    /// Doubles with each failure up to the cap; of that, a random part between half and all, so that many clients of one
    /// endpoint do not retry in step.
    pub(crate) fn after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.first.saturating_mul(1 << doublings).min(self.cap);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Longer than anything waits, and short enough to be added to a clock.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(86_400 * 365 * 30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_cap_and_is_never_less_than_half() {
        let backoff = Backoff {
            first: Duration::from_millis(50),
            cap: Duration::from_secs(2),
        };
        for (failures, millis) in [
            (0, 50),
            (1, 50),
            (2, 100),
            (5, 800),
            (7, 2000),
            (u32::MAX, 2000),
        ] {
            for _ in 0..100 {
                let after = backoff.after(failures).as_millis();
                assert!(
                    (millis / 2..=millis).contains(&after),
                    "{failures} failures: {after} ms"
                );
            }
        }
    }
}
