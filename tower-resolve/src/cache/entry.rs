use std::time::Duration;

use tokio::time::Instant;

use crate::{
    Cause, Generation, Topology, Update,
    diff::{Applied, Fold},
};

/// What is known of one name, and when to ask again: the heart of the cache. Instants come in, instants go out.
#[derive(Debug, Default)]
pub(super) struct Entry {
    fold: Fold,
    asked: Option<Asked>,
    /// The source's last sign of life.
    fresh_at: Option<Instant>,
    /// Somebody saw this generation, so what is older is not fresh.
    floor: Option<Generation>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) ttl: Duration,
    pub(super) negative: Duration,
    pub(super) max_stale: Option<Duration>,
}

/// What is told to those who follow a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) topology: Option<Topology>,
    pub(super) degraded: Option<Cause>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    answer: Answer,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// None yet.
    Awaited,
    /// The set, or a sign that it still holds.
    Good,
    /// "Does not exist", or trouble.
    Bad(Instant),
    /// One that cannot be used without asking anew.
    Useless,
}

// === impl Entry ===

impl Entry {
    pub(super) fn topology(&self) -> Option<&Topology> {
        self.fold.topology()
    }

    pub(super) fn asked(&mut self, now: Instant) {
        self.asked = Some(Asked { at: now, answer: Answer::Awaited });
    }

    /// Takes an update in.
    pub(super) fn apply(&mut self, update: Update, now: Instant) -> Applied {
        let is_missing = matches!(update, Update::DoesNotExist(_));
        let applied = self.fold.apply(update);
        let answer = match &applied {
            Applied::Changed(_) | Applied::Unchanged if self.fold.topology().is_none() => return applied,
            Applied::Changed(_) | Applied::Unchanged | Applied::Held => {
                self.fresh_at = Some(now);
                if is_missing { Answer::Bad(now) } else { Answer::Good }
            }
            Applied::Degraded => Answer::Bad(now),
            // An answer, but no news: a source that lags behind is asked again like one in trouble.
            Applied::Stale => Answer::Bad(now),
            Applied::Gap => Answer::Useless,
        };
        self.answered(answer);
        applied
    }

    /// The source ended its stream, which it must not.
    pub(super) fn broke_off(&mut self, now: Instant) {
        self.answered(Answer::Bad(now));
    }

    /// Returns whether what is known is older than that.
    pub(super) fn invalidate(&mut self, generation: Generation) -> bool {
        let is_older = self.topology().is_some_and(|known| known.generation() < generation);
        if is_older {
            self.floor = Some(generation);
        }
        is_older
    }

    /// When the source is to be asked (again).
    pub(super) fn ask_at(&self, limits: &Limits, now: Instant) -> Instant {
        let Some(Asked { at, answer }) = self.asked else { return now };
        match answer {
            Answer::Awaited => at + PATIENCE,
            Answer::Useless => at + ASK_EVERY,
            Answer::Good | Answer::Bad(_) if self.is_below_floor() => at + ASK_EVERY,
            Answer::Good => self.fresh_at.unwrap_or(at) + limits.ttl,
            Answer::Bad(answered) => {
                let good_until = self.good().and(self.fresh_at).map(|fresh| fresh + limits.ttl);
                good_until.unwrap_or(answered).max(answered + limits.negative)
            }
        }
    }

    /// When the set is too old to be used, if ever.
    pub(super) fn expires_at(&self, limits: &Limits) -> Option<Instant> {
        Some(self.fresh_at? + limits.max_stale?)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        self.fresh_at.map_or(Duration::ZERO, |at| now.duration_since(at))
    }

    pub(super) fn degraded(&self) -> Option<&Cause> {
        self.fold.degraded()
    }

    pub(super) fn told(&self, limits: &Limits, now: Instant) -> Told {
        let is_expired = self.expires_at(limits).is_some_and(|at| at <= now);
        let topology = self.topology().cloned();
        let topology = if is_expired { topology.map(|old| Topology::missing(old.generation())) } else { topology };
        Told { topology, degraded: self.degraded().cloned() }
    }

    fn answered(&mut self, answer: Answer) {
        if let Some(asked) = &mut self.asked {
            asked.answer = answer;
        }
    }

    fn good(&self) -> Option<&Topology> {
        self.topology().filter(|topology| topology.exists())
    }

