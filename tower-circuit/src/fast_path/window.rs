//! The calls of the time window, counted by slices of a tenth of it.

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

use super::{
    packed::{AtomicState, CallId},
    thread::assign_shard,
};
use crate::{Counts, sync::AtomicU64};

/// Divides time into slices of equal length, numbered from a day before the process used the first one. A window is the
/// current slice and the nine before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SliceClock {
    nanos: u64,
}

/// The slice that a thread last was in, so that it divides only when the slice is over.
#[derive(Clone, Copy)]
struct CachedSlice {
    nanos: u64,
    ends: Instant,
    slice: u32,
}

/// The successes of one group of threads by slice: a ring of counters, each in one word with its generation and slice, so
/// that it is never read or incremented in another.
///
/// ```text
///   63      60 59                      28 27                  0
///   ┌─────────┬──────────────────────────┬─────────────────────┐
///   │ genera- │ slice                    │ successes           │
///   │ tion    │                          │                     │
///   └─────────┴──────────────────────────┴─────────────────────┘
/// ```
///
/// Four bits of the generation are enough, because the ring is emptied whenever the circuit closes. 28 bits of a count are
/// 745,000 calls a second, for each group of threads, through the longest slice.
#[derive(Debug)]
pub(crate) struct ShardWindow {
    slots: [AtomicU64; SLOTS],
    /// The calls that are in no slot any more.
    retired: AtomicU64,
}

/// The calls that the breaker has recorded, by slice: all that were not plain successes.
#[derive(Debug, Default)]
pub(crate) struct WindowCounts([Slice; SLOTS]);

/// As [`Counts`], in half the memory: enough for ten million calls a second through the longest slice.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    slice: u32,
    succeeded: u32,
    failed: u32,
    throttled: u32,
    slow: u32,
}

// === impl SliceClock ===

impl SliceClock {
    pub(crate) fn new(window: Duration) -> Self {
        // This thread's slice may be cached from a runtime whose paused clock was far ahead.
        CACHED.set(None);
        Self {
            nanos: window.clamp(MIN_WINDOW, MAX_WINDOW).as_nanos() as u64 / SLICES as u64,
        }
    }

    /// The slice of this instant, by a clock that does not go back. Circuits with equal windows have the same slices, and
    /// so share what a thread has cached.
    #[inline]
    pub(crate) fn at(&self, now: Instant) -> u32 {
        match CACHED.get() {
            Some(cached) if cached.nanos == self.nanos && now < cached.ends => cached.slice,
            _ => self.compute(now),
        }
    }

    #[cold]
    fn compute(&self, now: Instant) -> u32 {
        assign_shard();
        let slice = nanos_at(now) / self.nanos;
        CACHED.set(Some(CachedSlice {
            nanos: self.nanos,
            ends: instant((slice + 1).saturating_mul(self.nanos)),
            slice: slice as u32,
        }));
        slice as u32
    }
}

/// Nanoseconds since the origin, which last for five centuries.
pub(crate) fn nanos_at(at: Instant) -> u64 {
    at.saturating_duration_since(*ORIGIN).as_nanos() as u64
}

/// The inverse of [`nanos_at`].
pub(crate) fn instant(nanos: u64) -> Instant {
    *ORIGIN + Duration::from_nanos(nanos)
}

/// By the operating system's clock, which no runtime has advanced, and before any instant at which a runtime may have
/// paused it.
#[expect(
    clippy::disallowed_types,
    reason = "the origin must not depend on a clock that a test has paused"
)]
static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::from(std::time::Instant::now());
    now.checked_sub(DAY).unwrap_or(now)
});

thread_local! {
    static CACHED: Cell<Option<CachedSlice>> = const { Cell::new(None) };
}

/// Whether a slice is in the window that ends with `window`. One that is a little newer is: this thread is late.
const fn is_within(window: u32, slice: u32) -> bool {
    is_newer(slice, window) || window.wrapping_sub(slice) < SLICES as u32
}

