use std::task::Waker;

use tokio::time::Instant;

use super::{Denial, Standing, Terms, sealed::Decide};
use crate::places::LimiterKey;

/// Two limits, both of which must let a request through. More than two are nested.
///
/// All are asked first, so a request that one refuses costs the others nothing, and the longest wait is told. If between
/// asking and taking one was emptied by another request, what was taken is given back.
#[derive(Clone, Copy, Debug)]
pub struct Both<A, B>(A, B);

// === impl Both ===

impl<A, B> Both<A, B> {
    pub(crate) const fn new(first: A, second: B) -> Self {
        Self(first, second)
    }
}

impl<Req, A: Decide<Req>, B: Decide<Req>> Decide<Req> for Both<A, B> {
    const LIMITERS: u32 = A::LIMITERS + B::LIMITERS;
    type Ask = (A::Ask, B::Ask);
    type Taken = (A::Taken, B::Taken);
    type Turn = (A::Turn, B::Turn);
    type Note = (A::Note, B::Note);

    fn ask(&self, request: &Req, terms: Terms) -> Self::Ask {
        (self.0.ask(request, terms), self.1.ask(request, terms))
    }

    fn peek(&self, ask: Self::Ask, now: Instant, patience: u64) -> Result<(), Denial> {
        let first = self.0.peek(ask.0, now, patience);
        let second = self
            .1
            .peek(ask.1, now, patience)
            .map_err(|denial| denial.after(A::LIMITERS));
        match (first, second) {
            (Err(first), Err(second)) => Err(first.and(second)),
            (first, second) => first.and(second),
        }
    }

    fn take(&self, ask: Self::Ask, now: Instant, patience: u64) -> Result<Self::Taken, Denial> {
        self.peek(ask, now, patience)?;
        let first = self.0.take(ask.0, now, patience)?;
        match self.1.take(ask.1, now, patience) {
            Ok(second) => Ok((first, second)),
            Err(denial) => {
                self.0.give_back(ask.0, first, Instant::now());
                Err(denial.after(A::LIMITERS))
            }
        }
    }

    fn give_back(&self, ask: Self::Ask, taken: Self::Taken, now: Instant) {
        self.0.give_back(ask.0, taken.0, now);
        self.1.give_back(ask.1, taken.1, now);
    }

    fn queue(
        &self,
        ask: Self::Ask,
        now: Instant,
        patience: u64,
    ) -> Result<(Self::Taken, Self::Turn), Denial> {
        self.peek(ask, now, patience)?;
        let first = self.0.queue(ask.0, now, patience)?;
        match self.1.queue(ask.1, now, patience) {
            Ok(second) => Ok(((first.0, second.0), (first.1, second.1))),
            Err(denial) => {
                self.0.leave(ask.0, first.0, first.1, Instant::now());
                Err(denial.after(A::LIMITERS))
            }
        }
    }

    fn poll_turn(
        &self,
        ask: Self::Ask,
        taken: Self::Taken,
        turn: &mut Self::Turn,
        now: Instant,
        waker: &Waker,
    ) -> Option<Instant> {
        let first = self.0.poll_turn(ask.0, taken.0, &mut turn.0, now, waker);
        let second = self.1.poll_turn(ask.1, taken.1, &mut turn.1, now, waker);
        // The next one to come, so that it leaves that queue in time.
        first.into_iter().chain(second).min()
    }

    fn leave(&self, ask: Self::Ask, taken: Self::Taken, turn: Self::Turn, now: Instant) {
        self.0.leave(ask.0, taken.0, turn.0, now);
        self.1.leave(ask.1, taken.1, turn.1, now);
    }

    fn keyed_buckets(
        ask: Self::Ask,
        taken: Self::Taken,
        first: u32,
        buckets: &mut Vec<LimiterKey>,
    ) {
        A::keyed_buckets(ask.0, taken.0, first, buckets);
        B::keyed_buckets(ask.1, taken.1, first + A::LIMITERS, buckets);
    }

