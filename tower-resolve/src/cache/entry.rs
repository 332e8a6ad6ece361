use std::{cmp::Ordering, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Cause, Generation, SourceId, Topology, Update,
    diff::{Applied, Fold},
    error::{OLDER_IN_A_ROW, WentBack},
};

/// The state machine of one cached name: what is known, and when to query the source again. Sans-IO: instants come in,
/// instants go out.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The set that followers see.
    fold: Fold,
    /// The set after a large loss right after trouble, until it is confirmed.
    doubted: Option<Doubted>,
    asked: Option<Asked>,
    /// When the source last confirmed the set.
    fresh_at: Option<Instant>,
    /// When the source last answered at all, including with an older generation.
    heard_at: Option<Instant>,
    floor: Option<Floor>,
    patience: Patience,
    /// Set while all answers of the source are older than the known set.
    behind: Option<Behind>,
    restarted: Option<Restarted>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) ttl: Duration,
    pub(super) negative: Duration,
    pub(super) max_stale: Option<Duration>,
    /// The percentage of a set that may be removed at once, right after trouble.
    pub(super) max_loss: u8,
}

/// A random factor about 1, so that many clients of one source do not query it in step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Jitter(pub(super) f64);

/// The state that followers see.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) topology: Option<Topology>,
    pub(super) degraded: Option<Cause>,
}

/// The source sent nothing in this time, not even that it is degraded.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoAnswer(Duration);

/// How long a query may be unanswered before the next one starts.
#[derive(Clone, Copy, Debug)]
struct Patience(Duration);

/// Answers of an older generation, one for each subscription, without a good one in between.
#[derive(Clone, Copy, Debug)]
struct Behind {
    since: Instant,
    answers: u32,
}

/// A source that counts from one again continues under another id, because generations of one id never go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Restarted {
    from: SourceId,
    to: SourceId,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    jitter: Jitter,
    answer: Answer,
}

/// The last answer of the source. Applied with the next good one, if there is no trouble in between.
#[derive(Debug)]
struct Doubted {
    topology: Topology,
    is_calm: bool,
}

/// A peer has shown this generation, so an older set is not fresh.
#[derive(Clone, Copy, Debug)]
struct Floor {
    generation: Generation,
    /// The queries since then that did not reach it.
    misses: u32,
}

/// How a generation from a peer compares with the known one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Equal, older, or of another source.
    Known,
    /// The known set is out of date, reported for the first time.
    Newer,
    /// The known set is out of date, but that was reported before: every caller of a fenced replica reports it.
    NewerAgain,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// None yet.
    Awaited,
    /// The set, or a sign that it is still current.
    Good,
    /// "Does not exist", trouble, or a set that needs to be confirmed.
    Bad(Instant),
    /// One that cannot be used without a new query.
    Useless,
}

// === impl Entry ===

impl Entry {
    pub(super) fn topology(&self) -> Option<&Topology> {
        self.fold.topology()
    }

    /// The source is being queried.
    pub(super) fn asked(&mut self, now: Instant, jitter: Jitter) {
        if self.is_awaited() {
            let _ = self.degrade(Update::degraded(NoAnswer(self.patience.0)));
            self.patience = self.patience.after_silence();
        }
        if let Some(floor) = &mut self.floor {
            floor.misses = floor.misses.saturating_add(1);
        }
        self.asked = Some(Asked {
            at: now,
            jitter,
            answer: Answer::Awaited,
        });
    }

    /// Applies an update: the answer to the latest query, or an update of an earlier subscription.
    pub(super) fn apply(
        &mut self,
        update: Update,
        is_latest: bool,
        limits: &Limits,
        now: Instant,
    ) -> Applied {
        let is_answer = is_latest && self.is_awaited();
        let update = self.renamed(update);
        let is_missing = matches!(update, Update::DoesNotExist(_));
        let all = if is_answer { complete(&update) } else { None };
        let mut applied = match update {
            Update::Degraded(_) => self.degrade(update),
            update if self.is_in_doubt() => self.weigh(update, limits),
            update => self.fold.apply(update),
        };
        if applied == Applied::Stale {
            self.heard_at = Some(now);
            if let Some(all) = all {
                applied = self.went_back(all, limits, now);
            }
        }
        let answer = match &applied {
            Applied::Changed(_) | Applied::Unchanged if self.fold.topology().is_none() => {
                return applied;
            }
            Applied::Changed(_) | Applied::Unchanged if !is_missing => Answer::Good,
            Applied::Changed(_) | Applied::Unchanged | Applied::Held | Applied::Degraded => {
                Answer::Bad(now)
            }
            // The source answers, but without news: if it lags behind it is queried again like a degraded one.
            Applied::Stale => Answer::Bad(now),
            Applied::Gap => Answer::Useless,
        };
        if matches!(
            applied,
            Applied::Changed(_) | Applied::Unchanged | Applied::Held
        ) {
            (self.fresh_at, self.heard_at, self.behind) = (Some(now), Some(now), None);
        }
        self.floor = self.floor.filter(|_| self.is_below_floor());
        if is_latest || !self.is_awaited() {
            self.answered(answer);
        }
        applied
    }

