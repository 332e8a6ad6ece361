use std::task::Waker;

use tokio::time::Instant;

use super::{Denial, Standing, Terms, sealed::Decide};
use crate::waiters::LimiterKey;

/// Two limits, both of which must let a request through. More than two are nested.
///
/// All are asked first, so a request that one refuses costs the other one nothing, and the error has the longest wait. If between
/// asking and taking one was emptied by another request, what was taken is given back.
#[derive(Clone, Copy, Debug)]
pub struct And<A, B>(A, B);

// === impl And ===

impl<A, B> And<A, B> {
    pub(crate) const fn new(first: A, second: B) -> Self {
        Self(first, second)
    }
}

impl<Req, A: Decide<Req>, B: Decide<Req>> Decide<Req> for And<A, B> {
    const LIMITERS: u32 = A::LIMITERS + B::LIMITERS;
    type Charge = (A::Charge, B::Charge);
    type Taken = (A::Taken, B::Taken);
    type Turn = (A::Turn, B::Turn);
    type Note = (A::Note, B::Note);

    fn charge(&self, request: &Req, terms: Terms) -> Self::Charge {
        (self.0.charge(request, terms), self.1.charge(request, terms))
    }

    fn peek(&self, charge: Self::Charge, now: Instant, max_wait: u64) -> Result<(), Denial> {
        let first = self.0.peek(charge.0, now, max_wait);
        let second = self
            .1
            .peek(charge.1, now, max_wait)
            .map_err(|denial| denial.after(A::LIMITERS));
        match (first, second) {
            (Err(first), Err(second)) => Err(first.and(second)),
            (first, second) => first.and(second),
        }
    }

    fn take(
        &self,
        charge: Self::Charge,
        now: Instant,
        max_wait: u64,
    ) -> Result<Self::Taken, Denial> {
        self.peek(charge, now, max_wait)?;
        let first = self.0.take(charge.0, now, max_wait)?;
        match self.1.take(charge.1, now, max_wait) {
            Ok(second) => Ok((first, second)),
            Err(denial) => {
                self.0.give_back(charge.0, first, Instant::now());
                Err(denial.after(A::LIMITERS))
            }
        }
    }

    fn give_back(&self, charge: Self::Charge, taken: Self::Taken, now: Instant) {
        self.0.give_back(charge.0, taken.0, now);
        self.1.give_back(charge.1, taken.1, now);
    }

    fn queue(
        &self,
        charge: Self::Charge,
        now: Instant,
        max_wait: u64,
    ) -> Result<(Self::Taken, Self::Turn), Denial> {
        self.peek(charge, now, max_wait)?;
        let first = self.0.queue(charge.0, now, max_wait)?;
        match self.1.queue(charge.1, now, max_wait) {
            Ok(second) => Ok(((first.0, second.0), (first.1, second.1))),
            Err(denial) => {
                self.0.leave(charge.0, first.0, first.1, Instant::now());
                Err(denial.after(A::LIMITERS))
            }
        }
    }

    fn poll_turn(
        &self,
        charge: Self::Charge,
        taken: Self::Taken,
        turn: &mut Self::Turn,
        now: Instant,
        waker: &Waker,
    ) -> Option<Instant> {
        let first = self.0.poll_turn(charge.0, taken.0, &mut turn.0, now, waker);
        let second = self.1.poll_turn(charge.1, taken.1, &mut turn.1, now, waker);
        // The next one to come, so that it leaves that queue in time.
        first.into_iter().chain(second).min()
    }

    fn leave(&self, charge: Self::Charge, taken: Self::Taken, turn: Self::Turn, now: Instant) {
        self.0.leave(charge.0, taken.0, turn.0, now);
        self.1.leave(charge.1, taken.1, turn.1, now);
    }

    fn keyed_buckets(
        charge: Self::Charge,
        taken: Self::Taken,
        first: u32,
        buckets: &mut Vec<LimiterKey>,
    ) {
        A::keyed_buckets(charge.0, taken.0, first, buckets);
        B::keyed_buckets(charge.1, taken.1, first + A::LIMITERS, buckets);
    }

    fn count_passed(&self, charge: Self::Charge, taken: Self::Taken, waited: bool) {
        self.0.count_passed(charge.0, taken.0, waited);
        self.1.count_passed(charge.1, taken.1, waited);
    }

    fn count_abandoned(&self, charge: Self::Charge) {
        self.0.count_abandoned(charge.0);
        self.1.count_abandoned(charge.1);
    }

    fn count_denied(&self, charge: Self::Charge, by: u32) {
        self.0.count_denied(charge.0, by);
        self.1
            .count_denied(charge.1, by.checked_shr(A::LIMITERS).unwrap_or(0));
    }

    fn standing(&self, charge: Self::Charge, decision: Result<Self::Taken, Denial>) -> Standing {
        let (first, second) = split(decision, A::LIMITERS);
        self.0
            .standing(charge.0, first)
            .tighter(self.1.standing(charge.1, second))
    }

    fn note(&self, charge: Self::Charge, decision: Result<Self::Taken, Denial>) -> Self::Note {
        let (first, second) = split(decision, A::LIMITERS);
        (self.0.note(charge.0, first), self.1.note(charge.1, second))
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
mod tests;
