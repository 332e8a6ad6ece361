use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    queue::TURN,
    slot::{COLD, Hub, Stats, TO_COME, WARM},
};

/// Timed recovery: failure-rate decay, slow start, expiry of `Retry-After`, and turns that are not taken.
#[derive(Debug)]
pub(super) struct Ease {
    failing: Vec<Arc<Stats>>,
    forgive_at: Option<Instant>,
    held: Vec<(Instant, Arc<Stats>)>,
    /// Endpoints in slow start, with its beginning.
    warming: Vec<(Instant, Arc<Stats>)>,
    warm_at: Option<Instant>,
    window: Duration,
    /// When the first endpoint became eligible.
    began: Option<Instant>,
    hub: Arc<Hub>,
    lapse_at: Option<Instant>,
}

// === impl Ease ===

impl Ease {
    /// With a slow start of this duration; zero disables it.
    pub(super) fn new(window: Duration, hub: Arc<Hub>) -> Self {
        Self {
            failing: Vec::new(),
            forgive_at: None,
            held: Vec::new(),
            warming: Vec::new(),
            warm_at: None,
            window,
            began: None,
            hub,
            lapse_at: None,
        }
    }

    /// Requests are waiting, so their turns may lapse.
    pub(super) fn waiting(&mut self, now: Instant) {
        self.lapse_at.get_or_insert(now + TURN);
    }

    pub(super) fn failing(&mut self, stats: Arc<Stats>, now: Instant) {
        self.failing.push(stats);
        self.forgive_at.get_or_insert(now + FORGIVE_EVERY);
    }

    pub(super) fn held(&mut self, stats: Arc<Stats>, time: Duration, now: Instant) {
        self.held.push((now + time.min(HELD_AT_MOST), stats));
    }

    /// A new instance; its slow start begins when it is eligible for the first time.
    pub(super) fn add(&self, stats: &Stats) {
        if !self.window.is_zero() {
            stats.warm_to(TO_COME);
        }
    }

    /// The endpoint is eligible, possibly for the first time.
    pub(super) fn eligible(&mut self, stats: &Arc<Stats>, now: Instant) {
        if !stats.is_to_come() {
            return;
        }
        let began = *self.began.get_or_insert(now);
        if now < began + self.window / 10 {
            // All endpoints are new.
            stats.warm_to(WARM);
        } else {
            self.warm(stats, now);
        }
    }

    /// The endpoint starts at a tenth of its share, and has all of it at the end of the window.
    pub(super) fn warm(&mut self, stats: &Arc<Stats>, now: Instant) {
        if self.window.is_zero() {
            return;
        }
        if stats.is_warming() {
            // A repeated start; the endpoint is registered already.
            self.warming.retain(|(_, known)| !Arc::ptr_eq(known, stats));
        }
        stats.warm_to(COLD);
        self.warming.push((now, stats.clone()));
        self.warm_at.get_or_insert(now + self.step());
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let released = self.held.iter().map(|(until, _)| *until).min();
        [self.forgive_at, self.warm_at, self.lapse_at, released]
            .into_iter()
            .flatten()
            .min()
    }

    /// Runs the timers that have expired.
    pub(super) fn pass(&mut self, now: Instant) {
        self.held.retain(|(until, stats)| {
            let is_over = *until <= now;
            if is_over {
                stats.release();
            }
            !is_over
        });
        if self.lapse_at.is_some_and(|at| at <= now) {
            self.lapse_at = self.hub.queue.lapse(now).then(|| now + TURN);
        }
        if self.forgive_at.is_some_and(|at| at <= now) {
            self.failing
                .retain(|stats| stats.is_held() || stats.forgive());
            self.forgive_at = (!self.failing.is_empty()).then(|| now + FORGIVE_EVERY);
        }
        if self.warm_at.is_some_and(|at| at <= now) {
            let window = self.window;
            self.warming.retain(|(since, stats)| {
                if stats.is_retired() {
                    return false;
                }
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

/// An eighth of the remaining value, twice a second: a failure is forgotten within half a minute.
const FORGIVE_EVERY: Duration = Duration::from_millis(500);

/// The maximum pause that a server can ask for, similar to linkerd's; a server that needs longer repeats it.
const HELD_AT_MOST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::Endpoint;

    const WINDOW: Duration = Duration::from_secs(100);

    fn ease(start: Instant) -> Ease {
        let (looks, _) = mpsc::unbounded_channel();
        Ease::new(WINDOW, Arc::new(Hub::new(looks, u32::MAX, 0, false, start)))
    }

    fn stats(ease: &Ease) -> Arc<Stats> {
        let endpoint = Arc::new(Endpoint::new("a", ([127, 0, 0, 1], 80).into()));
        let stats = Arc::new(Stats::new(endpoint, ease.hub.clone()));
        ease.add(&stats);
        stats
    }

    #[test]
    fn the_clock_of_a_slow_start_begins_when_an_endpoint_is_eligible_first() {
        let start = Instant::now();
        let mut ease = ease(start);
        ease.eligible(&stats(&ease), start);
        let late = stats(&ease);
        for seconds in [150, 160] {
            let now = start + Duration::from_secs(seconds);
            ease.pass(now);
            assert!((0.09..0.11).contains(&late.warmth()), "{}", late.warmth());
            ease.eligible(&late, now);
        }
        ease.pass(start + Duration::from_secs(200));
        assert!((0.48..0.52).contains(&late.warmth()), "{}", late.warmth());
        assert!(ease.next().is_some());
        ease.pass(start + Duration::from_secs(250));
        assert_eq!((late.warmth(), ease.next()), (1.0, None));
    }

    #[test]
    fn the_first_endpoints_are_all_as_new() {
        let start = Instant::now();
        let mut ease = ease(start);
        for millis in [0, 3_000, 9_999] {
            let stats = stats(&ease);
            ease.eligible(&stats, start + Duration::from_millis(millis));
            assert_eq!(stats.warmth(), 1.0, "after {millis} ms");
        }
    }

    #[test]
    fn what_was_removed_while_it_warmed_up_is_forgotten_at_the_next_step() {
        let start = Instant::now();
        let mut ease = ease(start);
        ease.eligible(&stats(&ease), start);
        for turn in 0..1_000 {
            let now = start + Duration::from_secs(20 + turn);
            ease.pass(now);
            let stats = stats(&ease);
            ease.eligible(&stats, now);
            stats.retire();
            assert!(ease.warming.len() <= 4, "{}", ease.warming.len());
        }
    }
}