    /// The time that the source took to answer. The next query waits for twice that.
    pub(super) fn took(&mut self, time: Duration) {
        self.patience = Patience::of(time);
    }

    /// The query was dropped before the answer.
    pub(super) fn abandoned(&mut self) {
        self.asked = self
            .asked
            .filter(|asked| !matches!(asked.answer, Answer::Awaited));
    }

    /// The source ended its stream, which violates its contract.
    pub(super) fn broke_off(&mut self, now: Instant) {
        self.answered(Answer::Bad(now));
    }

    /// A peer has shown this generation.
    pub(super) fn invalidate(&mut self, generation: Generation) -> Seen {
        let generation = self.rename(generation);
        if !self
            .topology()
            .is_some_and(|known| known.generation() < generation)
        {
            return Seen::Known;
        }
        let Some(floor) = &mut self.floor else {
            self.floor = Some(Floor {
                generation,
                misses: 0,
            });
            return Seen::Newer;
        };
        // Of another source than before, or higher.
        let is_higher = generation
            .partial_cmp(&floor.generation)
            .is_none_or(Ordering::is_gt);
        floor.generation = if is_higher {
            generation
        } else {
            floor.generation
        };
        Seen::NewerAgain
    }

    /// When the source is to be queried (again).
    pub(super) fn ask_at(&self, limits: &Limits, now: Instant) -> Instant {
        let Some(Asked { at, jitter, answer }) = self.asked else {
            return now;
        };
        let refresh = jitter.of(limits.ttl.mul_f64(AHEAD));
        let due = match answer {
            // An update of an earlier subscription is a sign of life too.
            Answer::Awaited => {
                return self.fresh_at.map_or(at, |fresh| fresh.max(at)) + self.patience.0;
            }
            Answer::Useless => return at + ASK_EVERY,
            Answer::Good => self.fresh_at.unwrap_or(at) + refresh,
            Answer::Bad(answered) => {
                let good = if self.doubted.is_some() {
                    None
                } else {
                    self.good().and(self.fresh_at)
                };
                let good_until = good.map(|fresh| fresh + refresh);
                good_until
                    .unwrap_or(answered)
                    .max(answered + jitter.of(limits.negative))
            }
        };
        if self.is_below_floor() {
            due.min(at + self.insist(refresh))
        } else {
            due
        }
    }

    /// When the set is too old to be used, if ever. Not while the source answers, even with an older generation.
    pub(super) fn expires_at(&self, limits: &Limits) -> Option<Instant> {
        Some(self.heard_at? + limits.max_stale?)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        self.fresh_at
            .map_or(Duration::ZERO, |at| now.duration_since(at))
    }

    pub(super) fn degraded(&self) -> Option<&Cause> {
        self.fold.degraded()
    }

