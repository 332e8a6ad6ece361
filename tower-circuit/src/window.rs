//! What happened lately: the calls of the last ten turns of time, and the last so many calls.

use std::{
    cell::Cell,
    sync::{
        LazyLock,
        atomic::Ordering::{AcqRel, Acquire},
    },
    time::Duration,
};

use tokio::time::Instant;
use tower_outcome::Verdict;

use crate::{
    Counts, LastCalls,
    stripe::take_stripe,
    sync::AtomicU64,
    word::{SharedWord, Ticket},
};

/// Time in turns of equal length, counted from a day before the process used the first. A window is the present turn and the nine
/// before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    nanos: u64,
}

/// The turn that a thread was in when it last asked, so that it need not do the sum again until it is over.
#[derive(Clone, Copy)]
struct Present {
    nanos: u64,
    ends: Option<Instant>,
    turn: u32,
}

/// The good calls of one group of threads, by turn: a ring of counters, each with its generation and turn beside it, so
/// that it is never read or counted on in another.
///
/// ```text
///   63      60 59                      28 27                  0
///   ┌─────────┬──────────────────────────┬─────────────────────┐
///   │ genera- │ turn                     │ good calls          │
///   │ tion    │                          │                     │
///   └─────────┴──────────────────────────┴─────────────────────┘
/// ```
///
/// Four bits of the generation are enough, because the ring is swept whenever a circuit closes. A window knows no more
/// than 2²⁸ calls a turn and group.
#[derive(Debug)]
pub(crate) struct Ring {
    slots: [AtomicU64; SLOTS],
    /// The calls that are in no slot any more.
    past: AtomicU64,
}

/// The calls that the heart was told of, by turn: all that were not simply good.
#[derive(Debug, Default)]
pub(crate) struct Told([Turn; SLOTS]);

#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    turn: u32,
    counts: Bad,
}

/// As [`Counts`], in half the room: enough for half a million a second through the longest turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bad {
    succeeded: u32,
    failed: u32,
    soft: u32,
    slow: u32,
}

/// The last so many calls, one bit each.
#[derive(Debug)]
pub(crate) struct Row {
    bits: Box<[u64]>,
    calls: u32,
    /// Where the next call goes, and so how many there were until the row was full.
    next: u32,
    full: bool,
    bad: u32,
}

// === impl Turns ===

impl Turns {
    pub(crate) fn new(window: Duration) -> Self {
        // What this thread remembers may be of a runtime whose paused clock was far ahead.
        PRESENT.set(Present::UNKNOWN);
        Self {
            nanos: window.clamp(MIN_WINDOW, MAX_WINDOW).as_nanos() as u64 / BUCKETS as u64,
        }
    }

    /// The turn of this instant, by a clock that does not go back. Circuits with windows of one length have the same
    /// turns, and so share what a thread remembers.
    #[inline]
    pub(crate) fn at(&self, now: Instant) -> u32 {
        PRESENT.with(|present| {
            let Present { nanos, ends, turn } = present.get();
            if nanos == self.nanos && Some(now) < ends {
                turn
            } else {
                self.remember(now)
            }
        })
    }

    #[cold]
    fn remember(&self, now: Instant) -> u32 {
        take_stripe();
        let turn = nanos_at(now) / self.nanos;
        let ends = Some(instant((turn + 1).saturating_mul(self.nanos)));
        PRESENT.set(Present {
            nanos: self.nanos,
            ends,
            turn: turn as u32,
        });
        turn as u32
    }
}

impl Present {
    const UNKNOWN: Self = Self {
        nanos: 0,
        ends: None,
        turn: 0,
    };
}

/// Nanoseconds since the beginning, of which there are enough for five centuries.
pub(crate) fn nanos_at(at: Instant) -> u64 {
    at.saturating_duration_since(*ORIGIN).as_nanos() as u64
}

/// The other way round.
pub(crate) fn instant(nanos: u64) -> Instant {
    *ORIGIN + Duration::from_nanos(nanos)
}

/// By the operating system's clock, which no runtime has moved; and before any instant at which one may have paused it.
#[expect(
    clippy::disallowed_types,
    reason = "only here a clock that a test has paused must not be asked"
)]
static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::from(std::time::Instant::now());
    now.checked_sub(LONG_AGO).unwrap_or(now)
});

thread_local! {
    static PRESENT: Cell<Present> = const { Cell::new(Present::UNKNOWN) };
}

/// Not what is older than the window. What is a little newer is in it: some thread is late.
const fn is_within(window: u32, turn: u32) -> bool {
    is_newer(turn, window) || window.wrapping_sub(turn) < BUCKETS as u32
}