    fn is_below_floor(&self) -> bool {
        let known = self.topology().map(Topology::generation);
        self.floor.zip(known).is_some_and(|(floor, known)| known < floor)
    }
}

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        let is_same_set = match (&self.topology, &other.topology) {
            (Some(one), Some(other)) => one.generation() == other.generation() && one.has_same_endpoints(other),
            (None, None) => true,
            _ => false,
        };
        is_same_set && self.degraded.is_some() == other.degraded.is_some()
    }
}

/// How long a question may stay open before it is asked anew. A slow source is not asked twice before.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known to be out of date is asked for at most this often.
const ASK_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, SourceId};

    const LIMITS: Limits = Limits {
        ttl: Duration::from_secs(5),
        negative: Duration::from_secs(1),
        max_stale: Some(Duration::from_secs(60)),
    };

    fn generation(value: u64) -> Generation {
        Generation::new(SourceId::new(1), value)
    }

    fn snapshot(value: u64) -> Update {
        let endpoint = Endpoint::new("a", ([127, 0, 0, 1], 1).into());
        Update::Snapshot(Topology::new(generation(value), [endpoint]))
    }

    /// Asked at `start`, in milliseconds from there on.
    fn asked() -> (Entry, Instant, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let mut entry = Entry::default();
        assert_eq!(entry.ask_at(&LIMITS, start), start, "nothing is known: at once");
        entry.asked(start);
        (entry, start, move |millis| start + Duration::from_millis(millis))
    }

    #[test]
    fn a_good_answer_counts_for_the_ttl_from_the_last_sign_of_life() {
        let (mut entry, start, at) = asked();
        assert_eq!(entry.ask_at(&LIMITS, start), start + PATIENCE);
        let _ = entry.apply(snapshot(1), at(200));
        assert_eq!(entry.ask_at(&LIMITS, start), at(5_200));
        let _ = entry.apply(Update::Progress(generation(1)), at(3_000));
        assert_eq!(entry.ask_at(&LIMITS, start), at(8_000));
    }

    #[test]
    fn a_bad_answer_counts_for_a_second() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(Update::degraded("down"), at(10));
        assert_eq!(entry.ask_at(&LIMITS, start), at(1_010));
        let (mut entry, start, at) = asked();
        let _ = entry.apply(Update::DoesNotExist(generation(1)), at(10));
        assert_eq!(entry.ask_at(&LIMITS, start), at(1_010));
    }

    #[test]
    fn trouble_does_not_shorten_what_a_good_answer_was_worth() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(1), at(0));
        let _ = entry.apply(Update::degraded("down"), at(100));
        assert_eq!(entry.ask_at(&LIMITS, start), at(5_000));
        let _ = entry.apply(Update::degraded("down"), at(4_900));
        assert_eq!(entry.ask_at(&LIMITS, start), at(5_900));
    }

    #[test]
    fn a_newer_generation_seen_elsewhere_makes_it_ask_at_once_and_not_too_often() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(5), at(0));
        assert!(!entry.invalidate(generation(5)));
        assert!(!entry.invalidate(Generation::new(SourceId::new(9), 7)), "another source says nothing");
        assert!(entry.invalidate(generation(7)));
        assert_eq!(entry.ask_at(&LIMITS, start), at(100));
        entry.asked(at(100));
        let _ = entry.apply(snapshot(6), at(110));
        assert_eq!(entry.ask_at(&LIMITS, start), at(200), "newer, but still not what was seen");
        let _ = entry.apply(snapshot(7), at(120));
        assert_eq!(entry.ask_at(&LIMITS, start), at(5_120));
    }

    #[test]
    fn an_older_generation_is_neither_taken_nor_a_sign_of_life() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(5), at(0));
        assert_eq!(entry.apply(snapshot(4), at(4_000)), Applied::Stale);
        assert_eq!(entry.topology().unwrap().generation(), generation(5));
        assert_eq!(entry.age(at(4_000)), Duration::from_secs(4));
    }

    #[test]
    fn a_set_past_its_bound_is_told_as_none() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(5), at(0));
        let _ = entry.apply(Update::degraded("down"), at(1));
        assert_eq!(entry.told(&LIMITS, at(59_999)).topology.unwrap().len(), 1);
        assert!(entry.told(&LIMITS, at(60_000)).topology.unwrap().is_empty());
        let _ = entry.apply(Update::Progress(generation(5)), at(61_000));
        assert_eq!(entry.told(&LIMITS, at(61_000)).topology.unwrap().len(), 1);
    }
}