    /// Whether the source counts as degraded because all of its answers are older than the known set.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
            .is_some_and(|behind| behind.answers >= OLDER_IN_A_ROW)
    }

    /// The id that replaces the one of a source which counts from one again.
    pub(super) fn restarted(&self) -> Option<Restarted> {
        self.restarted
    }

    pub(super) fn told(&self, limits: &Limits, now: Instant) -> Told {
        let is_expired = self.expires_at(limits).is_some_and(|at| at <= now);
        let topology = self.topology().cloned();
        let topology = if is_expired {
            topology.map(|old| Topology::missing(old.generation()))
        } else {
            topology
        };
        Told {
            topology,
            degraded: self.degraded().cloned(),
        }
    }

    /// Trouble: an unconfirmed set needs a second good answer after this.
    fn degrade(&mut self, trouble: Update) -> Applied {
        if let Some(doubted) = &mut self.doubted {
            doubted.is_calm = false;
        }
        self.fold.apply(trouble)
    }

    /// The answer to another query is older than the known set. A replica that lags behind catches up in seconds; a source
    /// that was restored, or lost its counter, never does. So some of these answers are trouble, and many are a new source.
    fn went_back(&mut self, all: Topology, limits: &Limits, now: Instant) -> Applied {
        let behind = self.behind.get_or_insert(Behind {
            since: now,
            answers: 0,
        });
        behind.answers = behind.answers.saturating_add(1);
        let known = self.fold.topology().map(Topology::generation);
        if behind.answers >= RESTARTED_AFTER && now.duration_since(behind.since) >= LAGS_AT_MOST {
            let generation = self.restart(all.generation());
            let all = all.at(generation);
            // The first answer of another source right after trouble.
            return self.weigh(snapshot_of(all), limits);
        }
        if behind.answers == OLDER_IN_A_ROW
            && let Some(known) = known
        {
            let _ = self.degrade(Update::degraded(WentBack::new(known, all.generation())));
        }
        Applied::Stale
    }

    /// From now on the source counts under another id. Returns this generation under that id.
    fn restart(&mut self, generation: Generation) -> Generation {
        let from = match self.restarted {
            Some(known) if known.to == generation.source => known.from,
            _ => generation.source,
        };
        let restarted = Restarted {
            from,
            to: SourceId::unique(),
        };
        (self.restarted, self.doubted, self.floor) = (Some(restarted), None, None);
        Generation::new(restarted.to, generation.value)
    }

    fn rename(&self, generation: Generation) -> Generation {
        match self.restarted {
            Some(Restarted { from, to }) if from == generation.source => {
                Generation::new(to, generation.value)
            }
            _ => generation,
        }
    }

    fn renamed(&self, update: Update) -> Update {
        if self.restarted.is_none() {
            return update;
        }
        match update {
            Update::Snapshot(topology) => {
                let generation = self.rename(topology.generation());
                Update::Snapshot(topology.at(generation))
            }
            Update::Delta {
                from,
                to,
                put,
                removed,
            } => Update::Delta {
                from: self.rename(from),
                to: self.rename(to),
                put,
                removed,
            },
            Update::Progress(generation) => Update::Progress(self.rename(generation)),
            Update::DoesNotExist(generation) => Update::DoesNotExist(self.rename(generation)),
            Update::Degraded(cause) => Update::Degraded(cause),
        }
    }

    /// The first answers after trouble: a large loss is applied when it is confirmed.
    fn weigh(&mut self, update: Update, limits: &Limits) -> Applied {
        let said = self.doubted.as_ref().map(|doubted| &doubted.topology);
        let Some(told) = self.topology() else {
            return self.fold.apply(update);
        };
        // In a new `Fold`, which is not degraded: the loss is checked here.
        let mut next = Fold::new();
        let _ = next.apply(Update::Snapshot(said.unwrap_or(told).clone()));
        let applied = next.apply(update);
        let (Applied::Changed(_) | Applied::Unchanged, Some(topology)) =
            (&applied, next.topology())
        else {
            return applied;
        };
        if topology.generation() < told.generation() {
            // The unconfirmed set is of another source, but the known set does not go back.
            return Applied::Stale;
        }
        let is_confirmed = self.doubted.as_ref().is_some_and(|doubted| doubted.is_calm);
        if !is_confirmed && limits.is_loss(told, topology) {
            self.doubted = Some(Doubted {
                topology: topology.clone(),
                is_calm: true,
            });
            return Applied::Held;
        }
        (self.fold, self.doubted) = (next, None);
        applied
    }

    fn is_in_doubt(&self) -> bool {
        self.fold.degraded().is_some() || self.doubted.is_some()
    }

    /// The interval between queries for a generation that a peer has shown: short at first, and longer with each query,
    /// because the peer may be wrong.
    fn insist(&self, refresh: Duration) -> Duration {
        let misses = self.floor.map_or(0, |floor| floor.misses).min(16);
        ASK_EVERY
            .saturating_mul(1 << misses)
            .min(refresh.max(ASK_EVERY))
    }

    fn is_awaited(&self) -> bool {
        self.asked
            .is_some_and(|asked| matches!(asked.answer, Answer::Awaited))
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
        self.floor
            .zip(known)
            .is_some_and(|(floor, known)| known < floor.generation)
    }
}

// === impl Limits ===

impl Limits {
    /// Whether more of a set would be removed at once than is allowed right after trouble.
    fn is_loss(&self, known: &Topology, next: &Topology) -> bool {
        let is_emptied = next.is_empty() && !known.is_empty();
        let gone = known.len().saturating_sub(next.len());
        is_emptied || gone * 100 > known.len() * usize::from(self.max_loss)
    }
}

// === impl Jitter ===

impl Jitter {
    /// Within a tenth of 1.
    pub(super) fn draw() -> Self {
        Self(0.9 + 0.2 * fastrand::f64())
    }

    fn of(self, duration: Duration) -> Duration {
        duration.mul_f64(self.0)
    }
}

// === impl Told ===

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        let is_same_set = match (&self.topology, &other.topology) {
            (Some(one), Some(other)) => {
                one.generation() == other.generation() && one.has_same_endpoints(other)
            }
            (None, None) => true,
            _ => false,
        };
        is_same_set && is_same_trouble(self.degraded.as_ref(), other.degraded.as_ref())
    }
}

/// Causes are compared by their text: a source that repeats a cause in each answer reports nothing new.
pub(super) fn is_same_trouble(one: Option<&Cause>, other: Option<&Cause>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.to_string() == other.to_string(),
        (None, None) => true,
        _ => false,
    }
}

// === impl NoAnswer ===

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the source has not answered in {} s", self.0.as_secs())
    }
}

impl std::error::Error for NoAnswer {}

// === impl Patience ===

impl Patience {
    /// With a source that took this time to answer.
    fn of(took: Duration) -> Self {
        Self(took.saturating_mul(2).clamp(SHORTEST, LONGEST))
    }

    fn after_silence(self) -> Self {
        Self(self.0.saturating_mul(2).min(LONGEST))
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self(SHORTEST)
    }
}

