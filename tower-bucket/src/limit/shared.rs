use std::task::Waker;

use tokio::time::Instant;

use super::{Denial, Standing, Taken, Terms, sealed::Decide};
use crate::{Limiter, queue::Turn, snapshot::Decision, waiters::LimiterKey};

// === impl Limiter ===

impl<Req> Decide<Req> for Limiter {
    const LIMITERS: u32 = 1;
    type Charge = Terms;
    type Taken = Taken;
    type Turn = Turn;
    type Note = ();

    #[inline]
    fn charge(&self, _: &Req, terms: Terms) -> Terms {
        terms
    }

    fn peek(&self, terms: Terms, now: Instant, max_wait: u64) -> Result<(), Denial> {
        let quota = terms.quota_or(self.quota());
        terms.peek(self.since_start(now), quota, max_wait, |charge| {
            self.peek_at(charge)
        })
    }

    #[inline]
    fn take(&self, terms: Terms, now: Instant, max_wait: u64) -> Result<Taken, Denial> {
        let quota = terms.quota_or(self.quota());
        terms.take(self.since_start(now), quota, max_wait, |charge| {
            Ok(self.take(charge)?.into())
        })
    }

    fn give_back(&self, terms: Terms, taken: Taken, now: Instant) {
        Decide::<Req>::leave(self, terms, taken, taken.at_once(), now);
    }

    fn queue(&self, terms: Terms, now: Instant, max_wait: u64) -> Result<(Taken, Turn), Denial> {
        let quota = terms.quota_or(self.quota());
        terms.queue(self.since_start(now), quota, max_wait, |charge| {
            let (debt, turn) = self.queue(charge)?;
            Ok((debt.into(), turn))
        })
    }

    fn poll_turn(
        &self,
        _: Terms,
        _: Taken,
        turn: &mut Turn,
        now: Instant,
        waker: &Waker,
    ) -> Option<Instant> {
        turn.poll(self.since_start(now), now, |waiter, now| {
            self.poll_turn(waiter, now, waker)
        })
    }

    fn leave(&self, _: Terms, taken: Taken, turn: Turn, now: Instant) {
        if taken.debit().is_some() {
            self.give_back(taken.charge(), turn, self.since_start(now));
        }
    }

    fn keyed_buckets(_: Terms, _: Taken, _: u32, _: &mut Vec<LimiterKey>) {}

    #[inline]
    fn count_passed(&self, _: Terms, taken: Taken, waited: bool) {
        self.count(taken.decision(waited));
    }

    fn count_abandoned(&self, _: Terms) {
        self.count(Decision::Abandoned);
    }

    fn count_denied(&self, _: Terms, by: u32) {
        if by & 1 != 0 {
            self.count(Decision::Refused);
        }
    }

    fn standing(&self, terms: Terms, decision: Result<Taken, Denial>) -> Standing {
        Standing::new(decision, || terms.quota_or(self.quota()))
    }

    #[inline]
    fn note(&self, _: Terms, _: Result<Taken, Denial>) {}
}
