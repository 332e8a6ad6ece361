//! The state machine: the phase, from the time, the requested phase and the counts.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use crate::report::{Census, Report, Tally};

/// The phase of a [`Drain`](crate::Drain). Phases only go forward, and their order is that of `Ord`.
///
/// | | ready | new connections | HTTP/1 responses | connections |
/// |---|---|---|---|---|
/// | `Serving` | yes | served | unchanged | stay open |
/// | `Announcing` | **no** | served | `Connection: close` | end after their next response |
/// | `Closing` | no | those still queued, then none | `Connection: close` | are closed gracefully; idle ones get a last chance |
/// | `Forced` | no | none | `Connection: close` | handlers are cancelled |
/// | `Done` | no | none | | open ones are cut and counted as leaked |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// The drain has not begun.
    Serving,
    /// Readiness is withdrawn, while new connections are still served.
    Announcing,
    /// The listeners close and the connections end gracefully.
    Closing,
    /// The close time is over: handlers are cancelled.
    Forced,
    /// The drain is over, and there is a [`Report`].
    Done,
}

/// How long each phase may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) announce: Duration,
    pub(crate) close: Duration,
    pub(crate) force: Duration,
}

#[derive(Debug)]
pub(crate) struct Phases {
    times: Times,
    /// The phase that was requested.
    ordered: Phase,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// -> the phase that is requested.
    Serving,
    /// -> `Closing` at `until`, or on request; `Forced` on request.
    Announcing { began: Instant, until: Instant },
    /// -> `Done` when all counts are zero; `Forced` at `until`, or on request.
    Closing {
        began: Instant,
        until: Instant,
        upgraded: usize,
    },
    /// -> `Done` when all counts are zero, or at `until`.
    Forced {
        began: Instant,
        until: Instant,
        upgraded: usize,
        forced: Tally,
    },
    /// Final.
    Done(Report),
}

// === impl Phase ===

impl Phase {
    pub(crate) const fn from_u8(byte: u8) -> Self {
        match byte {
            0 => Self::Serving,
            1 => Self::Announcing,
            2 => Self::Closing,
            3 => Self::Forced,
            _ => Self::Done,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serving => "serving",
            Self::Announcing => "announcing",
            Self::Closing => "closing",
            Self::Forced => "forced",
            Self::Done => "done",
        })
    }
}

// === impl Phases ===

impl Phases {
    pub(crate) const fn new(times: Times) -> Self {
        Self {
            times,
            ordered: Phase::Serving,
            state: State::Serving,
        }
    }

    pub(crate) const fn phase(&self) -> Phase {
        match self.state {
            State::Serving => Phase::Serving,
            State::Announcing { .. } => Phase::Announcing,
            State::Closing { .. } => Phase::Closing,
            State::Forced { .. } => Phase::Forced,
            State::Done(_) => Phase::Done,
        }
    }

