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
    type Charge = ();
    type Taken = ();
    type Turn = ();
    type Note = ();

    fn charge(&self, (): &(), _: Terms) {}
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
    fn queue(&self, (): (), now: Instant, max_wait: u64) -> Result<((), ()), Denial> {
        Err(self.take((), now, max_wait).unwrap_err())
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
async fn a_lost_race_for_the_second_limit_gives_the_first_back() {
    let limiter = Limiter::new(Quota::per_second(5));
    let both = And::new(
        And::new(limiter.clone(), Tuned::new(limiter.clone(), Shadow)),
        Fickle,
    );
    let charge = both.charge(&(), Terms::USUAL);
    for _ in 0..10 {
        let denial = both.take(charge, Instant::now(), 0).unwrap_err();
        assert_eq!(
            (denial.reason, denial.by()),
            (Reason::Wait(7), 0b100),
            "the third one says so"
        );
    }
    assert_eq!(limiter.peek().unwrap().remaining(), 4);
}