    fn count_passed(&self, ask: Self::Ask, taken: Self::Taken, waited: bool) {
        self.0.count_passed(ask.0, taken.0, waited);
        self.1.count_passed(ask.1, taken.1, waited);
    }

    fn count_abandoned(&self, ask: Self::Ask) {
        self.0.count_abandoned(ask.0);
        self.1.count_abandoned(ask.1);
    }

    fn count_denied(&self, ask: Self::Ask, by: u32) {
        self.0.count_denied(ask.0, by);
        self.1
            .count_denied(ask.1, by.checked_shr(A::LIMITERS).unwrap_or(0));
    }

    fn standing(&self, ask: Self::Ask, decision: Result<Self::Taken, Denial>) -> Standing {
        let (first, second) = split(decision, A::LIMITERS);
        self.0
            .standing(ask.0, first)
            .tighter(self.1.standing(ask.1, second))
    }

    fn note(&self, ask: Self::Ask, decision: Result<Self::Taken, Denial>) -> Self::Note {
        let (first, second) = split(decision, A::LIMITERS);
        (self.0.note(ask.0, first), self.1.note(ask.1, second))
    }
}

/// What each of two limits decided.
fn split<A, B>(
    decision: Result<(A, B), Denial>,
    first: u32,
) -> (Result<A, Denial>, Result<B, Denial>) {
    match decision {
        Ok((a, b)) => (Ok(a), Ok(b)),
        Err(denial) => (Err(denial), Err(denial.of_those_after(first))),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{
        Limiter, Quota,
        error::Reason,
        limit::{Shadow, Tuned},
    };

    /// Lets all through when it is asked, and none when it comes to taking: as if another request had always been faster.
    #[derive(Clone, Debug)]
    struct Fickle;

    impl Decide<()> for Fickle {
        const LIMITERS: u32 = 1;
        type Ask = ();
        type Taken = ();
        type Turn = ();
        type Note = ();

        fn ask(&self, (): &(), _: Terms) {}
        fn peek(&self, (): (), _: Instant, _: u64) -> Result<(), Denial> {
            Ok(())
        }
        fn take(&self, (): (), _: Instant, _: u64) -> Result<(), Denial> {
            Err(Denial {
                reason: Reason::Wait(7),
                by: 1,
            })
        }
        fn give_back(&self, (): (), (): (), _: Instant) {
            panic!("what was not taken is given back");
        }
        fn queue(&self, (): (), now: Instant, patience: u64) -> Result<((), ()), Denial> {
            Err(self.take((), now, patience).unwrap_err())
        }
        fn poll_turn(&self, (): (), (): (), (): &mut (), _: Instant, _: &Waker) -> Option<Instant> {
            None
        }
        fn leave(&self, (): (), (): (), (): (), _: Instant) {
            panic!("what was not taken is given back");
        }
        fn keyed_buckets((): (), (): (), _: u32, _: &mut Vec<LimiterKey>) {}
        fn count_passed(&self, (): (), (): (), _: bool) {}
        fn count_abandoned(&self, (): ()) {}
        fn count_denied(&self, (): (), _: u32) {}
        fn standing(&self, (): (), _: Result<(), Denial>) -> Standing {
            Standing::None
        }
        fn note(&self, (): (), _: Result<(), Denial>) {}
    }

    #[tokio::test(start_paused = true)]
    async fn who_loses_a_race_for_the_second_limit_gives_the_first_back() {
        let limiter = Limiter::new(Quota::per_second(NonZeroU32::new(5).unwrap()));
        let both = Both::new(
            Both::new(limiter.clone(), Tuned::new(limiter.clone(), Shadow)),
            Fickle,
        );
        let ask = both.ask(&(), Terms::USUAL);
        for _ in 0..10 {
            let denial = both.take(ask, Instant::now(), 0).unwrap_err();
            assert_eq!(
                (denial.reason, denial.by()),
                (Reason::Wait(7), 0b100),
                "the third one says so"
            );
        }
        assert_eq!(limiter.peek().unwrap().remaining(), 4);
    }
}
