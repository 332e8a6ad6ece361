//! Costs, plans, shadows, several limits at once, changed quotas and header fields, in paused time.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use testkit::{Probe, ProbeHandle, contract};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt as _};
use tower_bucket::{
    BucketLayer, ClientIp, Exhausted, KeyedLimiter, Limiter, OnMissingKey, Path, PeerIp,
    PolicyName, ProxiedIp, Quota, Share,
};
use tower_outcome::Refusal;

use crate::common::{from, request};

const TEN_A_SECOND: Quota = Quota::per_second(10);
const FIVE_A_SECOND: Quota = Quota::per_second(5);
const A_MILLION: Quota = Quota::per_second(1_000_000);
const DEFAULT: PolicyName = PolicyName::new("default").unwrap();

fn layered<L: Layer<Probe>>(layer: &L) -> (L::Service, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (layer.layer(probe), handle)
}

async fn call<S: Service<Request<String>>>(
    service: &mut S,
    request: Request<String>,
) -> Result<S::Response, S::Error> {
    service.ready().await?.call(request).await
}

async fn status<S, B>(service: &mut S, request: Request<String>) -> u16
where
    S: Service<Request<String>, Response = Response<B>, Error: std::fmt::Debug>,
{
    call(service, request).await.unwrap().status().as_u16()
}

async fn pass<S, B>(service: &mut S, mut request: impl FnMut() -> Request<String>) -> usize
where
    S: Service<Request<String>, Response = Response<B>, Error: std::fmt::Debug>,
{
    for passed in 0..1_000 {
        if status(service, request()).await != 200 {
            return passed;
        }
    }
    panic!("never refused");
}

fn costing(tokens: &str) -> Request<String> {
    Request::builder()
        .header("x-cost", tokens)
        .body(String::new())
        .unwrap()
}

fn cost(request: &Request<String>) -> u32 {
    request
        .headers()
        .get("x-cost")
        .map_or(1, |cost| cost.to_str().unwrap().parse().unwrap())
}

