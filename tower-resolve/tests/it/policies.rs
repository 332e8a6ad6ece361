//! The effect of policies, tiers and limits on the traffic of a whole balance, in paused time.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Request;
use testkit::{Answer, Script, Step};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::Service;
use tower_outcome::{BoxError, EjectionBudget, Outcome, classify};
use tower_resolve::{
    Balance, Endpoint, NoEndpoints, Phase,
    balance::{Stamp, Subset},
    policy::{Bound, LeastRequest, Maglev, PeakEwma, Policy, Random, RingHash, RoundRobin},
};

use crate::support::{
    endpoint,
    replica::{Replicas, by_header, endpoints, is_about, name, weighted},
    request, rig, settle, snapshot, source, timed,
};

// === shares ===

#[tokio::test(start_paused = true)]
async fn every_policy_keeps_to_its_shares_through_the_whole_balance() {
    async fn check<P: Policy<Request<String>>>(policy: P, weights: &[u32], exact: bool) {
        let all = Replicas::new(Balance::builder().policy(policy), weighted(weights)).await;
        let total: u32 = weights.iter().sum();
        all.send(6_000).await;
        for (served, weight) in all.served(weights.len()).into_iter().zip(weights) {
            let share = f64::from(*weight) / f64::from(total);
            let fits = match exact {
                true => (served as f64 - 6_000.0 * share).abs() <= 4.0,
                false => is_about(served, share, 6_000.0),
            };
            assert!(fits, "{} of {total}: {served}", *weight);
        }
    }
    check(RoundRobin::new(), &[1; 6], true).await;
    check(RoundRobin::new(), &[3, 2, 1], true).await;
    check(Random, &[1; 6], false).await;
    check(Random, &[3, 2, 1], false).await;
    for weights in [&[1; 6][..], &[1, 2], &[1, 99], &[3, 2, 1]] {
        check(LeastRequest, weights, false).await;
        check(PeakEwma, weights, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_less_if_the_policy_compares_loads() {
    async fn share<P: Policy<Request<String>>>(policy: P) -> f64 {
        let all = Replicas::new(Balance::builder().policy(policy), endpoints(5)).await;
        (0..5).for_each(|id| {
            all.of(id)
                .millis
                .store(if id == 0 { 100 } else { 10 }, SeqCst)
        });
        assert_eq!(all.load(20, 200).await, 0);
        all.served(5)[0] as f64 / 4_000.0
    }
    assert!(share(RoundRobin::new()).await > 0.19);
    assert!(share(LeastRequest).await < 0.12);
    assert!(share(PeakEwma).await < 0.06);
}

// === failing fast ===

#[tokio::test(start_paused = true)]
async fn a_black_hole_that_fails_fast_does_not_attract_traffic() {
    // tower measures a failure as a very short round trip, and an endpoint that fails at once is idle, so it attracts all
    // traffic.
    async fn share<P: Policy<Request<String>>>(policy: P) -> f64 {
        let all = Replicas::new(Balance::builder().policy(policy), endpoints(10)).await;
        (0..10).for_each(|id| all.of(id).millis.store(10, SeqCst));
        all.of(3).fails.store(true, SeqCst);
        let failed = all.load(50, 400).await;
        failed as f64 / 20_000.0
    }
    for (share, policy) in [
        (share(LeastRequest).await, "least request"),
        (share(PeakEwma).await, "peak EWMA"),
    ] {
        assert!(
            share < 0.01,
            "{policy}: {share}, where a fair share would be 0.1"
        );
    }
    assert!(
        (share(RoundRobin::new()).await - 0.1).abs() < 0.001,
        "and here just its share"
    );
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_that_never_answers_does_not_attract_requests_with_a_timeout() {
    // An abandoned request has no response time. If it were not measured at all, an endpoint that never answers would remain
    // the best one: unknown, or as fast as it once was and faster with each second.
    let all = Replicas::new(Balance::builder().policy(PeakEwma), endpoints(10)).await;
    (0..10).for_each(|id| all.of(id).millis.store(50, SeqCst));
    all.load(10, 20).await;
    all.of(3).millis.store(3_600_000, SeqCst);
    sleep(Duration::from_secs(30)).await;
    all.served(10);
    let mut given_up = 0;
    for _ in 0..500 {
        let mut balance = all.balance.clone();
        given_up += usize::from(
            timeout(Duration::from_millis(200), balance.call(request()))
                .await
                .is_err(),
        );
    }
    assert!(
        given_up < 25,
        "{given_up} of 500, where a fair share would be 50"
    );
}

#[tokio::test(start_paused = true)]
async fn a_retry_hint_on_a_success_expires_too() {
    let busy = classify::from_fn(
        |result: Result<&http::Response<Script>, &testkit::Broken>| match result {
            Ok(response) if response.status() == 202 => {
                Outcome::SUCCESS.with_retry_after(Some(Duration::from_secs(5)))
            }
            Ok(_) => Outcome::SUCCESS,
            Err(_) => Outcome::FAILURE,
        },
    );
    let mut rig = rig(Balance::builder().classify(busy));
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Status(202));
    while rig.made.calls("a") == 0 {
        rig.balance.call(request()).await.unwrap();
    }
    // Its cost is that of thousands of requests, so it is not picked, and only time makes it eligible again.
    sleep(Duration::from_secs(35)).await;
    for _ in 0..100 {
        rig.balance.call(request()).await.unwrap();
    }
    assert!(rig.made.calls("a") > 20, "{}", rig.made.calls("a"));
}

#[tokio::test(start_paused = true)]
async fn a_recovered_endpoint_is_used_again_in_time() {
    let all = Replicas::new(Balance::builder(), endpoints(10)).await;
    (0..10).for_each(|id| all.of(id).millis.store(10, SeqCst));
    all.of(3).fails.store(true, SeqCst);
    all.load(50, 100).await;
    all.of(3).fails.store(false, SeqCst);
    sleep(Duration::from_secs(30)).await;
    all.served(10);
    assert_eq!(all.load(50, 100).await, 0);
    assert!(all.served(10)[3] > 300, "about its share of 5 000");
}

#[tokio::test(start_paused = true)]
async fn a_few_failures_everywhere_exclude_no_endpoint() {
    let all = Replicas::new(Balance::builder(), endpoints(4)).await;
    for round in 0..400 {
        let bad = round % 4;
        all.of(bad).fails.store(true, SeqCst);
        let mut balance = all.balance.clone();
        let _ = balance.call(request()).await;
        all.of(bad).fails.store(false, SeqCst);
        all.load(1, 9).await;
    }
    let served = all.served(4);
    assert!(
        served.iter().all(|served| (800..1_200).contains(served)),
        "{served:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_a_retry_hint_gets_no_requests_until_then() {
    let busy = classify::from_fn(
        |result: Result<&http::Response<Script>, &testkit::Broken>| match result {
            Ok(response) if response.status() == 429 => {
                Outcome::THROTTLED.with_retry_after(Some(Duration::from_secs(5)))
            }
            Ok(_) => Outcome::SUCCESS,
            Err(_) => Outcome::FAILURE,
        },
    );
    let mut rig = rig(Balance::builder().classify(busy));
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    rig.made.of("a").answer(Answer::Status(429));
    while rig.made.calls("a") == 0 {
        rig.balance.call(request()).await.unwrap();
    }
    for _ in 0..4 {
        let before = rig.made.calls("a");
        for _ in 0..100 {
            rig.balance.call(request()).await.unwrap();
        }
        assert_eq!(rig.made.calls("a"), before, "the other one is idle, too");
        sleep(Duration::from_millis(1_200)).await;
    }
    sleep(Duration::from_secs(30)).await;
    for _ in 0..100 {
        rig.balance.call(request()).await.unwrap();
    }
    assert!(rig.made.calls("a") > 20, "{}", rig.made.calls("a"));
    assert_eq!(rig.balance.snapshot().endpoints[0].failures, 1);
}

// === failing over ===

#[tokio::test(start_paused = true)]
async fn endpoints_that_die_one_by_one_under_load_cause_no_error() {
    async fn check<P: Policy<Request<String>>>(policy: P) {
        let all = Arc::new(Replicas::new(Balance::builder().policy(policy), endpoints(8)).await);
        (0..8).for_each(|id| all.of(id).millis.store(5, SeqCst));
        let load = {
            let all = all.clone();
            tokio::spawn(async move { all.load(32, 100).await })
        };
        for id in 0..7 {
            sleep(Duration::from_millis(20)).await;
            all.die(id);
        }
        assert_eq!(load.await.unwrap(), 0);
        assert_eq!(all.served(8).iter().sum::<u64>(), 3_200);
        assert_eq!(all.balance.snapshot().ready(), 1);
    }
    check(RoundRobin::new()).await;
    check(LeastRequest).await;
    check(PeakEwma).await;
    check(Maglev::new(|_: &Request<String>| None)).await;
}

// === sticky ===

#[tokio::test(start_paused = true)]
async fn a_user_stays_at_an_endpoint_and_few_move_when_one_leaves() {
    async fn check<P: Policy<Request<String>>>(policy: P, more: f64) {
        let mut all = Replicas::new(Balance::builder().policy(policy), endpoints(20)).await;
        let homes = async |all: &Replicas<P>| {
            let mut homes = Vec::new();
            for user in 0..500 {
                let request = Request::builder()
                    .header("x-user", user.to_string())
                    .body(String::new())
                    .unwrap();
                all.balance.clone().call(request).await.unwrap();
                homes.push(
                    all.served(20)
                        .iter()
                        .position(|served| *served == 1)
                        .unwrap(),
                );
            }
            homes
        };
        let before = homes(&all).await;
        assert_eq!(before, homes(&all).await);
        // An endpoint that is not ready keeps its users, which use another one meanwhile.
        all.die(7);
        let meanwhile = homes(&all).await;
        assert!(
            before
                .iter()
                .zip(&meanwhile)
                .all(|(before, now)| before == now || *before == 7)
        );
        assert!(!meanwhile.contains(&7));
        all.revive(7);
        settle().await;
        assert_eq!(before, homes(&all).await);
        // A removed endpoint loses them.
        all.set(
            endpoints(20)
                .into_iter()
                .filter(|endpoint| endpoint.id().as_str() != "e007")
                .collect(),
        )
        .await;
        let after = homes(&all).await;
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after && **before != 7)
            .count();
        assert!(moved as f64 <= 500.0 * more, "{moved} moved without need");
    }
    check(RingHash::new(by_header), 0.0).await;
    check(Maglev::new(by_header), 0.02).await;
}

#[tokio::test(start_paused = true)]
async fn all_requests_of_a_user_at_once_go_to_one_endpoint() {
    // A browser opens six connections to a host: the session or the cache is at one endpoint.
    async fn check<P: Policy<Request<String>>>(policy: P) {
        let all = Replicas::new(Balance::builder().policy(policy), endpoints(10)).await;
        (0..10).for_each(|id| all.of(id).millis.store(100, SeqCst));
        for user in 0..20 {
            let mut calls = JoinSet::new();
            for _ in 0..12 {
                let request = Request::builder().header("x-user", user);
                let call = all
                    .balance
                    .clone()
                    .call(request.body(String::new()).unwrap());
                calls.spawn(async move { call.await.map(drop) });
            }
            calls
                .join_all()
                .await
                .into_iter()
                .for_each(|answer| answer.unwrap());
            let homes = all.served(10).into_iter().filter(|served| *served > 0);
            assert_eq!(homes.count(), 1, "of user {user}");
        }
    }
    check(RingHash::new(by_header)).await;
    check(Maglev::new(by_header)).await;
}

#[tokio::test(start_paused = true)]
async fn a_bound_keeps_one_popular_key_from_overloading_its_endpoint() {
    async fn busiest<P: Policy<Request<String>>>(policy: P) -> u64 {
        let all = Replicas::new(Balance::builder().policy(policy), endpoints(10)).await;
        (0..10).for_each(|id| all.of(id).millis.store(100, SeqCst));
        all.load(100, 1).await;
        *all.served(10).iter().max().unwrap()
    }
    fn one(_: &Request<String>) -> Option<u64> {
        Some(7)
    }
    assert!(
        busiest(RingHash::new(one).bound(Bound::percent(25))).await <= 13,
        "a quarter above the mean, rounded up"
    );
    assert!(busiest(Maglev::new(one).bound(Bound::percent(25))).await <= 13);
}

// === tiers ===

#[tokio::test(start_paused = true)]
async fn the_own_zone_is_preferred_and_spills_over_as_it_shrinks() {
    let zoned = |id: usize| endpoint(&name(id)).with_zone(if id < 10 { "here" } else { "there" });
    let all = Replicas::new(
        Balance::builder().policy(RoundRobin::new()).zone("here"),
        (0..20).map(zoned).collect(),
    )
    .await;
    let here = async |dead: std::ops::Range<usize>| {
        dead.for_each(|id| all.die(id));
        all.send(200).await;
        all.served(20);
        all.send(2_000).await;
        all.served(20)[..10].iter().sum::<u64>()
    };
    assert_eq!(here(0..0).await, 2_000);
    assert_eq!(here(0..2).await, 2_000, "8 of 10 can do it");
    assert!(
        is_about(here(2..5).await, 0.7, 2_000.0),
        "5 of 10 take 7 tenths"
    );
    assert!(
        is_about(here(5..9).await, 0.14, 2_000.0),
        "1 of 10 takes 1.4 tenths"
    );
    assert_eq!(here(9..10).await, 0);
}

#[tokio::test(start_paused = true)]
async fn keys_spill_over_as_requests_without_do_and_stay_where_they_are() {
    let zoned = |id: usize| endpoint(&name(id)).with_zone(if id < 10 { "here" } else { "there" });
    // Small numbers, such as the ids in a table of users.
    let by_number = |request: &Request<String>| request.body().parse().ok();
    let policy = RingHash::new(by_number).points(NonZeroU32::new(1_000).unwrap());
    let all = Replicas::new(
        Balance::builder().policy(policy).zone("here"),
        (0..20).map(zoned).collect(),
    )
    .await;
    (0..5).for_each(|id| all.die(id));
    let send = async || {
        for user in 0..2_000 {
            all.balance
                .clone()
                .call(Request::new(user.to_string()))
                .await
                .unwrap();
        }
        all.served(20)
    };
    send().await;
    let served = send().await;
    assert!(
        is_about(served[..10].iter().sum(), 0.7, 2_000.0),
        "5 of 10 take 7 tenths: {served:?}"
    );
    assert!(
        served[5..10].iter().all(|served| *served > 100),
        "{served:?}"
    );
    assert!(served[10..].iter().all(|served| *served > 20), "{served:?}");
    assert_eq!(send().await, served, "and each key its endpoint");
}

#[tokio::test(start_paused = true)]
async fn a_higher_priority_number_serves_when_the_lower_one_cannot() {
    let ranked = |id: usize| endpoint(&name(id)).with_priority(if id < 2 { 0 } else { 7 });
    let all = Replicas::new(Balance::builder(), (0..4).map(ranked).collect()).await;
    all.send(100).await;
    assert_eq!(all.served(4)[2..], [0, 0]);
    all.die(0);
    all.die(1);
    all.send(100).await;
    assert_eq!(all.served(4)[2..].iter().sum::<u64>(), 100);
}

#[tokio::test(start_paused = true)]
async fn only_a_part_is_used_and_a_removed_endpoint_is_replaced() {
    let subset = Subset::new("me").size(NonZeroUsize::new(5).unwrap());
    let mut all = Replicas::new(
        Balance::builder().policy(RoundRobin::new()).subset(subset),
        endpoints(50),
    )
    .await;
    all.send(100).await;
    let used: Vec<_> = (0..50)
        .zip(all.served(50))
        .filter(|(_, served)| *served > 0)
        .collect();
    assert_eq!(
        used.iter().map(|(_, served)| *served).collect::<Vec<_>>(),
        [20; 5]
    );
    assert_eq!(all.balance.snapshot().endpoints.len(), 5);
    let gone = name(used[0].0);
    all.set(
        endpoints(50)
            .into_iter()
            .filter(|endpoint| endpoint.id().as_str() != gone)
            .collect(),
    )
    .await;
    all.send(100).await;
    let now: Vec<_> = (0..50)
        .zip(all.served(50))
        .filter(|(_, served)| *served > 0)
        .map(|(id, _)| id)
        .collect();
    assert_eq!(now.len(), 5);
    assert!(
        used[1..].iter().all(|(id, _)| now.contains(id)),
        "and the rest stays"
    );
}

#[tokio::test(start_paused = true)]
async fn a_subset_has_endpoints_of_the_preferred_tier_for_every_client() {
    // With one subset over all tiers, a client in four would have none of ten primaries among 200 endpoints.
    for client in 0..30 {
        let subset = Subset::new(&client.to_string());
        let ranked = |id: usize| endpoint(&name(id)).with_priority(u16::from(id >= 10));
        let zoned = |id: usize| endpoint(&name(id)).with_zone(["here", "there"][id.min(10) / 10]);
        for all in [
            (0..200).map(ranked).collect(),
            (0..200).map(zoned).collect::<Vec<_>>(),
        ] {
            let builder = Balance::builder().subset(subset.clone()).zone("here");
            let all = Replicas::new(builder, all).await;
            all.send(50).await;
            let served = all.served(200);
            assert_eq!(served[..10].iter().sum::<u64>(), 50, "client {client}");
            assert_eq!(all.balance.snapshot().endpoints.len(), 30);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_comes_up_slowly_and_the_first_ones_do_not() {
    let builder = Balance::builder()
        .policy(RoundRobin::new())
        .slow_start(Duration::from_secs(10));
    let mut all = Replicas::new(builder, endpoints(4)).await;
    all.send(400).await;
    assert_eq!(all.served(4), [100; 4]);
    sleep(Duration::from_secs(2)).await;
    all.set(endpoints(5)).await;
    let share = async |all: &Replicas<_>| {
        all.send(2_000).await;
        all.served(5)[4] as f64 / 2_000.0
    };
    let early = share(&all).await;
    assert!((0.005..0.06).contains(&early), "{early}");
    sleep(Duration::from_secs(5)).await;
    let halfway = share(&all).await;
    assert!((0.08..0.17).contains(&halfway), "{halfway}");
    sleep(Duration::from_secs(6)).await;
    assert_eq!(share(&all).await, 0.2);
}

/// The share of the fifth of five endpoints relative to its full share, from 20 clients.
async fn part_of_the_fifth<P: Policy<Request<String>>>(all: &Replicas<P>) -> f64 {
    (0..5).for_each(|id| all.of(id).millis.store(10, SeqCst));
    all.served(5);
    assert_eq!(all.load(20, 100).await, 0);
    all.served(5)[4] as f64 / 400.0
}

/// The share of a fifth at a tenth of its weight in 2 000 requests, within five standard deviations.
fn is_cold(part: f64) -> bool {
    let share = 0.1 / 4.1;
    (part - 5.0 * share).abs() < 5.0 * (share / 2_000.0_f64).sqrt() * 5.0
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_was_restarted_under_its_id_comes_up_slowly() {
    let window = Duration::from_secs(100);
    let mut all = Replicas::new(Balance::builder().slow_start(window), endpoints(5)).await;
    let part = part_of_the_fifth(&all).await;
    assert!((0.8..1.2).contains(&part), "the first set: {part}");
    sleep(window).await;
    let with = |last: Endpoint| endpoints(4).into_iter().chain([last]).collect::<Vec<_>>();
    let restarts = [
        endpoint(&name(4)).with_epoch(std::num::NonZeroU64::new(7)),
        Endpoint::new(name(4), ([127, 0, 0, 9], 80).into()),
    ];
    for restarted in restarts {
        all.set(with(restarted)).await;
        let part = part_of_the_fifth(&all).await;
        assert!(is_cold(part), "{part}");
        sleep(window).await;
        let part = part_of_the_fifth(&all).await;
        assert!((0.8..1.2).contains(&part), "{part}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_slow_start_of_an_endpoint_begins_when_it_may_be_picked() {
    let window = Duration::from_secs(100);
    let fifth = |phase| {
        let fifth = endpoint(&name(4)).with_phase(phase);
        endpoints(4).into_iter().chain([fifth]).collect::<Vec<_>>()
    };
    // In the first set and later; not yet meant to serve, and not yet ready.
    for is_first in [true, false] {
        for starts in [true, false] {
            let phase = if starts {
                Phase::Starting
            } else {
                Phase::Ready
            };
            let first = if is_first { fifth(phase) } else { endpoints(4) };
            let builder = Balance::builder().slow_start(window);
            let mut all = Replicas::new(builder, Vec::new()).await;
            if !starts {
                all.die(4);
            }
            all.set(first).await;
            sleep(Duration::from_secs(20)).await;
            all.set(fifth(phase)).await;
            sleep(Duration::from_secs(150)).await;
            assert_eq!(part_of_the_fifth(&all).await, 0.0);
            if starts {
                all.set(fifth(Phase::Ready)).await;
            } else {
                all.revive(4);
                settle().await;
            }
            let part = part_of_the_fifth(&all).await;
            assert!(is_cold(part), "first: {is_first}, starts: {starts}: {part}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_in_slow_start_is_not_picked_because_it_is_idle() {
    async fn check<P: Policy<Request<String>>>(policy: impl Fn() -> P) {
        for warm in [1, 2, 4, 9] {
            let window = Duration::from_secs(1_000);
            let builder = Balance::builder().policy(policy()).slow_start(window);
            let mut all = Replicas::new(builder, endpoints(warm)).await;
            (0..=warm).for_each(|id| all.of(id).millis.store(10, SeqCst));
            sleep(window).await;
            all.set(endpoints(warm + 1)).await;
            all.load(20, 100).await;
            let served = all.served(warm + 1)[warm] as f64;
            let share = 0.1 / (warm as f64 + 0.1);
            assert!(
                (served - 2_000.0 * share).abs() < 5.0 * (2_000.0 * share).sqrt(),
                "{warm} + 1: {served}, not {}",
                2_000.0 * share
            );
        }
    }
    check(|| LeastRequest).await;
    check(|| PeakEwma).await;
    check(RoundRobin::new).await;
    check(|| Random).await;
}

// === limits ===

#[tokio::test(start_paused = true)]
async fn the_limit_of_an_endpoint_holds_to_the_end_of_the_body() {
    let limit = NonZeroU32::new(1).unwrap();
    let mut rig = rig(Balance::builder()
        .http()
        .max_in_flight(limit)
        .max_wait(Duration::from_millis(100)));
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    settle().await;
    for id in ["a", "b"] {
        rig.made.of(id).answer(Answer::Body(
            200,
            Script::new([Step::Data("x"), Step::Hang]),
        ));
    }
    let bodies = [
        rig.balance.call(request()).await.unwrap(),
        rig.balance.call(request()).await.unwrap(),
    ];
    assert_eq!(["a", "b"].map(|id| rig.made.calls(id)), [1, 1]);
    let (answer, took) = timed(rig.balance.call(request())).await;
    assert!(answer.unwrap_err().is::<NoEndpoints>());
    assert_eq!(took, Duration::from_millis(100));
    // Full is not "not ready": the driver is not involved, and the free slot is found at once.
    assert_eq!(rig.balance.snapshot().ready(), 2);
    let mut balance = rig.balance.clone();
    let waits = tokio::spawn(async move { balance.call(request()).await.map(drop) });
    tokio::task::yield_now().await;
    drop(bodies);
    let (answer, took) = timed(waits).await;
    answer.unwrap().unwrap();
    assert_eq!(took, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_several_threads_the_limit_is_never_exceeded_and_no_request_is_left_waiting() {
    #[derive(Clone, Default)]
    struct Counting(Arc<(AtomicUsize, AtomicUsize)>);
    impl Service<u32> for Counting {
        type Response = ();
        type Error = BoxError;
        type Future = BoxFuture<'static, Result<(), BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: u32) -> Self::Future {
            let counts = self.0.clone();
            Box::pin(async move {
                counts
                    .1
                    .fetch_max(counts.0.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                counts.0.fetch_sub(1, SeqCst);
                Ok(())
            })
        }
    }
    let (source, updates) = source();
    let made = [Counting::default(), Counting::default()];
    let all = made.clone();
    let make = move |endpoint: &Endpoint, _: &EjectionBudget| {
        all[usize::from(endpoint.id().as_str() == "b")].clone()
    };
    let builder = Balance::builder()
        .max_in_flight(NonZeroU32::new(2).unwrap())
        .max_wait(Duration::from_secs(60));
    let (balance, driver) = builder.build(updates, make);
    tokio::spawn(driver);
    source.send(snapshot(1, &["a", "b"])).unwrap();
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let mut balance = balance.clone();
        clients.spawn(async move {
            for request in 0..200 {
                balance.call(request).await.unwrap();
            }
        });
    }
    tokio::time::timeout(Duration::from_secs(50), clients.join_all())
        .await
        .expect("no request is left waiting");
    assert!(made.iter().all(|made| made.0.1.load(SeqCst) <= 2));
    assert_eq!(
        balance
            .snapshot()
            .endpoints
            .iter()
            .map(|endpoint| endpoint.picks)
            .sum::<u64>(),
        12_800
    );
}

/// A custom classification adds no header unless it implements that.
#[derive(Clone, Copy)]
struct Mine;

impl<Req> classify::Classify<Req> for Mine {
    type Classifier = classify::AnyErr;

    fn classify(&self, _: &Req) -> classify::AnyErr {
        classify::AnyErr
    }
}

impl<Req> Stamp<Req> for Mine {}

#[tokio::test(start_paused = true)]
async fn a_custom_classification_is_a_few_lines() {
    let mut rig = rig(Balance::builder().classify(Mine));
    rig.source.send(snapshot(1, &["a"])).unwrap();
    settle().await;
    rig.balance.call(request()).await.unwrap();
}