/// The numbers of slices wrap after 2³²; a thread is late by much less than half of that.
const fn is_newer(slice: u32, than: u32) -> bool {
    0 < slice.wrapping_sub(than) && slice.wrapping_sub(than) < MAX_LATENESS
}

const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const MIN_WINDOW: Duration = Duration::from_millis(10);
pub(crate) const MAX_WINDOW: Duration = Duration::from_secs(3_600);
const SLICES: usize = 10;
/// A minute of the shortest slices, three quarters of a year of the longest.
const MAX_LATENESS: u32 = 1 << 16;
/// More than the slices of a window, so that a thread that is late by a few still finds its own.
const SLOTS: usize = 16;

// === impl ShardWindow ===

impl ShardWindow {
    pub(crate) fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
            retired: AtomicU64::new(0),
        }
    }

    /// Counts one success of the generation of this plain id. A thread that was overtaken by a whole ring counts in the
    /// newer slice. The packed state, which decides whether the generation is current, is loaded only where a slice begins.
    #[inline(always)]
    pub(crate) fn add(&self, call: CallId, slice: u32, state: &AtomicState) {
        let (slot, tag) = (
            &self.slots[slice as usize % SLOTS],
            (call.bits() | u64::from(slice)) << 28,
        );
        let current = slot.load(Acquire);
        // A compare-and-swap and not an addition, because the slot may have become another slice meanwhile.
        if current.wrapping_sub(tag) >= FULL
            || slot
                .compare_exchange(current, current + 1, AcqRel, Acquire)
                .is_err()
        {
            self.add_slowly(slot, tag, call, state);
        }
    }

    /// The successes of the window that ends with this slice.
    pub(crate) fn sum(&self, generation: u32, slice: u32) -> u64 {
        let slots = self.slots.iter().map(|slot| slot.load(Acquire));
        let within = slots.filter(|&slot| {
            same_generation(slot, tag(generation, 0)) && is_within(slice, slice_of(slot))
        });
        within.map(|slot| slot & FULL).sum()
    }

    /// All successes since the circuit was made. Those of a slice that has just ended may be missed, and none is counted
    /// twice: what is retired has left its slot, so the retired are read first.
    pub(crate) fn total(&self) -> u64 {
        let retired = self.retired.load(Acquire);
        let counts = self.slots.iter().map(|slot| slot.load(Acquire) & FULL);
        retired + counts.sum::<u64>()
    }

    /// Empties the window. Called before a generation begins, so that none of its calls are lost.
    pub(crate) fn clear(&self) {
        for slot in &self.slots {
            self.retire(slot.swap(0, AcqRel));
        }
    }

    #[cold]
    fn add_slowly(&self, slot: &AtomicU64, tag: u64, call: CallId, state: &AtomicState) {
        let is_current = || state.load().generation() == call.generation();
        let mut current = slot.load(Acquire);
        loop {
            let Some(next) = one_more(current, tag, is_current) else {
                return self.retire(1);
            };
            match slot.compare_exchange(current, next, AcqRel, Acquire) {
                Ok(_) if next == current + 1 => return,
                Ok(_) => return self.retire(current),
                Err(changed) => current = changed,
            }
        }
    }

    /// Moves the calls of a slot to those that are in none.
    fn retire(&self, slot: u64) {
        self.retired.fetch_add(slot & FULL, AcqRel);
    }
}

/// The slot after one call more. `None`: it stays as it is, because it is full, or the call is of an earlier generation.
fn one_more(slot: u64, tag: u64, is_current: impl Fn() -> bool) -> Option<u64> {
    // An empty slot is of no slice.
    let is_older = slot & FULL == 0
        || slice_of(slot) != slice_of(tag) && !is_newer(slice_of(slot), slice_of(tag));
    match same_generation(slot, tag) {
        true if is_older => Some(tag + 1),
        true => (slot & FULL < FULL).then(|| slot + 1),
        false => is_current().then(|| tag + 1),
    }
}

