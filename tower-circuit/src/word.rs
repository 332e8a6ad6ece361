use std::{
    num::NonZeroU32,
    sync::atomic::Ordering::{AcqRel, Acquire},
};

use crate::{Reason, sync::AtomicU64};

/// All that an admitted call which succeeds has to look at, in one atomic word.
///
/// ```text
///   63   62 61           32 31                        0
///   ┌──────┬───────────────┬──────────────────────────┐
///   │ tag  │  generation   │ failures in a row,       │
///   │      │               │ or why it is not closed  │
///   └──────┴───────────────┴──────────────────────────┘
/// ```
///
/// The generation has 30 bits: a result would have to be late by exactly 2³⁰ transitions to be taken for a fresh one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u64);

/// Leave to make one call, valid in the generation it was given in: the word as it was, with no failures in it.
///
/// So one comparison tells that nothing has happened since. What must be looked at more closely is marked with the tag of
/// an open circuit, which no word of the same generation has: with an identity in the lower half it is a probe, without
/// one a call of which the heart wants to know anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Which state a circuit is in, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// And the heart need not be told of calls that go well.
    Closed = 0b00,
    /// And the heart wants to be told of every call.
    Asking = 0b01,
    Open = 0b10,
    HalfOpen = 0b11,
}

/// The word where all threads see it. Generation and tag change only under the heart's lock; failures in a row are
/// added under it too, and forgiven without it.
#[derive(Debug)]
pub(crate) struct SharedWord(AtomicU64);

// === impl Word ===

impl Word {
    /// A state just entered: no failures yet.
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

    pub(crate) fn failures_in_row(self) -> u32 {
        if self.is_closed() { self.0 as u32 } else { 0 }
    }

    pub(crate) fn tag(self) -> Tag {
        match self.0 >> 62 {
            0b00 => Tag::Closed,
            0b01 => Tag::Asking,
            0b10 => Tag::Open,
            _ => Tag::HalfOpen,
        }
    }

    /// Why it is not closed, if that has a code.
    pub(crate) fn reason(self) -> Option<Reason> {
        if self.is_closed() {
            None
        } else {
            Reason::from_code(self.0 as u32)
        }
    }

    /// Leave to make a call, if the circuit is closed, there are no failures, and the heart need not know.
    #[inline]
    pub(crate) fn ticket(self) -> Option<Ticket> {
        if self.0 & (0b11 << 62 | LOWER) == 0 {
            Some(Ticket(self.0))
        } else {
            None
        }
    }

    /// The same if the circuit is closed, whatever else.
    pub(crate) fn closer_ticket(self) -> Option<Ticket> {
        let asks = self.tag() == Tag::Asking;
        self.is_closed()
            .then(|| Ticket::call(self.generation(), asks))
    }

    /// Whether this is still the state the ticket was given in, with no failures, and nobody wants to know more.
    #[inline]
    pub(crate) fn is_as_on(self, ticket: Ticket) -> bool {
        self.0 == ticket.0
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

// === impl Ticket ===

impl Ticket {
    pub(crate) const fn call(generation: u32, asks: bool) -> Self {
        Self(bits(generation) | if asks { MARK } else { 0 })
    }

    pub(crate) const fn probe(generation: u32, id: NonZeroU32) -> Self {
        Self(MARK | bits(generation) | id.get() as u64)
    }

    #[inline]
    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & GENERATIONS
    }

    /// Which probe it is for.
    pub(crate) const fn id(self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.0 as u32)
    }

    pub(crate) const fn is_probe(self) -> bool {
        self.id().is_some()
    }

    /// Whether the heart wants to know.
    pub(crate) const fn asks(self) -> bool {
        self.0 & MARK != 0
    }

    /// Only the generation, as the counters know it. Nothing is to be done where there is no mark.
    pub(crate) const fn plain(self) -> Self {
        Self::call(self.generation(), false)
    }

    /// The number of a [`plain`](Self::plain) ticket: its generation, above 32 bits of nothing.
    #[inline]
    pub(crate) const fn number(self) -> u64 {
        self.0
    }
}

// === impl Tag ===

