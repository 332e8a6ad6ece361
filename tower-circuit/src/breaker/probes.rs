//! The probes of a half-open circuit. At any time a slot is free, or there is an instant at which one will be.

use std::time::Duration;

use tokio::time::Instant;

/// How many probes there may be, and how long each may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeSettings {
    /// Not zero.
    pub(crate) max_concurrent: u32,
    /// How many must succeed before the circuit closes.
    pub(crate) successes: u32,
    pub(crate) deadline: Duration,
}

/// The probes of one half-open state.
#[derive(Debug, Default)]
pub(super) struct Probes {
    taken: Vec<Slot>,
    succeeded: u32,
    /// How long callers have waited for probes that they abandoned, without a response to any in between.
    unanswered_wait: Duration,
}

/// A taken slot. -> gone when freed, or [expired](Expired) at its deadline.
#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u32,
    until: Instant,
    stage: Stage,
}

/// The stage of a probe, which begins as one of the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// For a call that is to follow.
    Reserved,
    /// Without a response so far.
    Running,
    /// A good response head has arrived, and its body follows.
    Answered { slow: bool },
}

/// A slot whose deadline was this instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    Reserved,
    Running(Instant),
    Answered,
    AnsweredSlowly(Instant),
}

// === impl Probes ===

impl Probes {
    pub(super) fn has_free_slot(&self, settings: &ProbeSettings) -> bool {
        self.taken.len() < settings.max_concurrent as usize
    }

    /// When a slot will be free at the latest; `None` while one is.
    pub(super) fn next_free(&self, settings: &ProbeSettings) -> Option<Instant> {
        if self.has_free_slot(settings) {
            None
        } else {
            self.taken.iter().map(|slot| slot.until).min()
        }
    }

    /// Takes a free slot.
    pub(super) fn take(&mut self, number: u32, until: Instant, stage: Stage) {
        self.taken.push(Slot {
            number,
            until,
            stage,
        });
    }

    pub(super) fn is_reserved(&self, number: u32) -> bool {
        let mut slots = self.taken.iter();
        slots.any(|slot| slot.number == number && slot.stage == Stage::Reserved)
    }

    /// The probe with this reservation starts, and has until then.
    pub(super) fn start(&mut self, number: u32, until: Instant) {
        self.slot(number)
            .for_each(|slot| (slot.stage, slot.until) = (Stage::Running, until));
    }

    /// A good response head has arrived, within the slow-call limit or not.
    pub(super) fn answer(&mut self, number: u32, slow: bool) {
        self.unanswered_wait = Duration::ZERO;
        self.slot(number)
            .for_each(|slot| slot.stage = Stage::Answered { slow });
    }

    /// Frees a slot. `false`: it was free.
    pub(super) fn free(&mut self, number: u32) -> bool {
        let before = self.taken.len();
        self.taken.retain(|slot| slot.number != number);
        self.taken.len() < before
    }

    /// A probe succeeded. Returns whether that is enough.
    pub(super) fn succeed(&mut self, settings: &ProbeSettings) -> bool {
        self.unanswered_wait = Duration::ZERO;
        self.succeeded += 1;
        self.succeeded >= settings.successes
    }

    /// The caller of a running probe abandons it. Returns whether callers have by now waited, one after the other, for as
    /// long as one probe may take, without any response.
    pub(super) fn abandon(&mut self, number: u32, settings: &ProbeSettings, now: Instant) -> bool {
        let running = |slot: &&Slot| slot.number == number && slot.stage == Stage::Running;
        if let Some(slot) = self.taken.iter().find(running) {
            let waited = settings.deadline.saturating_sub(slot.until - now);
            self.unanswered_wait = self.unanswered_wait.saturating_add(waited);
        }
        self.unanswered_wait >= settings.deadline
    }

    /// Frees the slot that expired first; of those of one instant, one that failed.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<Expired> {
        let slots = self.taken.iter().enumerate();
        let expired = slots.filter(|(_, slot)| slot.until <= now);
        let (first, _) = expired.min_by_key(|(_, slot)| (slot.until, slot.stage.rank()))?;
        let Slot { until, stage, .. } = self.taken.remove(first);
        Some(match stage {
            Stage::Reserved => Expired::Reserved,
            Stage::Running => Expired::Running(until),
            Stage::Answered { slow: false } => Expired::Answered,
            Stage::Answered { slow: true } => Expired::AnsweredSlowly(until),
        })
    }

    fn slot(&mut self, number: u32) -> impl Iterator<Item = &mut Slot> {
        self.taken
            .iter_mut()
            .filter(move |slot| slot.number == number)
    }
}

// === impl Stage ===

impl Stage {
    /// Failures come first.
    const fn rank(self) -> u8 {
        match self {
            Self::Running => 0,
            Self::Answered { slow: true } => 1,
            Self::Reserved | Self::Answered { slow: false } => 2,
        }
    }
}