const fn tag(generation: u32, slice: u32) -> u64 {
    (generation as u64) << 60 | (slice as u64) << 28
}

const fn slice_of(slot: u64) -> u32 {
    (slot >> 28) as u32
}

const fn same_generation(slot: u64, tag: u64) -> bool {
    (slot ^ tag) >> 60 == 0
}

const FULL: u64 = (1 << 28) - 1;

// === impl WindowCounts ===

impl WindowCounts {
    /// Counts a call in this slice, or in the newer one that has its slot.
    pub(crate) fn add(&mut self, slice: u32, verdict: Verdict, slow: bool) {
        let counts = self.at(slice);
        let count = match verdict {
            Verdict::Success => &mut counts.succeeded,
            Verdict::Throttled => &mut counts.throttled,
            Verdict::Failure | Verdict::Ignore => &mut counts.failed,
        };
        *count = count.saturating_add(1);
        counts.slow = counts.slow.saturating_add(slow.into());
    }

    fn at(&mut self, slice: u32) -> &mut Slice {
        let slot = &mut self.0[slice as usize % SLOTS];
        // An empty slot is of no slice.
        let is_empty = slot.succeeded | slot.failed | slot.throttled == 0;
        if is_empty || slot.slice != slice && !is_newer(slot.slice, slice) {
            *slot = Slice {
                slice,
                ..Slice::default()
            };
        }
        slot
    }

