//! The share of the traffic of each endpoint, under every policy, when the fleet changes, fails or is overloaded.
//!
//! Time is paused and everything runs on one thread, so a scenario is the same each time: by a fixed seed, or the one in
//! `SCENARIO_SEED`, which a failure names. A comment at each bound gives its reason.

mod lab;

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use tokio::time::sleep;
use tower_resolve::{
    Balance, Endpoint,
    policy::{LeastRequest, Maglev, PeakEwma, Policy, Random, RingHash, RoundRobin},
};

use self::lab::{Ill, Kind, Lab, NO_PAUSE, Request, endpoints, name, under_every_policy, weighted};
use crate::support::endpoint;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

// === weights ===

/// The shares are the weights, for any number of requests in flight.
async fn shares<P: Policy<Request>>(
    kind: Kind,
    policy: impl Fn() -> P,
    weights: &[u32],
    requests: u64,
) {
    let parts: Vec<f64> = weights.iter().copied().map(f64::from).collect();
    // Policies that do not compare loads have the same shares under any.
    let loads = if kind.looks_at_load() {
        &[1, 4, 20, 100][..]
    } else {
        &[20]
    };
    for clients in loads {
        let builder = Balance::builder().policy(policy());
        let mut lab = Lab::new(kind, builder, weighted(weights)).await;
        lab.clients(*clients, NO_PAUSE);
        let seen = lab.watch_requests(weights.len(), requests).await;
        seen.has_shares(&parts, format_args!("{weights:?}, {clients} clients"));
        assert_eq!(seen.failed, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_have_equal_shares() {
    under_every_policy!(shares(&[1; 5], 2_000));
}

#[tokio::test(start_paused = true)]
async fn uneven_weights_are_shares() {
    under_every_policy!(shares(&[1, 2], 2_000));
    under_every_policy!(shares(&[1, 4], 2_000));
    under_every_policy!(shares(&[1, 2, 3, 4], 2_000));
}

#[tokio::test(start_paused = true)]
async fn a_canary_of_one_percent_has_one_percent() {
    under_every_policy!(shares(&[1, 99], 10_000));
}

/// One client at a time is the usual case for most services.
#[tokio::test(start_paused = true)]
async fn a_client_that_comes_once_a_second_reaches_all() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        let builder = Balance::builder().policy(policy());
        let mut lab = Lab::new(kind, builder, weighted(&[1, 1, 2])).await;
        lab.clients(1, seconds(1.0));
        let seen = lab.watch(3, seconds(1_000.0)).await;
        // Between its requests, the latency that peak EWMA knows of an endpoint falls by a tenth per second; it then prefers
        // the least recently used one.
        let more = if kind == Kind::PeakEwma { 0.1 } else { 0.0 };
        seen.has_shares_within(&[1.0, 1.0, 2.0], more, "idle");
    }
    under_every_policy!(scenario());
}

// === changes of the set ===

/// Next to endpoints that answer in a millisecond, peak EWMA never picked a new one.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_joins_has_its_share_within_a_second() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        for (clients, millis) in [(4, 1), (20, 10), (20, 100)] {
            let builder = Balance::builder().policy(policy());
            let mut lab = Lab::new(kind, builder, endpoints(4)).await;
            (0..5).for_each(|id| lab.takes(id, Duration::from_millis(millis)));
            lab.clients(clients, NO_PAUSE);
            let before = lab.watch(5, seconds(1.0)).await;
            before.has_shares(&[1.0, 1.0, 1.0, 1.0, 0.0], "before");
            lab.set(endpoints(5)).await;
            let joins = lab.watch(5, seconds(0.1)).await;
            // It is idle, so it gets more than its share for a moment, but it is not overloaded.
            let others = *joins.most[..4].iter().max().unwrap();
            assert!(joins.most[4] <= others + 2, "{joins}: {:?}", joins.most);
            sleep(seconds(0.9)).await;
            let after = lab.watch(5, seconds(4.0)).await;
            after.has_shares(&[1.0; 5], format_args!("{clients} clients, {millis} ms"));
        }
    }
    under_every_policy!(scenario());
}

#[tokio::test(start_paused = true)]
async fn the_share_of_a_removed_endpoint_goes_to_the_rest() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        let builder = Balance::builder().policy(policy());
        let mut lab = Lab::new(kind, builder, endpoints(5)).await;
        lab.clients(20, NO_PAUSE);
        let before = lab.watch(5, seconds(0.5)).await;
        lab.set(endpoints(4)).await;
        let after = lab.watch(5, seconds(1.0)).await;
        after.has_shares(&[1.0, 1.0, 1.0, 1.0, 0.0], "one left");
        assert_eq!((before.failed, after.failed), (0, 0));
    }
    under_every_policy!(scenario());
}

