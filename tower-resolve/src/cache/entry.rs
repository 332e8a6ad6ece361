use std::{cmp::Ordering, fmt, time::Duration};

use tokio::time::Instant;

use crate::{
    Cause, Generation, Topology, Update,
    diff::{Applied, Fold},
};

/// What is known of one name, and when to ask again: the heart of the cache. Instants come in, instants go out.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// What is told.
    fold: Fold,
    /// What would be told if a great loss right after trouble were believed.
    doubted: Option<Doubted>,
    asked: Option<Asked>,
    /// The source's last sign of life.
    fresh_at: Option<Instant>,
    floor: Option<Floor>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) ttl: Duration,
    pub(super) negative: Duration,
    pub(super) max_stale: Option<Duration>,
    /// The percentage of a set that may go at once, right after trouble.
    pub(super) max_loss: u8,
}

/// A random factor about 1, so that many who ask the same source do not ask in step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Jitter(pub(super) f64);

/// What is told to those who follow a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) topology: Option<Topology>,
    pub(super) degraded: Option<Cause>,
}

/// The source did not say anything, not even that it is in trouble.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoAnswer;

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    jitter: Jitter,
    answer: Answer,
}

/// The source's last word. Believed at the next good one, if there is no trouble in between.
#[derive(Debug)]
struct Doubted {
    topology: Topology,
    is_calm: bool,
}

/// Somebody saw this generation, so what is older is not fresh.
#[derive(Clone, Copy, Debug)]
struct Floor {
    generation: Generation,
    /// Questions since then that did not reach it.
    misses: u32,
}

/// A generation that somebody saw, beside what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// As old, older, or of another source.
    Known,
    /// What is known is out of date, and that is news.
    Newer,
    /// It is, but that was said before: everybody who asks a fenced replica says so.
    NewerAgain,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// None yet.
    Awaited,
    /// The set, or a sign that it still holds.
    Good,
    /// "Does not exist", trouble, or what needs to be confirmed.
    Bad(Instant),
    /// One that cannot be used without asking anew.
    Useless,
}

// === impl Entry ===

impl Entry {
    pub(super) fn topology(&self) -> Option<&Topology> {
        self.fold.topology()
    }

