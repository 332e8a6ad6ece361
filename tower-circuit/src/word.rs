use std::sync::atomic::Ordering::{AcqRel, Acquire};

use crate::sync::AtomicU64;

/// All that an admitted call which succeeds has to look at, in one atomic word.
///
/// ```text
///   63            34 33    32 31                        0
///   ┌───────────────┬────────┬──────────────────────────┐
///   │  generation   │  tag   │ failures in a row        │
///   └───────────────┴────────┴──────────────────────────┘
/// ```
///
/// The generation has 30 bits: a result would have to be late by exactly 2³⁰ transitions to be taken for a fresh one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u64);

/// Which state a circuit is in, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Closed,
    Open,
    HalfOpen,
}

/// The word where all threads see it. Generation and tag change only under the heart's lock; failures in a row are
/// added under it too, and forgiven without it.
#[derive(Debug)]
pub(crate) struct SharedWord(AtomicU64);

// === impl Word ===

impl Word {
    /// A state just entered: no failures yet.
    pub(crate) fn new(tag: Tag, generation: u32) -> Self {
        Self(u64::from(generation & GENERATIONS) << 34 | (tag as u64) << 32)
    }

    pub(crate) fn next_generation(generation: u32) -> u32 {
        generation.wrapping_add(1) & GENERATIONS
    }

    pub(crate) fn is_closed(self) -> bool {
        self.0 >> 32 & 0b11 == Tag::Closed as u64
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 34) as u32
    }

    pub(crate) fn failures_in_row(self) -> u32 {
        self.0 as u32
    }

    fn with_failures(self, count: u32) -> Self {
        Self(self.0 & !u64::from(u32::MAX) | u64::from(count))
    }
}

const GENERATIONS: u32 = (1 << 30) - 1;

// === impl Tag ===

impl Tag {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

// === impl SharedWord ===

impl SharedWord {
    pub(crate) fn new(word: Word) -> Self {
        Self(AtomicU64::new(word.0))
    }

    pub(crate) fn load(&self) -> Word {
        Word(self.0.load(Acquire))
    }

    /// Enters a state. An exchange, not a store: so every write reads the one before it, and loom can follow.
    pub(crate) fn enter(&self, word: Word) {
        self.0.swap(word.0, AcqRel);
    }

    /// Counts one more failure in this generation, and says how many that makes.
    pub(crate) fn add_failure(&self, generation: u32) -> u32 {
        self.update(generation, |count| count.checked_add(1))
    }

    /// Forgets the failures of this generation. Only a load while there are none.
    pub(crate) fn forgive(&self, generation: u32) {
        self.update(generation, |count| (count > 0).then_some(0));
    }

    /// Changes the failures in a row as long as the generation is this one. A race is run again, so that no failure is
    /// lost and no success comes too late for the failures before it.
    fn update(&self, generation: u32, change: impl Fn(u32) -> Option<u32>) -> u32 {
        let changed = |word: Word| change(word.failures_in_row()).map(|count| word.with_failures(count));
        let mut word = self.load();
        loop {
            let Some(next) = (word.generation() == generation).then(|| changed(word)).flatten() else {
                return word.failures_in_row();
            };
            match self.0.compare_exchange_weak(word.0, next.0, AcqRel, Acquire) {
                Ok(_) => return next.failures_in_row(),
                Err(seen) => word = Word(seen),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_word_do_not_touch_each_other() {
        for tag in [Tag::Closed, Tag::Open, Tag::HalfOpen] {
            for (generation, failures) in [(0, 0), (GENERATIONS, u32::MAX), (7, 1), (1 << 29, 1 << 31)] {
                let word = Word::new(tag, generation).with_failures(failures);
                assert_eq!(word.generation(), generation);
                assert_eq!(word.failures_in_row(), failures);
                assert_eq!(word.is_closed(), tag == Tag::Closed);
            }
        }
        assert_eq!(Word::next_generation(GENERATIONS), 0);
    }

    #[test]
    fn failures_of_another_generation_are_left_alone() {
        let word = SharedWord::new(Word::new(Tag::Closed, 3));
        assert_eq!(word.add_failure(3), 1);
        assert_eq!(word.add_failure(2), 1, "not counted");
        word.forgive(2);
        assert_eq!(word.load().failures_in_row(), 1);
        word.forgive(3);
        assert_eq!(word.load().failures_in_row(), 0);
    }

    #[test]
    fn failures_in_a_row_stop_counting_rather_than_start_again() {
        let word = SharedWord::new(Word::new(Tag::Closed, 0).with_failures(u32::MAX));
        assert_eq!(word.add_failure(0), u32::MAX);
    }
}
