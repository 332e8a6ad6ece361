use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

/// How long an open circuit stays open before it lets a probe through.
///
/// Default: 10 s, and about twice as long after each probe that fails, up to 60 s; 10 s again once it has closed. A
/// server's hint may raise it.
#[derive(Clone)]
pub struct Cooldown {
    steps: Steps,
    cap: Duration,
    seed: Option<u64>,
    /// By how much a time may be longer; zero in tests that compute with times.
    spread: f64,
}

#[derive(Clone)]
enum Steps {
    Growing(Duration),
    Fixed(Duration),
    Own(Arc<dyn Fn() -> Durations + Send + Sync>),
}

type Durations = Box<dyn Iterator<Item = Duration> + Send>;

/// Where one circuit stands in its cooldown.
pub(crate) struct Backoff {
    cooldown: Cooldown,
    random: fastrand::Rng,
    /// Of the present outage; none while closed.
    last: Option<Duration>,
    own: Option<Durations>,
}

// === impl Cooldown ===

impl Cooldown {
    /// Stays open this long at first. Default: 10 s, which gives a restarting process time to come back.
    ///
    /// Each probe that fails doubles the time, more or less: the factor is drawn between 1.6 and 2.4, so that many clients
    /// of one upstream drift apart. It ends at the [`cap`](Self::cap), and begins anew once the circuit has closed. Each time,
    /// the first too, is up to a tenth longer than that, drawn anew: a thousand clients that open at the same instant do not
    /// come back at the same instant.
    ///
    /// Zero lets a probe through at once, so only the number of calls at a time is limited.
    #[must_use]
    pub const fn new(base: Duration) -> Self {
        Self {
            steps: Steps::Growing(base),
            cap: CAP,
            seed: None,
            spread: SPREAD,
        }
    }

    /// Stays open this long each time, however many probes fail: exactly, so clients that open together come back together.
    /// Only a server's hint is spread, up to a tenth later.
    #[must_use]
    pub const fn fixed(time: Duration) -> Self {
        Self {
            steps: Steps::Fixed(time),
            cap: CAP,
            seed: None,
            spread: SPREAD,
        }
    }

    /// Stays open as long as an iterator of your own says: one item each time the circuit opens, a new iterator once it has
    /// closed. When it ends, its last item holds (10 s if there was none); a panic is taken for the end. The
    /// [`cap`](Self::cap) does not bind it.
    ///
    /// Both are called while the circuit opens, under its lock: they must not ask a circuit that they are in themselves.
    ///
    /// ```
    /// use std::{iter, time::Duration};
    /// use tower_circuit::Cooldown;
    ///
    /// let cooldown = Cooldown::from_fn(|| {
    ///     iter::successors(Some(Duration::from_secs(1)), |last| Some(*last * 3)).take(5)
    /// });
    /// ```
    #[must_use]
    pub fn from_fn<F, I>(durations: F) -> Self
    where
        F: Fn() -> I + Send + Sync + 'static,
        I: Iterator<Item = Duration> + Send + 'static,
    {
        let steps = Steps::Own(Arc::new(move || Box::new(durations())));
        Self {
            steps,
            cap: CAP,
            seed: None,
            spread: SPREAD,
        }
    }

    /// Growth ends here, and a server's hint (`Retry-After`, `grpc-retry-pushback-ms`) on the failure that opens the
    /// circuit may raise the open time to this at most, and up to a tenth for the spread. Default: 60 s, so that no response
    /// can switch a client off for a day.
    ///
    /// A cap below the base leaves the base as it is; there is then no growth, and hints have no effect.
    #[must_use]
    pub fn cap(self, cap: Duration) -> Self {
        Self { cap, ..self }
    }

    /// Draws the same factors each time, for tests. Default: a seed from the operating system's randomness.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self {
            seed: Some(seed),
            ..self
        }
    }
}

#[cfg(test)]
impl Cooldown {
    pub(crate) fn exact(self) -> Self {
        Self {
            spread: 0.0,
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
            Steps::Own(_) => cooldown.field("own", &true),
        };
        cooldown.field("cap", &self.cap).finish()
    }
}

const BASE: Duration = Duration::from_secs(10);
const CAP: Duration = Duration::from_secs(60);
const FACTOR: f64 = 2.0;
const JITTER: f64 = 0.2;
/// By how much each time is longer at most. A tenth keeps a fleet apart by a second where it waits for ten.
const SPREAD: f64 = 0.1;

// === impl Backoff ===

impl Backoff {
    /// The longest that hints and growth lead to.
    pub(crate) fn cap(&self) -> Duration {
        self.cooldown.cap
    }