fn lines<B>(response: &Response<B>, name: &str) -> Vec<String> {
    response
        .headers()
        .get_all(name)
        .iter()
        .map(|line| line.to_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn every_combination_keeps_the_contract() {
    let limiter = || BucketLayer::new(Limiter::new(A_MILLION));
    contract::check(|probe| limiter().cost(|_: &Request<String>| 2).layer(probe));
    contract::check(|probe| {
        limiter()
            .quota_fn(|_: &Request<String>| Some(A_MILLION))
            .shadow()
            .respond()
            .layer(probe)
    });
    contract::check(|probe| {
        limiter()
            .and(BucketLayer::per_client(A_MILLION))
            .rate_limit_headers(DEFAULT)
            .respond()
            .layer(probe)
    });
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_what_it_costs() {
    let (mut service, _probe) = layered(
        &BucketLayer::new(Limiter::new(TEN_A_SECOND))
            .cost(cost)
            .respond(),
    );
    assert_eq!(status(&mut service, costing("7")).await, 200);
    assert_eq!(status(&mut service, costing("4")).await, 429);
    assert_eq!(status(&mut service, costing("3")).await, 200);
    assert_eq!(status(&mut service, costing("0")).await, 200);
    assert_eq!(status(&mut service, costing("1")).await, 429);
    advance(Duration::from_millis(400)).await;
    assert_eq!(status(&mut service, costing("4")).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_one_limit_has_applies_to_it_and_a_later_one_to_the_rest() {
    let (one, two) = (Limiter::new(TEN_A_SECOND), Limiter::new(TEN_A_SECOND));
    let layer = BucketLayer::new(one.clone())
        .cost(|_: &Request<String>| 2)
        .and(BucketLayer::new(two.clone()))
        .cost(|_: &Request<String>| 5);
    let (mut service, _probe) = layered(&layer);
    call(&mut service, request()).await.unwrap();
    assert_eq!(
        (one.check_cost(8).is_ok(), one.check().is_ok()),
        (true, false)
    );
    assert_eq!(
        (two.check_cost(5).is_ok(), two.check().is_ok()),
        (true, false)
    );
}

#[tokio::test(start_paused = true)]
async fn what_costs_more_than_the_burst_is_refused_at_once_and_for_good() {
    let limiter = Limiter::new(TEN_A_SECOND);
    let layer = BucketLayer::new(limiter.clone()).cost(cost);
    let (mut service, probe) = layered(&layer);
    let error = call(&mut service, costing("11")).await.unwrap_err();
    let exhausted = error.downcast_ref::<Exhausted>().unwrap();
    assert!(exhausted.is_cost() && exhausted.retry_after().is_none());
    assert_eq!(Refusal::find(&*error).unwrap().code(), "rate-limit-cost");
    assert_eq!(
        error.to_string(),
        "request costs more than the rate limit ever allows"
    );

    let (mut waiting, _probe) = layered(&layer.clone().wait(Duration::MAX));
    assert!(
        waiting
            .ready()
            .await
            .unwrap()
            .call(costing("4294967295"))
            .now_or_never()
            .unwrap()
            .is_err(),
        "never a hang"
    );
    let (mut service, _probe) = layered(&layer.respond());
    let refused = call(&mut service, costing("11")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!refused.headers().contains_key("retry-after"));
    assert_eq!(
        (
            limiter.snapshot().refused,
            limiter.snapshot().allowed,
            probe.calls()
        ),
        (3, 0, 0)
    );
    assert_eq!(limiter.peek().unwrap().remaining(), 9, "nothing was taken");
}

#[tokio::test(start_paused = true)]
async fn each_tenant_has_the_quota_of_its_plan() {
    let plan = |request: &Request<String>| match request.headers().get("x-plan")?.to_str().ok()? {
        "free" => Some(Quota::per_minute(2)),
        "paid" => Some(TEN_A_SECOND),
        _ => None,
    };
    let with = |peer: &str, plan: &'static str| {
        let mut request = from(peer);
        request
            .headers_mut()
            .insert("x-plan", plan.parse().unwrap());
        request
    };
    let (mut service, _probe) = layered(
        &BucketLayer::per_client(FIVE_A_SECOND)
            .quota_fn(plan)
            .respond(),
    );
    assert_eq!(pass(&mut service, || with("192.0.2.1", "free")).await, 2);
    assert_eq!(pass(&mut service, || with("192.0.2.2", "paid")).await, 10);
    assert_eq!(pass(&mut service, || with("192.0.2.3", "none")).await, 5);
    assert_eq!(pass(&mut service, || from("192.0.2.4")).await, 5);
    advance(Duration::from_secs(1)).await;
    assert_eq!(pass(&mut service, || with("192.0.2.1", "free")).await, 0);
    assert_eq!(pass(&mut service, || with("192.0.2.2", "paid")).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_counts_what_it_would_refuse_and_refuses_nothing() {
    let layer = BucketLayer::per_client(FIVE_A_SECOND).on_missing_key(OnMissingKey::Deny);
    let limiter = layer.limiter().clone();
    let (mut service, probe) = layered(&layer.cost(cost).shadow().respond());
    for _ in 0..20 {
        assert_eq!(status(&mut service, from("192.0.2.1")).await, 200);
    }
    assert_eq!(status(&mut service, request()).await, 200);
    let snapshot = limiter.snapshot();
    assert_eq!(
        (
            snapshot.allowed,
            snapshot.shadowed,
            snapshot.refused,
            snapshot.keyless
        ),
        (5, 16, 0, 1)
    );
    assert_eq!(probe.calls(), 21);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_beside_a_limit_lets_the_limit_decide_and_waits_for_nothing() {
    let (shadow, limit) = (
        Limiter::new(Quota::per_minute(1)),
        Limiter::new(FIVE_A_SECOND),
    );
    let layer = BucketLayer::new(limit.clone()).and(BucketLayer::new(shadow.clone()).shadow());
    let (mut service, _probe) = layered(&layer.clone().respond());
    assert_eq!(pass(&mut service, request).await, 5);
    assert_eq!(
        (
            shadow.snapshot().allowed,
            shadow.snapshot().shadowed,
            shadow.snapshot().refused
        ),
        (1, 4, 0)
    );
    assert_eq!((limit.snapshot().allowed, limit.snapshot().refused), (5, 1));

    advance(Duration::from_secs(1)).await;
    let (mut waiting, _probe) = layered(&layer.respond().wait(Duration::from_secs(3600)));
    for _ in 0..5 {
        assert!(
            waiting
                .ready()
                .await
                .unwrap()
                .call(request())
                .now_or_never()
                .is_some()
        );
    }
    let begin = tokio::time::Instant::now();
    assert!(call(&mut waiting, request()).await.is_ok());
    assert_eq!(
        begin.elapsed().as_millis() / 10,
        20,
        "for the limit's turn, and not for the shadow's"
    );
}

#[tokio::test(start_paused = true)]
async fn several_limits_must_all_let_a_request_through_and_a_refused_one_costs_none_of_them() {
    let site = Limiter::new(Quota::per_second(8));
    let clients = KeyedLimiter::<ClientIp>::new(FIVE_A_SECOND);
    let layer = BucketLayer::new(site.clone())
        .and(BucketLayer::keyed(clients.clone(), PeerIp))
        .respond();
    let (mut service, probe) = layered(&layer);
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 5);
    for _ in 0..100 {
        assert_eq!(status(&mut service, from("192.0.2.1")).await, 429);
    }
    assert_eq!(
        site.peek().unwrap().remaining(),
        2,
        "a client beyond its own limit takes nothing from the others"
    );
    assert_eq!(
        pass(&mut service, || from("192.0.2.2")).await,
        3,
        "then the site's is used up"
    );
    assert_eq!(
        clients
            .peek_key(&ClientIp::from(
                "192.0.2.2".parse::<std::net::IpAddr>().unwrap()
            ))
            .unwrap()
            .remaining(),
        1
    );
    assert_eq!((site.snapshot().allowed, site.snapshot().refused), (8, 1));
    assert_eq!(
        (clients.snapshot().allowed, clients.snapshot().refused),
        (8, 101)
    );
    assert_eq!(probe.calls(), 8);
}

#[tokio::test(start_paused = true)]
async fn of_several_that_refuse_the_longest_wait_is_reported_in_any_order() {
    let quotas = [
        Quota::per_second(2).burst(1),
        Quota::per_minute(6).burst(1),
        Quota::per_minute(60).burst(1),
    ];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let [first, second, third] = order.map(|at| BucketLayer::new(Limiter::new(quotas[at])));
        let (mut service, _probe) = layered(&first.and(second).and(third));
        assert!(call(&mut service, request()).await.is_ok());
        let error = call(&mut service, request()).await.unwrap_err();
        assert_eq!(
            error.downcast_ref::<Exhausted>().unwrap().retry_after(),
            Some(Duration::from_secs(10)),
            "{order:?}"
        );
        advance(Duration::from_secs(1)).await;
        let error = call(&mut service, request()).await.unwrap_err();
        assert_eq!(
            error.downcast_ref::<Exhausted>().unwrap().retry_after(),
            Some(Duration::from_secs(9)),
            "{order:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_no_wait_helps_outweighs_one_that_a_wait_does() {
    let layer = BucketLayer::new(Limiter::new(FIVE_A_SECOND))
        .and(BucketLayer::per_client(FIVE_A_SECOND).on_missing_key(OnMissingKey::Deny));
    let (mut service, _probe) = layered(&layer);
    for _ in 0..5 {
        assert!(call(&mut service, from("192.0.2.1")).await.is_ok());
    }
    let error = call(&mut service, request()).await.unwrap_err();
    assert_eq!(error.to_string(), "rate limit key missing");
}

#[tokio::test(start_paused = true)]
async fn two_limits_that_wait_wait_for_the_later_turn_and_give_both_back() {
    let (slow, fast) = (
        Limiter::new(Quota::per_second(2).burst(1)),
        Limiter::new(TEN_A_SECOND.burst(1)),
    );
    let layer = BucketLayer::new(slow.clone())
        .and(BucketLayer::new(fast.clone()))
        .wait(Duration::from_secs(1));
    let (mut service, probe) = layered(&layer);
    assert!(call(&mut service, request()).await.is_ok());
    drop(service.ready().await.unwrap().call(request()));
    assert_eq!(
        slow.peek().unwrap_err().retry_after(),
        Some(Duration::from_millis(500))
    );
    assert_eq!(
        fast.peek().unwrap_err().retry_after(),
        Some(Duration::from_millis(100))
    );
    let begin = tokio::time::Instant::now();
    assert!(call(&mut service, request()).await.is_ok());
    assert_eq!((begin.elapsed().as_millis() / 10, probe.calls()), (50, 2));
    assert_eq!(
        (
            slow.snapshot().waited,
            fast.snapshot().waited,
            slow.snapshot().abandoned
        ),
        (1, 1, 1)
    );
}

/// Two threads race for what is left. The one that takes from the first limit and then finds the second one empty gives back.
#[test]
fn what_a_race_takes_is_given_back() {
    const EACH: u32 = 20_000;
    // So slow that nothing comes back by itself while the test runs.
    let slow = |burst| Quota::per_hour(1).burst(burst);
    let (site, other) = (Limiter::new(slow(1_000_000)), Limiter::new(slow(5_000)));
    let layer = BucketLayer::new(site.clone()).and(BucketLayer::new(other.clone()));
    let passed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut service = layer.layer(tower::service_fn(|_: u32| {
                    std::future::ready(Ok::<_, Infallible>(()))
                }));
                for number in 0..EACH {
                    passed.fetch_add(
                        u32::from(service.call(number).now_or_never().unwrap().is_ok()),
                        Relaxed,
                    );
                }
            });
        }
    });
    assert_eq!(passed.load(Relaxed), 5_000);
    let left = site.peek().unwrap().remaining();
    assert!(
        (994_990..995_000).contains(&left),
        "{left}: what was taken and not used came back"
    );
    let (site, other) = (site.snapshot(), other.snapshot());
    assert_eq!(
        (site.allowed, other.allowed, other.refused),
        (5_000, 5_000, u64::from(2 * EACH - 5_000))
    );
}

#[tokio::test(start_paused = true)]
async fn a_quota_changed_at_run_time_holds_for_every_service_from_then_on() {
    let layer = BucketLayer::per_client(FIVE_A_SECOND).respond();
    let (mut service, _probe) = layered(&layer);
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 5);
    layer.limiter().set_quota(TEN_A_SECOND);
    assert_eq!(pass(&mut service, || from("192.0.2.2")).await, 10);
    assert_eq!(
        pass(&mut service, || from("192.0.2.1")).await,
        0,
        "what was taken stays taken"
    );
    advance(Duration::from_millis(300)).await;
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 3);
    layer.limiter().set_quota(Quota::per_minute(1));
    assert_eq!(pass(&mut service, || from("192.0.2.3")).await, 1);
    assert_eq!(pass(&mut service, request).await, 1);
    assert_eq!(layer.limiter().snapshot().keys, 3);
    layer.limiter().set_quota(TEN_A_SECOND);
    for _ in 0..2 {
        assert_eq!(pass(&mut service, || from("192.0.2.3")).await, 0, "empty");
        assert_eq!(pass(&mut service, request).await, 0);
        advance(Duration::from_millis(100)).await;
        assert_eq!(
            pass(&mut service, || from("192.0.2.3")).await,
            1,
            "and not for a minute"
        );
        assert_eq!(pass(&mut service, request).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tuple_of_keys_is_a_bucket_for_each_pair() {
    let to = |peer: &str, path: &str| {
        let mut request = from(peer);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    let layer = BucketLayer::keyed(KeyedLimiter::new(FIVE_A_SECOND), (PeerIp, Path)).respond();
    let (mut service, _probe) = layered(&layer);
    assert_eq!(pass(&mut service, || to("192.0.2.1", "/a?x=1")).await, 5);
    assert_eq!(pass(&mut service, || to("192.0.2.1", "/a?x=2")).await, 0);
    assert_eq!(pass(&mut service, || to("192.0.2.1", "/b")).await, 5);
    assert_eq!(pass(&mut service, || to("192.0.2.2", "/a")).await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_client_behind_a_proxy_cannot_pose_as_another() {
    let via = |spoofed: &str, client: &str| {
        let mut request = from("10.0.0.1");
        request
            .headers_mut()
            .append("x-forwarded-for", spoofed.parse().unwrap());
        request.headers_mut().append(
            "x-forwarded-for",
            format!("{client}, 10.0.0.2").parse().unwrap(),
        );
        request
    };
    let ours = ProxiedIp::trusting(["10.0.0.0/8".parse().unwrap()]);
    let (mut service, _probe) =
        layered(&BucketLayer::keyed(KeyedLimiter::new(FIVE_A_SECOND), ours).respond());
    let mut last = 0;
    let spoofing = || {
        last += 1;
        via(&format!("203.0.113.{last}"), "192.0.2.1")
    };
    assert_eq!(pass(&mut service, spoofing).await, 5);
    assert_eq!(
        pass(&mut service, || via("192.0.2.1", "203.0.113.1")).await,
        5,
        "a victim has all of its own"
    );
}

#[tokio::test(start_paused = true)]
async fn the_fields_are_written_on_success_and_on_rejection() {
    let (mut service, _probe) = layered(
        &BucketLayer::per_client(FIVE_A_SECOND)
            .rate_limit_headers(DEFAULT)
            .respond(),
    );
    let response = call(&mut service, from("192.0.2.1")).await.unwrap();
    assert_eq!(
        lines(&response, "ratelimit-policy"),
        ["\"default\";q=5;w=1"]
    );
    assert_eq!(lines(&response, "ratelimit"), ["\"default\";r=4;t=1"]);
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 4);
    let refused = call(&mut service, from("192.0.2.1")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(lines(&refused, "ratelimit-policy"), ["\"default\";q=5;w=1"]);
    assert_eq!(lines(&refused, "ratelimit"), ["\"default\";r=0;t=1"]);
    assert_eq!(refused.headers()["retry-after"], "1");
}

#[tokio::test(start_paused = true)]
async fn each_limit_is_reported_by_its_name_or_the_tightest_alone() {
    const SITE: PolicyName = PolicyName::new("site").unwrap();
    const CLIENT: PolicyName = PolicyName::new("client").unwrap();
    let site = || BucketLayer::new(Limiter::new(Quota::per_minute(60)));
    let client = || BucketLayer::per_client(FIVE_A_SECOND);
    let (mut each, _probe) = layered(
        &site()
            .rate_limit_headers(SITE)
            .and(client().rate_limit_headers(CLIENT))
            .respond(),
    );
    let response = call(&mut each, from("192.0.2.1")).await.unwrap();
    assert_eq!(
        lines(&response, "ratelimit-policy"),
        ["\"site\";q=60;w=60", "\"client\";q=5;w=1"]
    );
    assert_eq!(
        lines(&response, "ratelimit"),
        ["\"site\";r=59;t=1", "\"client\";r=4;t=1"]
    );
    assert_eq!(pass(&mut each, || from("192.0.2.1")).await, 4);
    let refused = call(&mut each, from("192.0.2.1")).await.unwrap();
    assert_eq!(
        lines(&refused, "ratelimit"),
        ["\"client\";r=0;t=1"],
        "who refused"
    );

    let (mut tightest, _probe) = layered(
        &site()
            .and(client())
            .rate_limit_headers(DEFAULT)
            .wait(Duration::from_secs(1))
            .respond(),
    );
    let response = call(&mut tightest, from("192.0.2.1")).await.unwrap();
    assert_eq!(lines(&response, "ratelimit"), ["\"default\";r=4;t=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_limited_gets_no_fields() {
    let layer = BucketLayer::per_client(FIVE_A_SECOND)
        .on_missing_key(OnMissingKey::Allow)
        .rate_limit_headers(DEFAULT)
        .respond();
    let (mut service, _probe) = layered(&layer);
    let response = call(&mut service, request()).await.unwrap();
    assert!(
        !response.headers().contains_key("ratelimit")
            && !response.headers().contains_key("ratelimit-policy")
    );
}

#[tokio::test(start_paused = true)]
async fn a_grpc_client_gets_pushback_from_the_same_limiter() {
    let layer = BucketLayer::new(Limiter::new(FIVE_A_SECOND))
        .cost(cost)
        .respond();
    let (mut service, _probe) = layered(&layer);
    assert_eq!(status(&mut service, costing("5")).await, 200);
    let mut grpc = costing("2");
    *grpc.method_mut() = http::Method::POST;
    grpc.headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let refused = call(&mut service, grpc).await.unwrap();
    assert_eq!(
        (
            &refused.headers()["grpc-status"],
            &refused.headers()["grpc-retry-pushback-ms"]
        ),
        (&"8".parse().unwrap(), &"400".parse().unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_zero_admits_nothing_and_has_no_time_to_retry() {
    for quota in [Quota::per_second(0), Quota::per_second(5).burst(0)] {
        let (shared, keyed) = (Limiter::new(quota), KeyedLimiter::<str>::new(quota));
        let checks = [
            shared.check(),
            shared.peek(),
            keyed.check_key("alice"),
            keyed.peek_key("alice"),
        ];
        for error in checks.map(Result::unwrap_err) {
            assert!(error.is_cost() && error.retry_after().is_none());
        }
        assert!(shared.check_cost(0).is_ok() && keyed.check_key_cost("alice", 0).is_ok());
        let (mut waits, probe) = layered(&BucketLayer::new(&shared).wait(Duration::MAX));
        assert!(waits.ready().await.unwrap().call(request()).await.is_err());
        assert_eq!(probe.calls(), 0);
        shared.set_quota(FIVE_A_SECOND);
        keyed.set_quota(FIVE_A_SECOND);
        assert!(shared.check().is_ok() && keyed.check_key("alice").is_ok());
    }
}

#[test]
fn a_capacity_of_zero_is_one_bucket_for_all_keys() {
    let limiter = KeyedLimiter::<u64>::new(FIVE_A_SECOND).capacity(0);
    assert_eq!(
        (0..10).filter(|key| limiter.check_key(key).is_ok()).count(),
        5
    );
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.keys, snapshot.overflowed), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn with_no_waiters_each_request_beyond_the_burst_is_rejected() {
    let layer = BucketLayer::new(Limiter::new(FIVE_A_SECOND)).wait(Duration::from_secs(1));
    let (mut service, _probe) = layered(&layer.waiters(0));
    for number in 0..7 {
        let answer = service.ready().await.unwrap().call(request()).await;
        assert_eq!(answer.is_ok(), number < 5);
    }
    assert_eq!(Share::one_in(0), Share::ALL);
}
