use std::num::NonZeroU32;

use std::time::Duration;

use governor::{RateLimiter, clock::FakeRelativeClock};
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::{clock::Start, quota::HORIZON, quota_cell::QuotaCell};

fn quota(interval: Duration, burst: u32) -> Quota {
    Quota::every(interval).unwrap().burst(burst)
}

#[test]
fn a_burst_passes_at_once_and_then_one_an_interval() {
    let quota = quota(Duration::from_nanos(10), 3);
    let tat = AtomicTat::default();
    assert_eq!(
        [(); 4].map(|()| tat.take(&Charge::one(100, quota))),
        [Ok(10), Ok(20), Ok(30), Err(10)]
    );
    assert_eq!(tat.take(&Charge::one(109, quota)), Err(1));
    assert_eq!(tat.take(&Charge::one(110, quota)), Ok(30));
    assert_eq!(tat.take(&Charge::one(110, quota)), Err(10));
    assert_eq!(
        tat.take(&Charge::one(1000, quota)),
        Ok(10),
        "rested, it is full, and not fuller than that"
    );
}

#[test]
fn a_thread_whose_clock_reading_is_older_gains_nothing() {
    let quota = quota(Duration::from_nanos(10), 1);
    let tat = AtomicTat::default();
    assert_eq!(tat.take(&Charge::one(100, quota)), Ok(10));
    assert_eq!(tat.take(&Charge::one(95, quota)), Err(15));
}

#[test]
fn the_extremes_do_not_overflow() {
    for quota in [
        quota(Duration::MAX, 1),
        quota(Duration::from_nanos(1), u32::MAX),
        quota(Duration::MAX, u32::MAX),
    ] {
        for now in [0, 1, HORIZON] {
            let tat = AtomicTat::default();
            assert!(tat.take(&Charge::one(now, quota)).is_ok());
            assert!(tat.take(&Charge::one(HORIZON, quota)).is_ok() || quota.burst_size() == 1);
        }
    }
    assert_eq!(
        Charge::one(HORIZON, quota(Duration::MAX, 1)).try_advance(2 * HORIZON),
        Err(HORIZON)
    );
}

proptest! {
    #[test]
    fn governor_decides_the_same(
        interval in 1_u64..5_000,
        burst in 1_u32..20,
        steps in prop::collection::vec(prop_oneof![Just(0), 0_u64..200, 0_u64..20_000], 1..200),
    ) {
        let ours = quota(Duration::from_nanos(interval), burst);
        let theirs = governor::Quota::with_period(ours.interval()).unwrap().allow_burst(NonZeroU32::new(ours.burst_size()).unwrap());
        let clock = FakeRelativeClock::default();
        let limiter = RateLimiter::direct_with_clock(theirs, clock.clone());
        let tat = AtomicTat::default();
        let mut now = 0;
        for step in steps {
            now += step;
            clock.advance(Duration::from_nanos(step));
            let decision = tat.take(&Charge::one(now, ours)).map(drop).map_err(Duration::from_nanos);
            let oracle = limiter.check().map_err(|not_until| {
                not_until.wait_time_from(governor::clock::Clock::now(&clock))
            });
            prop_assert_eq!(decision, oracle);
        }
    }

    #[test]
    fn no_interval_sees_more_than_burst_and_rate(
        interval in 1_u64..1_000,
        burst in 1_u32..10,
        steps in prop::collection::vec(0_u64..500, 1..150),
    ) {
        let quota = quota(Duration::from_nanos(interval), burst);
        let tat = AtomicTat::default();
        let mut now = 0;
        let mut admitted = Vec::new();
        for step in steps {
            now += step;
            admitted.extend(tat.take(&Charge::one(now, quota)).is_ok().then_some(now));
        }
        assert_conforming(&admitted, quota);
    }

    #[test]
    fn the_reported_wait_is_exact(interval in 2_u64..1_000, burst in 1_u32..10, now in 0_u64..1_000) {
        let quota = quota(Duration::from_nanos(interval), burst);
        let tat = AtomicTat::default();
        let wait = loop {
            if let Err(wait) = tat.take(&Charge::one(now, quota)) {
                break wait;
            }
        };
        prop_assert_eq!(tat.take(&Charge::one(now + wait - 1, quota)), Err(1));
        prop_assert!(tat.take(&Charge::one(now + wait, quota)).is_ok());
    }
}