impl Tag {
    pub(crate) const fn is_closed(self) -> bool {
        matches!(self, Self::Closed | Self::Asking)
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Closed | Self::Asking => "closed",
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

    #[inline]
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

    /// Forgets the failures of this generation, and says how many are left: none. Only a load while there are none.
    pub(crate) fn forgive(&self, generation: u32) -> u32 {
        self.update(generation, |count| (count > 0).then_some(0))
    }

    /// Changes the failures in a row as long as the generation is this one. A race is run again, so that no failure is
    /// lost and no success comes too late for the failures before it.
    fn update(&self, generation: u32, change: impl Fn(u32) -> Option<u32>) -> u32 {
        let changed =
            |word: Word| change(word.failures_in_row()).map(|count| word.with_failures(count));
        let mut word = self.load();
        loop {
            let Some(next) = (word.generation() == generation)
                .then(|| changed(word))
                .flatten()
            else {
                return word.failures_in_row();
            };
            match self
                .0
                .compare_exchange_weak(word.0, next.0, AcqRel, Acquire)
            {
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
        for (generation, failures) in [(0, 0), (GENERATIONS, u32::MAX), (7, 1), (1 << 29, 1 << 31)]
        {
            let word = Word::new(Tag::Closed, generation, None).with_failures(failures);
            assert_eq!(
                (word.generation(), word.failures_in_row()),
                (generation, failures)
            );
            assert!(word.is_closed() && word.reason().is_none());
            for tag in [Tag::Open, Tag::HalfOpen] {
                let word = Word::new(tag, generation, Some(Reason::Forced));
                assert_eq!(
                    (word.generation(), word.reason()),
                    (generation, Some(Reason::Forced))
                );
                assert!(!word.is_closed() && word.failures_in_row() == 0);
            }
        }
        assert_eq!(Word::next_generation(GENERATIONS), 0);
    }

    #[test]
    fn a_ticket_is_the_word_it_was_given_by_until_something_happens() {
        let word = SharedWord::new(Word::new(Tag::Closed, GENERATIONS, None));
        let ticket = word.load().ticket().unwrap();
        assert_eq!(ticket, Ticket::call(GENERATIONS, false));
        assert!(word.load().is_as_on(ticket) && !ticket.is_probe() && !ticket.asks());
        word.add_failure(GENERATIONS);
        assert!(!word.load().is_as_on(ticket));
        assert_eq!(
            (word.load().ticket(), word.load().closer_ticket()),
            (None, Some(ticket))
        );
        word.forgive(GENERATIONS);
        assert!(word.load().is_as_on(ticket));
        word.enter(Word::new(Tag::Open, 0, Some(Reason::Forced)));
        assert!(!word.load().is_as_on(ticket));
        assert_eq!(
            (word.load().ticket(), word.load().closer_ticket()),
            (None, None)
        );
    }

    #[test]
    fn a_ticket_that_asks_is_never_as_the_word() {
        let word = Word::new(Tag::Asking, 5, None);
        let ticket = word.closer_ticket().unwrap();
        assert!(word.is_closed() && word.ticket().is_none());
        assert!(ticket.asks() && !ticket.is_probe() && !word.is_as_on(ticket));
        assert_eq!(
            (ticket.generation(), ticket.plain()),
            (5, Ticket::call(5, false))
        );
    }

    #[test]
    fn a_probes_ticket_is_no_word_of_its_generation() {
        for (generation, id) in [(0, 1), (GENERATIONS, u32::MAX), (5, 8)] {
            let ticket = Ticket::probe(generation, NonZeroU32::new(id).unwrap());
            assert_eq!(
                (ticket.generation(), ticket.id().unwrap().get()),
                (generation, id)
            );
            assert!(ticket.is_probe() && ticket.asks());
            for tag in [Tag::Closed, Tag::Asking, Tag::HalfOpen] {
                assert!(
                    !Word((tag as u64) << 62 | bits(generation) | u64::from(id)).is_as_on(ticket)
                );
            }
        }
    }

    #[test]
    fn failures_of_another_generation_are_left_alone() {
        let word = SharedWord::new(Word::new(Tag::Closed, 3, None));
        assert_eq!(word.add_failure(3), 1);
        assert_eq!(word.add_failure(2), 1, "not counted");
        word.forgive(2);
        assert_eq!(word.load().failures_in_row(), 1);
        word.forgive(3);
        assert_eq!(word.load().failures_in_row(), 0);
    }

    #[test]
    fn failures_in_a_row_stop_counting_rather_than_start_again() {
        let word = SharedWord::new(Word::new(Tag::Closed, 0, None).with_failures(u32::MAX));
        assert_eq!(word.add_failure(0), u32::MAX);
    }
}
