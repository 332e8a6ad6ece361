use std::{
    num::NonZeroU32,
    sync::atomic::Ordering::{AcqRel, Acquire},
};

use crate::{Reason, sync::AtomicU64};

/// Everything that the admission and the success of a call depend on, in one word.
///
/// ```text
///   63   62 61           32 31                        0
///   ┌──────┬───────────────┬──────────────────────────┐
///   │ tag  │  generation   │ consecutive failures, or │
///   │      │               │ why it is not closed     │
///   └──────┴───────────────┴──────────────────────────┘
/// ```
///
/// The generation has 30 bits: a result would have to be late by exactly 2³⁰ transitions to be mistaken for a current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedState(u64);

/// Identifies an admitted call by the generation it was admitted in: the packed state of that moment, without failures.
///
/// One comparison with the packed state therefore shows that nothing has happened since. A call that needs more than that
/// comparison carries the tag of an open circuit, which no packed state of a closed one equals: with a number in the lower
/// half it is a probe, without one it is a call whose duration matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallId(u64);

/// The state, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Closed = 0b00,
    /// Closed, and the duration of each call is compared with the slow-call limit.
    ClosedTimed = 0b01,
    Open = 0b10,
    HalfOpen = 0b11,
}

/// The packed state that all threads share. Tag and generation change only under the lock of the breaker; consecutive
/// failures are added under it, and reset without it.
#[derive(Debug)]
pub(crate) struct AtomicState(AtomicU64);

// === impl PackedState ===

impl PackedState {
    /// A state that was just entered: no failures yet.
    pub(crate) fn new(tag: Tag, generation: u32, reason: Option<Reason>) -> Self {
        let reason = reason.filter(|_| !tag.is_closed()).map_or(0, Reason::code);
        Self((tag as u64) << 62 | bits(generation) | u64::from(reason))
    }

    pub(crate) fn next_generation(generation: u32) -> u32 {
        generation.wrapping_add(1) & GENERATIONS
    }

    #[inline]
    pub(crate) fn is_closed(self) -> bool {
        self.0 >> 63 == 0
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & GENERATIONS
    }

    pub(crate) fn consecutive_failures(self) -> u32 {
        if self.is_closed() { self.0 as u32 } else { 0 }
    }

    /// Why the circuit is not closed.
    pub(crate) fn reason(self) -> Option<Reason> {
        if self.is_closed() {
            None
        } else {
            Reason::from_code(self.0 as u32)
        }
    }

    /// Admits a call if the circuit is closed, there are no failures, and durations do not matter.
    #[inline]
    pub(crate) fn admit_fast(self) -> Option<CallId> {
        if self.0 & (0b11 << 62 | LOWER) == 0 {
            Some(CallId(self.0))
        } else {
            None
        }
    }

    /// Admits a call if the circuit is closed.
    pub(crate) fn admit(self) -> Option<CallId> {
        let timed = self.0 >> 62 == Tag::ClosedTimed as u64;
        self.is_closed()
            .then(|| CallId::call(self.generation(), timed))
    }

    /// Whether this is the state that the call was admitted in, without failures, and the call needs no closer look.
    #[inline]
    pub(crate) fn is_unchanged_since(self, call: CallId) -> bool {
        self.0 == call.0
    }

    fn with_failures(self, count: u32) -> Self {
        Self(self.0 & !u64::from(u32::MAX) | u64::from(count))
    }
}

const fn bits(generation: u32) -> u64 {
    ((generation & GENERATIONS) as u64) << 32
}

const GENERATIONS: u32 = (1 << 30) - 1;
const LOWER: u64 = u32::MAX as u64;
const MARK: u64 = (Tag::Open as u64) << 62;

// === impl CallId ===

impl CallId {
    pub(crate) const fn call(generation: u32, timed: bool) -> Self {
        Self(bits(generation) | if timed { MARK } else { 0 })
    }

    pub(crate) const fn probe(generation: u32, number: NonZeroU32) -> Self {
        Self(MARK | bits(generation) | number.get() as u64)
    }

    #[inline]
    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & GENERATIONS
    }

    /// The number of the probe, if it is one.
    pub(crate) const fn probe_number(self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.0 as u32)
    }

    pub(crate) const fn is_probe(self) -> bool {
        self.probe_number().is_some()
    }

    /// Whether its duration matters.
    pub(crate) const fn is_timed(self) -> bool {
        self.0 & MARK != 0
    }

    /// Only the generation, as the counters use it.
    pub(crate) const fn plain(self) -> Self {
        Self::call(self.generation(), false)
    }

    /// The bits of a [`plain`](Self::plain) identity: its generation, above 32 zeros.
    #[inline]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }
}

// === impl Tag ===

impl Tag {
    pub(crate) const fn is_closed(self) -> bool {
        matches!(self, Self::Closed | Self::ClosedTimed)
    }
}

// === impl AtomicState ===

impl AtomicState {
    pub(crate) fn new(state: PackedState) -> Self {
        Self(AtomicU64::new(state.0))
    }

    #[inline]
    pub(crate) fn load(&self) -> PackedState {
        PackedState(self.0.load(Acquire))
    }