#[test]
fn two_threads_together_get_no_more_than_one() {
    let quota = quota(Duration::from_secs(1), 1_000);
    let tat = AtomicTat::default();
    let admitted = || {
        (0..2_000)
            .filter(|_| tat.take(&Charge::one(0, quota)).is_ok())
            .count()
    };
    let both = std::thread::scope(|scope| {
        let other = scope.spawn(admitted);
        admitted() + other.join().unwrap()
    });
    assert_eq!(both, 1_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// By the clock, at any cost, while they take from each other.
    #[test]
    fn two_threads_together_see_no_interval_with_more_than_burst_and_rate(
        interval in 100_u64..20_000,
        burst in 1_u32..20,
        costs in prop::collection::vec(1_u32..4, 300),
    ) {
        let quota = quota(Duration::from_nanos(interval), burst);
        let (tat, start) = (AtomicTat::default(), Start::now());
        let served = || {
            let mut served = Vec::new();
            for &cost in &costs {
                let now = start.until(Instant::now());
                let Some(charge) = Charge::tokens(now, quota, cost) else { continue };
                served.extend(tat.take(&charge).is_ok().then_some((now, charge.cost())));
            }
            served
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(served);
            [served(), other.join().unwrap()].concat()
        });
        assert_within(both, quota.depth());
    }
}

fn tokens(now: u64, quota: Quota, tokens: u32) -> Charge {
    Charge::tokens(now, quota, tokens).unwrap()
}

#[test]
fn a_costly_request_waits_for_all_it_costs_and_one_beyond_the_burst_is_none() {
    let quota = quota(Duration::from_nanos(10), 3);
    let tat = AtomicTat::default();
    assert_eq!(tat.take(&tokens(100, quota, 3)), Ok(30));
    assert_eq!(tat.take(&tokens(110, quota, 3)), Err(20));
    assert_eq!(tat.take(&tokens(110, quota, 1)), Ok(30));
    assert_eq!(Charge::tokens(100, quota, 4), None);
}

#[test]
fn a_request_that_may_wait_queues_behind_the_waiting_ones() {
    let quota = quota(Duration::from_nanos(10), 2);
    let tat = AtomicTat::default();
    let charge = Charge::one(100, quota).with_max_wait(25);
    let turns = [(); 5].map(|()| tat.take(&charge).map(|debt| charge.turn(debt)));
    assert_eq!(turns, [Ok(0), Ok(0), Ok(10), Ok(20), Err(30)]);
    assert_eq!(
        tat.take(&Charge::one(119, quota)),
        Err(11),
        "one who would not wait comes after them"
    );
}

#[test]
fn what_is_given_back_at_once_is_all_of_it_and_later_only_what_lies_ahead() {
    let quota = quota(Duration::from_nanos(10), 3);
    for (later, left) in [(0, 0), (4, 4), (9, 9), (10, 10), (50, 10)] {
        let tat = AtomicTat::default();
        let charge = Charge::one(100, quota);
        tat.take(&charge).unwrap();
        tat.refund(Refund::of(charge.ahead(100, 100 + later)));
        assert_eq!(tat.debt(100), left, "after {later} ns");
    }
}

#[test]
fn a_refund_brings_a_bucket_no_further_than_its_floor_and_never_back() {
    let refund = Refund::of(10).not_before(95);
    assert_eq!(refund.apply(120), Some(110));
    assert_eq!(refund.apply(100), Some(95));
    assert_eq!(refund.apply(95), None);
    assert_eq!(refund.apply(90), None);
    assert_eq!(Refund::NOTHING.apply(90), None);
}

/// What a client does.
#[derive(Clone, Debug)]
struct Act {
    step: u64,
    tokens: u32,
    may_wait: bool,
}