/// The complete set, if the update contains it.
fn complete(update: &Update) -> Option<Topology> {
    match update {
        Update::Snapshot(topology) => Some(topology.clone()),
        Update::DoesNotExist(generation) => Some(Topology::missing(*generation)),
        _ => None,
    }
}

fn snapshot_of(topology: Topology) -> Update {
    if topology.exists() {
        Update::Snapshot(topology)
    } else {
        Update::DoesNotExist(topology.generation())
    }
}

/// A refresh begins at this part of the validity of the last answer, plus or minus the jitter, so that the new answer
/// arrives before it ends.
const AHEAD: f64 = 0.8;

/// The minimum time before an unanswered query is repeated. A slow source is not queried twice before.
const SHORTEST: Duration = Duration::from_secs(10);

/// The maximum time: a recovered source is noticed within a minute, while the oldest open query still waits for an answer
/// that takes longer.
const LONGEST: Duration = Duration::from_secs(60);

/// A replica lags behind its registry by seconds. An older set that is the best answer for this long is accepted.
const LAGS_AT_MOST: Duration = Duration::from_secs(30);

/// The number of consecutive subscriptions with an older generation before the source is treated as one that counts from one
/// again: more than the number of replicas of one registry, so that all were queried.
const RESTARTED_AFTER: u32 = 20;