/// Turns come round after 2³²; by much less than half of that no thread is late.
const fn is_newer(turn: u32, than: u32) -> bool {
    0 < turn.wrapping_sub(than) && turn.wrapping_sub(than) < LATE
}

const LONG_AGO: Duration = Duration::from_secs(86_400);
const MIN_WINDOW: Duration = Duration::from_secs(1);
const MAX_WINDOW: Duration = Duration::from_secs(86_400);
const BUCKETS: usize = 10;
/// An hour and three quarters of the shortest turns.
const LATE: u32 = 1 << 16;
/// More than there are turns in a window, so that a thread that is late by a few still finds its own.
const SLOTS: usize = 16;

// === impl Ring ===

impl Ring {
    pub(crate) fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
            past: AtomicU64::new(0),
        }
    }

    /// Counts one good call of the generation on this plain ticket. A thread that is overtaken by a whole lap counts in the
    /// newer turn. The word, which knows whether the generation still is, is looked at only where a turn begins.
    #[inline(always)]
    pub(crate) fn add(&self, ticket: Ticket, turn: u32, word: &SharedWord) {
        let (slot, tag) = (
            &self.slots[turn as usize % SLOTS],
            (ticket.number() | u64::from(turn)) << 28,
        );
        let seen = slot.load(Acquire);
        // A compare-and-swap and not an addition: what has become another turn meanwhile is looked at again.
        if seen.wrapping_sub(tag) >= FULL
            || slot
                .compare_exchange(seen, seen + 1, AcqRel, Acquire)
                .is_err()
        {
            self.add_slowly(slot, tag, ticket, word);
        }
    }

    /// The good calls of the window that ends with this turn.
    pub(crate) fn sum(&self, generation: u32, turn: u32) -> u64 {
        let slots = self.slots.iter().map(|slot| slot.load(Acquire));
        let counted = slots.filter(|&slot| {
            same_generation(slot, tag(generation, 0)) && is_within(turn, turn_of(slot))
        });
        counted.map(|slot| slot & FULL).sum()
    }

    /// All good calls there ever were. Those whose turn is just over may be missed this once, and are never counted twice:
    /// what is in the past has left its slot, so the past is read first.
    pub(crate) fn total(&self) -> u64 {
        let past = self.past.load(Acquire);
        past + self
            .slots
            .iter()
            .map(|slot| slot.load(Acquire) & FULL)
            .sum::<u64>()
    }

    /// Empties the window. Called before a generation begins, so that none of its calls are lost.
    pub(crate) fn sweep(&self) {
        for slot in &self.slots {
            self.bury(slot.swap(0, AcqRel));
        }
    }

    #[cold]
    fn add_slowly(&self, slot: &AtomicU64, tag: u64, ticket: Ticket, word: &SharedWord) {
        let is_current = || word.load().generation() == ticket.generation();
        let mut seen = slot.load(Acquire);
        loop {
            let Some(next) = one_more(seen, tag, is_current) else {
                return self.bury(1);
            };
            match slot.compare_exchange(seen, next, AcqRel, Acquire) {
                Ok(_) if next == seen + 1 => return,
                Ok(_) => return self.bury(seen),
                Err(changed) => seen = changed,
            }
        }
    }

    /// Keeps the number of a slot's calls.
    fn bury(&self, slot: u64) {
        self.past.fetch_add(slot & FULL, AcqRel);
    }
}

/// What a slot is to hold after one call more. `None`: as it is, because it is full, or the call too late.
fn one_more(seen: u64, tag: u64, is_current: impl Fn() -> bool) -> Option<u64> {
    // What is empty is of no turn at all.
    let is_older =
        seen & FULL == 0 || turn_of(seen) != turn_of(tag) && !is_newer(turn_of(seen), turn_of(tag));
    match same_generation(seen, tag) {
        true if is_older => Some(tag + 1),
        true => (seen & FULL < FULL).then(|| seen + 1),
        false => is_current().then(|| tag + 1),
    }
}

const fn tag(generation: u32, turn: u32) -> u64 {
    (generation as u64) << 60 | (turn as u64) << 28
}

const fn turn_of(slot: u64) -> u32 {
    (slot >> 28) as u32
}

const fn same_generation(slot: u64, tag: u64) -> bool {
    (slot ^ tag) >> 60 == 0
}

const FULL: u64 = (1 << 28) - 1;

// === impl Told ===