    /// Enters a state. An exchange rather than a store: every write then reads the one before it, which loom can follow.
    pub(crate) fn enter(&self, state: PackedState) {
        self.0.swap(state.0, AcqRel);
    }

    /// Adds a failure of this generation, and returns how many there are.
    pub(crate) fn add_failure(&self, generation: u32) -> u32 {
        self.update(generation, |count| count.checked_add(1))
    }

    /// Resets the failures of this generation, and returns how many there are: none, unless the generation is over.
    /// Costs one load while there are none.
    pub(crate) fn reset_failures(&self, generation: u32) -> u32 {
        self.update(generation, |count| (count > 0).then_some(0))
    }

    /// Changes the consecutive failures while the generation is this one. A race is retried, so that no failure is lost,
    /// and a success resets all failures before it.
    fn update(&self, generation: u32, change: impl Fn(u32) -> Option<u32>) -> u32 {
        let changed = |state: PackedState| {
            let is_current = state.generation() == generation;
            let count = is_current.then(|| change(state.consecutive_failures()));
            count.flatten().map(|count| state.with_failures(count))
        };
        let mut state = self.load();
        while let Some(next) = changed(state) {
            match self
                .0
                .compare_exchange_weak(state.0, next.0, AcqRel, Acquire)
            {
                Ok(_) => return next.consecutive_failures(),
                Err(current) => state = PackedState(current),
            }
        }
        state.consecutive_failures()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_packed_state_do_not_overlap() {
        for (generation, failures) in [(0, 0), (GENERATIONS, u32::MAX), (7, 1), (1 << 29, 1 << 31)]
        {
            let state = PackedState::new(Tag::Closed, generation, None).with_failures(failures);
            assert_eq!(
                (state.generation(), state.consecutive_failures()),
                (generation, failures)
            );
            assert!(state.is_closed() && state.reason().is_none());
            for tag in [Tag::Open, Tag::HalfOpen] {
                let state = PackedState::new(tag, generation, Some(Reason::Forced));
                assert_eq!(
                    (state.generation(), state.reason()),
                    (generation, Some(Reason::Forced))
                );
                assert!(!state.is_closed() && state.consecutive_failures() == 0);
            }
        }
        assert_eq!(PackedState::next_generation(GENERATIONS), 0);
    }

    #[test]
    fn a_call_id_equals_the_packed_state_until_something_happens() {
        let state = AtomicState::new(PackedState::new(Tag::Closed, GENERATIONS, None));
        let call = state.load().admit_fast().unwrap();
        assert_eq!(call, CallId::call(GENERATIONS, false));
        assert!(state.load().is_unchanged_since(call) && !call.is_probe() && !call.is_timed());
        state.add_failure(GENERATIONS);
        assert!(!state.load().is_unchanged_since(call));
        assert_eq!(
            (state.load().admit_fast(), state.load().admit()),
            (None, Some(call))
        );
        state.reset_failures(GENERATIONS);
        assert!(state.load().is_unchanged_since(call));
        state.enter(PackedState::new(Tag::Open, 0, Some(Reason::Forced)));
        assert!(!state.load().is_unchanged_since(call));
        assert_eq!(
            (state.load().admit_fast(), state.load().admit()),
            (None, None)
        );
    }

    #[test]
    fn the_id_of_a_timed_call_never_equals_a_packed_state() {
        let state = PackedState::new(Tag::ClosedTimed, 5, None);
        let call = state.admit().unwrap();
        assert!(state.is_closed() && state.admit_fast().is_none());
        assert!(call.is_timed() && !call.is_probe() && !state.is_unchanged_since(call));
        assert_eq!(
            (call.generation(), call.plain()),
            (5, CallId::call(5, false))
        );
    }

    #[test]
    fn the_id_of_a_probe_never_equals_a_packed_state_of_its_generation() {
        for (generation, number) in [(0, 1), (GENERATIONS, u32::MAX), (5, 8)] {
            let call = CallId::probe(generation, NonZeroU32::new(number).unwrap());
            assert_eq!(
                (call.generation(), call.probe_number().unwrap().get()),
                (generation, number)
            );
            assert!(call.is_probe() && call.is_timed());
            for tag in [Tag::Closed, Tag::ClosedTimed, Tag::HalfOpen] {
                let state = PackedState((tag as u64) << 62 | bits(generation) | u64::from(number));
                assert!(!state.is_unchanged_since(call));
            }
        }
    }

    #[test]
    fn failures_of_another_generation_change_nothing() {
        let state = AtomicState::new(PackedState::new(Tag::Closed, 3, None));
        assert_eq!(state.add_failure(3), 1);
        assert_eq!(state.add_failure(2), 1, "not counted");
        state.reset_failures(2);
        assert_eq!(state.load().consecutive_failures(), 1);
        state.reset_failures(3);
        assert_eq!(state.load().consecutive_failures(), 0);
    }

    #[test]
    fn consecutive_failures_saturate() {
        let state =
            AtomicState::new(PackedState::new(Tag::Closed, 0, None).with_failures(u32::MAX));
        assert_eq!(state.add_failure(0), u32::MAX);
    }
}