/// The minimum interval between queries for a set that is known to be out of date; it doubles with each query without a
/// newer answer.
const ASK_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{Endpoint, SourceId};

    const LIMITS: Limits = Limits {
        ttl: Duration::from_secs(5),
        negative: Duration::from_secs(1),
        max_stale: Some(Duration::from_secs(60)),
        max_loss: 50,
    };
    const EVEN: Jitter = Jitter(1.0);

    fn generation(value: u64) -> Generation {
        Generation::new(SourceId::new(1), value)
    }

    fn snapshot(value: u64) -> Update {
        let endpoint = Endpoint::new("a", ([127, 0, 0, 1], 1).into());
        Update::Snapshot(Topology::new(generation(value), [endpoint]))
    }

    /// Queried at `start`, in milliseconds from there on.
    fn asked() -> (Entry, Instant, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let mut entry = Entry::default();
        assert_eq!(
            entry.ask_at(&LIMITS, start),
            start,
            "nothing is known: at once"
        );
        entry.asked(start, EVEN);
        (entry, start, move |millis| {
            start + Duration::from_millis(millis)
        })
    }

    #[test]
    fn a_good_answer_is_valid_for_the_ttl_from_the_last_sign_of_life() {
        let (mut entry, start, at) = asked();
        assert_eq!(entry.ask_at(&LIMITS, start), start + SHORTEST);
        let _ = entry.apply(snapshot(1), true, &LIMITS, at(200));
        assert_eq!(
            entry.ask_at(&LIMITS, start),
            at(4_200),
            "four fifths of it: the answer is to be there in time"
        );
        let _ = entry.apply(Update::Progress(generation(1)), true, &LIMITS, at(3_000));
        assert_eq!(entry.ask_at(&LIMITS, start), at(7_000));
    }

    #[test]
    fn a_bad_answer_is_valid_for_a_second() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(Update::degraded("down"), true, &LIMITS, at(10));
        assert_eq!(entry.ask_at(&LIMITS, start), at(1_010));
        let (mut entry, start, at) = asked();
        let _ = entry.apply(Update::DoesNotExist(generation(1)), true, &LIMITS, at(10));
        assert_eq!(entry.ask_at(&LIMITS, start), at(1_010));
    }

    #[test]
    fn trouble_does_not_shorten_the_validity_of_a_good_answer() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(1), true, &LIMITS, at(0));
        let _ = entry.apply(Update::degraded("down"), true, &LIMITS, at(100));
        assert_eq!(entry.ask_at(&LIMITS, start), at(4_000));
        let _ = entry.apply(Update::degraded("down"), true, &LIMITS, at(3_900));
        assert_eq!(entry.ask_at(&LIMITS, start), at(4_900));
    }

    #[test]
    fn a_newer_generation_seen_elsewhere_makes_it_ask_at_once_and_not_too_often() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(5), true, &LIMITS, at(0));
        assert_eq!(entry.invalidate(generation(5)), Seen::Known);
        assert_eq!(
            entry.invalidate(Generation::new(SourceId::new(9), 7)),
            Seen::Known,
            "another source says nothing"
        );
        assert_eq!(entry.invalidate(generation(7)), Seen::Newer);
        for value in [7, 6, 9, 7] {
            assert_eq!(
                entry.invalidate(generation(value)),
                Seen::NewerAgain,
                "once is enough to ask"
            );
        }
        assert_eq!(entry.ask_at(&LIMITS, start), at(100));
        entry.asked(at(100), EVEN);
        let _ = entry.apply(snapshot(6), true, &LIMITS, at(110));
        assert_eq!(
            entry.ask_at(&LIMITS, start),
            at(300),
            "newer, but still not what was seen: less often"
        );
        let _ = entry.apply(snapshot(9), true, &LIMITS, at(120));
        assert_eq!(entry.ask_at(&LIMITS, start), at(4_120));
        assert_eq!(entry.invalidate(generation(10)), Seen::Newer);
    }

    #[test]
    fn an_older_generation_is_neither_taken_nor_a_sign_of_life() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(5), true, &LIMITS, at(0));
        assert_eq!(
            entry.apply(snapshot(4), true, &LIMITS, at(4_000)),
            Applied::Stale
        );
        assert_eq!(entry.topology().unwrap().generation(), generation(5));
        assert_eq!(entry.age(at(4_000)), Duration::from_secs(4));
    }

    #[test]
    fn a_set_past_max_stale_is_reported_as_missing() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(5), true, &LIMITS, at(0));
        let _ = entry.apply(Update::degraded("down"), true, &LIMITS, at(1));
        assert_eq!(entry.told(&LIMITS, at(59_999)).topology.unwrap().len(), 1);
        assert!(entry.told(&LIMITS, at(60_000)).topology.unwrap().is_empty());
        let _ = entry.apply(Update::Progress(generation(5)), true, &LIMITS, at(61_000));
        assert_eq!(entry.told(&LIMITS, at(61_000)).topology.unwrap().len(), 1);
    }

    fn sized(value: u64, size: u16) -> Update {
        let endpoints =
            (0..size).map(|id| Endpoint::new(format!("e{id}"), ([127, 0, 0, 1], id).into()));
        Update::Snapshot(Topology::new(generation(value), endpoints))
    }

    fn trouble_after(size: u16) -> (Entry, impl Fn(u64) -> Instant) {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(sized(1, size), true, &LIMITS, at(0));
        let _ = entry.apply(Update::degraded("down"), true, &LIMITS, at(1));
        (entry, at)
    }

    fn len(entry: &Entry) -> usize {
        entry.topology().unwrap().len()
    }

    #[test]
    fn right_after_trouble_a_loss_of_more_than_half_needs_a_second_answer() {
        let (mut entry, at) = trouble_after(10);
        assert!(matches!(
            entry.apply(sized(2, 5), true, &LIMITS, at(2)),
            Applied::Changed(_)
        ));
        let (mut entry, at) = trouble_after(10);
        assert_eq!(
            entry.apply(sized(2, 4), true, &LIMITS, at(2)),
            Applied::Held
        );
        assert_eq!((len(&entry), entry.degraded().is_some()), (10, true));
        assert_eq!(
            entry.ask_at(&LIMITS, at(2)),
            at(1_002),
            "and is asked for soon"
        );
        let _ = entry.apply(Update::Progress(generation(2)), true, &LIMITS, at(3));
        assert_eq!((len(&entry), entry.degraded().is_none()), (4, true));
    }

    #[test]
    fn a_great_loss_is_not_confirmed_over_new_trouble_and_is_taken_back_by_the_set() {
        let (mut entry, at) = trouble_after(10);
        let _ = entry.apply(sized(2, 1), true, &LIMITS, at(2));
        let _ = entry.apply(Update::degraded("down again"), true, &LIMITS, at(3));
        assert_eq!(
            entry.apply(sized(3, 1), true, &LIMITS, at(4)),
            Applied::Held
        );
        assert_eq!(
            entry.apply(sized(2, 10), true, &LIMITS, at(5)),
            Applied::Stale,
            "what is doubted counts as its word"
        );
        assert!(matches!(
            entry.apply(sized(4, 10), true, &LIMITS, at(6)),
            Applied::Changed(_) | Applied::Unchanged
        ));
        assert_eq!(
            (len(&entry), entry.topology().unwrap().generation()),
            (10, generation(4))
        );
    }

    #[test]
    fn an_emptied_set_is_held_back_for_any_allowed_loss() {
        let limits = Limits {
            max_loss: 100,
            ..LIMITS
        };
        let (mut entry, at) = trouble_after(2);
        assert_eq!(
            entry.apply(sized(2, 0), true, &limits, at(2)),
            Applied::Held
        );
        assert_eq!(len(&entry), 2);
        let _ = entry.apply(sized(2, 0), true, &limits, at(3));
        assert_eq!(len(&entry), 0);
        let (mut entry, at) = trouble_after(200);
        assert!(matches!(
            entry.apply(sized(2, 1), true, &limits, at(2)),
            Applied::Changed(_)
        ));
    }

    #[test]
    fn the_answer_of_a_healthy_source_is_applied_at_once() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(sized(1, 10), true, &LIMITS, at(0));
        let _ = entry.apply(sized(2, 1), true, &LIMITS, at(1));
        assert_eq!(len(&entry), 1);
        let _ = entry.apply(sized(3, 0), true, &LIMITS, at(2));
        assert_eq!(len(&entry), 0);
    }

    #[test]
    fn three_answers_in_a_row_that_are_older_are_trouble_and_a_good_one_ends_it() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(100), true, &LIMITS, at(0));
        for answer in 1..=4 {
            entry.asked(at(answer * 1_000), EVEN);
            let _ = entry.apply(snapshot(answer), true, &LIMITS, at(answer * 1_000));
            // Further updates of the same subscription are no further answers.
            let _ = entry.apply(snapshot(answer), true, &LIMITS, at(answer * 1_000));
            assert_eq!(entry.is_behind(), answer >= 3, "{answer}");
            assert_eq!(entry.degraded().is_some(), answer >= 3);
        }
        let cause = entry.degraded().unwrap().to_string();
        assert!(
            cause.contains("generation 3 after it had answered with 100"),
            "{cause}"
        );
        assert_eq!(entry.topology().unwrap().generation(), generation(100));
        entry.asked(at(5_000), EVEN);
        let _ = entry.apply(snapshot(101), true, &LIMITS, at(5_000));
        assert!(entry.degraded().is_none() && !entry.is_behind());
    }

    #[test]
    fn a_source_that_counts_from_one_again_is_a_new_one_in_the_end() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(sized(100, 4), true, &LIMITS, at(0));
        let mut answers = 0;
        // Twenty queries are not enough if they come too fast, nor half a minute with too few.
        while entry.restarted().is_none() {
            answers += 1;
            entry.asked(at(answers * 1_000), EVEN);
            let _ = entry.apply(sized(answers, 3), true, &LIMITS, at(answers * 1_000));
        }
        assert_eq!(answers, 31, "thirty seconds after the first of them");
        let known = entry.topology().unwrap();
        assert_eq!((known.len(), known.generation().value), (3, 31));
        assert_ne!(
            known.generation().source,
            SourceId::new(1),
            "the order is reset"
        );
        assert!(entry.degraded().is_none());
        // It continues to count, and the generations that peers show are translated.
        assert_eq!(entry.invalidate(generation(31)), Seen::Known);
        assert_eq!(entry.invalidate(generation(33)), Seen::Newer);
        entry.asked(at(32_000), EVEN);
        assert_eq!(
            entry.apply(sized(30, 1), true, &LIMITS, at(32_000)),
            Applied::Stale
        );
        assert!(matches!(
            entry.apply(sized(33, 2), true, &LIMITS, at(33_000)),
            Applied::Changed(_)
        ));
        assert_eq!(entry.topology().unwrap().generation(), known_as(&entry, 33));
    }

    fn known_as(entry: &Entry, value: u64) -> Generation {
        Generation::new(entry.restarted().unwrap().to, value)
    }

    #[test]
    fn a_source_that_counts_from_one_again_with_a_large_loss_needs_a_second_answer() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(sized(100, 4), true, &LIMITS, at(0));
        for answer in 1..=31 {
            entry.asked(at(answer * 1_000), EVEN);
            let _ = entry.apply(sized(answer, 0), true, &LIMITS, at(answer * 1_000));
        }
        assert!(entry.restarted().is_some());
        assert_eq!(len(&entry), 4, "held back, as after any trouble");
        entry.asked(at(32_000), EVEN);
        let _ = entry.apply(sized(31, 0), true, &LIMITS, at(32_000));
        assert_eq!(len(&entry), 0);
    }

    #[test]
    fn a_set_does_not_expire_while_the_source_answers() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(100), true, &LIMITS, at(0));
        for answer in 1..=70 {
            let now = at(answer * 10_000);
            assert_eq!(entry.told(&LIMITS, now).topology.unwrap().len(), 1);
            entry.asked(now, EVEN);
            let _ = entry.apply(Update::Progress(generation(1)), true, &LIMITS, now);
        }
        assert_eq!(entry.age(at(700_000)), Duration::from_secs(700));
    }

    #[test]
    fn a_slow_source_is_waited_for_longer_each_time_and_then_twice_as_long_as_it_takes() {
        let (mut entry, start, _) = asked();
        let (mut now, mut waited) = (start, Vec::new());
        for _ in 0..5 {
            let next = entry.ask_at(&LIMITS, now);
            waited.push((next - now).as_secs());
            now = next;
            entry.asked(now, EVEN);
        }
        assert_eq!(waited, [10, 20, 40, 60, 60]);
        entry.took(Duration::from_secs(12));
        let _ = entry.apply(snapshot(1), false, &LIMITS, now);
        assert_eq!(entry.ask_at(&LIMITS, now), now + Duration::from_secs(24));
        entry.took(Duration::from_secs(1));
        let _ = entry.apply(snapshot(1), true, &LIMITS, now);
        entry.asked(now, EVEN);
        assert_eq!(entry.ask_at(&LIMITS, now), now + SHORTEST);
    }

    #[test]
    fn an_earlier_subscription_that_still_delivers_is_a_sign_of_life() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(1), true, &LIMITS, at(0));
        entry.asked(at(4_000), EVEN);
        let _ = entry.apply(snapshot(2), false, &LIMITS, at(9_000));
        assert_eq!(entry.ask_at(&LIMITS, at(9_000)), at(19_000));
        let _ = entry.apply(Update::degraded("busy"), true, &LIMITS, at(10_000));
        let _ = entry.apply(snapshot(3), false, &LIMITS, at(11_000));
        assert!(entry.degraded().is_none());
        assert_eq!(entry.ask_at(&LIMITS, at(11_000)), at(15_000), "well again");
    }

    #[test]
    fn a_question_without_an_answer_is_trouble() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(1), true, &LIMITS, at(0));
        entry.asked(at(4_000), EVEN);
        assert!(entry.degraded().is_none());
        let again = entry.ask_at(&LIMITS, start);
        assert_eq!(again, at(4_000) + SHORTEST);
        entry.asked(again, EVEN);
        assert!(entry.degraded().unwrap().to_string().contains("10 s"));
        assert_eq!(entry.topology().unwrap().len(), 1, "what is known stays");
    }

    #[test]
    fn repeated_reports_of_a_newer_generation_cause_fewer_and_fewer_queries() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(5), true, &LIMITS, at(0));
        let mut now = start;
        let mut gaps = Vec::new();
        for _ in 0..8 {
            assert_ne!(entry.invalidate(generation(7)), Seen::Known);
            let next = entry.ask_at(&LIMITS, now);
            gaps.push((next - now).as_millis());
            now = next;
            entry.asked(now, EVEN);
            let _ = entry.apply(snapshot(5), true, &LIMITS, now);
        }
        assert_eq!(
            gaps,
            [100, 200, 400, 800, 1600, 3200, 4000, 4000],
            "down to what is asked anyway"
        );
    }

    /// The known set in the naive model.
    #[derive(Clone, Debug, PartialEq)]
    struct Set {
        generation: Generation,
        exists: bool,
        ids: BTreeSet<u8>,
    }

    #[derive(Clone, Debug)]
    enum Word {
        Snapshot(u64, u64, BTreeSet<u8>),
        Delta(u64, u64, BTreeSet<u8>, BTreeSet<u8>),
        Progress(u64),
        Missing(u64),
        Trouble,
    }

    /// The rules, in their simplest form.
    #[derive(Default)]
    struct Model {
        told: Option<Set>,
        /// A large loss, and whether there was no trouble since.
        doubted: Option<(Set, bool)>,
        is_in_trouble: bool,
        fresh_at: Option<Instant>,
        heard_at: Option<Instant>,
        /// Consecutive answers to queries that were older.
        older: u32,
    }

    impl Model {
        /// `is_answer`: whether it is the first update after a query.
        fn hear(&mut self, word: &Word, is_answer: bool, now: Instant) {
            let last = self
                .doubted
                .as_ref()
                .map(|(set, _)| set)
                .or(self.told.as_ref());
            let is_back = |next: &Set| {
                self.told
                    .as_ref()
                    .is_some_and(|told| next.generation < told.generation)
            };
            let next = Self::next(last, word);
            let is_older = Self::is_older(last, word) || next.as_ref().is_some_and(is_back);
            let Some(next) = next.filter(|_| !is_older) else {
                if is_older {
                    self.heard_at = Some(now);
                    self.older += u32::from(
                        is_answer && matches!(word, Word::Snapshot(..) | Word::Missing(_)),
                    );
                }
                let is_trouble = is_older
                    && is_answer
                    && matches!(word, Word::Snapshot(..) | Word::Missing(_))
                    && self.older >= OLDER_IN_A_ROW;
                if is_trouble || matches!(word, Word::Trouble) {
                    self.is_in_trouble = true;
                    if let Some((_, calm)) = &mut self.doubted {
                        *calm = false;
                    }
                } else if last.is_none() && matches!(word, Word::Progress(_)) {
                    self.is_in_trouble = false;
                }
                return;
            };
            (self.fresh_at, self.heard_at, self.older) = (Some(now), Some(now), 0);
            let known = self.told.as_ref().map_or(0, |told| told.ids.len());
            let is_loss = next.ids.len() * 2 < known;
            let is_confirmed = self.doubted.as_ref().is_some_and(|(_, calm)| *calm);
            if self.is_in_trouble && is_loss && !is_confirmed {
                self.doubted = Some((next, true));
            } else {
                (self.told, self.doubted, self.is_in_trouble) = (Some(next), None, false);
            }
        }

        /// Whether the update is older than the last one of the source.
        fn is_older(last: Option<&Set>, word: &Word) -> bool {
            let Some(last) = last else { return false };
            match word {
                Word::Snapshot(source, value, _) => at_source(*source, *value) < last.generation,
                Word::Delta(_, to, ..) => generation(*to) <= last.generation,
                Word::Progress(value) | Word::Missing(value) => {
                    generation(*value) < last.generation
                }
                Word::Trouble => false,
            }
        }

        /// Applies the update to the last set of the source; `None` if it does not fit.
        fn next(last: Option<&Set>, word: &Word) -> Option<Set> {
            let is_old = |generation| last.is_some_and(|last| generation < last.generation);
            let set = |generation, exists, ids| {
                (!is_old(generation)).then_some(Set {
                    generation,
                    exists,
                    ids,
                })
            };
            match word {
                Word::Snapshot(source, value, ids) => {
                    set(at_source(*source, *value), true, ids.clone())
                }
                Word::Missing(value) => set(generation(*value), false, BTreeSet::new()),
                Word::Progress(value) => {
                    let last = last?;
                    (generation(*value) >= last.generation).then(|| Set {
                        generation: generation(*value),
                        ..last.clone()
                    })
                }
                Word::Delta(from, to, put, gone) => {
                    let last = last?;
                    let fits =
                        generation(*from) <= last.generation && generation(*to) > last.generation;
                    let ids: BTreeSet<_> = last.ids.difference(gone).chain(put).copied().collect();
                    let exists = last.exists || !ids.is_empty();
                    fits.then_some(Set {
                        generation: generation(*to),
                        exists,
                        ids,
                    })
                }
                Word::Trouble => None,
            }
        }
    }

    fn at_source(source: u64, value: u64) -> Generation {
        Generation::new(SourceId::new(source), value)
    }

    fn numbered(id: u8) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(
            format!("{id}"),
            ([127, 0, 0, 1], u16::from(id)).into(),
        ))
    }

    fn update(word: &Word) -> Update {
        match word {
            Word::Snapshot(source, value, ids) => Update::Snapshot(Topology::new(
                at_source(*source, *value),
                ids.iter().map(|id| numbered(*id)),
            )),
            Word::Delta(from, to, put, gone) => Update::Delta {
                from: generation(*from),
                to: generation(*to),
                put: put.iter().map(|id| numbered(*id)).collect(),
                removed: gone.iter().map(|id| format!("{id}").into()).collect(),
            },
            Word::Progress(value) => Update::Progress(generation(*value)),
            Word::Missing(value) => Update::DoesNotExist(generation(*value)),
            Word::Trouble => Update::degraded("trouble"),
        }
    }

    fn words() -> impl Strategy<Value = Vec<(u64, Word)>> {
        let ids = || proptest::collection::btree_set(0_u8..8, 0..8);
        let word = prop_oneof![
            4 => (1_u64..25, ids()).prop_map(|(value, ids)| Word::Snapshot(1, value, ids)),
            1 => (1_u64..25, ids()).prop_map(|(value, ids)| Word::Snapshot(2, value, ids)),
            4 => (0_u64..25, 1_u64..4, ids(), ids())
                .prop_map(|(from, by, put, gone)| Word::Delta(from, from + by, put, gone)),
            2 => (1_u64..25).prop_map(Word::Progress),
            1 => (1_u64..25).prop_map(Word::Missing),
            4 => Just(Word::Trouble),
        ];
        // Too few for a source to be treated as a new one, whose id the model cannot know.
        proptest::collection::vec((0_u64..20_000, word), 0..RESTARTED_AFTER as usize)
    }

    fn as_set(topology: &Topology) -> Set {
        let ids = topology
            .iter()
            .map(|endpoint| endpoint.id().as_str().parse().unwrap())
            .collect();
        Set {
            generation: topology.generation(),
            exists: topology.exists(),
            ids,
        }
    }

    proptest! {
        /// I5 and related rules: the reported set is that of the model, it never goes back inside a source, it is as old as
        /// the last good answer of the source, and the source is queried again in bounded time.
        #[test]
        fn an_entry_is_the_naive_model(words in words()) {
            let (mut entry, mut now, _) = asked();
            let (mut model, mut newest) = (Model::default(), None::<Generation>);
            for (pause, word) in words {
                now += Duration::from_millis(pause);
                if entry.ask_at(&LIMITS, now) <= now {
                    let was_awaited = entry.is_awaited();
                    entry.asked(now, EVEN);
                    if was_awaited {
                        model.hear(&Word::Trouble, false, now);
                    }
                }
                let is_answer = entry.is_awaited();
                let _ = entry.apply(update(&word), true, &LIMITS, now);
                model.hear(&word, is_answer, now);
                prop_assert_eq!(entry.topology().map(as_set), model.told.clone());
                prop_assert_eq!(entry.degraded().is_some(), model.is_in_trouble);
                prop_assert_eq!(entry.age(now), model.fresh_at.map_or(Duration::ZERO, |at| now - at));
                let known = entry.topology().map(Topology::generation);
                prop_assert!(known.zip(newest).is_none_or(|(known, newest)| known.partial_cmp(&newest) != Some(Ordering::Less)));
                newest = known;
                let expired = model.heard_at.is_some_and(|at| now - at >= Duration::from_secs(60));
                let told = entry.told(&LIMITS, now).topology;
                prop_assert_eq!(told.is_some_and(|told| !told.is_empty()),
                    !expired && model.told.as_ref().is_some_and(|told| !told.ids.is_empty()));
                prop_assert!(entry.ask_at(&LIMITS, now) <= now + LONGEST);
            }
        }
    }
}
