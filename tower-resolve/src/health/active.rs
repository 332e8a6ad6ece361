use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};
use tower_outcome::BoxError;

use super::{Probe, probe::BoxProbe};
use crate::{Endpoint, backoff::FOR_EVER};

/// Checks every endpoint periodically.
///
/// An endpoint is used before its first check; the first result decides alone, and from then on it takes
/// [`fall`](Self::fall) consecutive failures to take it out and [`rise`](Self::rise) consecutive successes to bring it back.
/// Checks are spread at random over the interval; if more are due than may run at once, they are late.
///
/// ```
/// use std::time::Duration;
/// use tower_outcome::BoxError;
/// use tower_resolve::{Balance, health::{self, ActiveCheck}};
///
/// let check = ActiveCheck::new(health::from_fn(|_| async { Ok::<_, BoxError>(()) }));
/// let builder = Balance::builder().active_check(check.interval(Duration::from_secs(2)));
/// # let _ = builder;
/// ```
pub struct ActiveCheck {
    probe: BoxProbe,
    interval: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
    max_concurrent: usize,
}

/// All checks of one balance: those that run, and when the next are due. `T` identifies the endpoint of a check.
pub(crate) struct Checkups<T> {
    check: ActiveCheck,
    due: BinaryHeap<Reverse<Due<T>>>,
    running: FuturesUnordered<Running<T>>,
}

type Running<T> = Pin<Box<dyn Future<Output = (Due<T>, bool)> + Send>>;

/// A verdict that changed.
#[derive(Debug)]
pub(crate) struct Checkup<T> {
    pub(crate) whose: T,
    pub(crate) is_well: bool,
}

struct Due<T> {
    at: Instant,
    whose: T,
    trend: Trend,
}

/// The health state of one endpoint. Sans-IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trend {
    /// `None` before the first result.
    is_well: Option<bool>,
    /// Consecutive results that contradict it.
    against: u32,
}

// === impl ActiveCheck ===

impl ActiveCheck {
    /// Checks with `probe`: every 5 s, each for at most 1 s, at most 64 at once.
    pub fn new(probe: impl Probe) -> Self {
        Self {
            probe: Box::new(move |endpoint| Box::pin(probe.probe(endpoint))),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            max_concurrent: 64,
        }
    }

    /// The time from the end of one check to the next, plus or minus a tenth. Default: 5 s: out after 15 s, which is enough
    /// because requests fail over in the meantime.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        Self {
            interval: interval.clamp(Duration::from_millis(1), FOR_EVER),
            ..self
        }
    }

    /// How long a check may take. Default: 1 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: timeout.min(FOR_EVER),
            ..self
        }
    }

    /// How many consecutive successes bring an endpoint back. Default: 2 (as HAProxy).
    #[must_use]
    pub fn rise(self, successes: NonZeroU32) -> Self {
        Self {
            rise: successes.get(),
            ..self
        }
    }

    /// How many consecutive failures take it out. Default: 3 (as HAProxy).
    #[must_use]
    pub fn fall(self, failures: NonZeroU32) -> Self {
        Self {
            fall: failures.get(),
            ..self
        }
    }

    /// How many checks may run at once. Default: 64, which is enough for 300 endpoints that all hang, and for thousands that
    /// answer.
    #[must_use]
    pub fn max_concurrent(self, checks: NonZeroUsize) -> Self {
        Self {
            max_concurrent: checks.get(),
            ..self
        }
    }

    /// Until the next one: no two clients in step.
    fn pause(&self) -> Duration {
        self.interval.mul_f64(0.9 + fastrand::f64() / 5.0)
    }
}

impl fmt::Debug for ActiveCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveCheck")
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("rise", &self.rise)
            .field("fall", &self.fall)
            .field("max_concurrent", &self.max_concurrent)
            .finish_non_exhaustive()
    }
}

// === impl Checkups ===

impl<T: Send + 'static> Checkups<T> {
    pub(crate) fn new(check: ActiveCheck) -> Self {
        Self {
            check,
            due: BinaryHeap::new(),
            running: FuturesUnordered::new(),
        }
    }

    /// Checks this endpoint from now on; the first time soon, spread over a fifth of the interval.
    pub(crate) fn add(&mut self, whose: T, now: Instant) {
        let at = now + self.check.interval.mul_f64(fastrand::f64() / 5.0);
        self.due.push(Reverse(Due {
            at,
            whose,
            trend: Trend {
                is_well: None,
                against: 0,
            },
        }));
    }

    /// When the next check is due, if it could run then.
    pub(crate) fn next(&self) -> Option<Instant> {
        let has_room = self.running.len() < self.check.max_concurrent;
        self.due.peek().filter(|_| has_room).map(|due| due.0.at)
    }

    /// The next verdict that changed. `endpoint` returns the current description; endpoints without one are not checked any
    /// more.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        endpoint: impl Fn(&T) -> Option<Arc<Endpoint>>,
    ) -> Poll<Checkup<T>>
    where
        T: Clone,
    {
        loop {
            self.start(now, &endpoint);
            let Poll::Ready(Some((mut due, is_good))) = Pin::new(&mut self.running).poll_next(cx)
            else {
                return Poll::Pending;
            };
            if endpoint(&due.whose).is_none() {
                continue;
            }
            let verdict = due.trend.tell(is_good, self.check.rise, self.check.fall);
            let whose = due.whose.clone();
            due.at = now + self.check.pause();
            self.due.push(Reverse(due));
            if let Some(is_well) = verdict {
                return Poll::Ready(Checkup { whose, is_well });
            }
        }
    }

    fn start(&mut self, now: Instant, endpoint: &impl Fn(&T) -> Option<Arc<Endpoint>>) {
        while self.next().is_some_and(|at| at <= now)
            && let Some(Reverse(due)) = self.due.pop()
        {
            let Some(endpoint) = endpoint(&due.whose) else {
                continue;
            };
            let probing = timeout(self.check.timeout, (self.check.probe)(&endpoint));
            self.running.push(Box::pin(async move {
                let answer = probing.await.unwrap_or_else(|late| Err(BoxError::from(late)));
                if let Err(error) = &answer {
                    tracing::debug!(endpoint = %endpoint.id(), error = &**error as &dyn std::error::Error, "check");
                }
                (due, answer.is_ok())
            }));
        }
    }
}

// === impl Trend ===

impl Trend {
    /// Records one result. Returns the verdict, if that changes; the first result decides alone, and a first success is no
    /// change.
    fn tell(&mut self, is_good: bool, rise: u32, fall: u32) -> Option<bool> {
        let Some(is_well) = self.is_well else {
            self.is_well = Some(is_good);
            return (!is_good).then_some(false);
        };
        if is_good == is_well {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.against < if is_well { fall } else { rise } {
            return None;
        }
        *self = Self {
            is_well: Some(is_good),
            against: 0,
        };
        Some(is_good)
    }
}

// === impl Due ===

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(answers: &[bool]) -> Vec<Option<bool>> {
        let mut trend = Trend {
            is_well: None,
            against: 0,
        };
        answers
            .iter()
            .map(|answer| trend.tell(*answer, 2, 3))
            .collect()
    }

    #[test]
    fn the_first_answer_decides_alone_and_then_it_takes_some_in_a_row() {
        assert_eq!(
            verdicts(&[false, true, true]),
            [Some(false), None, Some(true)]
        );
        assert_eq!(
            verdicts(&[true, false, false, true, false, false, false]),
            [None, None, None, None, None, None, Some(false)]
        );
        assert_eq!(
            verdicts(&[false, true, false, true, true]),
            [Some(false), None, None, None, Some(true)]
        );
    }
}
