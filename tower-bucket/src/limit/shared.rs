use std::task::Waker;

use tokio::time::Instant;

use super::{Denial, Standing, Taken, Terms, sealed::Decide};
use crate::{Limiter, places::LimiterKey, queue::Turn, snapshot::Fate};

// === impl Limiter ===

impl<Req> Decide<Req> for Limiter {
    const LIMITERS: u32 = 1;
    type Ask = Terms;
    type Taken = Taken;
    type Turn = Turn;
    type Note = ();

    #[inline]
    fn ask(&self, _: &Req, terms: Terms) -> Terms {
        terms
    }

    fn peek(&self, terms: Terms, now: Instant, patience: u64) -> Result<(), Denial> {
        let quota = terms.quota_or(self.quota());
        terms.peek(self.since_start(now), quota, patience, |ask| {
            self.peek_at(ask)
        })
    }

    #[inline]
    fn take(&self, terms: Terms, now: Instant, patience: u64) -> Result<Taken, Denial> {
        let quota = terms.quota_or(self.quota());
        terms.take(self.since_start(now), quota, patience, |ask| {
            Ok(self.take(ask)?.into())
        })
    }

    fn give_back(&self, terms: Terms, taken: Taken, now: Instant) {
        Decide::<Req>::leave(self, terms, taken, taken.at_once(), now);
    }

    fn queue(&self, terms: Terms, now: Instant, patience: u64) -> Result<(Taken, Turn), Denial> {
        let quota = terms.quota_or(self.quota());
        terms.queue(self.since_start(now), quota, patience, |ask| {
            let (debt, turn) = self.queue(ask)?;
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
        if taken.drawn().is_some() {
            self.give_back(taken.ask(), turn, self.since_start(now));
        }
    }

    fn keyed_buckets(_: Terms, _: Taken, _: u32, _: &mut Vec<LimiterKey>) {}

    #[inline]
    fn count_passed(&self, _: Terms, taken: Taken, waited: bool) {
        self.count(taken.fate(waited));
    }

    fn count_abandoned(&self, _: Terms) {
        self.count(Fate::Abandoned);
    }

    fn count_denied(&self, _: Terms, by: u32) {
        if by & 1 != 0 {
            self.count(Fate::Refused);
        }
    }

    fn standing(&self, terms: Terms, decision: Result<Taken, Denial>) -> Standing {
        Standing::new(decision, || terms.quota_or(self.quota()))
    }

    #[inline]
    fn note(&self, _: Terms, _: Result<Taken, Denial>) {}
}