    /// The source is being asked.
    pub(super) fn asked(&mut self, now: Instant, jitter: Jitter) {
        if self
            .asked
            .is_some_and(|asked| matches!(asked.answer, Answer::Awaited))
        {
            let _ = self.degrade(Update::degraded(NoAnswer));
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

    /// Takes an update in.
    pub(super) fn apply(&mut self, update: Update, limits: &Limits, now: Instant) -> Applied {
        let is_missing = matches!(update, Update::DoesNotExist(_));
        let applied = match update {
            Update::Degraded(_) => self.degrade(update),
            update if self.is_in_doubt() => self.weigh(update, limits),
            update => self.fold.apply(update),
        };
        let answer = match &applied {
            Applied::Changed(_) | Applied::Unchanged if self.fold.topology().is_none() => {
                return applied;
            }
            Applied::Changed(_) | Applied::Unchanged if !is_missing => Answer::Good,
            Applied::Changed(_) | Applied::Unchanged | Applied::Held | Applied::Degraded => {
                Answer::Bad(now)
            }
            // An answer, but no news: a source that lags behind is asked again like one in trouble.
            Applied::Stale => Answer::Bad(now),
            Applied::Gap => Answer::Useless,
        };
        if matches!(
            applied,
            Applied::Changed(_) | Applied::Unchanged | Applied::Held
        ) {
            self.fresh_at = Some(now);
        }
        self.floor = self.floor.filter(|_| self.is_below_floor());
        self.answered(answer);
        applied
    }

    /// Whoever asked went away before the answer.
    pub(super) fn abandoned(&mut self) {
        self.asked = self
            .asked
            .filter(|asked| !matches!(asked.answer, Answer::Awaited));
    }

    /// The source ended its stream, which it must not.
    pub(super) fn broke_off(&mut self, now: Instant) {
        self.answered(Answer::Bad(now));
    }

    /// Somebody saw this generation.
    pub(super) fn invalidate(&mut self, generation: Generation) -> Seen {
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

    /// When the source is to be asked (again).
    pub(super) fn ask_at(&self, limits: &Limits, now: Instant) -> Instant {
        let Some(Asked { at, jitter, answer }) = self.asked else {
            return now;
        };
        let refresh = jitter.of(limits.ttl.mul_f64(AHEAD));
        let due = match answer {
            Answer::Awaited => return at + PATIENCE,
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

    /// When the set is too old to be used, if ever.
    pub(super) fn expires_at(&self, limits: &Limits) -> Option<Instant> {
        Some(self.fresh_at? + limits.max_stale?)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        self.fresh_at
            .map_or(Duration::ZERO, |at| now.duration_since(at))
    }

    pub(super) fn degraded(&self) -> Option<&Cause> {
        self.fold.degraded()
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

    /// Trouble: what is doubted needs a second good word after this one.
    fn degrade(&mut self, trouble: Update) -> Applied {
        if let Some(doubted) = &mut self.doubted {
            doubted.is_calm = false;
        }
        self.fold.apply(trouble)
    }

    /// The first words after trouble: a great loss is believed when it is confirmed.
    fn weigh(&mut self, update: Update, limits: &Limits) -> Applied {
        let said = self.doubted.as_ref().map(|doubted| &doubted.topology);
        let Some(told) = self.topology() else {
            return self.fold.apply(update);
        };
        // Without the trouble: it is weighed here.
        let mut next = Fold::new();
        let _ = next.apply(Update::Snapshot(said.unwrap_or(told).clone()));
        let applied = next.apply(update);
        let (Applied::Changed(_) | Applied::Unchanged, Some(topology)) =
            (&applied, next.topology())
        else {
            return applied;
        };
        if topology.generation() < told.generation() {
            // What is doubted is of another source, but what was told is not taken back.
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

    /// Between two questions for what somebody saw elsewhere: soon, and less and less often, because whoever said so may
    /// be wrong.
    fn insist(&self, refresh: Duration) -> Duration {
        let misses = self.floor.map_or(0, |floor| floor.misses).min(16);
        ASK_EVERY
            .saturating_mul(1 << misses)
            .min(refresh.max(ASK_EVERY))
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
    /// Whether more of a set would go at once than is believed right after trouble.
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
        is_same_set && self.degraded.is_some() == other.degraded.is_some()
    }
}

// === impl NoAnswer ===

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the source has not answered in {} s", PATIENCE.as_secs())
    }
}

impl std::error::Error for NoAnswer {}

/// A refresh begins at this part of the time that the last answer counts, give or take the jitter, so that the answer is
/// there before that time is over.
const AHEAD: f64 = 0.8;

/// How long a question may stay open before it is asked anew. A slow source is not asked twice before.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known to be out of date is asked for at most this often, and then half as often with each vain question.
const ASK_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

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

    /// Asked at `start`, in milliseconds from there on.
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
    fn a_good_answer_counts_for_the_ttl_from_the_last_sign_of_life() {
        let (mut entry, start, at) = asked();
        assert_eq!(entry.ask_at(&LIMITS, start), start + PATIENCE);
        let _ = entry.apply(snapshot(1), &LIMITS, at(200));
        assert_eq!(
            entry.ask_at(&LIMITS, start),
            at(4_200),
            "four fifths of it: the answer is to be there in time"
        );
        let _ = entry.apply(Update::Progress(generation(1)), &LIMITS, at(3_000));
        assert_eq!(entry.ask_at(&LIMITS, start), at(7_000));
    }

    #[test]
    fn a_bad_answer_counts_for_a_second() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(Update::degraded("down"), &LIMITS, at(10));
        assert_eq!(entry.ask_at(&LIMITS, start), at(1_010));
        let (mut entry, start, at) = asked();
        let _ = entry.apply(Update::DoesNotExist(generation(1)), &LIMITS, at(10));
        assert_eq!(entry.ask_at(&LIMITS, start), at(1_010));
    }

    #[test]
    fn trouble_does_not_shorten_what_a_good_answer_was_worth() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(1), &LIMITS, at(0));
        let _ = entry.apply(Update::degraded("down"), &LIMITS, at(100));
        assert_eq!(entry.ask_at(&LIMITS, start), at(4_000));
        let _ = entry.apply(Update::degraded("down"), &LIMITS, at(3_900));
        assert_eq!(entry.ask_at(&LIMITS, start), at(4_900));
    }

    #[test]
    fn a_newer_generation_seen_elsewhere_makes_it_ask_at_once_and_not_too_often() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(5), &LIMITS, at(0));
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
        let _ = entry.apply(snapshot(6), &LIMITS, at(110));
        assert_eq!(
            entry.ask_at(&LIMITS, start),
            at(300),
            "newer, but still not what was seen: less often"
        );
        let _ = entry.apply(snapshot(9), &LIMITS, at(120));
        assert_eq!(entry.ask_at(&LIMITS, start), at(4_120));
        assert_eq!(entry.invalidate(generation(10)), Seen::Newer);
    }

