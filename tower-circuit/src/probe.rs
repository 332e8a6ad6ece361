//! The places of a half-open circuit's probes. At any time one is free, or there is an instant at which one will be.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;

/// How many probes there may be, and how long each may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeRules {
    /// At once.
    pub(crate) places: NonZeroU32,
    /// How many must succeed before the circuit closes.
    pub(crate) successes: NonZeroU32,
    pub(crate) deadline: Duration,
}

/// The probes of one half-open state.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    taken: Vec<Place>,
    succeeded: u32,
    /// For how long callers have waited for probes that they gave up, without any answer between.
    silent: Duration,
}

/// A taken place. -> gone when given back or settled, or [late](Late) when its time is up.
#[derive(Clone, Copy, Debug)]
struct Place {
    id: u32,
    until: Instant,
    stage: Stage,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Promised,
    /// Sent, and not answered.
    Running,
    /// A good head has come, and the rest is on its way.
    Answered {
        slow: bool,
    },
}

impl Stage {
    /// Those that have failed come first.
    const fn rank(self) -> u8 {
        match self {
            Self::Running => 0,
            Self::Answered { slow: true } => 1,
            Self::Promised | Self::Answered { slow: false } => 2,
        }
    }
}

/// A place whose time was up at this instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// The promise has lapsed.
    Promised,
    /// Nobody answered.
    Running(Instant),
    /// It was answered in time, and is well so far.
    Answered,
    /// It was answered, but not in time.
    AnsweredSlowly(Instant),
}

// === impl Probes ===

impl Probes {
    pub(crate) fn is_free(&self, rules: &ProbeRules) -> bool {
        self.taken.len() < rules.places.get() as usize
    }

    /// When one of the taken places will be free at the latest; `None` while one is.
    pub(crate) fn next_free(&self, rules: &ProbeRules) -> Option<Instant> {
        if self.is_free(rules) {
            None
        } else {
            self.taken.iter().map(|place| place.until).min()
        }
    }

    /// Takes a free place, for a probe that starts now or one that is to follow.
    pub(crate) fn take(&mut self, id: u32, until: Instant, running: bool) {
        let stage = if running {
            Stage::Running
        } else {
            Stage::Promised
        };
        self.taken.push(Place { id, until, stage });
    }

    /// Whether this place is promised to one that has not started.
    pub(crate) fn is_promised(&self, id: u32) -> bool {
        self.taken
            .iter()
            .any(|place| place.id == id && place.stage == Stage::Promised)
    }

    /// The probe that was promised this place starts, with its whole time.
    pub(crate) fn start(&mut self, id: u32, until: Instant) {
        self.place(id)
            .for_each(|place| (place.stage, place.until) = (Stage::Running, until));
    }

    /// A good head has come, in time or not.
    pub(crate) fn answer(&mut self, id: u32, slow: bool) {
        self.silent = Duration::ZERO;
        self.place(id)
            .for_each(|place| place.stage = Stage::Answered { slow });
    }

    /// Gives a place back. `false`: it was given back already.
    pub(crate) fn free(&mut self, id: u32) -> bool {
        let before = self.taken.len();
        self.taken.retain(|place| place.id != id);
        self.taken.len() < before
    }

    /// A probe succeeded. Says whether that is enough.
    pub(crate) fn succeed(&mut self, rules: &ProbeRules) -> bool {
        self.silent = Duration::ZERO;
        self.succeeded += 1;
        self.succeeded >= rules.successes.get()
    }

    /// The caller of a running probe gives up. Whether callers have waited for as long as one probe may take by now, one
    /// after the other, and none was answered.
    pub(crate) fn give_up(&mut self, id: u32, rules: &ProbeRules, now: Instant) -> bool {
        let running = |place: &&Place| place.id == id && place.stage == Stage::Running;
        if let Some(place) = self.taken.iter().find(running) {
            let waited = rules.deadline.saturating_sub(place.until - now);
            self.silent = self.silent.saturating_add(waited);
        }
        self.silent >= rules.deadline
    }

    /// Gives back the place whose time was up first; of those of one instant, one that failed.
    pub(crate) fn take_late(&mut self, now: Instant) -> Option<Late> {
        let late = self
            .taken
            .iter()
            .enumerate()
            .filter(|(_, place)| place.until <= now);
        let (first, _) = late.min_by_key(|(_, place)| (place.until, place.stage.rank()))?;
        let Place { until, stage, .. } = self.taken.remove(first);
        Some(match stage {
            Stage::Promised => Late::Promised,
            Stage::Running => Late::Running(until),
            Stage::Answered { slow: false } => Late::Answered,
            Stage::Answered { slow: true } => Late::AnsweredSlowly(until),
        })
    }

    fn place(&mut self, id: u32) -> impl Iterator<Item = &mut Place> {
        self.taken.iter_mut().filter(move |place| place.id == id)
    }
}
