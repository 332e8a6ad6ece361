use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

/// How long an open circuit stays open before it lets a probe through.
///
/// Default: 10 s, and about twice as long after each probe that fails, up to 60 s; 10 s again once it has closed. A
/// server's `Retry-After` may raise it.
#[derive(Clone)]
#[must_use]
pub struct Cooldown {
    steps: Steps,
    cap: Duration,
    /// The largest share by which a time is extended; zero in tests that compute with times.
    jitter: f64,
}

#[derive(Clone)]
enum Steps {
    Growing(Duration),
    Fixed(Duration),
    Custom(Arc<dyn Fn() -> Durations + Send + Sync>),
}

type Durations = Box<dyn Iterator<Item = Duration> + Send>;

/// The cooldown of one circuit, in one outage.
pub(crate) struct Backoff {
    cooldown: Cooldown,
    random: fastrand::Rng,
    /// `None` while closed.
    last: Option<Duration>,
    custom: Option<Durations>,
}

// === impl Cooldown ===

impl Cooldown {
    /// Stays open this long at first. Default: 10 s, which gives a restarting process time to come back.
    ///
    /// Each probe that fails about doubles the time: the factor is random between 1.6 and 2.4, so that many clients of one
    /// upstream drift apart. The growth ends at the [`cap`](Self::cap), and starts again once the circuit has closed. Each
    /// time, including the first, is extended by up to a tenth at random: a thousand clients that open at the same instant
    /// do not probe at the same instant.
    ///
    /// Zero allows a probe at once, so only the number of concurrent calls is limited.
    pub const fn new(base: Duration) -> Self {
        Self::with(Steps::Growing(base))
    }

    /// Stays open exactly this long each time, however many probes fail, so clients that open at the same instant probe at
    /// the same instant. Only a server's `Retry-After` is extended, by up to a tenth.
    pub const fn fixed(time: Duration) -> Self {
        Self::with(Steps::Fixed(time))
    }

    /// Stays open as long as the items of an iterator: one item each time the circuit opens, and a new iterator once it has
    /// closed. When the iterator ends, its last item is used again (10 s if there was none); a panic is the same as the end.
    /// The [`cap`](Self::cap) does not apply.
    ///
    /// Function and iterator are called under the circuit's lock: they must not call a circuit that they belong to.
    ///
    /// ```
    /// use std::{iter, time::Duration};
    /// use tower_circuit::Cooldown;
    ///
    /// let cooldown = Cooldown::from_fn(|| {
    ///     iter::successors(Some(Duration::from_secs(1)), |last| Some(*last * 3)).take(5)
    /// });
    /// ```
    pub fn from_fn<F, I>(durations: F) -> Self
    where
        F: Fn() -> I + Send + Sync + 'static,
        I: Iterator<Item = Duration> + Send + 'static,
    {
        Self::with(Steps::Custom(Arc::new(move || Box::new(durations()))))
    }

    const fn with(steps: Steps) -> Self {
        Self {
            steps,
            cap: CAP,
            jitter: EXTENSION,
        }
    }

    /// The longest time that growth leads to, and that a server's `Retry-After` or `grpc-retry-pushback-ms`, on the failure
    /// that opens the circuit, can raise the time to; a random tenth is added to both. Default: 60 s, so that no response can
    /// disable a client for a day.
    ///
    /// With a cap below the base the time is the base: there is no growth, and a server's `Retry-After` has no effect.
    pub fn cap(self, cap: Duration) -> Self {
        Self { cap, ..self }
    }
}

#[cfg(test)]
impl Cooldown {
    pub(crate) fn exact(self) -> Self {
        Self {
            jitter: 0.0,
            ..self
        }
    }
}

impl Default for Cooldown {
    fn default() -> Self {
        Self::new(BASE)
    }
}

impl fmt::Debug for Cooldown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cooldown = f.debug_struct("Cooldown");
        match &self.steps {
            Steps::Growing(base) => cooldown.field("base", base),
            Steps::Fixed(time) => cooldown.field("fixed", time),
            Steps::Custom(_) => cooldown.field("custom", &true),
        };
        cooldown.field("cap", &self.cap).finish()
    }
}

const BASE: Duration = Duration::from_secs(10);
const CAP: Duration = Duration::from_secs(60);
const FACTOR: f64 = 2.0;
const FACTOR_JITTER: f64 = 0.2;
/// A tenth distributes a fleet that waits for ten seconds over one second.
const EXTENSION: f64 = 0.1;

// === impl Backoff ===

impl Backoff {
    /// The longest time that growth and hints lead to.
    pub(crate) fn cap(&self) -> Duration {
        self.cooldown.cap
    }

    pub(crate) fn new(cooldown: Cooldown) -> Self {
        Self {
            cooldown,
            random: fastrand::Rng::new(),
            last: None,
            custom: None,
        }
    }

    /// How long to stay open, this time.
    pub(crate) fn next(&mut self, hint: Option<Duration>) -> Duration {
        let next = self.step();
        self.last = Some(next);
        let hint = hint.unwrap_or_default().min(self.cooldown.cap);
        if hint < next && !matches!(self.cooldown.steps, Steps::Growing(_)) {
            return next;
        }
        self.extend(next.max(hint))
    }

    /// Extends a time at random, and never shortens it: clients that learn it at the same instant must not all return at the
    /// same instant, and none before the server asked for.
    fn extend(&mut self, time: Duration) -> Duration {
        let factor = 1.0 + self.cooldown.jitter * self.random.f64();
        if factor == 1.0 {
            return time;
        }
        Duration::try_from_secs_f64(time.as_secs_f64() * factor)
            .unwrap_or(Duration::MAX)
            .max(time)
    }

    /// The circuit has closed.
    pub(crate) fn reset(&mut self) {
        (self.last, self.custom) = (None, None);
    }