    #[test]
    fn an_older_generation_is_neither_taken_nor_a_sign_of_life() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(5), &LIMITS, at(0));
        assert_eq!(entry.apply(snapshot(4), &LIMITS, at(4_000)), Applied::Stale);
        assert_eq!(entry.topology().unwrap().generation(), generation(5));
        assert_eq!(entry.age(at(4_000)), Duration::from_secs(4));
    }

    #[test]
    fn a_set_past_its_bound_is_told_as_none() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(snapshot(5), &LIMITS, at(0));
        let _ = entry.apply(Update::degraded("down"), &LIMITS, at(1));
        assert_eq!(entry.told(&LIMITS, at(59_999)).topology.unwrap().len(), 1);
        assert!(entry.told(&LIMITS, at(60_000)).topology.unwrap().is_empty());
        let _ = entry.apply(Update::Progress(generation(5)), &LIMITS, at(61_000));
        assert_eq!(entry.told(&LIMITS, at(61_000)).topology.unwrap().len(), 1);
    }

    fn sized(value: u64, size: u16) -> Update {
        let endpoints =
            (0..size).map(|id| Endpoint::new(format!("e{id}"), ([127, 0, 0, 1], id).into()));
        Update::Snapshot(Topology::new(generation(value), endpoints))
    }

    fn trouble_after(size: u16) -> (Entry, impl Fn(u64) -> Instant) {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(sized(1, size), &LIMITS, at(0));
        let _ = entry.apply(Update::degraded("down"), &LIMITS, at(1));
        (entry, at)
    }

    fn len(entry: &Entry) -> usize {
        entry.topology().unwrap().len()
    }

    #[test]
    fn half_may_go_right_after_trouble_and_more_needs_a_second_word() {
        let (mut entry, at) = trouble_after(10);
        assert!(matches!(
            entry.apply(sized(2, 5), &LIMITS, at(2)),
            Applied::Changed(_)
        ));
        let (mut entry, at) = trouble_after(10);
        assert_eq!(entry.apply(sized(2, 4), &LIMITS, at(2)), Applied::Held);
        assert_eq!((len(&entry), entry.degraded().is_some()), (10, true));
        assert_eq!(
            entry.ask_at(&LIMITS, at(2)),
            at(1_002),
            "and is asked for soon"
        );
        let _ = entry.apply(Update::Progress(generation(2)), &LIMITS, at(3));
        assert_eq!((len(&entry), entry.degraded().is_none()), (4, true));
    }

    #[test]
    fn a_great_loss_is_not_confirmed_over_new_trouble_and_is_taken_back_by_the_set() {
        let (mut entry, at) = trouble_after(10);
        let _ = entry.apply(sized(2, 1), &LIMITS, at(2));
        let _ = entry.apply(Update::degraded("down again"), &LIMITS, at(3));
        assert_eq!(entry.apply(sized(3, 1), &LIMITS, at(4)), Applied::Held);
        assert_eq!(
            entry.apply(sized(2, 10), &LIMITS, at(5)),
            Applied::Stale,
            "what is doubted counts as its word"
        );
        assert!(matches!(
            entry.apply(sized(4, 10), &LIMITS, at(6)),
            Applied::Changed(_) | Applied::Unchanged
        ));
        assert_eq!(
            (len(&entry), entry.topology().unwrap().generation()),
            (10, generation(4))
        );
    }

    #[test]
    fn an_emptied_set_is_held_back_whatever_loss_is_allowed() {
        let limits = Limits {
            max_loss: 100,
            ..LIMITS
        };
        let (mut entry, at) = trouble_after(2);
        assert_eq!(entry.apply(sized(2, 0), &limits, at(2)), Applied::Held);
        assert_eq!(len(&entry), 2);
        let _ = entry.apply(sized(2, 0), &limits, at(3));
        assert_eq!(len(&entry), 0);
        let (mut entry, at) = trouble_after(200);
        assert!(matches!(
            entry.apply(sized(2, 1), &limits, at(2)),
            Applied::Changed(_)
        ));
    }

    #[test]
    fn a_source_that_is_well_is_believed_at_once() {
        let (mut entry, _, at) = asked();
        let _ = entry.apply(sized(1, 10), &LIMITS, at(0));
        let _ = entry.apply(sized(2, 1), &LIMITS, at(1));
        assert_eq!(len(&entry), 1);
        let _ = entry.apply(sized(3, 0), &LIMITS, at(2));
        assert_eq!(len(&entry), 0);
    }

    #[test]
    fn a_question_without_an_answer_is_trouble() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(1), &LIMITS, at(0));
        entry.asked(at(4_000), EVEN);
        assert!(entry.degraded().is_none());
        let again = entry.ask_at(&LIMITS, start);
        assert_eq!(again, at(4_000) + PATIENCE);
        entry.asked(again, EVEN);
        assert!(entry.degraded().unwrap().to_string().contains("10 s"));
        assert_eq!(entry.topology().unwrap().len(), 1, "what is known stays");
    }

    #[test]
    fn who_says_that_there_is_more_is_believed_less_and_less() {
        let (mut entry, start, at) = asked();
        let _ = entry.apply(snapshot(5), &LIMITS, at(0));
        let mut now = start;
        let mut gaps = Vec::new();
        for _ in 0..8 {
            assert_ne!(entry.invalidate(generation(7)), Seen::Known);
            let next = entry.ask_at(&LIMITS, now);
            gaps.push((next - now).as_millis());
            now = next;
            entry.asked(now, EVEN);
            let _ = entry.apply(snapshot(5), &LIMITS, now);
        }
        assert_eq!(
            gaps,
            [100, 200, 400, 800, 1600, 3200, 4000, 4000],
            "down to what is asked anyway"
        );
    }

    /// What is known, as the naive model writes it.
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

    /// The rules, written down as plainly as they can be.
    #[derive(Default)]
    struct Model {
        told: Option<Set>,
        /// A great loss, and whether there was no trouble since.
        doubted: Option<(Set, bool)>,
        is_in_trouble: bool,
        fresh_at: Option<Instant>,
    }

    impl Model {
        fn hear(&mut self, word: &Word, now: Instant) {
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
            let Some(next) = Self::next(last, word).filter(|next| !is_back(next)) else {
                if matches!(word, Word::Trouble) {
                    self.is_in_trouble = true;
                    if let Some((_, calm)) = &mut self.doubted {
                        *calm = false;
                    }
                } else if last.is_none() && matches!(word, Word::Progress(_)) {
                    self.is_in_trouble = false;
                }
                return;
            };
            self.fresh_at = Some(now);
            let known = self.told.as_ref().map_or(0, |told| told.ids.len());
            let is_loss = next.ids.len() * 2 < known;
            let is_confirmed = self.doubted.as_ref().is_some_and(|(_, calm)| *calm);
            if self.is_in_trouble && is_loss && !is_confirmed {
                self.doubted = Some((next, true));
            } else {
                (self.told, self.doubted, self.is_in_trouble) = (Some(next), None, false);
            }
        }

        /// What the source's word makes of its last one; nothing if it does not fit.
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
        proptest::collection::vec((0_u64..20_000, word), 0..40)
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
        /// I5 and what goes with it: what is told is what the model says, it never goes back inside a source, it is as
        /// old as the source's last good word, and the source is asked again in bounded time.
        #[test]
        fn an_entry_is_the_naive_model(words in words()) {
            let (mut entry, mut now, _) = asked();
            let (mut model, mut newest) = (Model::default(), None::<Generation>);
            for (pause, word) in words {
                now += Duration::from_millis(pause);
                if entry.ask_at(&LIMITS, now) <= now {
                    let was_awaited = matches!(entry.asked.unwrap().answer, Answer::Awaited);
                    entry.asked(now, EVEN);
                    if was_awaited {
                        model.hear(&Word::Trouble, now);
                    }
                }
                let _ = entry.apply(update(&word), &LIMITS, now);
                model.hear(&word, now);
                prop_assert_eq!(entry.topology().map(as_set), model.told.clone());
                prop_assert_eq!(entry.degraded().is_some(), model.is_in_trouble);
                prop_assert_eq!(entry.age(now), model.fresh_at.map_or(Duration::ZERO, |at| now - at));
                let known = entry.topology().map(Topology::generation);
                prop_assert!(known.zip(newest).is_none_or(|(known, newest)| known.partial_cmp(&newest) != Some(Ordering::Less)));
                newest = known;
                let expired = model.fresh_at.is_some_and(|at| now - at >= Duration::from_secs(60));
                let told = entry.told(&LIMITS, now).topology;
                prop_assert_eq!(told.is_some_and(|told| !told.is_empty()),
                    !expired && model.told.as_ref().is_some_and(|told| !told.ids.is_empty()));
                prop_assert!(entry.ask_at(&LIMITS, now) <= now + PATIENCE.max(LIMITS.ttl));
            }
        }
    }
}