/// The weight of an endpoint relative to this number of equal ones at this warmth. With keys, that is the part of its keys
/// that have moved.
fn cold(kind: Kind, others: usize, warmth: f64) -> f64 {
    if kind.looks_at_keys() {
        let share = warmth / (others as f64 + 1.0);
        share / (1.0 - share) * others as f64
    } else {
        warmth
    }
}

/// At a tenth of its weight at first, from the moment at which it may be picked, and all of it at the end.
#[tokio::test(start_paused = true)]
async fn an_endpoint_restarted_under_its_id_comes_up_slowly() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        let builder = Balance::builder()
            .policy(policy())
            .slow_start(seconds(20.0));
        let mut lab = Lab::new(kind, builder, endpoints(5)).await;
        lab.clients(20, NO_PAUSE);
        let first = lab.watch(5, seconds(0.5)).await;
        first.has_shares(&[1.0; 5], "the first set");
        lab.rest(seconds(4.0)).await;
        lab.is_dead(4, true);
        let mut restarted = endpoints(5);
        restarted[4] = endpoint(&name(4)).with_epoch(NonZeroU64::new(2));
        lab.set(restarted).await;
        // It boots for longer than the slow start takes.
        lab.rest(seconds(30.0)).await;
        let unready = lab.watch(5, seconds(0.5)).await;
        assert_eq!(unready.served[4], 0, "{unready}");
        lab.is_dead(4, false);
        for (at, warmth) in [(1.0, 0.1), (10.0, 0.5), (21.0, 1.0)] {
            let seen = lab.watch(5, seconds(1.0)).await;
            // The warmth of half a second later or sooner.
            let weights = [1.0, 1.0, 1.0, 1.0, cold(kind, 4, warmth)];
            seen.has_shares_within(&weights, 0.2, format_args!("{at} s after"));
            lab.rest(seconds(if at < 5.0 { 8.5 } else { 10.0 })).await;
        }
    }
    under_every_policy!(scenario());
}

/// Also if half of all picks draw the endpoint in slow start.
#[tokio::test(start_paused = true)]
async fn a_cold_endpoint_has_a_tenth_of_its_share() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        for (warm, clients) in [(1, 20), (4, 20), (4, 100)] {
            let builder = Balance::builder()
                .policy(policy())
                .slow_start(seconds(10_000.0));
            let mut lab = Lab::new(kind, builder, endpoints(warm)).await;
            sleep(seconds(1_000.0)).await;
            lab.set(endpoints(warm + 1)).await;
            lab.clients(clients, NO_PAUSE);
            let seen = lab.watch_requests(warm + 1, 4_000).await;
            let weights = [&vec![1.0; warm][..], &[cold(kind, warm, 0.1)]].concat();
            // With 100 in flight a lighter one may have one more than its two, see `LeastRequest`.
            let more = if kind.looks_at_load() { 0.15 } else { 0.01 };
            seen.has_shares_within(
                &weights,
                more,
                format_args!("{warm} + 1, {clients} clients"),
            );
        }
    }
    under_every_policy!(scenario());
}

// === failures ===

/// A policy that compares loads must not treat an endpoint that fails at once as idle.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_at_once_attracts_nothing() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        let builder = Balance::builder().policy(policy());
        let mut lab = Lab::new(kind, builder, endpoints(5)).await;
        lab.clients(20, NO_PAUSE);
        lab.watch(5, seconds(0.5)).await;
        lab.fails(4, true);
        sleep(seconds(0.5)).await;
        let seen = lab.watch(5, seconds(2.0)).await;
        if kind.looks_at_load() {
            assert!(seen.share(4) < 0.02, "{seen}");
            let others = (1.0 - seen.share(4)) / 4.0;
            seen.has_shares(&[others, others, others, others, seen.share(4)], "the rest");
        } else {
            seen.has_shares(&[1.0; 5], "no more than its share");
        }
        // It has its share again, some time after it recovered.
        lab.fails(4, false);
        lab.rest(seconds(30.0)).await;
        lab.watch(5, seconds(1.0))
            .await
            .has_shares(&[1.0; 5], "well again");
    }
    under_every_policy!(scenario());
}