    pub(crate) fn new(cooldown: Cooldown) -> Self {
        let random = cooldown
            .seed
            .map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        Self {
            cooldown,
            random,
            last: None,
            own: None,
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
        self.spread(next.max(hint))
    }

    /// A little longer, and never shorter: what many clients learn at the same instant must not bring all of them back at the
    /// same instant, and none before the server wants it.
    fn spread(&mut self, time: Duration) -> Duration {
        let factor = 1.0 + self.cooldown.spread * self.random.f64();
        if factor == 1.0 {
            return time;
        }
        Duration::try_from_secs_f64(time.as_secs_f64() * factor)
            .unwrap_or(Duration::MAX)
            .max(time)
    }

    /// The circuit has closed.
    pub(crate) fn reset(&mut self) {
        (self.last, self.own) = (None, None);
    }

    fn step(&mut self) -> Duration {
        match (&self.cooldown.steps, self.last) {
            (Steps::Fixed(time), _) => *time,
            (Steps::Growing(base), None) => *base,
            (Steps::Growing(base), Some(last)) => {
                let factor = FACTOR * (1.0 - JITTER + 2.0 * JITTER * self.random.f64());
                let grown = Duration::try_from_secs_f64(last.as_secs_f64() * factor)
                    .unwrap_or(Duration::MAX);
                grown.min(self.cooldown.cap).max(*base)
            }
            (Steps::Own(durations), last) => {
                // Under the circuit's lock nothing may be left half done.
                let next = catch_unwind(AssertUnwindSafe(|| {
                    self.own.get_or_insert_with(|| durations()).next()
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

    fn is_spread(time: Duration, least: Duration) -> bool {
        (least..=least + least / 10).contains(&time)
    }

    #[test]
    fn a_thousand_clients_do_not_come_back_at_the_same_instant() {
        let cooldowns = [
            Cooldown::default(),
            Cooldown::default(),
            Cooldown::fixed(SECOND),
        ];
        let hints = [None, Some(30 * SECOND), Some(30 * SECOND)];
        for (cooldown, hint) in cooldowns.into_iter().zip(hints) {
            let mut times: Vec<_> = (0..1000)
                .map(|seed| Backoff::new(cooldown.clone().seed(seed)).next(hint))
                .collect();
            times.sort_unstable();
            let least = hint.unwrap_or(BASE);
            assert!(times.iter().all(|&time| is_spread(time, least)));
            let hundredth = least / 100;
            let most = times
                .iter()
                .map(|first| {
                    times
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
        assert!(is_spread(open_for(None), BASE));
        assert!(is_spread(open_for(Some(Duration::ZERO)), BASE));
        assert!(is_spread(open_for(Some(30 * SECOND)), 30 * SECOND));
        assert!(is_spread(open_for(Some(Duration::MAX)), CAP));
        let low_cap = Cooldown::new(90 * SECOND).cap(CAP);
        let open_for = Backoff::new(low_cap).next(Some(Duration::MAX));
        assert!(is_spread(open_for, 90 * SECOND));
    }

    #[test]
    fn it_grows_by_a_jittered_factor_to_the_cap_and_begins_anew_after_closing() {
        let mut seen = Vec::new();
        for seed in 0..50 {
            let mut backoff = Backoff::new(Cooldown::default().seed(seed));
            assert!(is_spread(backoff.next(None), BASE));
            let second = backoff.next(None);
            assert!((16 * SECOND..27 * SECOND).contains(&second), "{second:?}");
            seen.push(second);
            assert!(backoff.next(None) > second);
            assert!(is_spread([(); 2].map(|()| backoff.next(None))[1], CAP));
            backoff.reset();
            assert!(is_spread(backoff.next(None), BASE));
        }
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 40, "jittered");
    }

    #[test]
    fn the_same_seed_draws_the_same_factors() {
        let three = |seed| {
            let mut backoff = Backoff::new(Cooldown::default().seed(seed));
            [(); 3].map(|()| backoff.next(None))
        };
        assert_eq!(three(7), three(7));
        assert_ne!(three(7), three(8));
    }

    #[test]
    fn a_hint_is_not_what_the_next_time_grows_from() {
        let mut backoff = Backoff::new(Cooldown::new(SECOND));
        assert!(is_spread(backoff.next(Some(40 * SECOND)), 40 * SECOND));
        assert!(backoff.next(None) < 3 * SECOND);
    }

    #[test]
    fn a_fixed_one_does_not_grow() {
        let mut backoff = Backoff::new(Cooldown::fixed(SECOND));
        assert_eq!([(); 3].map(|()| backoff.next(None)), [SECOND; 3]);
    }

    #[test]
    fn an_iterator_of_ones_own_is_asked_anew_after_closing_and_its_last_item_holds() {
        let mut backoff = Backoff::new(Cooldown::from_fn(|| {
            [1, 3].into_iter().map(Duration::from_secs)
        }));
        assert_eq!([(); 3].map(|()| backoff.next(None).as_secs()), [1, 3, 3]);
        backoff.reset();
        assert!(is_spread(backoff.next(Some(2 * SECOND)), 2 * SECOND));
        assert_eq!(
            Backoff::new(Cooldown::from_fn(std::iter::empty)).next(None),
            BASE
        );
        let panics = Cooldown::from_fn(|| -> std::iter::Empty<_> { panic!("the user's") });
        assert_eq!(Backoff::new(panics).next(Some(SECOND)), BASE);
    }

    #[test]
    fn durations_without_measure_do_not_overflow() {
        let mut backoff = Backoff::new(Cooldown::new(Duration::MAX).cap(Duration::MAX));
        assert_eq!(
            [(); 2].map(|()| backoff.next(Some(Duration::MAX))),
            [Duration::MAX; 2]
        );
    }
}