    fn step(&mut self) -> Duration {
        match (&self.cooldown.steps, self.last) {
            (Steps::Fixed(time), _) => *time,
            (Steps::Growing(base), None) => *base,
            (Steps::Growing(base), Some(last)) => {
                let factor =
                    FACTOR * (1.0 - FACTOR_JITTER + 2.0 * FACTOR_JITTER * self.random.f64());
                let grown = Duration::try_from_secs_f64(last.as_secs_f64() * factor)
                    .unwrap_or(Duration::MAX);
                grown.min(self.cooldown.cap).max(*base)
            }
            (Steps::Custom(durations), last) => {
                // A panic under the circuit's lock must not leave a transition unfinished.
                let next = catch_unwind(AssertUnwindSafe(|| {
                    self.custom.get_or_insert_with(|| durations()).next()
                }));
                next.ok().flatten().or(last).unwrap_or(BASE)
            }
        }
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backoff")
            .field("cooldown", &self.cooldown)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seeded(cooldown: Cooldown, seed: u64) -> Backoff {
        let mut backoff = Backoff::new(cooldown);
        backoff.random.seed(seed);
        backoff
    }

    fn is_extended(time: Duration, least: Duration) -> bool {
        (least..=least + least / 10).contains(&time)
    }

    #[test]
    fn a_thousand_clients_do_not_return_at_the_same_instant() {
        let cooldowns = [
            Cooldown::default(),
            Cooldown::default(),
            Cooldown::fixed(SECOND),
        ];
        let hints = [None, Some(30 * SECOND), Some(30 * SECOND)];
        for (cooldown, hint) in cooldowns.into_iter().zip(hints) {
            let mut copies: Vec<_> = (0..1000)
                .map(|seed| seeded(cooldown.clone(), seed).next(hint))
                .collect();
            copies.sort_unstable();
            let least = hint.unwrap_or(BASE);
            assert!(copies.iter().all(|&time| is_extended(time, least)));
            let hundredth = least / 100;
            let most = copies
                .iter()
                .map(|first| {
                    copies
                        .iter()
                        .filter(|&it| it >= first && *it < *first + hundredth)
                        .count()
                })
                .max();
            assert!(
                most < Some(200),
                "{most:?} of 1,000 within a hundredth of the time"
            );
        }
    }

    #[test]
    fn a_hint_raises_the_open_time_up_to_the_cap_and_never_lowers_it() {
        let open_for = |hint| Backoff::new(Cooldown::default()).next(hint);
        assert!(is_extended(open_for(None), BASE));
        assert!(is_extended(open_for(Some(Duration::ZERO)), BASE));
        assert!(is_extended(open_for(Some(30 * SECOND)), 30 * SECOND));
        assert!(is_extended(open_for(Some(Duration::MAX)), CAP));
        let low_cap = Cooldown::new(90 * SECOND).cap(CAP);
        let open_for = Backoff::new(low_cap).next(Some(Duration::MAX));
        assert!(is_extended(open_for, 90 * SECOND));
    }

    #[test]
    fn it_grows_by_a_random_factor_to_the_cap_and_starts_again_after_closing() {
        let mut seen = Vec::new();
        for seed in 0..50 {
            let mut backoff = seeded(Cooldown::default(), seed);
            assert!(is_extended(backoff.next(None), BASE));
            let second = backoff.next(None);
            assert!((16 * SECOND..27 * SECOND).contains(&second), "{second:?}");
            seen.push(second);
            assert!(backoff.next(None) > second);
            assert!(is_extended([(); 2].map(|()| backoff.next(None))[1], CAP));
            backoff.reset();
            assert!(is_extended(backoff.next(None), BASE));
        }
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 40, "jittered");
    }

    #[test]
    fn the_same_seed_gives_the_same_factors() {
        let three = |seed| {
            let mut backoff = seeded(Cooldown::default(), seed);
            [(); 3].map(|()| backoff.next(None))
        };
        assert_eq!(three(7), three(7));
        assert_ne!(three(7), three(8));
    }

    #[test]
    fn the_next_time_does_not_grow_from_a_hint() {
        let mut backoff = Backoff::new(Cooldown::new(SECOND));
        assert!(is_extended(backoff.next(Some(40 * SECOND)), 40 * SECOND));
        assert!(backoff.next(None) < 3 * SECOND);
    }

    #[test]
    fn a_fixed_cooldown_does_not_grow() {
        let mut backoff = Backoff::new(Cooldown::fixed(SECOND));
        assert_eq!([(); 3].map(|()| backoff.next(None)), [SECOND; 3]);
    }

    #[test]
    fn a_custom_iterator_is_made_again_after_closing_and_its_last_item_is_repeated() {
        let mut backoff = Backoff::new(Cooldown::from_fn(|| {
            [1, 3].into_iter().map(Duration::from_secs)
        }));
        assert_eq!([(); 3].map(|()| backoff.next(None).as_secs()), [1, 3, 3]);
        backoff.reset();
        assert!(is_extended(backoff.next(Some(2 * SECOND)), 2 * SECOND));
        assert_eq!(
            Backoff::new(Cooldown::from_fn(std::iter::empty)).next(None),
            BASE
        );
        let panics = Cooldown::from_fn(|| -> std::iter::Empty<_> { panic!("the user's") });
        assert_eq!(Backoff::new(panics).next(Some(SECOND)), BASE);
    }

    #[test]
    fn the_longest_durations_do_not_overflow() {
        let mut backoff = Backoff::new(Cooldown::new(Duration::MAX).cap(Duration::MAX));
        assert_eq!(
            [(); 2].map(|()| backoff.next(Some(Duration::MAX))),
            [Duration::MAX; 2]
        );
    }
}