impl Told {
    /// Counts a call in this turn, or in the newer one that has its place.
    pub(crate) fn add(&mut self, turn: u32, verdict: Verdict, slow: bool) {
        let counts = self.at(turn);
        let count = match verdict {
            Verdict::Success => &mut counts.succeeded,
            Verdict::Throttled => &mut counts.soft,
            Verdict::Failure | Verdict::Ignore => &mut counts.failed,
        };
        *count = count.saturating_add(1);
        counts.slow = counts.slow.saturating_add(slow.into());
    }

    fn at(&mut self, turn: u32) -> &mut Bad {
        let slot = &mut self.0[turn as usize % SLOTS];
        // What is empty is of no turn at all.
        if slot.counts == Bad::default() || slot.turn != turn && !is_newer(slot.turn, turn) {
            *slot = Turn {
                turn,
                counts: Bad::default(),
            };
        }
        &mut slot.counts
    }

    /// All of the window that ends with this turn.
    pub(crate) fn sum(&self, turn: u32) -> Counts {
        let within = self.0.iter().filter(|slot| is_within(turn, slot.turn));
        within.fold(Counts::default(), |sum, slot| sum.plus(slot.counts.into()))
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl From<Bad> for Counts {
    fn from(
        Bad {
            succeeded,
            failed,
            soft,
            slow,
        }: Bad,
    ) -> Self {
        let [succeeded, failed, soft, slow] = [succeeded, failed, soft, slow].map(u64::from);
        Self {
            succeeded,
            failed,
            soft,
            slow,
        }
    }
}

// === impl Row ===

impl Row {
    pub(crate) fn new(calls: u16) -> Self {
        let bits = vec![0; usize::from(calls).div_ceil(64)].into();
        Self {
            bits,
            calls: calls.into(),
            next: 0,
            full: false,
            bad: 0,
        }
    }

    /// Takes in a call, and drops the one that was as many calls ago.
    pub(crate) fn push(&mut self, bad: bool) {
        let (word, bit) = (
            &mut self.bits[self.next as usize / 64],
            1 << (self.next % 64),
        );
        self.bad = self.bad + u32::from(bad) - u32::from(*word & bit != 0);
        *word = if bad { *word | bit } else { *word & !bit };
        self.next += 1;
        if self.next == self.calls {
            (self.next, self.full) = (0, true);
        }
    }

    pub(crate) fn look(&self) -> LastCalls {
        LastCalls {
            calls: if self.full { self.calls } else { self.next },
            failed: self.bad,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bits.fill(0);
        (self.next, self.full, self.bad) = (0, false, 0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::word::{Tag, Word};

    fn add(ring: &Ring, generation: u32, turn: u32, current: bool) {
        let word = SharedWord::new(Word::new(
            Tag::Closed,
            if current { generation } else { u32::MAX },
            None,
        ));
        ring.add(Ticket::call(generation, false), turn, &word);
    }

    fn sum(ring: &Ring, turn: u32) -> u64 {
        ring.sum(1, turn)
    }

    #[test]
    fn a_turn_is_in_the_window_for_ten_turns_and_then_gone() {
        let (ring, mut told) = (Ring::new(), Told::default());
        add(&ring, 1, 5, true);
        told.add(5, Verdict::Failure, false);
        for turn in 5..15 {
            assert_eq!((sum(&ring, turn), told.sum(turn).failed), (1, 1), "{turn}");
        }
        assert_eq!((sum(&ring, 15), told.sum(15).failed), (0, 0));
    }

    #[test]
    fn a_thread_overtaken_by_a_lap_counts_in_the_newer_turn() {
        let (ring, mut told) = (Ring::new(), Told::default());
        for turn in [20, 4] {
            add(&ring, 1, turn, true);
            told.add(turn, Verdict::Failure, false);
        }
        assert_eq!(
            (sum(&ring, 20), told.sum(20).failed),
            (2, 2),
            "nowhere is no place to land"
        );
    }

    #[test]
    fn a_call_of_an_earlier_generation_is_not_counted_and_takes_nothing_away() {
        let ring = Ring::new();
        add(&ring, 1, 5, true);
        add(&ring, 0, 5, false);
        add(&ring, 0, 21, false);
        assert_eq!(ring.sum(1, 5), 1);
        assert_eq!(ring.sum(0, 5), 0);
        add(&ring, 2, 5, true);
        assert_eq!((ring.sum(1, 5), ring.sum(2, 5)), (0, 1));
        ring.sweep();
        assert_eq!(ring.sum(2, 5), 0);
    }

    #[test]
    fn what_was_counted_years_ago_is_not_taken_for_what_comes() {
        for years_later in [1 << 31, (1 << 31) + 1, (1 << 31) + 16, u32::MAX - 100_000] {
            let (ring, mut told) = (Ring::new(), Told::default());
            let mut count = |turn| {
                add(&ring, 1, turn, true);
                told.add(turn, Verdict::Failure, false);
                (sum(&ring, turn), told.sum(turn).failed)
            };
            assert_eq!(
                [5, 5 + years_later, 6 + years_later].map(&mut count),
                [(1, 1), (1, 1), (2, 2)]
            );
            assert_eq!(ring.total(), 3);
        }
    }

    #[test]
    fn turns_go_on_when_their_number_wraps() {
        let (ring, mut told) = (Ring::new(), Told::default());
        for turn in [u32::MAX - 1, u32::MAX, 0, 1] {
            add(&ring, 1, turn, true);
            told.add(turn, Verdict::Failure, false);
        }
        assert_eq!((sum(&ring, 1), told.sum(1).failed), (4, 4));
        assert_eq!((sum(&ring, 9), told.sum(9).failed), (2, 2));
    }

    #[test]
    fn a_turn_that_is_full_counts_no_further_and_stays_the_turn_it_is() {
        let ring = Ring::new();
        ring.slots[5].swap(tag(1, 5) | (FULL - 1), AcqRel);
        for _ in 0..3 {
            add(&ring, 1, 5, true);
        }
        assert_eq!((sum(&ring, 5), ring.total()), (FULL, FULL + 2));
        add(&ring, 1, 21, true);
        assert_eq!((sum(&ring, 21), ring.total()), (1, FULL + 3));
    }

    #[test]
    fn a_window_is_ten_turns_long_to_the_nanosecond() {
        let turns = Turns::new(Duration::from_secs(10));
        let at = |nanos| turns.at(instant(nanos));
        assert_eq!((at(0), at(999_999_999), at(1_000_000_000)), (0, 0, 1));
        assert_eq!((at(9_999_999_999), at(10_000_000_000)), (9, 10));
        assert_eq!(nanos_at(instant(12_345)), 12_345);
    }

    #[test]
    fn a_thread_is_not_deceived_by_what_it_remembers() {
        let (short, long) = (
            Turns::new(Duration::from_secs(1)),
            Turns::new(Duration::from_secs(10)),
        );
        for nanos in [
            0,
            1,
            999_999_999,
            1_000_000_000,
            1_099_999_999,
            5_500_000_001,
            1 << 62,
        ] {
            assert_eq!(short.at(instant(nanos)), (nanos / 100_000_000) as u32);
            assert_eq!(long.at(instant(nanos)), (nanos / 1_000_000_000) as u32);
        }
        let new = Turns::new(Duration::from_secs(10));
        assert_eq!(
            new.at(instant(3)),
            0,
            "a paused clock that was far ahead is forgotten"
        );
    }

    #[test]
    fn windows_without_measure_are_taken_for_the_nearest_with_one() {
        for (asked, nanos) in [
            (Duration::ZERO, 100_000_000),
            (Duration::MAX, 8_640_000_000_000),
        ] {
            assert_eq!(Turns::new(asked).nanos, nanos);
        }
    }

    proptest! {
        #[test]
        fn a_row_knows_its_last_calls_and_no_others(
            calls in 1..200_u16,
            results in proptest::collection::vec(any::<bool>(), 0..600),
        ) {
            let mut row = Row::new(calls);
            for (index, &bad) in results.iter().enumerate() {
                row.push(bad);
                let last = &results[(index + 1).saturating_sub(calls.into())..=index];
                let failed = last.iter().filter(|&&bad| bad).count();
                prop_assert_eq!(row.look(), LastCalls { calls: last.len() as u32, failed: failed as u32 });
            }
            row.clear();
            prop_assert_eq!(row.look(), LastCalls { calls: 0, failed: 0 });
        }

        #[test]
        fn both_rings_count_as_a_list_would(turns in proptest::collection::vec(0..4_u32, 1..200)) {
            let (ring, mut told) = (Ring::new(), Told::default());
            let (mut turn, mut list) = (1_000_u32, Vec::new());
            for step in turns {
                turn += step * step;
                add(&ring, 1, turn, true);
                told.add(turn, Verdict::Throttled, false);
                list.push(turn);
                let within = list.iter().filter(|&&then| then + 10 > turn).count() as u64;
                prop_assert_eq!((ring.sum(1, turn), told.sum(turn).soft), (within, within));
            }
        }
    }
}