fn acts(longest: usize) -> impl Strategy<Value = Vec<Act>> {
    let act = (
        prop_oneof![Just(0), 0_u64..60, 0_u64..400],
        1_u32..4,
        any::<bool>(),
    );
    let act = act.prop_map(|(step, tokens, may_wait)| Act {
        step,
        tokens,
        may_wait,
    });
    prop::collection::vec(act, 1..longest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn while_quotas_change_each_is_kept_and_the_time_that_is_owed_too(
        quotas in prop::collection::vec((1_u64..60, 1_u32..6, 0_usize..30), 1..8),
        acts in acts(150),
    ) {
        let mut quotas = quotas.into_iter().map(|(interval, burst, turns)| (quota(Duration::from_nanos(interval), burst), turns)).cycle();
        let (tat, mut now, mut deepest) = (AtomicTat::default(), 1_000, 0);
        let (mut of_all, mut of_this) = (Vec::new(), Vec::new());
        let (mut current, mut turns) = quotas.next().unwrap();
        for act in acts {
            now += act.step;
            if turns == 0 {
                assert_within(std::mem::take(&mut of_this), current.depth());
                (current, turns) = quotas.next().unwrap();
            }
            turns = turns.saturating_sub(1);
            deepest = deepest.max(current.depth());
            if let Some(charge) = Charge::tokens(now, current, act.tokens) && tat.take(&charge).is_ok() {
                of_all.push((now, charge.cost()));
                of_this.push((now, charge.cost()));
            }
        }
        assert_within(of_this, current.depth());
        assert_within(of_all, deepest);
    }

    /// As a limiter does it.
    #[test]
    fn while_quotas_change_each_is_kept_and_no_request_waits_longer_than_it_allows(
        quotas in prop::collection::vec((1_u64..2_000, 1_u32..6, 0_usize..30), 1..8),
        acts in acts(150),
        max_wait in prop_oneof![Just(0), 0_u64..300],
    ) {
        let mut quotas = quotas.into_iter().map(|(interval, burst, turns)| (quota(Duration::from_nanos(interval), burst), turns)).cycle();
        let (mut current, mut turns) = quotas.next().unwrap();
        let (tat, quota_cell, mut now, mut served) = (AtomicTat::default(), QuotaCell::new(current), 1_000, Vec::new());
        for act in acts {
            now += act.step;
            if turns == 0 {
                assert_within(std::mem::take(&mut served), current.depth());
                (current, turns) = quotas.next().unwrap();
                quota_cell.set(current, now);
            }
            turns = turns.saturating_sub(1);
            let Some(charge) = Charge::tokens(now, current, act.tokens) else { continue };
            let charge = if act.may_wait { charge.with_max_wait(max_wait) } else { charge };
            quota_cell.note_max_wait(&charge);
            match tat.take(&charge) {
                Ok(debt) => served.push((now + charge.turn(debt), charge.cost())),
                Err(wait) => {
                    let (wait, latest) = quota_cell.clamp_debt(&charge, wait);
                    prop_assert!(wait <= charge.cost() + max_wait, "{} of {}", wait, charge.cost());
                    latest.into_iter().for_each(|latest| tat.lower(latest));
                    prop_assert_eq!(tat.peek(&charge.with_max_wait(0)), Err(wait), "it is told what is so");
                }
            }
        }
        assert_within(served, current.depth());
    }

    #[test]
    fn governor_decides_the_same_about_requests_that_cost_more(
        interval in 1_u64..5_000,
        burst in 1_u32..20,
        requests in prop::collection::vec((prop_oneof![Just(0), 0_u64..200, 0_u64..20_000], 1_u32..25), 1..200),
    ) {
        let ours = quota(Duration::from_nanos(interval), burst);
        let theirs = governor::Quota::with_period(ours.interval()).unwrap().allow_burst(NonZeroU32::new(ours.burst_size()).unwrap());
        let clock = FakeRelativeClock::default();
        let limiter = RateLimiter::direct_with_clock(theirs, clock.clone());
        let (tat, mut now) = (AtomicTat::default(), 0);
        for (step, number) in requests {
            now += step;
            clock.advance(Duration::from_nanos(step));
            let decision = Charge::tokens(now, ours, number).map(|charge| tat.take(&charge).map(drop).map_err(Duration::from_nanos));
            let oracle = limiter.check_n(NonZeroU32::new(number).unwrap()).ok().map(|decision| decision.map_err(|not_until| {
                not_until.wait_time_from(governor::clock::Clock::now(&clock))
            }));
            prop_assert_eq!(decision, oracle);
        }
    }
}

/// Every stretch between two of those served, both counted: what they cost is at most the depth and the time between.
fn assert_within(mut served: Vec<(u64, u64)>, depth: u64) {
    served.sort_unstable();
    for (first, &(from, _)) in served.iter().enumerate() {
        let mut cost = 0;
        for &(to, more) in &served[first..] {
            cost += more;
            assert!(
                cost <= depth + (to - from),
                "{cost} in {from}..={to} of a depth of {depth}: {served:?}"
            );
        }
    }
}

/// Every stretch between two admissions, both counted: at most the burst and what the rate gives in that time.
fn assert_conforming(admitted: &[u64], quota: Quota) {
    for (first, &from) in admitted.iter().enumerate() {
        for (last, &to) in admitted.iter().enumerate().skip(first) {
            let most = u64::from(quota.burst_size()) + (to - from) / quota.interval_nanos();
            assert!(
                ((last - first) as u64) < most,
                "more than {most} in {from}..={to}"
            );
        }
    }
}
