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
}

/// A taken place. -> gone when given back or settled; when its time is up, a promise has lapsed and a probe has failed.
#[derive(Clone, Copy, Debug)]
struct Place {
    id: u32,
    until: Instant,
    running: bool,
}

/// What time alone has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elapsed {
    Nothing,
    /// A promise lapsed, so a place is free.
    Lapsed,
    /// A probe was not answered by this instant.
    TimedOut(Instant),
}

// === impl Probes ===

impl Probes {
    pub(crate) fn is_free(&self, rules: &ProbeRules) -> bool {
        self.taken.len() < rules.places.get() as usize
    }

    /// When one of the taken places will be free at the latest; `None` while one is.
    pub(crate) fn next_free(&self, rules: &ProbeRules) -> Option<Instant> {
        if self.is_free(rules) { None } else { self.taken.iter().map(|place| place.until).min() }
    }

    /// Takes a free place, for a probe that starts now or one that is to follow.
    pub(crate) fn take(&mut self, id: u32, until: Instant, running: bool) {
        self.taken.push(Place { id, until, running });
    }

    /// Whether this place is promised to one that has not started.
    pub(crate) fn is_promised(&self, id: u32) -> bool {
        self.taken.iter().any(|place| place.id == id && !place.running)
    }

    /// The probe that was promised this place starts, with its whole time.
    pub(crate) fn start(&mut self, id: u32, until: Instant) {
        self.taken
            .iter_mut()
            .filter(|place| place.id == id)
            .for_each(|place| (place.running, place.until) = (true, until));
    }

    pub(crate) fn free(&mut self, id: u32) {
        self.taken.retain(|place| place.id != id);
    }

    /// A probe succeeded. Says whether that is enough.
    pub(crate) fn succeed(&mut self, id: u32, rules: &ProbeRules) -> bool {
        self.free(id);
        self.succeeded += 1;
        self.succeeded >= rules.successes.get()
    }

    pub(crate) fn pass_time(&mut self, now: Instant) -> Elapsed {
        let late = self.taken.iter().filter(|place| place.until <= now);
        // The first of those that failed: it failed then, not when somebody looked.
        if let Some(first) = late.filter(|place| place.running).map(|place| place.until).min() {
            return Elapsed::TimedOut(first);
        }
        let before = self.taken.len();
        self.taken.retain(|place| place.until > now);
        if self.taken.len() < before { Elapsed::Lapsed } else { Elapsed::Nothing }
    }
}
