use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::slot::{COLD, Stats, WARM};

/// What only time heals: failures are forgotten, new endpoints come up slowly, and who asked for a pause has had it.
#[derive(Debug, Default)]
pub(super) struct Ease {
    failing: Vec<Arc<Stats>>,
    forgive_at: Option<Instant>,
    held: Vec<(Instant, Arc<Stats>)>,
    warming: Vec<(Instant, Arc<Stats>)>,
    warm_at: Option<Instant>,
    window: Duration,
}

// === impl Ease ===

impl Ease {
    /// With a slow start of so long; zero for none.
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            ..Self::default()
        }
    }

    pub(super) fn failing(&mut self, stats: Arc<Stats>, now: Instant) {
        self.failing.push(stats);
        self.forgive_at.get_or_insert(now + FORGIVE_EVERY);
    }

    pub(super) fn held(&mut self, stats: Arc<Stats>, time: Duration, now: Instant) {
        self.held.push((now + time.min(HELD_AT_MOST), stats));
    }

    /// A new endpoint gets a tenth of its share at first, and all of it when the window is over.
    pub(super) fn warm(&mut self, stats: &Arc<Stats>, now: Instant) {
        if self.window.is_zero() {
            return;
        }
        stats.warm_to(COLD);
        self.warming.retain(|(_, known)| !Arc::ptr_eq(known, stats));
        self.warming.push((now, stats.clone()));
        self.warm_at.get_or_insert(now + self.step());
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let released = self.held.iter().map(|(until, _)| *until).min();
        [self.forgive_at, self.warm_at, released]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub(super) fn pass(&mut self, now: Instant) {
        self.held.retain(|(until, stats)| {
            let is_over = *until <= now;
            if is_over {
                stats.release();
            }
            !is_over
        });
        if self.forgive_at.is_some_and(|at| at <= now) {
            self.failing
                .retain(|stats| stats.is_held() || stats.forgive());
            self.forgive_at = (!self.failing.is_empty()).then(|| now + FORGIVE_EVERY);
        }
        if self.warm_at.is_some_and(|at| at <= now) {
            let window = self.window;
            self.warming.retain(|(since, stats)| {
                let part = now.duration_since(*since).as_secs_f64() / window.as_secs_f64();
                let warmth = (part * f64::from(WARM)).min(f64::from(WARM)) as u8;
                stats.warm_to(warmth.max(COLD));
                warmth < WARM
            });
            self.warm_at = (!self.warming.is_empty()).then(|| now + self.step());
        }
    }

    fn step(&self) -> Duration {
        (self.window / 50).max(Duration::from_millis(10))
    }
}

/// An eighth of what is left, twice a second: all is forgotten in half a minute.
const FORGIVE_EVERY: Duration = Duration::from_millis(500);

/// linkerd's cap on what a server may ask for is of this order; a server that needs longer will say so again.
const HELD_AT_MOST: Duration = Duration::from_secs(30);