    /// When [`step`](Self::step) will make the next transition, if nothing else happens before.
    pub(crate) const fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Serving | State::Done(_) => None,
            State::Announcing { until, .. }
            | State::Closing { until, .. }
            | State::Forced { until, .. } => Some(until),
        }
    }

    pub(crate) const fn report(&self) -> Option<Report> {
        match self.state {
            State::Done(report) => Some(report),
            _ => None,
        }
    }

    /// Requests a phase. A request for an earlier one changes nothing.
    pub(crate) fn order(&mut self, phase: Phase) {
        self.ordered = self.ordered.max(phase);
    }

    /// Makes at most one transition. The caller repeats it until it returns `None`, with a new census each time.
    pub(crate) fn step(&mut self, now: Instant, census: &Census) -> Option<Phase> {
        let next = self.next(now, census)?;
        Some(self.enter(next))
    }

    /// The only place that changes the state.
    fn enter(&mut self, state: State) -> Phase {
        self.state = state;
        self.phase()
    }

    fn next(&self, now: Instant, census: &Census) -> Option<State> {
        match self.state {
            State::Serving => self.leave(now, census),
            State::Announcing { began, .. } if self.ordered >= Phase::Forced => {
                Some(self.forced(began, now, census.upgraded, census))
            }
            State::Announcing { began, until }
                if self.ordered >= Phase::Closing || now >= until =>
            {
                Some(self.closing(began, now, census))
            }
            State::Closing {
                began, upgraded, ..
            } if census.is_empty() => Some(done(began, now, upgraded, Tally::NONE, census)),
            State::Closing {
                began,
                until,
                upgraded,
            } if self.ordered >= Phase::Forced || now >= until => {
                Some(self.forced(began, now, upgraded, census))
            }
            State::Forced {
                began,
                until,
                upgraded,
                forced,
            } if census.is_empty() || now >= until => {
                Some(done(began, now, upgraded, forced, census))
            }
            _ => None,
        }
    }

    fn leave(&self, now: Instant, census: &Census) -> Option<State> {
        match self.ordered {
            Phase::Serving => None,
            Phase::Announcing => Some(State::Announcing {
                began: now,
                until: now + self.times.announce,
            }),
            Phase::Closing => Some(self.closing(now, now, census)),
            Phase::Forced | Phase::Done => Some(self.forced(now, now, census.upgraded, census)),
        }
    }

    fn closing(&self, began: Instant, now: Instant, census: &Census) -> State {
        State::Closing {
            began,
            until: now + self.times.close,
            upgraded: census.upgraded,
        }
    }

    fn forced(&self, began: Instant, now: Instant, upgraded: usize, census: &Census) -> State {
        State::Forced {
            began,
            until: now + self.times.force,
            upgraded,
            forced: census.here,
        }
    }
}