    /// The calls of the window that ends with this slice.
    pub(crate) fn sum(&self, slice: u32) -> Counts {
        let within = self.0.iter().filter(|slot| is_within(slice, slot.slice));
        within.fold(Counts::default(), |sum, slot| Counts {
            succeeded: sum.succeeded + u64::from(slot.succeeded),
            failed: sum.failed + u64::from(slot.failed),
            throttled: sum.throttled + u64::from(slot.throttled),
            slow: sum.slow + u64::from(slot.slow),
        })
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fast_path::packed::{PackedState, Tag};

    fn add(ring: &ShardWindow, generation: u32, slice: u32, current: bool) {
        let generation_now = if current { generation } else { u32::MAX };
        let state = AtomicState::new(PackedState::new(Tag::Closed, generation_now, None));
        ring.add(CallId::call(generation, false), slice, &state);
    }

    fn sum(ring: &ShardWindow, slice: u32) -> u64 {
        ring.sum(1, slice)
    }

    #[test]
    fn a_slice_is_in_the_window_for_ten_slices() {
        let (ring, mut counts) = (ShardWindow::new(), WindowCounts::default());
        add(&ring, 1, 5, true);
        counts.add(5, Verdict::Failure, false);
        for slice in 5..15 {
            assert_eq!(
                (sum(&ring, slice), counts.sum(slice).failed),
                (1, 1),
                "{slice}"
            );
        }
        assert_eq!((sum(&ring, 15), counts.sum(15).failed), (0, 0));
    }

    #[test]
    fn a_thread_overtaken_by_a_whole_ring_counts_in_the_newer_slice() {
        let (ring, mut counts) = (ShardWindow::new(), WindowCounts::default());
        for slice in [20, 4] {
            add(&ring, 1, slice, true);
            counts.add(slice, Verdict::Failure, false);
        }
        assert_eq!((sum(&ring, 20), counts.sum(20).failed), (2, 2));
    }

    #[test]
    fn a_call_of_an_earlier_generation_is_not_counted_and_removes_nothing() {
        let ring = ShardWindow::new();
        add(&ring, 1, 5, true);
        add(&ring, 0, 5, false);
        add(&ring, 0, 21, false);
        assert_eq!(ring.sum(1, 5), 1);
        assert_eq!(ring.sum(0, 5), 0);
        add(&ring, 2, 5, true);
        assert_eq!((ring.sum(1, 5), ring.sum(2, 5)), (0, 1));
        ring.clear();
        assert_eq!(ring.sum(2, 5), 0);
    }

    #[test]
    fn a_count_of_years_ago_is_not_in_a_later_window() {
        for years_later in [1 << 31, (1 << 31) + 1, (1 << 31) + 16, u32::MAX - 100_000] {
            let (ring, mut counts) = (ShardWindow::new(), WindowCounts::default());
            let mut count = |slice| {
                add(&ring, 1, slice, true);
                counts.add(slice, Verdict::Failure, false);
                (sum(&ring, slice), counts.sum(slice).failed)
            };
            assert_eq!(
                [5, 5 + years_later, 6 + years_later].map(&mut count),
                [(1, 1), (1, 1), (2, 2)]
            );
            assert_eq!(ring.total(), 3);
        }
    }

    #[test]
    fn the_numbers_of_slices_wrap() {
        let (ring, mut counts) = (ShardWindow::new(), WindowCounts::default());
        for slice in [u32::MAX - 1, u32::MAX, 0, 1] {
            add(&ring, 1, slice, true);
            counts.add(slice, Verdict::Failure, false);
        }
        assert_eq!((sum(&ring, 1), counts.sum(1).failed), (4, 4));
        assert_eq!((sum(&ring, 9), counts.sum(9).failed), (2, 2));
    }

    #[test]
    fn a_full_slice_counts_no_further_and_keeps_its_number() {
        let ring = ShardWindow::new();
        ring.slots[5].swap(tag(1, 5) | (FULL - 1), AcqRel);
        for _ in 0..3 {
            add(&ring, 1, 5, true);
        }
        assert_eq!((sum(&ring, 5), ring.total()), (FULL, FULL + 2));
        add(&ring, 1, 21, true);
        assert_eq!((sum(&ring, 21), ring.total()), (1, FULL + 3));
    }

    #[test]
    fn a_window_is_ten_slices_long_to_the_nanosecond() {
        let clock = SliceClock::new(Duration::from_secs(10));
        let at = |nanos| clock.at(instant(nanos));
        assert_eq!((at(0), at(999_999_999), at(1_000_000_000)), (0, 0, 1));
        assert_eq!((at(9_999_999_999), at(10_000_000_000)), (9, 10));
        assert_eq!(nanos_at(instant(12_345)), 12_345);
    }

    #[test]
    fn the_cached_slice_is_used_by_its_own_clock_and_until_it_ends() {
        let (short, long) = (
            SliceClock::new(Duration::from_secs(1)),
            SliceClock::new(Duration::from_secs(10)),
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
        let new = SliceClock::new(Duration::from_secs(10));
        assert_eq!(
            new.at(instant(3)),
            0,
            "a paused clock that was far ahead is not remembered"
        );
    }

    #[test]
    fn a_window_is_between_ten_milliseconds_and_an_hour() {
        for (window, nanos) in [
            (Duration::ZERO, 1_000_000),
            (Duration::from_millis(100), 10_000_000),
            (Duration::MAX, 360_000_000_000),
        ] {
            assert_eq!(SliceClock::new(window).nanos, nanos);
        }
    }

    /// Otherwise a count would stop at its limit while failures went on, and the ratio would be too high.
    #[test]
    fn the_longest_slice_holds_half_a_million_calls_a_second_of_each_shard() {
        let slice = MAX_WINDOW / SLICES as u32;
        assert!(FULL / slice.as_secs() > 500_000);
    }

    proptest! {
        #[test]
        fn both_rings_count_as_a_list_would(slices in proptest::collection::vec(0..4_u32, 1..200)) {
            let (ring, mut counts) = (ShardWindow::new(), WindowCounts::default());
            let (mut slice, mut list) = (1_000_u32, Vec::new());
            for step in slices {
                slice += step * step;
                add(&ring, 1, slice, true);
                counts.add(slice, Verdict::Throttled, false);
                list.push(slice);
                let within = list.iter().filter(|&&then| then + 10 > slice).count() as u64;
                prop_assert_eq!((ring.sum(1, slice), counts.sum(slice).throttled), (within, within));
            }
        }
    }
}