#[tokio::test(start_paused = true)]
async fn one_failure_costs_an_endpoint_nothing() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        let builder = Balance::builder().policy(policy());
        let mut lab = Lab::new(kind, builder, endpoints(5)).await;
        (0..5).for_each(|id| lab.takes(id, Duration::from_millis(5)));
        lab.clients(10, NO_PAUSE);
        lab.watch(5, seconds(0.5)).await;
        lab.fails(4, true);
        while lab.watch(5, Duration::from_millis(1)).await.failed == 0 {}
        lab.fails(4, false);
        lab.watch(5, seconds(2.0))
            .await
            .has_shares(&[1.0; 5], "after a failure");
    }
    under_every_policy!(scenario());
}

/// Endpoints 0 to 7 are preferred to 8 to 11, and all fail their checks at once.
async fn loses_the_first_eight<P: Policy<Request>>(
    kind: Kind,
    policy: impl Fn() -> P,
    placed: impl Fn(Endpoint, bool) -> Endpoint,
) {
    let ill = Ill::default();
    let builder = Balance::builder()
        .policy(policy())
        .zone("here")
        .active_check(ill.check());
    let set = endpoints(12).into_iter().enumerate();
    let set = set.map(|(id, endpoint)| placed(endpoint, id < 8)).collect();
    let mut lab = Lab::new(kind, builder, set).await;
    let [first, second] = [8, 4].map(|count| vec![1.0; count]);
    let (first, second) = (
        [first, vec![0.0; 4]].concat(),
        [vec![0.0; 8], second].concat(),
    );
    lab.clients(20, NO_PAUSE);
    lab.watch(12, seconds(1.0))
        .await
        .has_shares(&first, "all are well");

    ill.set(0..8);
    (0..8).for_each(|id| lab.fails(id, true));
    lab.rest(seconds(5.0)).await;
    // With a panic health would be ignored, because fewer than half of all are healthy; but the four can take the full load.
    let seen = lab.watch(12, seconds(1.0)).await;
    seen.has_shares(&second, "the first are ill");
    assert_eq!(
        (seen.failed, seen.served[..8].iter().sum::<u64>()),
        (0, 0),
        "{seen}"
    );

    // Two of eight take 1.4 times their share, and no request goes to the six, because the standby takes the rest.
    ill.set(0..6);
    (6..8).for_each(|id| lab.fails(id, false));
    lab.rest(seconds(5.0)).await;
    let seen = lab.watch(12, seconds(1.0)).await;
    assert_eq!(
        (seen.failed, seen.served[..6].iter().sum::<u64>()),
        (0, 0),
        "{seen}"
    );
    let part = seen.share(6) + seen.share(7);
    assert!((0.25..0.45).contains(&part), "{part}: {seen}");

    ill.set([]);
    (0..8).for_each(|id| lab.fails(id, false));
    lab.rest(seconds(5.0)).await;
    lab.watch(12, seconds(1.0))
        .await
        .has_shares(&first, "well again");
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_is_lost_gets_nothing_and_another_one_gets_it_all() {
    fn zoned(endpoint: Endpoint, is_first: bool) -> Endpoint {
        endpoint.with_zone(if is_first { "here" } else { "there" })
    }
    under_every_policy!(loses_the_first_eight(zoned));
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_is_smaller_than_its_primary_takes_over() {
    fn ranked(endpoint: Endpoint, is_first: bool) -> Endpoint {
        endpoint.with_priority(u16::from(!is_first))
    }
    under_every_policy!(loses_the_first_eight(ranked));
}

// === overload ===

/// Three times as many clients as slots: all slots are in use, and each client gets the same share.
#[tokio::test(start_paused = true)]
async fn under_overload_places_and_clients_have_equal_shares() {
    async fn scenario<P: Policy<Request>>(kind: Kind, policy: impl Fn() -> P) {
        let builder = Balance::builder()
            .policy(policy())
            .max_in_flight(NonZeroU32::new(2).unwrap());
        let mut lab = Lab::new(kind, builder, endpoints(5)).await;
        lab.clients(30, NO_PAUSE);
        lab.watch(5, seconds(0.5)).await;
        let seen = lab.watch(5, seconds(3.0)).await;
        assert_eq!(seen.failed, 0);
        // Two at a time of 10 ms each, and half of the clock's millisecond, as long as they are never idle.
        assert!(seen.total() > 2_800, "{seen}");
        for served in &seen.served {
            assert!(served.abs_diff(seen.total() / 5) < 20, "{seen}");
        }
        let [least, most] = [seen.answered.iter().min(), seen.answered.iter().max()];
        assert!(
            most.unwrap() - least.unwrap() <= 8,
            "{seen}: {:?}",
            seen.answered
        );
    }
    under_every_policy!(scenario());
}