fn done(began: Instant, now: Instant, upgraded: usize, forced: Tally, census: &Census) -> State {
    State::Done(Report::new(
        now.duration_since(began),
        upgraded,
        forced,
        census,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMES: Times = Times {
        announce: Duration::from_secs(5),
        close: Duration::from_secs(20),
        force: Duration::from_secs(2),
    };

    fn here(guests: usize) -> Census {
        Census {
            here: Tally {
                guests,
                requests: 0,
            },
            left: Tally::NONE,
            upgraded: 0,
            loops: 0,
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn run(phases: &mut Phases, now: Instant, census: &Census) -> Phase {
        while phases.step(now, census).is_some() {}
        phases.phase()
    }

    #[test]
    fn a_phase_is_read_back_from_its_byte() {
        for (byte, phase, name) in [
            (0, Phase::Serving, "serving"),
            (1, Phase::Announcing, "announcing"),
            (2, Phase::Closing, "closing"),
            (3, Phase::Forced, "forced"),
            (4, Phase::Done, "done"),
        ] {
            assert_eq!(Phase::from_u8(byte), phase);
            assert_eq!(phase as u8, byte);
            assert_eq!(phase.to_string(), name);
        }
    }

    #[test]
    fn nothing_moves_without_an_order() {
        let mut phases = Phases::new(TIMES);
        let start = Instant::now();
        assert_eq!(
            run(&mut phases, start + secs(1000), &here(0)),
            Phase::Serving
        );
        assert_eq!(phases.deadline(), None);
    }

    #[test]
    fn an_order_to_announce_goes_through_all_phases_in_their_time() {
        let mut phases = Phases::new(TIMES);
        let start = Instant::now();
        phases.order(Phase::Announcing);
        assert_eq!(run(&mut phases, start, &here(3)), Phase::Announcing);
        assert_eq!(phases.deadline(), Some(start + secs(5)));
        assert_eq!(
            run(&mut phases, start + secs(4), &here(3)),
            Phase::Announcing
        );
        assert_eq!(run(&mut phases, start + secs(5), &here(3)), Phase::Closing);
        assert_eq!(phases.deadline(), Some(start + secs(25)));
        assert_eq!(run(&mut phases, start + secs(25), &here(2)), Phase::Forced);
        assert_eq!(run(&mut phases, start + secs(26), &here(1)), Phase::Forced);
        assert_eq!(run(&mut phases, start + secs(27), &here(1)), Phase::Done);
        let report = phases.report().unwrap();
        assert_eq!(
            (report.forced, report.leaked, report.took),
            (2, 1, secs(27))
        );
    }

    #[test]
    fn announcing_lasts_its_time_without_connections() {
        let mut phases = Phases::new(TIMES);
        let start = Instant::now();
        phases.order(Phase::Announcing);
        assert_eq!(run(&mut phases, start, &here(0)), Phase::Announcing);
        assert_eq!(run(&mut phases, start + secs(5), &here(0)), Phase::Done);
        assert_eq!(phases.report().unwrap().took, secs(5));
    }

    #[test]
    fn closing_ends_when_the_last_one_leaves() {
        let mut phases = Phases::new(TIMES);
        let start = Instant::now();
        phases.order(Phase::Closing);
        assert_eq!(run(&mut phases, start, &here(1)), Phase::Closing);
        assert_eq!(run(&mut phases, start + secs(3), &here(0)), Phase::Done);
        assert!(phases.report().unwrap().is_clean());
    }

    #[test]
    fn an_open_accept_loop_is_waited_for_but_not_counted() {
        let mut phases = Phases::new(TIMES);
        let start = Instant::now();
        phases.order(Phase::Closing);
        let census = Census {
            loops: 1,
            ..here(0)
        };
        assert_eq!(run(&mut phases, start, &census), Phase::Closing);
        assert_eq!(run(&mut phases, start + secs(20), &census), Phase::Forced);
        assert_eq!(run(&mut phases, start + secs(22), &census), Phase::Done);
        assert!(phases.report().unwrap().is_clean());
    }

    #[test]
    fn an_order_to_force_is_obeyed_from_everywhere() {
        for before in [Phase::Serving, Phase::Announcing, Phase::Closing] {
            let mut phases = Phases::new(TIMES);
            let start = Instant::now();
            phases.order(before);
            assert_eq!(run(&mut phases, start, &here(1)), before);
            phases.order(Phase::Forced);
            assert_eq!(run(&mut phases, start + secs(1), &here(1)), Phase::Forced);
            assert_eq!(phases.deadline(), Some(start + secs(3)));
        }
    }

    #[test]
    fn a_lower_order_takes_nothing_back() {
        let mut phases = Phases::new(TIMES);
        let start = Instant::now();
        phases.order(Phase::Closing);
        phases.order(Phase::Announcing);
        assert_eq!(run(&mut phases, start, &here(1)), Phase::Closing);
    }

    #[test]
    fn zero_times_end_at_once() {
        let none = Duration::ZERO;
        let mut phases = Phases::new(Times {
            announce: none,
            close: none,
            force: none,
        });
        phases.order(Phase::Announcing);
        assert_eq!(run(&mut phases, Instant::now(), &here(7)), Phase::Done);
        assert_eq!(phases.report().unwrap().leaked, 7);
    }

    proptest! {
        #[test]
        fn phases_only_go_forward_and_end_in_time(
            orders in proptest::collection::vec((0_u64..40, 0_u8..4, 0_usize..4), 1..20),
        ) {
            let mut phases = Phases::new(TIMES);
            let start = Instant::now();
            let mut now = start;
            let mut began = None;
            let mut seen = Phase::Serving;
            for (wait, order, guests) in orders {
                now += secs(wait);
                phases.order(Phase::from_u8(order));
                let phase = run(&mut phases, now, &here(guests));
                prop_assert!(phase >= seen);
                seen = phase;
                if phase > Phase::Serving {
                    began.get_or_insert(now);
                }
                // Stepped only now and then it may be late, but at most by one step after its deadline.
                prop_assert!(phases.deadline().is_none_or(|deadline| deadline > now || phase == Phase::Serving));
            }
            if began.is_some() {
                // Three more steps are always enough.
                for _ in 0..3 {
                    now += secs(20);
                    run(&mut phases, now, &here(1));
                }
                prop_assert_eq!(phases.phase(), Phase::Done);
            }
        }
    }
}
