use tokio::time::Instant;

use super::{Denial, From, Standing, Taken, Terms, sealed::Decide};
use crate::{Limiter, snapshot::Fate};

// === impl Limiter ===

impl<Req> Decide<Req> for Limiter {
    const LIMITERS: u32 = 1;
    type Ask = Terms;
    type Taken = Taken;
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

    fn give_back(&self, _: Terms, taken: Taken, now: Instant) {
        if let From::Bucket(drawn) = taken.from {
            self.give_back(&taken.ask, drawn.debt, now);
        }
    }

    #[inline]
    fn turn(taken: Taken) -> u64 {
        taken.turn()
    }

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
